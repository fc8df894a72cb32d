"""Compare-and-write by the target's COMPARE AND WRITE, where one that was issued proves that it works.

Some targets advertise it in page B0 and refuse it. The proof changes nothing. At PROBE_OFFSET, a block that a volume
keeps for this, the content is replaced by itself, and then by itself on a comparison that must fail.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from vmfs.devices.contract import LockMethod
from vmfs.devices.scsi import commands
from vmfs.devices.scsi.facts import LunFacts
from vmfs.devices.scsi.issue import CommandRefused, issue
from vmfs.devices.scsi.sense import Key
from vmfs.devices.scsi.transport import Repeat, ScsiTransport
from vmfs.errors import LockMethodUnusable, MisalignedIO, ReservationConflict

PROBE_OFFSET: Final = 192 << 10  # the volume format's probe block lies there

log = logging.getLogger("vmfs.devices")


class Comparer:
    """Compares and writes on one device. Thread-safe as its transport is; `_mutex` guards the proof's outcome."""

    def __init__(
        self,
        transport: ScsiTransport,
        facts: LunFacts,
        read: Callable[[int, int], bytes],
        *,
        sector_bytes: int,
        size_bytes: int,
        read_only: bool,
        base_offset: int = 0,
    ) -> None:
        """`read` is the device's. `base_offset`: where byte 0 of the device lies on the LUN, of which it may be a part.

        `sector_bytes` may be larger than the LUN's own blocks; it is what a comparison is made of at least.
        """
        self._transport = transport
        self._read = read
        self._block_bytes = facts.capacity.block_bytes
        self._advertised_blocks = facts.limits.compare_and_write_blocks
        self._forgets_exclusion = facts.forgets_exclusion
        self._sector_bytes = sector_bytes
        self._size_bytes = size_bytes
        self._read_only = read_only
        self._base = base_offset
        self._mutex = threading.Lock()
        self._works: bool | None = None  # None: not tried yet

    def works(self) -> bool:
        """Whether the target does it; the first call issues the proof. DeviceError when that has no clear outcome."""
        with self._mutex:
            if self._works is None:
                self._works = self._prove()
            return self._works

    def run(self, offset: int, old: bytes, new: bytes) -> bool:
        """As `contract.Device.compare_and_write`, on a range that was checked.

        LockMethodUnusable where it does not work, MisalignedIO for more than one sector where the target compares no
        more at once.
        """
        if not self.works():
            raise LockMethodUnusable(self._transport.name, LockMethod.SCSI_CAW.name, LockMethod.PAXOS.name)
        limit = max(self._advertised_blocks * self._block_bytes, self._sector_bytes)
        if len(new) > limit:
            rule = f"the target compares and writes at most {limit} bytes at once"
            raise MisalignedIO(self._transport.name, offset, len(new), rule)
        return self._issue(offset, old, new)

    def _issue(self, offset: int, old: bytes, new: bytes) -> bool:
        lba = (self._base + offset) // self._block_bytes
        cdb = commands.compare_and_write(lba, len(new) // self._block_bytes)
        try:
            issue(
                self._transport, cdb, "compare_and_write", offset, len(new), data_out=old + new, repeat=Repeat.NEVER
            )
        except CommandRefused as error:
            if error.sense.key is Key.MISCOMPARE:
                return False
            raise
        return True

    def _prove(self) -> bool:
        if self._forgets_exclusion and self._advertised_blocks > 0:
            # It has the command; and this one, sent before this host is registered, might be refused. The mount proves
            # it when it has registered.
            return True
        at = PROBE_OFFSET if PROBE_OFFSET + self._sector_bytes <= self._size_bytes else 0
        content = self._read(at, self._sector_bytes)
        other = bytes(byte ^ 0xFF for byte in content)
        name = self._transport.name
        try:
            # The comparison that must fail goes first: it is all that a LUN opened for reading may be asked.
            if self._issue(at, other, content):
                log.warning("%s: its COMPARE AND WRITE does not compare; it is not used", name)
                return False
            return self._read_only or self._issue(at, content, content)
        except ReservationConflict:
            # Not registered yet, so nothing can be tried. The first claim of a slot is the proof then.
            return self._advertised_blocks > 0
        except CommandRefused as error:
            if not error.is_unsupported:
                raise
            log.info("%s: no COMPARE AND WRITE: %s", name, error.sense)
            return False
