"""Lock blocks: the places that hosts change by compare-and-write alone.

A lock block is `lock_block_bytes` long (4096, or larger multiples where a volume uses Disk-Paxos registers for many
hosts). Its first logical sector (512 or 4096 bytes) holds one record, a heartbeat slot (`vmfs.ondisk.slot`) or a lock
(`vmfs.ondisk.lock`); the rest of the block is zeros. On a volume of the lock method PAXOS each host has a sector like
it, with ballots: `vmfs.ondisk.paxosblock`. Little-endian throughout. In the sector:

    offset  size  field
         0     4  magic, b"AZHB" or b"AZLK"
         4     2  version of that record's layout
         6     2  the record's own
         8     8  address: the block's own volume address
        16     8  first 8 bytes of the volume's UUID
        24   416  the record's own
       440     8  checksum: XXH3-64 of bytes 0..439
       448    64  the Paxos register's ballots; zeros on volumes that lock in another way, and zeros in every image
                  that is handed to or comes from `compare_and_write`: the register adds and hides them
       512        zeros up to the end of a 4096-byte sector

Crash rules. `format` (or the creation of an inode cluster) writes the whole block once; from then on it is changed by
`compare_and_write` of the sector only (or by what stands in for it, a sector at a time), so it holds one whole image at
any time, the old or the new. No image ever comes back: each carries a number that grows with every change (a slot's
sequence, a lock's stamp), so a late compare-and-write of unknown fate can never match again once the sector has moved
on. A sector of zeros was never formatted.
"""

from __future__ import annotations

import struct
from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock, UnsupportedFormat

RECORD_BYTES: Final = 448
SECTOR_BYTES_ALLOWED: Final = (512, 4096)
NO_SLOT: Final = 0xFFFF_FFFF  # "nobody" where a record names a slot
VOLUME_PREFIX_BYTES: Final = 8

CHECKSUM_OFFSET: Final = 440
BODY_OFFSET: Final = 24
_HEAD: Final = struct.Struct("<4sHBBQ8s")
_CHECKSUM: Final = struct.Struct("<Q")


def seal(
    body: bytes,
    *,
    magic: bytes,
    version: int,
    kinds: tuple[int, int],
    address: int,
    volume_prefix: bytes,
    sector_bytes: int,
) -> bytes:
    """Return the sector image of a record whose own fields from byte 24 on are `body`.

    Raises ValueError for a caller's mistake: a body that is too long, a sector size that no disk has.
    """
    if len(body) > CHECKSUM_OFFSET - BODY_OFFSET:
        raise ValueError(f"a record's body of {len(body)} bytes does not fit")
    if sector_bytes not in SECTOR_BYTES_ALLOWED or len(volume_prefix) != VOLUME_PREFIX_BYTES:
        raise ValueError(f"sector of {sector_bytes} bytes, volume prefix of {len(volume_prefix)} bytes")
    sector = bytearray(sector_bytes)
    _HEAD.pack_into(sector, 0, magic, version, *kinds, address, volume_prefix)
    sector[BODY_OFFSET : BODY_OFFSET + len(body)] = body
    _CHECKSUM.pack_into(sector, CHECKSUM_OFFSET, xxh3_64_intdigest(memoryview(sector)[:CHECKSUM_OFFSET]))
    return bytes(sector)


def peek(sector: bytes) -> tuple[int, bytes]:
    """(address, volume prefix) that a record says it has, with nothing verified: for tools that show damaged ones."""
    *_, address, prefix = _HEAD.unpack_from(sector, 0)
    return address, prefix


def resealed(sector: bytes, magic: bytes) -> bytes:
    """The record in `sector` with this magic, zeros behind it, and a checksum that matches it as it stands."""
    fixed = bytearray(sector[:RECORD_BYTES].ljust(len(sector), b"\0"))
    fixed[: len(magic)] = magic
    _CHECKSUM.pack_into(fixed, CHECKSUM_OFFSET, xxh3_64_intdigest(memoryview(fixed)[:CHECKSUM_OFFSET]))
    return bytes(fixed)


def unseal(
    sector: bytes, *, magic: bytes, version: int, what: str, address: int, volume_prefix: bytes
) -> tuple[int, int, bytes]:
    """Verify a sector image and return (byte 6, byte 7, body of 416 bytes).

    Raises:
        DamagedBlock: never formatted, torn, of another kind, place or volume, or not zero where it must be.
        UnsupportedFormat: an intact record of a version that this program does not know.
    """
    if len(sector) not in SECTOR_BYTES_ALLOWED:
        raise DamagedBlock(address, f"{what}: {len(sector)} bytes are no sector")
    if not any(sector):
        raise DamagedBlock(address, f"{what}: never formatted (all zeros)")
    stored: int = _CHECKSUM.unpack_from(sector, CHECKSUM_OFFSET)[0]
    if stored != xxh3_64_intdigest(memoryview(sector)[:CHECKSUM_OFFSET]):
        raise DamagedBlock(address, f"{what}: checksum does not match")
    found_magic, found_version, first, second, own, prefix = _HEAD.unpack_from(sector, 0)
    if found_magic != magic:
        raise DamagedBlock(address, f"{what}: expected magic {magic!r}, found {found_magic!r}")
    if own != address:
        raise DamagedBlock(address, f"{what}: the record says that its address is {own:#x}")
    if prefix != volume_prefix:
        raise DamagedBlock(address, f"{what}: the record belongs to another volume")
    if any(sector[RECORD_BYTES:]):
        raise DamagedBlock(address, f"{what}: bytes after the record are not zero")
    if found_version != version:
        raise UnsupportedFormat(f"volume address {address:#x}", f"{what} has layout version {found_version}")
    return first, second, bytes(sector[BODY_OFFSET:CHECKSUM_OFFSET])
