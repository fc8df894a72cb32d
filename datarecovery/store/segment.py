"""Index segments: immutable sorted files that say where each record lies. Written and read here only.

Format, version 1, little-endian; pages of 4096 bytes.

    page 0     header: magic "AZKINDX1", version u16 = 1, reserved u16 + u32 = 0, store UUID 16 bytes, entries u64,
               home pages u64, all entry pages u64, first sequence u64, last sequence u64, xxh3-64 of bytes 0 to 71;
               zeros
    page 1..   entry pages: entries u16, reserved u16 = 0, own page number u32 (low bits), xxh3-64 of the page with this
               field zero, then up to 85 entries of 48 bytes: id 32, pack u64, offset u32, size u32; zeros

Ids are hashes, so they spread evenly: the home of an id is page `first 8 bytes * home pages >> 64`, and entries are
sorted over the whole file, each in its home or, where that is full, in the next page with room. A look-up reads the
home page and goes on only while a page is full and ends below the id: one read in nearly all cases, without any table
in memory. Segments never change; a crash leaves at most a temporary file.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from datarecovery.errors import DamagedIndexError
from datarecovery.store import durable
from datarecovery.store.pack import Location

MAGIC = b"AZKINDX1"
VERSION = 1
HEADER = struct.Struct("<8sHHI16sQQQQQ")
PAGE_BYTES = 4096
PAGE_HEAD = struct.Struct("<HHIQ")
ENTRY = struct.Struct("<32sQII")
_PLACE = struct.Struct("<QII")
ID_BYTES = 32
PER_PAGE = (PAGE_BYTES - PAGE_HEAD.size) // ENTRY.size
# Fill of a home page: at 64 of 85 (mean, deviation 8) fewer than 1 page in 200 spills into the next.
HOME_FILL = 64
_WRITE_BYTES = 1 << 20
_READ_PAGES = 256


def home_page(identifier: bytes, home_pages: int) -> int:
    """The entry page, from 0, where an id belongs."""
    return int.from_bytes(identifier[:8], "big") * home_pages >> 64


def pack_entry(identifier: bytes, location: Location) -> bytes:
    """The 48 bytes of an entry; sorting them sorts by id."""
    return ENTRY.pack(identifier, location.pack, location.offset, location.size)


def _seal_page(entries: list[bytes], number: int) -> bytes:
    body = b"".join(entries).ljust(PAGE_BYTES - PAGE_HEAD.size, b"\0")
    blank = PAGE_HEAD.pack(len(entries), 0, number & 0xFFFFFFFF, 0)
    checksum = xxhash.xxh3_64_intdigest(blank + body)
    return PAGE_HEAD.pack(len(entries), 0, number & 0xFFFFFFFF, checksum) + body


def _pages(entries: Iterable[bytes], home_pages: int) -> Iterator[list[bytes]]:
    """Spread sorted entries over pages: first the home pages, then as many as spill over the end."""
    current: list[bytes] = []
    number = 0
    last = b""
    for entry in entries:
        identifier = entry[:ID_BYTES]
        if identifier == last:
            continue  # the same chunk twice, by sessions that raced or died: one place is enough
        last = identifier
        home = home_page(identifier, home_pages)
        while number < home or len(current) == PER_PAGE:
            yield current
            current = []
            number += 1
        current.append(entry)
    yield current
    for _ in range(number + 1, home_pages):
        yield []


def write(path: Path, store: uuid.UUID, entries: Iterable[bytes], upper: int, first: int, last: int) -> int:
    """Write and fsync a segment of sorted `entries` (`upper` is at least their number); how many it holds.

    It covers the sequence numbers `first` to `last`. Raises OSError; the caller removes what is left then.
    """
    home_pages = max(1, -(-upper // HOME_FILL))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        out = bytearray()
        offset = PAGE_BYTES
        count = pages = 0
        for page in _pages(entries, home_pages):
            out += _seal_page(page, pages)
            count += len(page)
            pages += 1
            if len(out) >= _WRITE_BYTES:
                durable.write_all(fd, bytes(out), offset)
                offset += len(out)
                out.clear()
        durable.write_all(fd, bytes(out), offset)
        head = HEADER.pack(MAGIC, VERSION, 0, 0, store.bytes, count, home_pages, pages, first, last)
        head += struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
        durable.write_all(fd, head.ljust(PAGE_BYTES, b"\0"), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    return count


class Segment:
    """One segment, open for reading. Threads share it; the file closes when the last user lets go of the object."""

    def __init__(self, path: Path, store: uuid.UUID) -> None:
        """Open and check the header. Raises DamagedIndexError, FileNotFoundError."""
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            head = os.pread(self._fd, PAGE_BYTES, 0)
            size = os.fstat(self._fd).st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedIndexError(f"index segment {path} cannot be read: {error.strerror}") from error
        if len(head) < PAGE_BYTES or head[:8] != MAGIC:
            raise self._damaged("it does not begin as one")
        if xxhash.xxh3_64_intdigest(head[: HEADER.size]) != struct.unpack_from("<Q", head, HEADER.size)[0]:
            raise self._damaged("header checksum does not match")
        if any(head[HEADER.size + 8 :]):
            raise self._damaged("its header page is not as it was written")
        _, version, _, _, owner, self.count, self._home, self._all, self.first, self.last = HEADER.unpack_from(head)
        if version != VERSION or owner != store.bytes:
            raise self._damaged("unknown version, or of another store")
        if not 0 < self._home <= self._all or size != PAGE_BYTES * (self._all + 1):
            raise self._damaged(f"{size} bytes are not what its header says")

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _damaged(self, why: str) -> DamagedIndexError:
        return DamagedIndexError(f"index segment {self.path}: {why}; rebuild it with: datarecovery store reindex")

    def _check(self, page: bytes, number: int) -> int:
        """The number of entries of a page. Raises DamagedIndexError."""
        if len(page) < PAGE_BYTES:
            raise self._damaged(f"page {number} is cut short")
        count, _, own, checksum = PAGE_HEAD.unpack_from(page)
        blank = PAGE_HEAD.pack(count, 0, own, 0)
        if xxhash.xxh3_64_intdigest(blank + page[PAGE_HEAD.size :]) != checksum:
            raise self._damaged(f"checksum of page {number} does not match")
        if own != number & 0xFFFFFFFF or count > PER_PAGE:
            raise self._damaged(f"page {number} is another page or too full")
        return int(count)

    def _read_page(self, number: int) -> tuple[bytes, int]:
        try:
            page = os.pread(self._fd, PAGE_BYTES, PAGE_BYTES * (number + 1))
        except OSError as error:
            raise self._damaged(f"page {number} cannot be read: {error.strerror}") from error
        return page, self._check(page, number)

    def find(self, identifier: bytes) -> Location | None:
        """Where the record of an id lies, if this segment knows. Raises DamagedIndexError."""
        number = home_page(identifier, self._home)
        while number < self._all:
            page, count = self._read_page(number)
            end = PAGE_HEAD.size + count * ENTRY.size
            at = page.find(identifier, PAGE_HEAD.size, end)
            while at >= 0:
                if (at - PAGE_HEAD.size) % ENTRY.size == 0:
                    return Location(*_PLACE.unpack_from(page, at + ID_BYTES))
                at = page.find(identifier, at + 1, end)
            if count < PER_PAGE or page[end - ENTRY.size : end - ENTRY.size + ID_BYTES] > identifier:
                return None
            number += 1
        return None

    def entries(self) -> Iterator[bytes]:
        """All entries in order, 48 bytes each. Raises DamagedIndexError."""
        for start in range(0, self._all, _READ_PAGES):
            many = min(_READ_PAGES, self._all - start)
            try:
                data = os.pread(self._fd, PAGE_BYTES * many, PAGE_BYTES * (start + 1))
            except OSError as error:
                raise self._damaged(f"page {start} cannot be read: {error.strerror}") from error
            for i in range(many):
                page = data[i * PAGE_BYTES : (i + 1) * PAGE_BYTES]
                count = self._check(page, start + i)
                for at in range(PAGE_HEAD.size, PAGE_HEAD.size + count * ENTRY.size, ENTRY.size):
                    yield page[at : at + ENTRY.size]
