"""Persistent reservations of a LUN over SCSI commands (SPC-4, 5.12 and 6.15 f.), for every transport.

All that changes the LUN must come by the nexuses that are registered: the one by which `transport` sends these commands
too, or, where a host has several at once (the paths of a multipath disk), each of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservation
from vmfs.devices.scsi.commands import (
    UNMAP_NOTHING,
    ReserveIn,
    ReserveOut,
    persistent_reserve_in,
    persistent_reserve_out,
    reserve_list,
    unmap,
)
from vmfs.devices.scsi.issue import CommandRefused, issue, issue_read
from vmfs.devices.scsi.pages import KEYS_BYTES, RESERVATION_BYTES, parse_keys, parse_reservation
from vmfs.devices.scsi.transport import ScsiTransport
from vmfs.errors import DeviceError, ReservationConflict

KEY_MAX: Final = (1 << 64) - 1

log = logging.getLogger("vmfs.devices")


class ScsiReservations:
    """`Reservations` of one LUN. Thread-safe as its transports are; keeps nothing but the key that it registered.

    Two threads must not register different keys at once.
    """

    def __init__(
        self, transport: ScsiTransport, nexuses: Callable[[], Sequence[ScsiTransport]] | None = None
    ) -> None:
        """On a LUN that has them: see `facts.LunFacts.can_reserve`.

        `nexuses`: all that this host has now, each by a transport of its own; None: there is but that of `transport`.
        """
        self._transport = transport
        self._nexuses = nexuses or (lambda: (transport,))
        self._key = 0

    def register(self, key: int) -> None:
        """As the contract. ReservationConflict, with a hint, where the target refuses this nexus all the same."""
        if not 0 < key <= KEY_MAX:
            raise ValueError(f"{key} is no reservation key")
        self._key = key
        registered = self._register(key)
        if self.reservation() is not None:
            for nexus in registered:
                self._check_admitted(nexus)

    def _check_admitted(self, nexus: ScsiTransport) -> None:
        """Whether what is registered may write. Linux LIO goes by the initiator's name as well: where another nexus of
        the same name, alive or dead, made the reservation, this one is refused.
        """
        try:
            issue(nexus, unmap(UNMAP_NOTHING), "write of nothing", data_out=UNMAP_NOTHING)
        except CommandRefused as error:
            if not error.is_unsupported:
                raise
        except ReservationConflict as error:
            if self._key not in self.keys():
                raise
            reason = (
                "it is registered, and refused all the same: another session of the same initiator's name, alive or "
                "dead, made the reservation; log in by another name (`initiator` in the credentials file)"
            )
            raise ReservationConflict(nexus.name, "register", 0, 0, reason) from error

    def unregister(self) -> None:
        self._register(0)
        self._key = 0

    def reserve(self) -> None:
        found = self.reservation()
        if found is not None and found.type == WRITE_EXCLUSIVE_ALL_REGISTRANTS:
            return
        try:
            self._out(ReserveOut.RESERVE, "reserve", reserve_list(self._key))
        except ReservationConflict:
            # Another host was faster, or something holds a reservation of another type.
            found = self.reservation()
            if found is None or found.type != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
                raise

    def preempt_and_abort(self, key: int) -> bool:
        return self._take_away(ReserveOut.PREEMPT_AND_ABORT, "preempt and abort", key)

    def preempt(self, key: int) -> bool:
        """Take a key away, and let what its nexus has under way execute later. False: nobody has that key."""
        return self._take_away(ReserveOut.PREEMPT, "preempt", key)

    def _take_away(self, action: ReserveOut, operation: str, key: int) -> bool:
        if key not in self.keys():
            return False
        try:
            self._out(action, operation, reserve_list(self._key, key))
        except ReservationConflict:
            # So a target says also that the key went away meanwhile: another host has done it.
            keys = self.keys()
            if self._key not in keys or key in keys:
                raise
            return False
        if key in self.keys():
            raise DeviceError(self._transport.name, operation, 0, 0, f"key {key:#x} is registered still")
        return True

    def clear(self) -> None:
        self._out(ReserveOut.CLEAR, "clear reservations", reserve_list(self._key))

    def keys(self) -> tuple[int, ...]:
        data = self._in(ReserveIn.READ_KEYS, "read keys", KEYS_BYTES)
        try:
            return parse_keys(data)
        except ValueError as error:
            raise DeviceError(self._transport.name, "read keys", 0, len(data), str(error)) from error

    def reservation(self) -> Reservation | None:
        data = self._in(ReserveIn.READ_RESERVATION, "read reservation", RESERVATION_BYTES)
        try:
            return parse_reservation(data)
        except ValueError as error:
            raise DeviceError(self._transport.name, "read reservation", 0, len(data), str(error)) from error

    def _register(self, key: int) -> list[ScsiTransport]:
        """On all nexuses that work; which those are. One that comes back later is refused, and so registered again."""
        cdb = persistent_reserve_out(ReserveOut.REGISTER_AND_IGNORE_EXISTING_KEY)
        parameters = reserve_list(0, key, aptpl=key != 0)
        done: list[ScsiTransport] = []
        failure: DeviceError | None = None
        for nexus in self._nexuses():
            try:
                issue(nexus, cdb, "register", 0, len(parameters), data_out=parameters)
            except (CommandRefused, ReservationConflict):
                raise
            except DeviceError as error:  # no answer: this path is down
                failure = error
                continue
            done.append(nexus)
        if failure is not None:
            if not done:
                raise failure
            log.warning("%s: nothing is registered by the path %s", self._transport.name, failure)
        return done

    def _out(self, action: ReserveOut, operation: str, parameters: bytes) -> None:
        cdb = persistent_reserve_out(action)
        issue(self._transport, cdb, operation, 0, len(parameters), data_out=parameters)

    def _in(self, action: ReserveIn, operation: str, allocation_bytes: int) -> bytes:
        return issue_read(self._transport, persistent_reserve_in(action, allocation_bytes), operation, allocation_bytes)
