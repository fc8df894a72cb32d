"""The gate that every change of a fenced volume passes at the last moment before it goes to the storage.

A thread looks at the lease, is delayed, and submits. Mostly that is harmless: once another host has fenced this one,
the LUN refuses. But a host that lost its registration in another way (an operator cleared it, a LUN without power)
registers again, and would then let pass what such a thread still has in hand, even if it was fenced in between. So the
first refusal closes the gate; and before the host registers again it waits until all that was under way has ended.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TypeVar

from vmfs.errors import ReservationConflict

T = TypeVar("T")


class WriteGate:
    """Open until a LUN refuses a change. Usable from any thread.

    Without a lock: a thread marks itself as under way *before* it looks whether the gate is closed, and who closes it
    looks at the marks afterwards, so one of the two sees the other (single items of a dict change atomically).
    """

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        """`on_refused(message)` is called when the gate closes, in the thread that was refused: return at once."""
        self._on_refused = on_refused
        self._closed = False
        self._serials = itertools.count()
        self._under_way: dict[int, int] = {}

    def run(self, change: Callable[[], T], device: str) -> T:
        """Make a change of a device. Raises ReservationConflict when the gate is closed, and what `change` raises."""
        thread = threading.get_ident()
        self._under_way[thread] = next(self._serials)
        try:
            if self._closed:
                raise ReservationConflict(device, "change", 0, 0, "it is not known whether this host was fenced")
            return change()
        except ReservationConflict as refused:
            self.close(str(refused))
            raise
        finally:
            del self._under_way[thread]

    def close(self, reason: str) -> None:
        """Let nothing pass from now on."""
        if not self._closed:
            self._closed = True
            self._on_refused(reason)

    def waits_for(self) -> Callable[[], bool]:
        """After `close`: a function that says whether a change that began before this call is still under way."""
        limit = next(self._serials)
        return lambda: any(serial < limit for serial in list(self._under_way.values()))

    def open(self) -> None:
        """The registration is right again."""
        self._closed = False
