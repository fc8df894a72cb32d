"""What files and block devices have in common: exact, aligned O_DIRECT transfers and compare-and-write under a lock.

O_DIRECT because another host writes the same sectors: what this kernel has cached of them is worth nothing.
"""

from __future__ import annotations

import abc
import ctypes
import errno
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vmfs.devices.contract import LockMethod, ReadableBuffer, check_compare_and_write, check_range
from vmfs.devices.ofdlock import OfdRangeLock
from vmfs.devices.reservations import REFUSED, Reservations
from vmfs.errors import (
    DeviceError,
    DeviceGone,
    DeviceNotUsable,
    DeviceReadOnly,
    LockMethodUnusable,
    ReservationConflict,
)

SECTOR_BYTES_ALLOWED = (512, 4096)  # the two that disks have; the on-disk format is laid out for both
BOUNCE_BYTES = 1 << 20  # one FUSE request of the largest size; kept by each thread that transfers unaligned memory

_GONE = (errno.ENODEV, errno.ENXIO)
_log = logging.getLogger(__name__)


class _Bounce(threading.local):
    """One page-aligned buffer for each thread, made at its first use and gone with the thread."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, BOUNCE_BYTES))


_bounce = _Bounce()


def choose_sector_bytes(spec: str, smallest: int, wanted: int | None) -> int:
    """The logical sector to use where the storage takes `smallest`. DeviceNotUsable when the two do not fit."""
    found = next((size for size in SECTOR_BYTES_ALLOWED if size >= smallest), None)
    if found is None:
        raise DeviceNotUsable(spec, f"its sectors of {smallest} bytes are larger than the format can use (4096)")
    if wanted is None:
        return found
    if wanted not in SECTOR_BYTES_ALLOWED or wanted < found:
        raise DeviceNotUsable(spec, f"cannot be used with sectors of {wanted} bytes: it takes {found} or 4096")
    return wanted


class DirectDevice(abc.ABC):
    """An open O_DIRECT descriptor as a `contract.Device`.

    Thread-safe without a lock of its own: transfers carry their offset, and `compare_and_write` is excluded by
    `OfdRangeLock`. After `close` every call raises DeviceGone (the descriptor's number may be another file's by
    then).
    """

    def __init__(
        self,
        name: str,
        fd: int,
        *,
        logical_block_bytes: int,
        read_only: bool,
        method: LockMethod,
        locks: Mapping[LockMethod, OfdRangeLock],
    ) -> None:
        """Take over `fd` and `locks`. `method` is what the device locks by; `locks` is empty when read-only."""
        self._name = name
        self._fd = fd
        self._logical_block_bytes = logical_block_bytes
        self._read_only = read_only
        self._methods = (method,)
        self._method = method
        self._locks = dict(locks)
        self._size_bytes = 0
        self.refresh_size()

    @abc.abstractmethod
    def _measure_bytes(self, fd: int) -> int:
        """The size now. OSError as the kernel says."""

    @abc.abstractmethod
    def _discard(self, fd: int, offset: int, length: int) -> None:
        """Unmap. OSError as the kernel says."""

    @abc.abstractmethod
    def _zero(self, fd: int, offset: int, length: int) -> None:
        """Zero by the storage's own means. OSError as the kernel says."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def logical_block_bytes(self) -> int:
        return self._logical_block_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    def refresh_size(self) -> int:
        with self._named("size query", 0, 0):
            measured = self._measure_bytes(self._live_fd())
        self._size_bytes = measured - measured % self._logical_block_bytes
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        parts = []
        for at in range(offset, offset + length, BOUNCE_BYTES):
            view = _bounce.memory[: min(BOUNCE_BYTES, offset + length - at)]
            self._transfer_in(at, view)
            parts.append(bytes(view))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        check_range(self, offset, len(view))
        if self._aligned(view):
            self._transfer_in(offset, view)
            return
        for start in range(0, len(view), BOUNCE_BYTES):
            part = view[start : start + BOUNCE_BYTES]
            bounce = _bounce.memory[: len(part)]
            self._transfer_in(offset + start, bounce)
            part[:] = bounce

    def write(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        self._check_change("write", offset, len(view))
        if self._aligned(view):
            self._transfer_out(offset, view)
            return
        for start in range(0, len(view), BOUNCE_BYTES):
            part = view[start : start + BOUNCE_BYTES]
            bounce = _bounce.memory[: len(part)]
            bounce[:] = part
            self._transfer_out(offset + start, bounce)

    def flush(self) -> None:
        with self._named("flush", 0, self._size_bytes):
            os.fdatasync(self._live_fd())

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        check_compare_and_write(self, offset, old, new)
        if self._read_only:
            raise DeviceReadOnly(self._name, "compare_and_write")
        self._live_fd()
        with self._named("compare_and_write", offset, len(new)), self._locks[self._method].hold(offset, len(new)):
            if self.read(offset, len(old)) != old:
                return False
            self.write(offset, new)
            return True

    def discard(self, offset: int, length: int) -> bool:
        self._check_change("discard", offset, length)
        if length == 0:
            return True
        with self._named("discard", offset, length):
            try:
                self._discard(self._live_fd(), offset, length)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                return False
        return True

    def write_zeros(self, offset: int, length: int) -> None:
        self._check_change("write_zeros", offset, length)
        if length == 0:
            return
        with self._named("write_zeros", offset, length):
            try:
                self._zero(self._live_fd(), offset, length)
                return
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        _log.debug("%s: cannot zero by itself, zeros are written", self._name)
        zeros = memoryview(mmap.mmap(-1, min(length, BOUNCE_BYTES)))
        for at in range(offset, offset + length, len(zeros)):
            self._transfer_out(at, zeros[: offset + length - at])

    def fileno(self) -> int | None:
        return self._live_fd()

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return self._methods

    def use_lock_method(self, method: LockMethod) -> None:
        if method not in self._methods:
            usable = ", ".join(each.name for each in self._methods)
            raise LockMethodUnusable(self._name, LockMethod(method).name, usable)
        self._method = method

    def reservations(self) -> Reservations | None:
        return None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        for lock in self._locks.values():
            lock.close()
        os.close(fd)

    def _live_fd(self) -> int:
        if self._fd < 0:
            raise DeviceGone(f"device {self._name}", "it was closed")
        return self._fd

    def _check_change(self, operation: str, offset: int, length: int) -> None:
        check_range(self, offset, length)
        if self._read_only:
            raise DeviceReadOnly(self._name, operation)

    def _aligned(self, view: memoryview) -> bool:
        """Whether O_DIRECT takes this memory as it is. Read-only memory (bytes) is never sector-aligned: copied."""
        if view.readonly or not view:
            return False
        return ctypes.addressof(ctypes.c_char.from_buffer(view)) % self._logical_block_bytes == 0

    def _transfer_in(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            with self._named("read", offset + done, len(view) - done):
                count = os.preadv(self._live_fd(), [view[done:]], offset + done)
            # A file that ends within a sector gives part of it; going on from there would be misaligned.
            count -= count % self._logical_block_bytes
            if count == 0:
                reason = "the device ends before it (was it truncated?)"
                raise DeviceError(self._name, "read", offset + done, len(view) - done, reason)
            done += count

    def _transfer_out(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            with self._named("write", offset + done, len(view) - done):
                count = os.pwritev(self._live_fd(), [view[done:]], offset + done)
            count -= count % self._logical_block_bytes
            if count == 0:
                raise DeviceError(self._name, "write", offset + done, len(view) - done, "nothing was written")
            done += count

    @contextmanager
    def _named(self, operation: str, offset: int, length: int) -> Iterator[None]:
        """Turn the kernel's OSError into one that names device, operation and place."""
        try:
            yield
        except OSError as error:
            if error.errno in _GONE:
                raise DeviceGone(f"device {self._name} ({operation} at byte {offset})") from error
            # EBADE is how Linux hands a RESERVATION CONFLICT on.
            if error.errno == errno.EBADE:
                raise ReservationConflict(self._name, operation, offset, length, REFUSED) from error
            raise DeviceError(self._name, operation, offset, length, error.strerror or str(error)) from error
