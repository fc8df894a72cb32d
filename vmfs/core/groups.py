"""Allocation: blocks from the resource groups that this host holds. Metadata units are `vmfs.core.units`.

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
from typing import Final

from vmfs.clock import Clock
from vmfs.core.objects import ChunkObject, GroupObject
from vmfs.core.store import Store
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock
from vmfs.geometry import Geometry

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
    kept_until: float = 0.0
    """An operation waits for what it has in quarantine: it is given to nobody before."""
    chunks: dict[int, ChunkObject] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    """Chunks whose heads cannot be read: nothing is allocated from them, and nothing freed."""
    full: set[int] = field(default_factory=set)
    """Chunks in which no inode finds a place, and `packed`: those without a free unit. Not looked into again."""
    packed: set[int] = field(default_factory=set)
    resting: dict[int, tuple[float, int]] = field(default_factory=dict)
    """By chunk, places of removed inodes: (when they may be used again, bits)."""
    idle_from: float = 0.0
    """Until then no place of a removed inode is used: another host may have removed it a moment ago."""
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """Settled frees: (when their quarantine is over, bits)."""
    doubtful: list[tuple[float, int]] = field(default_factory=list)
    """Promised blocks into which a write failed: (when it cannot land any more, bits). Each pins the group."""

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
        self.rest_seconds = quarantine_seconds + _NUMBER_CACHES_SECONDS
        """For so long the number of a removed inode is not given to another file."""
        self.held: dict[int, HeldGroup] = {}

    # -- which groups are held ---------------------------------------------------------------------

    def adopt(self, index: int) -> HeldGroup:
        """Take up a group whose lock was just taken. Raises DamagedBlock, DeviceError."""
        held = HeldGroup(self._store.group(index), idle_from=self._clock.now() + self.rest_seconds)
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
            if held.doubtful:
                self._end_doubts(held, now)
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

    def keep(self, until: float) -> None:
        """Give no group to another host before `until` (Clock.now() seconds), but those that were asked for already.

        For whoever waits for a quarantine: it would begin anew with each host that takes the group, and hosts that
        want one group all the time would all wait for ever.
        """
        for held in self.held.values():
            if not held.asked:
                held.kept_until = until

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

    def hold_back(self, run: Run) -> None:
        """A promise into which a write has failed: it may still land, over what the blocks hold by then. The quarantine
        outlasts that (A1: P + F is less). Until then the blocks stay promised, and the group is not given up."""
        held = self.held[run.group]
        bits = run.bits & held.promised
        if bits:
            held.pins += 1
            held.doubtful.append((self._clock.now() + self._quarantine, bits))

    @staticmethod
    def _end_doubts(held: HeldGroup, now: float) -> None:
        for ready, bits in held.doubtful:
            if ready <= now:
                held.promised &= ~bits
                held.pins -= 1
        held.doubtful = [(ready, bits) for ready, bits in held.doubtful if ready > now]

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
