"""iSCSI devices when the network breaks, stands still and heals, and when the target dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.luns.array import LioArray
from tests.luns.lun import Lun
from tests.luns.relay import Relay
from tests.luns.tgt import TgtTarget
from vmfs.devices import open_device
from vmfs.devices.iscsi import IscsiDevice
from vmfs.errors import DeviceError, DeviceNotUsable, LeaseExpired, NotSentAgain

LOST = pytest.mark.expected_log("a connection is lost")
LEASE_SECONDS = 4.0  # sendings are given up after 0.75 s
BOUND_SECONDS = 60.0  # what ends in bounded time has ended by then, on any machine


def _allowed() -> None:
    """The lease holds."""


def _lapsed() -> None:
    raise LeaseExpired("ds1")


@contextmanager
def _by(relay: Relay, lun: Lun, lease: Callable[[], None] = _allowed) -> Iterator[IscsiDevice]:
    device = open_device(lun.url_by(relay.portal))
    assert isinstance(device, IscsiDevice)
    device.keep_to_lease(LEASE_SECONDS, lease)
    try:
        yield device
    finally:
        device.close()


@pytest.fixture
def relay(lun: Lun) -> Iterator[Relay]:
    with lun.relay() as made:
        yield made


class _Background:
    """A call on a thread of its own; `result` waits for its end, and raises what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._value: object = None
        self._thread = threading.Thread(target=self._run, name="background")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> object:
        self._thread.join(BOUND_SECONDS)
        assert self.ended
        if self._error is not None:
            raise self._error
        return self._value


def test_many_threads_share_the_sessions(lun: Lun) -> None:
    """Every thread reads what it wrote, whatever the others do on the same connection."""
    device = open_device(lun.url)
    seen: list[bool] = []

    def work(number: int) -> None:
        at = number << 21
        for step in range(25):
            size = (512, 4096, 65536, 1 << 20)[step % 4]
            data = os.urandom(size)
            device.write(at, data)
            seen.append(device.read(at, size) == data)
            if step % 5 == 0:
                device.flush()

    threads = [threading.Thread(target=work, args=(n,), name=f"work-{n}") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
    device.close()
    assert seen == [True] * 200


@LOST
def test_dropped_connections_are_made_again_and_nothing_is_lost(lun: Lun, relay: Relay) -> None:
    with _by(relay, lun) as device:
        ended = threading.Event()
        written: dict[int, bytes] = {}

        def write() -> None:
            number = 0
            while not ended.is_set():
                data = os.urandom(4096)
                device.write(4096 * (number % 256), data)
                written[number % 256] = data
                number += 1

        writers = _Background(write)
        for _ in range(5):
            before = len(written)
            relay.drop()
            deadline = time.monotonic() + BOUND_SECONDS
            while len(written) < min(256, before + 20) and time.monotonic() < deadline:
                time.sleep(0.01)
        ended.set()
        writers.result()
    device = open_device(lun.url)
    assert len(written) > 20
    assert all(device.read(4096 * block, 4096) == data for block, data in written.items())
    device.close()


@LOST
def test_a_cut_is_outlasted_by_reads_writes_and_flushes(lun: Lun, relay: Relay) -> None:
    with _by(relay, lun) as device:
        device.write(0, b"a" * 4096)
        relay.cut()
        calls = [
            _Background(lambda: device.read(0, 512)),
            _Background(lambda: device.write(8192, b"b" * 4096)),
            _Background(device.flush),
        ]
        time.sleep(2.0)  # longer than one sending is waited for
        assert not any(call.ended for call in calls)
        relay.heal()
        assert calls[0].result() == b"a" * 512
        calls[1].result()
        calls[2].result()
        assert device.read(8192, 4096) == b"b" * 4096


@LOST
def test_without_a_lease_a_write_is_not_sent_again(lun: Lun, relay: Relay) -> None:
    with _by(relay, lun, _lapsed) as device:
        device.write(0, b"a" * 512)  # sent at once: covered by what the caller saw of its lease
        relay.cut()
        write = _Background(lambda: device.write(0, b"b" * 512))
        read = _Background(lambda: device.read(0, 512))
        time.sleep(1.5)
        assert not read.ended
        relay.heal()
        with pytest.raises(NotSentAgain, match="lease has run out"):
            write.result()
        assert read.result() == b"a" * 512
        device.write(0, b"c" * 512)  # the connection is there again, so this one is sent at once
        assert device.read(0, 512) == b"c" * 512


@LOST
def test_a_compare_and_write_of_unknown_fate_is_never_sent_twice(lio_lun: Lun) -> None:
    old, new = bytes(512), b"n" * 512
    with lio_lun.relay() as relay, _by(relay, lio_lun) as device:
        assert device.compare_and_write(0, old, old)
        relay.hold()
        call = _Background(lambda: device.compare_and_write(0, old, new))
        with pytest.raises(DeviceError, match="whether it was done is not known"):
            call.result()
        relay.heal()  # what was on its way comes now, or not: once at most
        assert device.read(0, 512) in (old, new)
        # The same nexus has logged in again, so nothing of its old connection can come any more.
        device.write(0, old)
        assert device.compare_and_write(0, old, new)
        assert device.read(0, 512) == new


@LOST
@pytest.mark.expected_log("a connection is lost")
def test_a_write_that_was_given_up_does_not_come_after_a_later_one(lun: Lun, relay: Relay) -> None:
    """The network keeps a write for longer than its host waits, and then delivers it."""
    with _by(relay, lun) as device:
        device.write(0, b"0" * 4096)
        relay.hold()
        first = _Background(lambda: device.write(0, b"1" * 4096))
        time.sleep(1.5)  # it is given up; the host tries to log in again
        relay.heal()
        first.result()
        device.write(0, b"2" * 4096)
        for _ in range(20):
            assert device.read(0, 4096) == b"2" * 4096
            time.sleep(0.02)


@LOST
def test_a_dead_network_ends_calls_in_bounded_time(lun: Lun, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfs.devices.iscsi.pool.CALL_SECONDS", 2.0)
    with _by(relay, lun) as device:
        relay.cut()
        calls = [_Background(lambda: device.read(0, 512)), _Background(lambda: device.write(0, bytes(512)))]
        for call in calls:
            with pytest.raises(DeviceError, match=f"{lun.target}.*(no answer|login|in time)"):
                call.result()


def test_a_portal_where_nobody_listens_is_refused_in_bounded_time(lun: Lun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfs.devices.iscsi.pool.LOGIN_SECONDS", 1.0)
    with lun.relay() as relay:
        relay.cut()
        with pytest.raises(DeviceNotUsable, match=r"no answer to the login.*is the portal reachable"):
            open_device(lun.url_by(relay.portal))
    for url, says in ((lun.url + "9", "cannot log in"), (lun.url.replace("test:", "test:no-"), "cannot log in")):
        with pytest.raises(DeviceNotUsable, match=says):
            open_device(url)


@LOST
@pytest.mark.parametrize("kind", ["lio", "tgt"])
def test_a_target_that_dies_and_comes_back(kind: str, request: pytest.FixtureRequest) -> None:
    target: LioArray | TgtTarget = request.getfixturevalue("lio_array" if kind == "lio" else "tgt_target")
    lun: Lun = request.getfixturevalue(f"{kind}_lun")
    device = open_device(lun.url)
    data = os.urandom(1 << 20)
    device.write(0, data)
    device.flush()
    target.kill()
    read = _Background(lambda: device.read(0, 1 << 20))
    write = _Background(lambda: device.write(1 << 20, data))
    target.start()
    assert read.result() == data
    write.result()
    assert device.read(1 << 20, 1 << 20) == data
    device.close()
