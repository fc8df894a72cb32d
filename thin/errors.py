"""Every error that `thin` raises: one class each, with the exit code and the errno it becomes.

A message names the object and says what to do.

Exit codes: 1: the operation was tried and failed; 2: it could not be tried (a wrong argument, a damaged or
unsupported descriptor), and nothing was changed.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_NOT_TRIED = 2


class ThinError(Exception):
    """The root of them all. Raise a subclass; catch this only where errors become exit codes or errnos."""

    exit_code: int = EXIT_FAILED
    errno: int = _errno.EIO


# -- arguments -------------------------------------------------------------------------------------


class SizeInvalid(ThinError):
    """A size that is not a number of bytes that a disk can have."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EINVAL


class NameInvalid(ThinError):
    """A disk name that a descriptor cannot be given."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EINVAL

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path!a}: {reason}")
        self.path = path


class DiskExists(ThinError):
    """A file of the new disk is there already; nothing is ever overwritten."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EEXIST

    def __init__(self, path: str, advice: str) -> None:
        super().__init__(f"{path} exists already; {advice}")
        self.path = path


class ShrinkRefused(ThinError):
    """A disk never shrinks: what lies beyond the new end would be lost."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EINVAL

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


# -- descriptors -----------------------------------------------------------------------------------


class DescriptorInvalid(ThinError):
    """The text is not a descriptor, is damaged, or says something unsafe."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EINVAL

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: not a valid VMDK descriptor: {reason}")
        self.name = name
        self.reason = reason


class Unsupported(ThinError):
    """A valid descriptor of a kind of disk that this version cannot handle."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EOPNOTSUPP

    def __init__(self, name: str, what: str, supported: Iterable[str]) -> None:
        super().__init__(f"{name}: {what} is not supported; supported: {', '.join(supported)}")
        self.name = name


class NotADescriptor(ThinError):
    """The operation needs a disk's descriptor and was given something else."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EINVAL

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is not a disk descriptor; give the NAME.vmdk that belongs to it")
        self.path = path


# -- files -----------------------------------------------------------------------------------------


class FlatExtentUnusable(ThinError):
    """The flat extent is missing, is no regular file, or is smaller than its descriptor says."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EIO

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class DiskBusy(ThinError):
    """Another process or another host holds the disk in a way that excludes this operation."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EBUSY

    def __init__(self, path: str, by: str) -> None:
        super().__init__(f"{path} is in use by {by}; try again when that has ended, or do it there")
        self.path = path


class AllocationUnsupported(ThinError):
    """The file system cannot reserve space for a file (no fallocate)."""

    exit_code = EXIT_NOT_TRIED
    errno = _errno.EOPNOTSUPP

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path}: this file system cannot reserve space (no fallocate); "
            "use a thin or an eager-zeroed disk, or another file system"
        )
        self.path = path


class NoSpace(ThinError):
    """The file system is full, or a quota is used up."""

    errno = _errno.ENOSPC

    def __init__(self, path: str, action: str) -> None:
        super().__init__(f"{path}: cannot {action}: no space is left; free some, or use a thin disk")
        self.path = path


class FileOperationFailed(ThinError):
    """The operating system refused or failed an operation on a file; `errno` is the system's own."""

    def __init__(self, path: str, action: str, errno: int, reason: str) -> None:
        super().__init__(f"{path}: cannot {action}: {reason}")
        self.path = path
        self.errno = errno


def from_os_error(error: OSError, path: str, action: str) -> ThinError:
    """The error of this package that says what `error` means for `path` while doing `action`."""
    number = error.errno if error.errno is not None else _errno.EIO
    if number in (_errno.ENOSPC, _errno.EDQUOT):
        return NoSpace(path, action)
    if number in (_errno.EBUSY, _errno.ETXTBSY):
        return DiskBusy(path, "another host or process")
    reason = error.strerror or str(error)
    if number == _errno.EFBIG:
        reason = "the file system allows no file of that size; choose a smaller size or another file system"
    return FileOperationFailed(path, action, number, reason)
