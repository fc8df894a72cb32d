"""The watchdog against a FIFO that records what is written to it, and an ioctl that records what is asked.

No test machine has a watchdog device: the two calls that a real one answers (WDIOC_SETTIMEOUT, WDIOC_KEEPALIVE) and
its reset are the kernel's (watchdog-api.rst), and are not tested here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from errno import ENOTTY
from pathlib import Path

import pytest

from vmfs.clock import SystemClock
from vmfs.cluster.watchdog import MAGIC_CLOSE, WDIOC_KEEPALIVE, WDIOC_SETTIMEOUT, Watchdog, ioctl_int
from vmfs.errors import WatchdogUnusable


class Recorder:
    """What the kernel would have been asked."""

    def __init__(self, taken: int | None = None) -> None:
        self.taken = taken
        self.timeouts: list[int] = []
        self.feeds = 0
        self.fed = threading.Event()

    def __call__(self, fd: int, request: int, value: int) -> int:
        assert os.fstat(fd)
        if request == WDIOC_SETTIMEOUT:
            self.timeouts.append(value)
            return value if self.taken is None else self.taken
        assert request == WDIOC_KEEPALIVE
        self.feeds += 1
        self.fed.set()
        return value


class Fifo:
    """A path that can be opened as a device can."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def written(self) -> bytes:
        return os.read(self.reading, 4096)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    made = Fifo(tmp_path / "watchdog")
    yield made
    os.close(made.reading)


def test_it_is_fed_while_the_lease_is_valid_and_closed_by_magic(fifo: Fifo) -> None:
    asked = Recorder()
    dog = Watchdog(fifo.path, "ds1", SystemClock(), ioctl=asked)
    dog.arm(1_000_000, lambda now: True)
    assert asked.timeouts == [1]
    before = asked.feeds
    asked.fed.clear()
    assert asked.fed.wait(30)
    assert asked.feeds > before
    dog.disarm()
    assert fifo.written() == MAGIC_CLOSE
    assert [t.name for t in threading.enumerate() if t.name == "vmfs-watchdog"] == []
    dog.disarm()
    assert fifo.written() == b""


@pytest.mark.expected_log("no lease: watchdog .* will reset this machine")
def test_it_is_not_fed_without_the_lease_and_again_when_it_is_back(fifo: Fifo) -> None:
    asked = Recorder()
    looked, valid = threading.Event(), [False]
    dog = Watchdog(fifo.path, "ds1", SystemClock(), ioctl=asked)

    def lease(now: float) -> bool:
        looked.set()
        return valid[0]

    dog.arm(1_000_000, lease)
    for _ in range(3):
        looked.clear()
        assert looked.wait(30)
    assert asked.feeds == 1  # the one that arms
    valid[0] = True
    asked.fed.clear()
    assert asked.fed.wait(30)
    dog.disarm()


def test_a_timeout_that_the_device_does_not_take_is_refused(fifo: Fifo) -> None:
    dog = Watchdog(fifo.path, "ds1", SystemClock(), ioctl=Recorder(taken=60))
    with pytest.raises(WatchdogUnusable, match="asked for a timeout of 2 s and has 60 s"):
        dog.arm(2_000_000, lambda now: True)
    assert fifo.written() == MAGIC_CLOSE


def test_what_is_no_watchdog_is_refused(fifo: Fifo, tmp_path: Path) -> None:
    with pytest.raises(WatchdogUnusable, match="cannot be opened: No such file"):
        Watchdog(str(tmp_path / "none"), "ds1", SystemClock()).arm(1_000_000, lambda now: True)
    with pytest.raises(WatchdogUnusable, match="does not take a timeout"):
        Watchdog(fifo.path, "ds1", SystemClock()).arm(1_000_000, lambda now: True)


def test_the_ioctl_hands_on_what_the_kernel_says(fifo: Fifo) -> None:
    with pytest.raises(OSError) as caught:
        ioctl_int(fifo.reading, WDIOC_SETTIMEOUT, 1)
    assert caught.value.errno == ENOTTY
