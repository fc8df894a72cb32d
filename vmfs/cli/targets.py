"""Which one a command was given: a mounted volume, or the devices of one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from vmfs.client import Mount
from vmfs.control.errors import PathUnusable
from vmfs.errors import DeviceNotUsable, NotAVmfsMount


def mount_or_none(targets: Sequence[str]) -> Mount | None:
    """The mount when the one target is a directory in it; None: the targets are devices.

    Raises NotAVmfsMount for a directory elsewhere, DeviceNotUsable for a directory among devices, PathUnusable for
    what is not there.
    """
    directories = [t for t in targets if "://" not in t and _is_directory(t)]
    if not directories:
        return None
    if len(targets) > 1:
        raise DeviceNotUsable(directories[0], "is a directory; give one mount point, or the devices of one volume")
    return Mount.for_path(directories[0])


def file_mount_or_none(target: str) -> Mount | None:
    """The mount that a file or directory lies in; None: it is a device (or a file that stands in for one).

    Raises NotAVmfsMount for a directory elsewhere, PathUnusable for what is not there.
    """
    if "://" in target:
        return None
    try:
        return Mount.for_path(target)
    except NotAVmfsMount:
        if _is_directory(target):
            raise
        return None


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        # A dead mount's directory cannot be looked at: `Mount.for_path` tells.
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return True
        raise PathUnusable(path, error.errno or errno.EIO) from None
    except ValueError:  # a NUL in the path
        raise PathUnusable(repr(path), errno.EINVAL) from None
