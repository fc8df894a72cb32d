"""How this mount stands with the LUNs of its volume: admitted, in doubt since one refused it, or fenced (R3)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.fencing import Fence
from vmfs.cluster.heartbeat import Renewal, SlotKeeper
from vmfs.cluster.region import SlotRegion
from vmfs.errors import VmfsError
from vmfs.events import Event, event
from vmfs.ondisk.lock import Holder

_log = logging.getLogger(__name__)


class Standing:
    """From the claim to the leave of one mount. `doubt` is set by any thread, and taken back by the heartbeat's."""

    def __init__(self, fence: Fence, region: SlotRegion, volume_name: str, on_doubt: Callable[[], None]) -> None:
        """`on_doubt` suspends the lease: it is called, in any thread, when a LUN refuses a change of this mount."""
        self.fence = fence
        self.doubt: str | None = None
        """Why it is not known whether this mount may still write: what the LUN said."""
        self._region = region
        self._volume = volume_name
        self._on_doubt = on_doubt
        self._told = False

    def begin(self) -> None:
        """Before the first write."""
        self.fence.guard(self._suspect)

    def _suspect(self, refusal: str) -> None:
        self.doubt = refusal
        self._on_doubt()

    def prove(self, keeper: SlotKeeper) -> None:
        """After the claim: prove that fencing works, and take away what dead hosts have left.

        Raises FencingUnusable, having given the slot back.
        """
        try:
            self.fence.prove(keeper.landed.record.occupant)
        except VmfsError:
            keeper.free()
            raise
        try:
            swept = self.fence.sweep(self._incarnation_of)
        except VmfsError as e:
            _log.warning("%s: registrations of hosts that are gone could not be taken away: %s", self._volume, e)
        else:
            if swept:
                _log.info("%s: %d registrations of hosts that are gone were taken away", self._volume, swept)

    def _incarnation_of(self, slot: int) -> int | None:
        record = self._region.read(slot).record if slot < self._region.count else None
        return None if record is None else record.incarnation

    def end(self) -> None:
        """The slot is given up, or never was had."""
        try:
            self.fence.leave()
        except VmfsError as e:  # the next mount sweeps it away
            _log.warning("%s: this host's registration could not be taken back: %s", self._volume, e)

    def settle(self, me: Holder, keeper: SlotKeeper) -> Renewal | None:
        """Find out which it is. None: admitted, perhaps again; go on with a heartbeat."""
        refusal = self.doubt
        if refusal is None:
            return None
        if not self._told:
            self._told = True
            _log.warning(
                "%s: a LUN refuses this host; is it fenced? (%s)", self._volume, refusal, extra=event(Event.REFUSED)
            )
        try:
            if not self.fence.come_back(me, keeper.is_ours):
                return Renewal.FENCED
        except VmfsError as e:
            keeper.last_error = str(e)
            return Renewal.UNKNOWN
        self.doubt = None  # before anything passes again, and may be refused again
        self._told = False
        self.fence.reopen()
        _log.warning("%s: this host was not fenced: its registration was lost, and is made again", self._volume)
        return None

    def who_fenced(self, slot: int, name_of: Callable[[Holder], str]) -> str:
        """Who has taken this mount for dead, for people: known while the other one is at it."""
        try:
            record = self._region.read(slot).record
            if record is not None and record.recoverer is not None:
                return f"host {name_of(record.recoverer)}"
        except STORAGE_ERRORS:
            pass
        return "another host"
