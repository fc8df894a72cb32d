"""Access to inodes: under their lock, or without it as readers on any host may look.

Looking without the lock reads the disk, and believes what was read for BELIEVE_SECONDS. A block that another host is
just writing may be torn: it is read again for a while before it counts as damaged.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EBUSY, ESTALE
from typing import Final, TypeVar

from vmfs.cluster.locktable import LockRequest
from vmfs.core.filemap import NodeSource
from vmfs.core.objects import InodeObject, NodeObject
from vmfs.core.state import BELIEVE_SECONDS, DIRECTORY_WAIT_SECONDS, LOCK_WAIT_SECONDS, Core
from vmfs.core.views import flatten
from vmfs.errors import DamagedBlock, LockedByOther
from vmfs.ondisk import directory as directory_format
from vmfs.ondisk import inode as inode_format
from vmfs.ondisk import node as node_format
from vmfs.ondisk.directory import DirectoryBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.lock import Guards, LockMode

log = logging.getLogger("vmfs.core")

TORN_RETRY_SECONDS: Final = 0.5  # a live owner's write of 4 KiB ends long before
_TORN_PAUSE_SECONDS: Final = 0.005
_FROZEN_NODES_MAX: Final = 4096  # 16 MiB of nodes of frozen layers
_FROZEN_INODES_MAX: Final = 1024
_LOOSE_INODES_MAX: Final = 4096
_DAMAGED_MAX: Final = 1024  # 4 MiB of blocks that stayed damaged

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """An inode as a reader without its lock sees it: a private copy, and since when it is known to be so."""

    inode: Inode
    since: float
    source: NodeSource
    blocks: dict[int, DirectoryBlock] | None = None
    """Directory blocks read so far, kept as long as the inode is believed; None: they are in the store."""


def stale(number: int) -> OSError:
    """The inode is no more, or is another file's now."""
    return OSError(ESTALE, f"inode {number} is no longer that file")


class LiveNodes:
    """Nodes of a map that may change: from the store while its lock is held here, else from the disk, not kept."""

    __slots__ = ("_core", "_inodes", "_lock")

    def __init__(self, core: Core, inodes: Inodes, lock: int) -> None:
        self._core = core
        self._inodes = inodes
        self._lock = lock

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        with self._core.transactions.mutex:
            if self._core.store.holds(self._lock):
                return self._core.store.node(address, self._lock, map_id, level, index).pointers
        return self._inodes.read_node(address, map_id, level, index)


class FrozenNodes:
    """Nodes of frozen layers: they never change, and a map's id is never used again, so they are kept."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._kept: dict[tuple[int, int, int], array[int]] = {}

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        key = map_id, level, index
        found = self._kept.get(key)
        if found is None:
            found = self._inodes.frozen_in_store(address, map_id)
            if found is not None:
                return found
            found = self._inodes.read_node(address, map_id, level, index)
            self._inodes.keep(self._kept, key, found, _FROZEN_NODES_MAX)
        return found


class Inodes:
    """Inodes of a mounted volume. The caches of what was read without locks are guarded by the control mutex."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._loose: dict[int, Seen] = {}
        self._epoch = 0
        """Grows with every `forget`: what was read before one is not believed after it."""
        self._frozen: dict[tuple[int, int], Inode] = {}
        # Blocks that stayed damaged, by address: whoever reads the same bytes again need not wait for a writer.
        self._damaged: dict[int, bytes] = {}
        self.nodes: NodeSource = FrozenNodes(self)

    # -- under locks -------------------------------------------------------------------------------

    @contextmanager
    def locked(self, *numbers: int, directories: Collection[int] = ()) -> Iterator[None]:
        """Hold these inodes' locks, exclusively. OSError(EBUSY) when another host keeps one of them.

        Another host holds a directory for an operation only, so its turn is waited for; a file it may hold for as long
        as it is open there. Directories come first, on every host: then nobody waits in a circle.

        Raises LeaseLost, DeviceError.
        """
        with ExitStack() as held:
            if directories:
                held.enter_context(self._locked(directories, DIRECTORY_WAIT_SECONDS))
            rest = [n for n in numbers if n not in directories]
            if rest:
                held.enter_context(self._locked(rest, LOCK_WAIT_SECONDS))
            yield

    @contextmanager
    def _locked(self, numbers: Collection[int], wait: float) -> Iterator[None]:
        locks = self._core.locks
        addresses = sorted({self.lock_address(n) for n in numbers})
        try:
            if len(addresses) == 1:
                tenures = [locks.acquire(addresses[0], Guards.INODE, LockMode.EXCLUSIVE, wait=wait)]
            else:
                requests = [LockRequest(a, Guards.INODE, LockMode.EXCLUSIVE, False) for a in addresses]
                tenures = locks.acquire_many(requests, wait=wait)
        except LockedByOther as error:
            raise self.busy(error) from error
        try:
            with self._core.transactions.mutex:
                for tenure in tenures:
                    self._core.store.hold(tenure.address, tenure.version)
                for number in numbers:
                    self._loose.pop(number, None)
            yield
        finally:
            for tenure in tenures:
                locks.unpin(tenure)

    def busy(self, error: LockedByOther) -> OSError:
        """What the caller of the system call gets; who holds the lock is said in the log."""
        log.warning("volume %s: %s", self._core.name, error)
        return OSError(EBUSY, str(error))

    def lock_address(self, number: int) -> int:
        """The lock of an inode. OSError(ESTALE) for a number that can be none."""
        try:
            self._core.geometry.check_inode(number)
        except DamagedBlock as error:
            raise stale(number) from error
        return self._core.geometry.inode_lock_address(number)

    def owned(self, number: int, generation: int | None = None) -> InodeObject:
        """The inode, which the caller has locked; the control mutex is held. OSError(ESTALE) when it is no more."""
        obj = self._core.store.inode(number)
        if not obj.inode.in_use or (generation is not None and obj.inode.inode_generation != generation):
            raise stale(number)
        return obj

    # -- without locks -----------------------------------------------------------------------------

    def look(self, number: int, *, fresh: bool = False) -> Seen:
        """The inode as it is now, as far as a reader must know: read anew when `fresh`. OSError(ESTALE) when free.

        Raises DamagedBlock, DeviceError.
        """
        core = self._core
        lock = self.lock_address(number)
        with core.transactions.mutex:
            now = core.clock.now()
            epoch = self._epoch
            if core.store.holds(lock):
                obj = core.store.inode(number)
                if not obj.inode.in_use:
                    raise stale(number)
                return Seen(obj.inode, now, LiveNodes(core, self, lock))
            seen = self._loose.get(number)
            if not fresh and seen is not None and now - seen.since <= BELIEVE_SECONDS:
                return seen
        address = inode_format.inode_address(number)
        found = self.read_again(address, lambda block: inode_format.parse(block, number, core.volume.uuid))
        if not found.in_use:
            raise stale(number)
        seen = Seen(found, now, LiveNodes(core, self, lock), {})
        with core.transactions.mutex:
            if len(self._loose) >= _LOOSE_INODES_MAX:
                self._loose.clear()
            if epoch == self._epoch:  # else this host may have changed it since, and must see that
                self._loose[number] = seen
        return seen

    def forget(self, number: int) -> None:
        """Believe no more what was read without the lock: it is held now, or was."""
        with self._core.transactions.mutex:
            self._loose.pop(number, None)
            self._epoch += 1

    def read_again(self, address: int, parse: Callable[[bytes], T]) -> T:
        """Read and parse a block that another host may be writing; DamagedBlock only when it stays damaged."""
        core = self._core
        until: float | None = None
        while True:
            block = core.io.read(address, METADATA_BLOCK_BYTES)
            try:
                return parse(block)
            except DamagedBlock as error:
                if self._damaged.get(address) == block:
                    raise
                now = core.clock.now()
                until = until or now + TORN_RETRY_SECONDS
                if now >= until:
                    log.error("volume %s: %s", core.name, error)
                    if len(self._damaged) >= _DAMAGED_MAX:
                        self._damaged.clear()
                    self._damaged[address] = block
                    raise
            core.clock.sleep(_TORN_PAUSE_SECONDS)

    def read_node(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        """The pointers of a map node, from the disk. Raises DamagedBlock, DeviceError."""
        self._core.geometry.chunk_of(address)
        volume = self._core.volume.uuid
        return self.read_again(
            address, lambda block: node_format.parse(block, address, volume, map_id, level, index)[0]
        )

    def directory_block(self, seen: Seen, address: int, bucket: int) -> DirectoryBlock:
        """A block of a directory that was looked at. Raises DamagedBlock, DeviceError."""
        core = self._core
        inode = seen.inode
        with core.transactions.mutex:
            lock = self.lock_address(inode.number)
            if seen.blocks is None and core.store.holds(lock):
                return core.store.directory(address, lock, inode.map_id, bucket).block
        found = seen.blocks.get(address) if seen.blocks is not None else None
        if found is None:
            core.geometry.chunk_of(address)
            volume = core.volume.uuid
            found = self.read_again(
                address, lambda block: directory_format.parse(block, address, volume, inode.map_id, bucket)
            )
            if seen.blocks is not None:
                seen.blocks[address] = found
        return found

    def layer(self, number: int, generation: int) -> Inode:
        """A frozen layer: its map part never changes, its count of children may be old. Raises DamagedBlock."""
        key = number, generation
        found = self._frozen.get(key)
        if found is None:
            self._core.geometry.check_inode(number)
            with self._core.transactions.mutex:
                if self._core.store.holds(self.lock_address(number)):
                    found = self._as_layer(self._core.store.inode(number).inode, generation)
            if found is None:
                # Read again also while it is no layer yet: another host writes it a moment after the file above it.
                address = inode_format.inode_address(number)
                volume = self._core.volume.uuid
                found = self.read_again(
                    address, lambda block: self._as_layer(inode_format.parse(block, number, volume), generation)
                )
            self.keep(self._frozen, key, found, _FROZEN_INODES_MAX)
        return found

    @staticmethod
    def _as_layer(inode: Inode, generation: int) -> Inode:
        if not inode.is_layer or inode.inode_generation != generation:
            address = inode_format.inode_address(inode.number)
            raise DamagedBlock(address, "is not the layer that a file names its parent")
        return inode

    def keep(self, cache: dict[K, T], key: K, value: T, most: int) -> None:
        """Put what never changes into a cache of at most `most` entries: the oldest one goes."""
        with self._core.transactions.mutex:
            if len(cache) >= most:
                del cache[next(iter(cache))]
            cache[key] = value

    def frozen_in_store(self, address: int, map_id: int) -> array[int] | None:
        """A node of a layer that this host has just frozen, and that may not be on the disk yet."""
        with self._core.transactions.mutex:
            obj = self._core.store.peek(address)
            if isinstance(obj, NodeObject) and obj.map_id == map_id:
                return obj.pointers
        return None

    def flat_leaf(self, seen: Seen, index: int) -> array[int]:
        """Leaf `index` of the file that was looked at, layers looked through."""
        return flatten(seen.inode, seen.source, self, index)

    def chain(self, inode: Inode) -> Sequence[Inode]:
        """The layers below a file, nearest first."""
        found = []
        while inode.parent:
            inode = self.layer(inode.parent, inode.parent_generation)
            found.append(inode)
        return found
