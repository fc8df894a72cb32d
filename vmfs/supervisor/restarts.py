"""How soon a dead process is replaced, and when not any more.

At once, for the first few: guests wait. Then more and more slowly, for whatever kills one process after the other is
not over yet. And not for ever: a guest that waits without an end is worse off than one that gets an error.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_SECONDS: Final = 60.0
ENDS_MAX: Final = 20  # within the window: a fault that comes back every three seconds is no accident
FAILED_MAX: Final = 12  # processes in a row that did not get to serve: some 25 s with their pauses
AT_ONCE: Final = 10  # ends within the window that are answered at once
FAILED_AT_ONCE: Final = 3  # the storage may be away for a moment only
PAUSE_SECONDS: Final = 0.1
GROWTH: Final = 1.6
PAUSE_MAX_SECONDS: Final = 5.0


class Restarts:
    """The ends of a mount's processes so far."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque()
        self._failed = 0

    def note_end(self, now: float, *, served: bool) -> float | None:
        """A process has died at `now` (seconds). Returns the pause before the next one; None: give up."""
        self._ends.append(now)
        while now - self._ends[0] > WINDOW_SECONDS:
            self._ends.popleft()
        self._failed = 0 if served else self._failed + 1
        behind = max(len(self._ends) - AT_ONCE, self._failed - FAILED_AT_ONCE)
        if len(self._ends) > ENDS_MAX or self._failed >= FAILED_MAX:
            return None
        return min(PAUSE_MAX_SECONDS, PAUSE_SECONDS * GROWTH**behind) if behind > 0 else 0.0
