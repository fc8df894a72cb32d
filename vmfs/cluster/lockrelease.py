"""Giving locks up: idle ones, wanted ones, and those of which this host does not know whether it holds them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.lockio import Doubt, FateUnknown, LockSectors
from vmfs.cluster.locktable import Entry, LockTable, Tenure
from vmfs.cluster.membership import Membership
from vmfs.errors import StillInUse, VmfsError
from vmfs.ondisk.lock import Guards, Holder, LockMode

HOLD_S: Final = 0.1  # of continuous use, after which a waiting host gets the lock; and for which pins may drain
DRAIN_PAUSE_S: Final = 1.0  # after pins did not drain, before threads are held up for it again
RETRY_S: Final = 0.25  # after giving up failed
IN_USE_PAUSE_S: Final = 0.002  # before looking again at what operations of this host still use
HANDED_OVER_INTERVALS: Final = 2  # R11: a group that was asked for is left to the asker for so many heartbeats
_IDLE_LOOK_S: Final = 1.0  # the thread wakes at least so often
_log = logging.getLogger(__name__)


class Releaser:
    """Gives locks up for the lock manager, most of them from its thread, "vmfs-locks-NAME".

    `table.cond` guards the doubts and the hand-over times too; it is never held over I/O or `before_release`.
    """

    def __init__(
        self,
        table: LockTable,
        sectors: LockSectors,
        membership: Membership,
        clock: Clock,
        before_release: Callable[[Tenure], None],
        idle_s: float,
    ) -> None:
        """`idle_s`: seconds for which an unpinned lock that is not sticky is kept."""
        self._table = table
        self._sectors = sectors
        self._membership = membership
        self._clock = clock
        self._before_release = before_release
        self._idle_s = idle_s
        self._doubts: dict[int, Doubt] = {}
        self._doubts_due = 0.0
        self._handed_over: dict[int, float] = {}
        self._wakes_at = 0.0
        self._thread = threading.Thread(
            target=self._run, name=f"vmfs-locks-{membership.identity.name}", daemon=True
        )

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, after `table.closing` was set and `cond` notified."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    # -- doubts (R10) and hand-over (R11) -----------------------------------------------------------------------

    def doubt_of(self, address: int) -> Doubt | None:
        """What is not known about this host's hold of a lock; None: all is known. Call with `cond` held."""
        return self._doubts.get(address)

    def note_doubt(self, address: int, unknown: FateUnknown) -> Doubt:
        """An answer was lost. Until a new version is confirmed the lock is neither used nor reported (R10)."""
        with self._table.cond:
            before = self._doubts.get(address, Doubt(0, 0))
            doubt = Doubt(max(before.version, unknown.version), max(before.stamp, unknown.stamp))
            self._doubts[address] = doubt
            self._doubts_due = self._clock.now() + RETRY_S
            self._table.cond.notify_all()
        return doubt

    def end_doubt(self, address: int) -> None:
        """A compare-and-write to a new version was confirmed."""
        with self._table.cond:
            self._doubts.pop(address, None)

    def is_handed_over(self, address: int) -> bool:
        """Whether a lock is still to be left to the host that asked for it. Call with `cond` held."""
        until = self._handed_over.get(address)
        if until is not None and self._clock.now() >= until:
            del self._handed_over[address]
            until = None
        return until is not None

    # -- giving up ----------------------------------------------------------------------------------------------

    def want_check(self, entry: Entry, now: float) -> None:
        """The lock was used: have the thread look for a waiter when that is due. Call with `cond` held."""
        if not entry.sticky and not entry.check_wanted and now - entry.checked_at >= HOLD_S:
            entry.check_wanted = True
            self._table.cond.notify_all()

    def unpinned(self, entry: Entry, now: float) -> None:
        """A pin was taken off: wake whoever waits for that, if it is time. Call with `cond` held."""
        self.want_check(entry, now)
        if entry.pins:
            return
        waited_for = entry.asked or entry.upgraders or entry.drain_until > now
        if waited_for or (not entry.sticky and now + self._idle_s < self._wakes_at):
            self._table.cond.notify_all()

    def give_up(self, entry: Entry) -> None:
        """Give up the tenure of an entry whose `busy` is the calling thread's; `end_busy` is the caller's.

        Raises what `before_release` raised (the lock is kept then), LeaseExpired, LeaseLost, DeviceError, DeviceGone.
        """
        tenure = entry.tenure
        if tenure is None:
            return
        self._before_release(tenure)
        exclusive = tenure.mode is LockMode.EXCLUSIVE
        version, value = (tenure.version, tenure.value) if exclusive else (None, None)
        me = Holder(tenure.slot, tenure.incarnation)
        try:
            if not self._sectors.give_back(entry.raw, me, version, value):
                tenure.lost = True
                _log.error(
                    "%s: %r was not this host's any more when it was given up", self._membership.volume_name, tenure
                )
        except FateUnknown as e:
            entry.tenure = None
            self.note_doubt(entry.address, e)
            raise e.cause from e
        entry.tenure = None
        if entry.asked and tenure.guards is Guards.RESOURCE_GROUP:
            pause = HANDED_OVER_INTERVALS * self._membership.timers.interval_s
            with self._table.cond:
                self._handed_over[entry.address] = self._clock.now() + pause

    def give_up_when_unused(self, entry: Entry) -> None:
        """As `give_up`, and waits for the operations of this host that are under way in what the lock covers."""
        while True:
            try:
                return self.give_up(entry)
            except StillInUse:
                self._clock.sleep(IN_USE_PAUSE_S)

    def ask(self, address: int) -> None:
        """Another host asks for the lock: give it up once nobody pins it, and hold new pins up for a moment."""
        with self._table.cond:
            entry = self._table.entries.get(address)
            if entry is not None and entry.tenure is not None:
                entry.asked = True
                self._drain(entry)
                self._table.cond.notify_all()

    def _drain(self, entry: Entry) -> None:
        now = self._clock.now()
        if now >= entry.drain_until + DRAIN_PAUSE_S:
            entry.drain_until = now + HOLD_S

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._table.cond:
                if self._table.closing or self._table.lost:
                    return
                now = self._clock.now()
                if self._membership.fenced:
                    self._table.lose_all()
                    return
                if not self._membership.lease_valid(now):
                    self._table.cond.wait(RETRY_S)  # nothing is submitted until it is valid again (R1)
                    continue
                doubtful = list(self._doubts.items()) if now >= self._doubts_due else []
                release, check, self._wakes_at = self._plan(now)
                if not (doubtful or release or check):
                    self._table.cond.wait(max(0.001, self._wakes_at - now))
                    continue
            for entry in check:
                self._look_for_waiter(entry)
            for entry in release:
                self._give_up_in_background(entry)
            self._resolve(doubtful)

    def _plan(self, now: float) -> tuple[list[Entry], list[Entry], float]:
        """What to give up (made busy), what to look at, and when something is due next."""
        release, check, due = [], [], now + _IDLE_LOOK_S
        if self._doubts:
            due = min(due, self._doubts_due)
        for entry in self._table.entries.values():
            if entry.busy or entry.tenure is None:
                continue
            if now < entry.retry_at:
                due = min(due, entry.retry_at)
                continue
            if not entry.pins:
                at_once = entry.asked or entry.drain_until > now
                idle_until = now if at_once else entry.last_use + self._idle_s
                if idle_until <= now and (at_once or not entry.sticky):
                    entry.busy = True
                    release.append(entry)
                    continue
                if not entry.sticky:
                    due = min(due, idle_until)
            if entry.check_wanted:
                check.append(entry)
        return release, check, due

    def _give_up_in_background(self, entry: Entry) -> None:
        pause = RETRY_S
        try:
            self.give_up(entry)
        except StillInUse:
            pause = IN_USE_PAUSE_S  # the other locks do not wait for it: who uses it may want one of them
        except VmfsError as e:
            _log.warning("%s: a lock could not be given up: %s", self._membership.volume_name, e)
        except Exception:  # of `before_release`; the thread must live for the other locks
            _log.exception("%s: a lock could not be given up", self._membership.volume_name)
        with self._table.cond:
            entry.retry_at = self._clock.now() + pause
            self._table.end_busy(entry)

    def _look_for_waiter(self, entry: Entry) -> None:
        tenure = entry.tenure
        wanted = False
        if tenure is not None:
            try:
                wanted = self._sectors.wanted_by_other(entry.address, tenure.mode)
            except VmfsError as e:
                _log.warning("%s: %r cannot be looked at: %s", self._membership.volume_name, tenure, e)
        with self._table.cond:
            entry.check_wanted = False
            entry.checked_at = self._clock.now()
            if wanted and entry.tenure is tenure and not entry.busy:
                self._drain(entry)

    def _resolve(self, doubtful: list[tuple[int, Doubt]]) -> None:
        for address, doubt in doubtful:
            with self._table.cond:
                entry = self._table.enter(address)
                mine = not entry.busy and entry.tenure is None and self._doubts.get(address) == doubt
                entry.busy = entry.busy or mine
            try:
                if mine:
                    self._sectors.resolve(address, doubt)
                    self.end_doubt(address)
            except FateUnknown as e:
                self.note_doubt(address, e)
            except VmfsError as e:
                _log.info("%s: the lock at %#x is still in doubt: %s", self._membership.volume_name, address, e)
            finally:
                with self._table.cond:
                    self._doubts_due = self._clock.now() + RETRY_S
                    self._table.exit(entry)
                    if mine:
                        self._table.end_busy(entry)
