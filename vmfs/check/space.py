"""Groups and chunks: what their bitmaps say is used, against what is referred to.

Whoever walks the inodes claims here every block and metadata unit that it meets; `compare` then finds what was claimed
and is marked free, and what is marked used and was claimed by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from vmfs.check.findings import Kind, Report
from vmfs.check.source import Source
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import chunk, group
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

FREE: Final = 0
CLAIMED: Final = 1
CHUNK: Final = 2
UNALLOCATED: Final = 3  # known to be marked free: only where a volume is looked at while it is in use
_TO_BITS: Final = bytes([ord("0")]) + bytes([ord("1")]) * 255  # any state but FREE counts as used


def runs(bits: int) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of set bits."""
    at = 0
    while bits:
        low = (bits & -bits).bit_length() - 1
        bits >>= low
        length = (bits ^ (bits + 1)).bit_length() - 1
        yield at + low, length
        bits >>= length
        at += low + length


@dataclass(slots=True)
class GroupState:
    """A group as its block says; `readable`: the block was intact."""

    index: int
    readable: bool
    used: int
    meta: int
    free_units: int
    block: GroupBlock | None = None


@dataclass(slots=True)
class ChunkState:
    """A chunk as its head says (None: damaged), and which of its units were claimed."""

    address: int
    group: int
    head: ChunkHead | None = None
    claimed: int = 1
    places: int = 0
    """Units at which an inode's lock block begins, as far as inodes were found there."""
    disputed: int = 0
    """Units about which a finding has been noted already."""


class Space:
    """Collects the claims of one check."""

    def __init__(self, source: Source, report: Report, no_chunks: AbstractSet[int] = frozenset()) -> None:
        """`no_chunks`: blocks that are no chunks, whatever they look like, where a group's own word is gone."""
        self._source = source
        self._report = report
        self._no_chunks = no_chunks
        self._geometry = source.volume.geometry
        self._block_bytes = source.volume.superblock.block_bytes
        self.groups: list[GroupState] = []
        self.chunks: dict[int, ChunkState] = {}
        self._claims: dict[int, bytearray] = {}
        self.shared: set[int] = set()
        """Addresses of blocks that were claimed more than once."""

    # -- loading -----------------------------------------------------------------------------------

    def load(self) -> None:
        """Read every group's block and every chunk's head."""
        sb = self._source.volume.superblock
        for segment in sb.segments:
            start = self._geometry.group_block_address(segment.first_group)
            for i, (address, block) in enumerate(self._source.table(start, segment.group_count)):
                self.groups.append(self._group(segment.first_group + i, address, block))
        self._report.counts.groups = len(self.groups)
        self._report.counts.chunks = len(self.chunks)

    def _group(self, index: int, address: int, block: bytes | None) -> GroupState:
        try:
            if block is None:
                raise DamagedBlock(address, f"group {index} cannot be read")
            found = group.parse(block, address, self._source.volume.uuid, index, self._geometry.group_blocks(index))
        except DamagedBlock as error:
            self._report.add(Kind.GROUP_DAMAGED, f"group {index}: {error.what}", address=address)
            state = GroupState(index, False, 0, self._find_chunks(index), 0)
        else:
            state = GroupState(index, True, found.used, found.meta, found.free_units, found)
        for first, length in runs(state.meta):
            for bit in range(first, first + length):
                at = self._geometry.block_address(index, bit)
                self.chunks[at] = ChunkState(at, index, self._head(at, index, quiet=False))
        return state

    def _head(self, address: int, index: int, *, quiet: bool) -> ChunkHead | None:
        units = self._geometry.units_per_chunk
        try:
            return chunk.parse(self._source.block(address), address, self._source.volume.uuid, index, units)
        except DamagedBlock as error:
            problem = error.what
        except DeviceError as error:
            problem = str(error)
        if not quiet:
            self._report.add(Kind.CHUNK_DAMAGED, f"chunk of group {index}: {problem}", address=address)
        return None

    def _find_chunks(self, index: int) -> int:
        """Where the chunks of a group lie whose bitmaps are gone: wherever an intact head is."""
        meta = 0
        for bit in range(self._geometry.group_blocks(index)):
            address = self._geometry.block_address(index, bit)
            if address not in self._no_chunks and self._head(address, index, quiet=True) is not None:
                meta |= 1 << bit
        return meta

    # -- claiming ----------------------------------------------------------------------------------

    def states(self, index: int) -> bytearray:
        """One byte for each block of a group: FREE, CLAIMED, CHUNK... A walker of maps writes CLAIMED itself."""
        found = self._claims.get(index)
        if found is None:
            found = self._claims[index] = bytearray(self._geometry.group_blocks(index))
            for first, length in runs(self.groups[index].meta):
                found[first : first + length] = bytes([CHUNK]) * length
        return found

    def is_unit(self, address: int, what: str, inode: int) -> bool:
        """Whether a metadata unit of an inode can lie there. False, and a finding, when not: do not read it."""
        try:
            head, unit = self._geometry.chunk_of(address)
            problem = f": {what} lies where no metadata chunk is"
        except DamagedBlock as error:
            head = unit = 0
            problem = f", {what}: {error.what}"
        if unit == 0 or head not in self.chunks:
            self._report.add(Kind.POINTER_WRONG, f"inode {inode}{problem}", address=address, inode=inode)
            return False
        return True

    def is_headless(self, address: int) -> bool:
        """Whether an address lies in a chunk whose head is damaged."""
        try:
            chunk = self.chunks.get(self._geometry.chunk_of(address)[0])
        except DamagedBlock:
            return False
        return chunk is not None and chunk.head is None

    def is_claimed(self, address: int) -> bool:
        """Whether a unit (see `is_unit`) was claimed already."""
        head, unit = self._geometry.chunk_of(address)
        return bool(self.chunks[head].claimed >> unit & 1)

    def claim_units(self, address: int, count: int, what: str, inode: int) -> bool:
        """Claim metadata units for an inode. False, and a finding, when they cannot be its: do not read them."""
        if not self.is_unit(address, what, inode):
            return False
        head, unit = self._geometry.chunk_of(address)
        state = self.chunks[head]
        bits = ((1 << count) - 1) << unit
        if state.claimed & bits:
            message = f"{what} of inode {inode} is also used elsewhere"
            self._report.add(Kind.UNIT_SHARED, message, address=address, inode=inode)
            return False
        state.claimed |= bits
        return True

    # -- comparing ---------------------------------------------------------------------------------

    def compare(self, *, complete: bool) -> None:
        """Compare bitmaps and claims. Unless all maps could be walked (`complete`), nothing is called leaked."""
        unclaimed = 0
        for state in self.groups:
            if not state.readable:
                continue
            claimed = self.claimed_bits(state)
            for first, length in runs(claimed & ~state.used):
                self._block_finding(Kind.BLOCK_NOT_ALLOCATED, state, first, length, "in use and marked free")
            leaked = state.used & ~claimed
            unclaimed += leaked.bit_count()
            if complete:
                for first, length in runs(leaked):
                    self._block_finding(Kind.BLOCK_LEAKED, state, first, length, "marked used and used by nothing")
        unclaimed_units = sum(self._compare_chunk(c, complete) for c in self.chunks.values())
        self._compare_counts()
        if not complete and unclaimed + unclaimed_units:
            self._report.notes.append(
                f"{unclaimed} blocks and {unclaimed_units} metadata blocks are marked used and nothing that could be "
                "read uses them; they may belong to what is damaged"
            )

    def claimed_bits(self, state: GroupState) -> int:
        """The blocks of a group that are claimed, or metadata, as bits."""
        claims = self._claims.get(state.index)
        return state.meta if claims is None else int(claims.translate(_TO_BITS)[::-1], 2)

    def _block_finding(self, kind: Kind, state: GroupState, first: int, length: int, what: str) -> None:
        where = f"block {first}" if length == 1 else f"blocks {first} to {first + length - 1}"
        address = self._geometry.block_address(state.index, first)
        self._report.add(kind, f"{where} of group {state.index}: {what}", address=address)

    def _compare_chunk(self, state: ChunkState, complete: bool) -> int:
        if state.head is None:
            return 0
        free_in_use = state.claimed & ~state.head.used & ~state.disputed
        leaked = state.head.used & ~state.claimed & ~state.disputed
        for kind, bits, what in (
            (Kind.UNIT_NOT_ALLOCATED, free_in_use, "in use and marked free"),
            (Kind.UNIT_LEAKED, leaked if complete else 0, "marked used and used by nothing"),
        ):
            for first, length in runs(bits):
                at = state.address + first * METADATA_BLOCK_BYTES
                message = f"{length} metadata blocks of a chunk of group {state.group}: {what}"
                self._report.add(kind, message, address=at)
        return leaked.bit_count()

    def _compare_counts(self) -> None:
        free: dict[int, int] = {}
        unknown: set[int] = set()
        for c in self.chunks.values():
            if c.head is None:
                unknown.add(c.group)
            else:
                free[c.group] = free.get(c.group, 0) + c.head.unit_count - c.head.used.bit_count()
        for state in self.groups:
            if not state.readable or state.index in unknown:
                continue
            if state.free_units != free.get(state.index, 0):
                self._report.add(
                    Kind.GROUP_COUNTS_WRONG,
                    f"group {state.index} counts {state.free_units} free metadata blocks, its chunks have "
                    f"{free.get(state.index, 0)}",
                    address=self._geometry.group_block_address(state.index),
                )
