"""A process' way to the disk: a `vmfs.devices.contract.Device` whose requests may be lost, stuck, or outlive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulator.engine import Killed
from tests.simulator.lun import CHANGES, SECTOR, Io, Lun
from tests.simulator.scsi import PathReservations
from vmfs.devices.contract import LockMethod, ReadableBuffer, check_compare_and_write, check_range
from vmfs.devices.reservations import Reservations
from vmfs.errors import DeviceError, DeviceGone

if TYPE_CHECKING:
    from tests.simulator.host import Process


class Inflight(dict[Io, None]):
    """A set that keeps its order."""

    def add(self, io: Io) -> None:
        self[io] = None

    def discard(self, io: Io) -> None:
        self.pop(io, None)


class Path:
    """One process' way to the disk: a `vmfs.devices.contract.Device` and a nexus of its own."""

    def __init__(self, lun: Lun, process: Process, name: str) -> None:
        self.lun = lun
        self.process = process
        self.name = name
        self.size_bytes = len(lun.memory)
        self.logical_block_bytes = SECTOR
        self.read_only = False
        self.inflight: Inflight = Inflight()
        self.unanswered: list[Io] = []
        self.stuck: list[Io] = []
        self.cut = False
        self.preempted_at = float("inf")
        self.was_registered = False
        self._closed = False

    # -- the contract -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        return self.request("read", offset, length)  # type: ignore[return-value]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        view[:] = self.read(offset, len(view))

    def write(self, offset: int, data: ReadableBuffer) -> None:
        content = bytes(data)
        check_range(self, offset, len(content))
        self.request("write", offset, len(content), content)

    def flush(self) -> None:
        self.request("flush", 0, 0)

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        check_compare_and_write(self, offset, old, new)
        if not self.lun.compares:
            raise DeviceError(self.name, "compare_and_write", offset, len(new), "invalid command operation code")
        return bool(self.request("caw", offset, len(new), bytes(new), bytes(old)))

    def discard(self, offset: int, length: int) -> bool:
        check_range(self, offset, length)
        return bool(self.request("discard", offset, length))

    def write_zeros(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def fileno(self) -> int | None:
        return None

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return (LockMethod.OFD_FILE,) if self.lun.compares else (LockMethod.PAXOS,)

    def use_lock_method(self, method: LockMethod) -> None:
        assert method in self.lock_methods()

    def reservations(self) -> Reservations | None:
        return PathReservations(self) if self.lun.reserves else None

    def refresh_size(self) -> int:
        return self.size_bytes

    def close(self) -> None:
        self._closed = True

    # -- faults -------------------------------------------------------------------------------------------------

    def cut_off(self) -> None:
        """The cable is out: requests wait, and answers are lost."""
        self.cut = True

    def heal(self) -> None:
        """The cable is in again."""
        self.cut = False
        stuck, self.stuck = self.stuck, []
        lun = self.lun
        for io in stuck:
            if io.dropped:
                continue
            old = lun.scheduler.now - io.submitted > lun.timing.late_max * 0.05
            if old and io.kind in CHANGES and not lun.reserves:
                # Without fencing the initiator must give up a write before it grows older than F (A1).
                io.dropped = True
                self.inflight.discard(io)
                io.error = DeviceError(self.name, io.kind, io.offset, io.length, "given up while the path was away")
                lun.deliver(io)
            else:
                lun.start(io)
        unanswered, self.unanswered = self.unanswered, []
        for io in unanswered:
            self.lun.deliver(io)

    def host_died(self) -> None:
        """Of what is on its way some lands, whole or in part."""
        rng = self.lun.rng
        for io in self.stuck:
            io.dropped = True
            self.inflight.discard(io)
        self.stuck.clear()
        for io in list(self.inflight):
            if rng.random() < 0.5:
                io.dropped = True
            elif io.kind == "write" and io.data is not None and rng.random() < 0.5 and io.length > SECTOR:
                self._shorten(io)

    def _shorten(self, io: Io) -> None:
        """Only the first sectors of a write reach the disk."""
        assert io.data is not None
        io.length = SECTOR * self.lun.rng.randrange(1, io.length // SECTOR)
        io.data = io.data[: io.length]

    # -- inside -------------------------------------------------------------------------------------------------

    def request(
        self, kind: str, offset: int, length: int, data: bytes | None = None, expected: bytes | None = None,
        action: Callable[[], object] | None = None,
    ) -> object:  # fmt: skip
        """Submit a request and wait for its answer. Raises DeviceError."""
        lun, scheduler = self.lun, self.lun.scheduler
        task = scheduler.current
        assert task is not None, "requests are made by tasks"
        if task.killed:
            raise Killed
        if self._closed:
            raise DeviceGone(f"device {self.name}", "it was closed")
        task.at_submission = True
        if lun.timing.submit_delay and lun.rng.random() < 0.02:
            scheduler.sleep(lun.rng.random() * lun.timing.submit_delay)
        else:
            scheduler.give_way()
        if self.process.pause_at_write and kind in CHANGES:
            seconds, self.process.pause_at_write = self.process.pause_at_write, 0.0
            self.process.pause()
            scheduler.after(seconds, self.process.resume)
            scheduler.give_way()
        task.at_submission = False
        io = Io(0, self, kind, offset, length, data, expected, action, scheduler.now, task=task)
        self.inflight.add(io)
        io.timeout = scheduler.after(lun.timing.timeout, lambda: self._time_out(io))
        if lun.timing.lost_answer_rate and kind != "flush" and lun.rng.random() < lun.timing.lost_answer_rate:
            self._lose_answer(io)
        elif self.cut:
            self.stuck.append(io)
        else:
            lun.start(io)
        while not io.answered:
            scheduler.block()
        if io.error is not None:
            raise io.error
        return io.result

    def _time_out(self, io: Io) -> None:
        if io.answered:
            return
        lun = self.lun
        if io in self.stuck:  # never submitted to the disk: it is not sent any more
            self.stuck.remove(io)
            io.dropped = True
            self.inflight.discard(io)
        elif io.submitted + lun.timing.late_max < lun.scheduler.now or io.kind == "caw":
            io.dropped = True  # the initiator aborts what it gives up; F is the time for which that may fail
            self.inflight.discard(io)
        io.error = DeviceError(self.name, io.kind, io.offset, io.length, f"no answer within {lun.timing.timeout:g} s")
        lun.note("timeout", self.process.name, io.number, io.kind, io.offset)
        lun.deliver(io)

    def _lose_answer(self, io: Io) -> None:
        """The request fails soon; it lands before that, after it, or never."""
        lun, scheduler = self.lun, self.lun.scheduler
        fate = lun.rng.random()
        fails_at = scheduler.now + lun.timing.latency * 10
        if fate < 0.4:
            io.dropped = True
            self.inflight.discard(io)
        else:
            lun.count += 1
            io.number = lun.count
            wait = lun.timing.latency * 5 if fate < 0.7 else lun.rng.random() * lun.timing.late_max
            io.accepted = scheduler.now + wait * 0.5
            scheduler.at(scheduler.now + wait, lambda: lun.land(io))

        def fail() -> None:
            if not io.answered:
                io.error = DeviceError(self.name, io.kind, io.offset, io.length, "the answer was lost")
                lun.deliver(io)

        scheduler.at(fails_at, fail)


class TwoNexusPath(Path):
    """A path of which another nexus can be opened, so that fencing can be proved on it."""

    def again(self) -> Path:
        return Path(self.lun, self.process, f"{self.name}-again")
