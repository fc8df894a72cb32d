"""Metadata blocks in memory: decoded, changed in place, packed when their transaction commits.

Each object knows its address and the lock that covers it. `snapshot` and `restore` let an operation that fails half-way
leave no trace. Objects are guarded by the control mutex (see `vmfs.core.transactions`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from array import array
from dataclasses import fields
from operator import attrgetter
from typing import ClassVar

from vmfs.ondisk import node as node_format
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.directory import DirectoryBlock
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.orphans import OrphanKind

# Snapshots of these two are taken at every first write to a block: copy.copy of a record takes ten times as long.
_INODE_VALUES = attrgetter(*(f.name for f in fields(Inode)))
_GROUP_VALUES = attrgetter(*(f.name for f in fields(GroupBlock)))


class MetaObject(ABC):
    """A decoded metadata block."""

    __slots__ = ("address", "lock")

    rank: ClassVar[int] = 0
    """Order of writing in place: an inode (1) is written after all that it points to (0), so that a reader on another
    host that sees the inode's new version sees the rest too."""

    def __init__(self, address: int, lock: int) -> None:
        self.address = address
        self.lock = lock

    @abstractmethod
    def pack(self, volume: bytes) -> bytes:
        """The block's image, with the next generation."""

    @abstractmethod
    def snapshot(self) -> object:
        """What `restore` needs to undo later changes."""

    @abstractmethod
    def restore(self, state: object) -> None:
        """Undo all changes since `snapshot` returned `state`."""


class InodeObject(MetaObject):
    """An inode."""

    __slots__ = ("inode",)
    rank = 1

    def __init__(self, inode: Inode, lock: int) -> None:
        super().__init__(inode_address(inode.number), lock)
        self.inode = inode

    def pack(self, volume: bytes) -> bytes:
        return self.inode.pack(volume)

    def snapshot(self) -> Inode:
        saved = Inode(*_INODE_VALUES(self.inode))
        saved.root = self.inode.root[:]
        saved.xattrs = dict(self.inode.xattrs)
        return saved

    def restore(self, state: object) -> None:
        assert isinstance(state, Inode)
        self.inode = state


class NodeObject(MetaObject):
    """A map node."""

    __slots__ = ("generation", "index", "level", "map_id", "pointers")

    def __init__(
        self, address: int, lock: int, map_id: int, level: int, index: int, pointers: array[int], generation: int = 0
    ) -> None:
        super().__init__(address, lock)
        self.map_id = map_id
        self.level = level
        self.index = index
        self.pointers = pointers
        self.generation = generation

    def pack(self, volume: bytes) -> bytes:
        self.generation += 1
        return node_format.pack(
            self.pointers, address=self.address, volume=volume, map_id=self.map_id, level=self.level,
            index=self.index, generation=self.generation,
        )  # fmt: skip

    def snapshot(self) -> array[int]:
        return self.pointers[:]

    def restore(self, state: object) -> None:
        assert isinstance(state, array)
        self.pointers = state


class DirectoryObject(MetaObject):
    """A directory block."""

    __slots__ = ("block", "bucket", "map_id")

    def __init__(self, address: int, lock: int, map_id: int, bucket: int, block: DirectoryBlock) -> None:
        super().__init__(address, lock)
        self.map_id = map_id
        self.bucket = bucket
        self.block = block

    def pack(self, volume: bytes) -> bytes:
        return self.block.pack(address=self.address, volume=volume, map_id=self.map_id, bucket=self.bucket)

    def snapshot(self) -> DirectoryBlock:
        saved = copy.copy(self.block)
        saved.entries = dict(self.block.entries)
        return saved

    def restore(self, state: object) -> None:
        assert isinstance(state, DirectoryBlock)
        self.block = state


class GroupObject(MetaObject):
    """A resource group's bitmaps."""

    __slots__ = ("group",)

    def __init__(self, address: int, lock: int, group: GroupBlock) -> None:
        super().__init__(address, lock)
        self.group = group

    def pack(self, volume: bytes) -> bytes:
        return self.group.pack(self.address, volume)

    def snapshot(self) -> GroupBlock:
        return GroupBlock(*_GROUP_VALUES(self.group))

    def restore(self, state: object) -> None:
        assert isinstance(state, GroupBlock)
        self.group = state


class ChunkObject(MetaObject):
    """A metadata chunk's head."""

    __slots__ = ("head",)

    def __init__(self, address: int, lock: int, head: ChunkHead) -> None:
        super().__init__(address, lock)
        self.head = head

    def pack(self, volume: bytes) -> bytes:
        return self.head.pack(self.address, volume)

    def snapshot(self) -> ChunkHead:
        return copy.copy(self.head)

    def restore(self, state: object) -> None:
        assert isinstance(state, ChunkHead)
        self.head = state


class OrphansObject(MetaObject):
    """A slot's orphan list. Its lock is the slot's own address."""

    __slots__ = ("entries", "generation", "slot")

    def __init__(
        self, address: int, lock: int, slot: int, entries: dict[tuple[int, int], OrphanKind], generation: int
    ) -> None:
        super().__init__(address, lock)
        self.slot = slot
        self.entries = entries
        self.generation = generation

    def pack(self, volume: bytes) -> bytes:
        self.generation += 1
        return orphans_format.pack(
            self.entries, address=self.address, volume=volume, slot=self.slot, generation=self.generation
        )

    def snapshot(self) -> dict[tuple[int, int], OrphanKind]:
        return dict(self.entries)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.entries = state
