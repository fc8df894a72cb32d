"""Reading, locking and replacing a descriptor file.

Crash rule: the new text goes to `.NAME.vmdk.tmp` in the same directory, is fsynced, renamed over NAME.vmdk,
and the directory is fsynced. So at any moment NAME.vmdk is the old text or the new one, whole. A `.tmp` file
that a crash left is removed by the next write; it is never read.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thin.descriptor import MAX_DESCRIPTOR_BYTES, Descriptor, parse
from thin.errors import DescriptorInvalid, DiskBusy, from_os_error

NEW_FILE_MODE = 0o600
"""A disk's content is its owner's; who else shall read it is the administrator's to say."""

# No controlling terminal, no waiting for a FIFO's other end, whatever the path turns out to be.
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def read(path: Path) -> Descriptor:
    """Read and parse the descriptor at `path`. Raises DescriptorInvalid, Unsupported, FileOperationFailed."""
    fd = _open(path, os.O_RDONLY)
    try:
        return _read(fd, path)
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path) -> Iterator[Descriptor]:
    """The descriptor at `path`, which no other process of this host changes in the `with` block.

    The lock is an flock on the descriptor file; it excludes others who call this function.
    Raises DiskBusy when another process holds it, and what `read` raises.
    """
    # For writing, although nothing is written through it: on a cluster file system that takes the file's lock
    # against the other hosts, and NFS grants an exclusive flock to no other descriptor.
    fd = _open(path, os.O_RDWR)
    try:
        _lock(fd, path)
        yield _read(fd, path)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, current = os.fstat(fd), os.stat(path)
    except BlockingIOError as error:
        raise DiskBusy(str(path), "another command that changes it") from error
    except OSError as error:
        raise from_os_error(error, str(path), "lock the descriptor") from error
    if (mine.st_dev, mine.st_ino) != (current.st_dev, current.st_ino):
        # Replaced between our open and our lock: the lock is on a file that is no more.
        raise DiskBusy(str(path), "another command that has just changed it")


def _open(path: Path, mode: int) -> int:
    try:
        return os.open(path, mode | _OPEN_FLAGS)
    except OSError as error:
        raise from_os_error(error, str(path), "open the descriptor") from error


def _read(fd: int, path: Path) -> Descriptor:
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DescriptorInvalid(str(path), "it is not a regular file")
        data = b""
        # One byte more than allowed tells "too large" from "exactly full".
        while piece := os.pread(fd, MAX_DESCRIPTOR_BYTES + 1 - len(data), len(data)):
            data += piece
    except OSError as error:
        raise from_os_error(error, str(path), "read the descriptor") from error
    return parse(data, str(path))


def write(path: Path, descriptor: Descriptor, like: os.stat_result | None = None) -> None:
    """Put `descriptor` at `path`, atomically and durably, with the owner and mode of `like` where given.

    The caller excludes other writers. On failure `path` is unchanged and nothing is left behind.
    Raises DescriptorInvalid, NoSpace, FileOperationFailed.
    """
    data = descriptor.to_bytes()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a crash: never complete, never read
        try:
            _write_new(temporary, data, like)
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
    except OSError as error:
        raise from_os_error(error, str(path), "write the descriptor") from error


def _write_new(path: Path, data: bytes, like: os.stat_result | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE_MODE)
    try:
        if like is not None:
            new = os.fstat(fd)
            if (new.st_uid, new.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, stat.S_IMODE(like.st_mode))
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
