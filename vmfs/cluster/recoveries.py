"""All recoveries of dead slots that one mount makes: for a lock that it wants, and of its own accord.

Whoever needs a lock whose holder is dead recovers that slot at once. A mount that needs nothing does it too, so that a
dead host's space and half-done removals do not wait for somebody to want them. Then the hosts take turns, so that not
all of them pounce: the next living slot above the dead one (cyclically) begins as soon as the death is proved, each
further one a heartbeat interval later, when the slot has long shown that someone is at it. To a process that has ended
on this very machine, which is known at once, they leave the break time: its successor may be starting, and goes first.
That is courtesy alone: the compare-and-write of the slot decides.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.membership import Membership
from vmfs.cluster.recovery import DeathProof
from vmfs.cluster.region import RegionSnapshot
from vmfs.errors import DamagedBlock, LeaseExpired, LeaseLost, MountClosing, SlotNotDead, VmfsError
from vmfs.events import Event, event
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import SlotState

_LOOKS_PER_INTERVAL: Final = 4  # at what the last heartbeat saw: no I/O, but where a recoverer may have died
_BACKOFF_MAX_INTERVALS: Final = 32  # between two tries at a slot whose recovery fails
_JOIN_PATIENCE_S: Final = 5.0  # for a recovery that the storage holds up while the mount ends
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Plan:
    """When this host tries a dead incarnation next (Clock.now() seconds), and how often that has failed."""

    due: float
    failures: int = 0


class Recoveries:
    """One recovery of a slot at a time in a mount; who comes second waits for the first.

    Thread "vmfs-recover-NAME" looks after dead slots from `start` to `stop`. `_cond` guards the set of slots under
    recovery and is not held while one is recovered. `recover` must not take locks that another host may hold: two
    threads that recover two slots would wait for each other.
    """

    def __init__(self, membership: Membership, recover: Callable[[int], None], clock: Clock) -> None:
        """`recover(slot)`: begin_recovery, replay, finish_recovery."""
        self._membership = membership
        self._recover = recover
        self._clock = clock
        self._cond = threading.Condition()
        self._under_way: set[int] = set()
        self._plans: dict[Holder, _Plan] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- for a lock ---------------------------------------------------------------------------------------------

    def recover_dead(self, holder: Holder) -> bool:
        """Recover the slot that has to be recovered so that the holder's locks become void; False: none can be now.

        Raises what `recover` raises, SlotNotDead apart (then another host was faster).
        """
        slot = self._membership.recovery.recoverable(holder.slot)
        return slot is not None and self.run(slot)

    def run(self, slot: int) -> bool:
        """Recover a slot, or wait until the thread of this mount that does so is done: True, it is worth looking again.

        False when it is not to be recovered now. Raises what `recover` raises, SlotNotDead apart.
        """
        with self._cond:
            if slot in self._under_way:
                self._cond.wait_for(lambda: slot not in self._under_way)
                return True
        try:
            with self.alone(slot):
                self._recover(slot)
        except SlotNotDead:
            return False
        return True

    @contextmanager
    def alone(self, slot: int) -> Iterator[None]:
        """No other thread of this mount recovers the slot inside; waits for one that does."""
        with self._cond:
            self._cond.wait_for(lambda: slot not in self._under_way)
            self._under_way.add(slot)
        try:
            yield
        finally:
            with self._cond:
                self._under_way.discard(slot)
                self._cond.notify_all()

    def under_way(self) -> frozenset[int]:
        """The slots that this mount recovers at this moment."""
        with self._cond:
            return frozenset(self._under_way)

    # -- of its own accord --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look after dead slots in the background from now on."""
        name = f"vmfs-recover-{self._membership.identity.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, behind the recovery that it is at."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_PATIENCE_S)
            if self._thread.is_alive():
                _log.warning("%s: a recovery still waits for the storage", self._membership.volume_name)

    def look(self) -> None:
        """Recover what the last heartbeat's look showed to be dead, where it is this host's turn.

        `start` has a thread do it; a simulator without threads calls it itself. Raises nothing of a recovery that
        fails: it is logged, and tried again later.
        """
        membership = self._membership
        snapshot = membership.snapshot
        now = self._clock.now()
        if snapshot is None or not membership.lease_valid(now):
            return
        dead = self._dead(snapshot)
        seen: dict[Holder, _Plan] = {}
        for slot in dead:
            holder = snapshot.views[slot].require().holder
            turn = _turn(snapshot, dead, slot, membership.holder.slot)
            courtesy = membership.timers.break_s if dead[slot] is DeathProof.PROCESS_GONE else 0.0
            due = now + courtesy + turn * membership.timers.interval_s
            seen[holder] = self._plans.get(holder) or _Plan(due)
        self._plans = seen
        busy = self.under_way()
        for holder, plan in seen.items():
            if plan.due <= self._clock.now() and holder.slot not in busy and not self._stopping.is_set():
                self._try(holder.slot, plan)

    def _dead(self, snapshot: RegionSnapshot) -> dict[int, DeathProof]:
        try:
            return self._membership.recovery.dead(snapshot)
        except STORAGE_ERRORS:
            return {}  # the heartbeat meets the same, and says so

    def _try(self, slot: int, plan: _Plan) -> None:
        interval = self._membership.timers.interval_s
        try:
            self.run(slot)
            plan.due = self._clock.now() + interval  # the next heartbeat's look says what is left to do
        except (LeaseExpired, LeaseLost, MountClosing):
            plan.due = self._clock.now() + interval  # the lease has its own log lines
        except Exception as error:
            plan.failures += 1
            pause = interval * min(2**plan.failures, _BACKOFF_MAX_INTERVALS)
            plan.due = self._clock.now() + pause
            again = "" if isinstance(error, DamagedBlock) else f"; tried again in {pause:.1f} s at the latest"
            bug = None if isinstance(error, VmfsError) else error
            _log.error(
                "%s: slot %d is not recovered: %s%s", self._membership.volume_name, slot, error, again, exc_info=bug,
                extra=event(Event.RECOVERY_FAILED),
            )  # fmt: skip

    def _run(self) -> None:
        pause = self._membership.timers.interval_s / _LOOKS_PER_INTERVAL
        while not self._clock.wait(self._stopping, pause):
            if self._membership.fenced:
                return
            try:
                self.look()
            except Exception:  # dead hosts must not stay unrecovered because of one look
                _log.exception("%s: looking for dead hosts failed", self._membership.volume_name)


def _turn(snapshot: RegionSnapshot, dead: Iterable[int], slot: int, mine: int) -> int:
    """How many living hosts come before this one at recovering `slot`: those between the two, going up."""
    count = len(snapshot.views)
    alive = {r.slot for r in snapshot.records if r.state is SlotState.LIVE} - set(dead) - {mine}
    distance = (mine - slot) % count
    return sum(1 for other in alive if 0 < (other - slot) % count < distance)
