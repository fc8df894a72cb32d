"""The Disk-Paxos register: what hosts are told can be put in one order, whatever the interleaving and the crashes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.linear import Op, is_linearizable
from tests.cluster.stepping import Scheduler, StepClock, StepDevice
from tests.cluster.world import PREFIX
from tests.crash.seeds import replay, rounds
from vmfs.cluster.entering import Home
from vmfs.cluster.paxos import PaxosRegisters
from vmfs.devices.extents import ExtentSet
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError
from vmfs.ondisk.lockblock import RECORD_BYTES
from vmfs.ondisk.paxosblock import PaxosLayout, Sector, fresh_block

AT, HOME_AT = 8192, 16384
BLOCK = 4096


def image(value: int) -> bytes:
    return value.to_bytes(8, "little").ljust(RECORD_BYTES, b"\x01").ljust(512, b"\0")


def value_of(raw: bytes) -> int:
    return int.from_bytes(raw[:8], "little")


class Lab:
    """Hosts 0..n-1 on one register, each a task; what they do and hear is `history`."""

    def __init__(self, hosts: int, choose: Callable[[int], int], *, split: bool = False) -> None:
        self.layout = PaxosLayout(512, hosts, PREFIX)
        self.ram = RamDevice(64 << 10)
        self.ram.write(AT, fresh_block(image(1), self.layout, AT, BLOCK))
        for slot in range(hosts):
            at = HOME_AT + slot * BLOCK
            self.ram.write(at, fresh_block(image(1), self.layout, at, BLOCK, slot))
        self.choose = choose
        self.scheduler = Scheduler(choose)
        self.device = StepDevice(self.ram, self.scheduler, split=split)
        self.history: list[Op] = []
        self.values = 1

    def registers(self, slot: int, seed: int = 0) -> PaxosRegisters:
        extents = ExtentSet([self.device])  # type: ignore[list-item]
        made = PaxosRegisters(extents, self.layout, StepClock(self.scheduler), random.Random(seed), 1.0)
        made.settle_in(Home(slot, HOME_AT + slot * BLOCK, b"c" * 16, taken=True), Sector(slot))
        made.act_while(lambda: True)
        return made

    def spawn(self, slot: int, script: Callable[[Lab, PaxosRegisters], None], seed: int = 0) -> None:
        registers = self.registers(slot, seed)
        self.scheduler.spawn(f"host {slot}", lambda: script(self, registers))

    def swap(self, registers: PaxosRegisters, old: bytes) -> bool:
        self.values += 1
        op = Op("swap", value_of(old), self.values, self.scheduler.steps)
        self.history.append(op)
        try:
            result = registers.swap(AT, old, image(op.new))
        except DeviceError:
            return False  # of unknown fate: it stays unanswered in the history
        op.result, op.ended = result, self.scheduler.steps
        return result

    def read(self, registers: PaxosRegisters) -> bytes:
        op = Op("read", 0, 0, self.scheduler.steps)
        self.history.append(op)
        raw = registers.read(AT)
        op.result, op.ended = value_of(raw), self.scheduler.steps
        return raw

    def finish(self) -> None:
        """Run to the end; then a host that comes last must still be able to change the register."""
        self.scheduler.run()
        self.scheduler.crash = lambda name: None

        def last(lab: Lab, registers: PaxosRegisters) -> None:
            assert lab.swap(registers, lab.read(registers))

        self.spawn(0, last)
        self.scheduler.run()
        assert is_linearizable(self.history, 1), self.history


def one_swap(lab: Lab, registers: PaxosRegisters) -> None:
    lab.swap(registers, registers.look(AT))


def busy(lab: Lab, registers: PaxosRegisters) -> None:
    for _ in range(3):
        kind = lab.choose(4)
        if kind == 0:
            lab.read(registers)
        else:
            lab.swap(registers, registers.look(AT) if kind < 3 else lab.read(registers))


class Script:
    """A chooser that plays a list of choices, then zeros, and notes how many there were to choose from."""

    def __init__(self, choices: list[int]) -> None:
        self.choices = choices
        self.widths: list[int] = []

    def __call__(self, width: int) -> int:
        at = len(self.widths)
        self.widths.append(width)
        return self.choices[at] if at < len(self.choices) else 0


def every_run(run: Callable[[Script], None], depth: int) -> Iterator[list[int]]:
    """Every sequence of the first `depth` choices, by running each."""
    choices: list[int] = []
    while True:
        script = Script(choices)
        run(script)
        yield choices
        taken = [*choices, *[0] * len(script.widths)][: min(depth, len(script.widths))]
        while taken and taken[-1] + 1 >= script.widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        taken[-1] += 1
        choices = taken


@pytest.mark.parametrize("crashes", [False, True])
def test_two_hosts_in_every_interleaving(crashes: bool) -> None:
    """Each looks and swaps: all orders of their I/Os, and with one host dying at any of its I/Os, done or not done."""
    runs = 0

    def run(script: Script) -> None:
        at, how = (script(7), ("before", "after")[script(2)]) if crashes else (99, "")
        lab = Lab(2, script)
        steps = iter(range(100))
        lab.scheduler.crash = lambda name: how if name == "host 0" and next(steps) == at else None
        for slot in (0, 1):
            lab.spawn(slot, one_swap)
        lab.finish()

    for _ in every_run(run, depth=12):
        runs += 1
    assert runs > 500


@rounds(150)
def test_three_hosts_that_read_swap_and_die(seed: int) -> None:
    """Sectors of one read are seen at different times; a host that dies comes back in its slot."""
    print(replay(seed))
    rng = random.Random(seed)
    lab = Lab(3, rng.randrange, split=True)
    lab.scheduler.crash = lambda name: rng.choice(("before", "after")) if rng.random() < 0.02 else None

    def life(slot: int) -> Callable[[Lab, PaxosRegisters], None]:
        def live(lab: Lab, registers: PaxosRegisters) -> None:
            try:
                busy(lab, registers)
            except BaseException:
                if lab.scheduler.steps < 400:
                    lab.spawn(slot, live, seed + lab.scheduler.steps)
                raise

        return live

    for slot in range(3):
        lab.spawn(slot, life(slot), seed + slot)
    lab.finish()
