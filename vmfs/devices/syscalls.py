"""The Linux calls and ioctl numbers that devices need and Python's library lacks.

Sources: linux/stat.h (statx), linux/falloc.h, linux/fs.h (block ioctls), linux/loop.h. The ioctl numbers are those of
x86-64, arm64 and every other architecture with the generic ioctl layout.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
# struct statx: u32 stx_mask at 0; u32 stx_dio_mem_align at 0x98; u32 stx_dio_offset_align at 0x9c.
_STATX_MASK_AT = 0x00
_STATX_DIO_AT = 0x98

_BLKSSZGET = 0x1268
_BLKGETSIZE64 = 0x80081272
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class DirectAlignment:
    """What O_DIRECT wants on a file, in bytes; both 0 when the file does not support it."""

    memory_bytes: int
    offset_bytes: int


def direct_alignment(fd: int) -> DirectAlignment | None:
    """What statx(STATX_DIOALIGN, Linux 6.1) says of an open file; None where the file system does not say."""
    statx: Callable[..., int] | None = getattr(_libc, "statx", None)
    if statx is None:  # a C library without the wrapper
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    result = statx(ctypes.c_int(fd), b"", ctypes.c_int(_AT_EMPTY_PATH), ctypes.c_uint(_STATX_DIOALIGN), answer)
    if result != 0:
        return None
    (mask,) = struct.unpack_from("=I", answer, _STATX_MASK_AT)
    if not mask & _STATX_DIOALIGN:
        return None
    memory, offset = struct.unpack_from("=II", answer, _STATX_DIO_AT)
    return DirectAlignment(memory, offset)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_* flags. OSError as the kernel says."""
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def block_sector_bytes(fd: int) -> int:
    """The logical sector of an open block device."""
    answer = array.array("i", [0])
    fcntl.ioctl(fd, _BLKSSZGET, answer, True)
    return answer[0]


def block_size_bytes(fd: int) -> int:
    """The size of an open block device."""
    answer = array.array("Q", [0])
    fcntl.ioctl(fd, _BLKGETSIZE64, answer, True)
    return answer[0]


def block_discard(fd: int, offset: int, length: int) -> None:
    """Unmap a range of an open block device."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def block_zero_out(fd: int, offset: int, length: int) -> None:
    """Make a range of an open block device read as zeros; the kernel writes them where the device cannot."""
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))
