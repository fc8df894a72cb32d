"""Transactions: every change of metadata goes through the journal, whole or not at all.

Operations change objects in memory under the *control mutex* and join the running transaction. A commit takes the
running transaction's images under the mutex, and then, outside of it and one commit at a time:

1. flushes the file data that the new maps point at, and the locks that the record will name and that may not be
   durable yet: replay drops blocks whose lock is not held, so a record that survives a power cut without one of its
   locks would be replayed in part,
2. writes and flushes the journal record: the transaction is durable,
3. writes the blocks in place, inodes last,
4. and lets the next flush, whoever asks for it, *settle* it: the blocks are durable in place, the record may be
   trimmed, freed blocks begin their quarantine, and the locks may be given up.

A commit during which the lease runs out waits for the lease to come back. One that fails leaves memory ahead of the
disk with no way back: the mount fails as a whole, and every later operation raises what failed it.

A mount that may be taken over by another process keeps a *shadow* of what is not in the journal yet: each operation's
blocks go there as it ends (`vmfs.estate.shadow`), so that the death of the process loses nothing.

Locking: `mutex` guards all metadata objects and the running transaction; no I/O of another host's making is waited for
under it. `_commit_lock` serialises commits; it is taken before `mutex`, never after.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vmfs.core.journal import Journal
from vmfs.core.leased import LeasedIO
from vmfs.core.objects import MetaObject
from vmfs.errors import DeviceError, DeviceGone, VmfsError
from vmfs.estate.shadow import Shadow
from vmfs.events import Event, event
from vmfs.ondisk.journal import Image, Revoke

log = logging.getLogger("vmfs.core")

# An operation may touch this many blocks; a running transaction above the soft limit is committed before the next
# operation starts, so that no record outgrows the journal.
OPERATION_MAX_BLOCKS = 40
_DURABLE_LOCKS_MAX = 16384  # remembered; forgetting one costs a flush


class MountFailed(VmfsError):
    """The mount cannot go on: a commit failed, or the lease is gone."""

    def __init__(self, volume: str, reason: str) -> None:
        super().__init__(f"volume {volume}: this mount has failed ({reason}); unmount it and mount it again")


class Operation:
    """The changes of one operation, for the running transaction, and how to undo them."""

    __slots__ = ("_undo", "completes", "data_ordered", "dropped", "frees", "touched")

    def __init__(self) -> None:
        self.touched: dict[int, MetaObject] = {}
        self.dropped: dict[int, int] = {}
        self.frees: list[tuple[int, int]] = []
        self.data_ordered = False
        self.completes = False
        """With it, the request that this thread works on is done: done again, it would fail or do more."""
        self._undo: list[Callable[[], None]] = []

    def touch(self, obj: MetaObject) -> None:
        """Say that `obj` is about to be changed. Call it before the change."""
        if obj.address not in self.touched:
            state = obj.snapshot()
            self._undo.append(lambda: obj.restore(state))
            self.touched[obj.address] = obj

    def add(self, obj: MetaObject) -> None:
        """A new block joins; its content replaces whatever the place held."""
        self.touched[obj.address] = obj

    def drop(self, obj: MetaObject) -> None:
        """A block is freed: older images of it must not be replayed."""
        self.touched.pop(obj.address, None)
        self.dropped[obj.address] = obj.lock

    def free(self, group: int, bits: int) -> None:
        """Data blocks of a group are freed; their quarantine starts when this is settled."""
        self.frees.append((group, bits))

    def on_undo(self, action: Callable[[], None]) -> None:
        """Run `action` when the operation fails (latest first)."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._undo:
            self._undo.pop()()


class Request(threading.local):
    """What this thread works on: a request that must not be done twice, or 0."""

    unique = 0


@dataclass(slots=True)
class _Running:
    objects: dict[int, MetaObject] = field(default_factory=dict)
    revokes: dict[int, int] = field(default_factory=dict)
    frees: list[tuple[int, int]] = field(default_factory=list)
    locks: set[int] = field(default_factory=set)
    data_ordered: bool = False


@dataclass(slots=True)
class _Batch:
    images: list[tuple[int, Image]]
    revokes: list[Revoke]
    frees: list[tuple[int, int]]
    locks: dict[int, int]
    data_ordered: bool
    shadow: int
    """Its number in the shadow, or 0."""


class Transactions:
    """The running transaction, the committer and what is not settled yet."""

    def __init__(
        self,
        io: LeasedIO,
        journal: Journal,
        volume: bytes,
        name: str,
        lock_version: Callable[[int], int],
        on_freed: Callable[[list[tuple[int, int]]], None],
    ) -> None:
        """`lock_version` gives the version of a lock that this host holds; `on_freed` is told of settled frees."""
        self.request = Request()
        self._shadow: Shadow | None = None
        self.mutex = threading.RLock()
        self._commit_lock = threading.Lock()
        self._io = io
        self._journal = journal
        self._volume = volume
        self._name = name
        self._lock_version = lock_version
        self._on_freed = on_freed
        self._running = _Running()
        self._committing: set[int] = set()
        self._in_place = 0
        self._settled = 0
        self._unsettled_frees: list[tuple[int, list[tuple[int, int]]]] = []
        # By lock: the last record that changed something under it. What is settled drops out. Guarded by `mutex`.
        self._changed_by: dict[int, int] = {}
        # Versions of locks that are known to be durable. Guarded by the commit lock, as are the frees above.
        self._durable_locks: dict[int, int] = {}
        self._soft_limit = max(8, journal.max_images - OPERATION_MAX_BLOCKS)
        self.failure: str | None = None

    def cast_shadow(self, shadow: Shadow) -> None:
        """From now on what ends is in `shadow` until it is committed. Raises as `commit`."""
        while True:
            self.commit()
            with self._commit_lock, self.mutex:
                if not self._running.objects and not self._running.revokes:
                    self._shadow = shadow
                    return

    def check(self) -> None:
        """Raise MountFailed when this mount has failed."""
        if self.failure is not None:
            raise MountFailed(self._name, self.failure)

    def fail(self, reason: str) -> None:
        """Stop this mount's metadata for good."""
        if self.failure is None:
            self.failure = reason
            log.error("volume %s: mount failed: %s", self._name, reason, extra=event(Event.MOUNT_FAILED))

    @contextmanager
    def operation(self) -> Iterator[Operation]:
        """Run one operation under the control mutex: its changes join the running transaction, or are undone."""
        self._enter()
        try:
            self.check()
            op = Operation()
            try:
                yield op
            except BaseException:
                op.undo()
                raise
            self._merge(op)
        finally:
            self.mutex.release()

    def _enter(self) -> None:
        """Take the mutex while the running transaction has room for one more operation."""
        while True:
            self.mutex.acquire()
            full = self._shadow is not None and self._shadow.is_full
            if len(self._running.objects) < self._soft_limit and not full:
                return
            self.mutex.release()
            self.commit()

    def _merge(self, op: Operation) -> None:
        running = self._running
        for address, lock in op.dropped.items():
            running.objects.pop(address, None)
            running.revokes[address] = lock
            running.locks.add(lock)
        for address, obj in op.touched.items():
            running.objects[address] = obj
            running.locks.add(obj.lock)
        running.frees.extend(op.frees)
        running.data_ordered |= op.data_ordered
        if self._shadow is not None and (op.touched or op.dropped):
            self._cast(self._shadow, op)

    def _cast(self, shadow: Shadow, op: Operation) -> None:
        version = self._lock_version
        images = [
            (obj.rank, Image(address, obj.lock, version(obj.lock), obj.pack(self._volume)))
            for address, obj in op.touched.items()
        ]
        revokes = [Revoke(address, lock, version(lock)) for address, lock in op.dropped.items()]
        shadow.add(images, revokes, op.data_ordered, self.request.unique if op.completes else 0)

    def covers(self, lock: int) -> bool:
        """Whether changes under that lock are not yet durable."""
        return lock in self._running.locks or lock in self._committing

    def unsettled(self, lock: int) -> bool:
        """Whether anything under that lock may not be durable in place. Exact only under the control mutex."""
        return self.covers(lock) or self._changed_by.get(lock, 0) > self._settled

    def commit(self) -> bool:
        """Make durable all that ended before this call. Raises MountFailed, and what failed the commit first.

        Returns whether this call flushed: then file data that was written before it is durable too.
        """
        with self._commit_lock:
            self.check()
            try:
                batch = self._take()
                if batch is None:
                    return False
                self._write(batch)
                return True
            except Exception as e:
                self.fail(str(e))
                raise
            finally:
                self._committing = set()

    def sync(self, lock: int) -> None:
        """Make durable the data and the metadata of what `lock` covers (fsync)."""
        self.check()
        if self.covers(lock) and self.commit():
            return
        try:
            self._io.flush()
        except (DeviceError, DeviceGone) as error:
            # The storage may have dropped what it was to flush, and the next flush would say nothing of it.
            self.fail(str(error))
            raise
        self.check()  # a commit that failed meanwhile covers nothing any more, and was not a success

    def settle(self) -> None:
        """Commit, and return when all of it is durable in place."""
        self.commit()
        with self._commit_lock:
            self.check()
            if self._settled == self._in_place:
                return
            try:
                self._flush()
            except Exception as e:
                self.fail(str(e))
                raise

    def _take(self) -> _Batch | None:
        with self.mutex:
            running = self._running
            if not running.objects and not running.revokes:
                return None
            versions = {lock: self._lock_version(lock) for lock in running.locks}
            images = [
                (obj.rank, Image(address, obj.lock, versions[obj.lock], obj.pack(self._volume)))
                for address, obj in running.objects.items()
            ]
            revokes = [Revoke(address, lock, versions[lock]) for address, lock in running.revokes.items()]
            self._committing = running.locks
            self._running = _Running()
            number = self._shadow.taken() if self._shadow is not None else 0
            return _Batch(images, revokes, running.frees, versions, running.data_ordered, number)

    def _write(self, batch: _Batch) -> None:
        if batch.data_ordered or any(self._durable_locks.get(a) != v for a, v in batch.locks.items()):
            self._flush()
        images = [image for _, image in batch.images]
        position = self._journal.place_for(len(images), len(batch.revokes))
        if position is None:
            self._flush()
            self._journal.trim(self._settled)
            position = self._journal.place_for(len(images), len(batch.revokes))
            assert position is not None, "a settled journal is empty"
        in_place = self._in_place
        sequence = self._journal.append(images, batch.revokes, position)
        if self._shadow is not None and batch.shadow:
            self._shadow.committed(batch.shadow)
        self._note_settled(in_place)
        if len(self._durable_locks) > _DURABLE_LOCKS_MAX:
            self._durable_locks.clear()
        self._durable_locks.update(batch.locks)
        for rank in (0, 1):
            self._io.write_blocks([(i.address, i.data) for r, i in batch.images if r == rank])
        with self.mutex:
            self._in_place = sequence
            self._changed_by.update(dict.fromkeys(batch.locks, sequence))
        if batch.frees:
            self._unsettled_frees.append((sequence, batch.frees))

    def _flush(self) -> None:
        in_place = self._in_place
        self._io.flush()
        self._note_settled(in_place)

    def _note_settled(self, sequence: int) -> None:
        """A flush that began when all up to `sequence` was in place has returned."""
        with self.mutex:
            if sequence != self._settled:
                self._settled = sequence
                self._changed_by = {lock: last for lock, last in self._changed_by.items() if last > sequence}
            while self._unsettled_frees and self._unsettled_frees[0][0] <= sequence:
                self._on_freed(self._unsettled_frees.pop(0)[1])
