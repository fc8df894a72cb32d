"""I/O to the volume under this host's lease (rule R1): nothing is submitted, and nothing is believed, without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vmfs.clock import Clock
from vmfs.cluster.membership import Membership
from vmfs.core.flights import Flights
from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.extents import ExtentSet
from vmfs.errors import LeaseExpired, NotSentAgain, ReservationConflict
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

MERGE_MAX_BYTES = 1 << 20  # neighbouring metadata blocks go out in one write of at most this size
_PATIENCE_POLL_SECONDS: Final = 0.02


class Lease(Protocol):
    """What I/O must know of the heartbeat."""

    def check(self) -> None:
        """Raise LeaseLost unless the lease holds now."""


class MemberLease:
    """Membership's lease as it is."""

    def __init__(self, membership: Membership) -> None:
        self.check = membership.check_lease


class PatientLease:
    """The lease for what should not be given up half-way: where it has run out, waits until it is valid again.

    Nothing is lost by that, and a commit that was cut off would be the mount's end. A host that lost its lease and was
    not fenced meanwhile still has its slot, so its journal and all its locks; and nothing is submitted before the lease
    is back.
    """

    def __init__(self, check: Callable[[], None], clock: Clock) -> None:
        """`check` raises LeaseExpired for a lease that may come back, LeaseLost or MountClosing for one that cannot."""
        self._check = check
        self._clock = clock
        self._patient = True

    def check(self) -> None:
        """Return when the lease is valid. Raises LeaseLost, MountClosing; LeaseExpired after `give_up`."""
        while True:
            try:
                return self._check()
            except LeaseExpired:
                if not self._patient:
                    raise
            self._clock.sleep(_PATIENCE_POLL_SECONDS)

    def give_up(self) -> None:
        """Wait no longer: the mount is abandoned."""
        self._patient = False


class LeasedIO:
    """Reads, writes and flushes of the volume that are refused, or not acknowledged, without a lease."""

    def __init__(self, extents: ExtentSet, lease: Lease, flights: Flights | None = None) -> None:
        self._extents = extents
        self._flights = flights or Flights()
        self._check: Callable[[], None] = lease.check

    def read(self, address: int, length: int) -> bytes:
        """Read. The lease is looked at when the bytes are here, and before: without it the storage may not answer."""
        self._check()
        data = self._extents.read(address, length)
        self._check()
        return data

    def write(self, address: int, data: ReadableBuffer) -> None:
        """Write; the lease is checked before, and again before success is reported."""
        self._submit(lambda: self._extents.write(address, data))

    def flush(self) -> None:
        """Make durable what was written (also by the data plane, whose writes the ExtentSet does not count)."""
        for index in range(len(self._extents)):
            self._submit(lambda extent=index: self._extents.flush_extent(extent))  # type: ignore[misc]

    def _submit(self, change: Callable[[], None]) -> None:
        """Under the lease; what a LUN refused is submitted again once this host has proved not to be fenced (R3)."""
        while True:
            self._check()
            try:
                with self._flights:
                    change()
            except NotSentAgain:
                continue  # the check waits for the lease, or raises
            except ReservationConflict:
                # Where hosts are fenced by reservations the lease is suspended now: the check waits, or raises.
                if self._extents.gate is None:
                    raise
            else:
                return self._check()

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
