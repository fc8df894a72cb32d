"""One disk into the store: what may have changed is read, cut, hashed and stored; the rest is taken over by its ids.

The unit of work is a leaf of the tree of ids: 256 chunks, 16 MiB. A thread reads and stores a leaf's chunks in batches;
the leaves are joined in order. A leaf in which nothing may have changed is neither read nor looked at: its page's id
goes into the new tree as it stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

from datarecovery import extents
from datarecovery.errors import DamagedError, DamagedIndexError
from datarecovery.extents import Run
from datarecovery.source import Changes, DiskSource, Rung, RungReport
from datarecovery.store.manifest import Disk, Figures
from datarecovery.store.record import KIND_CHUNK, KIND_PAGE, ZERO_ID, Buffer, identity
from datarecovery.store.session import WriteSession
from datarecovery.store.store import Store
from datarecovery.tree import FANOUT, TreeBuilder, TreeReader, levels_for, pages_at
from datarecovery.workers import in_order

# Chunks read and stored at once: 4 MiB, large requests for the disk, and few look-ups at a time for the claims.
BATCH_CHUNKS = 64


@dataclass(slots=True)
class _Leaf:
    """A leaf under way: its place, its ids (those of the last restore point until they are replaced), its figures."""

    number: int
    old_id: bytes
    ids: list[bytes]
    fresh: bool
    first: int
    read: int = 0
    changed: int = 0
    stored: int = 0
    deduplicated: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of a disk."""

    root: bytes
    levels: int
    report: RungReport
    figures: Figures


@dataclass(slots=True)
class DiskBackup:
    """Backs up one disk. `previous` is the disk in the VM's last restore point, if it was in it."""

    store: Store
    session: WriteSession
    source: DiskSource
    previous: Disk | None
    threads: int
    advance: Callable[[int], None]
    _buffers: threading.local = field(default_factory=threading.local)
    _page_bytes: int = 0

    def run(self, why_none: str) -> Outcome:
        """Read and store. Raises SourceError, NoSpaceError, StoreIoError, DamagedIndexError.

        `why_none` is the reason to report when there is nothing to compare with.
        """
        begun = time.monotonic()
        previous = self.previous
        changes = self.source.changes_since(previous.baseline if previous else None, why_none)
        try:
            outcome = self._attempt(changes, previous)
        except DamagedIndexError:
            raise
        except DamagedError as error:
            if previous is None:
                raise
            reason = f"the last restore point cannot be built upon: {error}"
            outcome = self._attempt(Changes(RungReport(Rung.FULL_READ, reason)), None)
        outcome.figures = replace(outcome.figures, seconds=time.monotonic() - begun)
        return outcome

    def _attempt(self, changes: Changes, previous: Disk | None) -> Outcome:
        self._page_bytes = 0
        reader = self.store.reader()
        builder = TreeBuilder(self._put_page)
        sums = Figures(logical=self.source.size)
        try:
            old = None
            if previous:
                chunks = self.store.chunks_of(previous.size)
                old = TreeReader(reader.get_page, previous.root, previous.levels, chunks)
            with closing(in_order(self._tasks(changes, previous, old), self.threads, "backup")) as leaves:
                for leaf in leaves:
                    builder.add_leaf(builder.page(leaf.ids) if leaf.fresh else leaf.old_id)
                    sums = _added(sums, leaf)
                    self.advance(min(FANOUT * self.store.config.chunk_bytes, self.source.size))
        finally:
            reader.close()
        root, levels = builder.finish()
        if levels != levels_for(self.store.chunks_of(self.source.size)):
            raise AssertionError(f"a tree of {levels} levels was built for {self.source.size} bytes")
        return Outcome(root, levels, changes.report, replace(sums, stored=sums.stored + self._page_bytes))

    def _put_page(self, page_id: bytes, page: bytes) -> None:
        self._page_bytes += self.session.put(KIND_PAGE, {page_id: page}).new_bytes

    def _changed_runs(self, changes: Changes, previous: Disk | None, chunks: int) -> Iterator[Run]:
        chunk = self.store.config.chunk_bytes
        if changes.extents is None or previous is None:
            return iter([(0, chunks)] if chunks else [])
        runs = extents.chunk_runs(changes.extents, chunk, self.source.size)
        if previous.size == self.source.size:
            return runs
        # Grown or shrunk: the last chunk that both have is cut differently, and what follows is new, whatever a
        # diff says of the range that the older one does not have.
        return extents.with_tail(runs, (min(previous.size, self.source.size) // chunk, chunks))

    def _tasks(
        self, changes: Changes, previous: Disk | None, old: TreeReader | None
    ) -> Iterator[Callable[[], _Leaf]]:
        chunks = self.store.chunks_of(self.source.size)
        changed = extents.Cursor(self._changed_runs(changes, previous, chunks))
        data = extents.Cursor(
            extents.chunk_runs(self.source.allocated(), self.store.config.chunk_bytes, self.source.size)
        )
        old_leaves = old.leaf_ids() if old else iter(())
        for number in range(pages_at(chunks, 1)):
            first, last = number * FANOUT, min((number + 1) * FANOUT, chunks)
            old_id = next(old_leaves, ZERO_ID)
            dirty = changed.within(first, last)
            held = data.within(first, last)
            same_length = old is None or min(old.chunks, (number + 1) * FANOUT) == last
            if not dirty and same_length:
                yield partial(_Leaf, number, old_id, [], False, first)
                continue
            ids = old.leaf(number, old_id) if old and number < old.leaves else []
            ids = (ids + [ZERO_ID] * (last - first))[: last - first]
            leaf = _Leaf(number, old_id, ids, True, first)
            holes = extents.subtract(dirty, held)
            yield partial(self._do_leaf, leaf, extents.intersect(dirty, held), holes, same_length)

    def _do_leaf(self, leaf: _Leaf, to_read: Sequence[Run], holes: Sequence[Run], same_length: bool) -> _Leaf:
        before = leaf.ids.copy()
        for first, last in holes:
            for number in range(first, last):
                if leaf.ids[number - leaf.first] != ZERO_ID:
                    leaf.ids[number - leaf.first] = ZERO_ID
                    leaf.changed += self._length(number)
        for first, last in to_read:
            for start in range(first, last, BATCH_CHUNKS):
                self._do_batch(leaf, start, min(start + BATCH_CHUNKS, last))
        leaf.fresh = leaf.ids != before or not same_length
        return leaf

    def _length(self, number: int) -> int:
        chunk = self.store.config.chunk_bytes
        return min(chunk, self.source.size - number * chunk)

    def _buffer(self) -> bytearray:
        found = getattr(self._buffers, "buffer", None)
        if not isinstance(found, bytearray):
            found = self._buffers.buffer = bytearray(BATCH_CHUNKS * self.store.config.chunk_bytes)
        return found

    def _do_batch(self, leaf: _Leaf, start: int, stop: int) -> None:
        chunk = self.store.config.chunk_bytes
        size = (stop - start - 1) * chunk + self._length(stop - 1)
        buffer = self._buffer()
        view = memoryview(buffer)
        self.source.read_into(start * chunk, view[:size])
        leaf.read += size
        zeros = _zeros(chunk)
        batch: dict[bytes, Buffer] = {}
        lengths: dict[bytes, int] = {}
        for number in range(start, stop):
            at = (number - start) * chunk
            length = self._length(number)
            # startswith compares in place at memory speed and stops at the first difference.
            blank = buffer.startswith(zeros if length == chunk else zeros[:length], at)
            new_id = ZERO_ID if blank else identity(KIND_CHUNK, view[at : at + length])
            place = number - leaf.first
            if leaf.ids[place] == new_id:
                continue
            leaf.ids[place] = new_id
            leaf.changed += length
            if not blank:
                leaf.deduplicated += length
                batch[new_id] = view[at : at + length]
                lengths[new_id] = length
        if batch:
            stored = self.session.put(KIND_CHUNK, batch)
            leaf.stored += stored.new_bytes
            leaf.deduplicated -= sum(lengths[one] for one in stored.new_ids)


def _added(sums: Figures, leaf: _Leaf) -> Figures:
    return replace(
        sums,
        read=sums.read + leaf.read,
        changed=sums.changed + leaf.changed,
        stored=sums.stored + leaf.stored,
        deduplicated=sums.deduplicated + leaf.deduplicated,
    )


_ZEROS: dict[int, bytes] = {}


def _zeros(size: int) -> bytes:
    found = _ZEROS.get(size)
    if found is None:
        found = _ZEROS[size] = bytes(size)
    return found
