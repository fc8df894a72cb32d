"""A small volume for cluster tests: heartbeat slots and locks on a RamDevice or a file, and hosts that share it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.fenceproof import prove_for_mount
from vmfs.cluster.fencing import ReservationFence
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.locks import LockManager
from vmfs.cluster.locktable import Tenure
from vmfs.cluster.membership import Membership, MembershipCallbacks
from vmfs.cluster.region import SlotRegion
from vmfs.cluster.registers import DirectRegisters
from vmfs.cluster.timers import Timers
from vmfs.devices.contract import Device
from vmfs.devices.extents import ExtentSet
from vmfs.ondisk.lock import Guards, LockRecord
from vmfs.ondisk.slot import SlotRecord

PREFIX = b"azekura!"
STRIDE = 4096
SLOTS_AT = 64 << 10
LOCKS_AT = 8 << 20
COUNTER_AT = 1 << 20
SIZE = 16 << 20
TIMERS = Timers.from_lease(1_000_000)


def lock_address(number: int) -> int:
    return LOCKS_AT + number * STRIDE


def format_volume(device: Device, slots: int = 8, locks: int = 8) -> None:
    sector = device.logical_block_bytes
    for i in range(slots):
        at = SLOTS_AT + i * STRIDE
        device.write(at, SlotRecord(at, PREFIX, i).pack(sector).ljust(STRIDE, b"\0"))
    for i in range(locks):
        at = lock_address(i)
        device.write(at, LockRecord(at, PREFIX, Guards.TEST).pack(sector).ljust(STRIDE, b"\0"))
    device.flush()


@dataclass
class Host:
    """One mount: membership and lock manager. `machine` makes it count as a machine of its own."""

    device: Device
    name: str
    slots: int = 8
    timers: Timers = TIMERS
    machine: bool = True
    clock: Clock = field(default_factory=SystemClock)
    before_release: Callable[[Tenure], None] = lambda tenure: None
    recovered: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seed: int = 1
    boot_id: uuid.UUID | None = None
    fenced: bool = False
    others: tuple[Device, ...] = ()
    """Further extents, which hold nothing."""

    def __post_init__(self) -> None:
        self.locks: LockManager = None  # type: ignore[assignment]  # there is one from `join` on
        self.extents = ExtentSet([self.device, *self.others])
        self.fence = ReservationFence(self.extents, "ds1", self.clock, proof=prove_for_mount("ds1"))
        region = SlotRegion(DirectRegisters(self.extents), SLOTS_AT, STRIDE, self.slots, PREFIX, self.clock)
        boot = self.boot_id or (uuid.uuid4() if self.machine else None)
        callbacks = MembershipCallbacks(
            on_request=self._on_request,
            on_fenced=self._on_fenced,
            on_lease_expired=lambda: self.events.append("expired"),
            on_lease_resumed=lambda: self.events.append("resumed"),
        )
        self.membership = Membership(
            region, HostIdentity.detect(self.name, boot), self.timers, self.clock,
            volume_name="ds1", callbacks=callbacks, rng=random.Random(self.seed),
            fence=self.fence if self.fenced else None,
        )  # fmt: skip

    def _on_request(self, slot: int, kind: int, target: int, argument: int) -> None:
        self.locks.on_request(slot, kind, target, argument)

    def _on_fenced(self) -> None:
        self.events.append("fenced")
        self.locks.lose_all()

    def join(self, *, start: bool = True) -> Host:
        self.membership.claim()
        self.locks = LockManager(
            self.membership, self.clock, recover=self.recover,
            before_release=self.before_release, rng=random.Random(self.seed),
        )  # fmt: skip
        if start:
            self.membership.start()
        return self

    def recover(self, slot: int) -> None:
        self.membership.begin_recovery(slot)
        self.recovered.append(slot)
        self.membership.finish_recovery(slot)

    def leave(self) -> None:
        self.locks.close()
        self.membership.leave()

    def crash(self) -> None:
        """Stop as a dead host would: no heartbeat, nothing given up."""
        self.membership.abandon()
        if self.locks is not None:
            self.locks.abandon()
