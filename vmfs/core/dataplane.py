"""The data plane: reads and writes of open files, between the request's own memory and the LUN.

The hot path builds no object and takes no lock: the open file by its handle, the pointer out of the view, one
preadv/pwritev, and the lease, looked at before a submission and again before its result counts (rule R1). Whatever
needs more goes to `SlowWriter`, or to a control thread when it may have to wait for another host.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from errno import EBADF, EIO
from typing import Final

from vmfs.core.openfile import Handle, OpenFile, OpenFiles, handed_over
from vmfs.core.silence import Silence
from vmfs.core.slowwrite import NeedRoom, SlowWriter
from vmfs.core.state import Core
from vmfs.core.succession import Legacy, lost
from vmfs.errors import DamagedBlock, LeaseExpired, NotSentAgain, ReservationConflict, VmfsError
from vmfs.events import event_of
from vmfs.fuse.contract import WouldBlock
from vmfs.ondisk.node import ADDRESS_MASK, POINTERS_PER_NODE, STATE_MASK, WRITTEN

log = logging.getLogger("vmfs.core")

_OWN_WRITTEN: Final = 7  # state and INHERITED bits: see vmfs.core.views
_ZEROS: Final = bytes(1 << 20)
_LEASE_POLL_SECONDS: Final = 0.02
WAITING_WRITE_SECONDS: Final = 10.0  # for a file that is to come: a guest writes when it runs, so it is as good as here
_WAITING_POLL_SECONDS: Final = 0.002
# What was refused, or may have been done in part, for want of a lease: with one it is done again, whole.
_MADE_AGAIN: Final = (LeaseExpired, NotSentAgain, ReservationConflict)
_STALE_RETRIES: Final = 8  # a reader whose map keeps growing too old under it (a LUN slower than that is broken)


def as_oserror(error: VmfsError) -> OSError:
    """What a system call returns for an error of ours."""
    return OSError(error.errno, str(error))


class DataPlane:
    """Implements `vmfs.fuse.contract.DataPlane`."""

    def __init__(
        self, core: Core, files: OpenFiles, slow: SlowWriter, kill_setid: Callable[[int], None],
        legacy: Legacy | None = None,
    ) -> None:  # fmt: skip
        """`kill_setid(inode number)` clears the two bits of a file that has one of them."""
        self._legacy = legacy or Legacy()
        self.expects: Callable[[OpenFile], bool] = lambda file: False
        """Whether another host is to hand the file over to this one (`vmfs.core.handover`)."""
        self._kill_setid = kill_setid
        self._core = core
        self._now = core.clock.now
        self._files = files
        self._handles = files.handles
        self._busy = files.busy
        self._slow = slow
        self._io = core.data
        self._membership = core.membership
        self._silence = Silence(core.membership, core.clock)
        self._transactions = core.transactions
        self._shift = core.block_bytes.bit_length() - 1
        self._block = core.block_bytes
        self._mask = core.block_bytes - 1
        self._sector = core.volume.superblock.sector_bytes
        self._sector_mask = self._sector - 1
        self._validity = core.volume.superblock.timers.validity_us / 1e6

    # -- reading -----------------------------------------------------------------------------------

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """Fill buf[:n] from `offset`; n < size at the end of the file. Raises OSError."""
        handle = self._handles.get(fh)
        if handle is None:
            raise OSError(EBADF, f"no open file {fh}")
        file = handle.file
        try:
            if file.owned:
                began = self._now()
                if began >= self._membership.lease_deadline:
                    self._membership.check_lease()  # the storage may not answer
                count = self._read(file, buf, offset, size)
                now = self._now()
                if now >= self._membership.lease_deadline:
                    self._membership.check_lease()
                if now - began <= self._validity:
                    return count
            return self._read_shared(file, buf, offset, size)
        except LeaseExpired:
            raise WouldBlock from None
        except VmfsError as error:
            raise self._failed_read(file, offset, error) from error

    def read_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As `read`, on a control thread: waits for a lease that comes back."""
        handle = self._handles.get(fh)
        if handle is None:
            raise OSError(EBADF, f"no open file {fh}")
        file = handle.file
        try:
            return self._patiently(lambda: self._read_shared(file, buf, offset, size))
        except VmfsError as error:
            raise self._failed_read(file, offset, error) from error

    def _patiently(self, action: Callable[[], int]) -> int:
        """Do again what found no lease, as long as the lease may come back soon. Raises StorageSilent."""
        while True:
            try:
                self._membership.check_lease()  # before too: the storage may not answer
                return action()
            except _MADE_AGAIN:
                self._core.transactions.check()
                self._silence.check()
            self._core.clock.sleep(_LEASE_POLL_SECONDS)

    def _read(self, file: OpenFile, buf: memoryview, offset: int, size: int) -> int:
        left = file.size - offset
        if left <= 0:
            return 0
        if size > left:
            size = left
        inner = offset & self._mask
        if inner + size > self._block or offset & self._sector_mask:
            return self._read_parts(file, buf, offset, size)
        block = offset >> self._shift
        leaf = file.view.leaves.get(block // POINTERS_PER_NODE)
        pointer = leaf[block % POINTERS_PER_NODE] if leaf is not None else file.view.pointer(block)
        if pointer & STATE_MASK == WRITTEN:
            self._io.read((pointer & ADDRESS_MASK) + inner, buf[: -(-size // self._sector) * self._sector])
        else:
            buf[:size] = _ZEROS[:size]
        return size

    def _read_parts(self, file: OpenFile, buf: memoryview, offset: int, size: int) -> int:
        """Read over several blocks, or from between two sectors: wider, and then moved into place."""
        start = offset & ~self._sector_mask
        end = -(-(offset + size) // self._sector) * self._sector
        at = start
        run_address, run_from, run_to = 0, 0, 0  # neighbouring blocks are read together
        while at < end:
            block = at >> self._shift
            stop = min(end, (block + 1) << self._shift)
            pointer = file.view.pointer(block)
            low, high = at - start, stop - start
            if pointer & STATE_MASK == WRITTEN:
                address = (pointer & ADDRESS_MASK) + (at & self._mask)
                if run_to == low and run_to > run_from and address == run_address + run_to - run_from:
                    run_to = high
                else:
                    if run_to > run_from:
                        self._io.read(run_address, buf[run_from:run_to])
                    run_address, run_from, run_to = address, low, high
            else:
                buf[low:high] = _ZEROS[: high - low]
            at = stop
        if run_to > run_from:
            self._io.read(run_address, buf[run_from:run_to])
        if start != offset:
            skip = offset - start
            buf[:size] = buf[skip : skip + size]
        return size

    def _read_shared(self, file: OpenFile, buf: memoryview, offset: int, size: int) -> int:
        """What was read counts only if the map was validated late enough (R8): a block that was freed since then, here
        or by another host, may be another file's by now. While the file is owned its map is valid at any time."""
        problem: DamagedBlock | None = None
        for _ in range(_STALE_RETRIES):
            began = self._core.clock.now() if file.owned else None
            file.refresh()
            since = file.since if began is None else began
            try:
                count = self._read(file, buf, offset, size)
            except DamagedBlock as error:
                # The map may have changed under us: a node was freed and reused between two looks at it.
                problem = error
                file.expire()
                continue
            self._membership.check_lease()
            if self._core.clock.now() - since <= self._validity:
                return count
            file.expire()
        if problem is not None:
            raise problem
        log.error("volume %s: reads of inode %d take longer than %g s", self._core.name, file.number, self._validity)
        raise OSError(EIO, "the storage is too slow to read safely")

    # -- writing -----------------------------------------------------------------------------------

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """Write buf[:size]. Raises OSError; WouldBlock when room must be made first or the file's gate is closed."""
        handle = self._handles.get(fh)
        if handle is None or not handle.writes:
            if handle is not None and self._is_to_come(handle):
                raise WouldBlock
            raise self._not_writable(fh, handle)
        file = handle.file
        try:
            if (offset | size) & self._sector_mask or offset + size > file.size:
                self._slow.write(file, buf[:size], offset, may_wait=False)
                return size
            if self._write_in_place(file, buf, offset, size):
                return size
            self._slow.write(file, buf[:size], offset, may_wait=False)
        except (NeedRoom, *_MADE_AGAIN):
            raise WouldBlock from None
        except VmfsError as error:
            raise self._failed_write(file, offset, error) from error
        return size

    def _write_in_place(self, file: OpenFile, buf: memoryview, offset: int, size: int) -> bool:
        """Write to blocks that are the file's own and written already; False when one is not."""
        thread = threading.get_ident()
        busy = self._busy
        busy[thread] = file
        try:
            if file.gated or not file.owned:
                busy[thread] = None
                raise WouldBlock
            if self._transactions.failure is not None:
                self._transactions.check()
            inner = offset & self._mask
            view = file.view
            if inner + size <= self._block:
                block = offset >> self._shift
                leaf = view.leaves.get(block // POINTERS_PER_NODE)
                pointer = leaf[block % POINTERS_PER_NODE] if leaf is not None else view.pointer(block)
                if pointer & _OWN_WRITTEN != WRITTEN:
                    return False
                if self._now() >= self._membership.lease_deadline:
                    self._membership.check_lease()
                self._io.write((pointer & ADDRESS_MASK) + inner, buf[:size])
            elif not self._write_parts(file, buf, offset, size):
                return False
            file.touched = True
        finally:
            busy[thread] = None
        if self._now() >= self._membership.lease_deadline:
            self._membership.check_lease()
        return True

    def _write_parts(self, file: OpenFile, buf: memoryview, offset: int, size: int) -> bool:
        end = offset + size
        parts: list[tuple[int, int, int]] = []
        at = offset
        while at < end:
            block = at >> self._shift
            stop = min(end, (block + 1) << self._shift)
            pointer = file.view.pointer(block)
            if pointer & _OWN_WRITTEN != WRITTEN:
                return False
            address = (pointer & ADDRESS_MASK) + (at & self._mask)
            if parts and parts[-1][0] + parts[-1][2] - parts[-1][1] == address:
                parts[-1] = (parts[-1][0], parts[-1][1], stop - offset)
            else:
                parts.append((address, at - offset, stop - offset))
            at = stop
        self._membership.check_lease()
        for address, low, high in parts:
            self._io.write(address, buf[low:high])
        return True

    def write_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As `write`, on a control thread: may wait, for room and for a lease that comes back."""
        file = self._writer(fh).file

        def write() -> int:
            self._slow.write(file, buf[:size], offset, may_wait=True)
            return size

        try:
            return self._patiently(write)
        except VmfsError as error:
            raise self._failed_write(file, offset, error) from error

    def append(self, fh: int, buf: memoryview, size: int, unique: int = 0) -> int:
        """Write at the file's end; returns where that was, -1 when it was done already. May wait."""
        handle = self._writer(fh)
        try:
            with self._legacy.once(self._core, unique) as done:
                return -1 if done else self._patiently(lambda: self._slow.append(handle.file, buf[:size]))
        except VmfsError as error:
            raise self._failed_write(handle.file, handle.file.size, error) from error

    def kill_suidgid(self, fh: int) -> None:
        """Clear set-user-id and set-group-id before a write that follows."""
        handle = self._handles.get(fh)
        if handle is not None and handle.file.setid:
            self._kill_setid(handle.file.number)

    def _is_to_come(self, handle: Handle) -> bool:
        return handle.waits and self.expects(handle.file)

    def _writer(self, fh: int) -> Handle:
        """The handle that may write, waited for when its file is to come from another host. Raises OSError."""
        until: float | None = None
        while True:
            handle = self._handles.get(fh)
            if handle is not None and handle.writes:
                return handle
            until = until or self._now() + WAITING_WRITE_SECONDS
            if handle is None or not self._is_to_come(handle) or self._now() >= until:
                raise self._not_writable(fh, self._handles.get(fh))
            self._core.clock.sleep(_WAITING_POLL_SECONDS)

    @staticmethod
    def _not_writable(fh: int, handle: Handle | None) -> OSError:
        if handle is not None and handle.lost:
            return lost(handle.file.number)
        if handle is not None and handle.waits:
            return handed_over(handle.file.number)
        return OSError(EBADF, f"no file open for writing {fh}")

    def _failed_read(self, file: OpenFile, offset: int, error: VmfsError) -> OSError:
        log.error(
            "volume %s: read of inode %d at %d: %s", self._core.name, file.number, offset, error,
            extra=event_of(error),
        )  # fmt: skip
        return as_oserror(error)

    def _failed_write(self, file: OpenFile, offset: int, error: VmfsError) -> OSError:
        log.error(
            "volume %s: write to inode %d at %d: %s", self._core.name, file.number, offset, error,
            extra=event_of(error),
        )  # fmt: skip
        return as_oserror(error)
