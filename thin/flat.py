"""The flat extent: a file whose bytes are the disk's. Reserving, zeroing and growing it, in place.

Growing follows one rule: **whatever lies below the file's size belongs to the guest, and is never written
here.** The hypervisor opens this file as raw and sees its size at once, so new space is reserved beyond the
end first (FALLOC_FL_KEEP_SIZE), and zeros are written at the end, in order, so that the size moves over what
is zeroed already. Cut short at any point, the file is a valid, partly grown one.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thin.errors import AllocationUnsupported, DiskBusy, FlatExtentUnusable, from_os_error

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all). What it raises ends the operation."""

ZERO_WRITE_BYTES = 1 << 20
"""Zeros are written in pieces of 1 MiB: the largest FUSE request, and far past where bandwidth levels off."""

DIRECT_ALIGN_BYTES = 4096
"""Offset and length of a direct write: the largest logical sector in use, and the page."""

BUFFERED_SYNC_BYTES = 64 << 20
"""Without direct I/O, dirty pages are written out this often, so that a disk's worth never fills the cache."""

FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
# os.posix_fallocate is no substitute: where the file system has no fallocate, glibc writes to every block.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def stat_flat(path: Path) -> os.stat_result | None:
    """The flat extent's stat, None when it is missing. Raises FlatExtentUnusable unless a regular file."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, str(path), "examine the flat extent") from error
    _require_regular(found, path)
    return found


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """An existing flat extent, open for writing. Raises FlatExtentUnusable, DiskBusy, FileOperationFailed."""
    if stat_flat(path) is None:  # looked at first: to open a device or a FIFO can have effects
        raise FlatExtentUnusable(str(path), "the flat extent is missing; restore it, or remove its descriptor")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, str(path), "open the flat extent for writing") from error
    try:
        _require_regular(os.fstat(fd), path)
        yield fd
    finally:
        os.close(fd)


def _require_regular(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise FlatExtentUnusable(str(path), f"the flat extent is {kind}; only a regular file is opened")


def reserve(fd: int, path: Path, start: int, end: int, *, keep_size: bool) -> bool:
    """Take space for bytes [start, end) from the file system without writing data.

    Returns False where the file system cannot do that. Raises NoSpace, FileOperationFailed.
    """
    while end > start:
        if _fallocate(fd, FALLOC_FL_KEEP_SIZE if keep_size else 0, start, end - start) == 0:
            break
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if number != errno.EINTR:  # a signal: its Python handler has run by now, and may have raised
            raise from_os_error(OSError(number, os.strerror(number)), str(path), "reserve space for the disk")
    return True


def grow_thin(fd: int, path: Path, new_size: int) -> None:
    """Set the size to `new_size` bytes; the growth is a hole. Raises FileOperationFailed, NoSpace."""
    if new_size < os.fstat(fd).st_size:
        raise DiskBusy(str(path), "another process, which has grown it in the meantime")
    try:
        os.ftruncate(fd, new_size)
    except OSError as error:
        raise from_os_error(error, str(path), f"grow it to {new_size} bytes") from error


def grow_lazy(fd: int, path: Path, reserve_from: int, new_size: int) -> None:
    """Reserve [reserve_from, new_size), then grow to `new_size`.

    Raises NoSpace with the size unchanged, AllocationUnsupported, FileOperationFailed.
    """
    _reserve_beyond_end(fd, path, reserve_from, new_size, required=True)
    grow_thin(fd, path, new_size)


def grow_eager(fd: int, path: Path, reserve_from: int, new_size: int, progress: Progress | None) -> None:
    """Reserve [reserve_from, new_size) where possible, then write zeros from the file's end to `new_size`.

    Raises NoSpace (with the size unchanged where the file system reserves), FileOperationFailed.
    """
    _reserve_beyond_end(fd, path, reserve_from, new_size, required=False)
    write_zeros(fd, path, os.fstat(fd).st_size, new_size, progress)


def _reserve_beyond_end(fd: int, path: Path, start: int, end: int, *, required: bool) -> None:
    try:
        if not reserve(fd, path, start, end, keep_size=True) and required:
            raise AllocationUnsupported(str(path))
    except BaseException:
        # Gives back what was reserved beyond the end before space ran out; to its own size: no shrinking.
        os.ftruncate(fd, os.fstat(fd).st_size)
        raise


def write_zeros(fd: int, path: Path, start: int, end: int, progress: Progress | None) -> None:
    """Write zeros over [start, end), past the page cache where the file system allows it.

    Raises NoSpace, FileOperationFailed, and whatever `progress` raises.
    """
    zeros = mmap.mmap(-1, ZERO_WRITE_BYTES)  # page-aligned, as direct I/O needs it
    direct = _open_direct(fd)
    offset = start
    unsynced = 0
    try:
        while offset < end:
            boundary = (offset // ZERO_WRITE_BYTES + 1) * ZERO_WRITE_BYTES
            length = min(boundary, end) - offset
            aligned = offset % DIRECT_ALIGN_BYTES == 0 and length % DIRECT_ALIGN_BYTES == 0
            with memoryview(zeros) as view, view[:length] as piece:
                written = _write_direct(direct, piece, offset) if direct is not None and aligned else 0
                if written == 0:
                    written = _write_buffered(fd, path, piece, offset)
                    unsynced += written
            offset += written
            if unsynced >= BUFFERED_SYNC_BYTES:
                sync(fd, path)
                unsynced = 0
            if progress is not None:
                progress(offset - start, end - start)
    finally:
        if direct is not None:
            os.close(direct)
        zeros.close()


def _write_direct(direct: int, piece: memoryview, offset: int) -> int:
    """Bytes written; 0 when the direct path did not do it, for whatever reason: the buffered one will say."""
    try:
        return os.pwrite(direct, piece, offset)
    except OSError:
        return 0


def _write_buffered(fd: int, path: Path, piece: memoryview, offset: int) -> int:
    try:
        return os.pwrite(fd, piece, offset)
    except OSError as error:
        raise from_os_error(error, str(path), "write zeros") from error


def sync(fd: int, path: Path) -> None:
    """fsync. Raises NoSpace, FileOperationFailed."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise from_os_error(error, str(path), "make it durable (fsync)") from error


def _open_direct(fd: int) -> int | None:
    """The same file through a descriptor of its own for direct I/O; None where that is refused (tmpfs)."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
