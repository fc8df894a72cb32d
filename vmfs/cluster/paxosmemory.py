"""What a mount remembers of Paxos registers: its own sectors, so that a swap need not read before its first write."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from vmfs.ondisk.paxosblock import Sector

ENTRIES_MAX: Final = 1024  # half a KiB each


@dataclass(frozen=True, slots=True)
class Known:
    """A register as it was last seen: the own sector, the highest ballot, the record of the highest image."""

    own: Sector
    highest: int
    top_record: bytes


@dataclass(slots=True)
class _Entry:
    known: Known | None
    change: int = 0  # the number of the last beginning or end of an own write; 0: none since the entry was made
    writing: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """What was known when a read began: it tells whether an own write has overtaken the read."""

    change: int
    forgotten: int


class RegisterMemory:
    """Usable from any thread; `_mutex` guards it all.

    An own sector that is older than one's own last write would be fatal: written again, it would take that write back.
    So a read enters what it saw only if no own write to that register was under way at any time during the read.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._numbers = count(1)
        self._forgotten = 0

    def token(self, address: int) -> Token:
        """Ask before a read begins."""
        with self._mutex:
            entry = self._entries.get(address)
            return Token(entry.change if entry else 0, self._forgotten)

    def looked(self, address: int, known: Known, token: Token) -> None:
        """Enter what the read showed that began when `token` was asked for."""
        with self._mutex:
            entry = self._entries.get(address)
            change = entry.change if entry else 0
            if token != Token(change, self._forgotten) or (entry is not None and entry.writing):
                return
            if entry is None:
                self._entries[address] = _Entry(known)
                self._make_room()
            else:
                entry.known = known
            self._entries.move_to_end(address)

    def writing(self, address: int) -> None:
        """An own write begins."""
        with self._mutex:
            entry = self._entries.setdefault(address, _Entry(None))
            entry.change, entry.writing = next(self._numbers), True

    def wrote(self, address: int, own: Sector) -> None:
        """The own write has landed; other sectors are as they were seen before."""
        with self._mutex:
            entry = self._entries[address]
            entry.change, entry.writing = next(self._numbers), False
            if entry.known is not None:
                entry.known = replace(entry.known, own=own)

    def get(self, address: int) -> Known | None:
        """What is known, or None."""
        with self._mutex:
            entry = self._entries.get(address)
            return None if entry is None else entry.known

    def forget(self, address: int) -> None:
        """Drop what is known of a register: a write to it failed, or it begins anew."""
        with self._mutex:
            self._entries.pop(address, None)
            self._forgotten += 1

    def clear(self) -> None:
        """Drop everything: another slot's sectors are this mount's own now."""
        with self._mutex:
            self._entries.clear()
            self._forgotten += 1

    def _make_room(self) -> None:
        for address in list(self._entries)[: max(0, len(self._entries) - ENTRIES_MAX)]:
            if not self._entries[address].writing:
                del self._entries[address]
                self._forgotten += 1
