"""A SCSI disk of this machine as a `contract.Device`: blocks by the kernel's disk, locks and fences by SCSI commands.

Registrations (rule R3) are made on each path, for each is a nexus. The disk is one for the whole machine, so there is
one mount of it a machine (`vmfs.cluster.nexuslock`). The kernel hands the refusal of a write on as EBADE. How long it
keeps a write under way (F of rule A1) is its own affair, and no promise is made here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from vmfs.devices.block import BlockDevice
from vmfs.devices.contract import LockMethod, check_compare_and_write
from vmfs.devices.ofdlock import OfdRangeLock
from vmfs.devices.reservations import Reservations
from vmfs.devices.scsi.compare import Comparer
from vmfs.devices.scsi.facts import LunFacts, meet
from vmfs.devices.scsi.reservations import ScsiReservations
from vmfs.devices.sgio.paths import ScsiPaths, find_paths
from vmfs.devices.sgio.transport import SgPaths
from vmfs.errors import DeviceNotUsable, LockMethodUnusable


class ScsiBlockDevice(BlockDevice):
    """A disk, a partition of one, or a multipath map. Thread-safe as `BlockDevice` is.

    Locks by COMPARE AND WRITE where the LUN has proved it, else as PAXOS; OFD_HOST can be asked for, on a disk that no
    other machine reaches.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        *,
        logical_block_bytes: int,
        read_only: bool,
        method: LockMethod,
        locks: Mapping[LockMethod, OfdRangeLock],
    ) -> None:
        """As `BlockDevice`; DeviceNotUsable when it is no SCSI disk, DeviceError when the LUN answers wrongly."""
        super().__init__(
            name, fd, logical_block_bytes=logical_block_bytes, read_only=read_only, method=method, locks=locks
        )
        found = self._find_paths()
        self._transport = SgPaths(name, lambda: self._find_paths().nodes, read_only=read_only)
        try:
            self._facts = meet(self._transport)
        except BaseException:
            self._transport.close()
            raise
        self._own_reservations = ScsiReservations(self._transport, self._transport.look)
        self._comparer = Comparer(
            self._transport, self._facts, self.read, sector_bytes=logical_block_bytes, size_bytes=self.size_bytes,
            read_only=read_only, base_offset=found.offset,
        )  # fmt: skip
        self._chosen: LockMethod | None = None

    @property
    def facts(self) -> LunFacts:
        """What the LUN said of itself when it was opened."""
        return self._facts

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        """As the contract. MisalignedIO for more than one sector where the target compares no more at once."""
        if (self._chosen or self.lock_methods()[0]) is LockMethod.OFD_HOST:
            return super().compare_and_write(offset, old, new)
        check_compare_and_write(self, offset, old, new)
        self._check_change("compare_and_write", offset, len(new))
        self._live_fd()
        return self._comparer.run(offset, old, new)

    def lock_methods(self) -> tuple[LockMethod, ...]:
        """As the contract; the first call issues the proof. Raises DeviceError when that has no clear outcome."""
        self._live_fd()
        everywhere = (LockMethod.PAXOS, *self._methods)
        if not self._comparer.works():
            return everywhere
        if self._facts.forgets_exclusion:
            return (LockMethod.PAXOS, LockMethod.SCSI_CAW, *self._methods)
        return (LockMethod.SCSI_CAW, *everywhere)

    def use_lock_method(self, method: LockMethod) -> None:
        usable = self.lock_methods()
        if method not in usable:
            raise LockMethodUnusable(self.name, LockMethod(method).name, ", ".join(each.name for each in usable))
        self._chosen = method

    def reservations(self) -> Reservations | None:
        """As the contract; None also where the LUN says that its reservations end with its power."""
        return self._own_reservations if self._facts.can_reserve else None

    def _find_paths(self) -> ScsiPaths:
        found = find_paths(self.name, os.fstat(self._live_fd()).st_rdev)
        if found is None:
            raise DeviceNotUsable(self.name, "is no SCSI disk")
        return found

    def close(self) -> None:
        super().close()
        self._transport.close()
