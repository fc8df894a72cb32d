"""The open files in the estate: the kernel keeps using their numbers, and never sends their OPEN again.

A record is 6 words: number (fh; 0: the place is free), inode, generation, open(2) flags, state, the request that opened
it. The number is stored last, and taken away first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from errno import ENFILE
from typing import Final

from vmfs.estate.layout import HANDLE_WORDS, HANDLES_AT, HANDLES_MAX, Estate
from vmfs.estate.memory import WORD

_STATE: Final = 4
_NEXT_FH: Final = 7  # word of the estate's first page


class HandleState(IntEnum):
    """What a handle may do."""

    READING = 1
    WRITING = 2
    """Its inode's lock is held."""
    LOST = 3
    """Another host may have had the file meanwhile: every use fails with ESTALE until it is closed."""


@dataclass(frozen=True, slots=True)
class LeftHandle:
    """An open file."""

    fh: int
    number: int
    generation: int
    flags: int
    state: HandleState
    unique: int


class HandleTable:
    """The records of the open files. All calls are made under the control mutex."""

    def __init__(self, estate: Estate) -> None:
        self._words = estate.words
        self._place: dict[int, int] = {}
        self._free: list[int] = []
        self._fresh = 0
        """Places from here on were never used."""
        for index in range(HANDLES_MAX):
            at = self._at(index)
            if not any(self._words[at : at + HANDLE_WORDS]):
                break
            if self._words[at]:
                self._place[self._words[at]] = index
            else:
                self._free.append(index)
            self._fresh = index + 1

    @staticmethod
    def _at(index: int) -> int:
        return HANDLES_AT // WORD + index * HANDLE_WORDS

    def all(self) -> list[LeftHandle]:
        """Every open file, by number."""
        found = []
        for fh, index in sorted(self._place.items()):
            _, number, generation, flags, state, unique = self._words[self._at(index) : self._at(index) + 6].tolist()
            found.append(LeftHandle(fh, number, generation, flags, HandleState(state), unique))
        return found

    def put(self, handle: LeftHandle) -> None:
        """Keep a new one, before the kernel is told its number. OSError(ENFILE) when there are too many."""
        if self._free:
            index = self._free.pop()
        elif self._fresh < HANDLES_MAX:
            index = self._fresh
            self._fresh += 1
        else:
            raise OSError(ENFILE, f"{HANDLES_MAX} files are open in this mount")
        at = self._at(index)
        words = self._words
        # The state first: a place whose words are all zero ends the table.
        words[at + _STATE] = handle.state
        words[at + 1], words[at + 2] = handle.number, handle.generation
        words[at + 3], words[at + 5] = handle.flags & 0xFFFFFFFF, handle.unique
        words[_NEXT_FH] = max(words[_NEXT_FH], handle.fh + 1)
        words[at] = handle.fh
        self._place[handle.fh] = index

    @property
    def next_fh(self) -> int:
        """A number above every one ever given: the kernel may still close one that is not here any more."""
        return max(1, self._words[_NEXT_FH])

    def lose(self, fh: int) -> None:
        """The file's lock was not held all the time."""
        self.turn(fh, HandleState.LOST)

    def turn(self, fh: int, state: HandleState) -> None:
        """It may do something else from now on."""
        self._words[self._at(self._place[fh]) + _STATE] = state

    def drop(self, fh: int) -> None:
        """It is closed."""
        index = self._place.pop(fh, None)
        if index is not None:
            self._words[self._at(index)] = 0
            self._free.append(index)
