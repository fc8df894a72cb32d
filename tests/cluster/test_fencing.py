"""R2 and R3: keys before the claim, PREEMPT AND ABORT between RECOVERING and the replay, and what a refusal means."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.world import COUNTER_AT, PREFIX, SIZE, SLOTS_AT, STRIDE, Host, format_volume, lock_address
from vmfs.clock import FakeClock
from vmfs.cluster.fenceproof import PROOF_OFFSET
from vmfs.cluster.fencing import ReservationFence
from vmfs.cluster.keys import KeyKind, holder_of, key_of, kind_of, tool_key
from vmfs.cluster.timers import Timers
from vmfs.devices.contract import Device
from vmfs.devices.extents import ExtentSet
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.devices.reservations import Reservations
from vmfs.devices.writegate import WriteGate
from vmfs.errors import (
    DeviceError,
    FencingUnusable,
    LeaseLost,
    NoFreeSlot,
    ReservationConflict,
    SlotNotDead,
    VmfsError,
)
from vmfs.ondisk.lock import Guards, Holder
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot

TIMERS = Timers.from_lease(1_000_000, fenced=True)
WAIT_S = 30.0
MakeHost = Callable[..., Host]


@pytest.fixture
def lun() -> RamDevice:
    device = RamDevice(SIZE, reservations=True)
    format_volume(device)
    return device


@pytest.fixture
def fenced(lun: RamDevice) -> Iterator[MakeHost]:
    made: list[Host] = []

    def make(name: str, **options: Any) -> Host:
        options.setdefault("device", lun.again(name=name))
        made.append(Host(name=name, seed=len(made) + 1, fenced=True, timers=TIMERS, **options))
        return made[-1]

    yield make
    for one in made:
        one.crash()


def of(device: Device) -> Reservations:
    found = device.reservations()
    assert found is not None
    return found


def registered(device: Device) -> list[int]:
    return sorted(of(device).keys())


def on_disk(lun: RamDevice, slot: int = 0) -> SlotRecord:
    at = SLOTS_AT + slot * STRIDE
    return parse_slot(lun.read(at, 512), at, PREFIX, slot)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_names_its_incarnation_and_is_never_zero() -> None:
    holders = [Holder(0, 0), Holder(0, 1), Holder(255, (1 << 48) - 1), Holder(7, 7)]
    keys = [key_of(h) for h in holders]
    assert len(set(keys)) == len(keys)
    assert all(0 < k < 1 << 64 and kind_of(k) is KeyKind.MOUNT for k in keys)
    assert [holder_of(k) for k in keys] == holders
    assert kind_of(key_of(holders[1], KeyKind.PROOF)) is KeyKind.PROOF
    assert kind_of(tool_key(lambda size: b"\xff" * size)) is KeyKind.TOOL
    assert kind_of(0xA2) is None
    for no_holder in (Holder(256, 1), Holder(0, 1 << 48), Holder(-1, 0)):
        with pytest.raises(ValueError, match="no reservation key"):
            key_of(no_holder)


# -- joining and leaving ---------------------------------------------------------------------------


def test_a_mount_is_registered_before_its_claim_and_until_it_has_left(lun: RamDevice, fenced: MakeHost) -> None:
    device, seen = lun.again(), []
    claim = device.compare_and_write

    def look(offset: int, old: bytes, new: bytes) -> bool:
        seen.append((of(lun).keys(), of(lun).reservation() is not None, on_disk(lun).state))
        return claim(offset, old, new)

    device.compare_and_write = look  # type: ignore[method-assign]
    one = fenced("esx1", device=device).join(start=False)
    key = key_of(one.membership.holder)
    assert seen[0] == ((key,), True, SlotState.FREE)
    one.leave()
    assert seen[-1][0] == (key,)  # the compare-and-write that frees the slot is admitted still
    assert of(lun).keys() == ()
    assert of(lun).reservation() is None


def test_a_claim_that_finds_no_slot_leaves_no_registration(lun: RamDevice, fenced: MakeHost) -> None:
    for number in range(2):
        fenced(f"esx{number}", slots=2).join()
    before = registered(lun)
    with pytest.raises(NoFreeSlot):
        fenced("esx9", slots=2).join()
    assert registered(lun) == before


def test_a_lun_that_others_reserve_in_another_way_is_refused(lun: RamDevice, fenced: MakeHost) -> None:
    other = lun.again()
    of(other).register(1)
    assert lun._lun is not None
    lun._lun.type = 5
    with pytest.raises(FencingUnusable, match=r"reservation of type 5h \(needed: 7h\)"):
        fenced("esx1").join()
    assert of(lun).keys() == (1,)
    assert on_disk(lun).state is SlotState.FREE


def test_a_path_without_reservations_is_refused(fenced: MakeHost) -> None:
    plain = RamDevice(SIZE)
    format_volume(plain)
    with pytest.raises(FencingUnusable, match="has none on this path"):
        fenced("esx1", device=plain).join()
    assert on_disk(plain).state is SlotState.FREE


def test_what_the_dead_left_is_swept_and_nothing_else(lun: RamDevice, fenced: MakeHost) -> None:
    one = fenced("esx1").join()
    key = key_of(one.membership.holder)
    over = [key_of(Holder(0, 0)), key_of(Holder(0, 0), KeyKind.PROOF), tool_key(bytes)]
    kept = [key_of(Holder(3, 1)), 0x1234, key_of(Holder(200, 1))]  # being claimed; not ours; no such slot
    for left in (*over, *kept):
        of(lun.again()).register(left)
    two = fenced("esx2").join()
    assert registered(lun) == sorted([key, key_of(two.membership.holder), *kept])
    two.leave()
    one.leave()


class KernelDisk(RamDevice):
    """As the kernel's disks are: a descriptor, and one nexus for all who open it."""

    descriptor = -1

    def fileno(self) -> int | None:
        return self.descriptor


def test_one_nexus_a_machine_is_one_mounts_alone(lun: RamDevice, fenced: MakeHost, tmp_path: Path) -> None:
    """Else the second mount would replace the first one's key, and nobody could fence the first one any more."""
    disk = KernelDisk(SIZE, reservations=True)
    disk.__dict__.update({k: v for k, v in lun.__dict__.items() if k in ("_memory", "_mutex", "_lun")})
    with (tmp_path / "disk").open("wb") as file:
        disk.descriptor = file.fileno()
        one = fenced("esx1", device=disk).join()
        with pytest.raises(FencingUnusable, match="another mount on this machine, which has one nexus"):
            fenced("esx2", device=disk).join()
        assert registered(lun) == [key_of(one.membership.holder)]
        one.leave()
        fenced("esx2", device=disk).join().leave()


# -- the proof -------------------------------------------------------------------------------------


class Liar(Reservations):
    """Reservations of a target that does not do what it answers."""

    def __init__(self, inner: Reservations, fault: str) -> None:
        self._inner = inner
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def register(self, key: int) -> None:
        self._inner.register(key)

    def unregister(self) -> None:
        self._inner.unregister()

    def reserve(self) -> None:
        self._inner.reserve()

    def clear(self) -> None:
        self._inner.clear()

    def keys(self) -> tuple[int, ...]:
        return self._inner.keys()

    def reservation(self) -> Any:
        return self._inner.reservation()

    def preempt_and_abort(self, key: int) -> bool:
        if self._fault == "has no abort":
            raise DeviceError("ram", "PREEMPT AND ABORT", 0, 0, "invalid field in CDB")
        return self._fault == "does nothing" and key in self.keys()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("has no abort", "no working PREEMPT AND ABORT.*invalid field"),
        ("does nothing", "takes writes of a host whose key PREEMPT AND ABORT took away"),
        ("finds nothing", "does not find a registered key to PREEMPT AND ABORT"),
    ],
)
def test_a_target_that_does_not_fence_is_found_out_at_mount(
    lun: RamDevice, fenced: MakeHost, fault: str, says: str
) -> None:
    device = lun.again()
    liar = Liar(of(device), fault)
    device.reservations = lambda: liar  # type: ignore[method-assign]
    device.again = lun.again  # type: ignore[method-assign]
    with pytest.raises(FencingUnusable, match=says):
        fenced("esx1", device=device).join()
    assert of(lun).keys() == ()
    assert (on_disk(lun).state, on_disk(lun).incarnation) == (SlotState.FREE, 2)


def test_the_proof_changes_nothing_on_the_lun(lun: RamDevice, fenced: MakeHost) -> None:
    before = lun.read(0, SLOTS_AT)
    fenced("esx1").join().leave()
    assert lun.read(0, SLOTS_AT) == before
    assert lun.read(PROOF_OFFSET, 4096) == bytes(4096)


# -- breaking --------------------------------------------------------------------------------------


class Recorder(ReservationFence):
    """Notes what the slot says when the dead are cut off."""

    def __init__(self, lun: RamDevice, extents: ExtentSet) -> None:
        super().__init__(extents, "ds1", FakeClock())
        self.lun = lun
        self.cuts: list[tuple[list[Holder], SlotState, Holder | None]] = []

    def cut_off(self, dead: Sequence[Holder]) -> None:
        record = on_disk(self.lun, dead[0].slot)
        self.cuts.append((list(dead), record.state, record.recoverer))
        super().cut_off(dead)


def break_slot(breaker: Host, slot: int) -> SlotRecord:
    until(lambda: slot in breaker.membership.dead_slots(), "the slot is found dead")
    return breaker.membership.begin_recovery(slot)


@pytest.mark.expected_log("lease has run out")
def test_the_dead_are_cut_off_after_the_slot_says_so_and_before_the_replay(lun: RamDevice, fenced: MakeHost) -> None:
    victim = fenced("esx1").join(start=False)
    dead = victim.membership.holder
    breaker = fenced("esx2").join()
    recorder = Recorder(lun, breaker.extents)
    recorder.prepare(breaker.membership.holder)
    breaker.membership.recovery._fence = recorder
    assert break_slot(breaker, 0).holder == dead
    assert recorder.cuts == [([dead], SlotState.RECOVERING, breaker.membership.holder)]
    assert key_of(dead) not in registered(lun)
    with pytest.raises(ReservationConflict):
        victim.extents.write(COUNTER_AT, bytes(512))
    breaker.membership.finish_recovery(0)
    breaker.leave()


def test_a_dead_recoverer_is_cut_off_with_the_host_that_it_recovered(lun: RamDevice, fenced: MakeHost) -> None:
    first = fenced("esx1").join(start=False)
    second = fenced("esx2").join()
    dead, recoverer = first.membership.holder, second.membership.holder
    break_slot(second, 0)
    second.crash()
    third = fenced("esx3").join()
    break_slot(third, 1)
    third.membership.finish_recovery(1)
    of(second.device).register(key_of(recoverer))  # as a replay that goes on would be admitted
    recorder = Recorder(lun, third.extents)
    recorder.prepare(third.membership.holder)
    third.membership.recovery._fence = recorder
    break_slot(third, 0)
    assert [set(cut[0]) for cut in recorder.cuts] == [{dead, recoverer}]
    assert of(lun).keys() == (key_of(third.membership.holder),)
    third.membership.finish_recovery(0)
    third.leave()


class CutPath(RamDevice):
    """An extent whose reservations cannot be reached while `cut`."""

    cut = False

    def reservations(self) -> Reservations | None:
        inner = super().reservations()
        assert inner is not None
        return _Reached(self, inner)


class _Reached:
    def __init__(self, path: CutPath, inner: Reservations) -> None:
        self._path = path
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if self._path.cut:
            raise DeviceError(self._path.name, name, 0, 0, "no path")
        return getattr(self._inner, name)


def test_a_recoverer_that_cannot_reach_an_extent_hands_the_slot_back(lun: RamDevice, fenced: MakeHost) -> None:
    extent = RamDevice(SIZE, reservations=True)
    second = CutPath(SIZE, reservations=True)
    second._lun, second._mutex, second._memory = extent._lun, extent._mutex, extent._memory
    victim = fenced("esx1", others=(extent.again(),)).join(start=False)
    key = key_of(victim.membership.holder)
    breaker = fenced("esx2", others=(second,)).join()
    assert key in registered(extent)
    until(lambda: 0 in breaker.membership.dead_slots(), "the slot is found dead")
    second.cut = True
    with pytest.raises(DeviceError, match="no path"):
        breaker.membership.begin_recovery(0)
    assert on_disk(lun).state is SlotState.DEAD
    second.cut = False
    breaker.membership.begin_recovery(0)
    assert key not in registered(lun)
    assert key not in registered(extent)
    breaker.membership.finish_recovery(0)
    breaker.leave()


def test_without_abort_the_longest_execution_time_is_waited_for(lun: RamDevice) -> None:
    """R2: even when the key is gone, for whoever took it away may not have waited."""
    clock = FakeClock(sleep_advances=True)
    fence = ReservationFence(ExtentSet([lun.again()]), "ds1", clock, abort_wait_s=7.5)
    fence.prepare(Holder(0, 1))
    victim = lun.again()
    of(victim).register(key_of(Holder(1, 1)))
    land = victim.accept(COUNTER_AT, b"\x77" * 512)
    for _ in range(2):
        began = clock.now()
        fence.cut_off([Holder(1, 1)])
        assert clock.now() - began == pytest.approx(7.5)
    assert land()  # what PREEMPT alone lets pass, within that time


def test_a_breaker_without_a_registration_cuts_nobody_off(lun: RamDevice, fenced: MakeHost) -> None:
    """It was fenced itself: the LUN refuses its PREEMPT too."""
    victim = fenced("esx1").join(start=False)
    fence = ReservationFence(ExtentSet([lun.again()]), "ds1", FakeClock())
    with pytest.raises(ReservationConflict):
        fence.cut_off([victim.membership.holder])
    assert of(lun).keys() == (key_of(victim.membership.holder),)


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.expected_log("a LUN refuses this host")
@pytest.mark.expected_log("registration was lost, and is made again")
@pytest.mark.expected_log("lease has run out")
@pytest.mark.expected_log("not answered")
def test_a_host_that_lost_its_registration_registers_again_and_goes_on(lun: RamDevice, fenced: MakeHost) -> None:
    one, two = fenced("esx1").join(), fenced("esx2").join()
    of(one.device).unregister()
    with pytest.raises(ReservationConflict):
        one.extents.write(COUNTER_AT, bytes(512))
    until(lambda: one.membership.standing.doubt is None and one.membership.lease_valid(one.clock.now()), "it goes on")
    one.membership.check_lease()
    one.extents.write(COUNTER_AT, bytes(512))
    assert key_of(one.membership.holder) in registered(lun)
    assert "fenced" not in one.events
    two.leave()
    one.leave()


@pytest.mark.expected_log("fenced by host esx2")
@pytest.mark.expected_log("lease has run out")
@pytest.mark.expected_log("a LUN refuses this host")
@pytest.mark.expected_log("not answered")
def test_a_host_that_was_fenced_finds_out_and_never_registers_again(lun: RamDevice, fenced: MakeHost) -> None:
    path = FaultDevice(lun.again(), 1, FaultPlan(volatile_cache=False))
    victim, breaker = fenced("esx1", device=path).join(), fenced("esx2").join()
    path.freeze()
    break_slot(breaker, 0)
    path.thaw()
    until(lambda: "fenced" in victim.events, "it finds out")
    assert victim.membership.fenced_by == "host esx2"
    with pytest.raises(LeaseLost):
        victim.membership.check_lease()
    breaker.membership.finish_recovery(0)
    assert of(lun).keys() == (key_of(breaker.membership.holder),)
    breaker.leave()


def test_the_gate_stays_closed_until_what_passed_it_has_ended() -> None:
    told: list[str] = []
    gate = WriteGate(told.append)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    thread = threading.Thread(target=lambda: gate.run(slow, "lun"), name="slow")
    thread.start()
    assert inside.wait(WAIT_S)

    def refused() -> None:
        raise ReservationConflict("lun", "write", 0, 512, "not registered")

    with pytest.raises(ReservationConflict, match="not registered"):
        gate.run(refused, "lun")
    assert len(told) == 1
    waiting = gate.waits_for()
    assert waiting()
    with pytest.raises(ReservationConflict, match="not known whether"):
        gate.run(lambda: None, "lun")
    go_on.set()
    thread.join()
    assert not waiting()
    assert len(told) == 1
    gate.open()
    assert gate.run(lambda: 5, "lun") == 5


@pytest.mark.expected_log("fenced by")
@pytest.mark.expected_log("lease has run out")
@pytest.mark.expected_log("a LUN refuses this host")
@pytest.mark.expected_log("not answered")
@pytest.mark.parametrize("number", range(3))
def test_no_byte_of_a_stopped_host_lands_after_its_lock_was_taken(
    lun: RamDevice, fenced: MakeHost, number: int
) -> None:
    """It stops between its look at the lease and its writes, eight of them at once, for three leases and more."""
    path = FaultDevice(lun.again(), number, FaultPlan(volatile_cache=False))
    victim, breaker = fenced("esx1", device=path).join(), fenced("esx2").join()
    victim.locks.acquire(lock_address(0), Guards.TEST)
    written = itertools.count(1)

    def burst() -> None:
        try:
            while True:
                victim.membership.check_lease()
                victim.extents.write(COUNTER_AT, b"\x11" * 4096)
                next(written)
        except VmfsError:
            pass

    threads = [threading.Thread(target=burst, name=f"burst-{i}") for i in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: next(written) > 100, "the burst")
    path.freeze()
    stopped = time.monotonic()
    until(lambda: _take_over(breaker), "the other host has the lock")
    for _ in range(20):
        breaker.extents.write(COUNTER_AT, b"\x22" * 4096)
    until(lambda: time.monotonic() - stopped > 3 * TIMERS.lease_us / 1e6, "three leases")
    path.thaw()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    until(lambda: "fenced" in victim.events, "it finds out")
    assert lun.read(COUNTER_AT, 4096) == b"\x22" * 4096
    breaker.leave()


def _take_over(breaker: Host) -> bool:
    try:
        breaker.locks.acquire(lock_address(0), Guards.TEST, wait=1.0)
    except (VmfsError, SlotNotDead):
        return False
    return True
