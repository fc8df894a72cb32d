"""A SCSI disk as a `contract.Device`, over any transport."""

from __future__ import annotations

import logging
from typing import Final

from vmfs.devices.contract import LockMethod, ReadableBuffer, check_compare_and_write, check_range
from vmfs.devices.direct import choose_sector_bytes
from vmfs.devices.reservations import Reservations
from vmfs.devices.scsi import commands
from vmfs.devices.scsi.compare import Comparer
from vmfs.devices.scsi.facts import LunFacts, read_capacity
from vmfs.devices.scsi.issue import CommandRefused, issue
from vmfs.devices.scsi.transport import Repeat, ScsiTransport
from vmfs.errors import DeviceError, DeviceGone, DeviceReadOnly, LockMethodUnusable

TRANSFER_MAX_BYTES: Final = 1 << 20  # one FUSE request of the largest size
ZERO_AT_ONCE_BYTES: Final = 64 << 20  # of WRITE SAME: a disk of 50 MB/s does it well within a command's time
UNMAP_AT_ONCE_BYTES: Final = 1 << 30  # targets work on it before they answer
_ZEROS: Final = bytes(TRANSFER_MAX_BYTES)

log = logging.getLogger("vmfs.devices")


class ScsiDisk:
    """A LUN. Thread-safe as its transport is."""

    def __init__(
        self,
        transport: ScsiTransport,
        facts: LunFacts,
        *,
        reservations: Reservations | None,
        read_only: bool = False,
        sector_bytes: int | None = None,
    ) -> None:
        """`sector_bytes` (512 or 4096) may be larger than the LUN's own. DeviceNotUsable when the two do not fit."""
        self._transport = transport
        self._facts = facts
        self._reservations = reservations
        self._read_only = read_only
        self._block_bytes = facts.capacity.block_bytes
        self._sector_bytes = choose_sector_bytes(transport.name, self._block_bytes, sector_bytes)
        self._size_bytes = self._rounded(facts.capacity.blocks)
        limit = facts.limits.transfer_blocks * self._block_bytes or TRANSFER_MAX_BYTES
        self._transfer_bytes = max(self._sector_bytes, min(limit, TRANSFER_MAX_BYTES))
        self._comparer = Comparer(
            transport, facts, self.read,
            sector_bytes=self._sector_bytes, size_bytes=self._size_bytes, read_only=read_only,
        )  # fmt: skip
        self._can_write_same = True
        self._can_unmap = facts.provisioning.unmap
        self._closed = False

    @property
    def name(self) -> str:
        return self._transport.name

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def logical_block_bytes(self) -> int:
        return self._sector_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def facts(self) -> LunFacts:
        """What the LUN said of itself when it was opened."""
        return self._facts

    # -- transfers ---------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        self._check_open()
        check_range(self, offset, len(view))
        for start in range(0, len(view), self._transfer_bytes):
            part = view[start : start + self._transfer_bytes]
            at = offset + start
            cdb = commands.read_16(at // self._block_bytes, len(part) // self._block_bytes)
            answer = issue(self._transport, cdb, "read", at, len(part), data_in=part)
            if answer.received_bytes != len(part):
                reason = f"the target sends {answer.received_bytes} bytes"
                raise DeviceError(self.name, "read", at, len(part), reason)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        self._check_change("write", offset, len(view))
        for start in range(0, len(view), self._transfer_bytes):
            part = view[start : start + self._transfer_bytes]
            at = offset + start
            cdb = commands.write_16(at // self._block_bytes, len(part) // self._block_bytes)
            issue(self._transport, cdb, "write", at, len(part), data_out=part, repeat=Repeat.WITH_LEASE)

    def flush(self) -> None:
        self._check_open()
        issue(self._transport, commands.synchronize_cache_16(), "flush", 0, self._size_bytes)

    # -- compare and write -------------------------------------------------------------------------

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        """As the contract. MisalignedIO for more than one sector where the target compares no more at once."""
        check_compare_and_write(self, offset, old, new)
        self._check_change("compare_and_write", offset, len(new))
        return self._comparer.run(offset, old, new)

    def lock_methods(self) -> tuple[LockMethod, ...]:
        """As the contract; the first call issues the proof. Raises DeviceError when that has no clear outcome."""
        self._check_open()
        if not self._comparer.works():
            return (LockMethod.PAXOS,)
        if self._facts.forgets_exclusion:
            return (LockMethod.PAXOS, LockMethod.SCSI_CAW)
        return (LockMethod.SCSI_CAW, LockMethod.PAXOS)

    def use_lock_method(self, method: LockMethod) -> None:
        usable = self.lock_methods()
        if method not in usable:
            raise LockMethodUnusable(self.name, LockMethod(method).name, ", ".join(each.name for each in usable))

    # -- space -------------------------------------------------------------------------------------

    def discard(self, offset: int, length: int) -> bool:
        self._check_change("discard", offset, length)
        limit = self._facts.limits.unmap_blocks * self._block_bytes or UNMAP_AT_ONCE_BYTES
        step = max(self._sector_bytes, min(limit, UNMAP_AT_ONCE_BYTES))
        for at in range(offset, offset + length, step):
            if not self._can_unmap:
                return False
            size = min(step, offset + length - at)
            parameters = commands.unmap_list(at // self._block_bytes, size // self._block_bytes)
            try:
                issue(
                    self._transport, commands.unmap(parameters), "discard", at, size, data_out=parameters,
                    repeat=Repeat.WITH_LEASE,
                )  # fmt: skip
            except CommandRefused as error:
                if not error.is_unsupported:
                    raise
                self._can_unmap = False
        return self._can_unmap

    def write_zeros(self, offset: int, length: int) -> None:
        self._check_change("write_zeros", offset, length)
        limit = self._facts.limits.write_same_blocks * self._block_bytes or ZERO_AT_ONCE_BYTES
        step = max(self._sector_bytes, min(limit, ZERO_AT_ONCE_BYTES))
        for at in range(offset, offset + length, step):
            size = min(step, offset + length - at)
            if not (self._can_write_same and self._write_same_zeros(at, size)):
                for start in range(at, at + size, TRANSFER_MAX_BYTES):
                    self.write(start, memoryview(_ZEROS)[: at + size - start])

    def _write_same_zeros(self, offset: int, length: int) -> bool:
        """False: the target does not do it, now or ever."""
        cdb = commands.write_same_16(offset // self._block_bytes, length // self._block_bytes)
        zeros = _ZEROS[: self._block_bytes]
        try:
            issue(
                self._transport, cdb, "write_zeros", offset, length, data_out=zeros, repeat=Repeat.WITH_LEASE
            )
        except CommandRefused as error:
            if not error.is_unsupported:
                raise
            log.debug("%s: cannot zero by itself, zeros are written", self.name)
            self._can_write_same = False
            return False
        return True

    # -- the rest ----------------------------------------------------------------------------------

    def fileno(self) -> int | None:
        return None

    def reservations(self) -> Reservations | None:
        """As the contract; None also where the LUN says that its reservations end with its power."""
        return self._reservations if self._facts.can_reserve else None

    def refresh_size(self) -> int:
        self._check_open()
        capacity = read_capacity(self._transport)
        if capacity.block_bytes != self._block_bytes:
            reason = f"its blocks have {capacity.block_bytes} bytes now, not {self._block_bytes}"
            raise DeviceError(self.name, "size query", 0, 0, reason)
        self._size_bytes = self._rounded(capacity.blocks)
        return self._size_bytes

    def close(self) -> None:
        self._closed = True

    def _rounded(self, blocks: int) -> int:
        size = blocks * self._block_bytes
        return size - size % self._sector_bytes

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceGone(f"device {self.name}", "it was closed")

    def _check_change(self, operation: str, offset: int, length: int) -> None:
        self._check_open()
        check_range(self, offset, length)
        if self._read_only:
            raise DeviceReadOnly(self.name, operation)
