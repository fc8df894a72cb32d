"""A disk's volatile write cache, for tests: what a power cut may lose, keep in part, or keep out of order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from vmfs.devices.contract import Device

_RUN_MAX_BYTES = 1 << 20  # destaged in pieces of this size: one large request of a real disk's cache


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    offset: int
    data: bytes


class VolatileCache:
    """Writes that the device below does not have yet, in their order. Not thread-safe: its owner has a lock.

    A sector (the device's logical block) is the unit that lands wholly or not at all.
    """

    def __init__(self, inner: Device) -> None:
        self._inner = inner
        self._sector = inner.logical_block_bytes
        self._pending: list[_Write] = []
        self._newest: dict[int, _Write] = {}  # sector number -> the last write that covers it
        self.held_bytes = 0

    def put(self, offset: int, data: bytes) -> None:
        """Take a write."""
        write = _Write(offset, data)
        self._pending.append(write)
        self._newest.update(dict.fromkeys(self._sectors(offset, len(data)), write))
        self.held_bytes += len(data)

    def patch(self, offset: int, view: memoryview) -> None:
        """Lay what is cached over `view`, which holds what the device below has at `offset`."""
        if not self._newest:
            return
        for number in self._sectors(offset, len(view)):
            write = self._newest.get(number)
            if write is not None:
                at = number * self._sector
                view[at - offset : at - offset + self._sector] = self._piece(write, number)

    def forget(self, offset: int, length: int) -> None:
        """The range was discarded: the device below answers for it from now on."""
        numbers = self._sectors(offset, length)
        doomed = numbers if len(numbers) < len(self._newest) else [n for n in self._newest if n in numbers]
        for number in doomed:
            self._newest.pop(number, None)

    def destage(self) -> None:
        """Write everything to the device below, the newest of each sector."""
        self._write_runs(self._inner, {n: self._piece(w, n) for n, w in self._newest.items()})
        self._clear()

    def cut(self, target: Device, rng: random.Random) -> tuple[int, int]:
        """Lose power: a seeded part of the cached sectors lands on `target` in a seeded order, the rest is gone.

        Returns (sectors landed, sectors that were cached). A sector written twice may end with the older content.
        """
        cached = [(n, w) for w in self._pending for n in self._sectors(w.offset, len(w.data))]
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        rng.shuffle(cached)
        landed = {n: self._piece(w, n) for n, w in cached if rng.random() < share}
        self._write_runs(target, landed)
        self._clear()
        return len(landed), len(cached)

    def _clear(self) -> None:
        self._pending.clear()
        self._newest.clear()
        self.held_bytes = 0

    def _sectors(self, offset: int, length: int) -> range:
        return range(offset // self._sector, (offset + length) // self._sector)

    def _piece(self, write: _Write, number: int) -> memoryview:
        start = number * self._sector - write.offset
        return memoryview(write.data)[start : start + self._sector]

    def _write_runs(self, device: Device, content: dict[int, memoryview]) -> None:
        for numbers in _runs(sorted(content), _RUN_MAX_BYTES // self._sector):
            device.write(numbers[0] * self._sector, b"".join(content[n] for n in numbers))


def _runs(numbers: list[int], longest: int) -> Iterator[list[int]]:
    """Cut sorted numbers into runs of consecutive ones."""
    start = 0
    for index in range(1, len(numbers) + 1):
        ends = index == len(numbers) or numbers[index] != numbers[index - 1] + 1 or index - start == longest
        if ends:
            yield numbers[start:index]
            start = index
