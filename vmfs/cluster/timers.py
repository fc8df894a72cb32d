"""The intervals of the heartbeat protocol, derived from the lease, and the inequalities that keep them safe.

With the default lease of 16 s (docs/locking.md has the proofs): heartbeat I = 3 s, margin MG = 2 s, break B = 20 s,
validity of a lockless reader's map V = 5 s, quarantine of freed blocks Q = 6 s, clock drift rho = 1 %. Another lease
scales them all. Stored in the superblock in microseconds: every host of a volume uses the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmfs.errors import TimersRefused

LEASE_MIN_US: Final = 1_000_000  # below, the scheduling delays of a busy machine end leases
LEASE_MAX_US: Final = 3_600_000_000  # above, a dead host's files would be out of reach for an hour and more
DRIFT_MAX_PPM: Final = 100_000
_US_PER_S: Final = 1_000_000
_PPM: Final = 1_000_000

# The proportions of the defaults, in sixteenths of the lease.
_INTERVAL_16THS: Final = 3
_MARGIN_16THS: Final = 2
_BREAK_16THS: Final = 20
_VALIDITY_16THS: Final = 5
_QUARANTINE_16THS: Final = 6


@dataclass(frozen=True, slots=True)
class Timers:
    """All in microseconds, the drift in parts per million. Raises TimersRefused when an inequality does not hold."""

    interval_us: int
    lease_us: int
    margin_us: int
    break_us: int
    validity_us: int
    quarantine_us: int
    drift_ppm: int = 10_000

    @classmethod
    def from_lease(cls, lease_us: int, interval_us: int | None = None, drift_ppm: int = 10_000) -> Timers:
        """The timers in the proportions of the defaults; `interval_us` overrides the heartbeat interval alone.

        Raises TimersRefused.
        """
        return cls(
            interval_us=lease_us * _INTERVAL_16THS // 16 if interval_us is None else interval_us,
            lease_us=lease_us,
            margin_us=lease_us * _MARGIN_16THS // 16,
            break_us=lease_us * _BREAK_16THS // 16,
            validity_us=lease_us * _VALIDITY_16THS // 16,
            quarantine_us=lease_us * _QUARANTINE_16THS // 16,
            drift_ppm=drift_ppm,
        )

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise TimersRefused(problem)

    def _problem(self) -> str | None:
        usable = self.lease_us - self.margin_us
        low, high = _PPM - self.drift_ppm, _PPM + self.drift_ppm
        if not LEASE_MIN_US <= self.lease_us <= LEASE_MAX_US:
            return f"a lease of {self.lease_us / _US_PER_S:g} s is not between 1 s and 1 h"
        if not 0 <= self.drift_ppm <= DRIFT_MAX_PPM:
            return f"a clock drift of {self.drift_ppm} ppm is not between 0 and {DRIFT_MAX_PPM}"
        if min(self.interval_us, self.margin_us, self.break_us, self.validity_us, self.quarantine_us) <= 0:
            return "every interval must be greater than 0"
        if usable <= 0:
            return "the margin leaves nothing of the lease"
        # A4: I + 2 T_hb <= L - MG. One heartbeat may be lost, and the next one still has time to be answered.
        if 2 * self.interval_us > usable:
            return (
                f"a heartbeat every {self.interval_us / _US_PER_S:g} s leaves no time to repeat a lost one within "
                f"{usable / _US_PER_S:g} s; choose at most half of that"
            )
        # A1: B(1-rho) > (L-MG)(1+rho) + P + F, here with P + F = 0: what is left for them is `flight_slack_us`.
        if self.break_us * low <= usable * high:
            return "the break time is not above the lease, with the clocks' drift"
        # R8: Q(1-rho) > V(1+rho), and V <= L - MG.
        if self.quarantine_us * low <= self.validity_us * high:
            return "the quarantine is not above the validity of a map, with the clocks' drift"
        if self.validity_us > usable:
            return "the validity of a map is above the usable part of the lease"
        return None

    @property
    def flight_slack_us(self) -> int:
        """How long a submitted write may stay on its way (P + F of A1) before a break without fencing is unsafe."""
        usable = self.lease_us - self.margin_us
        return (self.break_us * (_PPM - self.drift_ppm) - usable * (_PPM + self.drift_ppm)) // _PPM

    @property
    def interval_s(self) -> float:
        """Seconds between two heartbeats."""
        return self.interval_us / _US_PER_S

    @property
    def usable_lease_s(self) -> float:
        """L - MG in seconds: how long after a heartbeat's first submission this host may submit (R1)."""
        return (self.lease_us - self.margin_us) / _US_PER_S

    @property
    def break_s(self) -> float:
        """B in seconds: a slot that has not changed for so long is dead."""
        return self.break_us / _US_PER_S
