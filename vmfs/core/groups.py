"""Allocation: blocks and metadata units from the resource groups that this host holds.

A group's lock is held from its first use until another host asks for it or the mount ends. Blocks are first *promised*
(in memory), then written, then *claimed* by the transaction that makes a map point at them; a crash in between leaves
them free. Freed blocks are in *quarantine* (rule R8 of docs/locking.md): another host may still read them through an
old map, so they are not promised again until the free is settled and the quarantine has passed.

All methods are called under the control mutex, except where they say that they wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from vmfs.clock import Clock
from vmfs.core.objects import ChunkObject, GroupObject, InodeObject
from vmfs.core.store import Store
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.geometry import Geometry
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

log = logging.getLogger("vmfs.core")

# Requests name an inode by its number alone. For so long beyond the quarantine another host, or its kernel, may take a
# number for a file that is gone: publishing, believing and the kernel's cache come to 0.9 s.
_NUMBER_CACHES_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of one group."""

    group: int
    first: int
    count: int

    @property
    def bits(self) -> int:
        return ((1 << self.count) - 1) << self.first


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


@dataclass(slots=True)
class HeldGroup:
    """A group whose lock this host holds."""

    obj: GroupObject
    promised: int = 0
    promised_units: dict[int, int] = field(default_factory=dict)
    """By chunk: units promised to inodes that are being made."""
    freed_units: dict[int, int] = field(default_factory=dict)
    """By chunk: units of nodes and directory blocks that were freed, perhaps by a transaction that is not committed."""
    pins: int = 0
    """Writes into promised blocks and inodes in the making: the group cannot be given up meanwhile."""
    asked: bool = False
    """Another host wants it: nothing more is promised from it."""
    chunks: dict[int, ChunkObject] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    """Chunks whose heads cannot be read: nothing is allocated from them, and nothing freed."""
    resting: dict[int, tuple[float, int]] = field(default_factory=dict)
    """By chunk, places of removed inodes: (when they may be used again, bits)."""
    idle_from: float = 0.0
    """Until then no place of a removed inode is used: another host may have removed it a moment ago."""
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """Settled frees: (when their quarantine is over, bits)."""

    def allocatable(self) -> int:
        """Blocks that may be promised now, as bits."""
        if self.asked:
            return 0
        g = self.obj.group
        return ~(g.used | g.quarantine | self.promised) & ((1 << g.block_count) - 1)


def find_run(free: int, count: int, goal: int) -> tuple[int, int]:
    """(first, length) of a run of set bits in `free`: at `goal` if it is free there, else the lowest of that length.

    Where no run of `count` is left, the longest power-of-two part of it that there is. `free` is not 0.
    """
    if goal >= 0:
        tail = ~(free >> goal)
        here = (tail & -tail).bit_length() - 1
        if here > 0:
            return goal, min(here, count)
    while True:
        starts, length = free, 1
        while length < count and starts:
            step = min(length, count - length)
            starts &= starts >> step
            length += step
        if starts:
            return (starts & -starts).bit_length() - 1, count
        count = (count + 1) // 2


class Groups:
    """The groups that this host holds, and what it knows of the others."""

    def __init__(self, geometry: Geometry, store: Store, clock: Clock, quarantine_seconds: float) -> None:
        self._geometry = geometry
        self._store = store
        self._clock = clock
        self._quarantine = quarantine_seconds
        self._rest = quarantine_seconds + _NUMBER_CACHES_SECONDS
        self.held: dict[int, HeldGroup] = {}
        self._roomy = -1

    # -- which groups are held ---------------------------------------------------------------------

    def adopt(self, index: int) -> HeldGroup:
        """Take up a group whose lock was just taken. Raises DamagedBlock, DeviceError."""
        held = HeldGroup(self._store.group(index), idle_from=self._clock.now() + self._rest)
        quarantined = held.obj.group.quarantine
        if quarantined:
            held.waiting.append((self._clock.now() + self._quarantine, quarantined))
        self.held[index] = held
        return held

    def forget(self, index: int) -> None:
        """The group's lock is given up: all its changes are settled."""
        self.held.pop(index, None)

    # -- blocks ------------------------------------------------------------------------------------

    def end_quarantines(self) -> None:
        """Make allocatable what was freed long enough ago."""
        now = self._clock.now()
        for held in self.held.values():
            if not held.waiting:
                continue
            over = [bits for ready, bits in held.waiting if ready <= now]
            held.waiting = [(ready, bits) for ready, bits in held.waiting if ready > now]
            for bits in over:
                # Written with the group's next change: until then a new holder waits once more, to no harm.
                held.obj.group.quarantine &= ~bits

    def allocatable_blocks(self) -> int:
        """How many blocks could be promised now."""
        return sum(h.allocatable().bit_count() for h in self.held.values())

    def next_quarantine_end(self) -> float | None:
        """When the next freed blocks become allocatable; None when none wait."""
        return min((ready for h in self.held.values() for ready, _ in h.waiting), default=None)

    def promise(self, count: int, goal: int) -> list[Run]:
        """Up to `count` blocks, in few runs, near address `goal` (0: anywhere). Fewer when fewer are there."""
        runs: list[Run] = []
        goal_group, goal_index = self._goal(goal)
        for index in self._nearest(goal_group):
            held = self.held[index]
            at = goal_index if index == goal_group else -1
            free = held.allocatable()
            while count and free:
                first, length = find_run(free, count, at)
                run = Run(index, first, length)
                held.promised |= run.bits
                free &= ~run.bits
                runs.append(run)
                count -= length
                at = first + length
            if not count:
                break
        return runs

    def _nearest(self, goal_group: int) -> Iterator[int]:
        """The groups that are held: first the one that is wished for, which mostly will do, then from the lowest."""
        if goal_group in self.held:
            yield goal_group
        yield from sorted(index for index in self.held if index != goal_group)

    def _goal(self, goal: int) -> tuple[int, int]:
        if goal:
            try:
                return self._geometry.group_of(goal)
            except DamagedBlock:
                pass  # just behind a segment's last block: no goal
        return -1, -1

    def take_back(self, run: Run) -> None:
        """A promise that was not used. (The group may have been given up, promises and all.)"""
        held = self.held.get(run.group)
        if held is not None:
            held.promised &= ~run.bits

    def claim(self, op: Operation, run: Run) -> None:
        """Promised blocks are allocated by this operation; they are promised again when it is undone."""
        held = self.held[run.group]
        if run.bits & (held.obj.group.used | ~held.promised):
            raise AssertionError(f"blocks {run.first} to {run.first + run.count - 1} of group {run.group}: no promise")
        op.touch(held.obj)
        held.obj.group.used |= run.bits
        held.promised &= ~run.bits

        def undo() -> None:
            held.promised |= run.bits

        op.on_undo(undo)

    def address(self, run: Run) -> int:
        """The address of a run's first block."""
        return self._geometry.block_address(run.group, run.first)

    def free(self, op: Operation, blocks: Iterable[int]) -> None:
        """Free data blocks, by address, of groups that are held.

        Raises:
            DamagedBlock: a block that is not allocated, or holds metadata: a map is damaged. Nothing is freed.
        """
        per_group: dict[int, int] = {}
        for address in blocks:
            index, bit = self._geometry.group_of(address)
            if per_group.get(index, 0) >> bit & 1:
                raise DamagedBlock(address, "a map points at this block twice")
            per_group[index] = per_group.get(index, 0) | 1 << bit
        for index, bits in per_group.items():
            group = self.held[index].obj.group
            if bits & ~group.used or bits & group.meta:
                where = self._geometry.group_block_address(index)
                raise DamagedBlock(where, "a map points at a block that is not allocated to file data")
        for index, bits in per_group.items():
            obj = self.held[index].obj
            op.touch(obj)
            obj.group.used &= ~bits
            obj.group.quarantine |= bits
            op.free(index, bits)

    def on_settled(self, frees: list[tuple[int, int]]) -> None:
        """Frees are durable in place: their quarantine starts."""
        ready = self._clock.now() + self._quarantine
        for index, bits in frees:
            held = self.held.get(index)
            if held is not None:
                held.waiting.append((ready, bits))

    # -- metadata units ----------------------------------------------------------------------------

    def has_units(self, units: int) -> bool:
        """Whether so many single units can be allocated now, in chunks that there are or in new ones."""
        per_chunk = self._geometry.units_per_chunk - 1
        # Asked before every first write: the group that had room the last time comes first, all of them rarely.
        hinted = self.held.get(self._roomy)
        found = 0
        for held in chain((hinted,) if hinted is not None else (), self.held.values()):
            if held.asked or (found and held is hinted):
                continue
            found += held.obj.group.free_units + per_chunk * min(units, held.allocatable().bit_count())
            if found >= units:
                self._roomy = held.obj.group.index
                return True
        return False

    def allocate_unit(self, op: Operation) -> tuple[int, int] | None:
        """(address, group) of a free metadata unit; None: no group that is held has any."""
        for held in self._with_units():
            for chunk in self._chunks(held):
                free = self._free_units_of(held, chunk)
                if free:
                    unit = (free & -free).bit_length() - 1
                    self._take_units(op, held, chunk, unit, 1)
                    return chunk.address + unit * METADATA_BLOCK_BYTES, chunk.head.group
        new = self._new_chunk(op)
        if new is None:
            return None
        self._take_units(op, self.held[new.head.group], new, 1, 1)
        return new.address + METADATA_BLOCK_BYTES, new.head.group

    def promise_inode(self) -> InodePlace | None:
        """A place for an inode, kept from others until `claim_inode` or `take_back_inode`; pins its group.

        None: no chunk of a group that is held has room (see `add_chunk`). The caller takes the lock there before it
        claims the place: a place that was an inode's before has a lock with a history.
        """
        need = self._geometry.inode_units
        for held in self._with_units():
            for chunk in self._chunks(held):
                idle = chunk.head.inodes & ~chunk.head.used & ~held.promised_units.get(chunk.address, 0)
                idle &= self._rested(held, chunk.address)
                fresh = not idle
                unit = (idle & -idle).bit_length() - 1
                if fresh:
                    free = self._free_units_of(held, chunk)
                    if not free:
                        continue
                    unit, length = find_run(free, need, -1)
                    if length < need:
                        continue
                bits = ((1 << need) - 1) << unit
                held.promised_units[chunk.address] = held.promised_units.get(chunk.address, 0) | bits
                held.pins += 1
                freed = held.freed_units.get(chunk.address, 0)
                held.freed_units[chunk.address] = freed & ~bits
                return InodePlace(held.obj.group.index, chunk.address, unit, fresh, bool(freed & bits))
        return None

    def _rested(self, held: HeldGroup, chunk: int) -> int:
        """The units of a chunk, as bits, in which an inode that was removed is forgotten everywhere."""
        now = self._clock.now()
        if now < held.idle_from:
            return 0
        until, bits = held.resting.get(chunk, (0.0, 0))
        return ~bits if now < until else -1

    def claim_inode(self, op: Operation, place: InodePlace) -> None:
        """The promised place is an inode from this operation on. Follow with `take_back_inode` either way."""
        held = self.held[place.group]
        chunk = held.chunks[place.chunk]
        self._take_units(op, held, chunk, place.unit, self._geometry.inode_units)
        chunk.head.inodes |= 1 << place.unit

    def is_claimed(self, place: InodePlace) -> bool:
        """Whether a promised place is an inode's now."""
        return bool(self.held[place.group].chunks[place.chunk].head.inodes >> place.unit & 1)

    def take_back_inode(self, place: InodePlace) -> None:
        """End a promise, claimed or not, and unpin its group."""
        held = self.held[place.group]
        held.promised_units[place.chunk] &= ~(((1 << self._geometry.inode_units) - 1) << place.unit)
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
        freed = self.held[group].freed_units
        freed[head] = freed.get(head, 0) | 1 << unit

    def free_inode(self, op: Operation, obj: InodeObject, group: int) -> None:
        """Free an inode's units; the place stays an inode's."""
        lock = self._geometry.inode_lock_address(obj.inode.number)
        self._free_units(op, lock, group, self._geometry.inode_units)
        head, unit = self._geometry.chunk_of(lock)
        now, resting = self._clock.now(), self.held[group].resting
        until, bits = resting.get(head, (0.0, 0))
        resting[head] = (now + self._rest, 1 << unit | (bits if now < until else 0))

    def _with_units(self) -> list[HeldGroup]:
        return [h for h in self.held.values() if h.obj.group.free_units and not h.asked]

    def _chunks(self, held: HeldGroup) -> list[ChunkObject]:
        g = held.obj.group
        if len(held.chunks) + len(held.damaged) != g.meta.bit_count():
            bits = g.meta
            while bits:
                bit = (bits & -bits).bit_length() - 1
                bits &= bits - 1
                address = self._geometry.block_address(g.index, bit)
                if address not in held.chunks and address not in held.damaged:
                    self._load_chunk(held, address)
        return list(held.chunks.values())

    def _load_chunk(self, held: HeldGroup, address: int) -> None:
        try:
            held.chunks[address] = self._store.chunk(address, held.obj.group.index)
        except (DamagedBlock, DeviceError) as error:
            log.error("nothing is allocated from the metadata chunk at %#x: %s", address, error)
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
        chunk.head.used |= ((1 << need) - 1) << first
        held.obj.group.free_units -= need

    def _new_chunk(self, op: Operation) -> ChunkObject | None:
        runs = self.promise(1, 0)
        if not runs:
            return None
        run = runs[0]
        held = self.held[run.group]
        op.on_undo(lambda: self.take_back(run))
        self.claim(op, run)
        held.obj.group.meta |= run.bits
        units = self._geometry.units_per_chunk
        chunk = ChunkObject(self.address(run), held.obj.lock, ChunkHead(run.group, units))
        op.add(chunk)
        self._store.put(chunk)
        held.chunks[chunk.address] = chunk

        def undo() -> None:
            self._store.remove(chunk)
            held.chunks.pop(chunk.address, None)

        op.on_undo(undo)
        held.obj.group.free_units += units - 1
        return chunk

    def _free_units(self, op: Operation, address: int, group: int, count: int) -> None:
        held = self.held[group]
        head, unit = self._geometry.chunk_of(address)
        self._chunks(held)
        chunk = held.chunks.get(head)
        bits = ((1 << count) - 1) << unit
        if head in held.damaged:
            raise DamagedBlock(head, "this metadata chunk's head cannot be read, so nothing in it can be freed")
        if chunk is None or bits & ~chunk.head.used:
            raise DamagedBlock(address, "is freed and was not allocated")
        op.touch(chunk)
        op.touch(held.obj)
        chunk.head.used &= ~bits
        held.obj.group.free_units += count
