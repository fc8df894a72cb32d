"""What lies at fixed places: superblock copies, slots, locks of the superblock and of groups, journal headers."""

from __future__ import annotations

from vmfs.check.findings import Kind, Report
from vmfs.check.source import Source
from vmfs.errors import DamagedBlock, DeviceError, UnsupportedFormat
from vmfs.liveness import Slots
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


class Holders:
    """The incarnations that slots carry: no lock can be held by a later one."""

    def __init__(self, slots: Slots) -> None:
        self.by_slot: dict[int, SlotRecord] = {r.slot: r for r in slots.records}

    def problem(self, lock: LockRecord) -> str | None:
        """Why nobody can hold the lock as it says, or None."""
        for holder in lock.all_holders:
            slot = self.by_slot.get(holder.slot)
            if slot is not None and holder.incarnation > slot.incarnation:
                return (
                    f"held by slot {holder.slot}, incarnation {holder.incarnation}, "
                    f"which has come to {slot.incarnation} only"
                )
        return None


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
        self._sector = volume.superblock.sector_bytes
        self._holders = holders
        self._report = report

    def check(self, block: bytes | None, address: int, guards: Guards, name: str, inode: int | None = None) -> None:
        """`block` is what was read from the lock's `address`; None when it could not be read."""
        if block is None:
            self._report.add(Kind.READ_FAILED, f"lock of {name}", address=address, inode=inode)
            return
        try:
            record = parse_lock(block[: self._sector], address, self._volume.prefix)
        except DamagedBlock as error:
            self._report.add(Kind.LOCK_DAMAGED, f"lock of {name}: {error.what}", address=address, inode=inode)
            return
        except UnsupportedFormat as error:
            self._report.add(Kind.LOCK_DAMAGED, f"lock of {name}: {error}", address=address, inode=inode)
            return
        if record.guards is not guards:
            message = f"lock of {name}: it says that it guards a {record.guards.name.lower()}"
            self._report.add(Kind.LOCK_DAMAGED, message, address=address, inode=inode)
        elif any(block[self._sector :]):
            message = f"lock of {name}: the bytes behind its record are not zero"
            self._report.add(Kind.LOCK_DAMAGED, message, address=address, inode=inode)
        elif problem := self._holders.problem(record):
            self._report.add(Kind.LOCK_IMPOSSIBLE, f"lock of {name}: {problem}", address=address, inode=inode)


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
