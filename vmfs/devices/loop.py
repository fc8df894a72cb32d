"""Where the bytes of a block device really lie, so that all who reach them by different nodes lock the same inode.

Open-file-description locks are kept on inodes. Two loop devices over one file, a loop device and its file, and two
nodes of one device are different inodes: locks on them do not exclude each other. So a loop device is followed to
its backing file (through partitions and loops over loops), and any other device to its major:minor.

Sources: Linux Documentation/ABI/testing/sysfs-block, linux/loop.h, drivers/block/loop.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from vmfs.errors import DeviceNotUsable

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_DIRECT_IO = 0x4C08
_LOOP_INFO64_BYTES = 232
_LOOP_INFO64_HEAD = struct.Struct("=QQ")  # lo_device, lo_inode: st_dev and st_ino of the backing file
_SYSFS_START_UNIT_BYTES = 512  # sysfs counts partitions in these, whatever the logical sector

# A loop over a loop over a ... : more than anyone stacks, few enough to end a walk through a corrupt sysfs.
_DEPTH_MAX = 8


@dataclass(frozen=True, slots=True)
class BackingFile:
    """The regular file below a loop device; byte 0 of the device is byte `offset` of it."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """A whole block device with no file below it; byte 0 of the device asked about is byte `offset` of it."""

    major: int
    minor: int
    offset: int


def find_bottom(spec: str, device_number: int, *, direct_io: bool) -> BackingFile | LocalDisk:
    """Follow the block device of this `st_rdev` down to the file or disk that holds its bytes.

    With `direct_io`, direct I/O is switched on for each loop on the way: without it two loops over one file serve
    stale data to each other. DeviceNotUsable where that, or the backing file, cannot be had; it names `spec`.
    """
    offset = 0
    for _ in range(_DEPTH_MAX):
        folder = Path(os.path.realpath(f"/sys/dev/block/{os.major(device_number)}:{os.minor(device_number)}"))
        if (folder / "partition").exists():
            offset += int((folder / "start").read_text()) * _SYSFS_START_UNIT_BYTES
            folder = folder.parent
            major, minor = (folder / "dev").read_text().split(":")
            device_number = os.makedev(int(major), int(minor))
        loop = folder / "loop"
        if not loop.exists():
            return LocalDisk(os.major(device_number), os.minor(device_number), offset)
        offset += int((loop / "offset").read_text())
        path = (loop / "backing_file").read_text().removesuffix("\n")
        found = _check_loop(spec, f"/dev/{folder.name}", loop, path, direct_io=direct_io)
        if stat.S_ISREG(found.st_mode):
            return BackingFile(path, offset)
        device_number = found.st_rdev
    raise DeviceNotUsable(spec, f"more than {_DEPTH_MAX} loop devices over each other")


def _check_loop(spec: str, node: str, loop: Path, path: str, *, direct_io: bool) -> os.stat_result:
    """Make sure that `path` is the file below the loop (a path can be renamed or covered by a mount)."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DeviceNotUsable(spec, f"the file below it ({path}), on which hosts lock, cannot be found") from error
    fd = os.open(node, os.O_RDONLY)
    try:
        info = bytearray(_LOOP_INFO64_BYTES)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, info, True)
        if _LOOP_INFO64_HEAD.unpack_from(info) != (found.st_dev, found.st_ino):
            reason = f"the file below it is no longer at {path}; hosts lock on that file: detach and attach it again"
            raise DeviceNotUsable(spec, reason)
        if direct_io and (loop / "dio").read_text().strip() != "1":
            fcntl.ioctl(fd, _LOOP_SET_DIRECT_IO, 1)
    except OSError as error:
        why = "its file system refuses" if error.errno == errno.EINVAL else error.strerror
        reason = f"direct I/O of {node} cannot be switched on ({why}): hosts would read each other's stale data"
        raise DeviceNotUsable(spec, reason) from error
    finally:
        os.close(fd)
    return found
