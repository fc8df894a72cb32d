"""The metadata blocks that this host holds in memory under its locks.

A block is kept while the lock that covers it is held: nobody else may change it then. All calls are made under the
control mutex.
"""

from __future__ import annotations

from typing import TypeVar

from vmfs.core.leased import LeasedIO
from vmfs.core.objects import ChunkObject, DirectoryObject, GroupObject, InodeObject, MetaObject, NodeObject
from vmfs.errors import DamagedBlock
from vmfs.geometry import Geometry
from vmfs.ondisk import chunk, directory, group, inode, node
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

Kind = TypeVar("Kind", bound=MetaObject)


class Store:
    """Decoded blocks by address, and by the lock that covers them."""

    def __init__(self, io: LeasedIO, geometry: Geometry, volume: bytes) -> None:
        self._io = io
        self.geometry = geometry
        self._volume = volume
        self._held: dict[int, int] = {}
        self._objects: dict[int, MetaObject] = {}
        self._by_lock: dict[int, set[int]] = {}
        self.losses = 0
        """Grows when objects leave: what was read of the disk before may be older than what has left since."""

    # -- locks -------------------------------------------------------------------------------------

    def hold(self, lock: int, version: int) -> None:
        """A lock is held from now on, in that version: what it covers may be kept."""
        if lock not in self._held:
            self._drop(lock)
        self._held[lock] = version

    def holds(self, lock: int) -> bool:
        """Whether what a lock covers may be kept and changed."""
        return lock in self._held

    def version(self, lock: int) -> int:
        """The version of a lock that is held: it goes into journal records."""
        return self._held[lock]

    def give_up(self, lock: int) -> None:
        """Forget a lock and all that it covers: everything is settled, the lock is about to be given up."""
        self._held.pop(lock, None)
        self._drop(lock)

    def _drop(self, lock: int) -> None:
        self.losses += 1
        for address in self._by_lock.pop(lock, ()):
            del self._objects[address]

    # -- objects -----------------------------------------------------------------------------------

    def put(self, obj: MetaObject) -> None:
        """Keep an object. Its lock is held."""
        before = self._objects.get(obj.address)
        if before is not None and before is not obj:
            self.remove(before)  # under another lock, perhaps: to give that one up must not take this object along
        self._objects[obj.address] = obj
        self._by_lock.setdefault(obj.lock, set()).add(obj.address)

    def remove(self, obj: MetaObject) -> None:
        """Forget one object."""
        if self._objects.get(obj.address) is not obj:
            return
        self.losses += 1
        del self._objects[obj.address]
        covered = self._by_lock.get(obj.lock)
        if covered is not None:
            covered.discard(obj.address)

    def move(self, obj: MetaObject, lock: int) -> None:
        """The object is covered by another lock from now on (a map that was frozen into a layer)."""
        self.remove(obj)
        obj.lock = lock
        self.put(obj)

    def covered(self, lock: int) -> list[MetaObject]:
        """What is in memory under a lock."""
        return [self._objects[a] for a in self._by_lock.get(lock, ())]

    def peek(self, address: int) -> MetaObject | None:
        """What is in memory at an address."""
        return self._objects.get(address)

    def _found(self, address: int, kind: type[Kind]) -> Kind | None:
        obj = self._objects.get(address)
        if obj is None:
            return None
        if not isinstance(obj, kind):
            raise DamagedBlock(address, f"is wanted as {kind.__name__} and in use as {type(obj).__name__}")
        return obj

    def inode(self, number: int) -> InodeObject:
        """An inode whose lock is held. Raises DamagedBlock, DeviceError."""
        address = inode.inode_address(number)
        found = self._found(address, InodeObject)
        if found is None:
            self.geometry.check_inode(number)
            decoded = inode.parse(self._io.read(address, METADATA_BLOCK_BYTES), number, self._volume)
            found = InodeObject(decoded, self.geometry.inode_lock_address(number))
            self.put(found)
        return found

    def node(
        self, address: int, lock: int, map_id: int, level: int, index: int, block: bytes | None = None
    ) -> NodeObject:
        """A map node under the lock of its inode; `block`: as it was just read. Raises DamagedBlock, DeviceError."""
        found = self._found(address, NodeObject)
        if found is None:
            self.geometry.chunk_of(address)
            block = block or self._io.read(address, METADATA_BLOCK_BYTES)
            pointers, generation = node.parse(block, address, self._volume, map_id, level, index)
            found = NodeObject(address, lock, map_id, level, index, pointers, generation)
            self.put(found)
        if (found.map_id, found.level, found.index) != (map_id, level, index):
            raise DamagedBlock(address, "is used by two maps, or twice by one")
        return found

    def directory(
        self, address: int, lock: int, map_id: int, bucket: int, block: bytes | None = None
    ) -> DirectoryObject:
        """As `node`, for a directory block under the lock of its directory."""
        found = self._found(address, DirectoryObject)
        if found is None:
            self.geometry.chunk_of(address)
            block = block or self._io.read(address, METADATA_BLOCK_BYTES)
            decoded = directory.parse(block, address, self._volume, map_id, bucket)
            found = DirectoryObject(address, lock, map_id, bucket, decoded)
            self.put(found)
        if (found.map_id, found.bucket) != (map_id, bucket):
            raise DamagedBlock(address, "is used by two directories, or twice by one")
        return found

    def group(self, index: int) -> GroupObject:
        """A group's block under the group's lock. Raises DamagedBlock, DeviceError."""
        address = self.geometry.group_block_address(index)
        found = self._found(address, GroupObject)
        if found is None:
            blocks = self.geometry.group_blocks(index)
            decoded = group.parse(self._io.read(address, METADATA_BLOCK_BYTES), address, self._volume, index, blocks)
            found = GroupObject(address, self.geometry.group_lock_address(index), decoded)
            self.put(found)
        return found

    def chunk(self, address: int, group_index: int) -> ChunkObject:
        """A metadata chunk's head under its group's lock. Raises DamagedBlock, DeviceError."""
        found = self._found(address, ChunkObject)
        if found is None:
            block = self._io.read(address, METADATA_BLOCK_BYTES)
            head = chunk.parse(block, address, self._volume, group_index, self.geometry.units_per_chunk)
            found = ChunkObject(address, self.geometry.group_lock_address(group_index), head)
            self.put(found)
        return found
