"""A map node: one block of the radix map from a file's (or a directory's) block numbers to volume addresses.

Owner = the map's id (it moves with the map when a clone freezes it); role = level << 56 | index of the node within its
level. Covered by the lock of the inode that owns the map. After the common header: 504 pointers of 8 bytes.

A *pointer* is a volume address, a multiple of 4096, with its state in the low bits:

    bits 0..1  0 hole: nothing here (look in the parent layer); the whole pointer is zero
               1 written (a leaf's block of data), or present (a node, a directory block)
               2 allocated but unwritten: reads as zeros
               3 punched: reads as zeros and hides the parent layer; the address part is zero
    bits 2..11 zero on disk

An address in extent 255, which no volume has, stands for a *lost* block: `check --repair` writes it where a map led to
a damaged node or to an impossible place. Reading it is an error, never zeros, and it is nobody's space.

Level 0 is the leaf level: its pointers lead to data blocks; those of level n lead to nodes of level n - 1. The inode
holds the root: 64 pointers of level `height`. Height 0: the root is a short leaf.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import HEADER_BYTES, METADATA_BLOCK_BYTES, BlockType, open_block, seal

POINTERS_PER_NODE: Final = (METADATA_BLOCK_BYTES - HEADER_BYTES) // 8
ROOT_POINTERS: Final = 64
MAX_HEIGHT: Final = 3  # 64 * 504^3 blocks: beyond any volume
STATE_MASK: Final = 3
HOLE: Final = 0
WRITTEN: Final = 1
UNWRITTEN: Final = 2
PUNCHED: Final = 3
LOST: Final = 0xFF << 56 | WRITTEN
ADDRESS_MASK: Final = ~0xFFF & (1 << 64) - 1
_EMPTY: Final = bytes(POINTERS_PER_NODE * 8)

if sys.byteorder != "little":  # pointers are read as arrays of the machine's own integers
    raise ImportError("vmfs needs a little-endian machine")


def empty_pointers(count: int = POINTERS_PER_NODE) -> array[int]:
    """That many holes."""
    return array("Q", bytes(count * 8))


def span(level: int) -> int:
    """How many file blocks one pointer of that level covers."""
    return int(POINTERS_PER_NODE**level)


def pack(
    pointers: array[int], *, address: int, volume: bytes, map_id: int, level: int, index: int, generation: int
) -> bytes:
    """A node's image."""
    block = bytearray(METADATA_BLOCK_BYTES)
    block[HEADER_BYTES:] = pointers.tobytes()
    seal(
        block, BlockType.NODE, address=address, generation=generation, volume=volume,
        owner=map_id, role=level << 56 | index,
    )  # fmt: skip
    return bytes(block)


def parse(
    block: bytes | memoryview, address: int, volume: bytes, map_id: int, level: int, index: int
) -> tuple[array[int], int]:
    """The pointers of the node at `address` and its generation. Raises DamagedBlock."""
    header = open_block(block, BlockType.NODE, address=address, volume=volume, owner=map_id)
    if header.role != level << 56 | index:
        raise DamagedBlock(address, f"map node of level {level}, index {index} says that its role is {header.role:#x}")
    pointers = array("Q")
    pointers.frombytes(block[HEADER_BYTES:])
    return pointers, header.generation
