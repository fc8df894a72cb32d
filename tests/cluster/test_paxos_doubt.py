"""Writes of unknown fate: a host leaves its sector alone until the earlier write has landed, or can land no more."""

from __future__ import annotations

import random

import pytest

from tests.cluster.test_paxos_register import AT, BLOCK, HOME_AT, image, value_of
from tests.cluster.world import PREFIX
from tests.crash.seeds import replay, rounds
from vmfs.clock import FakeClock
from vmfs.cluster.entering import Home
from vmfs.cluster.paxos import PaxosRegisters
from vmfs.devices.extents import ExtentSet
from vmfs.devices.ram import RamDevice
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk.paxosblock import PaxosLayout, fresh_block, parse_block

FLIGHT = 2.0
LAYOUT = PaxosLayout(512, 2, PREFIX)


class LateDevice:
    """Writes may raise, and land `delay` seconds later or never. What has landed shows in order of landing."""

    def __init__(self, inner: RamDevice, clock: FakeClock, rng: random.Random, fail_rate: float) -> None:
        self.inner = inner
        self.clock = clock
        self.rng = rng
        self.fail_rate = fail_rate
        self.late_rate = 0.7  # of those that fail; the others are never done
        self.late: list[tuple[float, int, bytes]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def _land(self) -> None:
        for one in sorted(o for o in self.late if o[0] <= self.clock.now()):
            self.late.remove(one)
            self.inner.write(one[1], one[2])

    def read(self, offset: int, length: int) -> bytes:
        self.clock.advance(0.001)
        self._land()
        return self.inner.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self.clock.advance(0.001)
        self._land()
        if self.rng.random() < self.fail_rate:
            if self.rng.random() < self.late_rate:
                self.late.append((self.clock.now() + self.rng.uniform(0, 0.99 * FLIGHT), offset, bytes(data)))
            raise DeviceError("late", "write", offset, len(data), "ordered")
        self.inner.write(offset, data)


def registers(device: object, clock: FakeClock, rng: random.Random, slot: int) -> PaxosRegisters:
    made = PaxosRegisters(ExtentSet([device]), LAYOUT, clock, rng, FLIGHT)  # type: ignore[list-item]
    home = HOME_AT + slot * BLOCK
    sector = parse_block(device.read(home, LAYOUT.used_bytes), LAYOUT, home).sectors[slot]  # type: ignore[attr-defined]
    made.settle_in(Home(slot, home, bytes(16), taken=True), sector)
    made.act_while(lambda: True)
    return made


@pytest.fixture
def ram() -> RamDevice:
    made = RamDevice(64 << 10)
    made.write(AT, fresh_block(image(1), LAYOUT, AT, BLOCK))
    for slot in (0, 1):
        at = HOME_AT + slot * BLOCK
        made.write(at, fresh_block(image(1), LAYOUT, at, BLOCK, slot))
    return made


@rounds(40)
def test_what_was_acknowledged_stays_though_writes_land_late(seed: int, ram: RamDevice) -> None:
    """Two hosts take turns; every swap that was told to be done is a parent of all that come after it."""
    print(replay(seed))
    rng = random.Random(seed)
    clock = FakeClock(sleep_advances=True)
    devices = [LateDevice(ram, clock, rng, 0.2) for _ in range(2)]
    hosts = [registers(device, clock, rng, slot) for slot, device in enumerate(devices)]
    parents: dict[int, int] = {1: 0}
    acknowledged = [1]
    for value in range(2, 60):
        host = rng.choice(hosts)
        try:
            old = host.look(AT)
            parents[value] = value_of(old)
            if host.swap(AT, old, image(value)):
                acknowledged.append(value)
        except DeviceError:
            clock.sleep(rng.uniform(0, 3))
    for device in devices:
        device.fail_rate = 0.0
    clock.sleep(FLIGHT)
    line = set()
    value = value_of(hosts[0].read(AT))
    while value:
        line.add(value)
        value = parents[value]
    assert set(acknowledged) <= line
    assert len(acknowledged) > 10


def test_a_swap_waits_until_the_earlier_write_can_land_no_more(ram: RamDevice) -> None:
    clock = FakeClock(sleep_advances=True)
    rng = random.Random(1)
    device = LateDevice(ram, clock, rng, 1.0)
    host = registers(device, clock, rng, 0)
    with pytest.raises(DeviceError):
        host.swap(AT, image(1), image(2))
    device.late.clear()  # it never landed, and nobody can know that
    device.fail_rate = 0.0
    began = clock.now()
    assert host.swap(AT, image(1), image(3))
    assert clock.now() - began >= 0.9 * FLIGHT


def test_a_swap_goes_on_at_once_when_the_earlier_write_shows(ram: RamDevice) -> None:
    clock = FakeClock(sleep_advances=True)
    rng = random.Random(1)
    device = LateDevice(ram, clock, rng, 1.0)
    device.late_rate = 1.0
    host = registers(device, clock, rng, 0)
    with pytest.raises(DeviceError):
        host.swap(AT, image(1), image(2))
    [(_, offset, data)] = device.late
    device.late.clear()
    ram.write(offset, data)
    device.fail_rate = 0.0
    began = clock.now()
    assert host.swap(AT, image(1), image(3))
    assert clock.now() - began < 0.5 * FLIGHT


def test_a_sector_that_is_damaged_is_an_error_and_is_not_written_over(ram: RamDevice) -> None:
    """What the lost sector said may be what counts."""
    clock = FakeClock(sleep_advances=True)
    host = registers(ram, clock, random.Random(1), 0)
    for damage in (AT + 10, AT + 512 + 460):
        before = ram.read(AT, BLOCK)
        spoilt = bytearray(before)
        spoilt[damage - AT] ^= 1
        ram.write(AT, bytes(spoilt))
        for attempt in (lambda: host.look(AT), lambda: host.read(AT), lambda: host.swap(AT, image(1), image(2))):
            with pytest.raises(DamagedBlock, match="checksum"):
                attempt()
        assert ram.read(AT, BLOCK) == bytes(spoilt)
        ram.write(AT, before)
    assert host.swap(AT, image(1), image(2))
