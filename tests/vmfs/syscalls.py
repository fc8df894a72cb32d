"""System calls that Python's `os` does not have."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
_AT_FDCWD = -100
_MAX_HANDLE_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags))
    _checked(done, f"renameat2 {old} {new} {flags}")


def name_to_handle(path: Path) -> bytes:
    """The file handle of a path, as an NFS server takes it: struct file_handle."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", _MAX_HANDLE_BYTES, 0), 8 + _MAX_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    done = _libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount_id), 0)
    _checked(done, f"name_to_handle_at {path}")
    (length,) = struct.unpack_from("I", handle)
    return handle.raw[: 8 + length]


def open_by_handle(mount: Path, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file that a handle names, on the file system mounted at `mount`."""
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _checked(_libc.open_by_handle_at(root, handle, flags), "open_by_handle_at")
    finally:
        os.close(root)
