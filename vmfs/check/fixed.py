"""What lies at fixed places: superblock copies, slots, locks of the superblock and of groups, journal headers."""

from __future__ import annotations

from dataclasses import replace

from vmfs.check.findings import Kind, Report
from vmfs.check.source import Source
from vmfs.errors import DamagedBlock, DeviceError, UnsupportedFormat
from vmfs.liveness import Slots
from vmfs.lockmethod import image_in, is_padded_with_zeros
from vmfs.ondisk import journal
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Guards, LockRecord, parse_lock
from vmfs.ondisk.slot import SlotRecord, SlotState
from vmfs.volume import Volume, read_copies


def check_superblocks(volume: Volume, report: Report) -> None:
    """Every copy on every extent is intact, of this volume and of the newest generation."""
    newest = volume.superblock
    for extent in range(len(newest.extents)):
        wanted = newest.copy_offsets(extent)
        for copy in read_copies(volume.extents.device(extent)):
            if copy.offset not in wanted:
                continue  # where a device that grew will have its last copy
            address = (extent << 56) | copy.offset
            where = f"superblock copy at byte {copy.offset} of extent {extent}"
            if copy.superblock is None:
                report.add(Kind.SUPERBLOCK_DAMAGED, f"{where}: {copy.problem}", address=address)
            elif copy.superblock.volume != newest.volume:
                report.add(Kind.SUPERBLOCK_DAMAGED, f"{where} is another volume's", address=address)
            elif copy.superblock.generation != newest.generation:
                message = f"{where} has generation {copy.superblock.generation}, not {newest.generation}"
                report.add(Kind.SUPERBLOCK_OLD, message, address=address)
            elif replace(copy.superblock, extent_index=newest.extent_index) != newest:
                report.add(Kind.SUPERBLOCK_OLD, f"{where} says something else than the newest", address=address)
        beyond = volume.extents.device(extent).size_bytes - newest.extents[extent].size_bytes
        if beyond >= volume.superblock.block_bytes:
            report.notes.append(f"extent {extent}: {beyond} bytes behind its end are not used by the volume")


class Holders:
    """The incarnations that slots carry: no lock can be held by a later one."""

    def __init__(self, slots: Slots, count: int) -> None:
        """`count`: how many slots the volume has."""
        self.by_slot: dict[int, SlotRecord] = {r.slot: r for r in slots.records}
        self._slots = count

    def problem(self, lock: LockRecord) -> str | None:
        """Why nobody can hold the lock as it says, or None."""
        for holder in lock.all_holders:
            slot = self.by_slot.get(holder.slot)
            if slot is not None and holder.incarnation > slot.incarnation:
                return (
                    f"held by slot {holder.slot}, incarnation {holder.incarnation}, "
                    f"which has come to {slot.incarnation} only"
                )
            if slot is not None and slot.state is SlotState.FREE and holder.incarnation == slot.incarnation:
                return f"held by slot {holder.slot}, incarnation {holder.incarnation}, which is free"
            if holder.slot >= self._slots:
                return f"held by slot {holder.slot}, which the volume does not have"
        return None

    def is_void(self, lock: LockRecord) -> bool:
        """Whether it is held, and only by incarnations that have ended."""
        slots = [(self.by_slot.get(h.slot), h) for h in lock.all_holders]
        return bool(slots) and all(s is not None and s.incarnation > h.incarnation for s, h in slots)


def check_slots(slots: Slots, report: Report) -> None:
    """Every slot decodes, and none waits for an operator."""
    for address, what in slots.problems:
        report.add(Kind.SLOT_DAMAGED, what, address=address)
    for record in slots.records:
        if record.state is SlotState.FAILED:
            message = f"slot {record.slot} of host {record.host_name}, incarnation {record.incarnation}"
            report.add(Kind.SLOT_FAILED, message, address=record.address)


class LockChecker:
    """Checks lock blocks against the slots."""

    def __init__(self, volume: Volume, holders: Holders, report: Report) -> None:
        self._volume = volume
        self._holders = holders
        self._report = report
        self.highest: dict[int, int] = {}
        """By slot: the highest incarnation that any lock names."""
        self.bad: dict[int, Guards] = {}
        """Addresses of locks that cannot be used, and what they should guard."""

    def check(self, block: bytes | None, address: int, guards: Guards, name: str, inode: int | None = None) -> None:
        """`block` is what was read from the lock's `address`, its first 4 KiB at least; None: it could not be read.

        Raises DeviceError when the rest of it cannot.
        """
        sb = self._volume.superblock
        if block is None:
            self._report.add(Kind.READ_FAILED, f"lock of {name}", address=address, inode=inode)
            return
        try:
            if len(block) < sb.lock_block_bytes:
                block = self._volume.extents.read(address, sb.lock_block_bytes)
            record = parse_lock(image_in(sb, block, address), address, self._volume.prefix)
        except (DamagedBlock, UnsupportedFormat) as error:
            what = error.what if isinstance(error, DamagedBlock) else str(error)
            self._bad(Kind.LOCK_DAMAGED, f"lock of {name}: {what}", address, guards, inode)
            return
        for holder in record.all_holders:
            self.highest[holder.slot] = max(holder.incarnation, self.highest.get(holder.slot, 0))
        self._report.counts.void_locks += self._holders.is_void(record)
        if record.guards is not guards:
            message = f"lock of {name}: it says that it guards a {record.guards.name.lower()}"
            self._bad(Kind.LOCK_DAMAGED, message, address, guards, inode)
        elif not is_padded_with_zeros(sb, block):
            message = f"lock of {name}: the bytes behind its record are not zero"
            self._bad(Kind.LOCK_DAMAGED, message, address, guards, inode)
        elif problem := self._holders.problem(record):
            self._bad(Kind.LOCK_IMPOSSIBLE, f"lock of {name}: {problem}", address, guards, inode)

    def _bad(self, kind: Kind, message: str, address: int, guards: Guards, inode: int | None) -> None:
        self.bad[address] = guards
        self._report.add(kind, message, address=address, inode=inode)


def check_fixed_locks(source: Source, locks: LockChecker) -> None:
    """The locks of the superblock and of every group."""
    volume = source.volume
    sb, geometry = volume.superblock, volume.geometry
    for address, block in source.table(sb.superblock_lock, 1):
        locks.check(block, address, Guards.SUPERBLOCK, "the superblock")
    per_lock = sb.lock_block_bytes // METADATA_BLOCK_BYTES
    for segment in sb.segments:
        start = geometry.group_lock_address(segment.first_group)
        for i, (address, block) in enumerate(source.table(start, segment.group_count * per_lock)):
            if i % per_lock == 0:
                group = segment.first_group + i // per_lock
                locks.check(block, address, Guards.RESOURCE_GROUP, f"group {group}")


def check_journal_headers(source: Source, holders: Holders, report: Report) -> None:
    """Both header copies of every journal decode, and none is of an incarnation that has not been yet."""
    volume = source.volume
    sb, geometry = volume.superblock, volume.geometry
    blocks = geometry.journal_blocks
    size = METADATA_BLOCK_BYTES
    for slot in range(sb.max_hosts):
        address = geometry.journal_address(slot)
        try:
            head = volume.extents.read(address, journal.HEADER_BLOCKS * size)
        except DeviceError as error:
            report.add(Kind.READ_FAILED, f"journal header of slot {slot}: {error}", address=address)
            continue
        for copy in range(journal.HEADER_BLOCKS):
            # Alone, so that the other copy cannot stand in for it.
            alone = bytearray(len(head))
            alone[copy * size : (copy + 1) * size] = head[copy * size : (copy + 1) * size]
            try:
                header = journal.parse_header(bytes(alone), address, volume.uuid, slot, blocks)
            except DamagedBlock:
                message = f"journal header {copy} of slot {slot} is damaged"
                report.add(Kind.JOURNAL_DAMAGED, message, address=address + copy * size)
                continue
            owner = holders.by_slot.get(slot)
            if owner is not None and header.incarnation > owner.incarnation:
                message = f"journal header {copy} of slot {slot} is of incarnation {header.incarnation}"
                report.add(Kind.JOURNAL_DAMAGED, message, address=address + copy * size)
