"""Making a new volume on one device or several.

`plan` is pure: it says what will lie where. `check_free` refuses a device that holds something or is mounted.
`make_volume` puts the planned volume there.

Crash rule: every superblock copy that a device has, of whatever volume, is gone and flushed before anything else is
changed, and the new ones are written after all that they lead to has been flushed: those of further extents first, the
first extent's first copy last. A format that was cut off at any moment leaves the old volume (with fewer superblock
copies, perhaps), no volume, or the whole new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from stat import S_IFDIR
from typing import Final

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.fenceproof import tool_registration
from vmfs.devices.contract import Device
from vmfs.devices.extents import ExtentSet
from vmfs.devices.signatures import identify
from vmfs.errors import DamagedBlock, DeviceError, DeviceNotUsable, FormatRefused, NotAVolume, UnsupportedFormat
from vmfs.formatplan import FormatOptions, FormatPlan, plan
from vmfs.geometry import Geometry
from vmfs.liveness import refuse_when_mounted
from vmfs.lockmethod import new_lock_block
from vmfs.ondisk import orphans
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.journal import HEADER_BLOCKS, JournalHeader
from vmfs.ondisk.lock import Guards, LockRecord
from vmfs.ondisk.lockblock import VOLUME_PREFIX_BYTES
from vmfs.ondisk.slot import SlotRecord
from vmfs.ondisk.superblock import PRIMARY_OFFSET, SECONDARY_OFFSET, Segment, Superblock, backup_offset
from vmfs.volume import Volume, newest_superblock, read_copies

__all__ = ["FormatOptions", "FormatPlan", "check_free", "format_volume", "make_volume", "plan"]

_TABLE_WRITE_BYTES: Final = 1 << 20
_WIPED_END_BYTES: Final = 1 << 20  # backup tables and labels that other makers keep at the end: GPT, MD, ZFS

Progress = Callable[[str, int, int], None]
"""Called with (what is being written, bytes done, bytes in all)."""


def check_free(
    device: Device, *, force: bool, clock: Clock | None = None, waiting: Callable[[str], None] | None = None
) -> str | None:
    """What the device holds already (None: nothing known), having made sure that it may be overwritten.

    `waiting` is told when a host's slot has to be watched, and for how long.

    Raises:
        FormatRefused: it holds something, and `force` was not given.
        VolumeInUse: it is a volume of ours that a host has mounted; not even `force` allows that.
        CannotIdentify, DeviceError: it could not be looked at.
    """
    found = identify(device)
    if found is not None and not force:
        raise FormatRefused(device.name, found)
    try:
        old = newest_superblock(device)
    except (NotAVolume, UnsupportedFormat, DamagedBlock):
        return found
    if old.extent_index == 0:  # the slots lie on the first extent, whatever became of the others
        extents = ExtentSet([device, *[None] * (len(old.extents) - 1)])
        refuse_when_mounted(Volume(old, extents, Geometry(old), True), clock or SystemClock(), waiting)
    return f'{found or "Azekura VMFS volume"} "{old.label}"'


def format_volume(
    device: Device, options: FormatOptions, progress: Progress | None = None, more: Sequence[Device] = ()
) -> Superblock:
    """Plan and write a volume on devices that are free. Raises what `plan`, `check_free` and `make_volume` raise."""
    planned = plan(device, options, more)
    for each in (device, *more):
        check_free(each, force=False)
    make_volume(device, planned, progress, more)
    return planned.superblock


def make_volume(
    device: Device, planned: FormatPlan, progress: Progress | None = None, more: Sequence[Device] = ()
) -> None:
    """Write the planned volume. What `check_free` guards against is not looked at again.

    `device` and `more` are the devices that it was planned for. Registrations that hosts of an older volume left on the
    LUNs when they died are cleared.

    Raises:
        DeviceReadOnly, Unproved (others have reserved a LUN): before anything is changed.
        DeviceNotUsable: two of the devices are one; DeviceError. Either leaves no volume on the devices.
    """
    devices = (device, *more)
    with ExitStack() as registered:
        for each in devices:
            registered.enter_context(tool_registration(each))
        _make_volume(devices, planned, progress)


def _make_volume(devices: Sequence[Device], planned: FormatPlan, progress: Progress | None) -> None:
    sb, geometry = planned.superblock, planned.geometry
    for index, device in enumerate(devices):
        _wipe(device, sb.extents[index].size_bytes, discard=planned.discard)
    _refuse_same(devices)
    extents = ExtentSet(devices)
    for offset, data in _fixed_part(planned):
        extents.write(offset, data)
    total = sb.group_count * (sb.lock_block_bytes + METADATA_BLOCK_BYTES)
    done = 0
    for segment in sb.segments:
        tables = (
            ("group locks", geometry.group_lock_address(segment.first_group), _group_locks(planned, segment)),
            ("group blocks", geometry.group_block_address(segment.first_group), _group_blocks(planned, segment)),
        )
        for name, start, blocks in tables:
            at = start
            for piece in _pieces(blocks):
                extents.write(at, piece)
                at += len(piece)
                done += len(piece)
                if progress is not None:
                    progress(name, done, total)
    extents.write(geometry.group_data_start(0), _first_chunk(planned))
    extents.flush()
    for index in reversed(range(len(devices))):
        _write_superblocks(devices[index], sb, index)


def _write_superblocks(device: Device, sb: Superblock, extent: int) -> None:
    primary, *others = sb.copy_offsets(extent)
    for at in reversed(others):
        device.write(at, sb.pack(extent, at))
    device.flush()
    device.write(primary, sb.pack(extent, primary))
    device.flush()
    if newest_superblock(device) != replace(sb, extent_index=extent):
        reason = "the new superblock does not read back"
        raise DeviceError(device.name, "write", primary, METADATA_BLOCK_BYTES, reason)


def _refuse_same(devices: Sequence[Device]) -> None:
    """Raise DeviceNotUsable when one of them is another, reached by another path. Leaves zeros where it tried."""
    if len(devices) == 1:
        return
    marks = [os.urandom(METADATA_BLOCK_BYTES) for _ in devices]
    for device, mark in zip(devices, marks, strict=True):
        device.write(SECONDARY_OFFSET, mark)
    shown = [marks.index(d.read(SECONDARY_OFFSET, METADATA_BLOCK_BYTES)) for d in devices]
    for device in devices:
        device.write(SECONDARY_OFFSET, bytes(METADATA_BLOCK_BYTES))
    for index, found in enumerate(shown):
        if found != index:
            same = devices[found].name
            raise DeviceNotUsable(devices[index].name, f"is the same storage as {same}; give it once")


def _wipe(device: Device, size: int, *, discard: bool) -> None:
    """Make the device hold nothing that anyone would recognise, durably."""
    sector = device.logical_block_bytes
    try:
        old = [c.offset for c in read_copies(device)]
    except UnsupportedFormat:
        old = [backup_offset(size)]
    for offset in old:
        if offset + METADATA_BLOCK_BYTES <= size:
            device.write(offset, bytes(METADATA_BLOCK_BYTES))
    device.flush()
    device.write(0, bytes(PRIMARY_OFFSET))
    end = max(0, size - _WIPED_END_BYTES) // sector * sector
    device.write(end, bytes(size - end))
    device.flush()
    if discard:
        device.discard(0, size // sector * sector)


def _lock_block(planned: FormatPlan, address: int, guards: Guards) -> bytes:
    sb = planned.superblock
    record = LockRecord(address, sb.volume.bytes[:VOLUME_PREFIX_BYTES], guards)
    return new_lock_block(sb, record.pack(sb.sector_bytes), address)


def _fixed_part(planned: FormatPlan) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of everything before the group tables but the superblock copies."""
    sb, geometry = planned.superblock, planned.geometry
    head = bytearray(sb.journals_address)
    head[sb.superblock_lock : sb.superblock_lock + sb.lock_block_bytes] = _lock_block(
        planned, sb.superblock_lock, Guards.SUPERBLOCK
    )
    prefix = sb.volume.bytes[:VOLUME_PREFIX_BYTES]
    for slot in range(sb.max_hosts):
        at = geometry.slot_address(slot)
        record = SlotRecord(at, prefix, slot).pack(sb.sector_bytes)
        head[at : at + sb.lock_block_bytes] = new_lock_block(sb, record, at)
        at = geometry.orphans_address(slot)
        head[at : at + METADATA_BLOCK_BYTES] = orphans.pack(
            {}, address=at, volume=sb.volume.bytes, slot=slot, generation=1
        )
    for at in range(0, len(head), _TABLE_WRITE_BYTES):
        yield at, bytes(head[at : at + _TABLE_WRITE_BYTES])
    # Records of an older volume in the ring bear its UUID and never count, so the ring stays as it is.
    for slot in range(sb.max_hosts):
        at = geometry.journal_address(slot)
        copies = (
            JournalHeader(slot, 0, 1, HEADER_BLOCKS, copy).pack(at, copy, sb.volume.bytes)
            for copy in range(HEADER_BLOCKS)
        )
        yield at, b"".join(copies)


def _group_locks(planned: FormatPlan, segment: Segment) -> Iterator[bytes]:
    geometry = planned.geometry
    for group in range(segment.first_group, segment.first_group + segment.group_count):
        yield _lock_block(planned, geometry.group_lock_address(group), Guards.RESOURCE_GROUP)


def _group_blocks(planned: FormatPlan, segment: Segment) -> Iterator[bytes]:
    geometry, volume = planned.geometry, planned.superblock.volume.bytes
    for index in range(segment.first_group, segment.first_group + segment.group_count):
        group = GroupBlock(index, geometry.group_blocks(index))
        if index == 0:
            group.used = group.meta = 1
            group.free_units = geometry.units_per_chunk - 1 - geometry.inode_units
        yield group.pack(geometry.group_block_address(index), volume)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    piece = bytearray()
    for block in blocks:
        piece += block
        if len(piece) >= _TABLE_WRITE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _first_chunk(planned: FormatPlan) -> bytes:
    """Block 0 of group 0: a chunk's head, the root directory's lock block, its inode."""
    sb, geometry = planned.superblock, planned.geometry
    address = geometry.group_data_start(0)
    head = ChunkHead(0, geometry.units_per_chunk, used=(1 << (1 + geometry.inode_units)) - 1, inodes=1 << 1)
    root = Inode(
        sb.root_inode, mode=S_IFDIR | 0o755, nlink=2, atime_ns=sb.created_ns, mtime_ns=sb.created_ns,
        ctime_ns=sb.created_ns, btime_ns=sb.created_ns, version=1, map_id=planned.root_map_id,
        directory_parent=sb.root_inode, seed=planned.root_seed,
    )  # fmt: skip
    lock = _lock_block(planned, geometry.inode_lock_address(sb.root_inode), Guards.INODE)
    chunk = head.pack(address, sb.volume.bytes) + lock + root.pack(sb.volume.bytes)
    return chunk.ljust(sb.block_bytes, b"\0")
