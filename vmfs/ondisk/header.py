"""The header that every metadata block starts with.

A metadata block is `METADATA_BLOCK_BYTES` long, little-endian throughout, and begins with 64 bytes:

    offset  size  field
         0     4  magic b"AZMD" (a superblock has its 8-byte signature over magic, type and version)
         4     2  type, one of `BlockType`
         6     2  version of that type's layout
         8     8  checksum: XXH3-64 of bytes 16..4095, seeded with bytes 0..7 read as one integer
        16     8  address: the block's own volume address
        24     8  generation: grows with each write of the block; serves checking only, never replay
        32    16  volume UUID
        48     8  owner: what the block belongs to (a map id, an inode number, a group, a slot)
        56     8  role: the block's place in its owner (level and index of a map node, and the like)

Crash rule: a block may be torn by a power cut on a disk of 512-byte sectors. A torn block fails its checksum; the
journal holds its newest image until the block has been written whole and flushed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock

METADATA_BLOCK_BYTES: Final = 4096  # one page, and the largest sector size that disks have
HEADER_BYTES: Final = 64
MAGIC: Final = b"AZMD"
_HEADER: Final = struct.Struct("<4sHHQQQ16sQQ")
_CHECKSUM: Final = struct.Struct("<Q")


class BlockType(IntEnum):
    """What a metadata block holds. Numbers are on disk: never reuse one."""

    SUPERBLOCK = 1
    GROUP = 2
    CHUNK = 3
    INODE = 4
    NODE = 5
    DIRECTORY = 6
    JOURNAL_HEADER = 7
    JOURNAL_DESCRIPTOR = 8
    ORPHANS = 9
    XATTRS = 10


@dataclass(frozen=True, slots=True)
class Header:
    """A decoded block header (the checksum has been verified, the magic and the type compared)."""

    type: int
    version: int
    address: int
    generation: int
    volume: bytes
    owner: int
    role: int


def seal(
    block: bytearray,
    kind: BlockType,
    *,
    address: int,
    generation: int,
    volume: bytes,
    owner: int = 0,
    role: int = 0,
    version: int = 1,
) -> bytearray:
    """Write the header and the checksum into `block` (4096 bytes, payload from byte 64 on) and return it."""
    _HEADER.pack_into(block, 0, MAGIC, kind, version, 0, address, generation, volume, owner, role)
    return seal_checksum(block)


def seal_checksum(block: bytearray) -> bytearray:
    """Set the checksum of a block whose other header fields are in place."""
    seed = int.from_bytes(block[:8], "little")
    _CHECKSUM.pack_into(block, 8, xxh3_64_intdigest(memoryview(block)[16:], seed))
    return block


def peek(block: bytes | bytearray | memoryview) -> Header:
    """What a block of METADATA_BLOCK_BYTES says of itself, with nothing verified: for tools that show damaged ones."""
    _, type_, version, _, address, generation, volume, owner, role = _HEADER.unpack_from(block, 0)
    return Header(type_, version, address, generation, volume, owner, role)


def checksum_matches(block: bytes | bytearray | memoryview) -> bool:
    """Whether the stored checksum is that of the block's bytes."""
    view = memoryview(block)
    if len(view) != METADATA_BLOCK_BYTES:
        return False
    stored: int = _CHECKSUM.unpack_from(view, 8)[0]
    return stored == xxh3_64_intdigest(view[16:], int.from_bytes(view[:8], "little"))


def open_block(
    block: bytes | bytearray | memoryview,
    kind: BlockType,
    *,
    address: int,
    volume: bytes,
    owner: int | None = None,
    version: int = 1,
) -> Header:
    """Verify a block that was read from `address` and return its header.

    Raises:
        DamagedBlock: checksum, magic, type, version, address, volume or owner is not what it must be.
    """
    if len(block) != METADATA_BLOCK_BYTES:
        raise DamagedBlock(address, f"{kind.name.lower()} block is cut short")
    if not checksum_matches(block):
        raise DamagedBlock(address, f"{kind.name.lower()} block: checksum does not match")
    magic, type_, ver, _, own, generation, vol, own_by, role = _HEADER.unpack_from(block, 0)
    if magic != MAGIC:
        raise DamagedBlock(address, f"{kind.name.lower()} block: no metadata magic")
    if type_ != kind:
        raise DamagedBlock(address, f"expected a {kind.name.lower()} block, found type {type_}")
    if ver != version:
        raise DamagedBlock(address, f"{kind.name.lower()} block: unknown layout version {ver}")
    if own != address:
        raise DamagedBlock(address, f"{kind.name.lower()} block says that its address is {own:#x}")
    if vol != volume:
        raise DamagedBlock(address, f"{kind.name.lower()} block belongs to another volume")
    if owner is not None and own_by != owner:
        raise DamagedBlock(address, f"{kind.name.lower()} block belongs to {own_by:#x}, not to {owner:#x}")
    return Header(type_, ver, own, generation, vol, own_by, role)
