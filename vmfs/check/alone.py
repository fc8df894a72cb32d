"""A volume for one repair alone: a membership of its own, dead hosts recovered, and every other slot taken.

A mount needs a free slot, so with none left no host can begin to use the volume while it is being repaired. The
slots that were free are turned to RECOVERING by the repair: when the repair dies, they end with it (rule R6), and the
next repair, or a mount once a repair has run, goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final

from vmfs.check.recovery import pending_images
from vmfs.clock import Clock
from vmfs.cluster.casio import swap_settled
from vmfs.cluster.fencing import Fence
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.membership import Membership
from vmfs.cluster.region import SlotRegion, SlotView
from vmfs.core.fencing import fence_for, timers_of
from vmfs.core.leased import LeasedIO, PatientLease
from vmfs.devices.contract import LockMethod
from vmfs.errors import DamagedBlock, DeviceError, SlotNotDead, UnsupportedFormat, VmfsError, VolumeInUse
from vmfs.liveness import read_slots
from vmfs.lockmethod import image_in, new_lock_block, registers_of
from vmfs.ondisk import journal as journal_format
from vmfs.ondisk.correct import corrected_record
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot
from vmfs.volume import Volume

REPAIR_NAME: Final = "vmfsctl-check-repair"
"""The host name in a repair's own slot, as others see it."""
_TAKEN_NAME: Final = "vmfsctl-check-holds"
_US_PER_S: Final = 1_000_000


class JournalUnreadable(VmfsError):
    """A dead host's journal cannot be replayed, so a repair would work on what is half changed."""

    def __init__(self, record: SlotRecord, why: str) -> None:
        super().__init__(
            f"the journal of host {record.host_name} (slot {record.slot}) cannot be replayed: {why}; "
            "--discard-journal gives up what it holds"
        )


class Alone:
    """Use as a context manager: inside, `io` writes under the lease of a mount that nobody shares the volume with."""

    def __init__(
        self, volume: Volume, clock: Clock, rng: random.Random, done: Callable[[str], None], *,
        identity: HostIdentity | None = None, discard_journals: bool = False, fence: Fence | None = None,
    ) -> None:  # fmt: skip
        """`done` is told of what was mended. `identity`: as whom to take part, for tests. `fence`: of a dry run."""
        sb = volume.superblock
        self.volume = volume
        self._clock = clock
        self._done = done
        self._discard = discard_journals
        self.registers = registers_of(sb, volume.extents, clock, rng)
        self._region = SlotRegion(
            self.registers, sb.slots_address, sb.lock_block_bytes, sb.max_hosts, volume.prefix, clock
        )
        self.membership = Membership(
            self._region, identity or HostIdentity.detect(REPAIR_NAME), timers_of(sb), clock, volume_name=sb.label,
            rng=rng, fence=fence if fence is not None else fence_for(volume, clock),
        )  # fmt: skip
        self._patience = PatientLease(self.membership.check_lease, clock)
        self.io = LeasedIO(volume.extents, self._patience)
        self._taken: list[int] = []

    def __enter__(self) -> Alone:
        """Raises VolumeInUse, HostNameInUse, JournalUnreadable, DeviceError..."""
        claimed = self.membership.claim()
        try:
            self.membership.start()
            if claimed.in_place:  # no slot was free, as after a repair that died: one of a dead host is taken over
                dead = self.membership.begin_recovery(claimed.slot)
                self._replay(dead, self.membership.fail_in_place)
                self.membership.settle_in_place()
            self._recover_dead()
            self._take_free()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            for slot in self._taken:
                self._turn(self._region.read(slot), lambda r: r.freed(self._clock.wall_ns()))
            self.membership.leave()
        except VmfsError:
            # The storage does not answer: the next repair, or mount, finds the slot dead.
            self._patience.give_up()
            self.membership.abandon()
            raise

    # -- slots -------------------------------------------------------------------------------------

    def mend_slots(self, highest: dict[int, int]) -> None:
        """Write damaged slots anew, before anyone joins. `highest`: the highest incarnation that a lock names.

        A host whose slot is damaged cannot renew it (its compare-and-write fails), and stops within its lease: the
        slot is watched for the break time first. Raises VolumeInUse when it changes; DeviceError.
        """
        damaged = self._region.read_all().damaged
        self._mend_padding({v.address for v in damaged})
        if not damaged:
            return
        self._clock.sleep(self.volume.superblock.timers.break_us / _US_PER_S)
        for view in damaged:
            if self._region.read(view.slot).raw != view.raw:
                raise VolumeInUse(self.volume.superblock.label, f"the host of slot {view.slot}")
            self._write_slot(view, self._mended(view, highest.get(view.slot, 0)))
            self._done(f"slot {view.slot}: {view.damage}: written anew")
        self.volume.extents.flush()

    def _mend_padding(self, damaged: set[int]) -> None:
        """Set the bytes behind the records of intact slots to zero."""
        sb = self.volume.superblock
        for address, problem in read_slots(self.volume).problems:
            if address in damaged:
                continue
            block = self.volume.extents.read(address, sb.lock_block_bytes)
            whole = new_lock_block(sb, image_in(sb, block, address), address)
            # Where a device compares and writes, the sector itself stays as it is.
            start = 0 if sb.lock_method == LockMethod.PAXOS else sb.sector_bytes
            self.volume.extents.write(address + start, whole[start:])
            self._done(f"{problem}: set to zero")
        self.volume.extents.flush()

    def _mended(self, view: SlotView, highest: int) -> SlotRecord:
        def parse(sector: bytes) -> SlotRecord:
            return parse_slot(sector, view.address, self.volume.prefix, view.slot)

        sb = self.volume.superblock
        image = self.volume.extents.read(view.address, sb.sector_bytes)
        right = corrected_record(image, parse) if sb.lock_method != LockMethod.PAXOS else None
        if right is not None:
            record = parse(right)
            return replace(record, sequence=record.sequence + 1)
        # Who had it cannot be known. As a dead host's, its journal is looked at: replay takes nothing from it unless
        # locks are still held by the incarnation that the journal names.
        incarnation = max(highest, self._journal_incarnation(view.slot))
        wall = self._clock.wall_ns()  # above any count that the slot can have come to
        return SlotRecord(
            view.address, self.volume.prefix, view.slot, SlotState.DEAD, incarnation, wall, "unknown", wall_ns=wall
        )

    def _journal_incarnation(self, slot: int) -> int:
        volume = self.volume
        address = volume.geometry.journal_address(slot)
        head = volume.extents.read(address, journal_format.HEADER_BLOCKS * METADATA_BLOCK_BYTES)
        try:
            blocks = volume.geometry.journal_blocks
            return journal_format.parse_header(head, address, volume.uuid, slot, blocks).incarnation
        except DamagedBlock:
            return 0

    def _write_slot(self, view: SlotView, record: SlotRecord) -> None:
        # Past the registers: where they are a protocol of the slots' owners, this slot has none.
        image = record.pack(self._region.sector_bytes)
        self.volume.extents.write(view.address, new_lock_block(self.volume.superblock, image, view.address))

    def _turn(self, view: SlotView, change: Callable[[SlotRecord], SlotRecord]) -> bool:
        image = change(view.require()).pack(self._region.sector_bytes)
        return swap_settled(self.registers, view.address, view.raw, image, clock=self._clock)

    def _take_free(self) -> None:
        for view in self._region.read_all().views:
            record = view.require()
            if record.holder == self.membership.holder:
                continue
            if record.state is not SlotState.FREE or not self._turn(view, self._held):
                raise VolumeInUse(self.volume.superblock.label, f"host {record.host_name} (slot {record.slot})")
            self._taken.append(record.slot)

    def _held(self, free: SlotRecord) -> SlotRecord:
        return replace(free.turned(SlotState.RECOVERING, self.membership.holder), host_name=_TAKEN_NAME)

    # -- the dead ----------------------------------------------------------------------------------

    def _recover_dead(self) -> None:
        """Replay every dead host's journal and free its slot. Raises VolumeInUse for one that is not dead."""
        until = self._clock.now() + 2 * self.volume.superblock.timers.break_us / _US_PER_S
        while waiting := self._not_free():
            dead = self.membership.dead_slots()
            for record in waiting:
                if record.slot in dead or (record.state is SlotState.FAILED and self._discard):
                    self._recover(record)
                elif record.state is SlotState.FAILED:
                    raise JournalUnreadable(record, "an earlier recovery has failed")
            if not dead and waiting == self._not_free():
                if self._clock.now() >= until:
                    raise VolumeInUse(self.volume.superblock.label, f"host {waiting[0].host_name}")
                self._clock.sleep(self.volume.superblock.timers.heartbeat_us / _US_PER_S)

    def _not_free(self) -> Sequence[SlotRecord]:
        own = self.membership.holder
        records = self._region.read_all().records
        return [r for r in records if r.state is not SlotState.FREE and r.holder != own]

    def _recover(self, record: SlotRecord) -> None:
        membership = self.membership
        try:
            membership.begin_recovery(record.slot, operator=self._discard)
        except SlotNotDead:
            return  # a round later
        try:
            self._replay(record, lambda: membership.fail_recovery(record.slot))
        except DeviceError:
            membership.hand_back(record.slot)
            raise
        membership.finish_recovery(record.slot)

    def _replay(self, record: SlotRecord, fail: Callable[[], None]) -> None:
        """Write what a dead host's journal holds in place (rule R5). `fail` marks its slot when it cannot be read."""
        if record.host_name == _TAKEN_NAME:
            return
        who = f"host {record.host_name} (slot {record.slot})"
        try:
            images = pending_images(self.volume, record)
        except (DamagedBlock, UnsupportedFormat) as error:
            if not self._discard:
                fail()
                raise JournalUnreadable(record, str(error)) from error
            self._done(f"the journal of {who} is given up: {error}")
            return
        self.io.write_blocks(list(images.items()))
        self.io.flush()
        self._done(f"{who}: {len(images)} blocks of its journal replayed")
