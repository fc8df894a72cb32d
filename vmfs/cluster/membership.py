"""This host's membership in a volume: its slot, its lease, its view of the other hosts.

Each heartbeat is one compare-and-write of the own slot, one read of the whole slot region and one of the superblock. A
landed image extends the lease to L - MG after that image's *first submission* (R1). Without a lease this host submits
nothing but heartbeats; it goes on when one lands and the slot still is its own, and never again once fenced (R4).
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.claim import Claimer
from vmfs.cluster.fencing import Fence, NoFence
from vmfs.cluster.heartbeat import Renewal, SlotKeeper
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.recovery import DeathProof, Recovery
from vmfs.cluster.region import RegionSnapshot, SlotRegion, SlotView
from vmfs.cluster.requests import RequestBoard
from vmfs.cluster.standing import Standing
from vmfs.cluster.timers import Timers
from vmfs.cluster.watcher import Watcher
from vmfs.errors import LeaseExpired, LeaseLost, MountClosing, VmfsError
from vmfs.events import Event, event
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import MAX_REQUESTS, SlotRecord, SlotState

# A heartbeat of unknown fate is sent again after this part of the interval, and none comes sooner after another.
_RETRY_PART: Final = 1 / 8
_SHORTEST_GAP_PART: Final = 1 / 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MembershipCallbacks:
    """Whom to tell. All but `on_lease_expired` run in the heartbeat thread: they must return at once.

    on_request(slot, kind, target, argument): a live host asks this one; at every heartbeat, for as long as it asks.
    on_superblock_bytes(block): the superblock's 4 KiB as this heartbeat read them.
    on_fenced(): another host has taken this one for dead. Nothing may be submitted any more.
    on_lease_expired(): the lease has run out (runs in the lease thread). on_lease_resumed(): it goes on.
    may_resume(): whether every write from before the lease ran out has come back: before, it is not taken up again.
    """

    on_request: Callable[[int, int, int, int], None] = lambda slot, kind, target, argument: None
    on_superblock_bytes: Callable[[bytes], None] = lambda block: None
    on_fenced: Callable[[], None] = lambda: None
    on_lease_expired: Callable[[], None] = lambda: None
    on_lease_resumed: Callable[[], None] = lambda: None
    may_resume: Callable[[], bool] = lambda: True


class Membership:
    """One mount's membership, from `claim` to `leave` or `abandon`.

    Threads: "vmfs-heartbeat-NAME" beats, "vmfs-lease-NAME" watches the lease; both end at `leave` and `abandon`.
    `_mutex` guards `_expired` and the change of `lease_deadline`; it is never held over I/O or a callback.
    `snapshot` and `lease_deadline` are plain attributes, replaced whole, so the data plane reads them without a lock.
    """

    def __init__(
        self,
        region: SlotRegion,
        identity: HostIdentity,
        timers: Timers,
        clock: Clock,
        *,
        volume_name: str,
        superblock_address: int | None = None,
        callbacks: MembershipCallbacks | None = None,
        rng: random.Random | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Nothing is read or written before `claim`. `fence`: how the volume's hosts are fenced, None: not at all."""
        self.region = region
        self.identity = identity
        self.timers = timers
        self.volume_name = volume_name
        self.callbacks = callbacks or MembershipCallbacks()
        self.watcher = Watcher(timers)
        self.standing = Standing(fence or NoFence(), region, volume_name, self._suspend)
        self.recovery = Recovery(
            region, identity, self.watcher, clock, volume_name, self._holder_if_any, self.check_lease,
            self.standing.fence, settle_s=timers.quarantine_us / 1e6,  # which outlasts a write on its way: P + F < Q
        )
        self.snapshot: RegionSnapshot | None = None
        self.lease_deadline: float = -math.inf
        self.predecessors: tuple[int, ...] = ()
        self.fenced_by: str | None = None
        """Who has taken this mount for dead, for people."""
        self._clock = clock
        self._superblock_address = superblock_address
        self._random = rng or random.Random()
        self._board = RequestBoard(volume_name)
        self._keeper: SlotKeeper | None = None
        self._mutex = threading.Lock()
        self._expired = False
        self._told_fenced = False
        self._troubled = False
        self._damaged_told: set[int] = set()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._threads: list[threading.Thread] = []

    # -- joining and leaving ------------------------------------------------------------------------------------

    def claim(self, is_usable: Callable[[int], bool] = lambda slot: True) -> SlotRecord:
        """Take a slot for this mount and return its record; starts no thread. Then recover the `predecessors`.

        Where the record is `in_place`, all slots were taken, and this one's owner is dead: begin_recovery of it, replay
        its journal, `settle_in_place`, before anything else. `is_usable(slot)`: a free slot that is not is passed over.

        May take the break time B when a slot under this host's name, or any that may be dead, has to be watched first.
        Raises HostNameInUse, NoFreeSlot, FencingUnusable, DeviceError, DeviceGone.
        """
        if self._keeper is not None:
            raise ValueError("this membership has claimed its slot already")
        self.standing.begin()
        claimer = Claimer(
            self.region, self.identity, self.timers, self._clock, self.watcher, self._random, self.volume_name,
            self.recovery.dead, is_usable, self.standing.fence.prepare,
        )  # fmt: skip
        try:
            claimed = claimer.claim()
            self._keeper = SlotKeeper(self.region, self._clock, claimed.image)
            self.standing.prove(self._keeper)
        except BaseException:
            self.standing.end()
            raise
        self.predecessors = claimed.predecessors
        self.lease_deadline = claimed.image.first_submitted + self.timers.usable_lease_s
        self.region.registers.act_while(lambda: self.lease_valid(self._clock.now()))
        record = claimed.image.record
        _log.info("%s: host %s has slot %d, incarnation %d", self.volume_name, record.host_name, *self._me())
        return record

    def settle_in_place(self) -> None:
        """The dead slot that was claimed in place has been replayed and flushed: it becomes this mount's own.

        Raises LeaseExpired, LeaseLost.
        """
        self._end_in_place(lambda last: last.settled_in_place(self._clock.wall_ns()))

    def fail_in_place(self) -> None:
        """The dead slot that was claimed in place cannot be recovered: it is left FAILED, and this mount has none.

        Raises LeaseExpired, LeaseLost: then it stays dead, and is found so by others.
        """
        self._stop_threads()
        self._end_in_place(lambda last: last.turned(SlotState.FAILED))
        self.lease_deadline = -math.inf

    def _end_in_place(self, turn: Callable[[SlotRecord], SlotRecord]) -> None:
        keeper = self._own()
        slot = keeper.slot
        while keeper.landed.record.in_place:
            self.check_lease()
            outcome = keeper.renew(lambda last: turn(last) if last.in_place else self._next_image(last))
            if outcome is Renewal.FENCED:
                self._fence()
            elif outcome is Renewal.UNKNOWN:
                self._clock.sleep(self.timers.interval_s * _RETRY_PART)
            else:
                self._extend_lease(keeper)
        self.recovery.settled(slot)

    def start(self) -> None:
        """Start beating, once, after `claim`."""
        self._own()
        name = self.identity.name
        for target, kind in ((self._run_heartbeat, "heartbeat"), (self._run_lease_watch, "lease")):
            thread = threading.Thread(target=target, name=f"vmfs-{kind}-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def leave(self) -> None:
        """Free the slot after the caller has flushed everything and given up its locks; ends the threads.

        Unfinished recoveries are handed back. Raises LeaseLost when the slot was not this host's any more, DeviceError
        or DeviceGone when the storage does not answer: the slot then stays, and is recovered as a dead one.
        """
        keeper = self._own()
        self._stop_threads()
        try:
            self.recovery.hand_back_all()
        except VmfsError as e:  # the next host finds that their recoverer is gone, and goes on
            _log.warning("%s: an unfinished recovery could not be handed back: %s", self.volume_name, e)
        self.lease_deadline = -math.inf
        freed = keeper.free()
        self.standing.end()
        if not freed:
            raise LeaseLost(self.volume_name, "its heartbeat slot is not its own any more")

    def abandon(self) -> None:
        """End the threads and leave the slot as it is, for others to recover. For a mount that must not write.

        Does not wait for a heartbeat that the storage holds up for longer than an interval: its thread ends with it.
        """
        self._stop_threads(self.timers.interval_s)
        self.lease_deadline = -math.inf

    def _stop_threads(self, patience_s: float | None = None) -> None:
        with self._mutex:
            self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(patience_s)
                if thread.is_alive():
                    _log.warning("%s: %s still waits for the storage", self.volume_name, thread.name)
        self._threads.clear()

    # -- what this mount is, and whether it may submit ----------------------------------------------------------

    @property
    def holder(self) -> Holder:
        """(slot, incarnation) of this mount. ValueError before `claim`."""
        return self._own().landed.record.occupant

    def _holder_if_any(self) -> Holder | None:
        return None if self._keeper is None else self._keeper.landed.record.occupant

    @property
    def record(self) -> SlotRecord:
        """This mount's slot as it last landed."""
        return self._own().landed.record

    @property
    def fenced(self) -> bool:
        """Whether another host has taken this one for dead."""
        return self._told_fenced

    @property
    def last_answered(self) -> float:
        """When the last heartbeat that was answered was first sent (Clock.now() seconds)."""
        return self._own().landed.first_submitted

    def lease_valid(self, now: float) -> bool:
        """Whether this host may submit at `now` (Clock.now() seconds)."""
        return now < self.lease_deadline

    def check_lease(self) -> None:
        """Raise LeaseLost (fenced), MountClosing (has left), or LeaseExpired (may come back) without a lease."""
        if self._clock.now() < self.lease_deadline:
            return
        if self._told_fenced:
            raise LeaseLost(self.volume_name, "another host has taken it for dead")
        if self._stopping.is_set():
            raise MountClosing(self.volume_name)
        raise LeaseExpired(self.volume_name)

    # -- the others ---------------------------------------------------------------------------------------------

    def read_slot(self, slot: int) -> SlotView:
        """A slot read afresh. Raises DeviceError, DeviceGone."""
        return self.region.read(slot)

    def name_of(self, holder: Holder) -> str:
        """The host's name for messages: from the slot read afresh, or what is known of it."""
        if holder == self.holder:
            return self.identity.name
        try:
            record = self.region.read(holder.slot).record
        except (*STORAGE_ERRORS, ValueError):
            record = None
        if record is not None and record.incarnation == holder.incarnation and record.host_name:
            failed = record.state is SlotState.FAILED
            return f"{record.host_name} (dead; `vmfsctl recover` it)" if failed else record.host_name
        return f"of slot {holder.slot}, incarnation {holder.incarnation}"

    def dead_slots(self) -> dict[int, DeathProof]:
        """The slots that this host may recover now, from a fresh read. Raises DeviceError, DeviceGone."""
        snapshot = self.region.read_all()
        self.watcher.observe(snapshot)
        return self.recovery.dead(snapshot)

    def dead_slots_of_this_boot(self) -> tuple[int, ...]:
        """Slots whose process was one of this boot of this machine and has ended. Raises DeviceError, DeviceGone."""
        return tuple(s for s, proof in self.dead_slots().items() if proof is DeathProof.PROCESS_GONE)

    def begin_recovery(self, slot: int, *, operator: bool = False) -> SlotRecord:
        """See Recovery.begin."""
        return self.recovery.begin(slot, operator=operator)

    def finish_recovery(self, slot: int) -> None:
        """See Recovery.finish."""
        self.recovery.finish(slot)

    def hand_back(self, slot: int) -> None:
        """See Recovery.hand_back."""
        self.recovery.hand_back(slot)

    def fail_recovery(self, slot: int) -> None:
        """See Recovery.fail."""
        self.recovery.fail(slot)

    def post_request(self, kind: int, to_slot: int, target: int, argument: int = 0) -> int:
        """Ask the host in `to_slot` something, in an early heartbeat; returns a serial. Raises RequestsFull."""
        serial = self._board.post(kind, to_slot, target, argument)
        self._wake.set()
        return serial

    def clear_request(self, serial: int) -> None:
        """Take a request back, in the next heartbeat. An unknown serial is ignored."""
        self._board.clear(serial)

    # -- the heartbeat ------------------------------------------------------------------------------------------

    def beat(self) -> Renewal:
        """One heartbeat. `start` has a thread do it every interval; a simulator without threads calls it itself."""
        keeper = self._own()
        self._wake.clear()
        known = self.standing.settle(self.holder, keeper)
        if known is not None:
            if known is Renewal.FENCED:
                self._fence()
            return known
        outcome = keeper.renew(self._next_image)
        if outcome is Renewal.FENCED:
            self._fence()
            return outcome
        if outcome is Renewal.LANDED:
            self._extend_lease(keeper)
        elif not self._troubled:
            self._troubled = True
            _log.warning(
                "%s: a heartbeat was not answered: %s", self.volume_name, keeper.last_error,
                extra=event(Event.HEARTBEAT_MISSED),
            )  # fmt: skip
        self._look_around()
        return outcome

    def _suspend(self) -> None:
        """A LUN has refused a change of this mount: nothing more until a heartbeat has told why. In any thread."""
        with self._mutex:
            self.lease_deadline = -math.inf
        self._wake.set()

    def _next_image(self, last: SlotRecord) -> SlotRecord:
        requests = (*last.notes, *self._board.current())[:MAX_REQUESTS]
        return replace(last, sequence=last.sequence + 1, wall_ns=self._clock.wall_ns(), requests=requests)

    def _extend_lease(self, keeper: SlotKeeper) -> None:
        deadline = keeper.landed.first_submitted + self.timers.usable_lease_s
        now = self._clock.now()
        if self._troubled:
            self._troubled = False
            _log.info("%s: heartbeats are answered again", self.volume_name)
        lapsed = now >= self.lease_deadline > -math.inf
        if now >= self.lease_deadline:
            if not self.callbacks.may_resume():
                return
            self.watcher.restart()  # before the lease is valid again: counts made across a lapse prove nothing (R4)
        with self._mutex:
            if self._stopping.is_set() or self.standing.doubt is not None:
                return
            self.lease_deadline = deadline
            resumed = self._expired and now < deadline
            if resumed:
                self._expired = False
        if lapsed and not resumed and now < deadline:  # the lease's thread had not noticed: all were stopped, say
            _log.info(
                "%s: the lease had run out, and is valid again", self.volume_name, extra=event(Event.LEASE_RESUMED)
            )
        if resumed:
            _log.info("%s: the lease is valid again", self.volume_name, extra=event(Event.LEASE_RESUMED))
            self._tell("on_lease_resumed", self.callbacks.on_lease_resumed)

    def _look_around(self) -> None:
        try:
            snapshot = self.region.read_all()
            block = None
            if self._superblock_address is not None:
                block = self.region.extents.read(self._superblock_address, METADATA_BLOCK_BYTES)
        except STORAGE_ERRORS as e:
            if not self._troubled:
                self._troubled = True
                _log.warning("%s: the heartbeat slots could not be read: %s", self.volume_name, e)
            return
        self.watcher.observe(snapshot)
        self.snapshot = snapshot
        for view in snapshot.damaged:
            if view.slot not in self._damaged_told:
                self._damaged_told.add(view.slot)
                _log.warning("%s: at volume address %#x: %s", self.volume_name, view.address, view.damage)
        if block is not None:
            superblock = block
            self._tell("on_superblock_bytes", lambda: self.callbacks.on_superblock_bytes(superblock))
        mine = self.holder.slot
        for record in snapshot.records:
            if record.state is SlotState.LIVE and record.slot != mine:
                for r in record.requests:
                    if r.to_slot == mine:
                        self._deliver(record.slot, r.kind, r.target, r.argument)

    def _deliver(self, slot: int, kind: int, target: int, argument: int) -> None:
        self._tell("on_request", lambda: self.callbacks.on_request(slot, kind, target, argument))

    def _fence(self) -> None:
        with self._mutex:
            self.lease_deadline = -math.inf
            first, self._told_fenced = not self._told_fenced, True
        if first:
            slot, incarnation = self._me()
            self.fenced_by = self.standing.who_fenced(slot, self.name_of)
            _log.error(
                "%s: fenced by %s: slot %d is not incarnation %d of this host any more; nothing more is written. "
                "Unmount, and mount again when the storage is back",
                self.volume_name, self.fenced_by, slot, incarnation, extra=event(Event.FENCED),
            )  # fmt: skip
            self._tell("on_fenced", self.callbacks.on_fenced)

    def _run_heartbeat(self) -> None:
        interval = self.timers.interval_s
        while not self._stopping.is_set():
            began = self._clock.now()
            try:
                outcome = self.beat()
            except Exception:  # whatever it was, the lease must not run out because of it
                _log.exception("%s: a heartbeat failed", self.volume_name)
                outcome = Renewal.UNKNOWN
            if outcome is Renewal.FENCED:
                return
            if outcome is Renewal.UNKNOWN or not self.lease_valid(self._clock.now()):
                pause = interval * _RETRY_PART
            else:
                pause = interval - (self._clock.now() - began)
            gap = interval * _SHORTEST_GAP_PART
            if self._clock.wait(self._wake, max(gap, pause)):
                self._clock.wait(self._stopping, gap - (self._clock.now() - began))

    def _run_lease_watch(self) -> None:
        while not self._stopping.is_set() and not self._told_fenced:
            left = self.lease_deadline - self._clock.now()
            if left > 0:
                self._clock.wait(self._stopping, left)
                continue
            with self._mutex:
                late = self._clock.now() >= self.lease_deadline and not self._told_fenced
                tell = late and not self._expired and not self._stopping.is_set()
                self._expired = self._expired or tell
            if tell:
                _log.error(
                    "%s: the lease has run out: nothing is submitted until a heartbeat lands", self.volume_name,
                    extra=event(Event.LEASE_LAPSED),
                )  # fmt: skip
                self._tell("on_lease_expired", self.callbacks.on_lease_expired)
            self._clock.wait(self._stopping, self.timers.interval_s * _RETRY_PART)

    def _tell(self, which: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # a callback's error is its owner's; the heartbeat goes on
            _log.exception("%s: %s failed", self.volume_name, which)

    def _own(self) -> SlotKeeper:
        if self._keeper is None:
            raise ValueError("this membership has not claimed a slot")
        return self._keeper

    def _me(self) -> tuple[int, int]:
        holder = self.holder
        return holder.slot, holder.incarnation
