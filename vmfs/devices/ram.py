"""A device in memory, for simulations of many hosts in one process. Keeps nothing across a process's end."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

from vmfs.devices.contract import (
    LockMethod,
    ReadableBuffer,
    check_compare_and_write,
    check_range,
)
from vmfs.devices.ramreservations import Accepted, LunState, RamReservations
from vmfs.devices.reservations import Reservations
from vmfs.errors import DeviceGone, DeviceReadOnly, LockMethodUnusable, ReservationConflict


class RamDevice:
    """Memory that reads as zeros until written. `again` gives another host its own handle on the same memory.

    `_mutex`, shared by all handles, guards the memory and the reservations: every call is atomic.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        logical_block_bytes: int = 512,
        name: str = "ram",
        method: LockMethod = LockMethod.OFD_FILE,
        reservations: bool = False,
    ) -> None:
        """`method`: what it pretends to lock by, so that volumes on it may be formatted for that one.

        With `reservations` it has persistent reservations, each handle a nexus of its own.
        """
        if logical_block_bytes not in (512, 4096) or size_bytes <= 0 or size_bytes % logical_block_bytes:
            raise ValueError(f"no device has {size_bytes} bytes in sectors of {logical_block_bytes}")
        self.name = name
        self.size_bytes = size_bytes
        self.logical_block_bytes = logical_block_bytes
        self.read_only = False
        self._method = method
        self._memory = memoryview(mmap.mmap(-1, size_bytes))  # pages exist from their first write
        self._mutex = threading.Lock()
        self._lun = LunState() if reservations else None
        self._nexus = object()
        self._open = True

    def again(self, *, name: str | None = None, read_only: bool = False) -> RamDevice:
        """Another open handle on the same memory, on a nexus of its own."""
        other = RamDevice.__new__(RamDevice)
        other.__dict__.update(self.__dict__)
        other.name = name or self.name
        other.read_only = read_only
        other._nexus = object()
        other._open = True
        return other

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        with self._mutex:
            return bytes(self._memory[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        self._check(offset, len(view))
        with self._mutex:
            view[:] = self._memory[offset : offset + len(view)]

    def write(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        self._check_change("write", offset, len(view))
        with self._mutex:
            self._admit("write", offset, len(view))
            self._memory[offset : offset + len(view)] = view

    def accept(self, offset: int, data: ReadableBuffer) -> Callable[[], bool]:
        """Take a write now, as a target that queues it does, and execute it when the returned function is called.

        That function says whether it was executed; it is not when a PREEMPT AND ABORT ended it meanwhile.
        """
        copy = bytes(data)
        self._check_change("write", offset, len(copy))

        def execute() -> None:
            self._memory[offset : offset + len(copy)] = copy

        taken = Accepted(self._nexus, execute)
        queue = self._lun.accepted if self._lun is not None else [taken]
        with self._mutex:
            self._admit("write", offset, len(copy))
            if self._lun is not None:
                queue.append(taken)

        def land() -> bool:
            with self._mutex:
                index = next((i for i, each in enumerate(queue) if each is taken), None)
                if index is None:
                    return False
                queue.pop(index).land()
                return True

        return land

    def flush(self) -> None:
        self._check(0, 0)
        with self._mutex:
            self._admit("flush", 0, 0)

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        check_compare_and_write(self, offset, old, new)
        self._check_change("compare_and_write", offset, len(new))
        with self._mutex:
            self._admit("compare_and_write", offset, len(new))
            if self._memory[offset : offset + len(old)] != old:
                return False
            self._memory[offset : offset + len(new)] = new
            return True

    def discard(self, offset: int, length: int) -> bool:
        self.write_zeros(offset, length)
        return True

    def write_zeros(self, offset: int, length: int) -> None:
        self._check_change("write_zeros", offset, length)
        with self._mutex:
            self._admit("write_zeros", offset, length)
            self._memory[offset : offset + length] = bytes(length)

    def fileno(self) -> int | None:
        return None

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return (self._method,)

    def use_lock_method(self, method: LockMethod) -> None:
        if method is not self._method:
            raise LockMethodUnusable(self.name, LockMethod(method).name, self._method.name)

    def reservations(self) -> Reservations | None:
        if self._lun is None:
            return None
        return RamReservations(self.name, self._nexus, self._lun, self._mutex)

    def refresh_size(self) -> int:
        return self.size_bytes

    def close(self) -> None:
        self._open = False

    def _check(self, offset: int, length: int) -> None:
        if not self._open:
            raise DeviceGone(f"device {self.name}", "it was closed")
        check_range(self, offset, length)

    def _check_change(self, operation: str, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise DeviceReadOnly(self.name, operation)

    def _admit(self, operation: str, offset: int, length: int) -> None:
        """Refuse a change by a nexus that the reservation keeps out. Holds `_mutex`: nothing comes between."""
        if self._lun is not None and not self._lun.admits(self._nexus):
            reason = "the LUN is reserved, and this host is not registered with it"
            raise ReservationConflict(self.name, operation, offset, length, reason)
