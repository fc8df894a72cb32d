"""A directory's hash table laid out anew from a list of names: its buckets, and the map that leads to them.

The table (`vmfs.ondisk.directory`) has a power of two of buckets, so many that most of them fill half a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vmfs.ondisk import node
from vmfs.ondisk.directory import CAPACITY_BYTES, DirectoryBlock, Entry, name_hash
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.node import POINTERS_PER_NODE, ROOT_POINTERS, WRITTEN, empty_pointers


@dataclass(slots=True)
class NewTable:
    """The blocks of a new table by address, and what the directory's inode must say to lead to them."""

    level: int
    blocks: dict[int, bytes] = field(default_factory=dict)
    own_blocks: int = 0
    height: int = 0
    root: array[int] = field(default_factory=lambda: empty_pointers(ROOT_POINTERS))

    def put_into(self, inode: Inode, map_id: int, seed: int, entries: int) -> None:
        """Have the inode lead to the new table instead of its old one."""
        inode.map_id, inode.seed = map_id, seed
        inode.level, inode.split, inode.entry_count = self.level, 0, entries
        inode.height, inode.root = self.height, self.root
        inode.own_blocks, inode.size = self.own_blocks, self.own_blocks * METADATA_BLOCK_BYTES
        inode.version += 1


def build_table(
    entries: Sequence[Entry], volume: bytes, map_id: int, seed: int, unit: Callable[[], int]
) -> NewTable:
    """Lay out these names (each once). `unit` gives the address of a free metadata unit, and may raise NoSpace."""
    wanted = sum(e.stored_bytes for e in entries) * 2 // CAPACITY_BYTES
    table = NewTable(level=max(0, wanted - 1).bit_length() if wanted > 1 else 0)
    buckets: list[list[Entry]] = [[] for _ in range(1 << table.level)]
    for entry in entries:
        hash_ = name_hash(entry.name, seed)
        buckets[hash_ & ((1 << table.level) - 1)].append(replace(entry, hash=hash_))
    pointers = [_bucket(table, b, found, volume, map_id, unit) for b, found in enumerate(buckets)]
    while len(pointers) > ROOT_POINTERS:
        pointers = _nodes(table, pointers, volume, map_id, unit)
        table.height += 1
    table.root[: len(pointers)] = array("Q", pointers)
    return table


def _bucket(
    table: NewTable, bucket: int, entries: list[Entry], volume: bytes, map_id: int, unit: Callable[[], int]
) -> int:
    """The pointer to a bucket's chain of blocks; 0 for an empty one."""
    chain: list[DirectoryBlock] = []
    for entry in entries:
        if not chain or not chain[-1].fits(entry):
            chain.append(DirectoryBlock({}, table.level))
        chain[-1].add(entry)
    address = 0
    for block in reversed(chain):
        block.overflow = address
        address = unit()
        table.blocks[address] = block.pack(address=address, volume=volume, map_id=map_id, bucket=bucket)
    table.own_blocks += len(chain)
    return address | WRITTEN if address else 0


def _nodes(
    table: NewTable, pointers: list[int], volume: bytes, map_id: int, unit: Callable[[], int]
) -> list[int]:
    """One level of nodes above these pointers."""
    above: list[int] = []
    for index, at in enumerate(range(0, len(pointers), POINTERS_PER_NODE)):
        part = empty_pointers()
        piece = pointers[at : at + POINTERS_PER_NODE]
        part[: len(piece)] = array("Q", piece)
        if not any(piece):
            above.append(0)
            continue
        address = unit()
        table.blocks[address] = node.pack(
            part, address=address, volume=volume, map_id=map_id, level=table.height, index=index, generation=1
        )
        above.append(address | WRITTEN)
    return above
