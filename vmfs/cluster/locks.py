"""The lock manager: this host's locks on the volume, for all its threads.

A lock is taken by compare-and-write and then *held* by the host: `acquire` pins it for the caller, `unpin` lets go, and
an unpinned lock stays held for a moment (`idle_s`; a sticky one until another host asks), so that the next use costs
no I/O. Before it is given up, `before_release(tenure)` puts everything that the lock covers in order on the volume.

Threads of this host share a tenure: excluding each other is their own business.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.handover import HandOvers
from vmfs.cluster.lockio import FateUnknown, LockSectors, Refused, Taken
from vmfs.cluster.lockrelease import HOLD_S, Releaser
from vmfs.cluster.locktable import Entry, LockRequest, LockTable, LockView, Tenure
from vmfs.cluster.lockwait import Waiter
from vmfs.cluster.membership import Membership
from vmfs.cluster.recoveries import Recoveries
from vmfs.errors import LockedByOther, LockUpgradeRefused, MountClosing, VmfsError
from vmfs.ondisk.lock import Guards, Holder, LockMode, LockRecord
from vmfs.ondisk.slot import RequestKind

IDLE_S: Final = 0.02  # for which an unpinned lock is kept: longer than the gap between two system calls of one tool
FATE_TRIES: Final = 3  # of taking a lock whose answers are lost, before the caller gets the storage's error
FATE_PAUSE_S: Final = 0.03
MANY_SLICE_S: Final = 0.05  # `acquire_many` waits so long for one lock with others in hand, then longer
MANY_SLICE_MAX_S: Final = 1.0


class LockManager:
    """All locks of one mount.

    Thread "vmfs-locks-NAME" (of the Releaser) gives up idle and wanted locks; it ends at `close`. `_table.cond` guards
    the table of entries. It is never held over I/O or a callback: a thread that takes or gives up a lock sets the
    entry's `busy` instead, and has it to itself. `before_release` runs with `busy` set, in the thread or in a caller of
    `release`, `acquire` or `close`. It must not acquire locks: that could wait for a host that waits for this one.
    """

    def __init__(
        self,
        membership: Membership,
        clock: Clock,
        *,
        recover: Callable[[int], None],
        before_release: Callable[[Tenure], None] = lambda tenure: None,
        describe: Callable[[int, Guards], str] | None = None,
        idle_s: float = IDLE_S,
        rng: random.Random | None = None,
    ) -> None:
        """Starts its thread. The membership has claimed its slot.

        `recover(slot)`: begin_recovery, replay, finish_recovery of a dead slot. `before_release(tenure)`: bring all
        that the lock covers to the volume, flush it, drop what is cached; when it raises, the lock is kept and tried
        again a little later (very soon after StillInUse). `describe(address, guards)` names a lock in messages.
        """
        self._membership = membership
        self._clock = clock
        self._describe = describe or (lambda address, guards: f"the {guards.name.lower()} at {address:#x}")
        self._random = rng or random.Random()
        self._sectors = LockSectors(membership, clock)
        self.recoveries = Recoveries(membership, recover, clock)
        self._table = LockTable()
        self._releaser = Releaser(self._table, self._sectors, membership, clock, before_release, idle_s)
        self.hand_overs = HandOvers(
            self._table, self._sectors, self._releaser, membership, clock, before_release, self._describe
        )
        self._releaser.start()

    # -- taking -------------------------------------------------------------------------------------------------

    def acquire(
        self,
        address: int,
        guards: Guards,
        mode: LockMode = LockMode.EXCLUSIVE,
        *,
        wait: float | None = None,
        sticky: bool = False,
    ) -> Tenure:
        """Pin the lock at this address, and take it if this host does not hold it. Unpin it with `unpin`.

        A tenure held exclusively serves a caller that wants it shared. `wait`: seconds to wait for other hosts; None:
        for ever; 0: not at all. `sticky`: keep it when unpinned, until another host asks.

        Raises LockedByOther, LockUpgradeRefused, LeaseExpired, LeaseLost, MountClosing, DamagedBlock, DeviceError,
        DeviceGone.
        """
        if mode is LockMode.FREE:
            raise ValueError("no lock is acquired in mode FREE")
        deadline = None if wait is None else self._clock.now() + wait
        return self._acquire(address, guards, mode, deadline, sticky)

    def inherit(self, address: int, guards: Guards, dead: Holder) -> Tenure | None:
        """Pin a lock, exclusively, that a dead incarnation holds which this mount is recovering: nobody else gets it.

        Its journal has been replayed and flushed. None when another host holds the lock. Raises as `acquire`.
        """
        try:
            return self._acquire(address, guards, LockMode.EXCLUSIVE, self._clock.now(), False, heir_of=dead)
        except LockedByOther:
            return None

    def inherit_for_taker(self, address: int, guards: Guards, dead: Holder) -> bool:
        """As `inherit`, where a thread of this host is taking that lock, and waits for this very recovery perhaps.

        It finds the lock held by this host, and goes on from there. False when there is no such thread.
        """
        with self._table.cond:
            entry = self._table.entries.get(address)
            if entry is None or not entry.busy or entry.tenure is not None:
                return False
        try:
            self._sectors.take(
                address, guards, LockMode.EXCLUSIVE, sticky=False, doubt=None, yields=lambda r: False, heir_of=dead
            )
        except FateUnknown as e:
            self._releaser.note_doubt(address, e)
            raise e.cause from e
        return True

    def _acquire(
        self,
        address: int,
        guards: Guards,
        mode: LockMode,
        deadline: float | None,
        sticky: bool,
        heir_of: Holder | None = None,
    ) -> Tenure:
        entry, tenure = self._enter(address, guards, mode, deadline, sticky)
        if tenure is not None:
            return tenure
        try:
            self._releaser.give_up(entry)  # held shared and wanted exclusively: the shared hold goes first (R12)
            self._take(entry, guards, mode, deadline, sticky, heir_of)
            self._membership.check_lease()  # after completion too, before anyone relies on it (R1)
            with self._table.cond:
                entry.sticky = sticky
                entry.checked_at = self._clock.now()
                return entry.pin(threading.get_ident(), entry.checked_at)
        finally:
            with self._table.cond:
                self._table.end_busy(entry)

    def create(self, address: int, guards: Guards, block_bytes: int) -> Tenure:
        """Make a lock that no host knows of yet, held exclusively by this one, and pin it. `block_bytes`: of its block.

        Raises LeaseExpired, LeaseLost, MountClosing, DeviceError, DeviceGone.
        """
        entry, tenure = self._enter(address, guards, LockMode.EXCLUSIVE, None, False)
        if tenure is not None:
            return tenure
        try:
            made = self._sectors.create(address, guards, block_bytes)
            self._membership.check_lease()
            with self._table.cond:
                entry.raw = made.raw
                entry.tenure = Tenure(made.record, self._membership.holder)
                entry.checked_at = self._clock.now()
                return entry.pin(threading.get_ident(), entry.checked_at)
        finally:
            with self._table.cond:
                self._table.end_busy(entry)

    def _enter(
        self, address: int, guards: Guards, mode: LockMode, deadline: float | None, sticky: bool
    ) -> tuple[Entry, Tenure | None]:
        """Pin what is held, or become the one who takes the lock (`busy`)."""
        me = threading.get_ident()
        upgrading = False
        with self._table.cond:
            entry = self._table.enter(address)
            try:
                while True:
                    self._membership.check_lease()
                    self._check_open()
                    tenure = entry.tenure
                    serves = tenure is not None and tenure.mode in (mode, LockMode.EXCLUSIVE)
                    now = self._clock.now()
                    if not entry.busy and serves and entry.admits(me, now):
                        entry.sticky = entry.sticky or sticky
                        self._releaser.want_check(entry, now)
                        return entry, entry.pin(me, now)
                    if not serves and me in entry.pins:
                        raise LockUpgradeRefused(self._describe(address, guards))
                    if not entry.busy and not serves and not entry.pins:
                        entry.busy = True
                        return entry, None
                    if tenure is not None and not serves and not upgrading:
                        upgrading = True
                        entry.upgraders += 1
                    self._wait_locally(entry, guards, deadline)
            finally:
                entry.upgraders -= upgrading
                self._table.exit(entry)

    def _wait_locally(self, entry: Entry, guards: Guards, deadline: float | None) -> None:
        now = self._clock.now()
        # Short I/O and the draining of pins are waited for even by those who do not wait for other hosts.
        brief = now < entry.drain_until or (entry.busy and entry.contended_by is None)
        if deadline is not None and now >= deadline and not brief:
            holder = entry.contended_by or self._membership.identity.name
            raise LockedByOther(self._describe(entry.address, guards), holder)
        # A change of the entry notifies; draining ends by time alone.
        left = HOLD_S if deadline is None or brief else min(HOLD_S, deadline - now)
        self._table.cond.wait(max(left, 0.001))

    def _take(
        self, entry: Entry, guards: Guards, mode: LockMode, deadline: float | None, sticky: bool, heir_of: Holder | None
    ) -> None:
        """Take the lock on the volume, waiting for other hosts. `busy` is this thread's."""
        address = entry.address
        patient = deadline is None or deadline > self._clock.now()
        waiter = Waiter(
            self._sectors, self._membership, self.recoveries, self._clock, self._random, address, mode, patient
        )
        done = False
        try:
            while True:
                self._check_open()
                outcome = self._try(address, guards, mode, sticky, waiter, heir_of)
                if isinstance(outcome, Taken):
                    done = True
                    entry.raw = outcome.raw
                    entry.tenure = Tenure(outcome.record, self._membership.holder)
                    return
                # An heir is in the midst of a recovery, and must not wait for another one.
                if outcome is not None and heir_of is None and waiter.recover_dead(outcome):
                    continue
                self._wait_remotely(entry, guards, deadline, waiter, outcome)
        finally:
            waiter.close(done)

    def _wait_remotely(
        self, entry: Entry, guards: Guards, deadline: float | None, waiter: Waiter, refused: Refused | None
    ) -> None:
        left = None if deadline is None else deadline - self._clock.now()
        if left is not None and left <= 0:
            raise LockedByOther(self._describe(entry.address, guards), self._name_holder(refused))
        if entry.contended_by is None:
            name = self._name_holder(refused)
            with self._table.cond:
                entry.contended_by = name
                self._table.cond.notify_all()
        if refused is not None:
            waiter.pause(refused, left)
        else:
            self._clock.sleep(HOLD_S if left is None else min(HOLD_S, left))

    def _try(
        self, address: int, guards: Guards, mode: LockMode, sticky: bool, waiter: Waiter, heir_of: Holder | None
    ) -> Taken | Refused | None:
        """One try; None while the lock is left to the host that asked for it (R11)."""
        with self._table.cond:
            doubt = self._releaser.doubt_of(address)
            if self._releaser.is_handed_over(address):
                return None
        attempt = 1
        while True:
            try:
                outcome = self._sectors.take(
                    address, guards, mode, sticky=sticky, doubt=doubt, yields=waiter.yields, heir_of=heir_of
                )
                break
            except FateUnknown as e:
                doubt = self._releaser.note_doubt(address, e)
                if attempt == FATE_TRIES:
                    raise e.cause from e
                attempt += 1
            self._clock.sleep(FATE_PAUSE_S)
        if isinstance(outcome, Taken):
            self._releaser.end_doubt(address)
        return outcome

    def _name_holder(self, refused: Refused | None) -> str:
        if refused is None:
            return "another host, which had asked for it,"
        holders = refused.holders or ((refused.turn_of,) if refused.turn_of else ())
        return ", ".join(self._membership.name_of(h) for h in holders) or "another host"

    def _check_open(self) -> None:
        if self._table.closing:
            raise MountClosing(self._membership.volume_name)

    def acquire_many(self, requests: Sequence[LockRequest], wait: float | None = None) -> list[Tenure]:
        """Pin several locks, all or none, and return their tenures in the order of the requests.

        They are taken in the order of their addresses. For one that is held elsewhere this waits a short while with
        the others in hand, then lets go of all, waits a random moment and starts over. Raises as `acquire`.
        """
        deadline = None if wait is None else self._clock.now() + wait
        order = sorted(range(len(requests)), key=lambda i: requests[i].address)
        slice_s = MANY_SLICE_S
        while True:
            got: dict[int, Tenure] = {}
            try:
                for i in order:
                    r = requests[i]
                    left = None if deadline is None else max(0.0, deadline - self._clock.now())
                    if got:  # never for ever with others in hand
                        left = slice_s if left is None else min(left, slice_s)
                    got[i] = self.acquire(r.address, r.guards, r.mode, wait=left, sticky=r.sticky)
                return [got[i] for i in range(len(requests))]
            except LockedByOther:
                for tenure in got.values():
                    self.unpin(tenure)
                if deadline is not None and self._clock.now() >= deadline:
                    raise
                for tenure in got.values():
                    self.release(tenure.address)
            except BaseException:
                for tenure in got.values():
                    self.unpin(tenure)
                raise
            self._clock.sleep(self._random.uniform(0.0, slice_s))
            slice_s = min(MANY_SLICE_MAX_S, slice_s * 1.5)

    # -- letting go ---------------------------------------------------------------------------------------------

    def unpin(self, tenure: Tenure) -> None:
        """Take back one pin. The lock is given up by itself later. ValueError when it is not pinned."""
        with self._table.cond:
            entry = self._table.entries.get(tenure.address)
            if entry is None or entry.tenure is not tenure:
                if tenure.lost:
                    return
                raise ValueError(f"{tenure!r} is not held")
            now = self._clock.now()
            entry.unpin(threading.get_ident(), now)
            self._releaser.unpinned(entry, now)

    def release(self, address: int) -> bool:
        """Give an unpinned lock up now. False when it is pinned, or not held.

        Raises what `before_release` raised (the lock is kept then), LeaseExpired, LeaseLost, DeviceError, DeviceGone.
        """
        with self._table.cond:
            entry = self._table.enter(address)
            try:
                while entry.busy and entry.contended_by is None:
                    self._table.cond.wait(HOLD_S)
                if entry.busy or entry.tenure is None or entry.pins:
                    return False
                entry.busy = True
            finally:
                self._table.exit(entry)
        try:
            self._releaser.give_up_when_unused(entry)
        finally:
            with self._table.cond:
                self._table.end_busy(entry)
        return True

    def close(self) -> None:
        """End the thread and give up every unpinned lock; what is still pinned ends with the incarnation, at `leave`.

        Raises the first error after it has tried them all.
        """
        self.abandon()
        first: VmfsError | None = None
        for tenure in sorted(self.all_held(), key=lambda t: t.address):
            try:
                self.release(tenure.address)
            except VmfsError as e:
                first = first or e
        if first is not None and not self._membership.fenced:
            raise first

    def abandon(self) -> None:
        """End the thread and give nothing up. For a mount that must not write."""
        with self._table.cond:
            self._table.closing = True
            self._table.cond.notify_all()
        self._releaser.join()

    def lose_all(self) -> None:
        """The host was fenced: all tenures are lost, at once, without I/O. For `on_fenced`."""
        self._table.lose_all()

    # -- looking ------------------------------------------------------------------------------------------------

    def held(self, address: int) -> Tenure | None:
        """The tenure that this host has of the lock, pinned or not, `before_release` included."""
        with self._table.cond:
            entry = self._table.entries.get(address)
            return None if entry is None else entry.tenure

    def all_held(self) -> list[Tenure]:
        """Every tenure that this host has now."""
        with self._table.cond:
            return [e.tenure for e in self._table.entries.values() if e.tenure is not None]

    def peek(self, address: int) -> LockRecord:
        """The lock's record as it lies on the volume. Raises DamagedBlock, DeviceError, DeviceGone."""
        return self._sectors.read(address)[1]

    def holders(self, address: int) -> LockView:
        """Who holds the lock, with names. Changes nothing. Raises as `peek`."""
        record = self.peek(address)
        void = frozenset(h for h in record.all_holders if self._sectors.is_void(h))
        names = tuple(self._membership.name_of(h) for h in record.all_holders)
        waiter = None if record.waiter is None else self._membership.name_of(record.waiter)
        return LockView(record, names, void, waiter)

    def on_request(self, slot: int, kind: int, target: int, argument: int) -> None:
        """Another host asks. Returns at once; kinds that are not this manager's are passed over."""
        if kind == RequestKind.ASK_RELEASE:
            self._releaser.ask(target)
