"""The blocks that an inode's map points at: claimed, and each pointer judged."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from vmfs.check.findings import Kind, Report
from vmfs.check.source import Source
from vmfs.check.space import CHUNK, CLAIMED, FREE, UNALLOCATED, Space
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import node
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import ADDRESS_MASK, HOLE, LOST, POINTERS_PER_NODE, PUNCHED, STATE_MASK, UNWRITTEN, WRITTEN

_STATE_AND_RESERVED = 0xFFF


@dataclass(slots=True)
class LeafBits:
    """What a leaf says of its blocks, as bits: anything at all, a block allocated, data written."""

    present: int = 0
    allocated: int = 0
    written: int = 0


@dataclass(slots=True)
class MapFacts:
    """What a walk over a map of data found."""

    blocks: int = 0
    lost: int = 0
    """Blocks that an earlier repair marked lost."""
    last_written: int = -1
    """The highest block number that holds data, or -1."""
    whole: bool = True
    """Every node could be read."""
    leaves: dict[int, LeafBits] = field(default_factory=dict)
    """By first block; of files with layers below, and of layers, only."""


class Maps:
    """Walks maps. For one thread; what it claims goes to `space`."""

    def __init__(self, source: Source, space: Space, report: Report) -> None:
        self._source = source
        self._space = space
        self._report = report
        self._geometry = source.volume.geometry
        self._block_bytes = source.volume.superblock.block_bytes
        self.complete = True
        """Every node of every map walked so far could be read."""
        self.broken: set[int] = set()
        """Inodes in whose maps a node or a pointer is wrong."""
        self.into_chunks: set[int] = set()
        """Chunks that a map of data points into: whatever lies there, it may be forged file data."""
        # The group that the last pointer led to: maps mostly lead to one group many times over.
        self._low = self._high = 0
        self._states = bytearray()

    def leaves(self, inode: Inode, *, claim: bool = True) -> Iterator[tuple[int, array[int]]]:
        """(first block number, pointers) of each leaf, with findings for whatever is wrong on the way there."""
        if inode.height == 0:
            yield 0, inode.root
        else:
            yield from self._below(inode, inode.root, inode.height, 0, claim)

    def _below(
        self, inode: Inode, pointers: array[int], level: int, first: int, claim: bool
    ) -> Iterator[tuple[int, array[int]]]:
        """The leaves below the pointers of one node; `first` is the index of its first child in the level below."""
        for position, pointer in enumerate(pointers):
            if not pointer:
                continue
            index = first + position
            found = self._node(inode, pointer, level - 1, index, claim)
            if found is None:
                self.complete = False
                self.broken.add(inode.number)
            elif level == 1:
                yield index * POINTERS_PER_NODE, found
            else:
                yield from self._below(inode, found, level - 1, index * POINTERS_PER_NODE, claim)

    def _node(self, inode: Inode, pointer: int, level: int, index: int, claim: bool) -> array[int] | None:
        if pointer == LOST:
            if claim:
                self._report.counts.lost_blocks += 1
            return array("Q")
        what = f"map node of level {level}, index {index}"
        address = pointer & ADDRESS_MASK
        if pointer & _STATE_AND_RESERVED != WRITTEN:
            if claim:
                message = f"{what} of inode {inode.number}: impossible pointer {pointer:#x}"
                self._report.add(Kind.POINTER_WRONG, message, address=inode_address(inode.number), inode=inode.number)
            return None
        if claim and not self._space.is_unit(address, what, inode.number):
            return None
        try:
            # Parsed before it is claimed: what belongs to another map stays that one's.
            block = self._source.unit(address)
            found = node.parse(block, address, self._source.volume.uuid, inode.map_id, level, index)[0]
            return found if not claim or self._space.claim_units(address, 1, what, inode.number) else None
        except DamagedBlock as error:
            kind, problem = Kind.NODE_DAMAGED, error.what
        except DeviceError as error:
            kind, problem = Kind.READ_FAILED, str(error)
        if claim:
            kind = Kind.UNIT_SHARED if self._space.is_claimed(address) else kind
            message = f"{what} of inode {inode.number}: {problem}"
            self._report.add(kind, message, address=address, inode=inode.number)
        return None

    # -- data --------------------------------------------------------------------------------------

    def walk_data(self, inode: Inode) -> MapFacts:
        """Claim the blocks of a file or a layer."""
        facts = MapFacts()
        complete_before, self.complete = self.complete, True
        layered = bool(inode.parent or inode.is_layer)
        for first, pointers in self.leaves(inode):
            if layered:
                facts.leaves[first] = leaf_bits(pointers)
            for at, pointer in enumerate(pointers):
                if not pointer:
                    continue
                state = pointer & _STATE_AND_RESERVED
                if pointer == LOST:
                    facts.lost += 1
                elif state in (WRITTEN, UNWRITTEN):
                    if self._claim_block(pointer - state, inode, first + at):
                        facts.blocks += 1
                        if state == WRITTEN:
                            facts.last_written = first + at
                elif pointer != PUNCHED:
                    self._wrong(inode, first + at, pointer, "an impossible pointer")
        facts.whole = self.complete
        self.complete = complete_before and facts.whole
        self._report.counts.lost_blocks += facts.lost
        return facts

    def _claim_block(self, address: int, inode: Inode, number: int) -> bool:
        if not self._low <= address < self._high and not self._enter_group(address):
            self._wrong(inode, number, address, "a place outside every resource group")
            return False
        index, rest = divmod(address - self._low, self._block_bytes)
        state = FREE if rest else self._states[index]
        if rest or state == CHUNK:
            if state == CHUNK:
                self.into_chunks.add(address)
            self._wrong(inode, number, address, "the middle of a block" if rest else "a metadata chunk")
            return False
        if state == CLAIMED:
            self._space.shared.add(address)
        elif state == UNALLOCATED:
            message = f"block {number} of inode {inode.number} is in use and marked free"
            self._report.add(Kind.BLOCK_NOT_ALLOCATED, message, address=address, inode=inode.number)
        self._states[index] = CLAIMED
        return True

    def _enter_group(self, address: int) -> bool:
        try:
            group, _ = self._geometry.group_of(address)
        except DamagedBlock:
            return False
        self._low = self._geometry.group_data_start(group)
        self._high = self._low + self._geometry.group_blocks(group) * self._block_bytes
        self._states = self._space.states(group)
        return True

    def _wrong(self, inode: Inode, number: int, pointer: int, what: str) -> None:
        self.broken.add(inode.number)
        message = f"block {number} of inode {inode.number} leads to {what} ({pointer:#x})"
        self._report.add(Kind.POINTER_WRONG, message, address=pointer & ADDRESS_MASK, inode=inode.number)

    def blocks_among(self, inode: Inode, wanted: set[int]) -> Iterator[tuple[int, int]]:
        """(address, block number) of the inode's data blocks that are in `wanted`, without claims or findings."""
        for first, pointers in self.leaves(inode, claim=False):
            for at, pointer in enumerate(pointers):
                if pointer & STATE_MASK not in (HOLE, PUNCHED) and pointer & ADDRESS_MASK in wanted:
                    yield pointer & ADDRESS_MASK, first + at


def leaf_bits(pointers: array[int]) -> LeafBits:
    """What a leaf says of its blocks."""
    bits = LeafBits()
    if not any(pointers):
        return bits
    for at, pointer in enumerate(pointers):
        if pointer:
            mark = 1 << at
            bits.present |= mark
            state = pointer & STATE_MASK
            if state != PUNCHED and pointer != LOST:
                bits.allocated |= mark
                if state == WRITTEN:
                    bits.written |= mark
    return bits
