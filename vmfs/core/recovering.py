"""Recovering a dead slot: its journal is replayed, its unfinished removals become this host's, its slot becomes free.

The states of the slot and the proof of death are `vmfs.cluster.recovery`'s; the rules R2, R5 and R6 of docs/locking.md.
Every step can be done again: a recoverer that dies half-way leaves the rest to the next one.

The order. (1) The slot becomes RECOVERING by this mount, and the dead host is fenced. (2) Its journal is replayed and
flushed. (3) Its orphan list is copied onto this host's, durably. (4) The locks of files that it was cutting become this
host's own, in one compare-and-write each: they are never free in between, so nobody makes such a file longer before
what it was cut off is gone. (5) Its list is emptied. (6) The slot becomes free, and with it all its other locks.
Whoever dies between (3) and (5) leaves entries on both lists, which does no harm: they are looked at before they are
worked off.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.lockio import LockSectors
from vmfs.cluster.membership import Membership
from vmfs.cluster.recovery import DeathProof
from vmfs.core.leased import LeasedIO, MemberLease
from vmfs.core.objects import OrphansObject
from vmfs.core.reaper import OrphanKey, Reaper
from vmfs.core.replay import JournalPlace, Replayed, replay
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock, DeviceError, ReservationConflict, VmfsError
from vmfs.events import Event, event
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import HEADER_BLOCKS, JournalHeader
from vmfs.ondisk.lock import Guards, Holder, LockRecord
from vmfs.ondisk.orphans import CAPACITY, OrphanKind
from vmfs.ondisk.slot import SlotRecord
from vmfs.volume import Volume

log = logging.getLogger("vmfs.core")

_TRIES_MAX: Final = 3  # of a recovery that the storage fails, before an operator is asked
_TRY_PAUSE_SECONDS: Final = 0.2
_FAILED: Final = (
    "volume %s: the recovery of host %s has failed, slot %d is left so: %s; what it had locked stays locked until "
    "`vmfsctl recover %d`"
)
_LIST_ROOM: Final = 64  # places kept for this host's own removals while it takes over another's


@dataclass(slots=True)
class Recovered:
    """What the recovery of a slot has done. Times in seconds."""

    dead: SlotRecord
    why: DeathProof | None
    silent_seconds: float
    replayed: Replayed | None = None
    """None: the journal was given up, by an operator's order."""
    removals: int = 0
    locks: int = 0
    """Locks that passed to this host with their files' unfinished truncations."""
    steps: list[tuple[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        d = self.dead
        why = f": {self.why.value}" if self.why is not None else ""
        done = "its journal given up"
        if self.replayed is not None:
            done = f"{self.replayed.records} records with {self.replayed.blocks} blocks replayed"
        times = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in self.steps)
        return (
            f"host {d.host_name} (slot {d.slot}, incarnation {d.incarnation}; silent for {self.silent_seconds:.1f} s"
            f"{why}): {done}, {self.removals} removals taken over, {self.locks} locks; {times}"
        )


class Follower(Protocol):
    """What more is done for a dead process of this very mount: see `vmfs.core.succession.Heir`."""

    def finish_commits(self, dead: Holder) -> None: ...

    def take_locks(self, dead: Holder) -> None: ...


class SlotRecoverer:
    """Recovers slots on behalf of this mount; `vmfs.cluster.recoveries` sees that no slot is done twice at once."""

    def __init__(self, core: Core, reaper: Reaper) -> None:
        self._core = core
        self._reaper = reaper
        self._errors: Counter[Holder] = Counter()
        """How often the storage has failed the recovery of each dead incarnation."""
        self.heir: Follower | None = None
        """Set while this process takes over from one before it."""

    def recover(self, slot: int, *, operator: bool = False, discard_journal: bool = False) -> Recovered:
        """Recover one dead slot; `operator` says that its host is dead, whatever this host knows of it.

        Raises SlotNotDead, LeaseLost, DeviceError (then it can be tried again, a few times), DamagedBlock when the
        journal or the orphan list is damaged: the slot is left FAILED for an operator, who may `discard_journal`.
        """
        core = self._core
        clock = core.clock
        view = core.membership.read_slot(slot)
        now = clock.now()
        why = core.membership.recovery.proof(view, now)
        found = Recovered(view.require(), why, core.membership.watcher.silent_for(view, now))

        def done(step: str) -> None:
            nonlocal now
            began, now = now, clock.now()
            found.steps.append((step, now - began))

        found.dead = core.membership.begin_recovery(slot, operator=operator)
        done("begin and fence")
        try:
            if self.heir is not None and not discard_journal:
                self.heir.finish_commits(found.dead.holder)
            if discard_journal:
                self._give_up_journal(found.dead)
            else:
                peek = core.locks.peek
                found.replayed = replay_slot(core.volume, core.io, peek, slot, found.dead.holder)
            done("replay")
            if self.heir is not None:
                self.heir.take_locks(found.dead.holder)
                done("open files")
            self._take_over_orphans(found, discard_journal)
            done("removals")
        except DamagedBlock as error:
            core.membership.fail_recovery(slot)
            log.error(
                _FAILED, core.name, found.dead.host_name, slot, error, slot, extra=event(Event.RECOVERY_FAILED)
            )
            raise
        except VmfsError as error:
            if isinstance(error, STORAGE_ERRORS) and getattr(error, "operation", "") != "read":
                core.membership.recovery.disturbed(slot)
            with contextlib.suppress(VmfsError):  # it stays this host's, then, to be tried again
                self._give_back(found.dead, error)
            raise
        core.membership.finish_recovery(slot)
        done("finish")
        log.warning("volume %s: recovered %s", core.name, found, extra=event(Event.HOST_RECOVERED))
        self._reaper.kick()
        return found

    def recover_or_fail(self, slot: int) -> None:
        """As `recover`, again until it is done or the slot is FAILED: for a mount that is to go on in either case."""
        for attempt in range(1, _TRIES_MAX + 1):
            try:
                self.recover(slot)
                return
            except DeviceError:
                if attempt == _TRIES_MAX:
                    raise
            self._core.clock.sleep(_TRY_PAUSE_SECONDS)

    def _give_back(self, dead: SlotRecord, error: VmfsError) -> None:
        """Leave the slot to another host, or to an operator when the storage failed too often (R6)."""
        core = self._core
        if isinstance(error, DeviceError) and not isinstance(error, ReservationConflict):
            self._errors[dead.holder] += 1
            if self._errors[dead.holder] >= _TRIES_MAX:
                core.membership.fail_recovery(dead.slot)
                log.error(
                    _FAILED, core.name, dead.host_name, dead.slot, error, dead.slot, extra=event(Event.RECOVERY_FAILED)
                )
                return
        core.membership.hand_back(dead.slot)

    def _give_up_journal(self, dead: SlotRecord) -> None:
        """Make a journal that cannot be read an empty one of no incarnation: whoever claims the slot begins its own."""
        core = self._core
        place = journal_place(core.volume, dead.slot, dead.incarnation)
        for copy in range(HEADER_BLOCKS):
            header = JournalHeader(dead.slot, 0, 1, HEADER_BLOCKS, copy)
            core.io.write(place.address + copy * METADATA_BLOCK_BYTES, header.pack(place.address, copy, place.volume))
        core.io.flush()

    def settle_in_place(self, dead: Holder) -> None:
        """End the recovery of a slot that this mount has claimed in place and replayed: from here on it is its own.

        The orphan list stays where it is. Raises LeaseLost, LeaseExpired, and VmfsError where a lock is in doubt.
        """
        core = self._core
        if self.heir is not None:
            self.heir.take_locks(dead)
        for key, kind in core.orphans.entries.items():
            if kind == OrphanKind.TRIM:
                inherit(core, self._reaper, key, dead)
        core.membership.settle_in_place()

    def _take_over_orphans(self, found: Recovered, discard: bool) -> None:
        """Move the dead host's list onto this host's, with the locks that must not become free before it is done."""
        core = self._core
        slot = found.dead.slot
        address = core.geometry.orphans_address(slot)
        block = core.io.read(address, METADATA_BLOCK_BYTES)
        try:
            entries, generation = orphans_format.parse(block, address, core.volume.uuid, slot)
        except DamagedBlock as error:
            if not discard:
                raise
            log.error("volume %s: given up with the journal: %s", core.name, error)
            self._write_list(OrphansObject(address, core.orphans.lock, slot, {}, 0))
            return
        if not entries:
            return
        with core.transactions.mutex:
            room = max(0, CAPACITY - _LIST_ROOM - len(core.orphans.entries))
        # What finds no room stays where it is: it is the work of whoever claims that slot next. Truncations go first.
        pending = sorted(entries.items(), key=lambda item: item[1] != OrphanKind.TRIM)
        taken, left = dict(pending[:room]), dict(pending[room:])
        if left:
            log.warning("volume %s: %d removals are left to the next host in slot %d", core.name, len(left), slot)
        with core.transactions.operation() as op:
            self._add(op, taken)
        core.transactions.commit()
        for key, kind in taken.items():
            if kind == OrphanKind.TRIM:
                found.locks += inherit(core, self._reaper, key, found.dead.holder)
        self._write_list(OrphansObject(address, core.orphans.lock, slot, left, generation))
        found.removals = len(taken)

    def _write_list(self, theirs: OrphansObject) -> None:
        """Write a list that is not this slot's, durably.

        Through this host's journal, as covered by its own slot: a block that is torn by a power cut is whole again
        when this host has been recovered in its turn.
        """
        core = self._core
        with core.transactions.operation() as op:
            op.add(theirs)
        core.transactions.settle()
        # The slot's next host writes its list there: this journal's image of it must not come back.
        with core.transactions.operation() as op:
            op.drop(theirs)
        core.transactions.commit()

    def _add(self, op: Operation, entries: dict[OrphanKey, OrphanKind]) -> None:
        orphans = self._core.orphans
        op.touch(orphans)
        for key, kind in entries.items():
            orphans.entries[key] = min(kind, orphans.entries.get(key, kind))


def replay_slot(
    volume: Volume, io: LeasedIO, peek: Callable[[int], LockRecord], slot: int, dead: Holder
) -> Replayed:
    """Replay a dead incarnation's journal (R5). `peek` reads a lock. Raises DamagedBlock, DeviceError, LeaseLost."""
    geometry = volume.geometry
    slot_address = geometry.slot_address(slot)

    def holds(lock: int, version: int) -> bool:
        if lock == slot_address:
            return version == dead.incarnation
        record = peek(lock)
        return record.owner == dead and record.version == version

    return replay(io, journal_place(volume, slot, dead.incarnation), holds)


BeforeReplay = Callable[[LeasedIO, Callable[[int], LockRecord], Holder], None]


def replay_in_place(
    volume: Volume, membership: Membership, clock: Clock, before: BeforeReplay = lambda io, peek, dead: None
) -> None:
    """Replay the journal of the dead host whose slot this mount has claimed in place, before this mount has its own.

    `before` is called before, with what it may use to write, to read locks, and who is dead.

    Raises DamagedBlock when it cannot be read: the slot is left FAILED, and this mount has none.
    """
    slot, label = membership.holder.slot, volume.superblock.label
    dead = membership.begin_recovery(slot).holder
    sectors = LockSectors(membership, clock)
    io = LeasedIO(volume.extents, MemberLease(membership))
    began = clock.now()
    try:
        before(io, lambda address: sectors.read(address)[1], dead)
        done = replay_slot(volume, io, lambda address: sectors.read(address)[1], slot, dead)
    except DamagedBlock:
        membership.fail_in_place()
        raise
    log.warning(
        "volume %s: every slot is taken; a dead host's is claimed (slot %d, incarnation %d): %d records with %d blocks "
        "replayed in %.0f ms",
        label, slot, dead.incarnation, done.records, done.blocks, (clock.now() - began) * 1e3,
        extra=event(Event.HOST_RECOVERED),
    )  # fmt: skip


class SlotLooker:
    """Whether a free slot's orphan list is whole: a mount would write on it."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._told: set[int] = set()

    def is_usable(self, slot: int) -> bool:
        """False, said once, for one that nobody can use before it is mended. Raises DeviceError."""
        volume = self._volume
        address = volume.geometry.orphans_address(slot)
        try:
            orphans_format.parse(volume.extents.read(address, METADATA_BLOCK_BYTES), address, volume.uuid, slot)
        except DamagedBlock as error:
            if slot not in self._told:
                self._told.add(slot)
                log.error("volume %s: slot %d is passed over: %s", volume.superblock.label, slot, error)
            return False
        return True


def journal_place(volume: Volume, slot: int, incarnation: int) -> JournalPlace:
    """Where the journal of an incarnation lies."""
    address = volume.geometry.journal_address(slot)
    return JournalPlace(address, volume.superblock.journal_bytes, volume.uuid, slot, incarnation)


def inherit(core: Core, reaper: Reaper, key: OrphanKey, dead: Holder) -> bool:
    """Have the lock of a file that the dead incarnation was cutting pass to this host, until it is cut.

    False when there is nothing to take over: then the cut was done, or hidden, before the lock was given up. Raises
    VmfsError when the lock's fate is not known.
    """
    number, _ = key
    reaper.expect_cut(key)
    try:
        core.geometry.check_inode(number)
    except DamagedBlock:
        return False  # the list is forged, or very old: whoever works it off says so
    address = core.geometry.inode_lock_address(number)
    try:
        if core.locks.inherit_for_taker(address, Guards.INODE, dead):
            return True
        tenure = core.locks.inherit(address, Guards.INODE, dead)
    except DamagedBlock as error:
        log.error("volume %s: inode %d stays as it is: %s", core.name, number, error)  # nobody can lock it any more
        return False
    if tenure is None:
        return False
    with core.transactions.mutex:
        core.store.hold(tenure.address, tenure.version)
        reaper.adopt(key, tenure)
    return True
