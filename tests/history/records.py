"""What clients did, and what they were told: all that the checkers judge by. Times are of one monotonic clock."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field

from tests.history.sectors import Value

Life = tuple[str, int]
"""One mount of one host: its name, and how many mounts it had before."""


@dataclass(slots=True)
class Write:
    """Pages written with one stamp. `ended` None: an error, or no answer: it may have landed."""

    first_page: int
    count: int
    stamp: int
    began: float
    ended: float | None = None


@dataclass(slots=True)
class Sync:
    """An fsync that was acknowledged."""

    began: float
    ended: float


@dataclass(slots=True)
class Tenure:
    """One open for writing, from the return of open to that of close. Its events are one after the other."""

    life: Life
    file: int
    opened: float
    found: list[Value] | None = None
    """The whole file, read as the first thing. None: that failed."""
    found_at: float = 0.0
    events: list[Write | Sync] = field(default_factory=list)
    closed: float | None = None


@dataclass(slots=True)
class Reading:
    """The whole file, read by who did not open it for writing. `began` before it was opened."""

    life: Life
    file: int
    began: float
    ended: float
    found: list[Value]


@dataclass(slots=True)
class NameOp:
    """An operation on names. It ends when an fsync after it has: from then on it is durable.

    `kind`: "make" (a symlink to `token`), "remove", "rename" (to `other`), "read" (`token` is what was found).
    `result`: 0 or an errno; None: not known, so it may have happened until its mount was recovered, or not at all.
    """

    life: Life
    kind: str
    name: str
    began: float
    ended: float | None = None
    result: int | None = None
    token: str | None = None
    other: str = ""


@dataclass(slots=True)
class Takeover:
    """From a host's death to the return of open on another host."""

    seconds: float
    undisturbed: bool
    """Nothing else was done to any host meanwhile."""


class History:
    """Filled by many threads; lists are appended to, which needs no lock. `_mutex` guards nothing but the files."""

    def __init__(self) -> None:
        self.tenures: list[Tenure] = []
        self.readings: list[Reading] = []
        self.names: dict[str, list[NameOp]] = {}
        """By group: names that are renamed to each other."""
        self.over: dict[Life, float] = {}
        """When a mount that ended had been recovered for certain."""
        self.takeovers: list[Takeover] = []
        self.problems: list[str] = []
        """What was found wrong on the spot."""
        self.counts: dict[str, int] = {}
        self._stamps = itertools.count(1)
        self._mutex = threading.Lock()

    def stamp(self) -> int:
        """A greater one each time."""
        return next(self._stamps)

    def had_by_another(self, dead: Tenure, since: float) -> float | None:
        """When a host opened, as the first after that time, the file that the dead one had open."""
        return min((t.opened for t in self.tenures if _later(t, dead, since)), default=None)

    def count(self, what: str, number: int = 1) -> None:
        """One more of these."""
        with self._mutex:
            self.counts[what] = self.counts.get(what, 0) + number

    def problem(self, text: str) -> None:
        """Something that must not be."""
        self.problems.append(text)


def _later(tenure: Tenure, dead: Tenure, since: float) -> bool:
    return tenure.file == dead.file and tenure.life != dead.life and tenure.opened > since


def now() -> float:
    """Seconds."""
    return time.monotonic()
