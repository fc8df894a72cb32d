"""The data plane's I/O: between page-aligned memory and volume addresses, past every layer that costs time."""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

from vmfs.devices.extents import ExtentSet
from vmfs.errors import DeviceError

_EXTENT_SHIFT: Final = 56
_OFFSET_MASK: Final = (1 << _EXTENT_SHIFT) - 1


class BlockIO:
    """Reads and writes at volume addresses; does not look at the lease (its callers do, before and after)."""

    def __init__(self, extents: ExtentSet) -> None:
        self._extents = extents
        # -1: the device has no descriptor (a fake), go through its methods.
        self._fds = [-1 if (fd := extents.device(i).fileno()) is None else fd for i in range(len(extents))]

    def read(self, address: int, buf: memoryview) -> None:
        """Fill `buf` (sector-aligned memory and length) from a sector-aligned address. Raises DeviceError, OSError."""
        fd = self._fds[address >> _EXTENT_SHIFT]
        if fd < 0:
            self._extents.read_into(address, buf)
        elif os.preadv(fd, (buf,), address & _OFFSET_MASK) != len(buf):
            raise DeviceError(self._extents.device(address >> _EXTENT_SHIFT).name, "read", address & _OFFSET_MASK,
                              len(buf), "it came back short")  # fmt: skip

    def write(self, address: int, buf: memoryview) -> None:
        """Write `buf` (sector-aligned memory and length) to a sector-aligned address. Raises DeviceError, OSError."""
        fd = self._fds[address >> _EXTENT_SHIFT]
        if fd < 0:
            self._extents.write(address, buf)
        elif os.pwritev(fd, (buf,), address & _OFFSET_MASK) != len(buf):
            raise DeviceError(self._extents.device(address >> _EXTENT_SHIFT).name, "write", address & _OFFSET_MASK,
                              len(buf), "it went out short")  # fmt: skip


class Scratch(threading.local):
    """Page-aligned memory of each thread's own, grown on demand and kept."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 1 << 20))

    def take(self, size: int) -> memoryview:
        """`size` bytes, valid until this thread's next call. Content is whatever was there."""
        if size > len(self._memory):
            self._memory = memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))
        return self._memory[:size]
