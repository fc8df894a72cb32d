"""The parts of a mount that count what they do. Each does what the plain one does, and adds to the meters."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from vmfs.cluster.heartbeat import Renewal
from vmfs.cluster.locktable import Tenure
from vmfs.cluster.membership import Membership
from vmfs.core.blockio import BlockIO
from vmfs.core.flights import Flights
from vmfs.core.journal import Journal
from vmfs.core.leased import Lease, LeasedIO
from vmfs.core.parts import Parts
from vmfs.core.patientlocks import PatientLocks
from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.extents import ExtentSet
from vmfs.errors import LockedByOther, VmfsError
from vmfs.fuse.contract import DataPlane, Negotiated, Operations, WouldBlock
from vmfs.fuse.dispatch import Dispatcher
from vmfs.fuse.layouts import IN_HEADER, OUT_HEADER
from vmfs.fuse.protocol import Opcode, opcode_name
from vmfs.metrics.meters import Meters
from vmfs.ondisk.journal import Image, Revoke
from vmfs.ondisk.lock import Guards, LockMode


def measured_parts(meters: Meters) -> Parts:
    """The parts for a mount whose doings are counted by `meters`."""
    return Parts(
        membership=partial(MeasuredMembership, meters), locks=partial(MeasuredLocks, meters),
        journal=partial(MeasuredJournal, meters), leased_io=partial(MeasuredLeasedIO, meters),
        block_io=partial(MeasuredBlockIO, meters), dispatcher=partial(MeasuredDispatcher, meters),
        plane=partial(MeasuredPlane, meters),
    )  # fmt: skip


class MeasuredPlane:
    """Reads and writes of files. One that comes back as WouldBlock is counted when it is done the slow way."""

    def __init__(self, meters: Meters, plane: DataPlane) -> None:
        self._plane = plane
        self._read_seconds = meters.requests.labels("READ")
        self._write_seconds = meters.requests.labels("WRITE")
        self._errors = meters.request_errors
        self.kill_suidgid = plane.kill_suidgid

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As the plane's."""
        began = perf_counter()
        try:
            count = self._plane.read(fh, buf, offset, size)
        except WouldBlock:
            raise
        except Exception as error:
            self._note_failed("READ", error)
            raise
        self._note_read(began, count)
        return count

    def read_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As the plane's."""
        began = perf_counter()
        try:
            count = self._plane.read_slow(fh, buf, offset, size)
        except WouldBlock:
            raise
        except Exception as error:
            self._note_failed("READ", error)
            raise
        self._note_read(began, count)
        return count

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As the plane's."""
        began = perf_counter()
        try:
            count = self._plane.write(fh, buf, offset, size)
        except WouldBlock:
            raise
        except Exception as error:
            self._note_failed("WRITE", error)
            raise
        self._note_written(began, count)
        return count

    def write_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As the plane's."""
        began = perf_counter()
        try:
            count = self._plane.write_slow(fh, buf, offset, size)
        except WouldBlock:
            raise
        except Exception as error:
            self._note_failed("WRITE", error)
            raise
        self._note_written(began, count)
        return count

    def append(self, fh: int, buf: memoryview, size: int, unique: int = 0) -> int:
        """As the plane's."""
        began = perf_counter()
        try:
            place = self._plane.append(fh, buf, size, unique)
        except WouldBlock:
            raise
        except Exception as error:
            self._note_failed("WRITE", error)
            raise
        self._note_written(began, size)
        return place

    def _note_failed(self, opcode: str, error: Exception) -> None:
        number = getattr(error, "errno", None) or errno.EIO
        self._errors.labels(opcode, errno.errorcode.get(number, str(number))).inc()

    def _note_read(self, began: float, count: int) -> None:
        self._read_seconds.observe(perf_counter() - began, count)

    def _note_written(self, began: float, count: int) -> None:
        self._write_seconds.observe(perf_counter() - began, count)


class MeasuredDispatcher(Dispatcher):
    """All other requests."""

    def __init__(self, meters: Meters, operations: Operations, negotiated: Negotiated) -> None:
        super().__init__(operations, negotiated)
        self._seconds = {int(o): meters.requests.labels(o.name) for o in Opcode}
        self._unknown = meters.requests.labels("unknown")
        self._errors = meters.request_errors

    def handle(self, request: bytes) -> bytes | None:
        """As the dispatcher's."""
        began = perf_counter()
        reply = super().handle(request)
        opcode = IN_HEADER.unpack_from(request)[1] if len(request) >= IN_HEADER.size else -1
        self._seconds.get(opcode, self._unknown).observe(perf_counter() - began)
        if reply is not None and (number := -OUT_HEADER.unpack_from(reply)[1]):
            name = opcode_name(opcode) if opcode in self._seconds else "unknown"
            self._errors.labels(name, errno.errorcode.get(number, str(number))).inc()
        return reply


class _Timed:
    """Storage I/O of one kind."""

    def __init__(self, meters: Meters, kind: str) -> None:
        self._seconds = {o: meters.io.labels(kind, o) for o in ("read", "write", "flush")}
        self._errors = {o: meters.io_errors.labels(kind, o) for o in ("read", "write", "flush")}

    @contextmanager
    def __call__(self, operation: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        except VmfsError:
            self._errors[operation].inc()
            raise
        finally:
            self._seconds[operation].observe(perf_counter() - began)


class MeasuredBlockIO(BlockIO):
    """I/O of files' data."""

    def __init__(self, meters: Meters, extents: ExtentSet, flights: Flights) -> None:
        super().__init__(extents, flights)
        # Without a context manager: this is the hot path.
        self._read_seconds, self._write_seconds = (meters.io.labels("data", o) for o in ("read", "write"))
        self._read_errors, self._write_errors = (meters.io_errors.labels("data", o) for o in ("read", "write"))

    def read(self, address: int, buf: memoryview) -> None:
        """As BlockIO's."""
        began = perf_counter()
        try:
            super().read(address, buf)
        except VmfsError:
            self._read_errors.inc()
            raise
        finally:
            self._read_seconds.observe(perf_counter() - began)

    def write(self, address: int, buf: memoryview) -> None:
        """As BlockIO's."""
        began = perf_counter()
        try:
            super().write(address, buf)
        except VmfsError:
            self._write_errors.inc()
            raise
        finally:
            self._write_seconds.observe(perf_counter() - began)


class MeasuredLeasedIO(LeasedIO):
    """I/O of metadata, and all flushes."""

    def __init__(self, meters: Meters, extents: ExtentSet, lease: Lease, flights: Flights) -> None:
        super().__init__(extents, lease, flights)
        self._timed = _Timed(meters, "metadata")

    def read(self, address: int, length: int) -> bytes:
        """As LeasedIO's."""
        with self._timed("read"):
            return super().read(address, length)

    def write(self, address: int, data: ReadableBuffer) -> None:
        """As LeasedIO's."""
        with self._timed("write"):
            super().write(address, data)

    def flush(self) -> None:
        """As LeasedIO's."""
        with self._timed("flush"):
            super().flush()


class MeasuredJournal(Journal):
    """Commits."""

    def __init__(self, meters: Meters, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._meters = meters

    def append(self, images: Sequence[Image], revokes: Sequence[Revoke], position: int) -> int:
        """As Journal's."""
        began = perf_counter()
        sequence = super().append(images, revokes, position)
        self._meters.commits.observe(perf_counter() - began)
        self._meters.commit_blocks.inc(len(images))
        return sequence


class MeasuredLocks(PatientLocks):
    """Locks as they are asked for."""

    def __init__(self, meters: Meters, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._meters = meters
        self._seconds = {g: meters.lock_waits.labels(g.name.lower()) for g in Guards}

    def acquire(
        self, address: int, guards: Guards, mode: LockMode = LockMode.EXCLUSIVE, *, wait: float | None = None,
        sticky: bool = False,
    ) -> Tenure:  # fmt: skip
        """As PatientLocks'."""
        began = perf_counter()
        try:
            return super().acquire(address, guards, mode, wait=wait, sticky=sticky)
        except LockedByOther:
            self._meters.lock_refusals.labels(guards.name.lower()).inc()
            raise
        finally:
            self._seconds[guards].observe(perf_counter() - began)

    def lose_all(self) -> None:
        """As PatientLocks'."""
        self._meters.locks_lost.inc(len(self.all_held()))
        super().lose_all()


class MeasuredMembership(Membership):
    """Heartbeats."""

    def __init__(self, meters: Meters, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._meters = meters

    def beat(self) -> Renewal:
        """As Membership's."""
        began = perf_counter()
        outcome = super().beat()
        self._meters.heartbeats.observe(perf_counter() - began)
        if outcome is not Renewal.LANDED:
            self._meters.heartbeat_misses.inc()
        return outcome
