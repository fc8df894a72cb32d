"""The locks that this host has in hand, as its threads see them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from vmfs.ondisk.lock import VALUE_BYTES, Guards, Holder, LockMode, LockRecord


class Tenure:
    """One hold of one lock by this host, shared by all its threads that pin it.

    `version` is the lock's version: together with the address it names this tenure in journal records. `lost` is set
    when the host was fenced: nothing under it may be written any more.
    """

    __slots__ = ("_value", "address", "guards", "incarnation", "lost", "mode", "slot", "version")

    def __init__(self, record: LockRecord, me: Holder) -> None:
        self.address = record.address
        self.guards = record.guards
        self.mode = record.mode
        self.version = record.version
        self.slot = me.slot
        self.incarnation = me.incarnation
        self.lost = False
        self._value = record.value

    @property
    def value(self) -> bytes:
        """The lock's 32-byte value block, as the last holder left it."""
        return self._value

    @value.setter
    def value(self, value: bytes) -> None:
        """Written when this exclusive tenure is given up; lost when the host dies before.

        Raises ValueError for another length or a tenure that is not exclusive.
        """
        if len(value) != VALUE_BYTES or self.mode is not LockMode.EXCLUSIVE:
            raise ValueError(f"value of {len(value)} bytes for a lock held in mode {self.mode.name}")
        self._value = bytes(value)

    def __repr__(self) -> str:
        return f"Tenure({self.address:#x}, {self.guards.name}, {self.mode.name}, version {self.version})"


@dataclass(frozen=True, slots=True)
class LockRequest:
    """One of several locks wanted together."""

    address: int
    guards: Guards
    mode: LockMode = LockMode.EXCLUSIVE
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class LockView:
    """A look at a lock, for people: `names` are the hosts of `record.all_holders`, `void` those that hold no more."""

    record: LockRecord
    names: tuple[str, ...]
    void: frozenset[Holder]
    waiter_name: str | None


@dataclass(slots=True, eq=False)
class Entry:
    """What is known of one address. Guarded by the table's `cond`; `raw` and `tenure` belong to who set `busy`."""

    address: int
    tenure: Tenure | None = None
    raw: bytes = b""
    """The sector as it was when the tenure began."""
    busy: bool = False
    """A thread takes or gives up the lock: it alone may change `tenure`."""
    contended_by: str | None = None
    """While busy: the host that the taker waits for."""
    sticky: bool = False
    asked: bool = False
    """Another host asked for it through its slot."""
    pins: Counter[int] = field(default_factory=Counter)
    """How often each thread pins the tenure."""
    users: int = 0
    """Threads that wait for this entry, so that it must stay in the table."""
    last_use: float = 0.0
    checked_at: float = 0.0
    """When the waiter's mark was last looked at (or the tenure began)."""
    check_wanted: bool = False
    drain_until: float = 0.0
    """New pins by threads that have none are refused until then: another host waits."""
    upgraders: int = 0
    """Local threads that wait for the sharers to unpin, to take it exclusively."""
    retry_at: float = 0.0
    """Giving up failed: not again before then."""

    def pin(self, thread: int, now: float) -> Tenure:
        """Count a pin of the tenure that is there."""
        if self.tenure is None:
            raise ValueError(f"no tenure to pin at {self.address:#x}")
        self.pins[thread] += 1
        self.last_use = now
        return self.tenure

    def unpin(self, thread: int, now: float) -> None:
        """Take a pin off, preferably this thread's. ValueError when there is none."""
        owner = thread if self.pins[thread] else next((t for t, n in self.pins.items() if n), None)
        if owner is None:
            raise ValueError(f"the lock at {self.address:#x} is not pinned")
        self.pins[owner] -= 1
        self.pins += Counter()  # drops the counts that are zero
        self.last_use = now

    def admits(self, thread: int, now: float) -> bool:
        """Whether the thread may pin: always when it has a pin already, else not while the pins are to drain."""
        return bool(self.pins.get(thread)) or (now >= self.drain_until and not self.upgraders)

    def unused(self) -> bool:
        """Whether nothing is lost with it."""
        return self.tenure is None and not self.busy and not self.users


class LockTable:
    """The entries by address. `cond` guards it all, entries included, and is notified of every change of an entry."""

    def __init__(self) -> None:
        self.cond = threading.Condition()
        self.entries: dict[int, Entry] = {}
        self.closing = False
        self.lost = False
        """The host was fenced: no tenure counts any more."""

    def enter(self, address: int) -> Entry:
        """The entry of an address, kept until `exit`. Call it with `cond` held, as `exit` and `end_busy`."""
        entry = self.entries.setdefault(address, Entry(address))
        entry.users += 1
        return entry

    def exit(self, entry: Entry) -> None:
        """The thread looks at the entry no more."""
        entry.users -= 1
        self.forget_if_unused(entry)

    def end_busy(self, entry: Entry) -> None:
        """The thread that took or gave up the lock is done; wakes the others."""
        entry.busy = False
        entry.contended_by = None
        if self.lost and entry.tenure is not None:
            entry.tenure.lost = True
            entry.tenure = None
        if entry.tenure is None:
            entry.asked = entry.check_wanted = entry.sticky = False
            entry.drain_until = entry.retry_at = 0.0
            entry.pins.clear()
        self.forget_if_unused(entry)
        self.cond.notify_all()

    def forget_if_unused(self, entry: Entry) -> None:
        """Drop an entry that says nothing."""
        if entry.unused() and self.entries.get(entry.address) is entry:
            del self.entries[entry.address]

    def lose_all(self) -> None:
        """End all tenures. Takes `cond` itself."""
        with self.cond:
            self.lost = True
            for entry in list(self.entries.values()):
                if entry.tenure is not None:
                    entry.tenure.lost = True
                    if not entry.busy:
                        entry.tenure = None
                        entry.pins.clear()
                        self.forget_if_unused(entry)
            self.cond.notify_all()
