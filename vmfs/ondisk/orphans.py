"""A slot's orphan list: inodes whose removal or truncation this host has begun and not finished.

One block a slot at the superblock's `orphans_address` + slot * 4096; role = the slot. Covered by the slot itself: only
the slot's live incarnation, or its recoverer, writes it. Whoever recovers the slot finishes the work that it names.

Layout after the common header: entries u32, reserved u32, then at 72: entries of 16 bytes: inode u64, its generation
u32, kind u32 (1 remove: no name leads to it any more; 2 trim: free what lies beyond the end of the file).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, open_block, seal

_COUNT: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<QII")
_ENTRIES: Final = 72
CAPACITY: Final = (METADATA_BLOCK_BYTES - _ENTRIES) // _ENTRY.size


class OrphanKind(IntEnum):
    """What remains to be done to the inode."""

    REMOVE = 1
    TRIM = 2


def pack(
    entries: dict[tuple[int, int], OrphanKind], *, address: int, volume: bytes, slot: int, generation: int
) -> bytes:
    """The image of a list of (inode, generation) -> kind, at most CAPACITY of them."""
    block = bytearray(METADATA_BLOCK_BYTES)
    _COUNT.pack_into(block, 64, len(entries), 0)
    for i, ((inode, gen), kind) in enumerate(entries.items()):
        _ENTRY.pack_into(block, _ENTRIES + i * _ENTRY.size, inode, gen, kind)
    seal(block, BlockType.ORPHANS, address=address, generation=generation, volume=volume, role=slot)
    return bytes(block)


def parse(
    block: bytes | memoryview, address: int, volume: bytes, slot: int
) -> tuple[dict[tuple[int, int], OrphanKind], int]:
    """The list and the block's generation. Raises DamagedBlock."""
    header = open_block(block, BlockType.ORPHANS, address=address, volume=volume)
    count, _ = _COUNT.unpack_from(block, 64)
    if header.role != slot or count > CAPACITY:
        raise DamagedBlock(address, f"orphan list of slot {slot}: wrong slot or impossible length")
    entries: dict[tuple[int, int], OrphanKind] = {}
    for i in range(count):
        inode, gen, kind = _ENTRY.unpack_from(block, _ENTRIES + i * _ENTRY.size)
        if kind not in (1, 2):
            raise DamagedBlock(address, f"orphan list of slot {slot}: unknown kind {kind}")
        entries[inode, gen] = OrphanKind(kind)
    return entries, header.generation


def count_of(block: bytes) -> int:
    """How many entries a list says it has: a hint, of a block that its host may be writing just now."""
    count: int = _COUNT.unpack_from(block, 64)[0]
    return count
