"""A LUN that refuses a host which was not fenced: nothing is lost, and its users only wait (R3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.core.ramhost import BLOCK, CONTEXT, RamHost, RamVolume
from vmfs.cluster.keys import key_of
from vmfs.core.transactions import MountFailed
from vmfs.devices.reservations import Reservations
from vmfs.errors import ReservationConflict
from vmfs.ondisk.slot import SlotState

WAIT_S = 30.0


@pytest.fixture
def volume() -> Iterator[RamVolume]:
    made = RamVolume(fenced=True)
    yield made
    made.abandon_all()


def registration(host: RamHost) -> Reservations:
    found = host.core.volume.extents.device(0).reservations()
    assert found is not None
    return found


@pytest.mark.expected_log("a LUN refuses this host")
@pytest.mark.expected_log("registration was lost, and is made again")
@pytest.mark.expected_log("lease has run out")
@pytest.mark.expected_log("not answered")
def test_users_of_a_host_that_lost_its_registration_only_wait(volume: RamVolume) -> None:
    one, _ = volume.host("esx1"), volume.host("esx2")
    node, fh = one.create("disk")
    one.write(fh, 0, b"\x01" * BLOCK)
    for number in range(3):
        registration(one).unregister()
        with pytest.raises(ReservationConflict):
            one.core.volume.extents.device(0).write(120 << 10, bytes(4096))
        one.write(fh, number * 4096, bytes([number + 2]) * 4096)  # in place
        one.write(fh, (number + 1) * BLOCK, bytes([number + 2]) * BLOCK)  # with room to be found
        one.fs.fsync(CONTEXT, node, fh, False)
        assert key_of(one.core.membership.holder) in registration(one).keys()  # noqa: SIM118
    assert one.read(fh, 0, 3 * 4096) == b"".join(bytes([n + 2]) * 4096 for n in range(3))
    one.close(node, fh)
    volume.leave_all()
    volume.check()


@pytest.mark.expected_log("fenced by")
@pytest.mark.expected_log("lease has run out")
@pytest.mark.expected_log("a LUN refuses this host")
@pytest.mark.expected_log("not answered")
@pytest.mark.expected_log("mount failed")
@pytest.mark.expected_log("write to inode")
@pytest.mark.expected_log("recovered host")
@pytest.mark.expected_log("a lock could not be given up")
def test_a_fenced_host_fails_its_users_and_changes_nothing(volume: RamVolume) -> None:
    """Its key is taken away as by a breaker; its slot says RECOVERING. Its threads stand in the middle of a burst."""
    one, two = volume.host("esx1"), volume.host("esx2")
    node, fh = one.create("disk")
    one.write(fh, 0, b"\x01" * BLOCK)
    one.fs.fsync(CONTEXT, node, fh, False)
    failed = threading.Event()

    def burst() -> None:
        try:
            while True:
                one.write(fh, 0, b"\x02" * 4096)
        except (OSError, MountFailed):
            failed.set()

    thread = threading.Thread(target=burst, name="burst")
    thread.start()
    slot = one.core.membership.holder.slot
    recovery = two.core.membership.recovery
    view = one.core.membership.region.read(slot)
    while True:  # until no heartbeat comes between the look and the swap
        record = view.require()
        taken = record.turned(SlotState.RECOVERING, two.core.membership.holder)
        if recovery._swap(slot, view.raw, taken):
            break
        view = one.core.membership.region.read(slot)
    two.core.membership.standing.fence.cut_off([record.holder])
    after = volume.device.read(0, volume.device.size_bytes)
    assert failed.wait(WAIT_S)
    thread.join(WAIT_S)
    until = time.monotonic() + WAIT_S
    while not one.core.membership.fenced and time.monotonic() < until:
        time.sleep(0.01)
    assert one.core.membership.fenced
    assert registration(two).keys() == (key_of(two.core.membership.holder),)
    journal = one.core.geometry.journal_address(slot)
    size = one.core.volume.superblock.journal_bytes
    assert volume.device.read(journal, size) == after[journal : journal + size]
    two.core.locks.recoveries.run(slot)
