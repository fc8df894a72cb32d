"""The data plane's I/O: between page-aligned memory and volume addresses, past every layer that costs time."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from errno import EBADE, ENOSPC
from typing import Final

from vmfs.core.flights import Flights
from vmfs.devices.extents import ExtentSet
from vmfs.devices.reservations import REFUSED
from vmfs.errors import DeviceError, ReservationConflict

_EXTENT_SHIFT: Final = 56
_EXTENTS_ADDRESSABLE: Final = 256  # what eight bits of an address can name
_OFFSET_MASK: Final = (1 << _EXTENT_SHIFT) - 1


class BlockIO:
    """Reads and writes at volume addresses; does not look at the lease (its callers do, before and after)."""

    def __init__(self, extents: ExtentSet, flights: Flights | None = None) -> None:
        self._extents = extents
        self._under_way = (flights or Flights()).under_way
        # -1: the device has no descriptor (a fake), go through its methods.
        self._fds = [-1 if (fd := extents.device(i).fileno()) is None else fd for i in range(len(extents))]
        # A write past the end of a file that was cut short would make it long again, with zeros where data was.
        self._least_sizes = [
            extents.device(i).size_bytes if fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode) else 0
            for i, fd in enumerate(self._fds)
        ]
        # An address in an extent that is not known (that of a lost block, see `vmfs.ondisk.node`) raises DeviceGone.
        unknown = _EXTENTS_ADDRESSABLE - len(self._fds)
        self._fds += [-1] * unknown
        self._least_sizes += [0] * unknown

    def read(self, address: int, buf: memoryview) -> None:
        """Fill `buf` (sector-aligned memory and length) from a sector-aligned address. Raises DeviceError."""
        fd = self._fds[address >> _EXTENT_SHIFT]
        if fd < 0:
            self._extents.read_into(address, buf)
            return
        try:
            count = os.preadv(fd, (buf,), address & _OFFSET_MASK)
        except OSError as error:
            raise self._failed("read", address, buf, error) from error
        if count != len(buf):
            raise self._failed("read", address, buf, "the device ends before it (was it truncated?)")

    def write(self, address: int, buf: memoryview) -> None:
        """Write `buf` (sector-aligned memory and length) to a sector-aligned address. Raises DeviceError."""
        extent = address >> _EXTENT_SHIFT
        fd, least = self._fds[extent], self._least_sizes[extent]
        thread = threading.get_ident()
        self._under_way[thread] = None
        try:
            gate = self._extents.gate
            if fd < 0:
                self._extents.write(address, buf)
            elif gate is None:
                self._write_to(fd, least, address, buf)
            else:
                gate.run(lambda: self._write_to(fd, least, address, buf), self._extents.device(extent).name)
        finally:
            self._under_way.pop(thread, None)

    def _write_to(self, fd: int, least: int, address: int, buf: memoryview) -> None:
        offset = address & _OFFSET_MASK
        try:
            if least and (size := os.lseek(fd, 0, os.SEEK_END)) < least and size < offset + len(buf):
                raise self._failed("write", address, buf, f"the device has shrunk to {size} bytes")
            count = os.pwritev(fd, (buf,), offset)
        except OSError as error:
            raise self._failed("write", address, buf, error) from error
        if count != len(buf):
            raise self._failed("write", address, buf, "it went out short")

    def _failed(self, operation: str, address: int, buf: memoryview, why: OSError | str) -> DeviceError:
        name = self._extents.device(address >> _EXTENT_SHIFT).name
        # EBADE is how Linux hands a RESERVATION CONFLICT on.
        if isinstance(why, OSError) and why.errno == EBADE:
            return ReservationConflict(name, operation, address & _OFFSET_MASK, len(buf), REFUSED)
        reason = why if isinstance(why, str) else why.strerror or str(why)
        failed = DeviceError(name, operation, address & _OFFSET_MASK, len(buf), reason)
        if isinstance(why, OSError) and why.errno == ENOSPC:
            failed.errno = ENOSPC  # a thin LUN is full: a hypervisor pauses its guest at this one, and goes on later
        return failed


class Scratch(threading.local):
    """Page-aligned memory of each thread's own, grown on demand and kept."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 1 << 20))

    def take(self, size: int) -> memoryview:
        """`size` bytes, valid until this thread's next call. Content is whatever was there."""
        if size > len(self._memory):
            self._memory = memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))
        return self._memory[:size]
