"""Time, as the cluster's rules need it: handed in, so that tests own it.

Durations are measured on CLOCK_BOOTTIME, which goes on while the machine is suspended (CLOCK_MONOTONIC stands
still then, and a host that wakes up would take its lease for valid). Wall-clock time is for timestamps of
files.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Implementations may be called from any thread."""

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME; never goes back; comparable within one boot of one machine only."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch (CLOCK_REALTIME), for file times. May jump."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return when at least `seconds` have passed; at once when it is 0 or less."""
        ...

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        """Wait for the event at most `timeout_seconds`; True when it is set."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        return event.wait(max(0.0, timeout_seconds))


class FakeClock:
    """A clock that stands still until a test moves it.

    With `sleep_advances` a sleeper moves the time itself (for single-threaded simulations); without it,
    `sleep` and `wait` block until another thread calls `advance`. `_moved` guards the time and wakes the
    sleepers.
    """

    # `wait` also listens to an event that knows nothing of this clock: it looks at both in turns this long.
    _POLL_REAL_SECONDS = 0.001

    def __init__(
        self, start: float = 1000.0, wall_ns: int = 1_600_000_000_000_000_000, *, sleep_advances: bool = False
    ) -> None:
        self._moved = threading.Condition()
        self._now = start
        self._wall_ns = wall_ns
        self._sleep_advances = sleep_advances

    def now(self) -> float:
        with self._moved:
            return self._now

    def wall_ns(self) -> int:
        with self._moved:
            return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass and wake whoever's time has come. ValueError when it is negative."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        with self._moved:
            self._now += seconds
            self._wall_ns += round(seconds * 1e9)
            self._moved.notify_all()

    def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        if self._sleep_advances:
            self.advance(seconds)
            return
        with self._moved:
            until = self._now + seconds
            self._moved.wait_for(lambda: self._now >= until)

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        if self._sleep_advances:
            if not event.is_set():
                self.sleep(timeout_seconds)
            return event.is_set()
        until = self.now() + timeout_seconds
        while not event.wait(self._POLL_REAL_SECONDS):
            if self.now() >= until:
                return event.is_set()
        return True
