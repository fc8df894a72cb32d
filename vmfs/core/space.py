"""Room for an operation: which resource groups this host takes, and what it does when the volume runs full.

`ensure` takes more groups until what is wanted is there: free groups first, then groups that other hosts keep (they are
asked through the heartbeat slots, and let go within a heartbeat or two). Then it waits until lately freed blocks are
out of quarantine, and for space that is on its way back (`vmfs.core.returning`). Only then is the volume full. It
waits, so it is called without the control mutex.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from vmfs.core.groups import HeldGroup
from vmfs.core.returning import Returning
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.core.units import InodePlace
from vmfs.errors import DamagedBlock, DeviceError, LockedByOther, NoSpace
from vmfs.geometry import Geometry
from vmfs.ondisk.group import free_counts
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Guards, LockMode

log = logging.getLogger("vmfs.core")

UNITS_PER_OPERATION: Final = 8  # no operation needs more units than: two inodes, a map path, two directory blocks
_READ_BYTES: Final = 1 << 20
_ASK_SECONDS_MIN: Final = 0.2
_COUNTS_SECONDS: Final = 0.5  # for which other hosts' free counts are believed
_LEFT_OUT_SECONDS: Final = 5.0  # for which a group is passed over that the storage did not read
_KEPT_SECONDS: Final = 1.0  # for which a group is kept beyond a quarantine that is waited for: a busy machine is slow
_COUNTING_SHARE: Final = 0.05  # of the time may go into reading them: a very large volume is counted less often
_POLL_SECONDS: Final = 0.05  # of a full volume, for space that comes back

T = TypeVar("T")


class Space:
    """Takes and gives back resource groups. `_taking` serialises the taking; it is taken before the control mutex."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._taking = threading.Lock()
        self._free_seen: list[int] = []
        self._units_seen: list[int] = []
        self._left_out: dict[int, float] = {}
        """Groups that could not be taken up, and until when they are passed over."""
        self._counts_expire = -1e18
        self._counting_s = 0.0
        self._returning = Returning(core)
        slots = core.volume.superblock.max_hosts
        self._start = core.membership.holder.slot * core.geometry.group_count // slots

    # -- counting ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read every group's free counts from the disk (a hint: others change theirs meanwhile)."""
        blocks: list[int] = []
        units: list[int] = []
        most = self._core.volume.superblock.blocks_per_group
        started = self._core.clock.now()
        for address, count in group_block_runs(self._core.geometry):
            for at in range(0, count, _READ_BYTES // METADATA_BLOCK_BYTES):
                here = min(count - at, _READ_BYTES // METADATA_BLOCK_BYTES)
                data = self._core.io.read(address + at * METADATA_BLOCK_BYTES, here * METADATA_BLOCK_BYTES)
                for i in range(0, len(data), METADATA_BLOCK_BYTES):
                    free, free_units = free_counts(data, i)
                    blocks.append(min(free, most))  # a block that is damaged, or torn just now, says anything
                    units.append(free_units)
        self._free_seen, self._units_seen = blocks, units
        now = self._core.clock.now()
        self._counting_s = now - started
        self._counts_expire = now + max(_COUNTS_SECONDS, self._counting_s / _COUNTING_SHARE)

    def free_blocks(self) -> int:
        """Free blocks of the volume: exact for the groups held here, as lately read for the others."""
        self._refresh_old()
        seen = self._free_seen
        with self._core.transactions.mutex:
            for index, held in self._core.groups.held.items():
                seen[index] = held.obj.group.free_blocks
        return sum(seen)

    def free_blocks_seen(self) -> int:
        """As `free_blocks`, but the others as they were last counted. Without a word to the storage, and without the
        mutex: for when the storage does not answer."""
        seen = list(self._free_seen)
        for index, held in list(self._core.groups.held.items()):  # one step of the interpreter: no change within
            seen[index] = held.obj.group.free_blocks
        return sum(seen)

    def _refresh_old(self) -> None:
        if self._core.clock.now() >= self._counts_expire:
            self.refresh()

    # -- taking groups -----------------------------------------------------------------------------

    def take(self, index: int, wait: float) -> bool:
        """Take a group's lock and take the group up. False when another host keeps it for longer than `wait` s."""
        core = self._core
        try:
            address = core.geometry.group_lock_address(index)
            tenure = core.locks.acquire(address, Guards.RESOURCE_GROUP, LockMode.EXCLUSIVE, wait=wait, sticky=True)
        except LockedByOther:
            return False
        try:
            with core.transactions.mutex:
                if index not in core.groups.held:
                    core.store.hold(tenure.address, tenure.version)
                    core.groups.adopt(index)
        finally:
            core.locks.unpin(tenure)
        return True

    def ensure(self, blocks: int) -> None:
        """Return when `blocks` blocks can be promised. Raises NoSpace when the volume has not got them."""
        groups = self._core.groups
        wanted = f"{blocks * self._core.block_bytes >> 10} KiB"
        self._ensure(lambda: groups.allocatable_blocks() >= blocks, lambda i: self._free_seen[i] > 0, wanted)

    def ensure_units(self, units: int) -> None:
        """Return when `units` metadata units can be allocated. Raises NoSpace when the volume has not got them."""
        core = self._core
        self._ensure(lambda: core.units.has_units(units), self._has_units, "metadata")

    def inode_place(self) -> InodePlace:
        """Promise a place for an inode. Raises NoSpace when the volume has none, nor a block to make some."""
        core = self._core
        found: list[InodePlace] = []

        def enough() -> bool:
            place = core.units.promise_inode()
            if place is not None:
                found.append(place)
            return place is not None or core.groups.allocatable_blocks() > 0

        while True:
            self._ensure(enough, self._has_units, "a file", core.units.next_rest_end)
            if found:
                return found[0]
            with suppress(NoSpace):  # another thread was quicker, or the group was given up in between
                with core.transactions.operation() as op:
                    core.units.add_chunk(op)

    def _has_units(self, index: int) -> bool:
        return self._free_seen[index] > 0 or self._units_seen[index] > 0

    def _ensure(
        self, enough: Callable[[], bool], worth: Callable[[int], bool], wanted: str,
        ready_too: Callable[[], float | None] = lambda: None,
    ) -> None:  # fmt: skip
        """Take groups that are `worth` it until there is `enough` (asked under the control mutex), and wait for more.

        `ready_too`: when, besides the end of a quarantine, there may be enough in the groups that are held.
        """
        core = self._core
        with self._taking:
            try:
                self._take_until(enough, worth, wanted, ready_too)
            finally:
                with core.transactions.mutex:
                    core.groups.keep(0.0)

    def _take_until(
        self, enough: Callable[[], bool], worth: Callable[[int], bool], wanted: str,
        ready_too: Callable[[], float | None],
    ) -> None:  # fmt: skip
        core = self._core
        self._refresh_old()
        asked = waiting = False
        while True:
            with core.transactions.mutex:
                core.transactions.check()
                core.groups.end_quarantines()
                if enough():
                    return
                ready = [t for t in (core.groups.next_quarantine_end(), ready_too()) if t is not None]
            if self._take_another(worth, 0.0):
                continue
            if not asked:
                asked = True
                self.refresh()
            elif self._take_another(worth, self._ask_seconds):
                asked = False
            elif ready:
                with core.transactions.mutex:
                    core.groups.keep(min(ready) + _KEPT_SECONDS)
                core.clock.sleep(max(_POLL_SECONDS / 5, min(ready) - core.clock.now()))
            else:
                if not waiting:
                    waiting = True
                    self._returning.begin()
                core.transactions.settle()  # frees that are still on their way: their quarantine begins
                self.refresh()
                if self._returning.is_over(self._free_seen):
                    raise NoSpace(f"volume {core.name}", wanted)
                core.clock.sleep(max(_POLL_SECONDS, self._counting_s / _COUNTING_SHARE))

    @property
    def _ask_seconds(self) -> float:
        """How long a host that is asked for a group may take: it reads the slots once a heartbeat."""
        return max(_ASK_SECONDS_MIN, 3 * self._core.volume.superblock.timers.heartbeat_us / 1e6)

    def _take_another(self, worth: Callable[[int], bool], wait: float) -> bool:
        """Take one more group that is worth it. False when none is to be had within `wait` seconds each."""
        total = self._core.geometry.group_count
        for step in range(total):
            index = (self._start + step) % total
            if worth(index) and index not in self._core.groups.held and self._take_usable(index, wait):
                return True
        return False

    def _take_usable(self, index: int, wait: float) -> bool:
        """As `take`, for a group of which there are others: False, too, of one that cannot be read."""
        now = self._core.clock.now()
        if self._left_out.get(index, now) > now:
            return False
        try:
            return self.take(index, wait)
        except (DamagedBlock, DeviceError) as error:
            log.error("volume %s: resource group %d is left out: %s", self._core.name, index, error)
            # Damage stays until it is mended; the storage may have failed for a moment only.
            self._left_out[index] = math.inf if isinstance(error, DamagedBlock) else now + _LEFT_OUT_SECONDS
            return False

    # -- operations that allocate metadata ---------------------------------------------------------

    def run(self, action: Callable[[Operation], T], *, units: int = UNITS_PER_OPERATION) -> T:
        """Run an operation that may allocate up to `units` metadata units; room for them is made when it has none.

        Raises NoSpace when the volume is full, and what `action` raises; nothing is changed then.
        """
        for last in (False, True):
            try:
                with self._core.transactions.operation() as op:
                    return action(op)
            except NoSpace:
                if last or not units:
                    raise
                with suppress(NoSpace):  # fewer may do
                    self.ensure_units(units)
        raise AssertionError("not reached")

    @contextmanager
    def groups_held(self, addresses: Iterable[int], wait: float) -> Iterator[bool]:
        """Hold the groups of these blocks or units, to free them inside. False when another host keeps one of them."""
        core = self._core
        wanted = sorted({core.geometry.group_of(a)[0] for a in addresses})
        pinned: list[HeldGroup] = []
        try:
            yield all(self._pin(index, wait, pinned) for index in wanted)
        finally:
            with core.transactions.mutex:
                for held in pinned:
                    held.pins -= 1

    def _pin(self, index: int, wait: float, pinned: list[HeldGroup]) -> bool:
        while True:
            with self._core.transactions.mutex:
                held = self._core.groups.held.get(index)
                if held is not None:
                    held.pins += 1
                    pinned.append(held)
                    return True
            if not self.take(index, wait):
                return False


def group_block_runs(geometry: Geometry) -> list[tuple[int, int]]:
    """The tables of group blocks, as (address, count) runs, in the order of the groups' numbers."""
    runs: list[tuple[int, int]] = []
    for index in range(geometry.group_count):
        address = geometry.group_block_address(index)
        if runs and runs[-1][0] + runs[-1][1] * METADATA_BLOCK_BYTES == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((address, 1))
    return runs
