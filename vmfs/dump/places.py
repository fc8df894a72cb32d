"""What the superblock says lies at an address: arithmetic, no I/O."""

from __future__ import annotations

from vmfs.devices.extents import split_address
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.superblock import segment_data_start
from vmfs.volume import Volume


def place_of(volume: Volume, address: int) -> str:
    """What lies at a volume address of an extent that the volume has, in words."""
    sb = volume.superblock
    extent, offset = split_address(address)
    if offset in sb.copy_offsets(extent):
        return f"superblock copy {sb.copy_offsets(extent).index(offset)} of extent {extent}"
    if extent == 0 and (fixed := _fixed(volume, offset)) is not None:
        return fixed
    for segment in sb.segments:
        if segment.extent != extent:
            continue
        locks_end = segment.start + segment.group_count * sb.lock_block_bytes
        blocks_end = locks_end + segment.group_count * METADATA_BLOCK_BYTES
        if segment.start <= offset < locks_end:
            return f"lock of group {segment.first_group + (offset - segment.start) // sb.lock_block_bytes}"
        if locks_end <= offset < blocks_end:
            return f"block of group {segment.first_group + (offset - locks_end) // METADATA_BLOCK_BYTES}"
        if blocks_end <= offset < segment_data_start(segment, sb.lock_block_bytes, sb.block_bytes):
            return f"nothing: before group {segment.first_group}'s first block"
    try:
        group, index = volume.geometry.group_of(address)
    except DamagedBlock:
        return "nothing"
    unit = (address - volume.geometry.block_address(group, index)) // METADATA_BLOCK_BYTES
    return f"block {index} of group {group}, unit {unit}"


def _fixed(volume: Volume, offset: int) -> str | None:
    sb = volume.superblock
    tables = (
        ("superblock lock", sb.superblock_lock, sb.lock_block_bytes, 1),
        ("probe block", sb.probe_address, sb.lock_block_bytes, 1),
        ("heartbeat slot", sb.slots_address, sb.lock_block_bytes, sb.max_hosts),
        ("orphan list of slot", sb.orphans_address, METADATA_BLOCK_BYTES, sb.max_hosts),
        ("journal of slot", sb.journals_address, sb.journal_bytes, sb.max_hosts),
    )
    for name, start, length, count in tables:
        if not start <= offset < start + length * count:
            continue
        index, rest = divmod(offset - start, length)
        if count == 1 and name.startswith(("superblock", "probe")):
            return name
        inside = f", position {rest // METADATA_BLOCK_BYTES}" if name.startswith("journal") else ""
        return f"{name} {index}{inside}"
    return None
