"""The few ways in which a file of the store reaches the disk: whole or not at all, and in a known order."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datarecovery.errors import from_os_error


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create a folder, durably, unless it is there. Raises OSError."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(folder.parent)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` bytes: a short write is continued. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        if done == 0:
            raise OSError(errno.EIO, "the file system wrote nothing")
        view = view[done:]
        offset += done


def publish_file(temporary: Path, final: Path, data: bytes) -> None:
    """Write `data` to `temporary`, flush it, and rename it to `final`; a crash leaves the old state or the new.

    Raises NoSpaceError or StoreIoError; the temporary file is removed then.
    """
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, final)
        sync_folder(final.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, f"writing {final}") from error


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The whole of a small file; more than `limit_bytes` raises ValueError. Raises OSError."""
    with open(path, "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"{path} is larger than {limit_bytes} bytes")
    return data


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive flock on a lock file (created when missing) and wait for it as long as it takes.

    flock belongs to the open file: it ends with the process however that dies, and excludes threads too.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, f"locking {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """The descriptor of a lock file now held exclusively, or None when another holds it. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd
