"""The intervals of the heartbeat protocol, derived from the lease, and the inequalities that keep them safe.

With the default lease of 16 s (docs/locking.md has the proofs): heartbeat I = 3 s, margin MG = 2 s, validity of a
lockless reader's map V = 5 s, quarantine of freed blocks Q = 6 s, clock drift rho = 1 %. The break time B depends on
what ends a dead host's writes: 15.5 s where the LUN refuses them (A2), 20 s where nothing does (A1), and more where a
write may stay on its way for long. Another lease scales them all. Stored in the superblock in microseconds: every
host of a volume uses the same.
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

# P of A1: for how long a thread that looked at the lease may be kept from submitting on a machine that runs (a paused
# machine has no bound). 100 ms of 16 s: a scheduler's worst delays, several times. Devices that send again by
# themselves rely on their caller's look at the lease for 50 ms.
_SUBMIT_PART: Final = 160
_SUBMIT_MIN_US: Final = 50_000
_ROUNDING_US: Final = 4  # whole microseconds all the way: what the roundings of A1 add up to at most
_WATCHDOG_MIN_US: Final = _US_PER_S  # watchdog devices count in whole seconds

# The proportions of the defaults, in sixteenths of the lease.
_INTERVAL_16THS: Final = 3
_MARGIN_16THS: Final = 2
_BREAK_16THS: Final = 20
_FENCED_BREAK_32NDS: Final = 31  # 15.5 of 16
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
    def from_lease(
        cls,
        lease_us: int,
        interval_us: int | None = None,
        drift_ppm: int = 10_000,
        *,
        fenced: bool = False,
        in_flight_us: int = 0,
    ) -> Timers:
        """The timers in the proportions of the defaults; `interval_us` overrides the heartbeat interval alone.

        `fenced`: the LUN ends a dead host's writes (A2). Otherwise the break time grows until A1 holds for writes that
        stay on their way for `in_flight_us`. Raises TimersRefused.
        """
        margin_us = lease_us * _MARGIN_16THS // 16
        break_us = lease_us * _FENCED_BREAK_32NDS // 32 if fenced else lease_us * _BREAK_16THS // 16
        if not fenced:
            usable = (lease_us - margin_us) * (_PPM + drift_ppm)
            needed = usable + (in_flight_us + _submit_delay_us(lease_us) + _ROUNDING_US) * _PPM
            break_us = max(break_us, needed // (_PPM - drift_ppm) + 1)
        return cls(
            interval_us=lease_us * _INTERVAL_16THS // 16 if interval_us is None else interval_us,
            lease_us=lease_us,
            margin_us=margin_us,
            break_us=break_us,
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
        # A2: B(1-rho) > (L-MG)(1+rho). What is left is for P + F of A1: `flight_slack_us`, `check_in_flight`.
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
    def in_flight_max_us(self) -> int:
        """The greatest F for which A1 holds: how long a write may stay on its way once it is submitted."""
        return self.flight_slack_us - _submit_delay_us(self.lease_us) - 1

    def check_in_flight(self, in_flight_us: int, of: str) -> None:
        """A1 for a host whose writes, submitted to `of`, stay on their way for at most that long.

        Raises TimersRefused with the numbers. Not to be asked where the LUN itself ends a dead host's writes.
        """
        if in_flight_us <= self.in_flight_max_us:
            return
        enough = Timers.from_lease(self.lease_us, self.interval_us, self.drift_ppm, in_flight_us=in_flight_us)
        raise TimersRefused(
            f"a write to {of} may stay on its way for {in_flight_us / _US_PER_S:g} s, and without storage fencing the "
            f"break time of {self.break_s:g} s allows {max(0, self.in_flight_max_us) / _US_PER_S:.2f} s beside a lease "
            f"of {self.lease_us / _US_PER_S:g} s (A1: a break time of {enough.break_s:.2f} s would do); "
            f"shorten the initiator's timeouts, or format with --in-flight {in_flight_us / _US_PER_S:g}"
        )

    def watchdog_timeout_us(self, in_flight_us: int) -> int:
        """The longest timeout, in whole seconds, of a watchdog that ends this machine before anyone may break it.

        It is fed while the lease is valid. A feed may be one of a thread that was stopped between its look at the
        lease and the feed, and such a thread runs again before the feed before it has expired: the machine ends within
        *two* timeouts after the lease. So 2 W (1+rho) + F < B(1-rho) - (L-MG)(1+rho). Raises TimersRefused when not
        even a second is left.
        """
        left = (self.flight_slack_us - in_flight_us) * _PPM // (2 * (_PPM + self.drift_ppm))
        whole = (left - 1) // _WATCHDOG_MIN_US * _WATCHDOG_MIN_US
        if whole < _WATCHDOG_MIN_US:
            raise TimersRefused(
                f"a lease of {self.lease_us / _US_PER_S:g} s and a break time of {self.break_s:g} s leave a watchdog "
                f"{max(0, left) / _US_PER_S:.2f} s, and it counts in whole seconds (a lease of 16 s leaves 2 s)"
            )
        return whole

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


def _submit_delay_us(lease_us: int) -> int:
    """P of A1."""
    return max(_SUBMIT_MIN_US, lease_us // _SUBMIT_PART)
