"""What was done to files and names, and what may be read back: the half of the oracle that users would notice.

Each sector that is written says which write it belongs to, so whatever comes back can be told: this file's, another's,
too old, from the future, or nothing that was ever written. The clients tell the model what they begin and how it ended;
nothing in here looks at the product.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from tests.simulator.registers import Candidate, Change, Register

SECTOR: Final = 512
_STAMP: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"azekurA!"
_ZEROS: Final = bytes(SECTOR)


class Violation(Exception):
    """Something that must never happen."""


def content(token: int, first_sector: int, count: int) -> bytes:
    """What write `token` writes to these sectors of a file."""
    return b"".join(
        (_STAMP.pack(_MAGIC, token, first_sector + i) * (SECTOR // _STAMP.size)).ljust(SECTOR, b"#")
        for i in range(count)
    )


def token_of(sector: bytes, number: int) -> int:
    """Which write a sector belongs to; 0: none, it is zeros. Raises Violation for what nobody wrote."""
    if sector == _ZEROS:
        return 0
    magic, token, place = _STAMP.unpack_from(sector)
    if magic != _MAGIC:
        raise Violation(f"sector {number} holds what no client ever wrote: {sector[:24]!r}")
    if place != number or sector != content(token, number, 1):
        raise Violation(f"sector {number} holds sector {place} of write {token}, or a torn part of it")
    return int(token)


@dataclass(slots=True, eq=False)
class FileModel:
    """One file, by an identity of its own: names and inodes come and go."""

    uid: int
    born: Change
    size: Register
    sectors: dict[int, Register] = field(default_factory=dict)
    node: tuple[int, int] | None = None
    """(inode number, generation)."""
    handed_to: object = None
    """The process that last had it open for writing."""

    def sector(self, number: int) -> Register:
        found = self.sectors.get(number)
        if found is None:
            found = self.sectors[number] = Register.of(f"file {self.uid} sector {number}", 0, self.born)
        return found

    def registers(self) -> list[Register]:
        return [self.size, *self.sectors.values()]


class Model:
    """All files and names of the volume."""

    def __init__(self) -> None:
        self.files: dict[int, FileModel] = {}
        self.names: dict[tuple[int, bytes], Register] = {}
        self.by_node: dict[tuple[int, int], FileModel] = {}
        self.writers: dict[int, int] = {0: 0}
        """By token: the file that the write was made to."""
        self.cloning: dict[int, list[FileModel]] = {}
        """By file: the clones of it that are just being made."""
        self._next = 0
        self.origin = Change("format", None, 0.0, 0.0)

    def number(self) -> int:
        """A number for a new write or file."""
        self._next += 1
        return self._next

    def new_file(self, change: Change) -> FileModel:
        uid = self.number()
        made = self.files[uid] = FileModel(uid, change, Register.of(f"file {uid} size", 0, change))
        return made

    def name(self, directory: int, name: bytes) -> Register:
        key = directory, name
        found = self.names.get(key)
        if found is None:
            found = self.names[key] = Register.of(f"name {name.decode()} in {directory}", 0, self.origin)
        return found

    def placed(self, file: FileModel, node: tuple[int, int]) -> None:
        """The file's inode is known."""
        file.node = node
        self.by_node[node] = file

    def copy_into(self, made: FileModel, source: FileModel) -> None:
        """A clone is about to be made: if it comes to be, it holds what the source may hold now, or gets meanwhile."""
        made.size = _copied(source.size, f"file {made.uid} size")
        for number, register in source.sectors.items():
            made.sectors[number] = _copied(register, f"file {made.uid} sector {number}")

    def crashed(self, process: object | None) -> None:
        """A process died, or (None) everything."""
        for file in self.files.values():
            for register in file.registers():
                register.crashed(process)
        for register in self.names.values():
            register.crashed(process)
        for uid, clones in self.cloning.items():
            for made in clones:  # whoever clones waits for a dead host's recovery, perhaps
                self.copy_into(made, self.files[uid])

    # -- reading ------------------------------------------------------------------------------------------------

    def check_read(
        self, file: FileModel, first: int, data: bytes, now: float, *, since: float,
        marks: dict[int, Candidate] | None = None, durable: bool = False,
    ) -> None:  # fmt: skip
        """Judge what was read from sector `first` on.

        `marks`: what the sectors were when the read began, of a host that has the file open for writing, so that it is
        sure to see the truth; None for a reader without locks, whose map is as of `since` or later.
        """
        for at in range(0, len(data), SECTOR):
            number = first + at // SECTOR
            sector = data[at : at + SECTOR]
            if len(sector) < SECTOR:
                sector = sector.ljust(SECTOR, b"\0")
            token = token_of(sector, number)
            if token == 0 and number not in file.sectors:
                continue  # never written
            register = file.sector(number)
            if marks is not None and marks.get(number) is register.mark():
                problem = register.settle(token, now, durable=durable)
            elif register.may_be_seen(token, since):
                problem = None
            else:
                problem = f"{register.name} is {token}, not one of {register.values()} (before: {register.recent})"
            if problem:
                raise Violation(f"{problem}; write {token} was made to file {self.writers.get(token)}")


def _copied(register: Register, name: str) -> Register:
    return Register(name, list(register.candidates[register.certain :]))
