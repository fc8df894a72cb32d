"""How far an operation has come: the callback that the operations know, and the line that a terminal shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all), often, and from one thread at a time."""

_INTERVAL_S = 0.2


def silent(done: int, total: int) -> None:
    """Shows nothing."""


class TerminalProgress:
    """One line on a terminal, rewritten a few times a second: share, rate, time left."""

    def __init__(self, out: TextIO, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._what = what
        self._clock = clock
        self._begun = clock()
        self._shown = 0.0
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """Show, unless that was done a moment ago."""
        now = self._clock()
        if now - self._shown < _INTERVAL_S:
            return
        self._shown = now
        rate = done / max(now - self._begun, 1e-3)
        left = f"{(total - done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * done / total if total else 100.0
        amount = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        line = f"{self._what}: {share:3.0f} %  {amount}  {rate / 1e6:,.0f} MB/s  {left}"
        self._out.write("\r" + line.ljust(self._width))
        self._out.flush()
        self._width = len(line)

    def close(self) -> None:
        """Wipe the line."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._out.flush()
