"""Persistent reservations of the simulated disk, as one path reaches them (`vmfs.devices.reservations`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, Reservation
from vmfs.errors import ReservationConflict

if TYPE_CHECKING:
    from tests.simulator.path import Path


class PathReservations:
    """Persistent reservations on one path (vmfs.devices.reservations)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lun = path.lun

    def register(self, key: int) -> None:
        def act() -> None:
            self._lun.keys[self._path] = key
            self._path.was_registered = True
            self._path.preempted_at = float("inf")

        self._call(act)

    def unregister(self) -> None:
        self._call(lambda: self._remove(self._path))

    def reserve(self) -> None:
        def act() -> None:
            self._check_registered()
            self._lun.reserved = True

        self._call(act)

    def preempt_and_abort(self, key: int) -> bool:
        return bool(self._call(lambda: self._preempt(key, abort=True)))

    def preempt(self, key: int) -> bool:
        return bool(self._call(lambda: self._preempt(key, abort=False)))

    def clear(self) -> None:
        def act() -> None:
            self._check_registered()
            for path in list(self._lun.keys):
                self._remove(path)

        self._call(act)

    def keys(self) -> tuple[int, ...]:
        return tuple(self._call(lambda: tuple(self._lun.keys.values())))  # type: ignore[arg-type]

    def reservation(self) -> Reservation | None:
        def act() -> Reservation | None:
            return Reservation(WRITE_EXCLUSIVE_ALL_REGISTRANTS) if self._lun.reserved else None

        return self._call(act)  # type: ignore[return-value]

    def _preempt(self, key: int, *, abort: bool) -> bool:
        self._check_registered()
        victims = [p for p, k in self._lun.keys.items() if k == key]
        for path in victims:
            self._remove(path)
            path.preempted_at = self._lun.scheduler.now
            if abort:
                self._lun.abort(path)
        return bool(victims)

    def _remove(self, path: Path) -> None:
        self._lun.keys.pop(path, None)
        path.preempted_at = self._lun.scheduler.now
        if not self._lun.keys:
            self._lun.reserved = False

    def _check_registered(self) -> None:
        if self._path not in self._lun.keys:
            raise ReservationConflict(self._path.name, "reservation", 0, 0, "this nexus is not registered")

    def _call(self, action: Callable[[], object]) -> object:
        return self._path.request("reservation", 0, 0, action=action)
