"""Persistent reservations of a `RamDevice`: what a LUN in memory remembers of its nexuses.

Every handle (`RamDevice.again`) is a nexus of its own. As on a LUN with APTPL, registrations and reservation outlive
handles that are closed and power cuts; as on any LUN, the reservation goes with the last registration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservation
from vmfs.errors import ReservationConflict

Nexus = object
"""Compared by identity alone."""


@dataclass(slots=True)
class Accepted:
    """A write that the LUN has taken and not executed yet."""

    nexus: Nexus
    land: Callable[[], None]


@dataclass(slots=True)
class LunState:
    """Shared by all handles of one LUN and guarded by that LUN's mutex."""

    keys: dict[Nexus, int] = field(default_factory=dict)
    type: int | None = None
    accepted: list[Accepted] = field(default_factory=list)

    def admits(self, nexus: Nexus) -> bool:
        """Whether this nexus may change the LUN now."""
        return self.type is None or nexus in self.keys

    def drop(self, nexuses: list[Nexus]) -> None:
        """Take registrations away; the reservation goes with the last one."""
        for nexus in nexuses:
            del self.keys[nexus]
        if not self.keys:
            self.type = None


class RamReservations:
    """`vmfs.devices.reservations.Reservations` for one nexus, and PREEMPT without ABORT besides."""

    def __init__(self, name: str, nexus: Nexus, state: LunState, mutex: threading.Lock) -> None:
        """`mutex` is the LUN's own: a write is before or after a preemption, never during one."""
        self._name = name
        self._nexus = nexus
        self._state = state
        self._mutex = mutex

    def register(self, key: int) -> None:
        if not 0 < key < 1 << 64:
            raise ValueError(f"{key:#x} is no reservation key")
        with self._mutex:
            self._state.keys[self._nexus] = key

    def unregister(self) -> None:
        with self._mutex:
            if self._nexus in self._state.keys:
                self._state.drop([self._nexus])

    def reserve(self) -> None:
        with self._mutex:
            self._require_registration("RESERVE")
            if self._state.type not in (None, WRITE_EXCLUSIVE_ALL_REGISTRANTS):
                raise self._conflict("RESERVE", f"a reservation of type {self._state.type:x}h is there")
            self._state.type = WRITE_EXCLUSIVE_ALL_REGISTRANTS

    def preempt_and_abort(self, key: int) -> bool:
        return self._take_away("PREEMPT AND ABORT", key, abort=True)

    def preempt(self, key: int) -> bool:
        """Take a key away, and let what its nexuses have under way execute later. False: nobody has that key."""
        return self._take_away("PREEMPT", key, abort=False)

    def _take_away(self, operation: str, key: int, *, abort: bool) -> bool:
        with self._mutex:
            self._require_registration(operation)
            victims = [nexus for nexus, theirs in self._state.keys.items() if theirs == key]
            if abort:
                self._state.accepted[:] = [a for a in self._state.accepted if a.nexus not in victims]
            self._state.drop(victims)
            return bool(victims)

    def clear(self) -> None:
        with self._mutex:
            self._require_registration("CLEAR")
            self._state.drop(list(self._state.keys))

    def keys(self) -> tuple[int, ...]:
        with self._mutex:
            return tuple(self._state.keys.values())

    def reservation(self) -> Reservation | None:
        with self._mutex:
            return None if self._state.type is None else Reservation(self._state.type)

    def _require_registration(self, operation: str) -> None:
        if self._nexus not in self._state.keys:
            raise self._conflict(operation, "this nexus is not registered")

    def _conflict(self, operation: str, reason: str) -> ReservationConflict:
        return ReservationConflict(self._name, operation, 0, 0, reason)
