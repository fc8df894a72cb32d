"""What can go wrong between a command and the process of a running mount."""

from __future__ import annotations

import errno
import os

from vmfs.errors import EXIT_NOT_TRIED, VmfsError


class ControlError(VmfsError):
    """The root of this package's errors."""


# -- paths in a mount ------------------------------------------------------------------------------


class PathUnusable(ControlError):
    """A path that cannot be looked up: it is missing, or may not be entered."""

    exit_code = EXIT_NOT_TRIED

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {os.strerror(number)}; check the path")
        self.path = path
        self.errno = number


class MountDead(ControlError):
    """The process that served a mount has ended without unmounting: each access is ENOTCONN."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.ENOTCONN

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: the process that served this mount has died; clear it with `vmfsctl umount`")
        self.path = path


class NotTheSameMount(ControlError):
    """Two paths that must lie in one mount do not."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EXDEV

    def __init__(self, path: str, mountpoint: str) -> None:
        super().__init__(f"{path} is not in the volume mounted at {mountpoint}; give paths of one mount")
        self.path = path


class NotARegularFile(ControlError):
    exit_code = EXIT_NOT_TRIED
    errno = errno.EINVAL

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is not a regular file; give the path of one")
        self.path = path


class NameTaken(ControlError):
    """A new name that is there already; nothing is ever replaced."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EEXIST

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} exists already; choose another name or remove it first")
        self.path = path


class NotAName(ControlError):
    """A path that ends in no name for a new file."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EINVAL

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} ends in no name that a new file can have; give DIRECTORY/NAME")
        self.path = path


# -- the socket ------------------------------------------------------------------------------------


class ControlDirectoryUnsafe(ControlError):
    """The directory of the sockets is not ours alone, so that whoever owns it could pose as a mount."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EPERM

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(f"{directory} {reason}; remove it, it is made again with the right owner and mode")
        self.directory = directory


class ControlUnreachable(ControlError):
    """The mount is there, and its control socket does not answer."""

    def __init__(self, mountpoint: str, reason: str) -> None:
        super().__init__(f"the mount at {mountpoint} does not answer: {reason}; its log says more")
        self.mountpoint = mountpoint


class ControlForbidden(ControlError):
    """Only root and the user that runs a mount may give it orders."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EPERM

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} answers root only; run this with sudo")


class ControlTimeout(ControlError):
    """No answer in time; the operation may still be under way, and may yet succeed."""

    errno = errno.ETIMEDOUT

    def __init__(self, mountpoint: str, operation: str, seconds: float) -> None:
        super().__init__(
            f"the mount at {mountpoint} did not answer `{operation}` within {seconds:g} s; it may still do it: "
            "look at its log, and at `vmfsctl hosts` for the storage's health"
        )
        self.mountpoint = mountpoint


class ProtocolError(ControlError):
    """A message that is not what the protocol says, or is of another version of it."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EPROTO

    def __init__(self, reason: str) -> None:
        super().__init__(f"control protocol: {reason}")


class RemoteFailure(ControlError):
    """The mount's process tried, and reports an error of its own. `kind` is the name of its class there."""

    def __init__(self, kind: str, message: str, exit_code: int, number: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code
        self.errno = number


# -- unmounting ------------------------------------------------------------------------------------


class BusyMount(ControlError):
    """Files are in use below a mount point."""

    errno = errno.EBUSY

    def __init__(self, mountpoint: str, users: str) -> None:
        super().__init__(
            f"{mountpoint} is in use by {users}; end that, or let it go when it ends: "
            f"`vmfsctl umount --lazy {mountpoint}`"
        )
        self.mountpoint = mountpoint


class StillServing(ControlError):
    """The mount point is free, but the mount's process has not ended in time."""

    errno = errno.EBUSY

    def __init__(self, mountpoint: str, pid: int, seconds: float, why: str) -> None:
        super().__init__(f"{mountpoint} is unmounted, but its process {pid} has not ended after {seconds:g} s: {why}")
        self.pid = pid
