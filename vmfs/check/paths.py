"""Names of inodes: from the volume's root to each inode that a finding is about. Walked only when there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from vmfs.check.directories import Directories
from vmfs.check.inodes import Inodes
from vmfs.check.source import Source
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import directory, node
from vmfs.ondisk.directory import Entry
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.node import ADDRESS_MASK, POINTERS_PER_NODE

_CHAIN_MAX_BLOCKS = 1 << 16


def find_paths(source: Source, inodes: Inodes, directories: Directories, wanted: AbstractSet[int]) -> dict[int, str]:
    """By inode: one path from the root, of those of `wanted` that have one."""
    root = source.volume.superblock.root_inode
    holders: dict[int, tuple[int, bytes]] = {}
    for number, facts in inodes.facts.items():
        if facts.is_directory:
            for _, entry in entries_of(source, inodes, number):
                if entry.inode in wanted or entry.inode in directories.found_in:
                    holders.setdefault(entry.inode, (number, entry.name))
    return {n: path for n in wanted if (path := _path(n, root, holders)) is not None}


def _path(number: int, root: int, holders: dict[int, tuple[int, bytes]]) -> str | None:
    names: list[bytes] = []
    seen: set[int] = set()
    while number != root:
        if number not in holders or number in seen:
            return None
        seen.add(number)
        number, name = holders[number]
        names.append(name)
    return "/" + os.fsdecode(b"/".join(reversed(names)))


def entries_of(source: Source, inodes: Inodes, number: int) -> Iterator[tuple[int, Entry]]:
    """(address of its block, entry) of whatever of a directory can be read, without findings."""
    try:
        inode = inodes.read(number)
    except (DamagedBlock, DeviceError):
        return
    for bucket, pointer in _buckets(source, inode, list(inode.root), inode.height, 0):
        address = pointer & ADDRESS_MASK
        seen: set[int] = set()
        while address and address not in seen and len(seen) < _CHAIN_MAX_BLOCKS:
            seen.add(address)
            try:
                block = directory.parse(
                    source.unit(address), address, source.volume.uuid, inode.map_id, bucket
                )
            except (DamagedBlock, DeviceError):
                break
            for entry in block.entries.values():
                yield address, entry
            address = block.overflow


def _buckets(
    source: Source, inode: Inode, pointers: list[int], level: int, first: int
) -> Iterator[tuple[int, int]]:
    for position, pointer in enumerate(pointers):
        if not pointer:
            continue
        index = first + position
        if level == 0:
            yield index, pointer
            continue
        address = pointer & ADDRESS_MASK
        try:
            block = source.unit(address)
            below = node.parse(block, address, source.volume.uuid, inode.map_id, level - 1, index)[0]
        except (DamagedBlock, DeviceError):
            continue
        yield from _buckets(source, inode, list(below), level - 1, index * POINTERS_PER_NODE)
