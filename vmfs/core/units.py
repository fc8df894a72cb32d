"""Metadata units: blocks of the volume cut into pieces of 4 KiB for inodes, map nodes and directory blocks.

A *chunk* is a block that was made metadata (see `vmfs.ondisk.chunk`); chunks are added as they are needed and never
given back. Places for inodes are promised before they are claimed, because their lock must be taken in between.

All methods are called under the control mutex.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from vmfs.clock import Clock
from vmfs.core.groups import Groups, HeldGroup, find_run
from vmfs.core.objects import ChunkObject, InodeObject
from vmfs.core.store import Store
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.geometry import Geometry
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

log = logging.getLogger("vmfs.core")


@dataclass(frozen=True, slots=True)
class InodePlace:
    """Units of a chunk that are promised to an inode."""

    group: int
    chunk: int
    unit: int
    fresh: bool
    """No inode ever lay there: there is no lock yet."""
    was_freed: bool
    """Something else lay there lately, whose removal may not be committed yet."""


class Units:
    """Allocation of metadata units from the groups that this host holds."""

    def __init__(self, groups: Groups, geometry: Geometry, store: Store, clock: Clock) -> None:
        self._groups = groups
        self._geometry = geometry
        self._store = store
        self._clock = clock

    def has_units(self, units: int) -> bool:
        """Whether so many single units can be allocated now, in new chunks or in those that there are."""
        per_chunk = self._geometry.units_per_chunk - 1
        found = per_chunk * min(units, self._groups.allocatable_blocks())
        if found >= units:
            return True
        for held in self._with_units():
            for chunk in self._chunks(held, held.packed):
                found += self._free_units_of(held, chunk).bit_count()
                if found >= units:
                    return True
        return False

    def allocate_unit(self, op: Operation) -> tuple[int, int] | None:
        """(address, group) of a free metadata unit; None: no group that is held has any."""
        for held in self._with_units():
            for chunk in self._chunks(held, held.packed):
                free = self._free_units_of(held, chunk)
                if free:
                    unit = (free & -free).bit_length() - 1
                    self._take_units(op, held, chunk, unit, 1)
                    return chunk.address + unit * METADATA_BLOCK_BYTES, chunk.head.group
                held.packed.add(chunk.address)
        new = self._new_chunk(op)
        if new is None:
            return None
        self._take_units(op, self._groups.held[new.head.group], new, 1, 1)
        return new.address + METADATA_BLOCK_BYTES, new.head.group

    def promise_inode(self) -> InodePlace | None:
        """A place for an inode, kept from others until `claim_inode` or `take_back_inode`; pins its group.

        None: no chunk of a group that is held has room (see `add_chunk`). The caller takes the lock there before it
        claims the place: a place that was an inode's before has a lock with a history.
        """
        for held in self._with_units():
            for chunk in self._chunks(held, held.full):
                found = self._inode_room(held, chunk)
                if found is not None:
                    return self._promise_units(held, chunk, *found)
        return None

    def _inode_room(self, held: HeldGroup, chunk: ChunkObject) -> tuple[int, bool] | None:
        """(first unit, whether no inode ever lay there) of a place for an inode in a chunk."""
        idle = chunk.head.inodes & ~chunk.head.used & ~held.promised_units.get(chunk.address, 0)
        rested = idle & self._rested(held, chunk.address)
        if rested:
            return (rested & -rested).bit_length() - 1, False
        free = self._free_units_of(held, chunk)
        if free:
            unit, length = find_run(free, self._geometry.inode_units, -1)
            if length == self._geometry.inode_units:
                return unit, True
        if not idle:
            held.full.add(chunk.address)
        return None

    def _promise_units(self, held: HeldGroup, chunk: ChunkObject, unit: int, fresh: bool) -> InodePlace:
        bits = ((1 << self._geometry.inode_units) - 1) << unit
        held.promised_units[chunk.address] = held.promised_units.get(chunk.address, 0) | bits
        held.pins += 1
        freed = held.freed_units.get(chunk.address, 0)
        held.freed_units[chunk.address] = freed & ~bits
        return InodePlace(held.obj.group.index, chunk.address, unit, fresh, bool(freed & bits))

    def _rested(self, held: HeldGroup, chunk: int) -> int:
        """The units of a chunk, as bits, in which an inode that was removed is forgotten everywhere."""
        now = self._clock.now()
        if now < held.idle_from:
            return 0
        until, bits = held.resting.get(chunk, (0.0, 0))
        return ~bits if now < until else -1

    def next_rest_end(self) -> float | None:
        """When the next place of a removed inode may be used again; None when none rests."""
        now = self._clock.now()
        ends = [until for held in self._groups.held.values() for until, _ in held.resting.values()]
        ends += [held.idle_from for held in self._groups.held.values() if held.obj.group.free_units]
        return min((end for end in ends if end > now), default=None)

    def claim_inode(self, op: Operation, place: InodePlace) -> None:
        """The promised place is an inode from this operation on. Follow with `take_back_inode` either way."""
        held = self._groups.held[place.group]
        chunk = held.chunks[place.chunk]
        self._take_units(op, held, chunk, place.unit, self._geometry.inode_units)
        chunk.head.inodes |= 1 << place.unit

    def is_claimed(self, place: InodePlace) -> bool:
        """Whether a promised place is an inode's now."""
        return bool(self._groups.held[place.group].chunks[place.chunk].head.inodes >> place.unit & 1)

    def take_back_inode(self, place: InodePlace) -> None:
        """End a promise, claimed or not, and unpin its group."""
        held = self._groups.held[place.group]
        held.promised_units[place.chunk] &= ~(((1 << self._geometry.inode_units) - 1) << place.unit)
        self._has_room(held, place.chunk)
        held.pins -= 1

    def inode_lock_address(self, place: InodePlace) -> int:
        """Where the lock block of a promised inode lies."""
        return place.chunk + place.unit * METADATA_BLOCK_BYTES

    def add_chunk(self, op: Operation) -> bool:
        """Make a block of a group that is held a metadata chunk. False when there is no free block."""
        return self._new_chunk(op) is not None

    def free_unit(self, op: Operation, address: int, group: int) -> None:
        """Free a node's or a directory block's unit, of a group that is held."""
        self._free_units(op, address, group, 1)
        head, unit = self._geometry.chunk_of(address)
        freed = self._groups.held[group].freed_units
        freed[head] = freed.get(head, 0) | 1 << unit

    def free_inode(self, op: Operation, obj: InodeObject, group: int) -> None:
        """Free an inode's units; the place stays an inode's."""
        lock = self._geometry.inode_lock_address(obj.inode.number)
        self._free_units(op, lock, group, self._geometry.inode_units)
        head, unit = self._geometry.chunk_of(lock)
        now, resting = self._clock.now(), self._groups.held[group].resting
        until, bits = resting.get(head, (0.0, 0))
        resting[head] = (now + self._groups.rest_seconds, 1 << unit | (bits if now < until else 0))

    def _with_units(self) -> list[HeldGroup]:
        return [h for h in self._groups.held.values() if h.obj.group.free_units and not h.asked]

    @staticmethod
    def _has_room(held: HeldGroup, chunk: int) -> None:
        """Look into a chunk again."""
        held.full.discard(chunk)
        held.packed.discard(chunk)

    def _chunks(self, held: HeldGroup, without: Collection[int] = ()) -> list[ChunkObject]:
        """The chunks of a group, but those in `without`."""
        g = held.obj.group
        if len(held.chunks) + len(held.damaged) != g.meta.bit_count():
            bits = g.meta
            while bits:
                bit = (bits & -bits).bit_length() - 1
                bits &= bits - 1
                address = self._geometry.block_address(g.index, bit)
                if address not in held.chunks and address not in held.damaged:
                    self._load_chunk(held, address)
        if len(without) == len(held.chunks):
            return []
        return [c for c in held.chunks.values() if c.address not in without]

    def _load_chunk(self, held: HeldGroup, address: int) -> None:
        try:
            held.chunks[address] = self._store.chunk(address, held.obj.group.index)
        except (DamagedBlock, DeviceError) as error:
            log.error("nothing is allocated from the metadata chunk at %#x: %s", address, error)
            if isinstance(error, DamagedBlock):  # what the storage did not read, it may read the next time
                held.damaged.add(address)

    def _free_units_of(self, held: HeldGroup, chunk: ChunkObject) -> int:
        taken = chunk.head.used | self._inode_places(chunk) | held.promised_units.get(chunk.address, 0)
        return ~taken & ((1 << self._geometry.units_per_chunk) - 1)

    def _inode_places(self, chunk: ChunkObject) -> int:
        """Units that belong to inodes, used or idle: never given to anything else."""
        places, starts = 0, chunk.head.inodes
        for _ in range(self._geometry.inode_units):
            places |= starts
            starts <<= 1
        return places

    def _take_units(self, op: Operation, held: HeldGroup, chunk: ChunkObject, first: int, need: int) -> None:
        op.touch(chunk)
        op.touch(held.obj)
        op.on_undo(lambda: self._has_room(held, chunk.address))
        chunk.head.used |= ((1 << need) - 1) << first
        held.obj.group.free_units -= need

    def _new_chunk(self, op: Operation) -> ChunkObject | None:
        runs = self._groups.promise(1, 0)
        if not runs:
            return None
        run = runs[0]
        held = self._groups.held[run.group]
        op.on_undo(lambda: self._groups.take_back(run))
        self._groups.claim(op, run)
        held.obj.group.meta |= run.bits
        units = self._geometry.units_per_chunk
        chunk = ChunkObject(self._groups.address(run), held.obj.lock, ChunkHead(run.group, units))
        op.add(chunk)
        self._store.put(chunk)
        held.chunks[chunk.address] = chunk

        def undo() -> None:
            self._store.remove(chunk)
            held.chunks.pop(chunk.address, None)
            self._has_room(held, chunk.address)

        op.on_undo(undo)
        held.obj.group.free_units += units - 1
        return chunk

    def _free_units(self, op: Operation, address: int, group: int, count: int) -> None:
        held = self._groups.held[group]
        head, unit = self._geometry.chunk_of(address)
        self._chunks(held)
        chunk = held.chunks.get(head)
        bits = ((1 << count) - 1) << unit
        if head in held.damaged:
            raise DamagedBlock(head, "this metadata chunk's head cannot be read, so nothing in it can be freed")
        if chunk is None and held.obj.group.meta >> self._geometry.group_of(head)[1] & 1:
            chunk = held.chunks[head] = self._store.chunk(head, group)
        if chunk is None or bits & ~chunk.head.used:
            raise DamagedBlock(address, "is freed and was not allocated")
        op.touch(chunk)
        op.touch(held.obj)
        chunk.head.used &= ~bits
        held.obj.group.free_units += count
        self._has_room(held, head)
