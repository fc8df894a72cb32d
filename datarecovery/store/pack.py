"""Pack files: append-only containers of records. Written and read here only.

Format, version 1, little-endian:

    0      64   header: magic "AZKPACK1", version u16 = 1, header size u16 = 64, reserved u32 = 0, store UUID 16 bytes,
                pack number u64, session UUID 16 bytes, xxh3-64 of bytes 0 to 55
    64     n    records (record.py), one after the other
    then   40*k footer: an entry a record in order: id 32 bytes, offset u32, size u32 (header and stored bytes)
    end-32 32   trailer: magic "AZKFOOT1", offset of the footer u64, xxh3-64 of the footer, xxh3-64 of the trailer's
                first 24 bytes

The number is given by creating the file exclusively. A pack is only ever appended to, and by one session. Without a
trailer it is unsealed: a session writes it or died; its records count as far as they follow each other and their
checksums match. Sealing = appending footer and trailer, fsync of the file and its folder. Sealed packs never change.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from datarecovery.errors import DamagedPackError
from datarecovery.store import durable, record

MAGIC = b"AZKPACK1"
FOOT_MAGIC = b"AZKFOOT1"
VERSION = 1
HEADER = struct.Struct("<8sHHI16sQ16s")
HEADER_BYTES = 64
ENTRY = struct.Struct("<32sII")
TRAILER = struct.Struct("<8sQQ")
TRAILER_BYTES = 32
_SUM = struct.Struct("<Q")
# A pack is closed when it reaches this: large enough to be written and verified at the speed of the medium, small
# enough that a lost one, or one rewritten by a clean-up, is little.
FULL_BYTES = 64 << 20
# No pack can be larger: full, one batch more, and the footer. Bounds what a hostile footer may claim.
LIMIT_BYTES = 256 << 20
PACKS_PER_FOLDER_SHIFT = 12
_SCAN_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """Where a record lies: pack number, offset and size in bytes of header and stored bytes."""

    pack: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a pack's footer."""

    id: bytes
    location: Location


def path_of(packs: Path, number: int) -> Path:
    """The path of pack `number` under the store's `packs` folder."""
    return packs / f"{number >> PACKS_PER_FOLDER_SHIFT:06x}" / f"{number:010x}.pack"


def numbers(packs: Path) -> Iterator[int]:
    """The numbers of all packs there are, ascending. Raises OSError."""
    for folder in sorted(entry.name for entry in os.scandir(packs) if entry.is_dir()):
        for name in sorted(os.listdir(packs / folder)):
            stem, dot, extension = name.partition(".")
            if not dot or extension != "pack":
                continue
            try:
                number = int(stem, 16)
            except ValueError:
                continue
            if path_of(packs, number) == packs / folder / name:
                yield number


def create(
    packs: Path, store: uuid.UUID, session: uuid.UUID, first_try: int, announce: Callable[[int], None]
) -> tuple[int, int]:
    """Create an empty pack with its header; its number (`first_try` or above) and descriptor.

    `announce` is told each number before it is tried, so that a crash leaves no pack that nobody knows of; whose a
    pack is, its header says. Raises OSError.
    """
    number = first_try
    while True:
        announce(number)
        path = path_of(packs, number)
        durable.make_folder(path.parent)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            number += 1
            continue
        head = HEADER.pack(MAGIC, VERSION, HEADER_BYTES, 0, store.bytes, number, session.bytes)
        try:
            durable.write_all(fd, head + _SUM.pack(xxhash.xxh3_64_intdigest(head)), 0)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return number, fd


def next_number(packs: Path) -> int:
    """A number above those of all packs in the last folder. Raises OSError."""
    folders = sorted((entry.name for entry in os.scandir(packs) if entry.is_dir()), reverse=True)
    for folder in folders:
        found = [int(name[:10], 16) for name in os.listdir(packs / folder) if name.endswith(".pack")]
        if found:
            return max(found) + 1
    return 1


def seal(fd: int, path: Path, end: int, entries: Sequence[Entry]) -> None:
    """Append footer and trailer at `end` bytes and make the whole pack durable. Raises OSError."""
    footer = b"".join(ENTRY.pack(e.id, e.location.offset, e.location.size) for e in entries)
    tail = TRAILER.pack(FOOT_MAGIC, end, xxhash.xxh3_64_intdigest(footer))
    durable.write_all(fd, footer + tail + _SUM.pack(xxhash.xxh3_64_intdigest(tail)), end)
    os.fsync(fd)
    durable.sync_folder(path.parent)


class PackReader:
    """One pack, open for reading. `close` it. Reads are positioned, so threads may share it."""

    def __init__(self, packs: Path, store: uuid.UUID, number: int) -> None:
        """Open and check the header. Raises DamagedPackError."""
        self.number = number
        self.path = path_of(packs, number)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedPackError(f"pack {self.path} cannot be opened: {error.strerror}") from error
        try:
            self.size = os.fstat(self._fd).st_size
            self._check_header(self.read(0, HEADER_BYTES), store)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _check_header(self, head: bytes, store: uuid.UUID) -> None:
        if len(head) < HEADER_BYTES or head[:8] != MAGIC:
            raise DamagedPackError(f"pack {self.path} does not begin with a pack header")
        if _SUM.unpack_from(head, HEADER.size)[0] != xxhash.xxh3_64_intdigest(head[: HEADER.size]):
            raise DamagedPackError(f"pack {self.path}: header checksum does not match")
        _, version, _, _, owner, number, session = HEADER.unpack_from(head)
        self.session = uuid.UUID(bytes=session)
        if version != VERSION:
            raise DamagedPackError(f"pack {self.path} is of version {version}, which is not known here")
        if owner != store.bytes or number != self.number:
            raise DamagedPackError(f"pack {self.path} belongs to another store or another place")

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`. Raises DamagedPackError when the medium fails."""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise DamagedPackError(f"pack {self.path} cannot be read at {offset}: {error.strerror}") from error

    def sync(self) -> None:
        """Make what others wrote into this pack durable. Raises OSError."""
        os.fsync(self._fd)

    def is_sealed(self) -> bool:
        """Whether the file ends as a sealed pack does."""
        return self.read(max(0, self.size - TRAILER_BYTES), 8) == FOOT_MAGIC

    def footer(self) -> list[Entry]:
        """The lines of the footer, checked. Raises DamagedPackError."""
        try:
            return self._parse_footer()
        except ValueError as error:
            raise DamagedPackError(f"pack {self.path}: {error}") from error

    def _parse_footer(self) -> list[Entry]:
        if not HEADER_BYTES + TRAILER_BYTES <= self.size <= LIMIT_BYTES:
            raise ValueError(f"{self.size} bytes are not a sealed pack")
        tail = self.read(self.size - TRAILER_BYTES, TRAILER_BYTES)
        if len(tail) < TRAILER_BYTES or tail[:8] != FOOT_MAGIC:
            raise ValueError("it has no trailer: cut short, or never sealed")
        if _SUM.unpack_from(tail, TRAILER.size)[0] != xxhash.xxh3_64_intdigest(tail[: TRAILER.size]):
            raise ValueError("trailer checksum does not match")
        _, start, checksum = TRAILER.unpack_from(tail)
        length = self.size - TRAILER_BYTES - start
        if start < HEADER_BYTES or length < 0 or length % ENTRY.size:
            raise ValueError("footer does not fit into the file")
        footer = self.read(start, length)
        if len(footer) != length or xxhash.xxh3_64_intdigest(footer) != checksum:
            raise ValueError("footer checksum does not match")
        entries = []
        expected = HEADER_BYTES
        for identifier, offset, size in ENTRY.iter_unpack(footer):
            if offset != expected or size <= record.HEADER_BYTES:
                raise ValueError("footer does not list the records without gaps")
            expected = offset + size
            entries.append(Entry(identifier, Location(self.number, offset, size)))
        if expected != start:
            raise ValueError("footer does not begin where the records end")
        return entries

    def scan(self) -> Iterator[Entry]:
        """The records from the start of the pack as far as headers and checksums of the stored bytes match."""
        offset = HEADER_BYTES
        window, base = b"", 0
        while True:
            need = record.HEADER_BYTES
            for _ in range(2):
                if offset < base or offset + need > base + len(window):
                    window, base = self.read(offset, max(need, _SCAN_READ_BYTES)), offset
                at = offset - base
                try:
                    head = record.parse_header(memoryview(window)[at : at + record.HEADER_BYTES])
                except ValueError:
                    return
                need = record.HEADER_BYTES + head.stored_bytes
            stored = memoryview(window)[at + record.HEADER_BYTES : at + need]
            if len(stored) != head.stored_bytes or xxhash.xxh3_64_intdigest(stored) != head.checksum:
                return
            yield Entry(head.id, Location(self.number, offset, need))
            offset += need
