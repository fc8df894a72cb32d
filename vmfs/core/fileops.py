"""Truncation, allocation, punching, zeroing, seeking: what changes or asks for a file's map without writing data."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EBUSY, EFBIG, ENXIO
from typing import Final

from vmfs.core.filemap import leaf_indexes
from vmfs.core.groups import Run
from vmfs.core.inodes import Inodes
from vmfs.core.namespace import touch_times
from vmfs.core.objects import InodeObject
from vmfs.core.openfile import OpenFile, OpenFiles
from vmfs.core.reaper import Reaper
from vmfs.core.slowwrite import FILE_MAX_BYTES, FILE_TOO_LARGE, SlowWriter
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import OPERATION_MAX_BLOCKS, Operation
from vmfs.core.views import INHERITED
from vmfs.fuse.contract import SEEK_DATA
from vmfs.ondisk.node import ADDRESS_MASK, HOLE, POINTERS_PER_NODE, PUNCHED, STATE_MASK, UNWRITTEN, WRITTEN
from vmfs.ondisk.orphans import OrphanKind

# One transaction changes at most so many blocks, leaves of the map and groups: together they fit its share of a record,
# with the nodes above new leaves and the chunks that those come from.
STEP_BLOCKS: Final = POINTERS_PER_NODE
STEP_LEAVES: Final = 4
STEP_GROUPS: Final = OPERATION_MAX_BLOCKS // 4
_GROUP_WAIT_SECONDS: Final = 1.0

_Blocks = list[tuple[int, int]]
"""(number, flattened pointer) each."""


def _allocated(pointer: int) -> bool:
    return pointer & STATE_MASK in (WRITTEN, UNWRITTEN)


def _own(pointer: int) -> bool:
    """Whether the file has a block of its own there."""
    return _allocated(pointer) and not pointer & INHERITED


class FileOps:
    """Operations on a file that is open for writing here, or whose lock the caller holds."""

    def __init__(
        self, core: Core, inodes: Inodes, files: OpenFiles, space: Space, slow: SlowWriter, reaper: Reaper
    ) -> None:
        self._core = core
        self._inodes = inodes
        self._files = files
        self._space = space
        self._slow = slow
        self._reaper = reaper

    @contextmanager
    def exclusive(self, number: int) -> Iterator[OpenFile]:
        """The file with its lock held, owned, and no other write under way on this host.

        OSError(EBUSY, ESTALE); LeaseLost, DeviceError.
        """
        core = self._core
        with self._inodes.locked(number):
            self._reaper.cut_before_writing(number)
            with core.transactions.mutex:
                inode = self._inodes.owned(number).inode
                file = self._files.get(core, self._inodes, number, inode.inode_generation)
                file.start_writing()
            try:
                with file.slow_mutex, self._files.closed_gate(file):
                    yield file
            finally:
                with core.transactions.mutex:
                    file.end_writing()
                    self._files.put(file)

    # -- size --------------------------------------------------------------------------------------

    def truncate(self, number: int, size: int) -> None:
        """Set the file's size. OSError(EFBIG, EBUSY, ESTALE); NoSpace, DeviceError."""
        if size > FILE_MAX_BYTES:
            raise OSError(EFBIG, FILE_TOO_LARGE)
        self._reaper.make_room()  # before the file's writers are held back: it may wait for one of its own removals
        with self.exclusive(number) as file:
            if size >= file.size:
                self._grow(file, size)
            else:
                self._shrink(file, size)

    def _grow(self, file: OpenFile, size: int) -> None:
        """Make the file longer, or only set its times; what is new reads as zeros."""

        def action(op: Operation) -> None:
            op.data_ordered = size > file.size  # the tail's zeros are on the disk before the size
            self._set_size(op, file, size)

        if size > file.size:
            self._slow.clean_tail(file)
        self._space.run(action, units=0)

    def _set_size(self, op: Operation, file: OpenFile, size: int) -> None:
        obj = self._core.store.inode(file.number)
        op.touch(obj)
        before = file.size

        def undo() -> None:
            file.size = before

        op.on_undo(undo)
        obj.inode.size = file.size = size
        touch_times(self._core, obj.inode, modified=True)

    def _shrink(self, file: OpenFile, size: int) -> None:
        core = self._core
        edge = size % core.block_bytes
        block = size // core.block_bytes
        if edge and file.view.pointer(block) & INHERITED and file.view.pointer(block) & STATE_MASK == WRITTEN:
            self._slow.copy_up(file, block)

        keep = -(-size // core.block_bytes)
        shared = self._count_shared(file, keep)  # the gate is closed: it stays true

        def cut(op: Operation) -> InodeObject:
            obj = core.store.inode(file.number)
            self._set_size(op, file, size)
            inode = obj.inode
            if inode.parent and keep < inode.inherit_limit:
                inode.shared_blocks -= shared
                inode.inherit_limit = keep
            self._reaper.add(op, inode, OrphanKind.TRIM)
            return obj

        obj = self._space.run(cut, units=0)
        with core.transactions.mutex:
            file.drop_reserve()
        file.view.reset()
        try:
            self._reaper.trim(obj)
        except OSError as error:
            if error.errno != EBUSY:
                raise
            self._reaper.kick()  # a group that another host keeps: later, in the background
        finally:
            file.view.reset()

    def _count_shared(self, file: OpenFile, first: int) -> int:
        """Blocks from `first` on that the file inherits."""
        if not self._inodes.look(file.number).inode.parent:
            return 0
        return sum(1 for b, p in self._mapped(file, first) if p & INHERITED and _allocated(p))

    def _mapped(self, file: OpenFile, first: int, last: int = 1 << 64) -> Iterator[tuple[int, int]]:
        """(block, flattened pointer) of all blocks from `first` to before `last` that any layer says something of."""
        for index in self._indexes(file, first // POINTERS_PER_NODE):
            base = index * POINTERS_PER_NODE
            if base >= last:
                return
            for block in range(max(first, base), min(last, base + POINTERS_PER_NODE)):
                pointer = file.view.pointer(block)
                if pointer & STATE_MASK:
                    yield block, pointer

    def _indexes(self, file: OpenFile, start: int) -> Iterator[int]:
        """The leaves from `start` on that exist in the file's map or in a layer below it, in order."""
        seen = self._inodes.look(file.number)
        maps = [leaf_indexes(seen.inode, seen.source, start)]
        maps += [leaf_indexes(layer, self._inodes.nodes, start) for layer in self._inodes.chain(seen.inode)]
        last = -1
        for index in heapq.merge(*maps):
            if index != last:
                yield index
            last = index

    def _zero(self, file: OpenFile, start: int, end: int, limit: int | None) -> None:
        """Write zeros over [start, end) of written blocks; holes are zeros already. The gate is closed."""
        size = self._core.block_bytes
        end = end if limit is None else min(end, limit)
        at = start
        while at < end:
            block = at // size
            stop = min(end, (block + 1) * size)
            pointer = file.view.pointer(block)
            if pointer & STATE_MASK == WRITTEN:
                if pointer & INHERITED:
                    self._slow.copy_up(file, block)
                    pointer = file.view.pointer(block)
                self._slow.zero_in_block(pointer & ADDRESS_MASK, at - block * size, stop - block * size)
            at = stop
        file.touched = True

    # -- allocation --------------------------------------------------------------------------------

    def allocate(self, number: int, offset: int, length: int, *, keep_size: bool) -> None:
        """Give every hole of the range a block (it reads as zeros). OSError(EFBIG, EBUSY); NoSpace."""
        end = offset + length
        if end > FILE_MAX_BYTES:
            raise OSError(EFBIG, FILE_TOO_LARGE)
        size = self._core.block_bytes
        with self.exclusive(number) as file:
            self._check_room(file, offset // size, -(-end // size))
            for first in range(offset // size, -(-end // size), STEP_BLOCKS):
                last = min(first + STEP_BLOCKS, -(-end // size))
                self._fill_holes(file, range(first, last))
            if not keep_size and end > file.size:
                self._grow(file, end)

    def _check_room(self, file: OpenFile, first: int, last: int) -> None:
        """Refuse at once what cannot fit, before anything is allocated. NoSpace."""
        wanted = last - first - sum(1 for _, p in self._mapped(file, first, last) if _allocated(p))
        if wanted > self._space.free_blocks():
            self._space.ensure(wanted)

    def _fill_holes(self, file: OpenFile, blocks: range) -> None:
        core = self._core
        while True:
            file.view.ready(max(0, blocks.start - 1), blocks.stop - 1)
            with core.transactions.mutex:
                holes = [b for b in blocks if not _allocated(file.view.pointer(b))]
                if not holes:
                    return
                before = file.view.pointer(holes[0] - 1) if holes[0] else 0
                goal = (before & ADDRESS_MASK) + core.block_bytes if _own(before) else 0
                got = core.groups.promise(len(holes), goal)
                some = set(sorted({r.group for r in got})[:STEP_GROUPS])
                runs = [r for r in got if r.group in some]
                for run in got:
                    if run.group not in some:
                        core.groups.take_back(run)
                for run in runs:
                    core.groups.held[run.group].pins += 1
            try:
                if not runs:
                    self._space.ensure(min(len(holes), STEP_BLOCKS))
                    continue
                self._claim(file, holes, runs)
            finally:
                with core.transactions.mutex:
                    for run in runs:
                        core.groups.held[run.group].pins -= 1
                        core.groups.take_back(run)

    def _claim(self, file: OpenFile, holes: list[int], runs: list[Run]) -> None:
        core = self._core
        taken = [core.groups.address(r) + i * core.block_bytes for r in runs for i in range(r.count)]
        pairs = [(b, a | UNWRITTEN) for b, a in zip(holes, taken, strict=False)]

        def action(op: Operation) -> None:
            for run in runs:
                core.groups.claim(op, run)
            self._set_pointers(op, file, pairs)

        self._space.run(action)
        self._show(file, pairs)

    def _set_pointers(self, op: Operation, file: OpenFile, pairs: list[tuple[int, int]]) -> None:
        """Change a file's own map; counts follow what was there and what is."""
        core = self._core
        obj = core.store.inode(file.number)
        op.touch(obj)
        for block, pointer in pairs:
            seen = file.view.pointer(block)
            old = core.maps.set(op, obj, block, pointer)
            obj.inode.own_blocks += _allocated(pointer) - _allocated(old)
            obj.inode.shared_blocks -= bool(seen & INHERITED and _allocated(seen))
        touch_times(core, obj.inode, modified=True)

    def _show(self, file: OpenFile, pairs: list[tuple[int, int]]) -> None:
        with self._core.transactions.mutex:
            for block, pointer in pairs:
                file.view.put(block, pointer)

    # -- punching and zeroing ----------------------------------------------------------------------

    def punch(self, number: int, offset: int, length: int) -> None:
        """Free the whole blocks of a range, zero its edges: all of it reads as zeros. OSError(EBUSY); NoSpace."""
        self._clear(number, offset, offset + length, self._punch_blocks)

    def zero(self, number: int, offset: int, length: int, *, keep_size: bool) -> None:
        """As `punch`, but every block of the range is allocated afterwards. OSError(EFBIG, EBUSY); NoSpace."""
        end = offset + length
        if end > FILE_MAX_BYTES:
            raise OSError(EFBIG, FILE_TOO_LARGE)
        self._clear(number, offset, end, self._unwrite_blocks)
        self.allocate(number, offset, length, keep_size=keep_size)

    def _clear(self, number: int, offset: int, end: int, clear: Callable[[OpenFile, _Blocks], None]) -> None:
        size = self._core.block_bytes
        first, last = -(-offset // size), end // size
        with self.exclusive(number) as file:
            if end >= file.size:
                # Behind the end of the file all is zero: a last block that is cleared up to there is cleared whole.
                last = max(last, -(-end // size)) if end % size and end >= file.size else last
            if first >= last:
                self._zero(file, offset, end, limit=file.size)
                return
            self._zero(file, offset, first * size, limit=file.size)
            self._zero(file, last * size, end, limit=file.size)
            for part in self._steps(self._mapped(file, first, last)):
                clear(file, part)

    def _steps(self, blocks: Iterable[tuple[int, int]]) -> Iterator[_Blocks]:
        """Cut blocks into what one transaction may change."""
        part: _Blocks = []
        leaves: set[int] = set()
        groups: set[int] = set()
        for block, pointer in blocks:
            leaf = block // POINTERS_PER_NODE
            group = self._core.geometry.group_of(pointer & ADDRESS_MASK)[0] if _own(pointer) else -1
            full = len(part) == STEP_BLOCKS or len(leaves | {leaf}) > STEP_LEAVES or len(groups | {group}) > STEP_GROUPS
            if full:
                yield part
                part, leaves, groups = [], set(), set()
            part.append((block, pointer))
            leaves.add(leaf)
            groups.add(group)
        if part:
            yield part

    def _punch_blocks(self, file: OpenFile, blocks: _Blocks) -> None:
        core = self._core
        with core.transactions.mutex:
            inode = core.store.inode(file.number).inode
            pairs = [(b, PUNCHED if inode.parent and b < inode.inherit_limit else HOLE) for b, _ in blocks]
        own = [p & ADDRESS_MASK for _, p in blocks if _own(p)]

        def action(op: Operation) -> None:
            core.groups.free(op, own)
            self._set_pointers(op, file, pairs)

        with self._space.groups_held(own, _GROUP_WAIT_SECONDS) as held:
            if held:
                self._space.run(action)
                self._show(file, pairs)
                return
        # Another host keeps a group in which blocks would be freed: zeros do as well, the space stays taken.
        for block, _ in blocks:
            self._zero(file, block * core.block_bytes, (block + 1) * core.block_bytes, limit=None)

    def _unwrite_blocks(self, file: OpenFile, blocks: _Blocks) -> None:
        """Own blocks become unwritten; inherited ones are hidden."""
        pairs = []
        for block, pointer in blocks:
            if pointer & INHERITED:
                pairs.append((block, PUNCHED))
            elif pointer & STATE_MASK == WRITTEN:
                pairs.append((block, pointer & ADDRESS_MASK | UNWRITTEN))
        if pairs:
            self._space.run(lambda op: self._set_pointers(op, file, pairs))
            self._show(file, pairs)

    # -- seeking -----------------------------------------------------------------------------------

    def seek(self, file: OpenFile, offset: int, whence: int) -> int:
        """The next data or the next hole at or behind `offset`. OSError(ENXIO) behind the end."""
        file.refresh()
        size = self._core.block_bytes
        if offset >= file.size:
            raise OSError(ENXIO, "behind the end of the file")
        position = offset
        for block, pointer in self._mapped(file, offset // size):
            if pointer & STATE_MASK != WRITTEN:
                continue
            start = block * size
            if start >= file.size:
                break
            if whence == SEEK_DATA:
                return max(offset, start)
            if start > position:
                return position
            position = start + size
        if whence == SEEK_DATA:
            raise OSError(ENXIO, "no data behind this offset")
        return min(position, file.size)
