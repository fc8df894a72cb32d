"""What the scrub puts in the place of the offline check's records: looked up on the disk when they are asked for.

An object is examined alone, while hosts change all others. What cannot be read just now counts as unknown, never as
wrong: it has a lock of its own, under which it is examined in its turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from vmfs.check.directories import Directories
from vmfs.check.findings import Finding, Kind, Report
from vmfs.check.fixed import LockChecker
from vmfs.check.inodes import InodeFacts, Inodes
from vmfs.check.maps import MapFacts, Maps
from vmfs.check.source import Source
from vmfs.check.space import CHUNK, FREE, UNALLOCATED, Space, runs
from vmfs.errors import DamagedBlock
from vmfs.ondisk import chunk, group
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.lock import Guards

_TORN_READS: Final = 20  # of a block that another host may be writing this moment
_T = TypeVar("_T")


@dataclass(slots=True)
class LiveGroups:
    """Groups' blocks as last read, as one byte a block."""

    source: Source
    states: dict[int, bytes] = field(default_factory=dict)

    def of(self, index: int) -> bytes:
        """UNALLOCATED, FREE (allocated to data) or CHUNK; all FREE when it cannot be read now."""
        found = self.states.get(index)
        if found is None:
            found = self.states[index] = self._read(index)
        return found

    def _read(self, index: int) -> bytes:
        volume = self.source.volume
        address, count = volume.geometry.group_block_address(index), volume.geometry.group_blocks(index)
        for _ in range(_TORN_READS):
            try:
                block = group.parse(self.source.block(address), address, volume.uuid, index, count)
            except DamagedBlock:
                continue
            states = bytearray([UNALLOCATED]) * count
            for bits, state in ((block.used, FREE), (block.meta, CHUNK)):
                for first, length in runs(bits):
                    states[first : first + length] = bytes([state]) * length
            return bytes(states)
        return bytes(count)


class _LiveSpace(Space):
    """Claims of one object alone, against what groups and chunks say."""

    def __init__(self, source: Source, report: Report, groups: LiveGroups) -> None:
        super().__init__(source, report)
        self._live = groups
        self._taken: set[int] = set()

    def states(self, index: int) -> bytearray:
        found = self._claims.get(index)
        if found is None:
            found = self._claims[index] = bytearray(self._live.of(index))
        return found

    def is_unit(self, address: int, what: str, inode: int) -> bool:
        try:
            head_address, unit = self._geometry.chunk_of(address)
            index, block = self._geometry.group_of(head_address)
            states = self._live.of(index)
            problem = "" if unit and states[block] in (CHUNK, FREE) else "lies where no metadata chunk is"
        except DamagedBlock as error:
            problem = error.what
        if problem:
            message = f"{what} of inode {inode}: {problem}"
            self._report.add(Kind.POINTER_WRONG, message, address=address, inode=inode)
            return False
        head = read_head(self._source, head_address, index)
        if head is not None and not head.used >> unit & 1:
            message = f"{what} of inode {inode} is in use and marked free"
            self._report.add(Kind.UNIT_NOT_ALLOCATED, message, address=address, inode=inode)
        return True

    def claim_units(self, address: int, count: int, what: str, inode: int) -> bool:
        if address in self._taken:
            message = f"{what} of inode {inode} is also used elsewhere"
            self._report.add(Kind.UNIT_SHARED, message, address=address, inode=inode)
            return False
        self._taken.add(address)
        return True

    def is_claimed(self, address: int) -> bool:
        return address in self._taken

    def is_headless(self, address: int) -> bool:
        return False


class _FactsOnDemand(dict[int, InodeFacts]):
    """Inodes by number, as they are on the disk when they are asked for."""

    def __init__(self, inodes: Inodes, source: Source) -> None:
        super().__init__()
        self._inodes = inodes
        self._source = source

    def get(self, number: int, default: InodeFacts | _T | None = None) -> InodeFacts | _T | None:  # type: ignore[override]
        for _ in range(_TORN_READS):
            try:
                inode = self._inodes.read(number)
            except DamagedBlock:
                continue
            return plain_facts(inode) if inode.in_use else None
        if self._is_place(number):
            self._inodes.damaged.add(number)
        return None

    def _is_place(self, number: int) -> bool:
        """Whether an inode may lie there, as far as its chunk says."""
        geometry = self._source.volume.geometry
        try:
            geometry.check_inode(number)
            address, unit = geometry.chunk_of(geometry.inode_lock_address(number))
        except DamagedBlock:
            return False
        head = read_head(self._source, address, geometry.group_of(address)[0])
        return head is None or bool(head.inodes >> unit & 1)


def plain_facts(inode: Inode) -> InodeFacts:
    """An inode's facts without a look at its map."""
    return InodeFacts(
        number=inode.number, mode=inode.mode, nlink=inode.nlink, generation=inode.inode_generation,
        is_layer=inode.is_layer, parent=inode.parent, parent_generation=inode.parent_generation,
        children=inode.children, depth=inode.layer_depth, directory_parent=inode.directory_parent, ends_early=False,
        size=inode.size, inherit_limit=inode.inherit_limit, shared_blocks=inode.shared_blocks, map=MapFacts(),
    )  # fmt: skip


def read_head(source: Source, address: int, index: int) -> ChunkHead | None:
    """A chunk's head; None when it cannot be read now."""
    volume = source.volume
    for _ in range(_TORN_READS):
        try:
            block = source.block(address)
            return chunk.parse(block, address, volume.uuid, index, volume.geometry.units_per_chunk)
        except DamagedBlock:
            continue
    return None


def examine_inode(source: Source, groups: LiveGroups, locks: LockChecker, number: int) -> list[Finding]:
    """What is wrong with one inode: its lock, itself, its map, its names; [] when it is free or all is well.

    The findings of `locks` are the caller's to collect. Raises DeviceError.
    """
    report = Report("", "")
    space = _LiveSpace(source, report, groups)
    maps = Maps(source, space, report)
    inodes = Inodes(source, space, maps, locks, report)
    inodes.facts = _FactsOnDemand(inodes, source)
    geometry = source.volume.geometry
    lock = geometry.inode_lock_address(number)
    try:
        locks.check(source.unit(lock), lock, Guards.INODE, f"inode {number}", number)
        inode = inodes.read(number)
    except DamagedBlock as error:
        report.add(Kind.INODE_DAMAGED, f"inode {number}: {error.what}", address=inode_address(number), inode=number)
        return report.findings
    _check_state(source, report, inode)
    if number == source.volume.superblock.root_inode and not inode.is_directory:
        message = f"the root, inode {number}, is no directory in use"
        report.add(Kind.INODE_STATE_WRONG, message, address=inode_address(number), inode=number)
    if inode.in_use:
        facts = inodes.judge(inode)
        if inode.is_directory:
            Directories(source, space, maps, inodes, report).check_one(facts)
        _check_parent(report, inodes, facts)
    # A target that cannot be read now is examined under its own lock.
    return [f for f in report.findings if f.kind is not Kind.ENTRY_DANGLING or f.inode not in inodes.damaged]


def _check_state(source: Source, report: Report, inode: Inode) -> None:
    geometry = source.volume.geometry
    address = geometry.inode_lock_address(inode.number)
    head_address, unit = geometry.chunk_of(address)
    head = read_head(source, head_address, geometry.group_of(head_address)[0])
    if head is None:
        return
    bits = ((1 << geometry.inode_units) - 1) << unit
    if head.used & bits not in (0, bits) or inode.in_use != bool(head.used & bits):
        state = "in use" if inode.in_use else "free"
        message = f"inode {inode.number} is {state}, and its chunk marks {(head.used & bits).bit_count()} of its units"
        report.add(Kind.INODE_STATE_WRONG, message, address=inode_address(inode.number), inode=inode.number)


def _check_parent(report: Report, inodes: Inodes, facts: InodeFacts) -> None:
    if not facts.parent:
        return
    parent = inodes.facts.get(facts.parent)
    if parent is None and facts.parent in inodes.damaged:
        return
    if parent is None or not parent.is_layer or parent.generation != facts.parent_generation:
        message = f"inode {facts.number} stands on layer {facts.parent}, which is not there"
        report.add(Kind.LAYER_MISSING, message, address=inode_address(facts.number), inode=facts.number)


def units_of(head: ChunkHead, inode_units: int) -> list[int]:
    """The units at which inodes' lock blocks begin."""
    return [u for u in range(1, head.unit_count - inode_units + 1) if head.inodes >> u & 1]


def inode_number(head_address: int, unit: int, inode_units: int) -> int:
    """The number of the inode whose lock block begins at that unit."""
    return head_address // METADATA_BLOCK_BYTES + unit + inode_units - 1


