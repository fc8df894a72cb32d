from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.scripted import ScriptedDevice
from tests.cluster.world import (
    BOTH,
    PREFIX,
    SIZE,
    SLOTS_AT,
    STRIDE,
    TIMERS,
    Host,
    format_volume,
    image_at,
    registers_on,
)
from vmfs.clock import FakeClock
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.membership import Membership
from vmfs.cluster.region import SlotRegion
from vmfs.devices.extents import ExtentSet
from vmfs.devices.file import FileDevice
from vmfs.devices.ram import RamDevice
from vmfs.errors import HostNameInUse, LeaseExpired, LeaseLost, NoFreeSlot
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot

MakeHost = Callable[..., Host]
Actor = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    path = tmp_path / "lun"
    with path.open("wb") as file:
        file.truncate(SIZE)
    device = FileDevice.open(str(path), sector_bytes=512)
    format_volume(device)
    device.close()
    return path


@pytest.fixture
def actor(lun: Path) -> Iterator[Actor]:
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *command: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-m", "tests.cluster.actor", str(lun), name, *command]
        started.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split(maxsplit=2)


def slot_on(device: RamDevice, slot: int) -> SlotRecord:
    at = SLOTS_AT + slot * STRIDE
    return parse_slot(image_at(device, at), at, PREFIX, slot)


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_mount_has_its_slot_from_claim_to_leave(sector: int) -> None:
    device = RamDevice(SIZE, logical_block_bytes=sector)
    format_volume(device)
    host = Host(device, "esx1").join()
    record = slot_on(device, 0)
    assert (record.state, record.incarnation, record.host_name) == (SlotState.LIVE, 1, "esx1")
    assert (record.interval_us, record.lease_us) == (187_500, 1_000_000)
    host.leave()
    record = slot_on(device, 0)
    assert (record.state, record.incarnation, record.host_name) == (SlotState.FREE, 2, "")
    assert [t.name for t in threading.enumerate() if t.name.startswith("vmfs-")] == []


def test_eight_processes_that_start_at_once_have_a_slot_each(actor: Actor) -> None:
    hosts = [actor(f"esx{i}", "hold", "none") for i in range(8)]
    claims = [line(h) for h in hosts]
    assert all(c[0] == "claimed" and c[2].strip() == "1" for c in claims)
    assert sorted(int(c[1]) for c in claims) == list(range(8))
    for h in hosts:
        h.communicate("")


def test_a_ninth_host_of_eight_slots_is_told_what_to_do(host: MakeHost) -> None:
    for i in range(8):
        host(f"esx{i}").join()
    with pytest.raises(NoFreeSlot, match=r"none of its 8 .*8 live"):
        host("esx8").join()


@BOTH
def test_where_all_slots_are_dead_hosts_one_is_claimed_in_place(host: MakeHost) -> None:
    for i in range(8):
        host(f"esx{i}").join(start=False)
    held = host("esx0b")  # no free slot, nobody beats: watched for the break time, then claimed
    record = held.membership.claim()
    slot = record.slot
    assert record.in_place
    assert (record.incarnation, held.membership.holder) == (1, Holder(slot, 2))
    held.membership.start()
    other = host("other", slots=8)
    view = held.membership.read_slot(slot).require()
    assert view.host_name == "esx0b"
    assert held.membership.begin_recovery(slot).holder == Holder(slot, 1)
    held.membership.settle_in_place()
    settled = held.membership.read_slot(slot).require()
    assert settled.state is SlotState.LIVE
    assert settled.holder == held.membership.holder == Holder(slot, 2)
    assert settled.requests == ()
    assert other.membership.claim().slot != slot


def test_who_dies_in_a_slot_claimed_in_place_never_shares_an_incarnation(host: MakeHost) -> None:
    """The second claims the same slot in place again; then a host recovers it, and the free slot is beyond them all."""
    host("esx0", slots=1).join(start=False)
    first = host("esx1", slots=1)
    assert first.membership.claim().in_place
    assert first.membership.holder == Holder(0, 2)
    second = host("esx2", slots=1)
    assert second.membership.claim().occupant == Holder(0, 3)
    assert second.membership.begin_recovery(0).holder == Holder(0, 1)
    second.membership.fail_in_place()
    failed = second.membership.read_slot(0).require()
    assert (failed.state, failed.incarnation, failed.last_incarnation) == (SlotState.FAILED, 1, 3)
    with pytest.raises(NoFreeSlot, match="1 failed"):
        host("esx3", slots=1).join()
    assert failed.freed(0).incarnation == 4
    with pytest.raises((LeaseExpired, LeaseLost)):
        first.membership.settle_in_place()


def test_a_mount_that_leaves_what_it_claimed_in_place_leaves_it_dead(host: MakeHost) -> None:
    host("esx0", slots=1).join(start=False)
    first = host("esx1", slots=1)
    assert first.membership.claim().in_place
    first.membership.leave()
    left = first.membership.read_slot(0).require()
    assert (left.state, left.incarnation) == (SlotState.DEAD, 1)
    second = host("esx2", slots=1)
    assert second.membership.claim().occupant == Holder(0, 3)


def test_a_second_live_mount_of_a_name_is_refused_at_once_with_its_pid(actor: Actor) -> None:
    first = actor("esx1", "hold", "none")
    assert line(first)[0] == "claimed"
    second = actor("esx1", "hold", "none")
    word, kind, message = line(second)
    assert (word, kind) == ("error", "HostNameInUse")
    assert f"process {first.pid} on this machine" in message


def test_the_slot_of_a_killed_process_is_found_dead_at_once_and_recovered(actor: Actor, lun: Path) -> None:
    first = actor("esx1", "hold", "none")
    assert line(first)[0] == "claimed"
    first.kill()
    first.communicate()
    began = time.monotonic()
    again = Host(FileDevice.open(str(lun), sector_bytes=512), "esx1", machine=False).join()
    assert again.membership.predecessors == (0,)
    assert again.membership.dead_slots_of_this_boot() == (0,)
    dead = again.membership.begin_recovery(0)
    assert (dead.host_name, dead.incarnation, dead.pid) == ("esx1", 1, first.pid)
    again.membership.finish_recovery(0)
    assert time.monotonic() - began < TIMERS.break_s / 2
    assert again.membership.dead_slots() == {}
    again.leave()


def test_two_mounts_of_one_name_that_start_at_once_never_both_live(volume: RamDevice, host: MakeHost) -> None:
    """Each is let through its look at the names before the other claims: the look after the claim has to catch it."""
    for round_ in range(5):
        pair = [host("same", machine=False) for _ in range(2)]
        outcomes: list[str] = []

        def join(one: Host, outcomes: list[str] = outcomes) -> None:
            try:
                one.membership.claim()
                outcomes.append("lives")
            except HostNameInUse:
                outcomes.append("refused")

        threads = [threading.Thread(target=join, args=(one,)) for one in pair]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert outcomes.count("lives") <= 1
        live = [r for r in (slot_on(volume, i) for i in range(8)) if r.state is SlotState.LIVE]
        assert len(live) == outcomes.count("lives"), f"round {round_}"
        for one in pair:
            if one.membership._keeper is not None:
                one.membership.leave()


def test_a_mount_that_claimed_after_another_had_looked_gives_way(volume: RamDevice, host: MakeHost) -> None:
    """The second takes its slot between the first one's look at the names and the first one's claim."""
    device = ScriptedDevice(volume)
    first, second = host("same", machine=False, device=device), host("same", machine=False)

    def overtake(offset: int) -> None:
        device.before_caw = lambda offset: None
        second.membership.claim()

    device.before_caw = overtake
    with pytest.raises(HostNameInUse, match="on this machine"):
        first.membership.claim()
    assert second.membership.holder.slot == 0
    assert slot_on(volume, 1).state is SlotState.FREE


def membership(device: RamDevice, name: str, clock: FakeClock, boot: uuid.UUID, **change: uuid.UUID) -> Membership:
    region = SlotRegion(registers_on(device, ExtentSet([device]), clock), SLOTS_AT, STRIDE, 8, PREFIX, clock)
    identity = replace(HostIdentity.detect(name, boot), **change)  # type: ignore[arg-type]
    return Membership(region, identity, TIMERS, clock, volume_name="ds1")


@BOTH
def test_a_silent_mount_of_the_name_elsewhere_is_dead_after_the_break_time(volume: RamDevice) -> None:
    clock = FakeClock(sleep_advances=True)
    membership(volume, "esx1", clock, uuid.uuid4()).claim()
    began = clock.now()
    second = membership(volume, "esx1", clock, uuid.uuid4())
    second.claim()
    assert TIMERS.break_s <= clock.now() - began < 1.5 * TIMERS.break_s
    assert second.predecessors == (0,)
    assert second.holder.slot == 1
    second.begin_recovery(0)
    second.finish_recovery(0)
    assert slot_on(volume, 0).state is SlotState.FREE


@BOTH
def test_a_living_mount_of_the_name_elsewhere_is_refused_as_soon_as_it_beats(volume: RamDevice) -> None:
    clock = FakeClock(sleep_advances=True)
    first = membership(volume, "esx1", clock, uuid.uuid4())
    first.claim()

    class Beating(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            first.beat()

    watching = Beating(clock.now(), sleep_advances=True)
    with pytest.raises(HostNameInUse, match="another machine or boot"):
        membership(volume, "esx1", watching, uuid.uuid4()).claim()
    assert [slot_on(volume, i).state for i in (0, 1)] == [SlotState.LIVE, SlotState.FREE]


def test_this_machine_rebooted_finds_its_old_slot_dead_at_once(volume: RamDevice) -> None:
    clock = FakeClock()  # a sleep would block for ever: nothing may be watched
    before = membership(volume, "esx1", clock, uuid.uuid4())
    before.claim()
    after = membership(volume, "esx1", clock, uuid.uuid4(), host_uuid=before.identity.host_uuid)
    after.claim()
    assert after.predecessors == (0,)
    after.begin_recovery(0)


def test_another_name_on_the_rebooted_machine_is_not_declared_dead_by_it(volume: RamDevice) -> None:
    clock = FakeClock()
    before = membership(volume, "esx1", clock, uuid.uuid4())
    before.claim()
    other = membership(volume, "esx2", clock, uuid.uuid4(), host_uuid=before.identity.host_uuid)
    other.claim()
    assert other.predecessors == ()
    assert other.dead_slots() == {}


@pytest.mark.expected_log("0x10000: heartbeat slot 0: checksum")
def test_a_damaged_slot_is_passed_over_and_reported(volume: RamDevice) -> None:
    volume.write(SLOTS_AT, b"garbage!" * 64)
    one = membership(volume, "esx1", FakeClock(sleep_advances=True), uuid.uuid4())
    one.claim()
    assert one.holder.slot == 1
    one.beat()
    assert one.snapshot is not None
    damaged = one.snapshot.damaged
    assert [v.slot for v in damaged] == [0]
    assert "checksum" in str(damaged[0].damage)
