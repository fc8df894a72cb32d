"""Judges what became of the files that one host at a time has open for writing.

*One writer.* Nothing that a tenure was acknowledged may have begun after the open of a later tenure had returned.

*Nothing lost, nothing late.* For each page there is a set of values that it may hold. A write adds its stamp when it
begins; an fsync that returns leaves the newest acknowledged write (and what was never answered after it); and what the
next writer finds when it has the file alone is what there is from then on, whoever's writes had been on their way. So
every value is possible from one moment to another, and a reader anywhere must have found one that was possible at some
time between its open and its end. What is synced before a file is opened is seen by who opens it (docs/consistency.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import inf

from tests.history.records import Reading, Sync, Tenure, Write
from tests.history.sectors import Value, parts

_Possible = dict[Value, list[float]]  # [from, until]


def one_writer(tenures: Iterable[Tenure]) -> Iterator[str]:
    """Acknowledgements after another's open."""
    for held in _by_file(tenures):
        for earlier, later in pairwise(held):
            for event in earlier.events:
                if event.ended is not None and event.began > later.opened:
                    yield (
                        f"file {later.file}: {_of(earlier)} was acknowledged {_show(event)}, begun "
                        f"{event.began - later.opened:.3f} s after {_of(later)} had it open"
                    )
                    break


class FilePages:
    """What the pages of one file may hold, as its history is gone through."""

    def __init__(self, file: int, page_count: int) -> None:
        self.file = file
        self.problems: list[str] = []
        self._now: list[set[Value]] = [{0} for _ in range(page_count)]
        self._ever: list[_Possible] = [{0: [-inf, inf]} for _ in range(page_count)]

    def follow(self, tenure: Tenure) -> None:
        """The next tenure."""
        if tenure.found is not None:
            for page, value in enumerate(tenure.found):
                if not all(part in self._single(page) for part in parts(value)):
                    self.problems.append(
                        f"file {self.file}, page {page}: {_of(tenure)} found {value}, not {_list(self._now[page])}"
                        f" ({self._past(page, value)})"
                    )
                self._only(page, value, tenure.found_at)
        unsynced: dict[int, list[Write]] = {}
        for event in tenure.events:
            if isinstance(event, Sync):
                for page, writes in unsynced.items():
                    self._synced(page, writes, event)
                unsynced.clear()
                continue
            for page in range(event.first_page, event.first_page + event.count):
                self._now[page].add(event.stamp)
                self._ever[page][event.stamp] = [event.began, inf]
                unsynced.setdefault(page, []).append(event)

    def judge(self, reading: Reading) -> None:
        """What somebody read, once all tenures are gone through."""
        for page, value in enumerate(reading.found):
            for part in parts(value):
                span = self._ever[page].get(part) or self._as_part(page, part)
                if span is None or span[0] > reading.ended or span[1] < reading.began:
                    self.problems.append(
                        f"file {self.file}, page {page}: {reading.life} read {part} between {reading.began:.3f} and "
                        f"{reading.ended:.3f}, possible {span}; possible then: {_list(self._at(page, reading))}"
                    )

    def _synced(self, page: int, writes: list[Write], sync: Sync) -> None:
        acknowledged = [n for n, w in enumerate(writes) if w.ended is not None]
        if not acknowledged:
            return
        last = acknowledged[-1]
        kept: set[Value] = {w.stamp for w in writes[last:]}
        for value in self._now[page] - kept:
            self._ever[page][value][1] = sync.ended
        self._now[page] = kept

    def _only(self, page: int, value: Value, when: float) -> None:
        for other in self._now[page] - {value}:
            self._ever[page][other][1] = when
        span = self._ever[page].setdefault(value, [when, inf])
        span[1] = inf
        self._now[page] = {value}

    def _single(self, page: int) -> set[int]:
        return {part for value in self._now[page] for part in parts(value)}

    def _as_part(self, page: int, stamp: int) -> list[float] | None:
        spans = [s for value, s in self._ever[page].items() if stamp in parts(value)]
        return [min(s[0] for s in spans), max(s[1] for s in spans)] if spans else None

    def _at(self, page: int, reading: Reading) -> set[Value]:
        return {v for v, s in self._ever[page].items() if s[0] <= reading.ended and s[1] >= reading.began}

    def _past(self, page: int, value: Value) -> str:
        span = self._ever[page].get(value)
        return "never written" if span is None else f"possible from {span[0]:.3f} to {span[1]:.3f}"


def nothing_lost(tenures: Iterable[Tenure], readings: Iterable[Reading], page_count: int) -> Iterator[str]:
    """What was found and may not have been."""
    files: dict[int, FilePages] = {}
    for held in _by_file(tenures):
        pages = files[held[0].file] = FilePages(held[0].file, page_count)
        for tenure in held:
            pages.follow(tenure)
    for reading in readings:
        files.setdefault(reading.file, FilePages(reading.file, page_count)).judge(reading)
    for pages in files.values():
        yield from pages.problems


def _by_file(tenures: Iterable[Tenure]) -> list[list[Tenure]]:
    files: dict[int, list[Tenure]] = {}
    for tenure in sorted(tenures, key=lambda t: t.opened):
        files.setdefault(tenure.file, []).append(tenure)
    return list(files.values())


def _of(tenure: Tenure) -> str:
    return f"{tenure.life[0]} (mount {tenure.life[1]}, open since {tenure.opened:.3f})"


def _show(event: Write | Sync) -> str:
    return "an fsync" if isinstance(event, Sync) else f"write {event.stamp}"


def _list(found: set[Value]) -> str:
    return " or ".join(sorted(map(str, found)))
