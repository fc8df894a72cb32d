"""What every step of a repair works with, and where it gets room from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from vmfs.check.alone import Alone
from vmfs.check.atomic import Mender
from vmfs.check.space import ChunkState, GroupState
from vmfs.check.survey import Survey
from vmfs.clock import Clock
from vmfs.core.groups import find_run
from vmfs.errors import NoSpace
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.volume import Volume


@dataclass(slots=True)
class Shop:
    """One repair under way."""

    volume: Volume
    alone: Alone
    mender: Mender
    random: random.Random
    clock: Clock
    done: Callable[[str], None]
    """Told of each thing that was mended."""
    remove_damaged: bool
    tried: set[int] = field(default_factory=set)
    """Addresses of blocks that have more than one bit wrong."""
    anew: set[int] = field(default_factory=set)
    """Directories that were damaged: they are made anew, from whatever blocks of theirs are left."""
    finished: set[int] = field(default_factory=set)
    """Inodes whose truncation was finished: they come off the lists."""
    old_names: dict[int, bytes] = field(default_factory=dict)
    """By inode: a name that it had in a directory block that nothing leads to any more."""

    def write_inode(self, inode: Inode) -> None:
        """Change one inode."""
        self.mender.one(inode_address(inode.number), inode.pack(self.volume.uuid))

    def clear_inode(self, number: int, generation: int, version: int = 0) -> None:
        """Free an inode: its place stays an inode's, what it used is free at the next count of space."""
        wall = self.clock.wall_ns()
        self.write_inode(Inode(number, inode_generation=generation, version=version + 1, ctime_ns=wall))

    def new_id(self) -> int:
        """A map's id or a directory's seed that nobody has."""
        return self.random.getrandbits(63) | 1


class Allocator:
    """Room for what a repair adds: where neither a bitmap nor a map says that something lies.

    Used while bitmaps may be wrong, so both are asked. `seal` makes durable what was given out, before it is used.
    """

    def __init__(self, shop: Shop, seen: Survey) -> None:
        self._shop = shop
        self._space = seen.space
        self._geometry = seen.volume.geometry
        self._heads: dict[int, ChunkState] = {}
        self._groups: dict[int, GroupState] = {}

    def unit(self) -> int:
        """The address of a free metadata unit. Raises NoSpace."""
        return self.units_in_a_row(1)

    def units_in_a_row(self, count: int) -> int:
        """The address of so many free units side by side. Raises NoSpace."""
        for chunk in self._space.chunks.values():
            free = self._free_units(chunk)
            if free:
                first, length = find_run(free, count, -1)
                if length == count:
                    return self._take_units(chunk, first, count)
        return self._take_units(self._new_chunk(), 1, count)

    def block(self) -> int:
        """The address of a free block of data. Raises NoSpace."""
        for state in self._space.groups:
            if state.block is None:
                continue
            free = ~(state.block.used | self._space.claimed_bits(state)) & ((1 << state.block.block_count) - 1)
            rested = free & ~state.block.quarantine
            if free:
                bits = rested or free
                index = (bits & -bits).bit_length() - 1
                state.block.used |= 1 << index
                state.block.quarantine &= ~(1 << index)
                self._groups[state.index] = state
                return self._geometry.block_address(state.index, index)
        raise NoSpace(f"volume {self._shop.volume.superblock.label}", "what the repair has to write")

    def take_inode(self, lock_address: int) -> None:
        """Units that were given out in a row are an inode and its lock."""
        head, unit = self._geometry.chunk_of(lock_address)
        found = self._space.chunks[head].head
        assert found is not None
        found.inodes |= 1 << unit

    def images(self) -> dict[int, bytes]:
        """The bitmaps that must change with what was given out, heads of chunks first."""
        uuid = self._shop.volume.uuid
        found = {at: c.head.pack(at, uuid) for at, c in self._heads.items() if c.head is not None}
        for index, state in self._groups.items():
            if state.block is not None:
                at = self._geometry.group_block_address(index)
                found[at] = state.block.pack(at, uuid)
        self._heads.clear()
        self._groups.clear()
        return found

    def head_image(self, head: int) -> dict[int, bytes]:
        """The head of one chunk as it is to be, by its address."""
        found = self._space.chunks[head].head
        assert found is not None
        return {head: found.pack(head, self._shop.volume.uuid)}

    def seal(self) -> None:
        """Write them: what is used must never be marked free."""
        for at, block in self.images().items():
            self._shop.mender.one(at, block)
        self._shop.mender.flush()

    def _free_units(self, chunk: ChunkState) -> int:
        if chunk.head is None or self._space.groups[chunk.group].block is None:
            return 0
        taken, starts = chunk.head.used | chunk.claimed, chunk.head.inodes | chunk.places
        for _ in range(self._geometry.inode_units):
            taken |= starts
            starts <<= 1
        return ~taken & ((1 << chunk.head.unit_count) - 1)

    def _take_units(self, chunk: ChunkState, first: int, count: int) -> int:
        group = self._space.groups[chunk.group]
        assert chunk.head is not None
        assert group.block is not None
        chunk.head.used |= ((1 << count) - 1) << first
        group.block.free_units = max(0, group.block.free_units - count)
        self._heads[chunk.address] = chunk
        self._groups[chunk.group] = group
        return chunk.address + first * METADATA_BLOCK_BYTES

    def _new_chunk(self) -> ChunkState:
        address = self.block()
        group, index = self._geometry.group_of(address)
        state = self._space.groups[group]
        assert state.block is not None
        state.block.meta |= 1 << index
        state.block.free_units += self._geometry.units_per_chunk - 1
        state.meta |= 1 << index
        chunk = ChunkState(address, group, ChunkHead(group, self._geometry.units_per_chunk))
        self._space.chunks[address] = chunk
        return chunk
