"""What dead hosts' journals hold: the blocks that recovery will write, so that the volume is judged as it will be."""

from __future__ import annotations

from typing import Final

from vmfs.check.findings import Kind, Report
from vmfs.check.source import Source
from vmfs.core.replay import JournalPlace, images_to_write, read_records
from vmfs.devices.extents import split_address
from vmfs.errors import DamagedBlock, DeviceError, UnsupportedFormat
from vmfs.liveness import Slots
from vmfs.lockmethod import image_in
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import parse_lock
from vmfs.ondisk.slot import SlotRecord, SlotState
from vmfs.volume import Volume

_READ_BYTES: Final = 1 << 20


def overlay_journals(source: Source, slots: Slots, report: Report) -> None:
    """Lay the images that replay would write over the volume, for every slot that has not been given back."""
    volume = source.volume
    for record in slots.records:
        if record.state is SlotState.FREE:
            continue
        try:
            images = pending_images(volume, record)
        except (DamagedBlock, DeviceError) as error:
            message = f"the journal of slot {record.slot} (host {record.host_name}) cannot be replayed: {error}"
            report.add(Kind.JOURNAL_DAMAGED, message, address=volume.geometry.journal_address(record.slot))
            continue
        source.overlay.update(images)
        report.counts.journal_blocks_pending += len(images)
        report.notes.append(
            f"host {record.host_name} (slot {record.slot}) did not unmount: its journal holds {len(images)} blocks "
            "that recovery will write; the volume was checked as it will be then"
        )


def pending_images(volume: Volume, record: SlotRecord) -> dict[int, bytes]:
    """What replay of that slot's journal would write, by address. Raises DamagedBlock, DeviceError."""
    sb, geometry = volume.superblock, volume.geometry
    place = JournalPlace(
        geometry.journal_address(record.slot), sb.journal_bytes, volume.uuid, record.slot, record.incarnation
    )
    end = place.address + place.size_bytes
    data = b"".join(
        volume.extents.read(at, min(_READ_BYTES, end - at)) for at in range(place.address, end, _READ_BYTES)
    )
    images = images_to_write(read_records(data, place), lambda lock, version: _holds(volume, record, lock, version))
    return {image.address: image.data for image in images}


def _holds(volume: Volume, record: SlotRecord, lock: int, version: int) -> bool:
    """Whether the slot's incarnation holds that lock at that version (rule R5)."""
    if lock == record.address:
        return version == record.incarnation
    sb = volume.superblock
    extent, offset = split_address(lock)
    inside = extent < len(sb.extents) and offset + sb.lock_block_bytes <= sb.extents[extent].size_bytes
    if not inside or offset % METADATA_BLOCK_BYTES:
        return False
    try:
        held = parse_lock(image_in(sb, volume.extents.read(lock, sb.lock_block_bytes), lock), lock, volume.prefix)
    except (DamagedBlock, UnsupportedFormat):
        return False
    return held.version == version and record.holder in held.all_holders
