"""Block devices, files and LUNs as the storage of a volume, behind one contract (`contract.Device`).

`file`, `block`, `iscsi` and `sgio` (both on `scsi`) are the real ones; `ram` and `fault` serve simulation and tests
and pass the same conformance suite; `extents` joins several devices into one address space; `signatures` says what a
device already holds.
Stands on `vmfs.errors` and `vmfs.clock` alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmfs.devices.block import BlockDevice
from vmfs.devices.contract import Device, LockMethod
from vmfs.devices.file import FileDevice
from vmfs.devices.iscsi import IscsiDevice
from vmfs.devices.iscsi.address import is_iscsi
from vmfs.devices.sgio import ScsiBlockDevice, is_shareable_scsi
from vmfs.errors import DeviceNotUsable

__all__ = ["Device", "LockMethod", "open_device"]


def open_device(
    spec: str, *, read_only: bool = False, sector_bytes: int | None = None, credentials: Path | None = None
) -> Device:
    """Open `spec`: the path of a file or block device, or `iscsi://portal[:port]/target/lun`.

    `sector_bytes` (512 or 4096) overrides the detected sector; `credentials` is the file with iSCSI's secrets.
    DeviceNotUsable when it is missing, not permitted, of another kind, or cannot be shared safely; DeviceBusy when
    something else has claimed it; CredentialsRefused. Nothing on it is changed.
    """
    if is_iscsi(spec):
        return IscsiDevice.open(spec, read_only=read_only, sector_bytes=sector_bytes, credentials=credentials)
    if "://" in spec:
        scheme = spec.partition("://")[0]
        hint = "give iscsi://PORTAL/TARGET/LUN, or attach the LUN with the kernel's drivers and give its block device"
        raise DeviceNotUsable(spec, f"devices of the kind {scheme}:// are not known; {hint}")
    try:
        found = os.stat(spec)
        mode = found.st_mode
        if stat.S_ISREG(mode):
            return FileDevice.open(spec, read_only=read_only, sector_bytes=sector_bytes)
        if stat.S_ISBLK(mode):
            kind = ScsiBlockDevice if is_shareable_scsi(spec, found.st_rdev) else BlockDevice
            return kind.open(spec, read_only=read_only, sector_bytes=sector_bytes)
    except FileNotFoundError as error:
        raise DeviceNotUsable(spec, "there is no such file or block device") from error
    except PermissionError as error:
        raise DeviceNotUsable(spec, "permission denied: run as root or as a user who may open it") from error
    except OSError as error:
        raise DeviceNotUsable(spec, f"cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise DeviceNotUsable(repr(spec), "is no path") from error
    raise DeviceNotUsable(spec, f"is a {_kind(mode)}, not a file or a block device")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFCHR: "character device", stat.S_IFIFO: "FIFO"}
    return kinds.get(stat.S_IFMT(mode), "socket")
