"""The head of a metadata chunk: a block of the volume cut into units of one metadata block (4 KiB) each.

Unit 0 of the chunk is this head. The others hold inodes (a lock block and, behind it, the inode's block: several
consecutive units), map nodes and directory blocks. Owner = the group's number; covered by the group's lock. A chunk
never becomes file data again: a host that missed the change could compare-and-write a lock sector in it.

Layout after the common header:

    64   units in the chunk u16, reserved u16, reserved u32
    72   used bitmap, 32 bytes: set: the unit is allocated (unit 0 always is)
    104  inode bitmap, 32 bytes: set: an inode's lock block begins at this unit. It stays set when the inode is freed
         (its lock sector lives on with its version); such a run of units is reused for inodes only
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, open_block, seal

MAX_UNITS: Final = 256
_FIELDS: Final = struct.Struct("<HHI")
_BITMAP_BYTES: Final = MAX_UNITS // 8


@dataclass(slots=True)
class ChunkHead:
    """A decoded chunk head. Bitmaps are integers: bit i is unit i."""

    group: int
    unit_count: int
    used: int = 1
    inodes: int = 0
    generation: int = 0

    def pack(self, address: int, volume: bytes) -> bytes:
        """The block's image, with the next generation."""
        self.generation += 1
        block = bytearray(METADATA_BLOCK_BYTES)
        _FIELDS.pack_into(block, 64, self.unit_count, 0, 0)
        block[72 : 72 + _BITMAP_BYTES] = self.used.to_bytes(_BITMAP_BYTES, "little")
        block[104 : 104 + _BITMAP_BYTES] = self.inodes.to_bytes(_BITMAP_BYTES, "little")
        seal(
            block, BlockType.CHUNK, address=address, generation=self.generation, volume=volume, owner=self.group
        )
        return bytes(block)


def parse(block: bytes | memoryview, address: int, volume: bytes, group: int, unit_count: int) -> ChunkHead:
    """Decode the head of a chunk of `unit_count` units that lies in `group`. Raises DamagedBlock."""
    header = open_block(block, BlockType.CHUNK, address=address, volume=volume, owner=group)
    units, _, _ = _FIELDS.unpack_from(block, 64)
    used = int.from_bytes(block[72 : 72 + _BITMAP_BYTES], "little")
    inodes = int.from_bytes(block[104 : 104 + _BITMAP_BYTES], "little")
    if units != unit_count or (used | inodes) >> units or not used & 1 or inodes & 1:
        raise DamagedBlock(address, "chunk head: its bitmaps do not fit its size")
    return ChunkHead(group, units, used, inodes, header.generation)
