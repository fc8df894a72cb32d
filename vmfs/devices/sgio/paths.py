"""By which nodes a block device's LUN is reached with SCSI commands, from sysfs.

A disk `sdX` is one nexus: this host's port, the target's port, the LUN. A multipath map (device-mapper, UUID "mpath-")
stands for several disks, its slaves. A partition of a disk begins somewhere on it, which commands must add to their
addresses. Other maps (LVM, partitions of multipath maps) move addresses about in ways that nobody tells: SCSI commands
to them would go to the wrong blocks, and they are not taken for SCSI disks.

Disks that no other machine can reach are left alone too: ATA and USB. They have none of what is looked for here, and
some bridges to USB do not bear the question.

Sources: Linux Documentation/ABI/testing/sysfs-block, sysfs-block-dm and sysfs-class-scsi_device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmfs.devices.loop import BackingFile, find_bottom
from vmfs.errors import DeviceNotUsable

_MULTIPATH_PREFIX = "mpath-"
_TYPE_DISK = "0"


@dataclass(frozen=True, slots=True)
class ScsiPaths:
    """The nodes of a LUN's paths, at least one. Byte 0 of the device asked about is byte `offset` of the LUN."""

    nodes: tuple[str, ...]
    offset: int


def find_paths(spec: str, device_number: int) -> ScsiPaths | None:
    """The paths of the block device with this `st_rdev`; None: it is no SCSI disk that machines can share.

    Raises DeviceNotUsable, which names `spec`, for a multipath map without paths.
    """
    bottom = find_bottom(spec, device_number, direct_io=False)
    if isinstance(bottom, BackingFile):
        return None
    folder = Path(os.path.realpath(f"/sys/dev/block/{bottom.major}:{bottom.minor}"))
    if _read(folder / "dm" / "uuid").startswith(_MULTIPATH_PREFIX):
        slaves = sorted((folder / "slaves").iterdir())
        if not slaves:
            raise DeviceNotUsable(spec, "this multipath map has no paths now")
        if not all(_is_shareable(Path(os.path.realpath(slave))) for slave in slaves):
            return None
        return ScsiPaths(tuple(_node(slave) for slave in slaves), bottom.offset)
    return ScsiPaths((_node(folder),), bottom.offset) if _is_shareable(folder) else None


def is_shareable_scsi(spec: str, device_number: int) -> bool:
    """Whether the block device is a SCSI disk (or paths to one) that other machines may have too."""
    return find_paths(spec, device_number) is not None


def _is_shareable(folder: Path) -> bool:
    """`folder`: a whole disk's in sysfs."""
    device = folder / "device"
    if os.path.basename(os.path.realpath(device / "subsystem")) != "scsi" or _read(device / "type") != _TYPE_DISK:
        return False
    return _read(device / "vendor") != "ATA" and "/usb" not in str(folder)


def _node(folder: Path) -> str:
    # The kernel writes a slash in a name as an exclamation mark.
    return "/dev/" + folder.name.replace("!", "/")


def _read(path: Path) -> str:
    """A sysfs file's text; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
