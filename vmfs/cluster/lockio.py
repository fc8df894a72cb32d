"""Lock sectors on the volume: read, taken, given back, marked (rules R7 and R10).

Nothing here knows of threads or of what this host holds; the lock manager does. Every submission is preceded by a look
at the lease (R1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.membership import Membership
from vmfs.errors import DamagedBlock, VmfsError
from vmfs.ondisk.lock import (
    FLAG_KEPT_UNTIL_ASKED,
    MAX_HOLDERS,
    Guards,
    Holder,
    LockMode,
    LockRecord,
    parse_lock,
)

REREADS: Final = 4  # of a sector that does not parse: a torn read is whole a moment later
REREAD_PAUSE_S: Final = 0.005
RETRIES: Final = 4  # of a compare-and-write whose answer was lost, before the caller is told
RETRY_PAUSE_S: Final = 0.02
_RACES: Final = 16  # lost in a row to other hosts, before the caller is told that the lock is contended


class FateUnknown(VmfsError):
    """This host does not know whether it holds a lock (R10): `version` and `stamp` are those of the image it sent."""

    def __init__(self, cause: VmfsError, version: int, stamp: int) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.version = version
        self.stamp = stamp


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is known of a lost answer: the highest version that an image of unknown fate carried, and its stamp."""

    version: int
    stamp: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The lock is this host's: the record and the sector that say so."""

    record: LockRecord
    raw: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Others hold it (`holders`, none of them void), or it is free and another waiter's turn (`turn_of`)."""

    record: LockRecord
    raw: bytes
    holders: tuple[Holder, ...]
    turn_of: Holder | None = None


class LockSectors:
    """Operations on lock sectors for one mount. Has no state; usable from any thread."""

    def __init__(self, membership: Membership, clock: Clock) -> None:
        self._registers = membership.region.registers
        self._membership = membership
        self._clock = clock
        self._prefix = membership.region.volume_prefix

    def read(
        self, address: int, guards: Guards | None = None, *, as_base: bool = False
    ) -> tuple[bytes, LockRecord]:
        """The image and its record. Raises DamagedBlock when it stays unreadable, DeviceError, DeviceGone.

        `as_base`: what a swap that follows is to compare with, or a hint; never to conclude from (`Registers.look`).
        """
        read = self._registers.look if as_base else self._registers.read
        for attempt in range(REREADS):
            raw = read(address)
            try:
                record = parse_lock(raw, address, self._prefix)
                break
            except DamagedBlock:
                if attempt == REREADS - 1 or not any(raw):
                    raise
            self._clock.sleep(REREAD_PAUSE_S)
        named = (*record.all_holders, record.waiter, record.destination)
        if any(h is not None and h.slot >= self._membership.region.count for h in named):
            raise DamagedBlock(address, "lock: it names a heartbeat slot that the volume does not have")
        if guards is not None and record.guards is not guards:
            raise DamagedBlock(address, f"this lock guards {record.guards.name}, not {guards.name}")
        return raw, record

    def is_void(self, holder: Holder) -> bool:
        """R7: whether the slot, read afresh, carries a greater incarnation. A damaged slot voids nothing."""
        record = self._membership.read_slot(holder.slot).record
        return record is not None and record.incarnation > holder.incarnation

    def take(
        self,
        address: int,
        guards: Guards,
        mode: LockMode,
        *,
        sticky: bool,
        doubt: Doubt | None,
        yields: Callable[[LockRecord], bool],
        heir_of: Holder | None = None,
    ) -> Taken | Refused:
        """Try to take the lock, without waiting for its holders.

        `yields` says whether to leave a lock to the waiter that is marked in it. A hold of `heir_of`, an incarnation
        that this mount is recovering, passes to this host. Raises FateUnknown, and as `read`.
        """
        me = self._membership.holder
        for _ in range(_RACES):
            self._membership.check_lease()
            raw, record = self.read(address, guards, as_base=True)
            others = tuple(h for h in record.all_holders if h not in (me, heir_of) and not self.is_void(h))
            shares = bool(others) and mode is record.mode and mode is not LockMode.EXCLUSIVE
            if others and not (shares and len(others) < MAX_HOLDERS):
                return Refused(record, raw, others)
            waiter = record.waiter
            marked = waiter is not None and waiter != me and not self.is_void(waiter)
            conflicts = not shares or record.waiter_intent is not mode
            if marked and conflicts and yields(record):
                return Refused(record, raw, others, turn_of=waiter)
            version = max(record.version, doubt.version if doubt else 0) + 1
            flags = FLAG_KEPT_UNTIL_ASKED if sticky and mode is LockMode.EXCLUSIVE else 0
            new = record.taken(me, mode, version=version, beside=others, flags=flags)
            image = self._swap(raw, new)
            if image is not None:
                return Taken(new, image)
        return Refused(record, raw, others)

    def create(self, address: int, guards: Guards, block_bytes: int) -> Taken:
        """Write a lock block that nobody can know of yet, with the lock in it held by this host: no compare is needed.

        Raises LeaseExpired, LeaseLost, DeviceError, DeviceGone; what is there then is to be created again.
        """
        self._membership.check_lease()
        free = LockRecord(address, self._prefix, guards)
        record = free.taken(self._membership.holder, LockMode.EXCLUSIVE, version=free.version + 1)
        raw = record.pack(self._registers.image_bytes(address))
        self._registers.create(address, raw, block_bytes)
        return Taken(record, raw)

    def give_back(self, raw: bytes, me: Holder, version: int | None, value: bytes | None) -> bool:
        """Take `me` out of the lock that was last seen as `raw`; False when it is not among its holders any more.

        `version`: the tenure's, for an exclusive one. An answer that is lost makes the next try go to a new version
        (R10); FateUnknown when none of them is answered.
        """
        record = parse_lock(raw, int.from_bytes(raw[8:16], "little"), self._prefix)
        doubt: Doubt | None = None
        for attempt in range(RETRIES + _RACES):
            if me not in record.all_holders or (doubt is None and version not in (None, record.version)):
                return doubt is not None and self._settled(record, doubt)
            next_version = record.version if doubt is None else max(record.version, doubt.version) + 1
            new = record.without(me, version=next_version, value=value)
            try:
                if self._swap(raw, new) is not None:
                    return True
                raw, record = self.read(record.address)
            except (*STORAGE_ERRORS, FateUnknown) as e:
                doubt = _grown(doubt, new)
                if attempt >= RETRIES:
                    cause = e.cause if isinstance(e, FateUnknown) else e
                    raise FateUnknown(cause, doubt.version, doubt.stamp) from e
                self._clock.sleep(RETRY_PAUSE_S)
                raw, record = self._reread(raw, record)
            except VmfsError as e:  # the lease ran out, say
                if doubt is None:
                    raise
                raise FateUnknown(e, doubt.version, doubt.stamp) from e
        raise FateUnknown(DamagedBlock(record.address, "the lock keeps changing"), record.version, record.stamp)

    def resolve(self, address: int, doubt: Doubt) -> None:
        """End a doubt about a lock that this host wants no more: bring it to a new version without this host (R10).

        Raises FateUnknown when the answer is lost again, and as `read`.
        """
        me = self._membership.holder
        for _ in range(_RACES):
            raw, record = self.read(address)
            named = me in record.all_holders or record.destination == me
            if not named and record.stamp >= doubt.stamp:
                return  # what the image of unknown fate compares with is gone: it can never land
            gone = [me, *(h for h in record.all_holders if self.is_void(h))]
            kept = record.owner is not None and record.owner not in gone  # an exclusive version stays while it is held
            version = record.version if kept else max(record.version, doubt.version) + 1
            if self._swap(raw, record.without(*gone, version=version)) is not None:
                return

    def mark(self, seen: Refused, intent: LockMode) -> bool:
        """Put this host's waiter mark into the lock, unless a living host's is there. True when it is there now.

        A lost answer does no harm: a mark is a hint. Raises DeviceError, DeviceGone.
        """
        me, record = self._membership.holder, seen.record
        if record.waiter == me and record.waiter_intent is intent:
            return True
        if record.waiter is not None and record.waiter != me and not self.is_void(record.waiter):
            return False
        return self.replace(seen.raw, record.marked(me, intent))

    def unmark(self, address: int) -> None:
        """Take this host's waiter mark out. Raises DeviceError, DeviceGone, and as `read`."""
        raw, record = self.read(address, as_base=True)
        if record.waiter == self._membership.holder:
            self.replace(raw, record.marked(None, LockMode.FREE))

    def wanted_by_other(self, address: int, mode: LockMode) -> bool:
        """Whether a living host waits for a lock that this host holds in `mode`."""
        _, record = self.read(address, as_base=True)
        if record.waiter is None or record.waiter == self._membership.holder:
            return False
        compatible = mode is not LockMode.EXCLUSIVE and record.waiter_intent is mode
        return not compatible and not self.is_void(record.waiter)

    def replace(self, raw: bytes, new: LockRecord) -> bool:
        """Put `new` in the place of `raw`: True; False when something else is there.

        For images that change no holder, or whose fate the caller finds out. Raises LeaseExpired, LeaseLost,
        DeviceError, DeviceGone.
        """
        self._membership.check_lease()
        return self._registers.swap(new.address, raw, new.pack(len(raw)))

    def _settled(self, record: LockRecord, doubt: Doubt) -> bool:
        """Whether a give-back whose answer was lost is over: its image, or a later one, is there."""
        return record.stamp >= doubt.stamp

    def _reread(self, raw: bytes, record: LockRecord) -> tuple[bytes, LockRecord]:
        try:
            return self.read(record.address)
        except STORAGE_ERRORS:
            return raw, record

    def _swap(self, old: bytes, new: LockRecord) -> bytes | None:
        """The new sector when it was put in the old one's place, None on a miscompare. Raises FateUnknown."""
        self._membership.check_lease()
        image = new.pack(len(old))
        try:
            return image if self._registers.swap(new.address, old, image) else None
        except STORAGE_ERRORS as e:
            raise FateUnknown(e, new.version, new.stamp) from e


def _grown(doubt: Doubt | None, sent: LockRecord) -> Doubt:
    if doubt is None:
        return Doubt(sent.version, sent.stamp)
    return replace(doubt, version=max(doubt.version, sent.version), stamp=max(doubt.stamp, sent.stamp))
