"""Registers: the one way by which hosts read and change lock blocks, whatever the storage offers for it.

A *register* is a lock block (`vmfs.ondisk.lockblock`), named by its volume address. It holds one image of a slot or a
lock. How hosts agree on the image is the volume's lock method, chosen at format: `DirectRegisters` leaves it to the
device's compare-and-write; a disk that has none needs a protocol over plain sectors.

Two kinds of read:

- `read` returns an image that the register really held at a moment during the call. Whoever draws a conclusion from it
  (this hold is void, that lock is the dead host's, our heartbeat has landed) uses this one.
- `look` returns the image that a swap should compare with, as far as can be told at once. Where hosts agree by a
  protocol, it may be a proposal that another one still displaces. Good for hints, for counting how long a slot has not
  changed (rule R4: the bytes are compared again by the swap that breaks it), and as the base of a swap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmfs.devices.extents import ExtentSet
from vmfs.errors import DamagedBlock


class Registers(Protocol):
    """The registers of one volume, as one mount (or one tool) reaches them. Usable from any thread.

    Images are `image_bytes` long. Every method raises DeviceError or DeviceGone when the storage does not answer, and
    DamagedBlock where a register's own bookkeeping cannot be read.
    """

    @property
    def extents(self) -> ExtentSet:
        """Where the registers lie."""
        ...

    def image_bytes(self, address: int) -> int:
        """How long the images of this register are: 512 or 4096."""
        ...

    def read(self, address: int) -> bytes:
        """The image that the register held at a moment during this call."""
        ...

    def look(self, address: int) -> bytes:
        """The image to compare with, in as little I/O as possible. It may be displaced without ever having counted."""
        ...

    def look_many(self, address: int, stride: int, count: int) -> list[bytes | DamagedBlock]:
        """`look` at registers that lie `stride` bytes apart, in one read."""
        ...

    def swap(self, address: int, old: bytes, new: bytes) -> bool:
        """Put `new` in the place of `old`: True; False when the register holds another image.

        After DeviceError the fate is unknown: it may have been done, or be done later, but never twice and never after
        the register has moved on (no image comes back: `vmfs.ondisk.lockblock`).
        """
        ...

    def enter(self, slot: int, address: int, image: bytes, *, patient: bool) -> bool:
        """Become able to swap as the host in `slot`, whose register at `address` was seen to hold `image`.

        A host that mounts calls it before it swaps the slot to be its own; no swap is possible before. False: another
        host is doing the same now, or the slot has changed; `patient` waits until such a host proves to be gone.
        """
        ...

    def act_while(self, lease_valid: Callable[[], bool]) -> None:
        """This mount may change registers while `lease_valid()`; without a lease, its own slot's alone."""
        ...

    def create(self, address: int, image: bytes, block_bytes: int) -> None:
        """Write a whole lock block with this image. Nobody else can know of the register yet."""
        ...


class DirectRegisters:
    """Registers whose swap is the device's own compare-and-write of the block's first sector."""

    def __init__(self, extents: ExtentSet) -> None:
        self.extents = extents

    def image_bytes(self, address: int) -> int:
        return self.extents.locate(address)[0].logical_block_bytes

    def read(self, address: int) -> bytes:
        return self.extents.read(address, self.image_bytes(address))

    def look(self, address: int) -> bytes:
        return self.read(address)

    def look_many(self, address: int, stride: int, count: int) -> list[bytes | DamagedBlock]:
        size = self.image_bytes(address)
        data = self.extents.read(address, stride * count)
        return [data[at : at + size] for at in range(0, stride * count, stride)]

    def swap(self, address: int, old: bytes, new: bytes) -> bool:
        return self.extents.compare_and_write(address, old, new)

    def enter(self, slot: int, address: int, image: bytes, *, patient: bool) -> bool:
        return True  # a compare-and-write needs no name

    def act_while(self, lease_valid: Callable[[], bool]) -> None:
        """Nothing to do: a compare-and-write that comes too late finds another image."""

    def create(self, address: int, image: bytes, block_bytes: int) -> None:
        self.extents.write(address, image.ljust(block_bytes, b"\0"))
