"""What an operator may order about other hosts: declare one dead, try a failed recovery again, give a journal up.

A plan says beforehand what an order would do, and what it may lose. An order names the incarnation that the operator
was asked about, and is refused when the slot has gone on since.
"""

from __future__ import annotations

import logging
from typing import Final

from vmfs.cluster.region import SlotView
from vmfs.control.contract import JournalInfo, RecoveryPlan, RecoveryReport
from vmfs.core.recovering import SlotRecoverer, journal_place
from vmfs.core.replay import read_journal, read_records
from vmfs.core.state import Core
from vmfs.errors import BadSlot, DamagedBlock, HostStillAlive, OwnSlot, SlotNotDead
from vmfs.facts import RESERVATIONS, host_info
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.journal import Record
from vmfs.ondisk.slot import SlotRecord, SlotState

log = logging.getLogger("vmfs.core")

_SILENT_INTERVALS: Final = 2  # without a change, before an operator's word that a host is off is believed
_LOOKS_PER_INTERVAL: Final = 4
_INODES_NAMED_MAX: Final = 64  # in a plan: more say no more to a person
_TYPE_OFFSET: Final = 4  # of the common header
_BLOCK_TYPES: Final = frozenset(int(t) for t in BlockType)


class DeadHosts:
    """Plans and orders of one mount. Usable from any thread."""

    def __init__(self, core: Core, recoverer: SlotRecoverer) -> None:
        self._core = core
        self._recoverer = recoverer

    def plan(self, slot: int) -> RecoveryPlan:
        """What lies in a slot and what its recovery is about. Changes nothing. Raises BadSlot, DeviceError."""
        core = self._core
        record = self._read(slot).require()
        if record.state is SlotState.FREE:
            raise BadSlot(core.name, f"slot {slot}", "is free: there is nothing to recover")
        names = [r.host_name for r in core.membership.region.read_all().records]
        view = core.membership.read_slot(slot)
        host = host_info(
            record, names, here=core.membership.identity, is_self=record.occupant == core.membership.holder,
            unchanged_seconds=core.membership.watcher.silent_for(view, core.clock.now()),
        )  # fmt: skip
        fenced = core.volume.superblock.fenced
        return RecoveryPlan(host, record.state.name.lower(), RESERVATIONS if fenced else None, self._journal(record))

    def recover(self, slot: int, incarnation: int, *, declare_dead: bool, discard_journal: bool) -> RecoveryReport:
        """Recover a slot by an operator's order.

        `declare_dead`: its host is dead, whatever this host knows of it. Without storage fencing that is believed only
        of one whose heartbeat stands still. `discard_journal`: of a FAILED slot, do not replay what cannot be read.

        Raises BadSlot, OwnSlot, HostStillAlive, SlotNotDead, DamagedBlock (FAILED again), LeaseExpired, LeaseLost,
        DeviceError.
        """
        core = self._core
        view = self._read(slot)
        record = view.require()
        if record.occupant == core.membership.holder:
            raise OwnSlot(core.name, core.membership.identity.name)
        if record.incarnation != incarnation or record.state is SlotState.FREE:
            raise SlotNotDead(core.name, slot, "it has changed since you looked")
        if discard_journal and record.state is not SlotState.FAILED:
            raise BadSlot(core.name, f"slot {slot}", "has not failed: its journal is replayed, not given up")
        beats = record.state is SlotState.LIVE or record.in_place
        if declare_dead and beats and not core.volume.superblock.fenced:
            self._see_silence(view, record)
        operator = declare_dead or record.state is SlotState.FAILED
        log.warning(
            "volume %s: an operator orders slot %d (host %s, incarnation %d, %s) recovered%s",
            core.name, slot, record.host_name, incarnation, record.state.name,
            ", its journal given up" if discard_journal else "",
        )  # fmt: skip
        began = core.clock.now()
        with core.locks.recoveries.alone(slot):
            if self._read(slot).require().incarnation != incarnation:
                raise SlotNotDead(core.name, slot, "it was recovered meanwhile: nothing is left to do")
            done = self._recoverer.recover(slot, operator=operator, discard_journal=discard_journal)
        replayed = done.replayed
        return RecoveryReport(
            slot, record.host_name, incarnation, replayed.records if replayed is not None else None,
            replayed.blocks if replayed is not None else None, done.removals, core.clock.now() - began,
        )  # fmt: skip

    def _read(self, slot: int) -> SlotView:
        region = self._core.membership.region
        if not 0 <= slot < region.count:
            raise BadSlot(self._core.name, f"slot {slot}", f"does not exist: there are {region.count}")
        return region.read(slot)

    def _see_silence(self, view: SlotView, record: SlotRecord) -> None:
        """Return when the slot has not changed for some heartbeats. Raises HostStillAlive."""
        core = self._core
        membership = core.membership
        interval = membership.timers.interval_s
        silent = membership.watcher.silent_for(view, core.clock.now())
        until = core.clock.now() + _SILENT_INTERVALS * interval - silent
        while core.clock.now() < until:
            core.clock.sleep(interval / _LOOKS_PER_INTERVAL)
            if membership.read_slot(record.slot).raw != view.raw:
                raise HostStillAlive(core.name, record.host_name)

    def _journal(self, record: SlotRecord) -> JournalInfo:
        """What a dead host's journal and list hold; of a live one what they hold at this moment."""
        core = self._core
        problems = []
        records: list[Record] = []
        place = journal_place(core.volume, record.slot, record.incarnation)
        try:
            records = read_records(read_journal(core.io, place), place)
        except DamagedBlock as error:
            problems.append(str(error))
        removals = 0
        address = core.geometry.orphans_address(record.slot)
        try:
            block = core.io.read(address, METADATA_BLOCK_BYTES)
            removals = len(orphans_format.parse(block, address, core.volume.uuid, record.slot)[0])
        except DamagedBlock as error:
            problems.append(str(error))
        inodes: set[int] = set()
        kinds: dict[str, set[int]] = {}
        for image in (i for r in records for i in r.images):
            kind = int.from_bytes(image.data[_TYPE_OFFSET : _TYPE_OFFSET + 2], "little")
            name = BlockType(kind).name.lower().replace("_", " ") if kind in _BLOCK_TYPES else f"type {kind}"
            kinds.setdefault(name, set()).add(image.address)
            if kind == BlockType.INODE:
                inodes.add(image.address >> ADDRESS_SHIFT)
        counts = tuple((name, len(addresses)) for name, addresses in sorted(kinds.items()))
        return JournalInfo(len(records), counts, tuple(sorted(inodes)[:_INODES_NAMED_MAX]), removals, tuple(problems))
