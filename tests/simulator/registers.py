"""What a sector, a size or a name may be: now, and after a crash.

A register has a list of *candidates*, oldest first. `possible` (a suffix of them) is what it may be now; one value
unless a change is under way, failed, or was cut off by a crash. All candidates are what it may be after a crash. A sync
that is acknowledged drops what came before; a reader who is sure to see the truth settles what was uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

RECENT_MAX: Final = 12  # former values that are remembered


@dataclass(slots=True, eq=False)
class Change:
    """One change of one or several registers: whole or not at all, also after a crash."""

    what: str
    by: object
    """The process that makes it."""
    begun: float
    ended: float | None = None
    acknowledged: bool = False
    fate: bool | None = None
    """After a crash: whether it was seen to have happened."""
    joint: bool = False
    """Its registers change together or not at all, also in a crash (a rename's do, a write's sectors do not)."""


@dataclass(slots=True)
class Candidate:
    value: int
    change: Change


@dataclass(slots=True)
class Register:
    """The values of one thing. Values are numbers that name a write, a size, or a file; 0 is zeros, or nothing."""

    name: str
    candidates: list[Candidate]
    certain: int = 0
    """Index of the first candidate that it may be now."""
    under_way: int = 0
    doubtful_until: float = -1.0
    """A change that failed may still land until then."""
    recent: list[tuple[int, float]] = field(default_factory=list)
    """(former value, when it was over, durably so)."""
    _group: int = 0

    @classmethod
    def of(cls, name: str, value: int, change: Change) -> Register:
        return cls(name, [Candidate(value, change)])

    def values(self) -> list[int]:
        return [c.value for c in self.candidates]

    def possible(self) -> list[int]:
        """What it may be now."""
        return [c.value for c in self.candidates[self.certain :]]

    # -- changes ------------------------------------------------------------------------------------------------

    def begin(self, value: int, change: Change) -> None:
        """A change is about to be made."""
        self.candidates.append(Candidate(value, change))
        if not self.under_way:
            self._group = len(self.candidates) - 1
        self.under_way += 1

    def succeed(self, now: float) -> None:
        """A change that was begun has happened. Of several at once any may have been the last."""
        self.under_way -= 1
        if not self.under_way and now >= self.doubtful_until:
            self.certain = max(self.certain, self._group)

    def fail(self, until: float) -> None:
        """A change that was begun ended with an error: it may have happened, or happen until then."""
        self.under_way -= 1
        self.doubtful_until = max(self.doubtful_until, until)

    def withdraw(self, value: int) -> None:
        """A change that was begun was refused, and surely did not happen."""
        self.under_way -= 1
        for index in range(len(self.candidates) - 1, -1, -1):
            if self.candidates[index].value == value:
                del self.candidates[index]
                self._group = min(self._group, len(self.candidates) - 1)
                self.certain = min(self.certain, len(self.candidates) - 1)
                return

    # -- knowledge ----------------------------------------------------------------------------------------------

    def mark(self) -> Candidate:
        """What a sync that begins now will make durable."""
        return self.candidates[self.certain]

    def synced(self, mark: Candidate, now: float) -> None:
        """A sync that began at `mark` is acknowledged."""
        for index, candidate in enumerate(self.candidates):
            if candidate is mark:
                self._drop(index, now)
                return

    def crashed(self, process: object | None) -> None:
        """A process died (None: all, and the power failed): what it did and did not sync may be lost."""
        if process is None or any(c.change.by is process for c in self.candidates[1:]):
            self.certain = 0
            self.under_way = 0

    def settle(self, value: int, now: float, *, durable: bool) -> str | None:
        """Somebody who is sure to see the truth saw this value. Returns what is wrong with that, if anything.

        `durable`: all that is there by now survives crashes (a recovery has flushed it, or a lock has changed hands).
        """
        seen = [i for i in range(self.certain, len(self.candidates)) if self.candidates[i].value == value]
        if not seen:
            return f"{self.name} is {value}, not one of {self.possible()}"
        if self.under_way or now < self.doubtful_until or len(self.candidates) == 1:
            return None
        index = seen[-1]
        problem = self._tell_fates(index) if len(seen) == 1 else None
        chosen = self.candidates[index]
        for candidate in self.candidates[self.certain :]:
            if candidate.value != value:
                self._remember(candidate.value, now)
        self.candidates[self.certain :] = [chosen]
        self.certain = len(self.candidates) - 1
        if durable:
            self._drop(self.certain, now)
        return problem

    def _tell_fates(self, index: int) -> str | None:
        for at, candidate in enumerate(self.candidates):
            change = candidate.change
            if not change.joint or at < self.certain or change.ended is None:
                continue
            if at < index and not change.acknowledged:
                continue  # what came later hides whether it happened
            happened = at <= index
            if change.fate is None:
                change.fate = happened
            elif change.fate is not happened:
                return f"{self.name}: {change.what} happened in part ({self.values()}, seen number {index})"
        return None

    def _drop(self, count: int, now: float) -> None:
        for candidate in self.candidates[:count]:
            self._remember(candidate.value, now)
        del self.candidates[:count]
        self.certain = max(0, self.certain - count)
        self._group = max(0, self._group - count)

    def _remember(self, value: int, now: float) -> None:
        self.recent.append((value, now))
        del self.recent[:-RECENT_MAX]

    def may_be_seen(self, value: int, since: float) -> bool:
        """Whether a reader without locks, who knows the state as of `since` at least, may see this value."""
        return any(c.value == value for c in self.candidates) or any(
            v == value and over >= since for v, over in self.recent
        )
