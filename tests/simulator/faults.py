"""Which faults a seed brings, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.simulator.lun import Timing

MODES: Final = ("plain", "reservations", "paxos")


@dataclass(slots=True)
class Plan:
    """One seed's world: its size, its pace, its storage, its faults. Times are true seconds."""

    mode: str
    hosts: int
    clients: int
    lease_us: int
    drift: float
    seconds: float
    """Of work under faults."""
    think: float
    preempt_rate: float
    timing: Timing
    power_cuts: bool
    faults: list[tuple[float, str]] = field(default_factory=list)
    far_rate: float = 0.0
    """Of accesses: to a block that needs a map node."""
    slots: int = 6
    """Heartbeat slots of the volume: at least one a host."""
    style: str = "mixed"
    """What the clients do: "mixed"; "churn", where few files come and go under many readers; or "clones"."""

    @property
    def lease(self) -> float:
        return self.lease_us / 1e6


_KINDS: Final = (
    ("crash", 3),
    ("reboot", 1),
    ("pause", 3),
    ("long_pause", 3),
    ("path", 2),
    ("stall", 1),
    ("slow", 2),
    ("stuck", 2),
    ("lost_answers", 2),
)


def plan(seed: int, mode: str) -> Plan:
    """The plan of a seed. `mode`: "plain" (no storage fencing: nothing stays on its way for longer than A1 allows),
    "reservations", or "paxos"."""
    rng = Random(f"plan {seed} {mode}")
    lease = rng.choice((1.0, 1.0, 2.0, 4.0))
    # A1: what may be between the look at the lease and the landing. B(1-rho) - (L-MG)(1+rho), as vmfs.cluster.timers.
    slack = (20 * 0.99 - 14 * 1.01) / 16 * lease
    submit_delay = rng.choice((0.0, 0.2 * slack))
    timing = Timing(
        latency=rng.choice((0.0002, 0.0005, 0.002)),
        slow_rate=rng.choice((0.0, 0.002, 0.02)),
        slow_max=lease * rng.choice((0.05, 0.2)),
        tear_rate=rng.choice((0.0, 0.1, 0.5)),
        late_max=slack * 0.75,
        stuck_max=lease * 2.5,
        timeout=lease * rng.choice((0.3, 1.5, 3.0)),
        submit_delay=submit_delay,
    )
    made = Plan(
        mode=mode,
        hosts=rng.choice((2, 3, 3, 4)),
        clients=rng.choice((1, 2, 2)),
        lease_us=int(lease * 1e6),
        drift=rng.choice((0.0, 0.0099)),
        seconds=0.0,
        think=0.05,
        preempt_rate=rng.choice((0.0, 0.01, 0.1)),
        timing=timing,
        power_cuts=rng.random() < 0.35,
    )
    made.seconds = lease * rng.choice((3.0, 5.0)) + 1.0
    made.think = made.seconds * made.hosts * made.clients / 150
    made.style = rng.choice(("mixed", "mixed", "churn", "clones"))
    made.slots = made.hosts + rng.choice((0, 1, 3))
    made.far_rate = rng.choice((0.0, 0.05, 0.3))
    timing.slow_replay_rate = rng.choice((0.0, 0.0, 0.2))
    kinds = [k for k, weight in _KINDS for _ in range(weight)]
    for _ in range(rng.choice((0, 1, 2, 3, 4))):
        made.faults.append((rng.uniform(0.1, 1.0) * made.seconds, rng.choice(kinds)))
    if rng.random() < 0.06:
        made.faults = [(rng.uniform(0.1, 0.5) * made.seconds, "stall")]  # and nothing else: it must break nobody
        made.power_cuts = False
    if made.power_cuts:
        made.faults.append((rng.uniform(0.3, 1.0) * made.seconds, rng.choice(("power", "power_at_release"))))
    made.faults.sort()
    return made
