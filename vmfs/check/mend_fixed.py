"""Mends what lies at fixed places and is its own: superblock copies, locks, journal headers, single bits anywhere."""

from __future__ import annotations

from typing import Final

from vmfs.check.kinds import Kind
from vmfs.check.shop import Shop
from vmfs.check.survey import Survey
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.liveness import read_slots
from vmfs.lockmethod import new_lock_block
from vmfs.ondisk import journal
from vmfs.ondisk.correct import corrected_block
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import HEADER_BLOCKS, JournalHeader
from vmfs.ondisk.lock import Guards, LockRecord

_BLOCKS: Final = frozenset({
    Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED, Kind.INODE_DAMAGED, Kind.NODE_DAMAGED, Kind.DIRECTORY_DAMAGED,
    Kind.ORPHANS_DAMAGED,
})  # fmt: skip


def mend_superblocks(shop: Shop, seen: Survey) -> None:
    """Write every copy that is not the newest anew, one at a time: a good one is there at any moment."""
    newest = shop.volume.superblock
    bad = {f.address for f in seen.report.findings if f.kind in (Kind.SUPERBLOCK_DAMAGED, Kind.SUPERBLOCK_OLD)}
    for extent in range(len(newest.extents)):
        for offset in newest.copy_offsets(extent):
            address = extent << 56 | offset
            if address in bad:
                shop.mender.plain(address, newest.pack(extent, offset))
                shop.alone.io.flush()
                shop.done(f"superblock copy at byte {offset} of extent {extent}: written anew")


def mend_journal_headers(shop: Shop, seen: Survey) -> None:
    """Make both copies of the header of every idle journal good ones."""
    bad = {f.address for f in seen.report.findings if f.kind is Kind.JOURNAL_DAMAGED}
    volume = shop.volume
    own = shop.alone.membership.holder.slot
    for record in read_slots(volume).records:
        address = volume.geometry.journal_address(record.slot)
        copies = [address + i * METADATA_BLOCK_BYTES for i in range(HEADER_BLOCKS)]
        if record.slot == own or bad.isdisjoint(copies):
            continue
        header = _good_header(shop, record.slot, record.incarnation)
        for copy, at in enumerate(copies):
            shop.mender.plain(at, header.pack(address, copy, volume.uuid))
            shop.alone.io.flush()
        shop.done(f"journal header of slot {record.slot}: written anew")


def _good_header(shop: Shop, slot: int, incarnation: int) -> JournalHeader:
    volume = shop.volume
    address = volume.geometry.journal_address(slot)
    head = volume.extents.read(address, HEADER_BLOCKS * METADATA_BLOCK_BYTES)
    try:
        found = journal.parse_header(head, address, volume.uuid, slot, volume.geometry.journal_blocks)
        if found.incarnation <= incarnation:
            return found
    except DamagedBlock:
        pass
    return JournalHeader(slot, incarnation, 1, HEADER_BLOCKS, 0)


def mend_locks(shop: Shop, seen: Survey) -> None:
    """Write every lock that cannot be used anew, as free. No host lives that could hold it.

    Its numbers start above any that it can have come to, so that no late compare-and-write ever matches again.
    """
    for address, guards in seen.locks.bad.items():
        record = _free_lock(shop, address, guards)
        shop.mender.plain(address, lock_image(shop, record))
        shop.done(f"lock at {address:#x} of the {guards.name.lower().replace('_', ' ')}: written anew, free")
    shop.alone.io.flush()


def _free_lock(shop: Shop, address: int, guards: Guards) -> LockRecord:
    wall = shop.clock.wall_ns()
    prefix = shop.volume.prefix
    return LockRecord(address, prefix, guards, version=wall, stamp=wall)


def lock_image(shop: Shop, record: LockRecord) -> bytes:
    """A whole lock block with that record, as at format: whatever hosts had agreed on there is void."""
    sb = shop.volume.superblock
    return new_lock_block(sb, record.pack(sb.sector_bytes), record.address)


def mend_single_bits(shop: Shop, seen: Survey) -> bool:
    """Put right the blocks in which one bit is wrong. Whether there were any: then look again, more may show."""
    found = False
    for finding in seen.report.findings:
        address = finding.address
        if finding.kind not in _BLOCKS or address is None or address in shop.tried:
            continue
        shop.tried.add(address)
        try:
            right = corrected_block(shop.volume.extents.read(address, METADATA_BLOCK_BYTES))
        except DeviceError:
            continue
        if right is not None and _is_ours(right, address, shop.volume.uuid):
            shop.mender.one(address, right)
            shop.done(f"{finding.message}: the one bit that was wrong is put right")
            found = True
    return found


def _is_ours(block: bytes, address: int, volume: bytes) -> bool:
    """Whether a block with a good checksum says that it lies there, in that volume (see `vmfs.ondisk.header`)."""
    return int.from_bytes(block[16:24], "little") == address and block[32:48] == volume
