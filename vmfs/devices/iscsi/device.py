"""A LUN over iSCSI as a `contract.Device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmfs.devices.iscsi.address import parse_address
from vmfs.devices.iscsi.credentials import load_credentials
from vmfs.devices.iscsi.pool import ATTEMPT_LEAST_SECONDS, ATTEMPT_SECONDS, SessionPool
from vmfs.devices.scsi.disk import ScsiDisk
from vmfs.devices.scsi.facts import meet
from vmfs.devices.scsi.reservations import ScsiReservations

_ATTEMPT_SHARE_OF_LEASE = ATTEMPT_SECONDS / 16  # what it is to the default lease, it is to others


class IscsiDevice(ScsiDisk):
    """A logical unit by several sessions, one of which writes (`pool` says how they break and mend).

    Registrations (rule R3): `reservations().register(key)` registers the nexus that writes. It stays the same nexus
    when it logs in again, and so it is registered still unless another host took that away, or the target forgot it;
    nothing registers again by itself. A write without registration raises ReservationConflict: then the holder of the
    key reads its slot, and either it was fenced, or it registers again and repeats the write.
    """

    def __init__(self, pool: SessionPool, *, read_only: bool, sector_bytes: int | None) -> None:
        """Meets the LUN through an open pool, and takes the pool over when that succeeds."""
        reservations = ScsiReservations(pool)
        super().__init__(pool, meet(pool), reservations=reservations, read_only=read_only, sector_bytes=sector_bytes)
        self._pool = pool

    @classmethod
    def open(
        cls,
        spec: str,
        *,
        read_only: bool = False,
        sector_bytes: int | None = None,
        credentials: Path | None = None,
    ) -> IscsiDevice:
        """Log in to `iscsi://portal[:port]/target/lun`, with the secrets of the file `credentials`.

        DeviceNotUsable when it cannot be reached or logged in to, or is no disk; CredentialsRefused for the file;
        DeviceError when it answers, and wrongly.
        """
        address = parse_address(spec)
        pool = SessionPool(address, load_credentials(address, credentials))
        return cls._opened(pool, read_only, sector_bytes)

    @classmethod
    def _opened(cls, pool: SessionPool, read_only: bool, sector_bytes: int | None) -> IscsiDevice:
        try:
            pool.open()
            return cls(pool, read_only=read_only, sector_bytes=sector_bytes)
        except BaseException:
            pool.close()
            raise

    def again(self) -> IscsiDevice:
        """The same LUN by another nexus of this host. Raises as `open`."""
        return self._opened(self._pool.again(), self.read_only, self.logical_block_bytes)

    @property
    def flight_bound_s(self) -> float:
        """F of rule A1: after so many seconds from its submission no write lands any more, whatever its call said.

        It rests on the time that a sending is given, on the reset that ends its connection, and on networks that keep
        no packet for longer than a second. A target that executes what it has received only later breaks it: against
        that helps storage fencing alone.
        """
        return self._pool.flight_bound_s

    def keep_to_lease(self, lease_seconds: float, may_write: Callable[[], None]) -> None:
        """As `flight.Resending` has it."""
        share = lease_seconds * _ATTEMPT_SHARE_OF_LEASE
        self._pool.attempt_seconds = min(ATTEMPT_SECONDS, max(ATTEMPT_LEAST_SECONDS, share))
        self._pool.may_write = may_write

    def close(self) -> None:
        super().close()
        self._pool.close()
