"""A clock that runs faster than the machine's, for what waits in real threads."""

from __future__ import annotations

import threading
import time


class FastClock:
    """`rate` seconds pass in each real one."""

    def __init__(self, rate: float = 20.0) -> None:
        self._rate = rate
        self._began = time.monotonic()

    def now(self) -> float:
        return 1000.0 + (time.monotonic() - self._began) * self._rate

    def wall_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds / self._rate)

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        return event.wait(max(0.0, timeout_seconds) / self._rate)
