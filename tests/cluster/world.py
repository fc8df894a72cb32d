"""A small volume for cluster tests: heartbeat slots and locks on a RamDevice or a file, and hosts that share it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.fenceproof import prove_for_mount
from vmfs.cluster.fencing import ReservationFence
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.locks import LockManager
from vmfs.cluster.locktable import Tenure
from vmfs.cluster.membership import Membership, MembershipCallbacks
from vmfs.cluster.paxos import PaxosRegisters
from vmfs.cluster.region import SlotRegion
from vmfs.cluster.registers import DirectRegisters, Registers
from vmfs.cluster.timers import Timers
from vmfs.devices.contract import Device
from vmfs.devices.extents import ExtentSet
from vmfs.ondisk.lock import Guards, LockRecord
from vmfs.ondisk.paxosblock import MAGIC as PAXOS_MAGIC
from vmfs.ondisk.paxosblock import PaxosLayout, fresh_block, parse_block
from vmfs.ondisk.slot import SlotRecord

PREFIX = b"azekura!"
STRIDE = 4096
SLOTS_AT = 64 << 10
LOCKS_AT = 8 << 20
COUNTER_AT = 1 << 20
SIZE = 16 << 20
TIMERS = Timers.from_lease(1_000_000)
LAYOUT = PaxosLayout(512, 8, PREFIX)
FLIGHT_S = 0.1  # of a write to memory or a local file

BOTH = pytest.mark.parametrize("paxos", [False, True], indirect=True, ids=["direct", "paxos"])
"""For a test that is to hold for both kinds of registers."""


def lock_address(number: int) -> int:
    return LOCKS_AT + number * STRIDE


def format_volume(device: Device, slots: int = 8, locks: int = 8, *, paxos: bool = False) -> None:
    """With `paxos`, locks and slots are Disk-Paxos registers of 8 hosts."""
    sector = device.logical_block_bytes

    def put(at: int, image: bytes) -> None:
        device.write(at, fresh_block(image, LAYOUT, at, STRIDE) if paxos else image.ljust(STRIDE, b"\0"))

    for i in range(slots):
        put(at := SLOTS_AT + i * STRIDE, SlotRecord(at, PREFIX, i).pack(sector))
    for i in range(locks):
        put(at := lock_address(i), LockRecord(at, PREFIX, Guards.TEST).pack(sector))
    device.flush()


def is_paxos(device: Device) -> bool:
    """As which of the two the volume was formatted."""
    return device.read(SLOTS_AT, 4096)[448:452] == PAXOS_MAGIC


def image_at(device: Device, address: int) -> bytes:
    """The image of a register at rest."""
    if is_paxos(device):
        top = parse_block(device.read(address, LAYOUT.used_bytes), LAYOUT, address).top
        return top.record.ljust(device.logical_block_bytes, b"\0")
    return device.read(address, device.logical_block_bytes)


def registers_on(device: Device, extents: ExtentSet, clock: Clock) -> Registers:
    if is_paxos(device):
        return PaxosRegisters(extents, LAYOUT, clock, random.Random(), FLIGHT_S)
    return DirectRegisters(extents)


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
        registers = registers_on(self.device, self.extents, self.clock)
        region = SlotRegion(registers, SLOTS_AT, STRIDE, self.slots, PREFIX, self.clock)
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
