"""Access to inodes: under their lock, or without it as readers on any host may look.

Looking without the lock reads the disk, and believes what was read for BELIEVE_SECONDS. Everything below an inode is
read by a *walk* that starts from one look at it. When what it meets cannot be, `vmfs.core.unlocked` decides: it is
damage, or the inode has changed meanwhile and the walk starts over (`Changed`).
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EBUSY, ESTALE
from functools import partial
from typing import Final, TypeVar

from vmfs.cluster.locktable import LockRequest
from vmfs.core.filemap import NodeSource
from vmfs.core.objects import InodeObject, NodeObject
from vmfs.core.state import BELIEVE_SECONDS, DIRECTORY_WAIT_SECONDS, LOCK_WAIT_SECONDS, Core
from vmfs.core.unlocked import Changed, UnlockedReader
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

_CHANGED_PAUSE_SECONDS: Final = 0.005
REST_SECONDS: Final = 10.0  # a walk that finds its inode changed again and again is given up after so long
_READS_UNGUARDED: Final = 3  # of a block into the store while other blocks leave it, before it is read under the mutex
_FROZEN_NODES_MAX: Final = 4096  # 16 MiB of nodes of frozen layers
_FROZEN_INODES_MAX: Final = 1024
_LOOSE_INODES_MAX: Final = 4096

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """An inode as it was at one moment: a private copy, and since when it is known to be so."""

    inode: Inode
    since: float
    source: NodeSource
    blocks: dict[int, DirectoryBlock] | None = None
    """Directory blocks read so far, kept as long as the inode is believed; None: they are in the store."""


def _root(inode: Inode) -> tuple[object, ...]:
    """All that says which blocks lie below an inode: while it stays the same, so does what is walked through."""
    return (
        inode.in_use, inode.inode_generation, inode.map_id, inode.height, inode.root, inode.level, inode.split,
        inode.parent, inode.parent_generation, inode.inherit_limit,
    )  # fmt: skip


def stale(number: int) -> OSError:
    """The inode is no more, or is another file's now."""
    return OSError(ESTALE, f"inode {number} is no longer that file")


class LiveNodes:
    """Nodes of a map that may change: from the store while its lock is held here, else from the disk, not kept.

    What it returns does not change any more. The disk is read without the control mutex, unless the caller holds it.
    """

    __slots__ = ("_core", "_inodes", "_lock")

    def __init__(self, core: Core, inodes: Inodes, lock: int) -> None:
        self._core = core
        self._inodes = inodes
        self._lock = lock

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        def find(block: bytes | None) -> array[int]:
            return self._core.store.node(address, self._lock, map_id, level, index, block).pointers[:]

        found = self._inodes.from_store(self._lock, address, find)
        return found if found is not None else self._inodes.read_node(address, map_id, level, index)


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
        self._unlocked = UnlockedReader(core)
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
                inode = core.store.inode(number).snapshot()
                if not inode.in_use:
                    raise stale(number)
                return Seen(inode, now, LiveNodes(core, self, lock))
            seen = self._loose.get(number)
            if not fresh and seen is not None and now - seen.since <= BELIEVE_SECONDS:
                return seen
        found = self._unlocked.believe(number, lambda: self._read_inode(number))
        if not found.in_use:
            self.forget(number)  # whoever looks the name up again must not be told what was believed of it
            raise stale(number)
        seen = Seen(found, now, LiveNodes(core, self, lock), {})
        with core.transactions.mutex:
            if len(self._loose) >= _LOOSE_INODES_MAX:
                self._loose.clear()
            known = self._loose.get(number)
            if epoch != self._epoch:
                # This host may have changed it since, and must see that; and nobody is told now what was known before.
                self._loose.pop(number, None)
            elif known is None or known.since <= seen.since:
                self._loose[number] = seen
        return seen

    def _read_inode(self, number: int) -> Inode:
        address = inode_format.inode_address(number)
        volume = self._core.volume.uuid
        return self._unlocked.read(address, lambda block: inode_format.parse(block, number, volume))

    def walk(self, seen: Seen, action: Callable[[], T]) -> T:
        """Do what reads below an inode that was looked at. May be done several times.

        The control mutex is held only if the inode's lock is. Raises Changed: look at the inode again; DamagedBlock.
        """
        return self._unlocked.believe(seen.inode.number, action, lambda: self._check_unchanged(seen.inode))

    def walk_from(self, number: int, action: Callable[[Seen], T]) -> T:
        """Look at an inode and do what reads below it, from the start again whenever the inode changes meanwhile.

        OSError(ESTALE) when it is free, or does not come to rest. Raises DamagedBlock, DeviceError.
        """
        clock = self._core.clock
        until: float | None = None
        while True:
            seen = self.look(number, fresh=until is not None)
            try:
                return self.walk(seen, partial(action, seen))
            except Changed:
                until = until or clock.now() + REST_SECONDS
                if clock.now() >= until:
                    raise OSError(ESTALE, f"inode {number} does not come to rest") from None
            clock.sleep(_CHANGED_PAUSE_SECONDS)

    def _check_unchanged(self, inode: Inode) -> None:
        """Raise Changed when the root of an inode's map is not what a walk started from."""
        core, number = self._core, inode.number
        with core.transactions.mutex:
            held = core.store.holds(self.lock_address(number))
            now = core.store.inode(number).snapshot() if held else None
        if _root(now or self._read_inode(number)) != _root(inode):
            self.forget(number)
            raise Changed

    def forget(self, number: int) -> None:
        """Believe no more what was read without the lock: it is held now, or was."""
        with self._core.transactions.mutex:
            self._loose.pop(number, None)
            self._epoch += 1

    def from_store(self, lock: int, address: int, find: Callable[[bytes | None], T]) -> T | None:
        """What `find(block)` finds in the store at an address that the lock covers; None when the lock is not held.

        The block, if it is not in the store, is read without the control mutex: nobody else changes it meanwhile, and
        if the store has lost anything since, it is read again. Raises what `find` raises.
        """
        core = self._core
        block: bytes | None = None
        losses = -1
        for attempt in range(_READS_UNGUARDED):
            with core.transactions.mutex:
                if not core.store.holds(lock):
                    return None
                last = attempt == _READS_UNGUARDED - 1
                if last or core.store.peek(address) is not None or losses == core.store.losses:
                    return find(block if losses == core.store.losses else None)
                losses = core.store.losses
            block = core.io.read(address, METADATA_BLOCK_BYTES)
        raise AssertionError("not reached")

    def read_node(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        """The pointers of a map node, from the disk. Raises DamagedBlock, DeviceError."""
        self._core.geometry.chunk_of(address)
        volume = self._core.volume.uuid
        return self._unlocked.read(
            address, lambda block: node_format.parse(block, address, volume, map_id, level, index)[0]
        )

    def directory_block(self, seen: Seen, address: int, bucket: int) -> DirectoryBlock:
        """A block of a directory that was looked at, as it was at one moment. Raises DamagedBlock, DeviceError."""
        core = self._core
        map_id = seen.inode.map_id
        if seen.blocks is None:
            lock = self.lock_address(seen.inode.number)

            def find(block: bytes | None) -> DirectoryBlock:
                return core.store.directory(address, lock, map_id, bucket, block).snapshot()

            held = self.from_store(lock, address, find)
            if held is not None:
                return held
        found = seen.blocks.get(address) if seen.blocks is not None else None
        if found is None:
            core.geometry.chunk_of(address)
            volume = core.volume.uuid
            found = self._unlocked.read(
                address, lambda block: directory_format.parse(block, address, volume, map_id, bucket)
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
                # While it is no layer yet this is met again: another host writes it a moment after the file above it.
                address = inode_format.inode_address(number)
                volume = self._core.volume.uuid
                found = self._unlocked.read(
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
        """Leaf `index` of the file that was looked at, layers looked through. Raises as `walk`."""
        return self.walk(seen, lambda: flatten(seen.inode, seen.source, self, index))

    def chain(self, inode: Inode) -> Sequence[Inode]:
        """The layers below a file, nearest first."""
        found = []
        while inode.parent:
            inode = self.layer(inode.parent, inode.parent_generation)
            found.append(inode)
        return found
