"""The region of heartbeat slots: all of them in a few large reads, or one afresh."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.registers import Registers
from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk.slot import SlotRecord, parse_slot

READ_BYTES: Final = 256 << 10  # one request: large enough for 64 slots, small enough for any transfer limit
REREADS: Final = 4  # of a record that does not parse: a torn read is whole a moment later
REREAD_PAUSE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as one read showed it. `submitted` and `completed` are that read's times (Clock.now() seconds)."""

    slot: int
    address: int
    raw: bytes
    record: SlotRecord | None
    damage: str | None
    submitted: float
    completed: float

    def require(self) -> SlotRecord:
        """The record. Raises DamagedBlock when it could not be parsed."""
        if self.record is None:
            raise DamagedBlock(self.address, self.damage or f"heartbeat slot {self.slot}")
        return self.record


@dataclass(frozen=True, slots=True)
class RegionSnapshot:
    """All slots, by index, as one pass over the region showed them."""

    views: tuple[SlotView, ...]
    submitted: float
    completed: float

    @property
    def damaged(self) -> tuple[SlotView, ...]:
        """The slots that could not be parsed."""
        return tuple(v for v in self.views if v.record is None)

    @property
    def records(self) -> tuple[SlotRecord, ...]:
        """The slots that could be parsed, free ones included."""
        return tuple(v.record for v in self.views if v.record is not None)


class SlotRegion:
    """`count` lock blocks of `stride` bytes from `base_address` on.

    May be used from any thread. `_mutex` guards the parsed records of the last images, and is never held over I/O.
    """

    def __init__(
        self, registers: Registers, base_address: int, stride: int, count: int, volume_prefix: bytes, clock: Clock
    ) -> None:
        """`volume_prefix`: the first 8 bytes of the volume's UUID."""
        self.registers = registers
        self.extents = registers.extents
        self.count = count
        self.volume_prefix = volume_prefix
        self.sector_bytes = registers.image_bytes(base_address)
        self._base = base_address
        self._stride = stride
        self._clock = clock
        self._mutex = threading.Lock()
        self._parsed: dict[int, tuple[bytes, SlotRecord]] = {}

    def address(self, slot: int) -> int:
        """The volume address of a slot. ValueError when there is no such slot."""
        if not 0 <= slot < self.count:
            raise ValueError(f"no heartbeat slot {slot} among {self.count}")
        return self._base + slot * self._stride

    def read_all(self) -> RegionSnapshot:
        """Read and parse every slot; a damaged one is in the result as such. Raises DeviceError, DeviceGone."""
        per_read = max(1, READ_BYTES // self._stride)
        views: list[SlotView] = []
        began = self._clock.now()
        for first in range(0, self.count, per_read):
            number = min(per_read, self.count - first)
            submitted = self._clock.now()
            images = self.registers.look_many(self.address(first), self._stride, number)
            completed = self._clock.now()
            views.extend(self._view(first + i, image, submitted, completed) for i, image in enumerate(images))
        for slot in [v.slot for v in views if v.record is None]:
            views[slot] = self.read(slot)
        return RegionSnapshot(tuple(views), began, self._clock.now())

    def read(self, slot: int) -> SlotView:
        """Read one slot afresh; again for a short while when it does not parse. Raises DeviceError, DeviceGone."""
        for attempt in range(REREADS):
            submitted = self._clock.now()
            view = self._view(slot, self._read_one(slot), submitted, self._clock.now())
            if view.record is not None or not any(view.raw):
                break
            if attempt < REREADS - 1:
                self._clock.sleep(REREAD_PAUSE_S)
        return view

    def _read_one(self, slot: int) -> bytes | DamagedBlock:
        try:
            return self.registers.read(self.address(slot))
        except DamagedBlock as e:
            return e

    def _view(self, slot: int, image: bytes | DamagedBlock, submitted: float, completed: float) -> SlotView:
        address = self.address(slot)
        if isinstance(image, DamagedBlock):
            return SlotView(slot, address, b"", None, image.what, submitted, completed)
        raw = image
        with self._mutex:
            known = self._parsed.get(slot)
        if known is not None and known[0] == raw:
            return SlotView(slot, address, raw, known[1], None, submitted, completed)
        try:
            record = parse_slot(raw, address, self.volume_prefix, slot)
        except DamagedBlock as e:
            return SlotView(slot, address, raw, None, e.what, submitted, completed)
        except UnsupportedFormat as e:
            return SlotView(slot, address, raw, None, str(e), submitted, completed)
        if record.recoverer is not None and record.recoverer.slot >= self.count:
            damage = f"heartbeat slot {slot}: it names a recoverer that the volume has no slot for"
            return SlotView(slot, address, raw, None, damage, submitted, completed)
        with self._mutex:
            self._parsed[slot] = (raw, record)
        return SlotView(slot, address, raw, record, None, submitted, completed)
