"""Several devices as one address space: how a volume names a byte on any of its extents.

A volume address is an unsigned 64-bit number: bits 56 to 63 are the extent's index, bits 0 to 55 the byte offset in
that extent. Address 0 is therefore the first byte of extent 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from vmfs.devices.contract import Device, ReadableBuffer
from vmfs.devices.writegate import WriteGate
from vmfs.errors import DeviceGone, OutOfRange

T = TypeVar("T")

EXTENT_SHIFT_BITS = 56
EXTENTS_MAX = 256
OFFSET_MASK = (1 << EXTENT_SHIFT_BITS) - 1


def make_address(extent: int, offset: int) -> int:
    """The address of byte `offset` of extent `extent`. ValueError when either does not fit its bits."""
    if not 0 <= extent < EXTENTS_MAX or not 0 <= offset <= OFFSET_MASK:
        raise ValueError(f"no volume address for byte {offset} of extent {extent}")
    return extent << EXTENT_SHIFT_BITS | offset


def split_address(address: int) -> tuple[int, int]:
    """(extent index, byte offset in it). ValueError for what is no unsigned 64-bit number."""
    if not 0 <= address < EXTENTS_MAX << EXTENT_SHIFT_BITS:
        raise ValueError(f"{address} is no volume address")
    return address >> EXTENT_SHIFT_BITS, address & OFFSET_MASK


class ExtentSet:
    """The devices of a volume, by extent index; None where one is missing.

    Every call raises DeviceGone naming the extent that is missing, OutOfRange for a range that crosses the end of
    its extent (extents are not contiguous), and what the device raises. Thread-safe: `_mutex` guards the list of
    devices and the counts of writes, and is never held over I/O.
    """

    def __init__(self, devices: Sequence[Device | None]) -> None:
        """Take over the devices, at most EXTENTS_MAX."""
        if not 0 < len(devices) <= EXTENTS_MAX:
            raise ValueError(f"a volume has 1 to {EXTENTS_MAX} extents, not {len(devices)}")
        self.gate: WriteGate | None = None
        """Set once, before the mount's first write, where hosts are fenced by reservations."""
        self._mutex = threading.Lock()
        self._devices = list(devices)
        # Writes that ended, and how many of them had ended when the last successful flush began. With a mere "dirty"
        # mark, a flush could be skipped on account of another one that began before the write and still runs.
        self._ended = [0] * len(devices)
        self._flushed = [0] * len(devices)

    def __len__(self) -> int:
        """The number of extents, the missing ones included."""
        return len(self._devices)

    def device(self, extent: int) -> Device:
        """The device of an extent. DeviceGone when it is missing or was never known."""
        found = self._devices[extent] if 0 <= extent < len(self._devices) else None
        if found is None:
            raise DeviceGone(f"extent {extent} of the volume")
        return found

    def locate(self, address: int) -> tuple[Device, int]:
        """(device, byte offset in it) of an address."""
        extent, offset = split_address(address)
        return self.device(extent), offset

    def put(self, extent: int, device: Device) -> None:
        """Fill in a missing extent, or add the next one. ValueError when there is one already or a gap would be."""
        with self._mutex:
            if extent == len(self._devices) < EXTENTS_MAX:
                self._devices.append(device)
                self._ended.append(0)
                self._flushed.append(0)
            elif 0 <= extent < len(self._devices) and self._devices[extent] is None:
                self._devices[extent] = device
            else:
                raise ValueError(f"extent {extent} cannot be put: {len(self._devices)} extents are known")

    def read(self, address: int, length: int) -> bytes:
        """As Device.read, at a volume address."""
        device, offset = self._range(address, length)
        return device.read(offset, length)

    def read_into(self, address: int, buffer: memoryview) -> None:
        """As Device.read_into, at a volume address."""
        device, offset = self._range(address, buffer.nbytes)
        device.read_into(offset, buffer)

    def write(self, address: int, data: ReadableBuffer) -> None:
        """As Device.write, at a volume address."""
        device, offset = self._range(address, memoryview(data).nbytes)
        self._change(address, device, lambda: device.write(offset, data))

    def compare_and_write(self, address: int, old: bytes, new: bytes) -> bool:
        """As Device.compare_and_write, at a volume address."""
        device, offset = self._range(address, len(new))
        return self._change(address, device, lambda: device.compare_and_write(offset, old, new))

    def discard(self, address: int, length: int) -> bool:
        """As Device.discard, at a volume address."""
        device, offset = self._range(address, length)
        return self._change(address, device, lambda: device.discard(offset, length))

    def zero(self, address: int, length: int) -> None:
        """As Device.write_zeros, at a volume address."""
        device, offset = self._range(address, length)
        self._change(address, device, lambda: device.write_zeros(offset, length))

    def note_written(self, address: int) -> None:
        """Say that a write to this extent has ended that went past this object (through a device's fileno)."""
        with self._mutex:
            self._ended[address >> EXTENT_SHIFT_BITS] += 1

    def flush(self) -> None:
        """Make durable, on every extent written to since it was last flushed, all writes that ended before this call.

        What another host wrote (a lock, say) is made durable only on the extents that are flushed.
        """
        with self._mutex:
            due = [(index, count) for index, count in enumerate(self._ended) if count > self._flushed[index]]
        for index, count in due:
            self.flush_extent(index)
            with self._mutex:
                self._flushed[index] = max(self._flushed[index], count)

    def flush_extent(self, extent: int) -> None:
        """As Device.flush, of one extent, whatever is known to have been written to it."""
        device = self.device(extent)
        gate = self.gate
        if gate is None:
            device.flush()
        else:
            gate.run(device.flush, device.name)

    def close(self) -> None:
        """Close every device."""
        for device in self._devices:
            if device is not None:
                device.close()

    def _change(self, address: int, device: Device, change: Callable[[], T]) -> T:
        gate = self.gate
        try:
            return change() if gate is None else gate.run(change, device.name)
        finally:
            self.note_written(address)

    def _range(self, address: int, length: int) -> tuple[Device, int]:
        device, offset = self.locate(address)
        if offset + length > device.size_bytes:
            raise OutOfRange(device.name, offset, length, device.size_bytes)
        return device, offset
