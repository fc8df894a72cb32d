"""When the storage does not answer: who waits for it is told, by a thread that does not wait for it.

A host whose heartbeats are not answered submits nothing more (R1). What it had submitted hangs, and so do the threads
that did, each with a request of the kernel in its hands. For a while that is a stall like any other: the storage may
come back, nobody has been harmed, and everything goes on. But from the break time on another host may take this one's
locks, so nobody can be promised any more that what he waits for will be done. From then on, and at once when the host
has been fenced:

- requests that wait or hang are answered with EIO by this module's thread, each once; what their own threads answer
  later comes to nothing, and their buffers are never used again (`vmfs.fuse.underway`),
- new requests get EIO without touching the storage.

EIO says that a write's fate is unknown: it may be on the disk, now or later. *Later* must not mean after a newer write
to the same place, so the lease is not taken up again before every write that was on its way has come back
(`vmfs.core.flights`): whatever is written after the silence is written after all that was written before it.

A commit is not cut off by any of this. It waits for the lease in its thread, and goes on where it was; only its caller
has been told EIO. What he tried is then done or not, whole.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.membership import Membership
from vmfs.errors import VmfsError

log = logging.getLogger("vmfs.core")

_POLL_PART: Final = 1 / 8  # of the heartbeat interval: how soon after the break time the first EIO goes out


class StorageSilent(VmfsError):
    """The storage has not answered for so long that other hosts may have taken this one's locks."""

    def __init__(self, volume: str) -> None:
        super().__init__(
            f"volume {volume}: its storage has not answered for longer than the break time; "
            "nothing is read or written until it does"
        )


class Silence:
    """How long this mount's storage has been silent. Has no state of its own; for any thread."""

    def __init__(self, membership: Membership, clock: Clock) -> None:
        self._membership = membership
        self._clock = clock
        timers = membership.timers
        self._grace_seconds = timers.break_s - timers.usable_lease_s

    @property
    def is_over_the_limit(self) -> bool:
        """Whether nobody should wait any longer: the lease ran out, and the break time is over; or it was fenced."""
        membership = self._membership
        ended = membership.lease_deadline
        if ended == -math.inf and not membership.fenced:  # in doubt: that is found out by heartbeats
            ended = membership.last_answered + membership.timers.usable_lease_s
        return self._clock.now() >= ended + self._grace_seconds

    @property
    def seconds(self) -> float | None:
        """Since the last answered heartbeat was sent; None while the lease is valid."""
        now = self._clock.now()
        if self._membership.lease_valid(now):
            return None
        return now - self._membership.last_answered

    def check(self) -> None:
        """Raise StorageSilent when nobody should wait any longer."""
        if self.is_over_the_limit:
            raise StorageSilent(self._membership.volume_name)


class StuckAnswerer:
    """The thread "vmfs-silence": answers what hangs, as long as the silence lasts."""

    def __init__(self, silence: Silence, membership: Membership, clock: Clock) -> None:
        self._silence = silence
        self._clock = clock
        self._interval = membership.timers.interval_s * _POLL_PART
        self._stopping = threading.Event()
        self._fail_old: Callable[[set[int]], set[int]] = lambda before: set()
        self._thread = threading.Thread(target=self._run, name="vmfs-silence", daemon=True)

    def start(self, fail_old: Callable[[set[int]], set[int]]) -> None:
        """Begin. `fail_old`: `Session.fail_old`."""
        self._fail_old = fail_old
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        before: set[int] = set()
        while not self._clock.wait(self._stopping, self._interval):
            # Only what was there at the last look: what has just come is answered by its own thread in a moment.
            before = self._fail_old(before) if self._silence.is_over_the_limit else set()
