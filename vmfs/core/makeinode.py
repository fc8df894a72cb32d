"""Making inodes: a place for one, its lock, and its first content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vmfs.core.objects import InodeObject
from vmfs.core.space import Space
from vmfs.core.state import LOCK_WAIT_SECONDS, Core
from vmfs.core.transactions import Operation
from vmfs.core.units import InodePlace
from vmfs.ondisk.inode import ADDRESS_SHIFT, Inode
from vmfs.ondisk.lock import Guards, LockMode

GENERATION_BITS = 32  # what NFS handles and the kernel carry


@dataclass(frozen=True, slots=True)
class NewPlace:
    """A promised place whose lock is held."""

    place: InodePlace
    lock: int
    number: int


class InodeMaker:
    """Finds places for new inodes."""

    def __init__(self, core: Core, space: Space) -> None:
        self._core = core
        self._space = space

    @contextmanager
    def place(self) -> Iterator[NewPlace]:
        """A place for a new inode, its lock held while inside. Raises NoSpace, LockedByOther, DeviceError."""
        core = self._core
        with core.transactions.mutex:
            found = core.units.promise_inode()
        place = found or self._space.inode_place()
        try:
            lock = core.units.inode_lock_address(place)
            if place.fresh:
                if place.was_freed:
                    # The lock is written past the journal: not over a block that a crash could bring back, nor under
                    # one that a commit is just writing.
                    core.transactions.commit()
                # Nobody knows of this lock yet: a plain write makes it. It is flushed before the inode is committed.
                tenure = core.locks.create(lock, Guards.INODE, core.volume.superblock.lock_block_bytes)
            else:
                tenure = core.locks.acquire(lock, Guards.INODE, LockMode.EXCLUSIVE, wait=LOCK_WAIT_SECONDS)
            try:
                with core.transactions.mutex:
                    core.store.hold(lock, tenure.version)
                number = (lock + core.volume.superblock.lock_block_bytes) >> ADDRESS_SHIFT
                yield NewPlace(place, lock, number)
            finally:
                core.locks.unpin(tenure)
                if place.fresh and not core.units.is_claimed(place):
                    # The units go back to be a node's perhaps: no lock may be written there any more.
                    core.locks.release(lock)
        finally:
            with core.transactions.mutex:
                core.units.take_back_inode(place)

    def make(self, op: Operation, new: NewPlace, mode: int, uid: int, gid: int) -> InodeObject:
        """Claim the place and put an empty inode there: one link, all times now."""
        core = self._core
        if new.place.fresh:
            # A random start: a number that was handed out before a crash lost the file does not come again.
            generation = core.random.getrandbits(GENERATION_BITS - 1)
        else:
            generation = core.store.inode(new.number).inode.inode_generation
        now = core.clock.wall_ns()
        inode = Inode(
            new.number, mode=mode, uid=uid, gid=gid, nlink=1,
            inode_generation=(generation + 1) % (1 << GENERATION_BITS) or 1, atime_ns=now, mtime_ns=now,
            ctime_ns=now, btime_ns=now, map_id=core.new_id(), version=1,
        )  # fmt: skip
        core.units.claim_inode(op, new.place)
        before = core.store.peek(new.number << ADDRESS_SHIFT)
        if isinstance(before, InodeObject):
            op.touch(before)
            inode.generation = before.inode.generation
            inode.version = before.inode.version + 1
            before.inode = inode
            return before
        obj = InodeObject(inode, new.lock)
        op.add(obj)
        core.store.put(obj)
        op.on_undo(lambda: core.store.remove(obj))
        return obj


