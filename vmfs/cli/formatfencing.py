"""`vmfsctl format --fencing`: what is wanted, and what the device shows that it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vmfs.cluster.fenceproof import UNTRIED, try_out
from vmfs.devices import Device
from vmfs.devices.flight import Resending, longest_flight
from vmfs.errors import BadFormatOption, FencingUnusable
from vmfs.mkfs import FormatOptions

_US_PER_S: Final = 1_000_000
_MAX_SECONDS: Final = 3600.0  # a break time of more than an hour is no cluster
_RESERVATIONS: Final = "reservations (7h)"
_NONE: Final = "no storage fencing"


@dataclass(frozen=True, slots=True)
class WantedFencing:
    """The three options. Raises BadFormatOption for values that no volume can have, or that exclude each other."""

    fencing: str
    in_flight_s: float | None
    preempt_wait_s: float | None

    def __post_init__(self) -> None:
        for option, value in (("--in-flight", self.in_flight_s), ("--preempt-wait", self.preempt_wait_s)):
            if value is not None and not 0 <= value <= _MAX_SECONDS:  # NaN is not either
                raise BadFormatOption(option, value, "it must be 0 to 3600 seconds")
        if self.preempt_wait_s is not None and self.fencing == "none":
            raise BadFormatOption("--preempt-wait", self.preempt_wait_s, "it is of no use with --fencing none")

    def of_all(
        self, devices: Sequence[Device], options: FormatOptions, *, prove: bool
    ) -> tuple[FormatOptions, str]:
        """`prove`, or else `unproved`, of every extent: a volume is fenced when all of them are."""
        told = [(self.prove if prove else self.unproved)(device, options) for device in devices]
        chosen, why = next((one for one in told if not one[0].fenced), told[0])
        slowest = max((one.in_flight_us for one, _ in told if not one.fenced), default=0)
        return replace(chosen, in_flight_us=slowest), why

    def unproved(self, device: Device, options: FormatOptions) -> tuple[FormatOptions, str]:
        """The options as far as they can be told without a word to the LUN, and what to say of them."""
        if self.fencing == "none" or device.reservations() is None:
            if self.fencing == "reservations":
                raise self._unusable(device, options, "has none on this path")
            return self._none(device, options, "" if self.fencing == "none" else "no reservations on this path")
        return self._reserved(options), f"{_RESERVATIONS}, if the LUN proves them"

    def prove(self, device: Device, options: FormatOptions) -> tuple[FormatOptions, str]:
        """The options for good: reservations were tried out. The caller has made sure that no host uses the device."""
        if self.fencing == "none" or device.reservations() is None:
            return self.unproved(device, options)
        problem = try_out(device, plain=bool(self.preempt_wait_s))
        if problem is None:
            return self._reserved(options), f"{_RESERVATIONS}, proved on this path"
        if self.fencing == "reservations":
            if problem == UNTRIED:
                return self._reserved(options), f"{_RESERVATIONS}, believed: {problem}"
            raise self._unusable(device, options, f"does not prove them: {problem}")
        return self._none(device, options, problem)

    def _reserved(self, options: FormatOptions) -> FormatOptions:
        return replace(options, fenced=True, in_flight_us=0, preempt_wait_ms=round((self.preempt_wait_s or 0) * 1000))

    def _none(self, device: Device, options: FormatOptions, why: str) -> tuple[FormatOptions, str]:
        if isinstance(device, Resending):
            device.keep_to_lease(options.lease_us / _US_PER_S, lambda: None)  # its flights are those of this lease then
        bound_us, _ = longest_flight([device]) or (0, "")
        in_flight_us = max(bound_us, round((self.in_flight_s or 0.0) * _US_PER_S))
        chosen = replace(options, fenced=False, in_flight_us=in_flight_us, preempt_wait_ms=0)
        return chosen, f"{_NONE} ({why})" if why else _NONE

    def _unusable(self, device: Device, options: FormatOptions, why: str) -> FencingUnusable:
        return FencingUnusable(options.label, device.name, why)
