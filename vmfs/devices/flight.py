"""How long a write may stay on its way to the storage after it was submitted (F of rule A1), where a device knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from vmfs.devices.contract import Device

_US_PER_S = 1_000_000


@runtime_checkable
class BoundedFlight(Protocol):
    """A device that gives a write up after a time, and knows that it cannot land later than that."""

    @property
    def flight_bound_s(self) -> float:
        """From submission to the last moment at which the write can land, the initiator having given up or not."""
        ...


@runtime_checkable
class Resending(Protocol):
    """A device that sends a write again by itself when its connection broke, perhaps long after its call began."""

    def keep_to_lease(self, lease_seconds: float, may_write: Callable[[], None]) -> None:
        """Give each sending up in the time that suits the lease; send a write again only if `may_write` allows it.

        `may_write` raises VmfsError unless the lease holds (rule R1); the write then raises NotSentAgain. It takes no
        lock.
        """
        ...


def longest_flight(devices: Iterable[Device]) -> tuple[int, str] | None:
    """(microseconds, name) of the device whose bound is the longest; None: no device has one."""
    bounds = [(round(d.flight_bound_s * _US_PER_S), d.name) for d in devices if isinstance(d, BoundedFlight)]
    return max(bounds, default=None)
