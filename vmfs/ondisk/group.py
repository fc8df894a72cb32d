"""A resource group's block: which of its blocks are used, hold metadata, or were freed too lately to be used again.

Role = group number. Covered by the group's lock. Layout after the common header:

    64    blocks in the group u32, free blocks u32, metadata chunks u32, free metadata units u32, reserved 16 bytes
    96    used bitmap, 1024 bytes: bit i (bit i%8 of byte i//8) set: block i is allocated
    1120  metadata bitmap, 1024 bytes: set: block i is a metadata chunk (see `vmfs.ondisk.chunk`); implies used
    2144  quarantine bitmap, 1024 bytes: set: freed lately; not to be allocated until the quarantine has passed,
          counted by whoever holds the group's lock from when it took the lock or flushed the free, whichever is later

Bits at and above the block count are zero. A group has at most 8192 blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import HEADER_BYTES, METADATA_BLOCK_BYTES, BlockType, open_block, seal

MAX_BLOCKS_PER_GROUP: Final = 8192  # three bitmaps of that many bits fit one metadata block
_BITMAP_BYTES: Final = MAX_BLOCKS_PER_GROUP // 8
_FIELDS: Final = struct.Struct("<4I")
_USED: Final = 96
_META: Final = _USED + _BITMAP_BYTES
_QUARANTINE: Final = _META + _BITMAP_BYTES


@dataclass(slots=True)
class GroupBlock:
    """A decoded group. Bitmaps are integers: bit i is block i."""

    index: int
    block_count: int
    used: int = 0
    meta: int = 0
    quarantine: int = 0
    free_units: int = 0
    generation: int = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that are not allocated (those in quarantine included)."""
        return self.block_count - self.used.bit_count()

    def pack(self, address: int, volume: bytes) -> bytes:
        """The block's image, with the next generation."""
        self.generation += 1
        block = bytearray(METADATA_BLOCK_BYTES)
        _FIELDS.pack_into(
            block, 64, self.block_count, self.free_blocks, self.meta.bit_count(), self.free_units
        )
        for at, bits in ((_USED, self.used), (_META, self.meta), (_QUARANTINE, self.quarantine)):
            block[at : at + _BITMAP_BYTES] = bits.to_bytes(_BITMAP_BYTES, "little")
        seal(
            block, BlockType.GROUP, address=address, generation=self.generation, volume=volume, role=self.index
        )
        return bytes(block)


def free_counts(data: bytes, at: int) -> tuple[int, int]:
    """(free blocks, free metadata units) of the block that begins at `at`, unverified: a hint."""
    _, free, _, free_units = _FIELDS.unpack_from(data, at + HEADER_BYTES)
    return free, free_units


def parse(block: bytes | memoryview, address: int, volume: bytes, index: int, block_count: int) -> GroupBlock:
    """Decode the block of group `index`, which the superblock says has `block_count` blocks. Raises DamagedBlock."""
    header = open_block(block, BlockType.GROUP, address=address, volume=volume)
    count, free, chunks, free_units = _FIELDS.unpack_from(block, 64)
    used, meta, quarantine = (
        int.from_bytes(block[at : at + _BITMAP_BYTES], "little") for at in (_USED, _META, _QUARANTINE)
    )
    if header.role != index or count != block_count:
        raise DamagedBlock(address, f"group block of group {header.role} with {count} blocks, not {index}")
    if (used | quarantine) >> count or meta & ~used or used & quarantine:
        raise DamagedBlock(address, f"group {index}: its bitmaps contradict each other")
    if free != count - used.bit_count() or chunks != meta.bit_count():
        raise DamagedBlock(address, f"group {index}: its counts do not match its bitmaps")
    return GroupBlock(index, count, used, meta, quarantine, free_units, header.generation)
