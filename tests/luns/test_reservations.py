"""Persistent reservations on a real array: who is fenced writes nothing any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.luns.lun import Lun
from vmfs.devices import Device, open_device
from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservation, Reservations
from vmfs.errors import ReservationConflict

KEYS = (0xA001, 0xB001)
WAIT_SECONDS = 60
SECTOR = 512


@pytest.fixture
def hosts(lio_lun: Lun) -> Iterator[tuple[Device, Device]]:
    """Two hosts on one LUN."""
    opened = (open_device(lio_lun.url), open_device(lio_lun.url))
    yield opened
    for device in opened:
        device.close()


def _reservations(device: Device) -> Reservations:
    found = device.reservations()
    assert found is not None
    return found


def test_register_reserve_clear(hosts: tuple[Device, Device]) -> None:
    a, b = (_reservations(device) for device in hosts)
    assert a.keys() == ()
    assert a.reservation() is None
    a.register(KEYS[0])
    a.register(KEYS[0])
    b.register(KEYS[1])
    assert sorted(a.keys()) == sorted(KEYS)
    a.reserve()
    b.reserve()
    assert b.reservation() == Reservation(WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    for device in hosts:
        device.write(0, b"x" * SECTOR)
        device.flush()
    a.unregister()
    a.unregister()
    assert b.keys() == (KEYS[1],)
    assert b.reservation() == Reservation(WRITE_EXCLUSIVE_ALL_REGISTRANTS)  # it outlives the one who made it
    b.clear()
    assert (b.keys(), b.reservation()) == ((), None)


def test_who_is_not_registered_reads_and_changes_nothing(hosts: tuple[Device, Device]) -> None:
    inside, outside = hosts
    outside.write(0, b"before" + bytes(SECTOR - 6))
    _reservations(inside).register(KEYS[0])
    _reservations(inside).reserve()
    assert outside.read(0, SECTOR).startswith(b"before")
    assert outside.lock_methods() == inside.lock_methods()  # though it may not try
    for change in (
        lambda: outside.write(0, bytes(SECTOR)),
        lambda: outside.compare_and_write(0, outside.read(0, SECTOR), bytes(SECTOR)),
        lambda: outside.discard(0, 1 << 20),
        lambda: outside.write_zeros(0, 1 << 20),
    ):
        with pytest.raises(ReservationConflict, match="not registered"):
            change()
    assert inside.read(0, SECTOR).startswith(b"before")


@pytest.mark.parametrize("holder", [0, 1])
def test_preempt_and_abort(hosts: tuple[Device, Device], holder: int) -> None:
    """Whoever of the two made the reservation: it stays, and only the victim's key goes."""
    winner, victim = (_reservations(device) for device in hosts)
    winner.register(KEYS[0])
    victim.register(KEYS[1])
    (winner, victim)[holder].reserve()
    assert winner.preempt_and_abort(KEYS[1])
    assert winner.keys() == (KEYS[0],)
    assert not winner.preempt_and_abort(KEYS[1])
    winner.reserve()
    assert winner.reservation() == Reservation(WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    hosts[0].write(0, b"w" * SECTOR)
    with pytest.raises(ReservationConflict):
        hosts[1].write(0, b"v" * SECTOR)
    with pytest.raises(ReservationConflict):
        victim.preempt_and_abort(KEYS[0])


def test_a_victim_that_writes_all_the_time_is_refused_and_nothing_of_it_lands_later(
    hosts: tuple[Device, Device],
) -> None:
    """Many threads write through the moment at which the key is taken away."""
    winner, victim = hosts
    _reservations(winner).register(KEYS[0])
    _reservations(winner).reserve()
    _reservations(victim).register(KEYS[1])
    writers = 6
    refused: list[ReservationConflict] = []
    busy = threading.Barrier(writers + 1)

    def write(number: int) -> None:
        count = 0
        try:
            while True:
                count += 1
                victim.write(number * 4096, count.to_bytes(8, "big") * 512)
                if count == 5:
                    busy.wait(WAIT_SECONDS)
        except ReservationConflict as conflict:
            refused.append(conflict)

    threads = [threading.Thread(target=write, args=(n,), name=f"victim-{n}") for n in range(writers)]
    for thread in threads:
        thread.start()
    busy.wait(WAIT_SECONDS)
    assert _reservations(winner).preempt_and_abort(KEYS[1])
    # From here on not one sector changes: neither by what was under way nor by what comes.
    frozen = winner.read(0, writers * 4096)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(refused) == writers
    assert winner.read(0, writers * 4096) == frozen
    for block in range(writers):
        winner.write(block * 4096, b"w" * 4096)
    with pytest.raises(ReservationConflict):
        victim.write(0, b"v" * 4096)
    assert winner.read(0, writers * 4096) == b"w" * 4096 * writers


@pytest.mark.expected_log("a connection is lost")
def test_a_registration_outlives_its_connection_and_is_not_made_again(lio_lun: Lun) -> None:
    """A host that was fenced while its network was away is still fenced when it comes back (rule R3)."""
    winner = open_device(lio_lun.url)
    with lio_lun.relay() as relay:
        victim = open_device(lio_lun.url_by(relay.portal))
        _reservations(winner).register(KEYS[0])
        _reservations(victim).register(KEYS[1])
        _reservations(winner).reserve()
        victim.write(0, b"1" * SECTOR)
        relay.drop()
        victim.write(0, b"2" * SECTOR)  # on a new connection of the same nexus
        assert _reservations(winner).preempt_and_abort(KEYS[1])
        relay.drop()
        with pytest.raises(ReservationConflict):
            victim.write(0, b"3" * SECTOR)
        assert _reservations(victim).keys() == (KEYS[0],)
        assert winner.read(0, SECTOR) == b"2" * SECTOR
        victim.close()
    winner.close()


def test_two_nexuses_of_one_name_are_told_why_only_one_may_write(lio_lun: Lun, tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    file.touch(0o600)
    file.write_text(f'["{lio_lun.target}"]\ninitiator = "iqn.2026-01.com.example:esx1"\n')
    first, second = (open_device(lio_lun.url, credentials=file) for _ in range(2))
    _reservations(first).register(KEYS[0])
    _reservations(first).reserve()
    _reservations(first).register(KEYS[0])  # whoever is let in hears nothing of it
    with pytest.raises(ReservationConflict, match="another session of the same initiator's name"):
        _reservations(second).register(KEYS[1])
    first.write(0, b"1" * SECTOR)
    for device in (first, second):
        device.close()


def test_a_target_that_forgets_reservations_with_its_power_offers_none(tgt_lun: Lun) -> None:
    device = open_device(tgt_lun.url)
    assert device.reservations() is None
    device.close()
