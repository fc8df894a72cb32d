"""The clocks: the real one follows CLOCK_BOOTTIME, the fake one moves only when it is moved."""

from __future__ import annotations

import threading
import time

import pytest

from vmfs.clock import Clock, FakeClock, SystemClock


def test_system_clock() -> None:
    clock: Clock = SystemClock()
    assert abs(clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    assert abs(clock.wall_ns() - time.time_ns()) < 1e9
    before = clock.now()
    clock.sleep(0.02)
    clock.sleep(-1)
    assert clock.now() >= before + 0.02
    event = threading.Event()
    assert not clock.wait(event, 0.01)
    assert not clock.wait(event, -1)
    event.set()
    assert clock.wait(event, 0)


def test_fake_clock_stands_still() -> None:
    clock: Clock = FakeClock(5.0, 10)
    assert (clock.now(), clock.now(), clock.wall_ns()) == (5.0, 5.0, 10)
    clock.sleep(0)


def test_fake_clock_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock().advance(-1)


@pytest.mark.parametrize("way", ["sleep", "wait"])
def test_fake_sleepers_wake_in_their_time(way: str) -> None:
    clock = FakeClock(0.0)
    woke: list[float] = []

    def sleeper() -> None:
        if way == "sleep":
            clock.sleep(10)
        else:
            assert not clock.wait(threading.Event(), 10)
        woke.append(clock.now())

    thread = threading.Thread(target=sleeper, name="sleeper")
    thread.start()
    thread.join(0.05)
    clock.advance(9)
    thread.join(0.05)
    assert not woke
    # The sleeper may have started after the first advance on a loaded machine: what is left is at most 10.
    clock.advance(10)
    thread.join(10)
    assert woke == [19.0]


def test_fake_wait_ends_with_its_event() -> None:
    clock = FakeClock()
    event = threading.Event()
    threading.Timer(0.01, event.set).start()
    assert clock.wait(event, 3600)


def test_sleep_that_advances() -> None:
    clock = FakeClock(0.0, 0, sleep_advances=True)
    clock.sleep(2.5)
    assert not clock.wait(threading.Event(), 0.5)
    assert (clock.now(), clock.wall_ns()) == (3.0, 3_000_000_000)
