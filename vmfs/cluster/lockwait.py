"""Waiting for a lock that another host holds: whose turn it is, the mark, the request, the death of the holder.

A host that waits marks the lock and polls it. The holder looks for a mark when it has used the lock for long, lets the
pins drain and gives it up; the mark stays in the free lock, and others (the former holder above all) leave it to the
marked host for a moment. A lock that its holder keeps until asked is asked for through the heartbeat slot too.
"""

from __future__ import annotations

import contextlib
import random
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.casio import STORAGE_ERRORS
from vmfs.cluster.lockio import LockSectors, Refused
from vmfs.cluster.membership import Membership
from vmfs.cluster.recoveries import Recoveries
from vmfs.errors import RequestsFull, VmfsError
from vmfs.ondisk.lock import FLAG_KEPT_UNTIL_ASKED, Holder, LockMode, LockRecord
from vmfs.ondisk.slot import RequestKind

POLL_MIN_S: Final = 0.004
POLL_MAX_S: Final = 0.05  # two of these are the moment for which a free lock is left to a marked host
TURN_S: Final = 2 * POLL_MAX_S
SHARED_TURN_S: Final = 1.0  # for which new sharers stay away from a lock that someone wants exclusively
ASK_AFTER_S: Final = 1.0  # a holder that does not say that it wants to be asked is asked too after so long
DEATH_CHECK_S: Final = 0.05


class Waiter:
    """One thread's wait for one lock. `close` takes back the mark and the requests."""

    def __init__(
        self,
        sectors: LockSectors,
        membership: Membership,
        recoveries: Recoveries,
        clock: Clock,
        rng: random.Random,
        address: int,
        mode: LockMode,
        patient: bool,
    ) -> None:
        """`patient` is False for a caller that does not wait: it yields to nobody, marks and asks nothing."""
        self._sectors = sectors
        self._membership = membership
        self._recoveries = recoveries
        self._clock = clock
        self._random = rng
        self._address = address
        self._mode = mode
        self._patient = patient
        self._began = clock.now()
        self._turn: tuple[Holder, float] | None = None
        self._poll_s = POLL_MIN_S
        self._next_death_check = self._began
        self._marked = False
        self._serials: dict[int, int] = {}

    def yields(self, record: LockRecord) -> bool:
        """Whether to leave a lock that could be taken to the host that is marked in it."""
        if not self._patient or record.waiter is None:
            return False
        now = self._clock.now()
        if self._turn is None or self._turn[0] != record.waiter:
            self._turn = (record.waiter, now)
        return now - self._turn[1] < (TURN_S if record.mode is not LockMode.SHARED else SHARED_TURN_S)

    def recover_dead(self, refused: Refused) -> bool:
        """Recover a holder that is dead; True when it is worth trying again at once."""
        now = self._clock.now()
        if now < self._next_death_check:
            return False
        self._next_death_check = now + DEATH_CHECK_S
        recovered = [self._recoveries.recover_dead(h) for h in refused.holders]
        return any(recovered)

    def pause(self, refused: Refused, left_s: float | None) -> None:
        """Make the wait known, and sleep for a poll, at most `left_s` seconds. Raises LeaseExpired, LeaseLost."""
        if refused.holders:
            try:
                self._marked = self._sectors.mark(refused, self._mode) or self._marked
            except STORAGE_ERRORS:
                self._marked = True  # it may be there; a mark is a hint, and the next try meets the error if it stays
            kept = refused.record.flags & FLAG_KEPT_UNTIL_ASKED
            if kept or self._clock.now() - self._began >= ASK_AFTER_S:
                self._ask(refused.holders)
        pause = self._poll_s * self._random.uniform(0.5, 1.0)
        self._poll_s = min(POLL_MAX_S, self._poll_s * 2)
        self._clock.sleep(pause if left_s is None else min(pause, left_s))

    def _ask(self, holders: tuple[Holder, ...]) -> None:
        for holder in holders:
            if holder.slot not in self._serials:
                with contextlib.suppress(RequestsFull):  # the mark is there; a place may be free at the next poll
                    self._serials[holder.slot] = self._membership.post_request(
                        RequestKind.ASK_RELEASE, holder.slot, self._address
                    )

    def close(self, taken: bool) -> None:
        """The wait is over. A mark is left behind when the storage or the lease does not let it be taken out."""
        for serial in self._serials.values():
            self._membership.clear_request(serial)
        if self._marked and not taken:
            with contextlib.suppress(VmfsError, *STORAGE_ERRORS):
                self._sectors.unmark(self._address)
