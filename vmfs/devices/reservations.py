"""SCSI-3 persistent reservations, as the fencing of a volume uses them (SPC-4, 5.12; rules R2 and R3).

One registration per host and device: a key on this device's own nexus. One reservation per device, of the type
"write exclusive, all registrants" (7h): whoever is registered may write, nobody else. It lives as long as any
registration does; type 5h would end with its holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vmfs.devices.contract import Device

WRITE_EXCLUSIVE_ALL_REGISTRANTS: Final = 0x7
REFUSED: Final = "the LUN is reserved and this host is not registered there (any more): it was fenced"
"""What a RESERVATION CONFLICT means, for people."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The reservation that a device reports: its type (a number of SPC-4 table 56) and its scope."""

    type: int
    scope: int = 0


class Reservations(Protocol):
    """Persistent reservations of one device, on the nexus of this process. Keys are 64-bit numbers greater than 0.

    All calls may be made from any thread. Every one may raise DeviceError (the fate of a change is then unknown) and
    ReservationConflict when the target refuses because this nexus is not registered any more.
    """

    def register(self, key: int) -> None:
        """REGISTER AND IGNORE EXISTING KEY with APTPL: this nexus has that key now, through power cuts of the LUN."""
        ...

    def unregister(self) -> None:
        """Take this nexus's own registration back. Nothing happens when there is none."""
        ...

    def reserve(self) -> None:
        """Have the reservation of type 7h in place: done when it is there already."""
        ...

    def preempt_and_abort(self, key: int) -> bool:
        """Take a key away from every nexus that has it, and end what they have under way. False: nobody has that key.

        When it returns True no write of that nexus that was submitted earlier can land any more.
        """
        ...

    def clear(self) -> None:
        """Take away the reservation and every registration."""
        ...

    def keys(self) -> tuple[int, ...]:
        """READ KEYS: the key of every registered nexus, one each (a key may come twice)."""
        ...

    def reservation(self) -> Reservation | None:
        """READ RESERVATION: what is in force, None: nothing."""
        ...


@runtime_checkable
class PlainPreempt(Protocol):
    """What implementations may offer besides, for targets that have PREEMPT and no PREEMPT AND ABORT."""

    def preempt(self, key: int) -> bool:
        """Take a key away, and let what its nexuses have under way execute later. False: nobody has that key."""
        ...


@runtime_checkable
class Reopenable(Protocol):
    """What devices may offer besides: a second nexus of this host, on which a proof that fencing works tries it out."""

    def again(self) -> Device:
        """The same LUN, opened again on a nexus of its own."""
        ...
