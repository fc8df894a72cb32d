"""The contract of every device: what a volume may expect of the storage below it.

Offsets and lengths are bytes and multiples of `logical_block_bytes`; a range lies wholly within the device.
Memory may be aligned or not (page-aligned memory spares a copy). All calls may be made from any thread at
any time.

What a write means:

- `write`, `write_zeros`, `discard` and `compare_and_write` are *visible* to every host's later reads when
  they return.
- They are *durable* (survive a power cut) when a later `flush` of the same device, on any host, has returned.
- Two overlapping calls under way at once may land in either order; one logical sector is never torn by them.
- A write that raised has an unknown fate: all, nothing or some of its sectors are there now, or come later.
- `compare_and_write` is not durable by itself: a lock need only be visible, and the flush that makes a
  journal record durable makes durable the lock that it was written under.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeAlias

from vmfs.devices.reservations import Reservations
from vmfs.errors import MisalignedIO, OutOfRange

# Written out because collections.abc.Buffer needs Python 3.12; wrap anything else (an mmap) in a memoryview.
ReadableBuffer: TypeAlias = bytes | bytearray | memoryview

COMPARE_AND_WRITE_MAX_BYTES = 4096  # one metadata block; a SCSI target may offer as little as one sector


class LockMethod(enum.IntEnum):
    """How a volume's hosts compare and write. The number is in the superblock: all hosts use the same."""

    OFD_FILE = 1
    """Open-file-description lock on the bytes of the file itself, or of a loop device's backing file."""
    OFD_HOST = 2
    """Open-file-description lock on a file under /run/azekura, keyed by major:minor: for one machine only."""
    SCSI_CAW = 3
    """SCSI COMPARE AND WRITE."""
    PAXOS = 4
    """A Disk-Paxos register, for disks without COMPARE AND WRITE (`vmfs.cluster.paxos`). Needs nothing but reads and
    writes: it works on every device, whether `lock_methods` lists it or not."""


class Device(Protocol):
    """A block device, a file that stands in for one, or a fake that keeps the same promises.

    Every method may raise DeviceError when the storage fails, OutOfRange and MisalignedIO for a range that
    breaks the rules above (nothing was done then), and DeviceReadOnly for a change to a device opened
    read-only.
    """

    @property
    def name(self) -> str:
        """What messages call it: the path it was opened by."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its size when opened or last refreshed, rounded down to whole logical sectors."""
        ...

    @property
    def logical_block_bytes(self) -> int:
        """The smallest unit of I/O: 512 or 4096."""
        ...

    @property
    def read_only(self) -> bool: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes, as the storage has them (no cache of this host in between)."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the writable, contiguous buffer wholly from `offset`."""
        ...

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Write all of `data`, or raise."""
        ...

    def flush(self) -> None:
        """Return when all that was written before is durable. When it raised, rely on nothing unflushed."""
        ...

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        """Write `new` if the device holds `old` there: True; else change nothing: False.

        Atomic against every other `compare_and_write` of any host that uses the same lock method, not against
        `write`. `old` and `new` have the same length, at most COMPARE_AND_WRITE_MAX_BYTES. After DeviceError
        the fate is unknown.
        """
        ...

    def discard(self, offset: int, length: int) -> bool:
        """Give the range back to the storage: undefined content until written again. False: unsupported."""
        ...

    def write_zeros(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by the storage's own means where it has them."""
        ...

    def fileno(self) -> int | None:
        """An O_DIRECT descriptor on which preadv/pwritev mean the same as read_into/write; None: use those.

        Memory given to it must be aligned to `logical_block_bytes`. It lives until `close`.
        """
        ...

    def lock_methods(self) -> tuple[LockMethod, ...]:
        """The methods that this host can use on this device; the first is used until another is chosen."""
        ...

    def use_lock_method(self, method: LockMethod) -> None:
        """Have `compare_and_write` use this method. LockMethodUnusable when it is none of lock_methods()."""
        ...

    def reservations(self) -> Reservations | None:
        """SCSI-3 persistent reservations of this LUN; None: it has none, or this path to it cannot say."""
        ...

    def refresh_size(self) -> int:
        """Look again how large the device is, and return it."""
        ...

    def close(self) -> None:
        """Release it; a second call does nothing. Calls under way must have ended."""
        ...


def check_range(device: Device, offset: int, length: int) -> None:
    """Raise OutOfRange or MisalignedIO unless the range obeys the contract. An empty range is allowed."""
    sector = device.logical_block_bytes
    if offset % sector or length % sector:
        rule = f"offset and length must be multiples of {sector} bytes"
        raise MisalignedIO(device.name, offset, length, rule)
    if offset < 0 or length < 0 or offset + length > device.size_bytes:
        raise OutOfRange(device.name, offset, length, device.size_bytes)


def check_compare_and_write(device: Device, offset: int, old: bytes, new: bytes) -> None:
    """Raise as `check_range` does, and MisalignedIO for lengths that `compare_and_write` does not take."""
    if len(old) != len(new) or not 0 < len(new) <= COMPARE_AND_WRITE_MAX_BYTES:
        rule = f"compare_and_write takes two equal lengths of at most {COMPARE_AND_WRITE_MAX_BYTES} bytes"
        raise MisalignedIO(device.name, offset, len(new), rule)
    check_range(device, offset, len(new))
