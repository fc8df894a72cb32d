"""R1 and R4 under storage that answers late, wrongly or not at all. Time is the test's, so every second counts."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Callable

import pytest

from tests.cluster.scripted import Fate, ScriptedDevice
from tests.cluster.world import BOTH, PREFIX, SIZE, SLOTS_AT, STRIDE, TIMERS, Host, format_volume, registers_on
from vmfs.clock import Clock, FakeClock
from vmfs.cluster.heartbeat import Renewal
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.membership import Membership, MembershipCallbacks
from vmfs.cluster.region import SlotRegion
from vmfs.cluster.registers import DirectRegisters
from vmfs.devices.extents import ExtentSet
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, LeaseExpired, LeaseLost, MountClosing
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot

USABLE = TIMERS.usable_lease_s


class Rig:
    """One member on a scripted device, beating by hand on a clock that the test moves."""

    def __init__(self) -> None:
        self.ram = RamDevice(SIZE)
        format_volume(self.ram)
        self.device = ScriptedDevice(self.ram)
        self.clock = FakeClock(sleep_advances=True)
        self.fenced = 0
        self.blocks: list[bytes] = []
        self.asked: list[tuple[int, int, int, int]] = []
        self.member = self.make("esx1", self.device)
        self.member.claim()

    def make(self, name: str, device: object, clock: Clock | None = None) -> Membership:
        clock = clock or self.clock
        region = SlotRegion(DirectRegisters(ExtentSet([device])), SLOTS_AT, STRIDE, 8, PREFIX, clock)  # type: ignore[list-item]
        return Membership(
            region, HostIdentity.detect(name, uuid.uuid4()), TIMERS, clock, volume_name="ds1",
            superblock_address=64 << 10,
            callbacks=MembershipCallbacks(
                on_fenced=self._on_fenced, on_superblock_bytes=self.blocks.append,
                on_request=lambda *a: self.asked.append(a),
            ),
        )  # fmt: skip

    def _on_fenced(self) -> None:
        self.fenced += 1

    def on_disk(self, slot: int = 0) -> SlotRecord:
        at = SLOTS_AT + slot * STRIDE
        return parse_slot(self.ram.read(at, 512), at, PREFIX, slot)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_beat_that_lands_extends_the_lease_from_its_submission(rig: Rig) -> None:
    assert rig.member.lease_deadline == pytest.approx(rig.clock.now() + USABLE)
    rig.clock.advance(0.25)
    submitted = rig.clock.now()
    rig.device.before_caw = lambda offset: rig.clock.advance(0.125)  # the storage is slow
    assert rig.member.beat() is Renewal.LANDED
    assert rig.member.lease_deadline == pytest.approx(submitted + USABLE)
    assert rig.on_disk().sequence == 2
    assert len(rig.blocks) == 1
    assert len(rig.blocks[0]) == 4096


@pytest.mark.expected_log("heartbeat was not answered")
@pytest.mark.parametrize("fate", [Fate.NOT_DONE, Fate.ANSWER_LOST])
def test_an_image_of_unknown_fate_is_sent_again_byte_for_byte(rig: Rig, fate: Fate) -> None:
    first_submitted = rig.clock.now()
    rig.device.fates.append(fate)
    assert rig.member.beat() is Renewal.UNKNOWN
    rig.clock.advance(0.25)
    serial = rig.member.post_request(1, 3, 4096)  # would make the next image another one
    assert rig.member.beat() is Renewal.LANDED
    sent = [new for _, _, new in rig.device.sent[-2:]]
    assert sent[0] == sent[1]
    assert rig.member.lease_deadline == pytest.approx(first_submitted + USABLE)  # not from the second sending
    assert rig.on_disk().requests == ()
    assert rig.member.beat() is Renewal.LANDED
    assert [r.serial for r in rig.on_disk().requests] == [serial]


def test_a_miscompare_that_finds_the_own_old_image_sends_the_same_again(rig: Rig) -> None:
    rig.device.fates.append(Fate.MISCOMPARE)
    assert rig.member.beat() is Renewal.LANDED
    assert rig.device.sent[-1] == rig.device.sent[-2]
    assert rig.on_disk().sequence == 2


@pytest.mark.expected_log("heartbeat was not answered")
def test_a_late_image_that_lands_between_two_sendings_is_success(rig: Rig) -> None:
    rig.device.fates.append(Fate.LATE)
    assert rig.member.beat() is Renewal.UNKNOWN
    assert rig.device.land_late() == [True]
    assert rig.member.beat() is Renewal.LANDED
    assert rig.on_disk().sequence == 2


@pytest.mark.expected_log("heartbeat was not answered")
def test_a_late_image_can_not_land_after_its_repetition(rig: Rig) -> None:
    rig.device.fates.append(Fate.LATE)
    rig.member.beat()
    assert rig.member.beat() is Renewal.LANDED
    assert rig.member.beat() is Renewal.LANDED
    assert rig.device.land_late() == [False]
    assert rig.member.beat() is Renewal.LANDED
    assert rig.on_disk().sequence == 4


@pytest.mark.expected_log("fenced")
@pytest.mark.expected_log("heartbeat was not answered")
@pytest.mark.expected_log("slot 0: checksum does not match")
def test_a_torn_slot_fences_for_good(rig: Rig) -> None:
    rig.device.fates.append(Fate.TORN)
    assert rig.member.beat() is Renewal.UNKNOWN
    assert rig.member.beat() is Renewal.FENCED
    assert rig.fenced == 1


@pytest.mark.expected_log("fenced")
def test_a_broken_host_never_submits_again(rig: Rig) -> None:
    other = rig.make("esx2", rig.ram)
    other.claim()
    _break_by_silence(rig, other, 0)
    record = other.begin_recovery(0)
    assert record.host_name == "esx1"
    assert rig.member.beat() is Renewal.FENCED
    assert rig.member.beat() is Renewal.FENCED
    assert rig.fenced == 1
    assert rig.member.fenced
    assert rig.member.lease_deadline == -math.inf
    with pytest.raises(LeaseLost):
        rig.member.check_lease()
    other.finish_recovery(0)
    with pytest.raises(LeaseLost):
        rig.member.leave()
    assert (rig.on_disk().state, rig.on_disk().incarnation) == (SlotState.FREE, 2)


def _break_by_silence(rig: Rig, watcher: Membership, slot: int) -> None:
    """Let time pass until the watcher, who beats, has seen the slot unchanged for B."""
    for _ in range(20):
        assert watcher.beat() is Renewal.LANDED
        if slot in watcher.dead_slots():
            return
        rig.clock.advance(TIMERS.interval_s)
    pytest.fail("the slot was never found dead")


@pytest.mark.expected_log("heartbeat was not answered")
def test_the_lease_runs_out_and_comes_back_while_the_slot_is_still_ours(rig: Rig) -> None:
    rig.device.all_fail = True
    rig.clock.advance(USABLE - 0.001)
    rig.member.beat()
    rig.member.check_lease()
    rig.clock.advance(0.001)
    assert not rig.member.lease_valid(rig.clock.now())
    with pytest.raises(LeaseExpired):
        rig.member.check_lease()
    rig.device.all_fail = False
    rig.clock.advance(5)
    # The first image that lands is an old one, and its lease is over; the next one's is not.
    assert rig.member.beat() is Renewal.LANDED
    assert not rig.member.lease_valid(rig.clock.now())
    assert rig.member.beat() is Renewal.LANDED
    rig.member.check_lease()


def test_leave_ends_the_membership(rig: Rig) -> None:
    rig.member.leave()
    with pytest.raises(MountClosing):
        rig.member.check_lease()
    assert (rig.on_disk().state, rig.on_disk().incarnation) == (SlotState.FREE, 2)


@pytest.mark.parametrize("fate", [Fate.NOT_DONE, Fate.ANSWER_LOST])
def test_leave_survives_a_lost_answer(rig: Rig, fate: Fate) -> None:
    rig.device.fates.append(fate)
    rig.member.leave()
    assert (rig.on_disk().state, rig.on_disk().incarnation) == (SlotState.FREE, 2)


def test_leave_without_storage_says_so_and_the_slot_stays(rig: Rig) -> None:
    rig.device.all_fail = True
    with pytest.raises(DeviceError):
        rig.member.leave()
    assert rig.on_disk().state is SlotState.LIVE


def test_a_watcher_whose_own_lease_lapsed_starts_to_count_again(rig: Rig) -> None:
    """A stall of the storage that everybody meets breaks nobody (R4)."""
    other = rig.make("esx2", rig.ram)
    other.claim()
    other.beat()
    rig.clock.advance(TIMERS.break_s + 1)  # nobody could beat
    assert other.dead_slots() == {}
    assert other.beat() is Renewal.LANDED
    assert other.dead_slots() == {}
    rig.member.beat()
    _break_by_silence(rig, other, 0)  # and only a host that stays silent from then on is dead


@pytest.mark.expected_log("heartbeat was not answered")
def test_counts_made_while_the_watchers_own_heartbeats_failed_prove_nothing(rig: Rig) -> None:
    """It could read all the time, but not write: whatever kept its heartbeats may have kept the other's too (R4)."""
    device = ScriptedDevice(rig.ram.again())
    other = rig.make("esx2", device)
    other.claim()
    device.fates.extend([Fate.NOT_DONE] * 8)
    for _ in range(8):
        assert other.beat() is Renewal.UNKNOWN
        rig.clock.advance(TIMERS.break_s / 6)
    other.beat()
    other.beat()
    other.check_lease()
    assert other.dead_slots() == {}
    _break_by_silence(rig, other, 0)


def test_a_watcher_counts_from_the_end_of_the_read_that_showed_the_image(rig: Rig) -> None:
    other = rig.make("esx2", rig.ram)
    other.claim()
    other.dead_slots()
    seen = rig.clock.now()
    while rig.clock.now() - seen < TIMERS.break_s - 0.01:
        other.beat()
        assert other.dead_slots() == {}
        rig.clock.advance(0.1)
    rig.clock.advance(0.1)
    other.beat()
    assert list(other.dead_slots()) == [0]


def test_requests_reach_the_addressee_alone_at_every_beat_until_cleared(rig: Rig) -> None:
    other = rig.make("esx2", rig.ram)
    other.claim()
    serial = other.post_request(1, rig.member.holder.slot, 0xABC000, 7)
    assert other.post_request(1, rig.member.holder.slot, 0xABC000, 7) == serial
    other.post_request(1, 5, 0xDEF000)
    other.beat()
    rig.member.beat()
    rig.member.beat()
    assert rig.asked == [(1, 1, 0xABC000, 7)] * 2
    other.clear_request(serial)
    other.beat()
    rig.member.beat()
    assert len(rig.asked) == 2


@pytest.mark.expected_log("not be read")
def test_a_beat_that_can_not_read_the_others_keeps_the_lease(rig: Rig) -> None:
    rig.device.read_fails = True
    rig.clock.advance(0.5)
    assert rig.member.beat() is Renewal.LANDED
    assert rig.member.lease_valid(rig.clock.now() + USABLE - 0.001)


@pytest.mark.expected_log("not answered")
@pytest.mark.expected_log("not be read")
@pytest.mark.expected_log("lease has run out")
@BOTH
@pytest.mark.parametrize("seed", range(6))
def test_no_false_fence_on_a_disk_that_loses_answers(seed: int, paxos: bool) -> None:
    """FaultDevice: swaps raise, done or not; reads raise. The slot stays ours, whatever the order."""
    ram = RamDevice(SIZE)
    format_volume(ram, paxos=paxos)
    device = FaultDevice(ram, seed, FaultPlan(volatile_cache=False))
    clock = FakeClock(sleep_advances=True)
    region = SlotRegion(registers_on(device, ExtentSet([device]), clock), SLOTS_AT, STRIDE, 8, PREFIX, clock)
    member = Membership(
        region, HostIdentity.detect("esx1", uuid.uuid4()), TIMERS, clock, volume_name="ds1", rng=random.Random(seed)
    )
    member.claim()
    device.set_plan(FaultPlan(volatile_cache=False, write_error_rate=0.4, read_error_rate=0.2))
    outcomes = []
    for _ in range(200):
        clock.advance(0.05)
        outcomes.append(member.beat())
    assert Renewal.FENCED not in outcomes
    # A register takes two writes and three reads; each of them may fail.
    assert outcomes.count(Renewal.LANDED) > (8 if paxos else 50)
    device.set_plan(FaultPlan(volatile_cache=False))
    member.leave()


@pytest.mark.expected_log("lease has run out")
def test_the_threads_tell_of_expiry_once_and_of_resumption(host: Callable[..., Host], volume: RamDevice) -> None:
    device = FaultDevice(volume.again(), 1, FaultPlan(volatile_cache=False))
    one = host("esx1", device=device).join()
    device.freeze()
    _until(one, lambda: one.events == ["expired"], 3)
    device.thaw()
    _until(one, lambda: one.events == ["expired", "resumed"], 3)
    one.membership.check_lease()
    one.leave()


@pytest.mark.expected_log("fenced")
@pytest.mark.expected_log("lease has run out")
def test_a_frozen_host_of_another_machine_is_broken_and_stops(host: Callable[..., Host], volume: RamDevice) -> None:
    device = FaultDevice(volume.again(), 1, FaultPlan(volatile_cache=False))
    frozen, other = host("esx1", device=device).join(), host("esx2").join()
    device.freeze()
    _until(other, lambda: 0 in other.membership.dead_slots(), 5)
    other.recover(0)
    device.thaw()
    _until(frozen, lambda: "fenced" in frozen.events, 3)
    with pytest.raises(LeaseLost):
        frozen.membership.check_lease()
    other.leave()


def _until(host: Host, condition: Callable[[], bool], seconds: float) -> None:
    end = host.clock.now() + seconds
    while not condition():
        assert host.clock.now() < end, host.events
        host.clock.sleep(0.02)
