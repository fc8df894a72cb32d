"""Handing an exclusive lock over from one live incarnation to another, with nobody between them.

All of it goes through the lock's own sector, by compare-and-write of its record (`vmfs.ondisk.lock`):

1. The owner *offers*: the record names the destination. It may use the lock as before.
2. The destination *accepts*, if it waits for this lock. That promises nothing but that it will see the next step.
3. The owner stops using the lock, and has `before_release` put all that it covers on the volume and flush it (R5).
4. One compare-and-write by the owner, against the record with the acceptance in it, makes the destination the owner, at
   the next version. So the lock is free at no moment, and there is never more than one owner.
5. The destination sees itself as owner. It starts from what is on the volume.

Before step 4 either side may change its mind by a compare-and-write that takes the offer out: then step 4 meets another
image, and nothing has happened. Whoever dies before it leaves the lock with the owner, dead or alive; after it, with
the destination. As everywhere, an owner that does not know whether its compare-and-write was done uses the lock no more
until it knows (R10). The destination polls; it needs no message.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.lockio import FateUnknown, LockSectors
from vmfs.cluster.lockrelease import Releaser
from vmfs.cluster.locktable import Entry, LockTable, Tenure
from vmfs.cluster.membership import Membership
from vmfs.errors import HandOverFailed, LeaseExpired, LeaseLost, MountClosing, VmfsError
from vmfs.ondisk.lock import Guards, HandOver, Holder, LockRecord

POLL_S: Final = 0.1  # of a lock that is waited for, before it is offered: a migration takes minutes until then
OFFERED_POLL_S: Final = 0.004  # once it is offered: nobody can write meanwhile
RETRY_S: Final = 0.02  # after a storage error, or without a lease
_log = logging.getLogger(__name__)

_TROUBLE: Final = (*STORAGE_ERRORS, LeaseExpired)


class HandOvers:
    """Both sides of hand-overs, for one lock manager. Has no state of its own; usable from any thread.

    An entry's `busy` is held from `seize` to `end`, and all through `receive`: other threads of this host wait.
    """

    def __init__(
        self,
        table: LockTable,
        sectors: LockSectors,
        releaser: Releaser,
        membership: Membership,
        clock: Clock,
        before_release: Callable[[Tenure], None],
        describe: Callable[[int, Guards], str],
    ) -> None:
        """`before_release`, `describe`: as LockManager's."""
        self._table = table
        self._sectors = sectors
        self._releaser = releaser
        self._membership = membership
        self._clock = clock
        self._before_release = before_release
        self._describe = describe

    # -- the owner ----------------------------------------------------------------------------------------------

    def offer(self, tenure: Tenure, to: Holder, until: float) -> None:
        """Offer a lock that the caller pins, and wait for the acceptance until `until` (Clock.now() seconds).

        Raises HandOverFailed, LeaseExpired, LeaseLost, DeviceError, DeviceGone; call `withdraw` then.
        """
        name = self._membership.name_of(to)
        while True:
            raw, record = self._own(tenure)
            if self._sectors.is_void(to):
                raise self._failed(tenure, f"host {name} is gone")
            if record.destination == to and record.hand_over is HandOver.ACCEPTED:
                return
            if record.destination not in (None, to) and not self._sectors.is_void(record.destination):
                other = self._membership.name_of(record.destination)
                raise self._failed(tenure, f"it is being handed over to host {other} already")
            if record.destination != to:
                self._sectors.replace(raw, record.offered(to))
                continue
            if self._clock.now() >= until:
                raise self._failed(
                    tenure, f"host {name} has not accepted it; have it do so (`vmfsctl locks accept`), and open the "
                    "file there for writing"
                )  # fmt: skip
            self._clock.sleep(OFFERED_POLL_S)

    def withdraw(self, tenure: Tenure, to: Holder) -> None:
        """Take an offer out of a lock that this host still owns. Raises as `offer`, HandOverFailed apart."""
        while True:
            raw, record = self._own(tenure)
            if record.destination != to or self._sectors.replace(raw, record.offered(None)):
                return

    def _own(self, tenure: Tenure) -> tuple[bytes, LockRecord]:
        raw, record = self._sectors.read(tenure.address, tenure.guards, as_base=True)
        if tenure.lost or not _is_held(record, tenure):
            raise LeaseLost(self._membership.volume_name, f"{self._describe_of(tenure)} is another host's")
        return raw, record

    def try_seize(self, tenure: Tenure, pins: int) -> bool:
        """Have the lock to oneself if nobody but the caller's `pins` pins it: no thread pins it until `end`."""
        with self._table.cond:
            entry = self._table.entries.get(tenure.address)
            if entry is None or entry.tenure is not tenure or entry.busy or entry.pins.total() != pins:
                return False
            entry.busy = True
            return True

    def complete(self, tenure: Tenure, to: Holder) -> bool:
        """Steps 3 and 4 for a lock that was seized: True: it is `to`'s; False: `to` has changed its mind.

        It waits for storage that does not answer, until it knows. `tenure.lost` says afterwards, also when it raises,
        whether the tenure is over. Raises what `before_release` raises, LeaseLost, MountClosing, DamagedBlock.
        """
        self._before_release(tenure)
        sent: LockRecord | None = None
        while True:
            try:
                self._check_open()
                raw, record = self._sectors.read(tenure.address, tenure.guards)
                if not _is_held(record, tenure):
                    tenure.lost = True
                    if sent is None:
                        raise LeaseLost(self._membership.volume_name, f"{self._describe_of(tenure)} was taken from it")
                    return True
                if record.destination != to or record.hand_over is not HandOver.ACCEPTED:
                    return False  # what was sent before, if anything, finds this image instead of its own base
                self._membership.check_lease()
                sent = record.taken(to, record.mode, version=tenure.version + 1, flags=record.flags)
                if self._sectors.replace(raw, sent):
                    tenure.lost = True
                    return True
            except _TROUBLE as error:
                _log.debug("%s: %r is not handed over yet: %s", self._membership.volume_name, tenure, error)
                self._clock.sleep(RETRY_S)
            except VmfsError as error:
                tenure.lost = tenure.lost or sent is not None or self._membership.fenced
                if sent is not None:
                    self._releaser.note_doubt(tenure.address, FateUnknown(error, sent.version, sent.stamp))
                raise

    def end(self, tenure: Tenure) -> None:
        """The counterpart of `try_seize`: a tenure that was handed over is gone, with all its pins."""
        with self._table.cond:
            entry = self._table.entries[tenure.address]
            if tenure.lost:
                entry.tenure = None
            self._table.end_busy(entry)

    # -- the destination ----------------------------------------------------------------------------------------

    def receive(
        self, address: int, guards: Guards, until: float, ready: Callable[[], bool], cancelled: Callable[[], bool]
    ) -> Tenure:
        """Wait until the lock's owner hands it over to this host, and pin it.

        An offer is accepted while `ready()`. Returns at once what this host holds already. Raises HandOverFailed when
        the owner gives it up in another way, dies, or `until` has come; LeaseLost, MountClosing, DamagedBlock,
        DeviceError, DeviceGone. The lock is not this host's then.
        """
        entry, tenure = self._seat(address, until)
        if tenure is not None:
            return tenure
        accepted: LockRecord | None = None
        done = False
        try:
            former: tuple[Holder | None, int] | None = None
            while True:
                try:
                    raw, record = self._sectors.read(address, guards)
                    if record.owner == self._membership.holder:
                        self._membership.check_lease()
                        done = True
                        return self._pin(entry, raw, record)
                    former = former or (record.owner, record.version)
                    over = self._why_not(record, former, until, cancelled)
                    mine = record.destination == self._membership.holder
                    if over is not None and not mine:
                        raise HandOverFailed(self._describe(address, guards), over)
                    if over is not None:
                        self._sectors.replace(raw, record.offered(None))
                        continue
                    if mine and record.hand_over is HandOver.OFFERED and ready():
                        accepted = record.offered(record.destination, HandOver.ACCEPTED)
                        self._sectors.replace(raw, accepted)
                        continue
                except _TROUBLE:
                    if self._clock.now() >= until or self._table.closing:
                        raise
                    mine = False
                self._check_open()
                self._clock.sleep(OFFERED_POLL_S if mine else POLL_S)
        finally:
            if accepted is not None and not done:
                self._disown(address, accepted)
            with self._table.cond:
                self._table.end_busy(entry)

    def _why_not(
        self, record: LockRecord, former: tuple[Holder | None, int], until: float, cancelled: Callable[[], bool]
    ) -> str | None:
        """Why nothing comes of it any more; None: it may."""
        if record.owner is None or (record.owner, record.version) != former:
            return "the host that held it has given it up instead; close the file and open it again"
        if self._sectors.is_void(record.owner):
            return "the host that held it has died; close the file and open it again"
        if cancelled():
            return "the acceptance was taken back"
        if self._clock.now() >= until:
            return f"host {self._membership.name_of(record.owner)} has not handed it over in time"
        return None

    def _seat(self, address: int, until: float) -> tuple[Entry, Tenure | None]:
        """Become the one who takes the lock, or pin it when it is held already."""
        with self._table.cond:
            entry = self._table.enter(address)
            try:
                while entry.busy or self._releaser.doubt_of(address) is not None:
                    self._check_open()
                    if self._clock.now() >= until:
                        raise HandOverFailed(f"the lock at {address:#x}", "this host is busy with it")
                    self._table.cond.wait(POLL_S)
                if entry.tenure is not None:
                    return entry, entry.pin(threading.get_ident(), self._clock.now())
                entry.busy = True
                entry.contended_by = "another host, which is to hand it over,"
                return entry, None
            finally:
                self._table.exit(entry)

    def _pin(self, entry: Entry, raw: bytes, record: LockRecord) -> Tenure:
        with self._table.cond:
            entry.raw = raw
            entry.tenure = Tenure(record, self._membership.holder)
            entry.sticky = False
            entry.checked_at = self._clock.now()
            return entry.pin(threading.get_ident(), entry.checked_at)

    def _disown(self, address: int, accepted: LockRecord) -> None:
        """An acceptance that may be on the volume still, or have been followed by the hand-over (R10)."""
        # The owner's compare-and-write goes to the version and stamp behind those of the acceptance.
        unknown = FateUnknown(VmfsError("accepted"), accepted.version + 1, accepted.stamp + 1)
        self._releaser.note_doubt(address, unknown)

    def _check_open(self) -> None:
        if self._table.closing:
            raise MountClosing(self._membership.volume_name)
        if self._membership.fenced:
            raise LeaseLost(self._membership.volume_name, "another host has taken it for dead")

    def _describe_of(self, tenure: Tenure) -> str:
        return self._describe(tenure.address, tenure.guards)

    def _failed(self, tenure: Tenure, reason: str) -> HandOverFailed:
        return HandOverFailed(self._describe_of(tenure), reason)


def _is_held(record: LockRecord, tenure: Tenure) -> bool:
    return record.owner == Holder(tenure.slot, tenure.incarnation) and record.version == tenure.version
