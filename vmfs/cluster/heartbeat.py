"""This host's own slot: its image on disk, and how it is renewed (rule R4).

An image whose fate is unknown is sent again byte for byte until the fate is known. On a miscompare the slot is read:
that image there means success, the own old image means send again, anything else means that another host has taken
this one for dead: fenced, for good.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS, swap_settled
from vmfs.cluster.region import SlotRegion
from vmfs.ondisk.slot import SlotRecord, SlotState

_SENDS_AT_ONCE: Final = 3  # of one image within one beat, while the slot still shows the old one


class Renewal(Enum):
    """What became of one attempt to renew."""

    LANDED = "landed"
    UNKNOWN = "unknown"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class SentImage:
    """A slot image and when it was first submitted (Clock.now() seconds)."""

    record: SlotRecord
    raw: bytes
    first_submitted: float


class SlotKeeper:
    """The slot of one claimed incarnation. `_mutex` serialises `renew` and `free`, and is held over their own I/O.

    `landed` is the last image known to have landed; read it from any thread.
    """

    def __init__(self, region: SlotRegion, clock: Clock, claimed: SentImage) -> None:
        self.landed = claimed
        self.fenced = False
        self.last_error: str | None = None
        self._region = region
        self._clock = clock
        self._mutex = threading.Lock()
        self._pending: SentImage | None = None

    @property
    def slot(self) -> int:
        """The slot's index."""
        return self.landed.record.slot

    def renew(self, make_next: Callable[[SlotRecord], SlotRecord]) -> Renewal:
        """Bring the pending image, else the one that `make_next` makes of the last, to the slot.

        UNKNOWN leaves it pending: call again. After FENCED every further call returns FENCED.
        """
        with self._mutex:
            if self.fenced:
                return Renewal.FENCED
            if self._pending is None:
                record = make_next(self.landed.record)
                self._pending = SentImage(record, record.pack(self._region.sector_bytes), self._clock.now())
            try:
                return self._send(self._pending)
            except STORAGE_ERRORS as e:
                self.last_error = str(e)
                return Renewal.UNKNOWN

    def is_ours(self) -> bool:
        """Whether the slot, read afresh, holds an image of this incarnation's own. Raises DeviceError, DeviceGone."""
        with self._mutex:
            if self.fenced:
                return False
            found = self._region.read(self.slot).raw
            self.fenced = found != self.landed.raw and (self._pending is None or found != self._pending.raw)
            return not self.fenced

    def _send(self, pending: SentImage) -> Renewal:
        address = self._region.address(self.slot)
        for _ in range(_SENDS_AT_ONCE):
            if self._region.registers.swap(address, self.landed.raw, pending.raw):
                return self._settle(pending)
            found = self._region.read(self.slot).raw
            if found == pending.raw:
                return self._settle(pending)
            if found != self.landed.raw:
                self.fenced = True
                return Renewal.FENCED
        self.last_error = f"the slot at {address:#x} refuses an image that it should take"
        return Renewal.UNKNOWN

    def _settle(self, image: SentImage) -> Renewal:
        self.landed = image
        self._pending = None
        self.last_error = None
        return Renewal.LANDED

    def free(self) -> bool:
        """Give the slot up: free, with the next incarnation. False when it was not this host's any more.

        One that was claimed in place and not recovered stays dead, for another to recover.

        Raises DeviceError or DeviceGone when the storage does not answer; the slot then stays to be recovered.
        """
        with self._mutex:
            if self.fenced:
                return False
            if self._pending is not None and self._send(self._pending) is not Renewal.LANDED:
                return False
            landed = self.landed.record
            freed = landed.turned(SlotState.DEAD) if landed.in_place else landed.freed(self._clock.wall_ns())
            address = self._region.address(self.slot)
            raw = freed.pack(self._region.sector_bytes)
            done = swap_settled(self._region.registers, address, self.landed.raw, raw, clock=self._clock)
            if not done:
                now_there = self._region.read(self.slot).record
                # Our free image may have landed with its answer lost, and another host may have claimed it since.
                done = now_there is not None and not landed.in_place and now_there.incarnation >= freed.incarnation
            self.fenced = True
            return done
