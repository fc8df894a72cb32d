"""How long each slot has not changed, by this host's own clock (rule R4).

Two hosts' clocks are never compared: a slot is dead when its bytes have stayed the same for the break time B, counted
from the *completion* of the read that first showed them to the submission of the watcher's own compare-and-write, which
compares against those very bytes. Whenever this host's own lease lapsed, or it could not read for as long as that, all
counts start again: what kept it from the storage may have kept the others from it too.
"""

from __future__ import annotations

import threading
from typing import Final

from vmfs.cluster.region import RegionSnapshot, SlotView
from vmfs.cluster.timers import Timers

# A process of this machine that runs, however silent, stops by itself and comes back with its storage: it is killed
# only after this many break times. One that was stopped stays so for as long as whoever stopped it likes.
_RUNNING_PATIENCE: Final = 3
_RUNNING_PATIENCE_MIN_S: Final = 10.0  # with short leases: a machine that is merely busy delays a process for seconds


class Watcher:
    """Counts for every slot. Usable from any thread; `_mutex` guards the counts."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._mutex = threading.Lock()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._last_completed: float | None = None

    def observe(self, snapshot: RegionSnapshot) -> None:
        """Take in a pass over the region."""
        with self._mutex:
            last = self._last_completed
            if last is not None and snapshot.completed - last > self._timers.usable_lease_s:
                self._seen.clear()
            self._last_completed = snapshot.completed
            for view in snapshot.views:
                known = self._seen.get(view.slot)
                if known is None or known[0] != view.raw:
                    self._seen[view.slot] = (view.raw, view.completed)

    def restart(self) -> None:
        """This host's own lease lapsed: forget all counts."""
        with self._mutex:
            self._seen.clear()

    def silent_for(self, view: SlotView, now: float) -> float:
        """Seconds for which the slot has held the bytes of this view; 0 when they are new to the watcher."""
        with self._mutex:
            known = self._seen.get(view.slot)
        if known is None or known[0] != view.raw:
            return 0.0
        return max(0.0, now - known[1])

    def is_broken_by_silence(self, view: SlotView, now: float) -> bool:
        """Whether the slot has held the bytes of this view for B or longer."""
        return self.silent_for(view, now) >= self._timers.break_s

    def is_stuck(self, view: SlotView, now: float, *, stopped: bool) -> bool:
        """Whether a slot whose process exists on this machine is silent for so long that it must be ended."""
        running = max(self._timers.break_s * _RUNNING_PATIENCE, _RUNNING_PATIENCE_MIN_S)
        patience = self._timers.break_s if stopped else running
        return self.silent_for(view, now) >= patience
