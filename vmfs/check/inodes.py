"""The inodes in every chunk: their lock blocks, their own blocks, the data that they point at."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmfs.check.findings import Kind, Report
from vmfs.check.fixed import LockChecker
from vmfs.check.maps import MapFacts, Maps
from vmfs.check.source import Source
from vmfs.check.space import ChunkState, Space
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import inode as inode_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import FLAG_INLINE, Inode, inode_address
from vmfs.ondisk.lock import Guards

FILE_TYPES = frozenset({
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class InodeFacts:
    """What is kept in memory of each inode in use."""

    number: int
    mode: int
    nlink: int
    generation: int
    is_layer: bool
    parent: int
    parent_generation: int
    children: int
    depth: int
    directory_parent: int
    ends_early: bool
    """There is data behind its end."""
    size: int
    inherit_limit: int
    shared_blocks: int
    map: MapFacts

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Inodes:
    """Reads every inode and keeps the facts of those in use, by number."""

    def __init__(self, source: Source, space: Space, maps: Maps, locks: LockChecker, report: Report) -> None:
        self._source = source
        self._space = space
        self._maps = maps
        self._locks = locks
        self._report = report
        self.facts: dict[int, InodeFacts] = {}
        self.damaged: set[int] = set()
        """Numbers of inodes that could not be read."""

    def scan(self, step: Callable[[int, int], None]) -> None:
        """Look at every chunk; `step` gets (chunks done, chunks in all)."""
        total = len(self._space.chunks)
        for done, chunk in enumerate(self._space.chunks.values(), 1):
            for unit in self._places(chunk):
                self._look_at(chunk, unit)
            step(done, total)

    def read(self, number: int) -> Inode:
        """An inode's block, through the overlay. Raises DamagedBlock, DeviceError."""
        return inode_format.parse(self._source.unit(inode_address(number)), number, self._source.volume.uuid)

    def _places(self, chunk: ChunkState) -> Iterator[int]:
        """The units at which inodes' lock blocks begin."""
        geometry = self._source.volume.geometry
        need, units = geometry.inode_units, geometry.units_per_chunk
        if chunk.head is None:
            # Its bitmaps are gone: an inode is wherever an intact inode's block is.
            for unit in range(1, units - need + 1):
                number = (chunk.address >> inode_format.ADDRESS_SHIFT) + unit + need - 1
                try:
                    self.read(number)
                except (DamagedBlock, DeviceError):
                    continue
                yield unit
            return
        free_from = 1
        for unit in range(1, units):
            if not chunk.head.inodes >> unit & 1:
                continue
            if unit < free_from or unit + need > units:
                message = f"an inode at unit {unit} of a chunk of group {chunk.group} has no room there"
                self._report.add(Kind.INODE_STATE_WRONG, message, address=chunk.address)
                continue
            free_from = unit + need
            yield unit

    def _look_at(self, chunk: ChunkState, unit: int) -> None:
        need = self._source.volume.geometry.inode_units
        lock_address = chunk.address + unit * METADATA_BLOCK_BYTES
        number = (lock_address >> inode_format.ADDRESS_SHIFT) + need - 1
        bits = ((1 << need) - 1) << unit
        used = bits if chunk.head is None else chunk.head.used & bits
        try:
            self._locks.check(self._source.unit(lock_address), lock_address, Guards.INODE, f"inode {number}", number)
            inode = self.read(number)
        except (DamagedBlock, DeviceError) as error:
            what = error.what if isinstance(error, DamagedBlock) else str(error)
            self.damaged.add(number)
            chunk.places |= 1 << unit
            self._space.claim_units(lock_address, need, "the place", number)
            self._report.add(
                Kind.INODE_DAMAGED, f"inode {number}: {what}", address=inode_address(number), inode=number
            )
            return
        chunk.places |= 1 << unit
        if used not in (0, bits) or inode.in_use != bool(used):
            state = "in use" if inode.in_use else "free"
            message = f"inode {number} is {state}, and its chunk marks {used.bit_count()} of its {need} units as used"
            self._report.add(Kind.INODE_STATE_WRONG, message, address=inode_address(number), inode=number)
            chunk.disputed |= bits
        if inode.in_use:
            self._space.claim_units(lock_address, need, "the place", number)
            self._take(inode)

    def _take(self, inode: Inode) -> None:
        self.facts[inode.number] = self.judge(inode)

    def judge(self, inode: Inode) -> InodeFacts:
        """Look at an inode in use and at its map of data."""
        number = inode.number
        counts = self._report.counts
        counts.inodes += 1
        if stat.S_IFMT(inode.mode) not in FILE_TYPES:
            message = f"inode {number} has the impossible mode {inode.mode:#o}"
            self._report.add(Kind.INODE_STATE_WRONG, message, address=inode_address(number), inode=number)
        facts = MapFacts()
        if not inode.is_directory and not inode.flags & FLAG_INLINE:
            facts = self._maps.walk_data(inode)
            counts.data_blocks += facts.blocks
            if facts.whole and facts.blocks != inode.own_blocks:
                message = f"inode {number} counts {inode.own_blocks} blocks and has {facts.blocks}"
                self._report.add(
                    Kind.BLOCK_COUNT_WRONG, message, address=inode_address(number), inode=number,
                    own_blocks=facts.blocks,
                )  # fmt: skip
        if inode.flags & FLAG_INLINE and inode.size != len(inode.inline):
            message = f"inode {number} has a size of {inode.size} and {len(inode.inline)} bytes"
            self._report.add(
                Kind.SIZE_WRONG, message, address=inode_address(number), inode=number, size=len(inode.inline)
            )
        block_bytes = self._source.volume.superblock.block_bytes
        if inode.is_layer:
            counts.layers += 1
        elif not inode.is_directory:
            counts.files += 1
        return InodeFacts(
            number=number, mode=inode.mode, nlink=inode.nlink, generation=inode.inode_generation,
            is_layer=inode.is_layer, parent=inode.parent, parent_generation=inode.parent_generation,
            children=inode.children, depth=inode.layer_depth, directory_parent=inode.directory_parent,
            ends_early=facts.last_written * block_bytes >= inode.size and facts.last_written >= 0,
            size=inode.size, inherit_limit=inode.inherit_limit, shared_blocks=inode.shared_blocks, map=facts,
        )  # fmt: skip
