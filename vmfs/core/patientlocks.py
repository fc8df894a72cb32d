"""Locks for operations that wait while the lease has run out for a moment, as reads and writes of files do.

A lease that lapses and comes back has cost nobody anything: the locks are still this host's. So an operation on names
or attributes waits, too, instead of failing. It does not wait for ever: a storage that stays silent for longer than the
break time has all who wait told EIO (`vmfs.core.silence`), and a host that was fenced fails at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vmfs.cluster.locks import LockManager
from vmfs.cluster.locktable import Tenure
from vmfs.core.leased import Lease
from vmfs.errors import LeaseExpired
from vmfs.ondisk.lock import Guards, LockMode

T = TypeVar("T")


class PatientLocks(LockManager):
    """As LockManager; what finds no lease is done again once there is one. Set `patience` before the first use.

    Raises LeaseLost and MountClosing where LockManager does, and what `patience` raises.
    """

    patience: Lease

    def acquire(
        self, address: int, guards: Guards, mode: LockMode = LockMode.EXCLUSIVE, *, wait: float | None = None,
        sticky: bool = False,
    ) -> Tenure:  # fmt: skip
        """As LockManager's; `wait` begins anew after a lapse."""
        take = super().acquire
        return self._patiently(lambda: take(address, guards, mode, wait=wait, sticky=sticky))

    def create(self, address: int, guards: Guards, block_bytes: int) -> Tenure:
        """As LockManager's."""
        make = super().create
        return self._patiently(lambda: make(address, guards, block_bytes))

    def _patiently(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except LeaseExpired:
                self.patience.check()
