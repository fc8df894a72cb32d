"""What a mount is made of where something else can take its place: the metrics' measured kinds of the same things.

Without metrics nothing stands between a request and the storage that would not be there anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmfs.cluster.membership import Membership
from vmfs.core.blockio import BlockIO
from vmfs.core.flights import Flights
from vmfs.core.journal import Journal
from vmfs.core.leased import Lease, LeasedIO
from vmfs.core.patientlocks import PatientLocks
from vmfs.devices.extents import ExtentSet
from vmfs.fuse.contract import DataPlane, Negotiated, Operations
from vmfs.fuse.dispatch import Dispatcher


@dataclass(frozen=True, slots=True)
class Parts:
    """Makers of parts; each takes what the plain class takes."""

    membership: Callable[..., Membership] = Membership
    locks: Callable[..., PatientLocks] = PatientLocks
    journal: Callable[..., Journal] = Journal
    leased_io: Callable[[ExtentSet, Lease, Flights], LeasedIO] = LeasedIO
    block_io: Callable[[ExtentSet, Flights], BlockIO] = BlockIO
    dispatcher: Callable[[Operations, Negotiated], Dispatcher] = Dispatcher
    plane: Callable[[DataPlane], DataPlane] = lambda plane: plane


PLAIN = Parts()
