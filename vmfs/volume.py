"""Opening a volume: from devices to a verified superblock and the address space over its extents.

Nothing is written here. `open_volume` either returns a volume on which every address of the superblock lies within a
device that is there, or raises and leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmfs.devices.contract import Device, LockMethod
from vmfs.devices.extents import ExtentSet
from vmfs.devices.signatures import identify
from vmfs.errors import (
    CannotIdentify,
    DamagedBlock,
    DeviceGone,
    DeviceNotUsable,
    LockMethodUnusable,
    NotAVolume,
    UnsupportedFormat,
)
from vmfs.geometry import Geometry
from vmfs.ondisk import superblock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lockblock import VOLUME_PREFIX_BYTES
from vmfs.ondisk.superblock import PRIMARY_OFFSET, SECONDARY_OFFSET, SIGNATURE, Superblock, backup_offset


@dataclass(frozen=True, slots=True)
class Copy:
    """What lies where a superblock copy must lie: `superblock`, or why there is none (`problem`)."""

    offset: int
    superblock: Superblock | None
    problem: str = ""
    signed: bool = False
    """Our signature is there, whatever the rest is."""


@dataclass(frozen=True, slots=True)
class Volume:
    """An open volume. Immutable: a volume that grew is a new one over the same extents."""

    superblock: Superblock
    extents: ExtentSet
    geometry: Geometry
    read_only: bool = False

    @property
    def uuid(self) -> bytes:
        """The volume's UUID as metadata blocks carry it."""
        return self.superblock.volume.bytes

    @property
    def prefix(self) -> bytes:
        """The part of the UUID that lock and slot records carry."""
        return self.superblock.volume.bytes[:VOLUME_PREFIX_BYTES]

    def with_superblock(self, newer: Superblock) -> Volume:
        """The same volume after it grew; the caller has put new extents into the ExtentSet."""
        return Volume(newer, self.extents, Geometry(newer), self.read_only)

    def close(self) -> None:
        """Close the devices."""
        self.extents.close()


def read_copies(device: Device) -> list[Copy]:
    """Every superblock copy of a device, as far as its place can be known.

    Raises UnsupportedFormat when one intact copy is of a version or has features that this program does not know (it
    may be the newest), and DeviceError.
    """
    found = [_read_copy(device, PRIMARY_OFFSET), _read_copy(device, SECONDARY_OFFSET)]
    ends = {backup_offset(device.size_bytes)}  # where it lies unless the device grew or shrank since
    for copy in found:
        if copy.superblock is not None:
            ends.add(backup_offset(copy.superblock.extents[copy.superblock.extent_index].size_bytes))
    found.extend(_read_copy(device, end) for end in sorted(ends) if end > SECONDARY_OFFSET)
    return found


def _read_copy(device: Device, offset: int) -> Copy:
    if offset + METADATA_BLOCK_BYTES > device.size_bytes:
        return Copy(offset, None, "beyond the end of the device")
    block = device.read(offset, METADATA_BLOCK_BYTES)
    try:
        return Copy(offset, superblock.parse(block, offset, device.name), signed=True)
    except DamagedBlock as error:
        return Copy(offset, None, error.what, signed=block[: len(SIGNATURE)] == SIGNATURE)


def newest_copy(device: Device) -> Superblock | None:
    """The valid superblock copy of the highest generation on one device; None: there is none. Raises as read_copies."""
    return max((c.superblock for c in read_copies(device) if c.superblock), key=lambda sb: sb.generation, default=None)


def newest_superblock(device: Device) -> Superblock:
    """The valid superblock copy of the highest generation on one device.

    Raises:
        NotAVolume: no copy of ours is there; says what else is.
        DamagedBlock: there are copies, and none is intact.
        UnsupportedFormat: see `read_copies`.
    """
    copies = read_copies(device)
    valid = [c.superblock for c in copies if c.superblock is not None]
    if valid:
        return max(valid, key=lambda sb: sb.generation)
    for copy in copies:
        if copy.signed:
            raise DamagedBlock(copy.offset, f"{device.name}: no superblock copy is intact: {copy.problem}")
    try:
        found = identify(device)
    except CannotIdentify as error:
        raise NotAVolume(device.name, "no superblock is there") from error
    raise NotAVolume(device.name, f"found there: {found}" if found else "nothing known is there")


def open_volume(devices: Sequence[Device], *, read_only: bool = False) -> Volume:
    """Open the volume that lies on `devices` (all its extents, in any order). Takes them over when it returns.

    With `read_only` a lock method that this host cannot use, and unknown read-only-compatible features, do not matter.

    Raises:
        NotAVolume, DamagedBlock, UnsupportedFormat: as `newest_superblock`, for any of the devices.
        DeviceNotUsable: a device of another volume, the same extent twice, a device that is smaller than the extent
            that it must hold, or whose sectors are larger than the volume's.
        DeviceGone: an extent is missing.
        LockMethodUnusable: this host cannot compare and write as the volume's other hosts do.
    """
    if not devices:
        raise ValueError("a volume has at least one device")
    each = [newest_superblock(d) for d in devices]
    newest = max(each, key=lambda sb: sb.generation)
    placed: list[Device | None] = [None] * len(newest.extents)
    for device, own in zip(devices, each, strict=True):
        index = _place(device, own, newest)
        first = placed[index]
        if first is not None:
            raise DeviceNotUsable(device.name, f"is the same extent of the volume as {first.name}; give it once")
        placed[index] = device
    present: list[Device] = []
    for index, found in enumerate(placed):
        if found is None:
            extent = newest.extents[index]
            what = f"extent {index} ({extent.uuid}, {extent.size_bytes} bytes) of volume {newest.label}"
            raise DeviceGone(what, "none of the given devices holds it; give it too, or have it found (mount --scan)")
        present.append(found)
    geometry = Geometry(newest)
    geometry.check_inode(newest.root_inode)
    if not read_only:
        _check_writable(newest, present)
    return Volume(newest, ExtentSet(present), geometry, read_only)


def _place(device: Device, own: Superblock, newest: Superblock) -> int:
    """The index of the extent that `device` is. Raises DeviceNotUsable."""
    index = own.extent_index
    if own.volume != newest.volume:
        raise DeviceNotUsable(device.name, f"belongs to volume {own.label} ({own.volume}), not to {newest.volume}")
    if index >= len(newest.extents) or own.extents[index].uuid != newest.extents[index].uuid:
        raise DeviceNotUsable(device.name, f"is no extent of volume {newest.label} any more")
    needed = newest.extents[index].size_bytes
    if device.size_bytes < needed:
        raise DeviceNotUsable(
            device.name,
            f"is truncated: volume {newest.label} uses {needed} bytes of it and {device.size_bytes} are there; "
            "restore its size first",
        )
    if device.logical_block_bytes > newest.sector_bytes:
        raise DeviceNotUsable(
            device.name,
            f"has sectors of {device.logical_block_bytes} bytes; volume {newest.label} was formatted for sectors of "
            f"{newest.sector_bytes}",
        )
    return index


def _check_writable(sb: Superblock, devices: Sequence[Device]) -> None:
    """Raise unless this host may change the volume; choose its lock method on every device."""
    if unknown := sb.ro_compat & ~superblock.KNOWN_RO_COMPAT:
        detail = f"the volume uses unknown features {unknown:#x} and can be read only"
        raise UnsupportedFormat(devices[0].name, detail)
    if sb.lock_method == LockMethod.PAXOS:
        return  # it needs reads and writes alone
    for device in devices:
        usable = device.lock_methods()
        if sb.lock_method not in usable:
            names = ", ".join(m.name for m in usable) or "none"
            raise LockMethodUnusable(device.name, method_name(sb.lock_method), names)
    for device in devices:
        device.use_lock_method(LockMethod(sb.lock_method))


def method_name(number: int) -> str:
    """What messages call a lock method, known or not."""
    try:
        return LockMethod(number).name
    except ValueError:
        return f"method {number}"
