"""Reading metadata without its lock: which damage is believed (rule R12 of docs/locking.md).

Another host may be changing what is read here, and three things look like damage then that are none:

- a block that is being written: it is torn for a moment, or newer than the inode that leads to it, which is written
  last. It is read again for a while.
- a block of a map that its inode has dropped since the reader looked at it: it is something else's by now. The inode,
  read again, tells (`Changed`): the reader starts over with the inode as it is now, or learns that the file is gone.
- a block that a host left half-written when it died. Whoever takes the inode's lock recovers that host first.

So damage is believed, and logged, when the inode is the same before and after it was met, and the block stays damaged,
in the end even under the inode's lock, as far as that is to be had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from vmfs.cluster.locktable import Tenure
from vmfs.core.state import Core
from vmfs.errors import DamagedBlock, LockedByOther
from vmfs.events import event_of
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Guards, LockMode
from vmfs.ondisk.slot import SlotState

log = logging.getLogger("vmfs.core")

TORN_RETRY_SECONDS: Final = 0.5  # a live owner's commit has its blocks in place long before
CONFIRM_WAIT_SECONDS: Final = 0.5  # for the lock under which damage is looked at for the last time, again and again
_TORN_PAUSE_SECONDS: Final = 0.005
_DAMAGED_MAX: Final = 1024  # 4 MiB of blocks that stayed damaged

T = TypeVar("T")


class Changed(Exception):
    """What the reader started from is not so any more: look again."""


class UnlockedReader:
    """Reads blocks whose locks this host does not hold, and says which damage is real.

    The two memories of damaged blocks are hints: they are changed and read without a lock of their own.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._suspects: dict[int, bytes] = {}
        """By address, what was read there when it was found damaged lately."""
        self._damaged: dict[int, bytes] = {}
        """Likewise what stayed so: whoever meets the same bytes again need not wait for a writer."""

    def read(self, address: int, parse: Callable[[bytes], T]) -> T:
        """Read and parse a block, once. Raises what `parse` raises; LeaseLost, DeviceError."""
        block = self._core.io.read(address, METADATA_BLOCK_BYTES)
        try:
            return parse(block)
        except DamagedBlock:
            _remember(self._suspects, address, block)
            raise

    def believe(self, number: int, walk: Callable[[], T], unchanged: Callable[[], None] | None = None) -> T:
        """The outcome of `walk`, which reads inode `number` or what lies below it; DamagedBlock only if it stays so.

        `unchanged` raises Changed when the inode is not what the walk started from; without it, the inode itself is
        what is read. The caller holds the control mutex only if this host holds the inode's lock. Raises DeviceError.
        """
        clock = self._core.clock
        until: float | None = None
        while True:
            try:
                return walk()
            except DamagedBlock as error:
                _check(unchanged)
                if self._is_known(error):
                    raise
                now = clock.now()
                until = until or now + TORN_RETRY_SECONDS
                if now >= until:
                    break
            clock.sleep(_TORN_PAUSE_SECONDS)
        with self._lock(number):
            try:
                return walk()
            except DamagedBlock as error:
                if unchanged is not None:
                    unchanged()
                log.error("volume %s: %s", self._core.name, error, extra=event_of(error))
                block = self._suspects.get(error.address)
                if block is not None:
                    _remember(self._damaged, error.address, block)
                raise

    def _is_known(self, error: DamagedBlock) -> bool:
        block = self._damaged.get(error.address)
        return block is not None and self._suspects.get(error.address) == block

    @contextmanager
    def _lock(self, number: int) -> Iterator[None]:
        """The inode's lock, shared, if it is to be had: to take it waits for a commit, and recovers a dead holder."""
        tenure = self._acquire(self._core.geometry.inode_lock_address(number))
        try:
            yield
        finally:
            if tenure is not None:
                self._core.locks.unpin(tenure)

    def _acquire(self, address: int) -> Tenure | None:
        """The lock, or None: a host that lives keeps it, or it is damaged itself.

        A holder whose heartbeat stands still may be dead: it is waited for until it would be broken, and recovered.
        Raises LockedByOther when that takes longer, and DeviceError: while the storage fails, too, nothing is known
        about the block that was to be looked at.
        """
        core = self._core
        until = core.clock.now() + 2 * core.membership.timers.break_s
        slots: dict[int, bytes] = {}
        while True:
            try:
                return core.locks.acquire(address, Guards.INODE, LockMode.SHARED, wait=CONFIRM_WAIT_SECONDS)
            except LockedByOther as error:
                if self._beats(address, slots):
                    log.debug("volume %s: %s", core.name, error)
                    return None
                if core.clock.now() >= until:
                    raise
            except DamagedBlock as error:
                log.debug("volume %s: %s", core.name, error)
                return None

    def _beats(self, address: int, slots: dict[int, bytes]) -> bool:
        """Whether a holder of the lock has changed its slot since the first call, which fills `slots`.

        A dead one's slot changes, too: with each step of its recovery.
        """
        core = self._core
        for holder in core.locks.peek(address).all_holders:
            view = core.membership.read_slot(holder.slot)
            lives = view.record is not None and view.record.state is SlotState.LIVE
            if slots.setdefault(holder.slot, view.raw) != view.raw and lives:
                return True
        return False


def _check(unchanged: Callable[[], None] | None) -> None:
    if unchanged is None:
        return
    try:
        unchanged()
    except DamagedBlock:
        pass  # the inode is being written just now: it tells a moment later


def _remember(memory: dict[int, bytes], address: int, block: bytes) -> None:
    if len(memory) >= _DAMAGED_MAX:
        memory.clear()
    memory[address] = block
