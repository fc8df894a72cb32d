"""Room for an operation: which resource groups this host takes, and what it does when the volume runs full.

`ensure` takes more groups until what is wanted is there: free groups first, then groups that other hosts keep (they are
asked through the heartbeat slots, and let go within a heartbeat or two), and last it waits until lately freed blocks
are out of quarantine. Only then is the volume full. It waits, so it is called without the control mutex.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from vmfs.core.groups import HeldGroup
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock, DeviceError, LockedByOther, NoSpace
from vmfs.geometry import Geometry
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Guards, LockMode

log = logging.getLogger("vmfs.core")

UNITS_PER_OPERATION: Final = 8  # no operation needs more units than: two inodes, a map path, two directory blocks
_READ_BYTES: Final = 1 << 20
_FREE_COUNT_AT: Final = 68  # of a group block: free blocks u32, see vmfs.ondisk.group
_ASK_SECONDS_MIN: Final = 0.2
_COUNTS_SECONDS: Final = 0.5  # for which other hosts' free counts are believed
_COUNTING_SHARE: Final = 0.05  # of the time may go into reading them: a very large volume is counted less often
_COUNTS_GOOD_SECONDS: Final = 1.0  # a file written at full speed wants a group more often than counts are worth reading

T = TypeVar("T")


class Space:
    """Takes and gives back resource groups. `_taking` serialises the taking; it is taken before the control mutex."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._taking = threading.Lock()
        self._free_seen: list[int] | None = None
        self._damaged: set[int] = set()
        self._counts_expire = 0.0
        self._seen_at = -1e18
        slots = core.volume.superblock.max_hosts
        self._start = core.membership.holder.slot * core.geometry.group_count // slots

    # -- counting ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read every group's free count from the disk (a hint: others change theirs meanwhile)."""
        counts: list[int] = []
        most = self._core.volume.superblock.blocks_per_group
        started = self._core.clock.now()
        for address, count in group_block_runs(self._core.geometry):
            for at in range(0, count, _READ_BYTES // METADATA_BLOCK_BYTES):
                here = min(count - at, _READ_BYTES // METADATA_BLOCK_BYTES)
                data = self._core.io.read(address + at * METADATA_BLOCK_BYTES, here * METADATA_BLOCK_BYTES)
                counts.extend(
                    # A block that is damaged, or torn just now, says anything.
                    min(int.from_bytes(data[i + _FREE_COUNT_AT : i + _FREE_COUNT_AT + 4], "little"), most)
                    for i in range(0, len(data), METADATA_BLOCK_BYTES)
                )
        self._free_seen = counts
        self._seen_at = started
        now = self._core.clock.now()
        self._counts_expire = now + max(_COUNTS_SECONDS, (now - started) / _COUNTING_SHARE)

    def free_blocks(self) -> int:
        """Free blocks of the volume: exact for the groups held here, as lately read for the others."""
        if self._free_seen is None or self._core.clock.now() >= self._counts_expire:
            self.refresh()
        assert self._free_seen is not None
        with self._core.transactions.mutex:
            for index, held in self._core.groups.held.items():
                self._free_seen[index] = held.obj.group.free_blocks
        return sum(self._free_seen)

    def free_blocks_seen(self) -> int:
        """Free blocks as they were last counted, without a word to the storage: for when it does not answer."""
        return sum(self._free_seen or ())

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
        core = self._core
        with self._taking:
            settled = False
            counted = core.clock.now() - self._seen_at > _COUNTS_GOOD_SECONDS
            if counted:
                self.refresh()
            while True:
                with core.transactions.mutex:
                    core.transactions.check()
                    core.groups.end_quarantines()
                    if core.groups.allocatable_blocks() >= blocks:
                        return
                    ready = core.groups.next_quarantine_end()
                if self._take_another(0.0):
                    continue
                if not counted:
                    counted = True
                    self.refresh()
                    continue
                if self._take_another(self._ask_seconds):
                    continue
                if not settled:
                    settled = True
                    core.transactions.settle()  # frees that are still on their way
                elif ready is None:
                    raise NoSpace(f"volume {core.name}", f"{blocks * core.block_bytes >> 10} KiB")
                else:
                    core.clock.sleep(max(0.01, ready - core.clock.now()))

    @property
    def _ask_seconds(self) -> float:
        """How long a host that is asked for a group may take: it reads the slots once a heartbeat."""
        return max(_ASK_SECONDS_MIN, 3 * self._core.volume.superblock.timers.heartbeat_us / 1e6)

    def _take_another(self, wait: float) -> bool:
        """Take one more group that has free blocks. False when none is to be had within `wait` seconds each."""
        assert self._free_seen is not None
        total = self._core.geometry.group_count
        for step in range(total):
            index = (self._start + step) % total
            if self._free_seen[index] and index not in self._core.groups.held and self._take_usable(index, wait):
                return True
        return False

    def _take_usable(self, index: int, wait: float) -> bool:
        """As `take`, for a group of which there are others: False, too, of one that cannot be read."""
        if index in self._damaged:
            return False
        try:
            return self.take(index, wait)
        except (DamagedBlock, DeviceError) as error:
            log.error("volume %s: resource group %d is left out: %s", self._core.name, index, error)
            self._damaged.add(index)
            return False

    # -- operations that allocate metadata ---------------------------------------------------------

    def run(self, action: Callable[[Operation], T], *, units: int = UNITS_PER_OPERATION) -> T:
        """Run an operation that may allocate up to `units` metadata units, with room for them made first.

        Raises NoSpace when the volume is full, and what `action` raises; nothing is changed then.
        """
        core = self._core
        for last in (False, True):
            with core.transactions.mutex:
                enough = core.units.has_units(units)
            if not enough:
                self._room_for_units(units)
            try:
                with core.transactions.operation() as op:
                    return action(op)
            except NoSpace:
                # Another thread was quicker, or a group was given up in between.
                if last:
                    raise
                self._room_for_units(units)
        raise AssertionError("not reached")

    def _room_for_units(self, units: int) -> None:
        per_chunk = self._core.geometry.units_per_chunk - 1
        self.ensure(-(-units // per_chunk) + 1 if per_chunk < units else 1)

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
