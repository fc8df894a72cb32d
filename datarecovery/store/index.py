"""The index: a few immutable segments, and how they are published, merged and rebuilt.

A segment's name is `LO-HI.seg`, the sequence numbers that it covers, 16 hexadecimal digits each. A new segment takes
the next number; a merge of neighbours takes their whole range. A segment whose range lies within another's is
superseded: it is ignored and removed. So there is no catalogue that could disagree with the folder: after a crash
between the rename of a merged segment and the removal of its parts, both are there, and the whole rules. A hole
between ranges means that a file was lost.

Publishing, merging and rebuilding happen under the flock of `index/lock`. Readers take no lock: they hold the files
open. Sizes fall at least by MERGE_FACTOR from segment to segment, so there are few of them (9 at 100 TB), and memory
stays flat: a merge streams.
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from datarecovery.errors import DamagedIndexError, DamagedPackError, from_os_error
from datarecovery.store import durable, pack, segment
from datarecovery.store.pack import Location

FOLDER = "index"
LOCK_NAME = "lock"
# A merge rewrites an entry once a level: with 4, five times from a day's backup to 100 TB.
MERGE_FACTOR = 4
# Entries sorted in memory while rebuilding, about 100 MiB.
REBUILD_RUN_ENTRIES = 750_000
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg")


def _name(first: int, last: int) -> str:
    return f"{first:016x}-{last:016x}.seg"


class Index:
    """The index as this process sees it. Look-ups are safe from any thread; `refresh` swaps the segments at once."""

    def __init__(self, root: Path, store: uuid.UUID) -> None:
        """Nothing is opened yet: `refresh` does, so that a damaged index can be rebuilt through this same object."""
        self._folder = root / FOLDER
        self._temporary = root / "tmp"
        self._packs = root / "packs"
        self._store = store
        self._segments: tuple[segment.Segment, ...] = ()

    def find(self, identifier: bytes) -> Location | None:
        """Where the record of an id lies, or None. Raises DamagedIndexError."""
        for one in self._segments:
            place = one.find(identifier)
            if place is not None:
                return place
        return None

    def close(self) -> None:
        """Let go of the segments."""
        self._segments = ()

    def segments(self) -> tuple[segment.Segment, ...]:
        """The segments as of the last `refresh`."""
        return self._segments

    def count(self) -> int:
        """Entries in all segments; an id in two segments counts twice."""
        return sum(one.count for one in self._segments)

    def refresh(self) -> None:
        """See what others published. Raises DamagedIndexError when a segment is lost or damaged."""
        while True:
            try:
                self._segments = tuple(self._open())
            except FileNotFoundError:
                continue  # merged away between listing and opening
            return

    def _listed(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Ranges that rule, in order, and ranges that are superseded. Raises DamagedIndexError."""
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise DamagedIndexError(f"index {self._folder} cannot be listed: {error.strerror}") from error
        ranges = sorted(
            ((int(m[1], 16), int(m[2], 16)) for m in map(_NAME.fullmatch, names) if m),
            key=lambda r: (r[0], -r[1]),
        )
        ruling: list[tuple[int, int]] = []
        superseded: list[tuple[int, int]] = []
        for first, last in ranges:
            if ruling and last <= ruling[-1][1]:
                superseded.append((first, last))
            else:
                ruling.append((first, last))
        return ruling, superseded

    def _open(self) -> Iterator[segment.Segment]:
        expected = 1
        ruling, _ = self._listed()
        for first, last in ruling:
            if first != expected:
                raise DamagedIndexError(f"index {self._folder}: segment {expected} to {first - 1} is missing; rebuild "
                                        "it with: datarecovery store reindex")
            one = segment.Segment(self._folder / _name(first, last), self._store)
            if (one.first, one.last) != (first, last):
                raise DamagedIndexError(f"index segment {one.path} has another segment's name; rebuild the index "
                                        "with: datarecovery store reindex")
            expected = last + 1
            yield one

    def publish(self, entries: Iterable[tuple[bytes, Location]], owner: str) -> None:
        """Add a segment of `entries`, durably, merged with small neighbours; `owner` names the temporary file.

        Raises DamagedIndexError, NoSpaceError, StoreIoError.
        """
        fresh = sorted(segment.pack_entry(identifier, place) for identifier, place in entries)
        with durable.exclusive(self._folder / LOCK_NAME):
            self.refresh()
            total = len(fresh)
            kept = len(self._segments)
            while kept and self._segments[kept - 1].count < total * MERGE_FACTOR:
                kept -= 1
                total += self._segments[kept].count
            absorbed = self._segments[kept:]
            last = (self._segments[-1].last if self._segments else 0) + 1
            first = absorbed[0].first if absorbed else last
            stream = heapq.merge(*(one.entries() for one in absorbed), fresh)
            self._place(stream, total, first, last, owner)
            self.refresh()

    def _place(self, entries: Iterable[bytes], upper: int, first: int, last: int, owner: str) -> None:
        """Write a segment, rename it into place and remove what it supersedes. The lock is held."""
        temporary = self._temporary / f"{owner}.{_name(first, last)}"
        final = self._folder / _name(first, last)
        try:
            segment.write(temporary, self._store, entries, upper, first, last)
            os.rename(temporary, final)
            durable.sync_folder(self._folder)
            for old in self._listed()[1]:
                (self._folder / _name(*old)).unlink(missing_ok=True)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise from_os_error(error, f"writing index segment {final}") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def rebuild(self, owner: str) -> tuple[int, list[str]]:
        """Make the index anew from the packs; how many entries it was given, and what is wrong with which pack.

        Raises NoSpaceError, StoreIoError.
        """
        problems: list[str] = []
        given = 0
        runs: list[Path] = []
        with durable.exclusive(self._folder / LOCK_NAME):
            last = max((last for _, last in self._listed()[0]), default=0) + 1
            try:
                stream = self._from_packs(problems)
                while run := sorted(itertools.islice(stream, REBUILD_RUN_ENTRIES)):
                    path = self._temporary / f"{owner}.run{len(runs)}"
                    runs.append(path)
                    given += segment.write(path, self._store, run, len(run), last, last)
                parts = [segment.Segment(path, self._store) for path in runs]
                self._place(heapq.merge(*(p.entries() for p in parts)), given, 1, last, owner)
            except OSError as error:
                raise from_os_error(error, f"rebuilding index {self._folder}") from error
            finally:
                for path in runs:
                    path.unlink(missing_ok=True)
            self.refresh()
        return given, problems

    def _from_packs(self, problems: list[str]) -> Iterator[bytes]:
        for number in pack.numbers(self._packs):
            try:
                reader = pack.PackReader(self._packs, self._store, number)
            except DamagedPackError as error:
                path = pack.path_of(self._packs, number)
                if path.exists() and path.stat().st_size > pack.HEADER_BYTES:  # else there is nothing in it
                    problems.append(str(error))
                continue
            try:
                for entry in entries_of(reader, problems):
                    yield segment.pack_entry(entry.id, entry.location)
            finally:
                reader.close()


def entries_of(reader: pack.PackReader, problems: list[str]) -> Iterable[pack.Entry]:
    """What a pack holds: by its footer, or where that is damaged or not written yet, by its records."""
    if not reader.is_sealed():
        return reader.scan()
    try:
        return reader.footer()
    except DamagedPackError as error:
        problems.append(str(error))
        return reader.scan()
