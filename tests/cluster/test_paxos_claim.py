"""The first claim of a slot, by hosts that have no sector yet: never two winners, and nobody blocked by the dead."""

from __future__ import annotations

import random

import pytest

from tests.cluster.stepping import Scheduler, StepClock, StepDevice
from tests.cluster.test_paxos_register import AT, BLOCK, HOME_AT, image, value_of
from tests.cluster.world import PREFIX
from tests.crash.seeds import replay, rounds
from vmfs.cluster.paxos import PaxosRegisters
from vmfs.devices.extents import ExtentSet
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError
from vmfs.ondisk.paxosblock import NO_CLAIMANT, PaxosLayout, fresh_block, parse_block

FLIGHT = 1.0
FREE = 1
SLOT = 1
LAYOUT = PaxosLayout(512, 3, PREFIX)


class Gate:
    """One free slot, and hosts that want it. Each I/O takes 20 ms, and none waits for its turn much beyond 400 ms."""

    def __init__(self, rng: random.Random) -> None:
        self.ram = RamDevice(64 << 10)
        for at in (AT, HOME_AT):
            self.ram.write(at, fresh_block(image(FREE), LAYOUT, at, BLOCK))
        self.rng = rng
        self.scheduler = Scheduler(rng.randrange, step_seconds=0.02, starve_seconds=0.4)
        self.device = StepDevice(self.ram, self.scheduler)
        self.clock = StepClock(self.scheduler)
        self.winners: list[int] = []
        self.spread_seconds = rng.choice((0.1, 0.4, 2.0))  # between the first and the last to begin

    def registers(self) -> PaxosRegisters:
        extents = ExtentSet([self.device])  # type: ignore[list-item]
        return PaxosRegisters(extents, LAYOUT, self.clock, random.Random(self.rng.random()), FLIGHT)

    def claim(self, host: int, *, patient: bool) -> None:
        registers = self.registers()
        self.clock.sleep(self.rng.uniform(0, self.spread_seconds))
        while value_of(free := registers.look(AT)) == FREE:
            if registers.enter(SLOT, AT, free, patient=patient) and registers.swap(AT, free, image(host)):
                self.winners.append(host)
                return
            self.clock.sleep(self.rng.uniform(0, 1))

    def registers_at_rest(self) -> bytes:
        return parse_block(self.ram.read(AT, LAYOUT.used_bytes), LAYOUT, AT).top.record

    def spawn(self, host: int, *, patient: bool) -> None:
        self.scheduler.spawn(f"host {host}", lambda: self.claim(host, patient=patient))


@rounds(80)
def test_of_claimers_that_start_together_at_most_one_wins(seed: int) -> None:
    """Some die at any of their I/Os; in the end one that is patient comes through, however the others ended."""
    print(replay(seed))
    rng = random.Random(seed)
    gate = Gate(rng)
    gate.scheduler.crash = lambda name: rng.choice(("before", "after")) if rng.random() < 0.08 else None
    for host in (10, 11, 12):
        gate.spawn(host, patient=True)
    gate.scheduler.run()
    assert len(gate.winners) <= 1
    gate.scheduler.crash = lambda name: None
    gate.spawn(20, patient=True)
    gate.scheduler.run()
    # A winner that died before it heard of it is a winner all the same: its slot is for others to recover.
    final = value_of(gate.registers_at_rest())
    assert final != FREE
    assert gate.winners in ([], [final])


@rounds(40)
def test_the_last_write_of_a_former_owner_does_no_harm(seed: int) -> None:
    """It was looked at, and sent, just before the slot was free; it lands within FLIGHT, anywhere in the claim."""
    print(replay(seed))
    rng = random.Random(seed)
    gate = Gate(rng)
    former = parse_block(gate.ram.read(AT, LAYOUT.used_bytes), LAYOUT, AT).sectors[SLOT]
    stale = former.pack(LAYOUT, AT)
    lands = rng.uniform(0, FLIGHT / 2)

    def ghost() -> None:
        gate.clock.sleep(lands)
        gate.device.write(AT + SLOT * 512, stale)

    gate.scheduler.spawn("ghost", ghost)
    claimer = gate.registers()

    def run() -> None:
        while not claimer.enter(SLOT, AT, image(FREE), patient=True):
            pass
        assert claimer.swap(AT, image(FREE), image(30))
        claimer.act_while(lambda: True)
        for value in range(31, 41):
            assert claimer.swap(AT, image(value - 1), image(value))

    gate.scheduler.spawn("host", run)
    gate.scheduler.run()
    assert value_of(gate.registers_at_rest()) == 40


@rounds(10)
def test_a_claimer_that_was_stopped_too_long_writes_nothing(seed: int) -> None:
    """It had the slot's sector, and another has taken its place since: its swap must not touch it."""
    rng = random.Random(seed)
    gate = Gate(rng)
    first, second = gate.registers(), gate.registers()

    def run() -> None:
        assert first.enter(SLOT, AT, image(FREE), patient=False)
        gate.clock.sleep(FLIGHT * rng.uniform(1.1, 3))  # beyond what it may use the sector for
        assert second.enter(SLOT, AT, image(FREE), patient=True)
        before = gate.ram.read(AT, BLOCK)
        with pytest.raises(DeviceError, match="no lease"):
            first.swap(HOME_AT, image(FREE), image(2))
        assert not first.swap(AT, image(FREE), image(2))
        assert gate.ram.read(AT, BLOCK) == before
        assert second.swap(AT, image(FREE), image(3))

    gate.scheduler.spawn("both", run)
    gate.scheduler.run()
    assert value_of(gate.registers_at_rest()) == 3


@rounds(10)
def test_an_impatient_claimer_leaves_a_marked_slot_alone(seed: int) -> None:
    rng = random.Random(seed)
    gate = Gate(rng)
    steps = iter(range(100))
    gate.scheduler.crash = lambda name: "after" if next(steps) == 2 else None  # it has looked twice, and marked
    gate.spawn(10, patient=False)
    gate.scheduler.run()
    gate.scheduler.crash = lambda name: None
    assert parse_block(gate.ram.read(AT, LAYOUT.used_bytes), LAYOUT, AT).sectors[SLOT].claimant != NO_CLAIMANT
    answers: list[bool] = []
    other = gate.registers()
    gate.scheduler.spawn("other", lambda: answers.append(other.enter(SLOT, AT, image(FREE), patient=False)))
    gate.scheduler.run()
    assert answers == [False]


def test_without_a_lease_only_an_untouched_slot_is_written_to() -> None:
    """A host that comes back after its slot went to another one writes nothing, neither there nor in a lock."""
    gate = Gate(random.Random(1))
    old, new = gate.registers(), gate.registers()
    lease = [True]

    def both() -> None:
        assert old.enter(SLOT, AT, image(FREE), patient=True)
        assert old.swap(AT, image(FREE), image(2))
        old.act_while(lambda: lease[0])
        assert old.swap(AT, image(2), image(3))
        lease[0] = False
        assert old.swap(AT, image(3), image(4))  # nobody has touched it: its heartbeats go on
        assert new.enter(SLOT, AT, image(4), patient=True)
        before = gate.ram.read(AT, BLOCK)
        assert not old.swap(AT, image(4), image(5))
        assert gate.ram.read(AT, BLOCK) == before
        assert new.swap(AT, image(4), image(6))

    gate.scheduler.spawn("both", both)
    gate.scheduler.run()
    assert value_of(gate.registers_at_rest()) == 6
