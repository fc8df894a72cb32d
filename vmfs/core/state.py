"""What every operation of a mount works on, put together once at mount time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.locks import LockManager
from vmfs.cluster.membership import Membership
from vmfs.cluster.watchdog import Watchdog
from vmfs.core.blockio import BlockIO, Scratch
from vmfs.core.filemap import MapWriter
from vmfs.core.groups import Groups
from vmfs.core.leased import Lease, LeasedIO
from vmfs.core.objects import OrphansObject
from vmfs.core.store import Store
from vmfs.core.transactions import Transactions
from vmfs.core.units import Units
from vmfs.geometry import Geometry
from vmfs.volume import Volume

# What another host may see late adds up to a second: this host publishes its changes, theirs believe what they read,
# and their kernel believes what it was told, each for a third of it.
PUBLISH_SECONDS: Final = 0.3
BELIEVE_SECONDS: Final = 0.3
KERNEL_CACHE_SECONDS: Final = 0.3

# How long an operation waits for a lock that a live host holds before it says EBUSY. Idle locks change hands within
# milliseconds; what is held longer is held for an open file.
LOCK_WAIT_SECONDS: Final = 1.0

# A directory is never held for an open file: hosts that change it take turns, and a busy machine's turns are long.
DIRECTORY_WAIT_SECONDS: Final = 10.0


@dataclass(slots=True)
class Core:
    """The parts of a mounted volume."""

    volume: Volume
    geometry: Geometry
    clock: Clock
    membership: Membership
    locks: LockManager
    io: LeasedIO
    data: BlockIO
    store: Store
    groups: Groups
    units: Units
    transactions: Transactions
    maps: MapWriter
    orphans: OrphansObject
    random: random.Random
    patience: Lease
    """Where a lease is looked at by what may wait for one."""
    read_only: bool = False
    lock_proof: str = ""  # what was shown at mount of the lock method
    watchdogs: list[Watchdog] = field(default_factory=list)
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def block_bytes(self) -> int:
        return self.volume.superblock.block_bytes

    @property
    def name(self) -> str:
        """What messages call the volume."""
        return self.volume.superblock.label

    def new_id(self) -> int:
        """A number that no other map or directory has (63 random bits: a collision is not to be expected, ever)."""
        return self.random.getrandbits(63) | 1
