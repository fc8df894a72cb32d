"""Locks while hosts die, leases lapse and answers are lost (R1, R6, R10); many locks; closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.cluster.scripted import Fate, ScriptedDevice
from tests.cluster.world import BOTH, PREFIX, Host, image_at, lock_address
from vmfs.cluster.locktable import LockRequest
from vmfs.devices.ram import RamDevice
from vmfs.errors import DamagedBlock, DeviceError, LeaseExpired, LockedByOther, MountClosing
from vmfs.ondisk.lock import Guards, Holder, LockMode, LockRecord, parse_lock

MakeHost = Callable[..., Host]
A, B = lock_address(0), lock_address(1)
SHARED = LockMode.SHARED
TEST = Guards.TEST


def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def on_disk(volume: RamDevice, address: int) -> LockRecord:
    return parse_lock(image_at(volume, address), address, PREFIX)


@BOTH
def test_a_dead_host_of_another_machine_is_broken_after_b_and_its_locks_are_void(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    one.locks.acquire(A, TEST)
    one.locks.acquire(B, TEST)
    one.crash()
    crashed = time.monotonic()
    assert two.locks.acquire(A, TEST, wait=5).version == 2
    assert two.recovered == [0]
    assert time.monotonic() - crashed > two.timers.break_s - two.timers.interval_s
    assert two.locks.acquire(B, TEST, wait=0).version == 2  # with the same recovery
    assert two.recovered == [0]


@BOTH
def test_a_recoverer_that_dies_is_recovered_first(host: MakeHost) -> None:
    """R6: recovering is overtaken only once the recoverer's incarnation has itself been recovered."""
    one, two, three = (host(f"esx{i}").join() for i in (1, 2, 3))
    one.locks.acquire(A, TEST)
    one.crash()
    until(lambda: 0 in two.membership.dead_slots())
    two.membership.begin_recovery(0)
    assert three.membership.recovery.recoverable(0) is None  # its recoverer lives
    two.crash()
    three.locks.acquire(A, TEST, wait=5)
    assert three.recovered == [1, 0]


@BOTH
def test_a_slot_handed_back_is_taken_up_and_a_failed_one_waits_for_an_operator(host: MakeHost) -> None:
    one, two, three = (host(f"esx{i}").join() for i in (1, 2, 3))
    one.crash()
    until(lambda: 0 in two.membership.dead_slots())
    two.membership.begin_recovery(0)
    two.membership.hand_back(0)
    three.membership.begin_recovery(0)
    three.membership.fail_recovery(0)
    assert two.membership.dead_slots() == {}
    dead = two.membership.begin_recovery(0, operator=True)
    assert dead.host_name == "esx1"
    two.membership.finish_recovery(0)
    assert two.membership.read_slot(0).require().incarnation == 2


@pytest.mark.expected_log("heartbeat was not answered")
@pytest.mark.expected_log("lease has run out")
@BOTH
def test_without_a_lease_nothing_is_submitted_or_handed_out(volume: RamDevice, host: MakeHost) -> None:
    device = ScriptedDevice(volume)
    one = host("esx1", device=device).join()
    tenure = one.locks.acquire(A, TEST)
    device.all_fail = True
    until(lambda: one.events == ["expired"])
    device.sent.clear()
    with pytest.raises(LeaseExpired):
        one.locks.acquire(A, TEST)
    with pytest.raises(LeaseExpired):
        one.locks.acquire(B, TEST)
    one.locks.unpin(tenure)
    time.sleep(0.1)
    assert {offset for offset, _, _ in device.sent} <= {one.membership.region.address(0)}  # heartbeats alone
    device.all_fail = False
    until(lambda: one.locks.held(A) is None)  # it goes on where it was
    assert on_disk(volume, A).mode is LockMode.FREE


@pytest.mark.parametrize("fate", [Fate.NOT_DONE, Fate.ANSWER_LOST])
def test_a_lock_whose_answer_was_lost_is_used_at_a_new_version_only(
    volume: RamDevice, host: MakeHost, fate: Fate
) -> None:
    """R10."""
    device = ScriptedDevice(volume)
    one = host("esx1", device=device).join(start=False)
    device.fates.append(fate)
    tenure = one.locks.acquire(A, TEST)
    assert tenure.version == 2  # version 1 was in the image of unknown fate
    assert on_disk(volume, A).version == 2
    device.fates.append(fate)
    one.locks.unpin(tenure)
    assert one.locks.release(A)
    record = on_disk(volume, A)
    assert record.mode is LockMode.FREE
    assert record.version == (3 if fate is Fate.NOT_DONE else 2)  # landed: known by reading, and free
    device.sent.clear()


def test_an_image_that_lands_late_changes_nothing(volume: RamDevice, host: MakeHost) -> None:
    device = ScriptedDevice(volume)
    one = host("esx1", device=device).join(start=False)
    device.fates.append(Fate.LATE)
    tenure = one.locks.acquire(A, TEST)
    device.fates.append(Fate.LATE)
    one.locks.unpin(tenure)
    one.locks.release(A)
    free = on_disk(volume, A)
    assert device.land_late() == [False, False]
    assert on_disk(volume, A) == free


def test_a_lock_in_doubt_is_not_reported_and_is_set_free_in_the_background(volume: RamDevice, host: MakeHost) -> None:
    """The taker got an error; its image lands afterwards. Nobody may think that this host holds the lock for ever."""
    device = ScriptedDevice(volume)
    one, two = host("esx1", device=device).join(start=False), host("esx2").join(start=False)
    device.fates.extend([Fate.NOT_DONE, Fate.NOT_DONE, Fate.LATE])
    with pytest.raises(DeviceError):
        one.locks.acquire(A, TEST)
    assert one.locks.held(A) is None
    assert device.land_late() == [True]
    assert on_disk(volume, A).owner == one.membership.holder
    until(lambda: on_disk(volume, A).mode is LockMode.FREE)
    assert on_disk(volume, A).version > 3  # above all that were tried
    assert two.locks.acquire(A, TEST, wait=1).version > 4


@BOTH
def test_many_locks_are_taken_all_or_none(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    blocked = one.locks.acquire(B, TEST)
    wanted = [LockRequest(B, TEST), LockRequest(A, TEST)]
    with pytest.raises(LockedByOther):
        two.locks.acquire_many(wanted, wait=0.2)
    assert two.locks.release(A) or two.locks.held(A) is None
    one.locks.unpin(blocked)
    tenures = two.locks.acquire_many(wanted, wait=3)
    assert [t.address for t in tenures] == [B, A]


@BOTH
def test_hosts_that_take_many_locks_in_any_order_all_go_on(host: MakeHost) -> None:
    hosts = [host("esx1").join(), host("esx2").join()]
    done = {h.name: 0 for h in hosts}
    end = time.monotonic() + 1.5

    def work(h: Host, addresses: list[int]) -> None:
        while time.monotonic() < end:
            for tenure in h.locks.acquire_many([LockRequest(a, TEST) for a in addresses]):
                h.locks.unpin(tenure)
            done[h.name] += 1

    orders = [[A, B], [B, A]]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(hosts, orders, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert all(count > 3 for count in done.values()), done


@BOTH
def test_closing_gives_up_what_is_unpinned_and_refuses_more(volume: RamDevice, host: MakeHost) -> None:
    one = host("esx1").join()
    pinned = one.locks.acquire(A, TEST)
    one.locks.unpin(one.locks.acquire(B, TEST, sticky=True))
    one.locks.close()
    assert (on_disk(volume, A).owner, on_disk(volume, B).mode) == (one.membership.holder, LockMode.FREE)
    with pytest.raises(MountClosing):
        one.locks.acquire(B, TEST)
    one.locks.unpin(pinned)
    one.membership.leave()
    two = host("esx2").join()
    assert two.locks.acquire(A, TEST, wait=0).version == 2  # void with its incarnation


def test_damaged_and_misplaced_locks_are_errors(volume: RamDevice, host: MakeHost) -> None:
    one = host("esx1").join()
    with pytest.raises(DamagedBlock, match="never formatted"):
        one.locks.acquire(lock_address(100), TEST)
    with pytest.raises(DamagedBlock, match="guards TEST, not INODE"):
        one.locks.acquire(A, Guards.INODE)
    sector = bytearray(volume.read(B, 512))
    sector[30] ^= 1
    volume.write(B, bytes(sector))
    with pytest.raises(DamagedBlock, match="checksum"):
        one.locks.acquire(B, TEST)
    volume.write(B, LockRecord(B, PREFIX, TEST, LockMode.EXCLUSIVE, 1, 1, Holder(8, 1)).pack(512))
    with pytest.raises(DamagedBlock, match="does not have"):
        one.locks.acquire(B, TEST)
    assert one.locks.all_held() == []


@pytest.mark.expected_log("fenced")
@BOTH
def test_a_fenced_host_loses_every_tenure(volume: RamDevice, host: MakeHost) -> None:
    one, two = host("esx1").join(start=False), host("esx2").join()
    tenure = one.locks.acquire(A, TEST)
    assert two.locks.acquire(A, TEST, wait=5).version == 2
    one.membership.beat()
    assert one.events == ["fenced"]
    assert tenure.lost
    assert one.locks.all_held() == []
    one.locks.unpin(tenure)  # of a lost tenure: nothing to do
    assert on_disk(volume, A).owner == two.membership.holder
