"""Sectors that say which file they belong to, where in it, and which write wrote them.

512 bytes: 24 bytes (8s "AZKHIST1", u32 file, u32 sector of the file, u64 stamp, little-endian), over and over, the last
time cut short. A stamp names one write of the whole run; it grows from write to write. A sector of zeros has stamp 0.
"""

from __future__ import annotations

import struct
from typing import Final

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = 4096
_IN_PAGE: Final = PAGE_BYTES // SECTOR_BYTES
_HEAD: Final = struct.Struct("<8sIIQ")
_MAGIC: Final = b"AZKHIST1"
_TIMES: Final = -(-SECTOR_BYTES // _HEAD.size)
_ZEROS: Final = bytes(SECTOR_BYTES)

Value = int | tuple[int, ...]
"""What a page holds: the stamp of all its sectors, or the stamps one by one when they differ."""


class WrongBytes(AssertionError):
    """A sector that no write to this place of this file has made."""


def pages(file: int, first_page: int, count: int, stamp: int) -> bytes:
    """The bytes of one write."""
    first = first_page * _IN_PAGE
    return b"".join(_sector(file, number, stamp) for number in range(first, first + count * _IN_PAGE))


def values(file: int, content: bytes) -> list[Value]:
    """What the pages of a file hold. Raises WrongBytes."""
    stamps = [_stamp(file, at // SECTOR_BYTES, content[at : at + SECTOR_BYTES]) for at in range(0, len(content), 512)]
    grouped = (tuple(stamps[at : at + _IN_PAGE]) for at in range(0, len(stamps), _IN_PAGE))
    return [each[0] if len(set(each)) == 1 else each for each in grouped]


def parts(value: Value) -> tuple[int, ...]:
    """The stamps in a page."""
    return (value,) if isinstance(value, int) else value


def _sector(file: int, number: int, stamp: int) -> bytes:
    return (_HEAD.pack(_MAGIC, file, number, stamp) * _TIMES)[:SECTOR_BYTES]


def _stamp(file: int, number: int, found: bytes) -> int:
    if found == _ZEROS:
        return 0
    magic, of_file, at, stamp = _HEAD.unpack_from(found)
    if magic != _MAGIC or found != _sector(of_file, at, stamp):
        raise WrongBytes(f"file {file}, sector {number}: {found[:48].hex(' ')}..{found[-8:].hex(' ')} is of no write")
    if (of_file, at) != (file, number):
        raise WrongBytes(f"file {file}, sector {number}: it holds sector {at} of file {of_file}, stamp {stamp}")
    return int(stamp)
