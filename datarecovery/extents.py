"""Arithmetic on sorted byte extents and on runs of chunks. Pure functions: no input or output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`length` bytes from `offset`."""

    offset: int
    length: int


Run = tuple[int, int]
"""Chunks from the first number up to but not including the second."""


def chunk_runs(extents: Iterable[Extent], chunk_bytes: int, size: int) -> Iterator[Run]:
    """The chunks that extents touch, as merged runs. Extents are sorted by offset; what lies past `size` is cut off."""
    first = last = 0
    for extent in extents:
        end = min(extent.offset + extent.length, size)
        if end <= extent.offset:
            continue
        begin, stop = extent.offset // chunk_bytes, -(-end // chunk_bytes)
        if begin > last:
            if last > first:
                yield first, last
            first = begin
        last = max(last, stop)
    if last > first:
        yield first, last


def with_tail(runs: Iterable[Run], tail: Run) -> Iterator[Run]:
    """Runs, with everything from the start of `tail` on replaced by `tail`."""
    begin, stop = tail
    for first, last in runs:
        if last >= begin:
            begin = min(begin, first)
            break
        yield first, last
    if stop > begin:
        yield begin, stop


class Cursor:
    """Answers what part of sorted runs lies in a window, for windows that only move forward."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = iter(runs)
        self._held: Run | None = next(self._runs, None)

    def within(self, low: int, high: int) -> list[Run]:
        """The runs cut to the window from `low` up to but not including `high`."""
        found = []
        while self._held is not None and self._held[0] < high:
            first, last = self._held
            if last > low:
                found.append((max(first, low), min(last, high)))
            if last > high:
                break
            self._held = next(self._runs, None)
        return found

    def next_start(self) -> int | None:
        """Where the next run begins that no window has passed, or None."""
        return None if self._held is None else self._held[0]


def intersect(one: Sequence[Run], other: Sequence[Run]) -> list[Run]:
    """What lies in both of two sorted lists."""
    found = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low < high:
            found.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return found


def subtract(one: Sequence[Run], other: Sequence[Run]) -> list[Run]:
    """What lies in the first of two sorted lists and not in the second."""
    found = []
    for first, last in one:
        for low, high in other:
            if high <= first or low >= last:
                continue
            if low > first:
                found.append((first, low))
            first = max(first, high)
        if first < last:
            found.append((first, last))
    return found
