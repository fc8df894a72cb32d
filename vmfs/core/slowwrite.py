"""Writes that change a file's map: the first write to a block, a write past the end, and writes that are not aligned.

A block of 64 KiB that is written for the first time is written whole, zeros around the data, so that nothing of its
former life shows; an inherited block is copied first. The blocks are promised, written, and only then claimed by the
transaction that makes the map point at them.

Bytes between the end of the file and the end of its last block are zeros on the disk, but after a crash between a write
there and its commit. So a file that grows over bytes that nobody writes has them cleared first (`clean_tail`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EFBIG
from typing import Final

from vmfs.core.filemap import capacity
from vmfs.core.groups import Run
from vmfs.core.objects import InodeObject
from vmfs.core.openfile import OpenFile, OpenFiles, handed_over
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.core.views import INHERITED
from vmfs.errors import DeviceError, DeviceGone
from vmfs.ondisk.node import ADDRESS_MASK, MAX_HEIGHT, STATE_MASK, UNWRITTEN, WRITTEN
from vmfs.ondisk.superblock import MIN_BLOCK_BYTES

RUN_BYTES: Final = 1 << 20  # a file that grows gets its blocks in runs of this size, so that they lie together
FILE_MAX_BYTES: Final = capacity(MAX_HEIGHT) * MIN_BLOCK_BYTES
"""The end of the largest map at the smallest block size, some 488 TiB; volumes with larger blocks keep to it too."""
FILE_TOO_LARGE: Final = f"files end at {FILE_MAX_BYTES >> 40} TiB"


class NeedRoom(Exception):
    """The groups that are held have not got the blocks: make room without locks in hand, and try again."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.blocks = blocks


@dataclass(slots=True)
class _Piece:
    """One block of a write."""

    block: int
    address: int
    fresh: bool
    """The block becomes the file's own with this write."""
    run: Run | None
    """What was promised for it."""
    inherited: bool = False
    """It takes the place of a block of the parent layer."""


class SlowWriter:
    """Writes under a file's `slow_mutex`: of the blocks in question inside the file, of the whole file else."""

    def __init__(self, core: Core, files: OpenFiles, space: Space) -> None:
        self._core = core
        self._files = files
        self._space = space
        self._sector = max(core.volume.superblock.sector_bytes, 512)
        self._zeros = bytes(core.block_bytes)

    def write(self, file: OpenFile, data: memoryview, offset: int, *, may_wait: bool) -> None:
        """Write all of `data`. Raises NeedRoom (unless it `may_wait`), NoSpace, OSError(EFBIG), DeviceError."""
        if offset + len(data) > FILE_MAX_BYTES:
            raise OSError(EFBIG, FILE_TOO_LARGE)
        while True:
            try:
                if not self._write_beside_others(file, data, offset):
                    with file.slow_mutex:
                        self._write(file, data, offset)
                return
            except NeedRoom as need:
                if not may_wait:
                    raise
                self._space.ensure(need.blocks)

    def append(self, file: OpenFile, data: memoryview) -> int:
        """Write at the end of the file, wherever that is by now; returns the offset."""
        while True:
            try:
                with file.slow_mutex:
                    offset = file.size
                    self._write(file, data, offset)
                return offset
            except NeedRoom as need:
                self._space.ensure(need.blocks)

    # -- parts of other operations: `slow_mutex` is held and the gate closed --------------------------

    def copy_up(self, file: OpenFile, block: int) -> None:
        """Make an inherited block the file's own, its content unchanged. Raises NoSpace, DeviceError."""
        while True:
            try:
                with self._promised(file, block, block, 0) as pieces:
                    memory = self._core.scratch.take(self._core.block_bytes)
                    self._fill(file, block, memory)
                    self._core.patience.check()
                    self._core.data.write(pieces[0].address, memory)
                    self._space.run(lambda op: self._commit(op, file, pieces, 0))
                return
            except NeedRoom as need:
                self._space.ensure(need.blocks)

    def zero_in_block(self, address: int, low: int, high: int) -> None:
        """Write zeros to bytes `low` to `high` of the written block at `address`. Raises DeviceError."""
        start, end = low & -self._sector, -(-high // self._sector) * self._sector
        memory = self._core.scratch.take(end - start)
        for edge in {start, end - self._sector}:
            self._core.data.read(address + edge, memory[edge - start : edge - start + self._sector])
        memory[low - start : high - start] = bytes(high - low)
        if end - start > 2 * self._sector:
            memory[self._sector : -self._sector] = bytes(end - start - 2 * self._sector)
        self._core.patience.check()
        self._core.data.write(address + start, memory)

    def clean_tail(self, file: OpenFile) -> None:
        """Clear what a crash may have left behind the end of the file. `slow_mutex` suffices. NoSpace, DeviceError."""
        core = self._core
        low = file.size % core.block_bytes
        pointer = file.view.pointer(file.size // core.block_bytes) if low else 0
        if pointer & STATE_MASK != WRITTEN:
            return
        start = low & -self._sector
        memory = core.scratch.take(core.block_bytes - start)
        core.data.read((pointer & ADDRESS_MASK) + start, memory)
        core.patience.check()
        behind = memory[low - start :].tobytes()
        if behind.count(0) == len(behind):
            return
        if pointer & INHERITED:
            self.copy_up(file, file.size // core.block_bytes)
            pointer = file.view.pointer(file.size // core.block_bytes)
        self.zero_in_block(pointer & ADDRESS_MASK, low, core.block_bytes)

    # -- one write, `slow_mutex` held --------------------------------------------------------------

    def _write_beside_others(self, file: OpenFile, data: memoryview, offset: int) -> bool:
        """Write whole sectors inside the file, next to writes of its other blocks; False for any other write."""
        end = offset + len(data)
        if (offset | end) & (self._sector - 1):
            return False
        size = self._core.block_bytes
        with file.slow_mutex.blocks(offset // size, (end - 1) // size):
            if end > file.size:  # which changes under the whole file's mutex only
                return False
            self._write(file, data, offset)
        return True

    def _write(self, file: OpenFile, data: memoryview, offset: int) -> None:
        if not file.owned:  # it was handed over while this write waited
            raise handed_over(file.number)
        core = self._core
        size = core.block_bytes
        first, last = offset // size, (offset + len(data) - 1) // size
        if offset > file.size:
            self.clean_tail(file)
        with self._promised(file, first, last, offset) as pieces:
            # Sectors that are shared with bytes outside of the write must not change between reading and writing them.
            if (offset | len(data)) & (self._sector - 1):
                with self._files.closed_gate(file):
                    self._transfer(file, pieces, data, offset)
            else:
                self._transfer(file, pieces, data, offset)
            changed = [p for p in pieces if p.fresh]
            if changed or offset + len(data) > file.size:
                self._space.run(lambda op: self._commit(op, file, changed, offset + len(data)))
            else:
                file.touched = True

    @contextmanager
    def _promised(self, file: OpenFile, first: int, last: int, offset: int) -> Iterator[list[_Piece]]:
        core = self._core
        file.view.ready(max(0, first - 1), last)  # with what `_goal` looks at
        with core.transactions.mutex:
            core.transactions.check()
            pointers = [file.view.pointer(b) for b in range(first, last + 1)]
            missing = sum(1 for p in pointers if not _own(p))
            runs = self._promise(file, missing, first, offset) if missing else []
            groups = {r.group for r in runs}
            for group in groups:
                core.groups.held[group].pins += 1
        singles = [Run(r.group, i, 1) for r in runs for i in range(r.first, r.first + r.count)]
        pieces: list[_Piece] = []
        for block, pointer in enumerate(pointers, first):
            if _own(pointer):
                pieces.append(_Piece(block, pointer & ADDRESS_MASK, pointer & STATE_MASK == UNWRITTEN, None))
            else:
                run = singles.pop(0)
                inherited = pointer & INHERITED != 0 and pointer & STATE_MASK in (WRITTEN, UNWRITTEN)
                pieces.append(_Piece(block, core.groups.address(run), True, run, inherited))
        give_up = core.groups.take_back  # what was claimed is not promised any more: nothing to take back
        try:
            yield pieces
        except (DeviceError, DeviceGone):
            give_up = core.groups.hold_back
            raise
        finally:
            with core.transactions.mutex:
                for run in runs:
                    give_up(run)
                for group in groups:
                    core.groups.held[group].pins -= 1

    def _promise(self, file: OpenFile, count: int, first: int, offset: int) -> list[Run]:
        """Blocks from the file's reserve, then from the groups; raises NeedRoom with nothing promised."""
        groups = self._core.groups
        runs: list[Run] = []
        left = count
        while left and file.reserve:
            run = file.reserve.pop(0)
            part = Run(run.group, run.first, min(left, run.count))
            if run.count > left:
                file.reserve.insert(0, Run(run.group, run.first + left, run.count - left))
            runs.append(part)
            left -= part.count
        if left:
            grows = offset >= file.size and first > 0
            extra = max(0, RUN_BYTES // self._core.block_bytes - count) if grows else 0
            got = groups.promise(left + extra, self._goal(file, runs, first))
            runs_needed, file.reserve = _split(got, left)
            runs.extend(runs_needed)
            short = left - sum(r.count for r in runs_needed)
            if short:
                for run in runs:
                    groups.take_back(run)
                raise NeedRoom(count)
        return runs

    def _goal(self, file: OpenFile, runs: list[Run], first: int) -> int:
        """The address right behind the block before, or where the new ones so far end."""
        size = self._core.block_bytes
        if runs:
            return self._core.groups.address(runs[-1]) + runs[-1].count * size
        if first:
            before = file.view.pointer(first - 1)
            if _own(before):
                return (before & ADDRESS_MASK) + size
        return 0

    def _transfer(self, file: OpenFile, pieces: list[_Piece], data: memoryview, offset: int) -> None:
        """Write neighbouring blocks together: from `data` as it is, or composed in aligned memory where it must be."""
        size = self._core.block_bytes
        base = pieces[0].block * size
        end = offset + len(data)
        ready = self._needs_nothing(pieces, offset, end)
        memory = data if ready else self._core.scratch.take(len(pieces) * size)
        origin = offset - base if ready else 0  # where `memory` begins, seen from the first block
        writes: list[tuple[int, int, int]] = []  # address, start and end seen from the first block
        for piece in pieces:
            start = (piece.block * size) - base
            low, high = max(offset - base, start), min(end - base, start + size)
            if piece.fresh:
                if (low, high) != (start, start + size):
                    self._fill(file, piece.block, memory[start : start + size])
                low, high = start, start + size
            elif not ready:
                low, high = low & -self._sector, -(-high // self._sector) * self._sector
                self._fill_edges(piece, memory, start, low, high, offset - base, end - base)
            address = piece.address + low - start
            if writes and writes[-1][0] + writes[-1][2] - writes[-1][1] == address and writes[-1][2] == low:
                writes[-1] = (writes[-1][0], writes[-1][1], high)
            else:
                writes.append((address, low, high))
        if not ready:
            memory[offset - base : end - base] = data
        self._core.membership.check_lease()
        for address, low, high in writes:
            self._core.data.write(address, memory[low - origin : high - origin])
        self._core.membership.check_lease()

    def _needs_nothing(self, pieces: list[_Piece], offset: int, end: int) -> bool:
        """Whether whole sectors are written, and new blocks from end to end: the data can go out as it came."""
        block_mask = self._core.block_bytes - 1
        if (offset | end) & (self._sector - 1):
            return False
        return not (pieces[0].fresh and offset & block_mask) and not (pieces[-1].fresh and end & block_mask)

    def _fill(self, file: OpenFile, block: int, memory: memoryview) -> None:
        """What a block that becomes the file's own held so far: its parent layer's data, or zeros."""
        pointer = file.view.pointer(block)
        if pointer & INHERITED and pointer & STATE_MASK == WRITTEN:
            self._core.data.read(pointer & ADDRESS_MASK, memory)
        else:
            memory[:] = self._zeros

    def _fill_edges(
        self, piece: _Piece, memory: memoryview, start: int, low: int, high: int, data_low: int, data_high: int
    ) -> None:
        """Read the sectors of an own block that the data covers in part."""
        sector = self._sector
        edges = set()
        if low < data_low:
            edges.add(low)
        if high > data_high:
            edges.add(high - sector)
        for edge in edges:
            self._core.data.read(piece.address + edge - start, memory[edge : edge + sector])

    def _commit(self, op: Operation, file: OpenFile, changed: list[_Piece], end: int) -> None:
        core = self._core
        obj = core.store.inode(file.number)
        op.touch(obj)
        for piece in changed:
            pointer = piece.address | WRITTEN
            if piece.run is not None:
                core.groups.claim(op, piece.run)
                obj.inode.own_blocks += 1
                obj.inode.shared_blocks -= piece.inherited
            core.maps.set(op, obj, piece.block, pointer)
        op.data_ordered = True
        op.completes = True
        grow(core, obj, end)
        file.touched = False
        # Only now, when nothing can fail any more: the view has no undo.
        for piece in changed:
            file.view.put(piece.block, piece.address | WRITTEN)
        file.size = obj.inode.size


def grow(core: Core, obj: InodeObject, end: int) -> None:
    """A write up to `end` has happened: size, times and version follow."""
    inode = obj.inode
    inode.size = max(inode.size, end)
    inode.mtime_ns = inode.ctime_ns = core.clock.wall_ns()
    inode.version += 1


def _own(pointer: int) -> bool:
    """Whether the file has a block of its own there."""
    return not pointer & INHERITED and pointer & STATE_MASK in (WRITTEN, UNWRITTEN)


def _split(runs: list[Run], count: int) -> tuple[list[Run], list[Run]]:
    """The first `count` blocks of `runs`, and the rest."""
    head: list[Run] = []
    rest: list[Run] = []
    for run in runs:
        take = min(count, run.count)
        if take:
            head.append(Run(run.group, run.first, take))
        if take < run.count:
            rest.append(Run(run.group, run.first + take, run.count - take))
        count -= take
    return head, rest


