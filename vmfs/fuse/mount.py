"""mount(2) and umount2(2) of a FUSE file system, as root, without a helper program.

A mount appears as type `fuse.vmfs` with source `vmfs:LABEL` in /proc/mounts. The kernel checks permissions
(default_permissions) and lets every user in (allow_other). A mount point need not be empty, as with mount(8);
what it holds is hidden until the unmount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from dataclasses import dataclass

from vmfs.fuse.errors import (
    FuseMissing,
    MountBusy,
    MountPointInUse,
    MountPointMissing,
    MountPointNotADirectory,
    MountPointStale,
    MountRefused,
    NotMounted,
    NotRoot,
    UnmountRefused,
)
from vmfs.fuse.protocol import MAX_WRITE_BYTES

FUSE_DEVICE = "/dev/fuse"
FSTYPE = "fuse.vmfs"
MOUNTINFO = "/proc/self/mountinfo"
BDI_READ_AHEAD = "/sys/class/bdi/{device}/read_ahead_kb"
READ_AHEAD_KIB = 1024
"""Read-ahead of buffered readers: one full request. The kernel's 128 KiB cannot be raised at INIT, and reads a
file at a third of the speed (measured: 490 MiB/s, at 1024 KiB 1,340)."""

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.mount.restype = ctypes.c_int
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.umount2.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. Set-user-id programs and device nodes on a shared volume are off unless asked for."""

    read_only: bool = False
    no_exec: bool = False
    no_suid: bool = True
    no_dev: bool = True

    def flags(self) -> int:
        """mount(2)'s MS_* flags."""
        return (
            (MS_RDONLY if self.read_only else 0)
            | (MS_NOSUID if self.no_suid else 0)
            | (MS_NODEV if self.no_dev else 0)
            | (MS_NOEXEC if self.no_exec else 0)
        )


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mountinfo."""

    target: str
    fstype: str
    source: str
    device: str
    """major:minor, as in /sys/class/bdi."""


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as a backslash and three octal digits."""
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(p[:3], 8)) + p[3:] for p in parts[1:])


def list_mounts() -> list[Mounted]:
    """All mounts of this mount namespace, in the order of mounting."""
    mounts = []
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split()
            dash = fields.index("-", 6)
            source = _unescape(fields[dash + 2])
            mounts.append(Mounted(_unescape(fields[4]), fields[dash + 1], source, fields[2]))
    return mounts


def mounted_at(target: str) -> Mounted | None:
    """The topmost mount at exactly this (real) path, or None."""
    return next((m for m in reversed(list_mounts()) if m.target == target), None)


def check_target(target: str) -> str:
    """The mount point's real path. Raises the error that says what is wrong with it; `mount` asks this too."""
    try:
        path = os.path.realpath(target, strict=True)
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountPointStale(target) from None
        if error.errno == errno.ENOTDIR:
            raise MountPointNotADirectory(target) from None
        raise MountPointMissing(target) from None
    if not stat.S_ISDIR(mode):
        raise MountPointNotADirectory(target)
    present = mounted_at(path)
    if present is not None and present.fstype == FSTYPE:
        raise MountPointInUse(path, present.source)
    return path


def mount(target: str, label: str, options: MountOptions | None = None, *, device: str = FUSE_DEVICE) -> int:
    """Mount at `target`, return the connection's file descriptor: hand it to a `Session` at once.

    Until the session answers INIT, whoever touches the mount point waits. Raises NotRoot, FuseMissing,
    MountPointMissing, MountPointNotADirectory, MountPointInUse, MountPointStale, MountRefused; then nothing
    is mounted and nothing open.
    """
    options = options or MountOptions()
    if os.geteuid() != 0:
        raise NotRoot(f"mounting at {target}")
    path = check_target(target)
    source = f"vmfs:{label}"
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FuseMissing(device, error.strerror or str(error)) from None
    # rootmode wants the file type in octal; the permissions come with the first GETATTR.
    data = (
        f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,"
        f"allow_other,default_permissions,max_read={MAX_WRITE_BYTES}"
    )
    args = (os.fsencode(source), os.fsencode(path), FSTYPE.encode(), options.flags(), data.encode())
    if _libc.mount(*args) != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise MountRefused(source, path, os.strerror(number))
    return fd


def raise_read_ahead(target: str, kib: int = READ_AHEAD_KIB) -> bool:
    """Set the read-ahead of the mount at `target`, once its session has started (INIT resets it).

    False when it could not be set (a read-only /sys, as in containers): everything works, sequential buffered reads
    are slower. Raises NotMounted.
    """
    present = mounted_at(os.path.realpath(target))
    if present is None:
        raise NotMounted(target)
    try:
        with open(BDI_READ_AHEAD.format(device=present.device), "w", encoding="ascii") as knob:
            knob.write(str(kib))
    except OSError:
        return False
    return True


def unmount(target: str, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount. `lazy` takes the name away now and ends the mount when its last file is closed; `force` aborts
    every request under way with ECONNABORTED first: open files fail from then on.

    Works on a mount whose process is dead. Raises NotRoot, NotMounted, MountBusy, UnmountRefused.
    """
    if os.geteuid() != 0:
        raise NotRoot(f"unmounting {target}")
    # Not realpath: that would stat the mount point itself, which hangs or fails when its process is dead.
    parent, name = os.path.split(os.path.abspath(target))
    path = os.path.join(os.path.realpath(parent), name)
    if mounted_at(path) is None:
        path = os.path.realpath(path)
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
    if _libc.umount2(os.fsencode(path), flags) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        raise NotMounted(target)
    if number == errno.EBUSY:
        raise MountBusy(target)
    raise UnmountRefused(target, os.strerror(number))
