"""The radix map of an inode: from block numbers (a directory: bucket numbers) to pointers.

The structure on disk is specified in `vmfs.ondisk.node`. Reading goes through a `NodeSource`, because nodes come from
different places: from the store (under the inode's lock), from a frozen layer, or straight from the disk when another
host holds the lock. Changes are made under the control mutex, within an operation.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Protocol

from vmfs.core.objects import InodeObject, NodeObject
from vmfs.core.store import Store
from vmfs.core.transactions import Operation
from vmfs.core.units import Units
from vmfs.errors import DamagedBlock, NoSpace
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import (
    ADDRESS_MASK,
    MAX_HEIGHT,
    POINTERS_PER_NODE,
    ROOT_POINTERS,
    WRITTEN,
    empty_pointers,
    span,
)


class NodeSource(Protocol):
    """Where the nodes of one map come from."""

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        """The pointers of a node, which the caller does not change. Raises DamagedBlock, DeviceError."""


def capacity(height: int) -> int:
    """How many blocks a map of that height can hold."""
    return ROOT_POINTERS * span(height)


def leaf(inode: Inode, source: NodeSource, index: int) -> array[int] | None:
    """The leaf of pointers `index` * 504 to `index` * 504 + 503; None: all of them are holes.

    A map of height 0 has one short leaf: it comes back padded.
    """
    if inode.height == 0:
        if index or not any(inode.root):
            return None
        padded = inode.root[:]
        padded.frombytes(bytes((POINTERS_PER_NODE - ROOT_POINTERS) * 8))
        return padded
    level = inode.height
    position = index // span(level - 1)
    if position >= ROOT_POINTERS:
        return None
    pointers = inode.root
    while True:
        pointer = pointers[position]
        if not pointer:
            return None
        level -= 1
        node_index = index // span(level)
        pointers = source.pointers(pointer & ADDRESS_MASK, inode.map_id, level, node_index)
        if level == 0:
            return pointers
        position = index // span(level - 1) % POINTERS_PER_NODE


def leaf_indexes(inode: Inode, source: NodeSource, start: int = 0) -> Iterator[int]:
    """The indexes, from `start` on, of the leaves that exist."""
    if inode.height == 0:
        if start == 0 and any(inode.root):
            yield 0
        return
    yield from _leaf_indexes(inode, source, inode.root, inode.height, 0, start)


def _leaf_indexes(
    inode: Inode, source: NodeSource, pointers: array[int], level: int, first: int, start: int
) -> Iterator[int]:
    leaves = span(level - 1)
    for position, pointer in enumerate(pointers):
        base = (first + position) * leaves
        if not pointer or base + leaves <= start:
            continue
        if level == 1:
            yield base
        else:
            child = source.pointers(pointer & ADDRESS_MASK, inode.map_id, level - 1, first + position)
            below = (first + position) * POINTERS_PER_NODE
            yield from _leaf_indexes(inode, source, child, level - 1, below, start)


def last_leaf(inode: Inode, source: NodeSource) -> int | None:
    """The index of the last leaf that exists; None: the map is empty. Looks at one path only."""
    if not any(inode.root):
        return None
    if inode.height == 0:
        return 0
    pointers, level, first, address = inode.root, inode.height, 0, inode_address(inode.number)
    while True:
        position = max((i for i, p in enumerate(pointers) if p), default=None)
        if position is None:
            raise DamagedBlock(address, "a map node above the leaves leads nowhere")
        level -= 1
        if level == 0:
            return first + position
        address = pointers[position] & ADDRESS_MASK
        pointers = source.pointers(address, inode.map_id, level, first + position)
        first = (first + position) * POINTERS_PER_NODE


class MapWriter:
    """Changes to maps of inodes whose locks are held."""

    def __init__(self, store: Store, units: Units) -> None:
        self._store = store
        self._units = units

    def leaf_for_change(self, op: Operation, obj: InodeObject, block: int) -> tuple[array[int], int]:
        """(pointers, base): the leaf that holds `block`, made if it is not there and touched; base: its first block.

        The pointers of a short map are the inode's root: 64 of them. Raises NoSpace when no metadata unit is free: the
        operation must be undone, and tried again after room was made.
        """
        op.touch(obj)
        while block >= capacity(obj.inode.height):
            self._raise_height(op, obj)
        if obj.inode.height == 0:
            return obj.inode.root, 0
        index = block // POINTERS_PER_NODE
        return self._descend(op, obj, index).pointers, index * POINTERS_PER_NODE

    def set(self, op: Operation, obj: InodeObject, block: int, pointer: int) -> int:
        """Set one pointer and return the one that was there. Raises NoSpace as `leaf_for_change`."""
        pointers, base = self.leaf_for_change(op, obj, block)
        old = pointers[block - base]
        pointers[block - base] = pointer
        return old

    def _raise_height(self, op: Operation, obj: InodeObject) -> None:
        inode = obj.inode
        if inode.height >= MAX_HEIGHT:
            raise NoSpace(f"the map of inode {inode.number}", "a block so far from its start")
        if any(inode.root):
            node = self._new_node(op, obj, inode.height, 0)
            node.pointers[:ROOT_POINTERS] = inode.root
            inode.root = empty_pointers(ROOT_POINTERS)
            inode.root[0] = node.address | WRITTEN
        inode.height += 1

    def _new_node(self, op: Operation, obj: InodeObject, level: int, index: int) -> NodeObject:
        found = self._units.allocate_unit(op)
        if found is None:
            raise NoSpace("the volume", "a map node")
        node = NodeObject(found[0], obj.lock, obj.inode.map_id, level, index, empty_pointers())
        op.add(node)
        self._store.put(node)
        op.on_undo(lambda: self._store.remove(node))
        return node

    def _descend(self, op: Operation, obj: InodeObject, index: int) -> NodeObject:
        inode = obj.inode
        level = inode.height
        pointers = inode.root
        position = index // span(level - 1)
        holder: NodeObject | None = None
        while True:
            pointer = pointers[position]
            level -= 1
            node_index = index // span(level)
            if pointer:
                node = self._store.node(pointer & ADDRESS_MASK, obj.lock, inode.map_id, level, node_index)
            else:
                node = self._new_node(op, obj, level, node_index)
                if holder is not None:
                    op.touch(holder)
                    holder.pointers[position] = node.address | WRITTEN
                else:
                    inode.root[position] = node.address | WRITTEN
            if level == 0:
                op.touch(node)
                return node
            holder, pointers = node, node.pointers
            position = index // span(level - 1) % POINTERS_PER_NODE
