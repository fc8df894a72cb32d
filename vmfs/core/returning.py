"""Space that is on its way back: what a host waits for before it says that the volume is full.

Blocks of removed files come back a little later, by the work of whoever removed them: the removal is committed within
PUBLISH_SECONDS, the inode is on that host's orphan list until its blocks are freed, group by group. And what a dead
host was removing or held comes back when it has been recovered. All of that shows on the disk. So the volume is full
when all groups have too little, every other host has shown that it lives, and nothing has changed for a while.
"""

from __future__ import annotations

from typing import Final

from vmfs.core.state import Core
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.slot import SlotState

QUIET_SECONDS: Final = 1.0  # what another host did is seen within a second
WORK_SECONDS: Final = 3.0  # a host with something on its list looks at it every two seconds
VERDICT_SECONDS: Final = 1.0  # for which a volume that was full just now, and has not changed, is full without a wait


class Returning:
    """Watches for space to come back. Used by one thread at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._full: tuple[object, float] | None = None
        self._evidence: object = None
        self._changed_at = 0.0
        self._began = 0.0
        self._beats: dict[int, bytes] = {}

    def begin(self) -> None:
        """A host begins to wait."""
        self._evidence = None
        self._began = self._changed_at = self._core.clock.now()
        self._beats = {}

    def is_over(self, counts: list[int]) -> bool:
        """Whether nothing more is to be expected. `counts`: of the groups, as just read. Raises LeaseLost, DeviceError.
        """
        core = self._core
        lists, pending = self._orphans()
        evidence = (tuple(counts), lists)
        now = core.clock.now()
        if self._full is not None and self._full[0] == evidence and now - self._full[1] < VERDICT_SECONDS:
            return True
        if evidence != self._evidence:
            self._evidence, self._changed_at = evidence, now
        if now - self._changed_at < (WORK_SECONDS if pending else QUIET_SECONDS):
            return False
        if not self._all_live() and now - self._began < 2 * core.membership.timers.break_s:
            return False
        self._full = evidence, now
        return True

    def _orphans(self) -> tuple[tuple[object, ...], bool]:
        """(what all orphan lists say, whether there is anything on one)."""
        core = self._core
        found: list[object] = []
        pending = False
        for slot in range(core.volume.superblock.max_hosts):
            if slot == core.membership.holder.slot:
                with core.transactions.mutex:
                    own = dict(core.orphans.entries)
                found.append(own)
                pending |= bool(own)
                continue
            block = core.io.read(core.geometry.orphans_address(slot), METADATA_BLOCK_BYTES)
            found.append(block)
            pending |= orphans_format.count_of(block) > 0
        return tuple(found), pending

    def _all_live(self) -> bool:
        """Whether each host that holds a slot has beaten since the first call, or been recovered."""
        own = self._core.membership.holder.slot
        silent = False
        for view in self._core.membership.region.read_all().views:
            if view.slot == own or view.record is None or view.record.state in (SlotState.FREE, SlotState.FAILED):
                continue
            silent |= self._beats.setdefault(view.slot, view.raw) == view.raw
        return not silent
