"""What every implementation of persistent reservations must do (SPC-4, 5.12, as rules R2 and R3 need it)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.devices.conftest import DEVICE_BYTES
from vmfs.devices.contract import Device
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservations
from vmfs.errors import DeviceError, ReservationConflict

Open = Callable[[], Device]
"""Opens the LUN again, on a nexus of its own."""

BLOCK = bytes(4096)


@pytest.fixture(params=["ram", "fault"])
def nexus(request: pytest.FixtureRequest) -> Open:
    lun = RamDevice(DEVICE_BYTES, reservations=True)
    if request.param == "ram":
        return lun.again
    return lambda: FaultDevice(lun.again(), seed=1, plan=FaultPlan(volatile_cache=False))


def of(device: Device) -> Reservations:
    found = device.reservations()
    assert found is not None
    return found


def changes(device: Device) -> tuple[Callable[[], object], ...]:
    return (
        lambda: device.write(0, BLOCK),
        lambda: device.compare_and_write(0, device.read(0, 512), bytes(512)),
        lambda: device.write_zeros(0, 4096),
    )


def test_a_lun_without_reservations_admits_everyone(nexus: Open) -> None:
    one, two = nexus(), nexus()
    assert of(one).keys() == ()
    assert of(one).reservation() is None
    of(one).register(1)
    for change in (*changes(one), *changes(two)):
        change()


def test_who_is_registered_may_write_and_others_may_read(nexus: Open) -> None:
    one, two, stranger = nexus(), nexus(), nexus()
    of(one).register(0xA)
    of(one).reserve()
    of(two).register(0xB)
    found = of(stranger).reservation()
    assert found is not None
    assert (found.type, found.scope) == (WRITE_EXCLUSIVE_ALL_REGISTRANTS, 0)
    assert sorted(of(stranger).keys()) == [0xA, 0xB]
    for change in (*changes(one), *changes(two)):
        change()
    two.write(4096, b"\x22" * 4096)
    for change in (*changes(stranger), stranger.flush):
        with pytest.raises(ReservationConflict):
            change()
    assert stranger.read(4096, 4096) == b"\x22" * 4096


def test_registering_again_replaces_the_key(nexus: Open) -> None:
    one = nexus()
    of(one).register(1)
    of(one).register(2)
    assert of(one).keys() == (2,)


def test_two_nexuses_may_have_one_key_and_lose_it_together(nexus: Open) -> None:
    one, two, three = nexus(), nexus(), nexus()
    for each, key in ((one, 7), (two, 7), (three, 8)):
        of(each).register(key)
    of(three).reserve()
    assert sorted(of(three).keys()) == [7, 7, 8]
    assert of(three).preempt_and_abort(7)
    assert of(three).keys() == (8,)
    for victim in (one, two):
        with pytest.raises(ReservationConflict):
            victim.write(0, BLOCK)


@pytest.mark.parametrize("key", [0, -1, 1 << 64])
def test_a_number_that_is_no_key_is_refused(nexus: Open, key: int) -> None:
    with pytest.raises(ValueError, match="no reservation key"):
        of(nexus()).register(key)


def test_reserving_twice_is_reserving_once_and_takes_a_registration(nexus: Open) -> None:
    one, two = nexus(), nexus()
    with pytest.raises(ReservationConflict):
        of(one).reserve()
    for each, key in ((one, 1), (two, 2)):
        of(each).register(key)
        of(each).reserve()
        of(each).reserve()


def test_the_reservation_outlives_its_maker_and_goes_with_the_last_one(nexus: Open) -> None:
    one, two, stranger = nexus(), nexus(), nexus()
    of(one).register(1)
    of(one).reserve()
    of(two).register(2)
    of(one).unregister()
    with pytest.raises(ReservationConflict):
        one.write(0, BLOCK)
    two.write(0, BLOCK)
    of(two).unregister()
    assert of(stranger).reservation() is None
    stranger.write(0, BLOCK)


def test_unregistering_without_a_registration_does_nothing(nexus: Open) -> None:
    of(nexus()).unregister()


def test_a_preempted_host_is_refused_until_it_registers_again(nexus: Open) -> None:
    one, two = nexus(), nexus()
    of(one).register(1)
    of(two).register(2)
    of(two).reserve()
    assert of(two).preempt_and_abort(1)
    assert not of(two).preempt_and_abort(1)
    for change in changes(one):
        with pytest.raises(ReservationConflict) as caught:
            change()
        assert isinstance(caught.value, DeviceError)
    with pytest.raises(ReservationConflict):
        of(one).preempt_and_abort(2)
    with pytest.raises(ReservationConflict):
        of(one).reserve()
    of(one).register(3)
    one.write(0, BLOCK)
    assert sorted(of(one).keys()) == [2, 3]


def test_nobody_preempts_who_is_not_registered(nexus: Open) -> None:
    one = nexus()
    of(one).register(1)
    of(one).reserve()
    assert not of(one).preempt_and_abort(99)
    assert of(one).keys() == (1,)


def test_clear_takes_everything_away(nexus: Open) -> None:
    one, two = nexus(), nexus()
    of(one).register(1)
    of(two).register(2)
    of(two).reserve()
    with pytest.raises(ReservationConflict):
        of(nexus()).clear()
    of(one).clear()
    assert of(one).keys() == ()
    assert of(one).reservation() is None
    two.write(0, BLOCK)


def test_registrations_outlive_the_connection(nexus: Open) -> None:
    """As APTPL has it, and as a host that lost its path and was not fenced needs it."""
    one, two = nexus(), nexus()
    of(one).register(1)
    of(one).reserve()
    one.close()
    assert of(two).keys() == (1,)
    assert of(two).reservation() is not None
    with pytest.raises(ReservationConflict):
        two.write(0, BLOCK)


def test_no_write_of_a_preempted_host_lands_afterwards(nexus: Open) -> None:
    """It writes as fast as it can; from the answer to PREEMPT AND ABORT on the block stays as it is."""
    victim, breaker = nexus(), nexus()
    of(victim).register(1)
    of(breaker).register(2)
    of(breaker).reserve()
    writing, refused = threading.Event(), threading.Event()

    def burst() -> None:
        count = 0
        try:
            while True:
                count += 1
                victim.write(0, count.to_bytes(8, "little") * 512)
                writing.set()
        except ReservationConflict:
            refused.set()

    thread = threading.Thread(target=burst, name="burst")
    thread.start()
    assert writing.wait(30)
    of(breaker).preempt_and_abort(1)
    first = breaker.read(0, 4096)
    assert refused.wait(30)
    thread.join()
    assert breaker.read(0, 4096) == first
    assert first == first[:8] * 512


# -- the LUN in memory: writes that it has taken and not executed -----------------------------------


@pytest.mark.parametrize(("abort", "lands"), [(True, False), (False, True)])
def test_an_accepted_write_is_ended_by_abort_alone(abort: bool, lands: bool) -> None:
    """Why a plain PREEMPT is not enough (R2)."""
    lun = RamDevice(DEVICE_BYTES, reservations=True)
    victim, breaker = lun.again(), lun.again()
    of(victim).register(1)
    of(breaker).register(2)
    of(breaker).reserve()
    land = victim.accept(4096, b"\x11" * 4096)
    theirs = breaker.reservations()
    assert theirs is not None
    (theirs.preempt_and_abort if abort else theirs.preempt)(1)  # type: ignore[attr-defined]
    assert land() is lands
    assert breaker.read(4096, 4096) == (b"\x11" if lands else b"\0") * 4096
    assert not land()


def test_late_writes_of_a_fault_device_are_aborted_with_their_host() -> None:
    lun = RamDevice(DEVICE_BYTES, reservations=True)
    victim = FaultDevice(lun.again(), 1, FaultPlan(volatile_cache=False, late_write_rate=1.0))
    breaker = lun.again()
    of(victim).register(1)
    of(breaker).register(2)
    of(breaker).reserve()
    with pytest.raises(DeviceError, match="late"):
        victim.write(0, b"\x11" * 4096)
    of(breaker).preempt_and_abort(1)
    victim.land_late_writes()
    assert breaker.read(0, 4096) == BLOCK
    assert "aborted" in victim.decisions[-1]
