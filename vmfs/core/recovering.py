"""Recovering a dead slot: its journal is replayed, its unfinished removals become this host's, its slot becomes free.

The states of the slot and the proof of death are `vmfs.cluster.recovery`'s; the rules R2, R5 and R6 of docs/locking.md.
Every step can be done again: a recoverer that dies half-way leaves the rest to the next one.
"""

from __future__ import annotations

import logging
from typing import Final

from vmfs.core.objects import OrphansObject
from vmfs.core.reaper import Reaper
from vmfs.core.replay import JournalPlace, replay
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.errors import DamagedBlock, VmfsError
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Holder
from vmfs.ondisk.orphans import CAPACITY, OrphanKind

log = logging.getLogger("vmfs.core")

_LIST_ROOM: Final = 64  # places kept for this host's own removals while it takes over another's


class SlotRecoverer:
    """Recovers slots on behalf of this mount."""

    def __init__(self, core: Core, reaper: Reaper) -> None:
        self._core = core
        self._reaper = reaper

    def recover(self, slot: int) -> None:
        """Recover one dead slot. Raises SlotNotDead, LeaseLost, DeviceError (then it can be tried again),
        DamagedBlock when the journal cannot be read: the slot is left FAILED, for an operator."""
        core = self._core
        dead = core.membership.begin_recovery(slot)
        try:
            blocks = self._replay(slot, dead.holder)
            taken = self._take_over_orphans(slot)
        except DamagedBlock:
            core.membership.fail_recovery(slot)
            raise
        except VmfsError:
            core.membership.hand_back(slot)
            raise
        core.membership.finish_recovery(slot)
        log.warning(
            "volume %s: recovered host %s (slot %d, incarnation %d): %d blocks replayed, %d removals taken over",
            core.name, dead.host_name, slot, dead.incarnation, blocks, taken,
        )  # fmt: skip
        self._reaper.kick()

    def _replay(self, slot: int, dead: Holder) -> int:
        core = self._core
        slot_address = core.geometry.slot_address(slot)

        def holds(lock: int, version: int) -> bool:
            if lock == slot_address:
                return version == dead.incarnation
            record = core.locks.peek(lock)
            return record.owner == dead and record.version == version

        place = JournalPlace(
            core.geometry.journal_address(slot), core.volume.superblock.journal_bytes, core.volume.uuid, slot,
            dead.incarnation,
        )  # fmt: skip
        return replay(core.io, place, holds)

    def _take_over_orphans(self, slot: int) -> int:
        """Move the dead host's list onto this host's, durably: its last part in one transaction with emptying it."""
        core = self._core
        address = core.geometry.orphans_address(slot)
        block = core.io.read(address, METADATA_BLOCK_BYTES)
        entries, generation = orphans_format.parse(block, address, core.volume.uuid, slot)
        if not entries:
            return 0
        with core.transactions.mutex:
            room = max(0, CAPACITY - _LIST_ROOM - len(core.orphans.entries))
        # What finds no room stays where it is: it is the work of whoever claims that slot next.
        pending = list(entries.items())
        taken, left = dict(pending[:room]), dict(pending[room:])
        if left:
            log.warning("volume %s: %d removals are left to the next host in slot %d", core.name, len(left), slot)
        # Through this host's journal, as covered by its own slot: a block that is torn by a power cut is whole again
        # when this host has been recovered in its turn.
        theirs = OrphansObject(address, core.orphans.lock, slot, left, generation)
        with core.transactions.operation() as op:
            self._add(op, taken)
            op.add(theirs)
        core.transactions.settle()
        # The slot's next host writes its list there: this journal's image of it must not come back.
        with core.transactions.operation() as op:
            op.drop(theirs)
        core.transactions.commit()
        return len(taken)

    def _add(self, op: Operation, entries: dict[tuple[int, int], OrphanKind]) -> None:
        orphans = self._core.orphans
        op.touch(orphans)
        for key, kind in entries.items():
            orphans.entries[key] = min(kind, orphans.entries.get(key, kind))
