"""I/O to the volume under this host's lease (rule R1): nothing is submitted, and nothing is believed, without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.extents import ExtentSet
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

MERGE_MAX_BYTES = 1 << 20  # neighbouring metadata blocks go out in one write of at most this size


class Lease(Protocol):
    """What I/O must know of the heartbeat."""

    def check(self) -> None:
        """Raise LeaseLost unless the lease holds now."""


class LeasedIO:
    """Reads, writes and flushes of the volume that are refused, or not acknowledged, without a lease."""

    def __init__(self, extents: ExtentSet, lease: Lease) -> None:
        self._extents = extents
        self._check: Callable[[], None] = lease.check

    def read(self, address: int, length: int) -> bytes:
        """Read; the lease is checked when the bytes are here."""
        data = self._extents.read(address, length)
        self._check()
        return data

    def write(self, address: int, data: ReadableBuffer) -> None:
        """Write; the lease is checked before, and again before success is reported."""
        self._check()
        self._extents.write(address, data)
        self._check()

    def flush(self) -> None:
        """Make durable what was written (also by the data plane, whose writes the ExtentSet does not count)."""
        self._check()
        for index in range(len(self._extents)):
            self._extents.device(index).flush()
        self._check()

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Write metadata blocks given as (address, image), neighbours together."""
        ordered = sorted(blocks)
        start = 0
        while start < len(ordered):
            end = start + 1
            first = ordered[start][0]
            limit = MERGE_MAX_BYTES // METADATA_BLOCK_BYTES
            while (
                end < len(ordered)
                and end - start < limit
                and ordered[end][0] == first + (end - start) * METADATA_BLOCK_BYTES
            ):
                end += 1
            self.write(first, b"".join(image for _, image in ordered[start:end]))
            start = end
