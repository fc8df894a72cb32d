"""Every error that Data Recovery raises on purpose: one class each, with the exit code of the command line.

Exit codes: 0 success; 1 `verify` found damage; 2 wrong usage; 3 the store is not there or cannot be used; 4 no such
restore point; 5 stored data is damaged; 6 a disk cannot be read; 7 the target is in the way; 8 no space left;
9 busy; 10 made by a newer version; 11 other input/output error; 130 interrupted.
`errno` is what the same failure is called where only a number can be given.
"""

from __future__ import annotations

import errno as _errno

EXIT_DAMAGE_FOUND = 1
EXIT_INTERRUPTED = 130


class DataRecoveryError(Exception):
    """Base of all errors of this package; its message names the object and says what to do."""

    exit_code: int = 11
    errno: int = _errno.EIO


class StoreNotFoundError(DataRecoveryError):
    """There is no store at the path."""

    exit_code = 3
    errno = _errno.ENOENT


class StoreExistsError(DataRecoveryError):
    """`store create` met a folder that holds something already."""

    exit_code = 3
    errno = _errno.EEXIST


class StoreUnusableError(DataRecoveryError):
    """The store's configuration is damaged or belongs to another store."""

    exit_code = 3


class UnsupportedFeatureError(DataRecoveryError):
    """The store, or a file of it, uses a version or a feature that this program does not know."""

    exit_code = 10
    errno = _errno.EOPNOTSUPP


class PointNotFoundError(DataRecoveryError):
    """No restore point, or more than one, answers to what was asked for."""

    exit_code = 4
    errno = _errno.ENOENT


class DamagedError(DataRecoveryError):
    """Stored data is damaged, cut short or missing."""

    exit_code = 5


class DamagedRecordError(DamagedError):
    """A chunk or a page of chunk ids cannot be read back as it was written."""


class DamagedPackError(DamagedError):
    """A pack file's header or footer is damaged, or the file is cut short or missing."""


class DamagedManifestError(DamagedError):
    """A restore point's manifest cannot be trusted."""


class DamagedIndexError(DamagedError):
    """The index is damaged or incomplete; it can be rebuilt from the packs."""


class SourceError(DataRecoveryError):
    """A disk cannot be opened or read, or is not what it should be."""

    exit_code = 6


class TargetExistsError(DataRecoveryError):
    """A restore would overwrite something."""

    exit_code = 7
    errno = _errno.EEXIST


class NoSpaceError(DataRecoveryError):
    """The store's or the target's file system is full, or a size limit was met."""

    exit_code = 8
    errno = _errno.ENOSPC


class BusyError(DataRecoveryError):
    """Another process holds what is needed."""

    exit_code = 9
    errno = _errno.EBUSY


class UsageError(DataRecoveryError):
    """The request itself makes no sense."""

    exit_code = 2
    errno = _errno.EINVAL


class StoreIoError(DataRecoveryError):
    """The operating system refused a read or write of a store or target file."""

    exit_code = 11


# What the system answers when a file cannot grow: a full file system, a quota, a process's or file system's size limit.
_FULL = frozenset({_errno.ENOSPC, _errno.EDQUOT, _errno.EFBIG})


def from_os_error(error: OSError, doing: str) -> DataRecoveryError:
    """The error of this package for what the operating system answered while `doing` something to a named file."""
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return NoSpaceError(f"{doing}: {why}; free some space and try again")
    converted = StoreIoError(f"{doing}: {why}")
    converted.errno = error.errno or _errno.EIO
    return converted
