from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.cluster.scripted import Fate, ScriptedDevice
from tests.cluster.world import BOTH, PREFIX, Host, format_volume, image_at, lock_address
from vmfs.cluster.lockrelease import HOLD_S
from vmfs.cluster.locktable import Tenure
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, LockedByOther, LockUpgradeRefused
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
def test_a_lock_is_taken_kept_a_moment_and_given_up(volume: RamDevice, host: MakeHost) -> None:
    released: list[Tenure] = []
    one = host("esx1", before_release=released.append).join()
    tenure = one.locks.acquire(A, TEST)
    record = on_disk(volume, A)
    assert (record.mode, record.owner, record.version) == (LockMode.EXCLUSIVE, one.membership.holder, 1)
    assert (tenure.version, tenure.slot, tenure.incarnation) == (1, 0, 1)
    assert one.locks.acquire(A, TEST) is tenure  # re-entrant
    one.locks.unpin(tenure)
    time.sleep(0.06)
    assert on_disk(volume, A) == record  # still pinned once
    one.locks.unpin(tenure)
    assert one.locks.held(A) is tenure
    until(lambda: on_disk(volume, A).mode is LockMode.FREE)
    until(lambda: one.locks.held(A) is None)
    assert released == [tenure]
    assert on_disk(volume, A).version == 1  # kept by the release ...
    assert one.locks.acquire(A, TEST).version == 2  # ... and grown by the next hold
    with pytest.raises(ValueError, match="not held"):
        one.locks.unpin(tenure)


def test_no_io_while_the_lock_is_cached(volume: RamDevice, host: MakeHost) -> None:
    device = ScriptedDevice(volume)
    one = host("esx1", device=device).join(start=False)
    one.locks.unpin(one.locks.acquire(A, TEST, sticky=True))
    sent = len(device.sent)
    time.sleep(0.06)  # beyond the idle time: it is sticky
    for _ in range(100):
        one.locks.unpin(one.locks.acquire(A, TEST))
    assert len(device.sent) == sent


@BOTH
def test_who_does_not_wait_is_told_the_holder_at_once(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    tenure = one.locks.acquire(A, TEST)
    began = time.monotonic()
    with pytest.raises(LockedByOther, match="locked by host esx1") as caught:
        two.locks.acquire(A, TEST, wait=0)
    assert time.monotonic() - began < 0.1
    assert caught.value.holder == "esx1"
    view = two.locks.holders(A)
    assert (view.names, view.void, view.waiter_name) == (("esx1",), frozenset(), None)
    with pytest.raises(LockedByOther):
        two.locks.acquire(A, TEST, wait=0.1)
    assert one.locks.peek(A).waiter is None  # the mark was taken out again
    one.locks.unpin(tenure)
    assert two.locks.acquire(A, TEST, wait=1).version == 2


@BOTH
def test_a_local_thread_that_does_not_wait_is_not_held_up_by_one_that_does(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    tenure = one.locks.acquire(A, TEST)
    got: list[Tenure] = []
    waiting = threading.Thread(target=lambda: got.append(two.locks.acquire(A, TEST, wait=5)))
    waiting.start()
    until(lambda: one.locks.peek(A).waiter == two.membership.holder)
    began = time.monotonic()
    with pytest.raises(LockedByOther, match="esx1"):
        two.locks.acquire(A, TEST, wait=0)
    assert time.monotonic() - began < 0.1
    one.locks.unpin(tenure)
    waiting.join()
    assert got[0].version == 2


@pytest.mark.parametrize("fate", [Fate.NOT_DONE, Fate.ANSWER_LOST])
@BOTH
def test_a_mark_whose_answer_was_lost_does_no_harm(volume: RamDevice, host: MakeHost, fate: Fate) -> None:
    device = ScriptedDevice(volume)
    one, two = host("esx1").join(), host("esx2", device=device).join(start=False)
    tenure = one.locks.acquire(A, TEST)
    device.fates.append(fate)
    with pytest.raises(LockedByOther):
        two.locks.acquire(A, TEST, wait=0.1)
    assert one.locks.peek(A).waiter is None
    one.locks.unpin(tenure)
    assert two.locks.acquire(A, TEST, wait=1).version == 2


@BOTH
def test_a_thread_that_does_not_wait_is_let_in_after_the_pins_did_not_drain(host: MakeHost) -> None:
    """A lock that one thread pins for long is not refused to another of this host because a third host wants it."""
    one, two = host("esx1").join(), host("esx2").join()
    pinned = one.locks.acquire(A, TEST)

    def wait_in_vain() -> None:
        with pytest.raises(LockedByOther):
            two.locks.acquire(A, TEST, wait=1.0)

    waiting = threading.Thread(target=wait_in_vain)
    waiting.start()
    until(lambda: one.locks.peek(A).waiter == two.membership.holder)
    threads: list[threading.Thread] = []
    got: list[Tenure] = []
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        threads.append(threading.Thread(target=lambda: got.append(one.locks.acquire(A, TEST, wait=0))))
        threads[-1].start()
        time.sleep(0.02)
    for t in (*threads, waiting):
        t.join()
    assert got == [pinned] * len(threads)


@BOTH
def test_the_mark_of_a_waiter_ends_continuous_use(host: MakeHost) -> None:
    """Threads of one host use the lock without a gap; the other host gets it within a few hold times."""
    one, two = host("esx1").join(), host("esx2").join()
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            tenure = one.locks.acquire(A, TEST)
            time.sleep(0.002)
            one.locks.unpin(tenure)

    users = [threading.Thread(target=use) for _ in range(3)]
    for t in users:
        t.start()
    time.sleep(2 * HOLD_S)
    began = time.monotonic()
    tenure = two.locks.acquire(A, TEST, wait=5)
    assert time.monotonic() - began < 5 * HOLD_S
    two.locks.unpin(tenure)
    stop.set()
    for t in users:
        t.join()


@BOTH
def test_two_hosts_that_hammer_get_a_fair_share_each(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    end = time.monotonic() + 2.5
    done = {"esx1": 0, "esx2": 0}
    inside: list[str] = []

    def hammer(h: Host) -> None:
        while time.monotonic() < end:
            tenure = h.locks.acquire(A, TEST)
            inside.append(h.name)
            assert set(inside) == {h.name}
            time.sleep(0.001)
            inside.remove(h.name)
            done[h.name] += 1
            h.locks.unpin(tenure)

    threads = [threading.Thread(target=hammer, args=(h,)) for h in (one, two)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert min(done.values()) > 0.2 * sum(done.values()), done


@BOTH
def test_a_sticky_lock_is_given_up_when_asked_through_the_slot(volume: RamDevice, host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    one.locks.unpin(one.locks.acquire(A, TEST, sticky=True))
    began = time.monotonic()
    two.locks.unpin(two.locks.acquire(A, TEST, wait=3))
    assert time.monotonic() - began < 3 * one.timers.interval_s
    two.membership.beat()
    assert two.membership.record.requests == ()  # taken back


@BOTH
def test_sharers_share_and_a_writer_gets_its_turn(volume: RamDevice, host: MakeHost) -> None:
    one, two, three = (host(f"esx{i}").join() for i in (1, 2, 3))
    shared = [h.locks.acquire(A, TEST, SHARED) for h in (one, two)]
    assert set(on_disk(volume, A).holders) == {one.membership.holder, two.membership.holder}
    assert [t.version for t in shared] == [1, 2]
    with pytest.raises(LockedByOther, match="esx1, esx2"):
        three.locks.acquire(A, TEST, wait=0)
    got: list[Tenure] = []
    writer = threading.Thread(target=lambda: got.append(three.locks.acquire(A, TEST, wait=5)))
    writer.start()
    until(lambda: on_disk(volume, A).waiter == three.membership.holder)
    with pytest.raises(LockedByOther):  # the intent keeps new sharers away
        host("esx4").join().locks.acquire(A, TEST, SHARED, wait=0.1)
    for h, t in zip((one, two), shared, strict=True):
        h.locks.unpin(t)
    writer.join()
    assert on_disk(volume, A).owner == three.membership.holder
    assert got[0].mode is LockMode.EXCLUSIVE


@BOTH
def test_shared_to_exclusive_gives_the_shared_hold_up_first(volume: RamDevice, host: MakeHost) -> None:
    released: list[tuple[LockMode, int]] = []
    one = host("esx1", before_release=lambda t: released.append((t.mode, t.version))).join()
    shared = one.locks.acquire(A, TEST, SHARED)
    with pytest.raises(LockUpgradeRefused):
        one.locks.acquire(A, TEST)
    one.locks.unpin(shared)
    exclusive = one.locks.acquire(A, TEST)
    assert released == [(SHARED, 1)]
    assert exclusive.version == 2
    assert one.locks.acquire(A, TEST, SHARED) is exclusive  # exclusive serves a sharer


@BOTH
def test_two_upgraders_do_not_deadlock(host: MakeHost) -> None:
    hosts = [host("esx1").join(), host("esx2").join()]
    for h in hosts:
        h.locks.unpin(h.locks.acquire(A, TEST, SHARED, sticky=True))
    versions: list[int] = []

    def upgrade(h: Host) -> None:
        tenure = h.locks.acquire(A, TEST, wait=5)
        versions.append(tenure.version)
        h.locks.unpin(tenure)

    threads = [threading.Thread(target=upgrade, args=(h,)) for h in hosts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(versions)) == 2


@BOTH
def test_the_seventeenth_sharer_waits(volume: RamDevice, host: MakeHost) -> None:
    format_volume(volume, slots=20)
    one = host("esx1", slots=20).join()
    sharers = tuple(Holder(slot, 1) for slot in range(1, 17))
    full = LockRecord(A, PREFIX, TEST, SHARED, 16, 16, None, sharers)
    volume.write(A, full.pack(512))
    with pytest.raises(LockedByOther):
        one.locks.acquire(A, TEST, SHARED, wait=0)


def test_a_hold_of_an_ended_incarnation_is_void_and_of_no_other(volume: RamDevice, host: MakeHost) -> None:
    """R7: void only when the slot's incarnation is greater; a lock that is newer than the slot seen is not."""
    one = host("esx1").join()
    ended = LockRecord(A, PREFIX, TEST, LockMode.EXCLUSIVE, 9, 9, Holder(3, 1))
    volume.write(A, ended.pack(512))  # slot 3 is free, with incarnation 0: not greater
    with pytest.raises(LockedByOther):
        one.locks.acquire(A, TEST, wait=0)
    other = host("esx2").join(start=False)
    slot = other.membership.holder.slot
    other.leave()
    volume.write(A, LockRecord(A, PREFIX, TEST, LockMode.EXCLUSIVE, 10, 10, Holder(slot, 1)).pack(512))
    assert one.locks.acquire(A, TEST, wait=0).version == 11


@BOTH
def test_the_value_block_passes_from_holder_to_holder(host: MakeHost) -> None:
    one, two = host("esx1").join(), host("esx2").join()
    tenure = one.locks.acquire(A, TEST)
    assert tenure.value == bytes(32)
    tenure.value = b"v" * 32
    with pytest.raises(ValueError, match="value of 3"):
        tenure.value = b"abc"
    one.locks.unpin(tenure)
    assert one.locks.release(A)
    assert two.locks.acquire(A, TEST, SHARED).value == b"v" * 32


@pytest.mark.expected_log("could not be given up")
@BOTH
def test_a_lock_whose_work_can_not_be_put_in_order_is_kept(volume: RamDevice, host: MakeHost) -> None:
    failing = [True]

    def before_release(tenure: Tenure) -> None:
        if failing[0]:
            raise DeviceError("lun", "flush", 0, 0, "ordered")

    one = host("esx1", before_release=before_release).join()
    tenure = one.locks.acquire(A, TEST)
    one.locks.unpin(tenure)
    time.sleep(0.1)
    assert one.locks.held(A) is tenure
    assert on_disk(volume, A).owner == one.membership.holder
    with pytest.raises(DeviceError):
        one.locks.release(A)
    failing[0] = False
    until(lambda: on_disk(volume, A).mode is LockMode.FREE)
