"""Hand-overs step by step: a crash of either host at every I/O, lost answers, changes of mind, and a third host that
tries to take the lock all the time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.cluster.stepping import Scheduler, StepDevice
from tests.cluster.world import COUNTER_AT, PREFIX, SIZE, Host, format_volume, image_at, lock_address
from tests.crash.seeds import replay, rounds
from vmfs.cluster.handover import HandOvers
from vmfs.cluster.lockio import FateUnknown, LockSectors, Taken
from vmfs.cluster.lockrelease import Releaser
from vmfs.cluster.locktable import LockTable, Tenure
from vmfs.cluster.timers import Timers
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, HandOverFailed
from vmfs.ondisk.lock import Guards, HandOver, Holder, LockMode, LockRecord, parse_lock

AT, META_AT = lock_address(0), COUNTER_AT + 4096
TIMERS = Timers.from_lease(600_000_000)  # no run comes near its end, so nobody has to beat
RECOVERY_SECONDS = 0.05
WAITS = (0.02, 0.3)


class LabClock:
    """The scheduler's time; before the scheduler runs, sleeping moves it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def now(self) -> float:
        return self._lab.scheduler.time

    def wall_ns(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        if self._lab.live:
            self._lab.scheduler.sleep(seconds)
        else:
            self._lab.scheduler.time += seconds


class LabDevice(StepDevice):
    """Steps, compare-and-writes too, once the scheduler runs; some are done without an answer."""

    def __init__(self, lab: Lab, name: str) -> None:
        super().__init__(lab.ram, lab.scheduler)
        self._lab = lab
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        return super().read(offset, length) if self._lab.live else self.inner.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        if not self._lab.live:
            self.inner.write(offset, data)
            return

        def land() -> None:
            if offset in (COUNTER_AT, META_AT):
                self._lab.check_writer(self._name)
            self.inner.write(offset, data)

        self._scheduler.io(land)

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        if not self._lab.live:
            return self.inner.compare_and_write(offset, old, new)
        fault = self._lab.faults.random() < self._lab.fault_rate

        def swap() -> bool:
            done = self.inner.compare_and_write(offset, old, new)
            self._lab.check_lock()
            return done

        if fault and self._lab.faults.random() < 0.5:
            self._scheduler.io(lambda: None)
        else:
            done = self._scheduler.io(swap)
        if fault:
            raise DeviceError("ram", "compare_and_write", offset, len(new), "its answer was lost")
        return bool(done)


@dataclass
class Party:
    """One host: the protocol's two sides, and a program that writes while it may."""

    lab: Lab
    name: str
    host: Host = field(init=False)
    table: LockTable = field(default_factory=LockTable)
    tenure: Tenure | None = None
    may_write: bool = False
    writing: bool = False
    outcome: str = "not yet"
    count: int = 0
    """How often it has written: what `before_release` must have brought to the volume before another host begins."""

    def __post_init__(self) -> None:
        clock = LabClock(self.lab)
        device = LabDevice(self.lab, self.name)
        self.host = Host(device, self.name, timers=TIMERS, clock=clock)  # type: ignore[arg-type]
        membership = self.host.membership
        membership.claim()
        self.sectors = LockSectors(membership, clock)  # type: ignore[arg-type]
        # Its thread is not started: what it would do, the tasks do.
        self.releaser = Releaser(self.table, self.sectors, membership, clock, lambda t: None, 0.0)  # type: ignore[arg-type]
        self.overs = HandOvers(
            self.table, self.sectors, self.releaser, membership, clock, self.publish, lambda at, guards: "the lock"  # type: ignore[arg-type]
        )
        self.device = device

    @property
    def me(self) -> Holder:
        return self.host.membership.holder

    def hold(self) -> None:
        taken = self.sectors.take(
            AT, Guards.TEST, LockMode.EXCLUSIVE, sticky=False, doubt=None, yields=lambda r: False
        )
        assert isinstance(taken, Taken)
        with self.table.cond:
            entry = self.table.enter(AT)
            self.table.exit(entry)
            self.table.entries[AT] = entry
            entry.raw, entry.tenure = taken.raw, Tenure(taken.record, self.me)
            self.tenure = entry.pin(1, 0.0)
        self.may_write = True

    def publish(self, tenure: Tenure) -> None:
        self.device.write(META_AT, self.count.to_bytes(8, "little").ljust(512, b"\0"))

    def write_on(self) -> None:
        """Task: write while it may, until the lab is over."""
        while not self.lab.over:
            if self.may_write:
                self.writing = True
                value = max(self.lab.acknowledged, self.count) + 1
                self.device.write(COUNTER_AT, value.to_bytes(8, "little").ljust(512, b"\0"))
                self.lab.acknowledged = self.count = value
                self.writing = False
            self.lab.scheduler.sleep(0.003)

    def give(self, to: Party, wait: float) -> None:
        """Task: hand over, as a mount does."""
        overs, tenure, scheduler = self.overs, self.tenure, self.lab.scheduler
        assert tenure is not None
        try:
            while True:
                try:
                    overs.offer(tenure, to.me, scheduler.time + wait)
                    break
                except DeviceError:
                    scheduler.sleep(0.001)
            self.may_write = False
            while self.writing or not overs.try_seize(tenure, 1):
                scheduler.sleep(0.001)
            try:
                gone = overs.complete(tenure, to.me)
            finally:
                overs.end(tenure)
        except HandOverFailed as error:
            self.outcome = str(error)
            gone = False
        if gone:
            self.outcome = "given"
            return
        self.may_write = True
        self.outcome = f"kept: {self.outcome}"
        while True:
            try:
                overs.withdraw(tenure, to.me)
                return
            except DeviceError:
                scheduler.sleep(0.001)

    def get(self, wait: float, ready_after: float, cancel_after: float) -> None:
        """Task: receive it, and go on writing."""
        scheduler = self.lab.scheduler
        began = scheduler.time
        while True:
            try:
                self.tenure = self.overs.receive(
                    AT, Guards.TEST, began + wait, lambda: scheduler.time - began >= ready_after,
                    lambda: scheduler.time - began >= cancel_after,
                )  # fmt: skip
                break
            except HandOverFailed as error:
                self.outcome = f"not had: {error}"
                self.settle_doubt()
                return
            except DeviceError:
                self.settle_doubt()
        seen = int.from_bytes(self.device.read(COUNTER_AT, 512)[:8], "little")
        published = int.from_bytes(self.device.read(META_AT, 512)[:8], "little")
        assert seen == published == self.lab.acknowledged, "what was written before is not what the new owner finds"
        self.count = seen
        self.may_write = True
        self.outcome = "had"

    def settle_doubt(self) -> None:
        """What the lock manager's thread does (R10)."""
        while (doubt := self.releaser.doubt_of(AT)) is not None:
            try:
                self.sectors.resolve(AT, doubt)
                self.releaser.end_doubt(AT)
            except (FateUnknown, DeviceError):
                self.lab.scheduler.sleep(0.002)


class Lab:
    """esx1 hands its lock over to esx2; esx3 wants it. `run` does it once, and checks everything."""

    def __init__(self, seed: int, *, paxos: bool = False, fault_rate: float = 0.0, moody: bool = False) -> None:
        self.random = random.Random(seed)
        self.faults = random.Random(seed + 1)
        self.fault_rate = fault_rate
        self.moody = moody
        self.live = self.over = False
        self.acknowledged = 0
        self.dead: set[str] = set()
        self.ended: set[str] = set()
        self.ios = {"esx1": 0, "esx2": 0, "esx3": 0}
        self.ram = RamDevice(SIZE)
        format_volume(self.ram, paxos=paxos)
        self.scheduler = Scheduler(self.random.randrange)
        self.esx1, self.esx2, self.esx3 = (Party(self, name) for name in self.ios)
        self.parties = {p.name: p for p in (self.esx1, self.esx2, self.esx3)}
        self.paxos = paxos
        self.esx1.hold()

    def record(self) -> LockRecord:
        return parse_lock(image_at(self.ram, AT), AT, PREFIX)

    def check_lock(self) -> None:
        """At every change: it is never free, and one of the two has it, as long as nobody has been declared dead."""
        if not self.paxos and not self.ended:  # a Disk-Paxos block says only at rest what counts
            record = self.record()
            assert record.mode is LockMode.EXCLUSIVE
            assert record.owner in (self.esx1.me, self.esx2.me)

    def check_writer(self, name: str) -> None:
        """At the moment when a write lands, its writer owns the lock: so there are never two writers."""
        assert name not in self.ended, f"{name} writes after it was declared dead"
        if not self.paxos:
            assert self.record().owner == self.parties[name].me, f"{name} writes, the lock is {self.record().owner}'s"

    def run(self, victim: str | None = None, at_io: int = 0, how: str = "before") -> None:
        """`victim` crashes at its I/O number `at_io`, before or after it was done."""

        def crash(task: str) -> str | None:
            name = task.partition(" ")[0]
            if name in self.dead:
                return "before"
            self.ios[name] += 1
            if name == victim and self.ios[name] == at_io:
                self.dead.add(name)
                return how
            return None

        self.scheduler.crash = crash
        self.live = True
        pick = self.random.choice
        late = (0.0, 0.01) if self.moody else (0.0,)
        moods = (0.005, 0.02, 9.0) if self.moody else (9.0,)
        give_wait, get_wait = (pick(WAITS), pick(WAITS)) if self.moody else (0.3, 0.6)
        ready_after, cancel_after = pick(late), pick(moods)
        tasks: list[tuple[str, Callable[[], None]]] = [
            ("esx1 gives", lambda: self.esx1.give(self.esx2, give_wait)),
            ("esx1 writes", self.esx1.write_on),
            ("esx2 gets", lambda: self.esx2.get(get_wait, ready_after, cancel_after)),
            ("esx2 writes", self.esx2.write_on),
            ("esx3", self.steal),
        ]
        for name, task in tasks:
            self.scheduler.spawn(name, task)
        self.scheduler.run()
        self.check_end()

    def steal(self) -> None:
        """Task of the third host: try all the time; declare the crashed one dead a little later, and take over then."""
        me, since = self.esx3, None
        settled = 0
        while settled < 5 and not self.scheduler.errors:
            try:
                doubt = me.releaser.doubt_of(AT)
                got = me.sectors.take(
                    AT, Guards.TEST, LockMode.EXCLUSIVE, sticky=False, doubt=doubt, yields=lambda r: False
                )
            except FateUnknown as error:
                me.releaser.note_doubt(AT, error)
                continue
            except DeviceError:
                continue
            if isinstance(got, Taken):
                assert self.ended, "a third host got the lock"
                me.outcome = "taken"
                break
            if self.dead - self.ended:
                since = since if since is not None else self.scheduler.time
                if self.scheduler.time - since >= RECOVERY_SECONDS:
                    (name,) = self.dead - self.ended
                    self.ended.add(name)
                    self.end_incarnation(self.parties[name])
            self.scheduler.sleep(0.002)
            ended = [p.name in self.dead or p.outcome != "not yet" for p in (self.esx1, self.esx2)]
            settled += all(ended) and self.dead == self.ended
        self.over = True

    def end_incarnation(self, party: Party) -> None:
        """What a recovery ends in."""
        keeper = party.host.membership._own()
        party.host.membership.region.registers.act_while(lambda: True)
        slot = keeper.landed
        raw = slot.record.freed(0).pack(512)
        while True:
            try:
                if self.esx3.host.membership.region.registers.swap(slot.record.address, slot.raw, raw):
                    return
            except DeviceError:
                pass
            if self.esx3.host.membership.read_slot(slot.record.slot).require().incarnation > slot.record.incarnation:
                return

    def check_end(self) -> None:
        """Who believes to have the lock is who has it, and there is one."""
        record = self.record()
        believers = [p for p in (self.esx1, self.esx2) if p.may_write and p.name not in self.dead]
        if self.esx3.outcome == "taken":
            assert record.owner == self.esx3.me
            assert not believers
            return
        assert record.mode is LockMode.EXCLUSIVE
        if not self.dead:
            assert [p.me for p in believers] == [record.owner]
        elif believers:
            (one,) = believers
            assert one.me == record.owner
        if not self.dead and not self.moody:
            assert self.esx1.outcome == "given"
            assert self.esx2.outcome == "had"
        if record.destination is not None:
            assert self.dead, "an offer was left behind"


def test_a_lock_passes_from_one_host_to_the_other_and_back_to_nobody_else() -> None:
    lab = Lab(1)
    lab.run()
    record = lab.record()
    assert (record.owner, record.version, record.hand_over) == (lab.esx2.me, 2, HandOver.NONE)
    assert lab.esx2.count >= lab.esx1.count > 0


@pytest.mark.parametrize("victim", ["esx1", "esx2"])
def test_a_crash_at_every_step(victim: str) -> None:
    seed = random.SystemRandom().getrandbits(30)
    whole = Lab(seed)
    whole.run()
    ends: dict[str, int] = {}
    for at in range(1, whole.ios[victim] + 1):
        for how in ("before", "after"):
            lab = Lab(seed)
            try:
                lab.run(victim, at, how)
            except BaseException:
                print(f"seed {seed}, crash {how} I/O {at} of {victim}")
                raise
            survivor = lab.esx2 if victim == "esx1" else lab.esx1
            end = f"the other host has {survivor.outcome[:7]!r}, the third {lab.esx3.outcome!r}"
            ends[end] = ends.get(end, 0) + 1
    print(f"seed {seed}: {whole.ios[victim]} steps of {victim}: {ends}")
    expected = ("'had'", "'not had'") if victim == "esx1" else ("'given'", "'kept: ")
    assert all(any(e in end for end in ends) for e in expected), "both ends must have been seen"


@rounds(25)
def test_changes_of_mind_and_lost_answers(seed: int) -> None:
    lab = Lab(seed, fault_rate=0.15, moody=True)
    victim = lab.random.choice(("esx1", "esx2", None))
    try:
        lab.run(victim, lab.random.randrange(1, 80), lab.random.choice(("before", "after")))
    except BaseException:
        print(replay(seed))
        raise


@rounds(4)
def test_over_disk_paxos_registers(seed: int) -> None:
    lab = Lab(seed, paxos=True, moody=True)
    victim = lab.random.choice(("esx1", "esx2", None))
    try:
        lab.run(victim, lab.random.randrange(1, 150), lab.random.choice(("before", "after")))
    except BaseException:
        print(replay(seed))
        raise
