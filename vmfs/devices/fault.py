"""A device that fails as disks, arrays and fabrics do, by a seed: for tests, in simulations and under real mounts.

It wraps any other device. Faults it knows:

- EIO on reads, writes and flushes, at a rate or always within given ranges;
- torn writes: a prefix or a random part of the sectors lands, the call raises;
- late writes: the call raises (a timeout), the write lands after a number of later ones;
- lost writes and lost flushes: acknowledged, never done;
- an unknown fate of compare_and_write: it raises, having been done or not;
- delay, and freeze: calls wait until thawed, or fail after a time;
- a power cut, on demand or after write N: all later calls raise, and of what was not flushed a part lands, in any
  order (`VolatileCache.cut`).

With the volatile cache (the default) the device below has only what was flushed, or destaged when the cache was
full; others who open the device below see nothing else. Without it every write goes through at once, so that several
processes may each wrap the same device. The seed and every decision go to the log `vmfs.devices.fault` (INFO), and
to `decisions`. One thread with one seed meets the same faults each time.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from vmfs.clock import Clock, SystemClock
from vmfs.devices.contract import (
    Device,
    LockMethod,
    ReadableBuffer,
    check_compare_and_write,
    check_range,
)
from vmfs.devices.ram import RamDevice
from vmfs.devices.reservations import Reservations
from vmfs.devices.writecache import VolatileCache
from vmfs.errors import DeviceError, DeviceGone, DeviceReadOnly

_ZERO_CHUNK_BYTES = 1 << 20  # what one request writes at most when zeroing
_COPY_CHUNK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which faults, how often. Rates are probabilities for each call; the default is a faultless disk with a cache."""

    volatile_cache: bool = True
    cache_bytes: int = 16 << 20  # destaged when it holds more, as a disk's cache would be
    read_error_rate: float = 0.0
    write_error_rate: float = 0.0  # of a compare_and_write: it may have been done
    flush_error_rate: float = 0.0
    torn_write_rate: float = 0.0
    late_write_rate: float = 0.0
    late_after_writes: int = 8
    lost_write_rate: float = 0.0
    lost_flush_rate: float = 0.0
    delay_seconds: float = 0.0  # the longest; each call waits a uniform part of it
    bad_ranges: tuple[tuple[int, int], ...] = ()  # (first byte, byte after the last): always EIO
    power_cut_after_writes: int | None = None  # that write raises, of unknown fate; writes are counted from 1


@dataclass(frozen=True, slots=True)
class _LateWrite:
    """Lands before the write of number `due`; `land` says whether it did, or was ended by a PREEMPT AND ABORT."""

    due: int
    offset: int
    length: int
    land: Callable[[], bool]


class FaultDevice:
    """`inner` with faults. It owns `inner`, and closes it.

    `_mutex` guards everything below but the freeze: one call at a time reaches the cache and `inner`. A call waits
    out a freeze or a delay before it takes `_mutex`.
    """

    def __init__(
        self,
        inner: Device,
        seed: int,
        plan: FaultPlan | None = None,
        *,
        clock: Clock | None = None,
        on_power_cut: Callable[[], None] | None = None,
    ) -> None:
        """`on_power_cut` is called once the cut has happened: a process under test may kill itself there."""
        self._inner = inner
        self._plan = plan or FaultPlan()
        self._clock = clock or SystemClock()
        self._on_power_cut = on_power_cut
        self._random = random.Random(seed)
        self._mutex = threading.Lock()
        self._cache = VolatileCache(inner)
        self._late: list[_LateWrite] = []
        self._writes = 0
        self._cut = False
        self._closed = False
        self._thawed = threading.Event()
        self._thawed.set()
        self._freeze_fails_after_seconds: float | None = None
        self.seed = seed
        self.decisions: list[str] = []
        _log.info("%s: fault device, seed %d, %s", inner.name, seed, self._plan)

    # -- the test's side ----------------------------------------------------------------------------------------

    @property
    def writes(self) -> int:
        """How many writes (compare_and_write and zeroing included) were submitted."""
        return self._writes

    @property
    def power_is_cut(self) -> bool:
        return self._cut

    def set_plan(self, plan: FaultPlan) -> None:
        """Go on by another plan; its power cut counts all writes since the beginning."""
        with self._mutex:
            if not plan.volatile_cache:
                self._cache.destage()
            self._plan = plan

    def freeze(self, fail_after_seconds: float | None = None) -> None:
        """Have calls wait from now on until `thaw`, or raise DeviceError after `fail_after_seconds`."""
        self._freeze_fails_after_seconds = fail_after_seconds
        self._thawed.clear()
        self._note("frozen")

    def thaw(self) -> None:
        """Let waiting calls go on."""
        self._note("thawed")
        self._thawed.set()

    def land_late_writes(self) -> None:
        """Let every late write land now."""
        with self._mutex:
            self._land_late(everything=True)

    def power_cut(self, target: Device | None = None) -> None:
        """Cut the power: every later call raises. What survives is written to the device below, or to `target`,
        which becomes a full copy (it must be as large, and empty), and flushed.
        """
        with self._mutex:
            self._cut_now(target)

    # -- the contract -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def logical_block_bytes(self) -> int:
        return self._inner.logical_block_bytes

    @property
    def read_only(self) -> bool:
        return self._inner.read_only

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        check_range(self, offset, len(view))
        self._wait("read", offset, len(view))
        with self._mutex:
            self._check_alive("read", offset, len(view))
            if self._strikes(self._plan.read_error_rate):
                raise self._fault("read", offset, len(view), "injected EIO")
            self._see(offset, view)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        copy = bytes(data)
        self._check_change("write", offset, len(copy))
        self._wait("write", offset, len(copy))
        with self._mutex:
            self._begin_write("write", offset, len(copy))
            try:
                self._submit(offset, copy)
            finally:
                self._cut_when_due("write", offset, len(copy))

    def flush(self) -> None:
        self._wait("flush", 0, 0)
        with self._mutex:
            self._check_alive("flush", 0, 0)
            if self._strikes(self._plan.flush_error_rate):
                raise self._fault("flush", 0, 0, "injected EIO")
            if self._strikes(self._plan.lost_flush_rate):
                self._note(f"flush after write {self._writes}: lost")
                return
            self._cache.destage()
            self._inner.flush()

    def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        check_compare_and_write(self, offset, old, new)
        self._check_change("compare_and_write", offset, len(new))
        self._wait("compare_and_write", offset, len(new))
        with self._mutex:
            self._begin_write("compare_and_write", offset, len(new))
            try:
                if not self._strikes(self._plan.write_error_rate):
                    return self._swap(offset, old, new)
                done = self._random.random() < 0.5 and self._swap(offset, old, new)
                fate = "done" if done else "not done"
                raise self._fault("compare_and_write", offset, len(new), f"injected EIO, {fate}")
            finally:
                self._cut_when_due("compare_and_write", offset, len(new))

    def discard(self, offset: int, length: int) -> bool:
        self._check_change("discard", offset, length)
        self._wait("discard", offset, length)
        with self._mutex:
            self._check_alive("discard", offset, length)
            # A disk may act on a discard before it writes what it cached earlier: so does this one.
            self._cache.forget(offset, length)
            return self._inner.discard(offset, length)

    def write_zeros(self, offset: int, length: int) -> None:
        self._check_change("write_zeros", offset, length)
        for at in range(offset, offset + length, _ZERO_CHUNK_BYTES):
            self.write(at, bytes(min(_ZERO_CHUNK_BYTES, offset + length - at)))

    def fileno(self) -> int | None:
        return None  # a descriptor would go past the faults and the cache

    def lock_methods(self) -> tuple[LockMethod, ...]:
        return self._inner.lock_methods()

    def use_lock_method(self, method: LockMethod) -> None:
        self._inner.use_lock_method(method)

    def reservations(self) -> Reservations | None:
        return self._inner.reservations()

    def refresh_size(self) -> int:
        return self._inner.refresh_size()

    def close(self) -> None:
        """Close the device below, after it got what is cached and late, unless the power was cut."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._cut and not self._inner.read_only:
                    self._land_late(everything=True)
                    self._cache.destage()
            finally:
                self._inner.close()

    # -- inside; from here on `_mutex` is held, but for `_wait` and `_check_change` -------------------------------

    def _wait(self, operation: str, offset: int, length: int) -> None:
        if self._plan.delay_seconds:
            with self._mutex:
                delay = self._random.uniform(0.0, self._plan.delay_seconds)
            self._clock.sleep(delay)
        limit = self._freeze_fails_after_seconds
        if self._thawed.is_set():
            return
        if limit is None:
            self._thawed.wait()
        elif not self._clock.wait(self._thawed, limit):
            raise self._fault(operation, offset, length, f"no answer within {limit} s")

    def _check_change(self, operation: str, offset: int, length: int) -> None:
        check_range(self, offset, length)
        if self.read_only:
            raise DeviceReadOnly(self.name, operation)

    def _check_alive(self, operation: str, offset: int, length: int) -> None:
        if self._closed:
            raise DeviceGone(f"device {self.name}", "it was closed")
        if self._cut:
            raise DeviceError(self.name, operation, offset, length, "the power is cut")
        if any(offset < end and start < offset + length for start, end in self._plan.bad_ranges):
            raise self._fault(operation, offset, length, "injected EIO of a bad range")

    def _begin_write(self, operation: str, offset: int, length: int) -> None:
        self._check_alive(operation, offset, length)
        self._writes += 1
        self._land_late(everything=False)

    def _submit(self, offset: int, data: bytes) -> None:
        plan = self._plan
        if self._strikes(plan.write_error_rate):
            raise self._fault("write", offset, len(data), "injected EIO, nothing landed")
        if self._strikes(plan.late_write_rate):
            due = self._writes + plan.late_after_writes
            self._late.append(_LateWrite(due, offset, len(data), self._take_late(offset, data)))
            raise self._fault("write", offset, len(data), "injected timeout, lands late")
        if self._strikes(plan.lost_write_rate):
            self._note(f"write {self._writes} of {len(data)} bytes at {offset}: lost")
            return
        torn = self._strikes(plan.torn_write_rate)
        # Without a cache a power cut tears the write that is under way; with one, the cut decides on every sector.
        if torn or (self._writes == plan.power_cut_after_writes and not plan.volatile_cache):
            self._tear(offset, data)
        else:
            self._land(offset, data)
        if torn:
            raise self._fault("write", offset, len(data), "injected EIO, torn")

    def _tear(self, offset: int, data: bytes) -> None:
        sector = self.logical_block_bytes
        count = len(data) // sector
        if self._random.random() < 0.5:
            chosen = list(range(self._random.randint(0, max(0, count - 1))))
        else:
            chosen = [number for number in range(count) if self._random.random() < 0.5]
        for number in chosen:
            self._land(offset + number * sector, data[number * sector : (number + 1) * sector])
        self._note(f"write {self._writes} of {count} sectors at {offset}: {len(chosen)} of them landed")

    def _swap(self, offset: int, old: bytes, new: bytes) -> bool:
        if not self._plan.volatile_cache:
            return self._inner.compare_and_write(offset, old, new)
        buffer = bytearray(len(old))
        self._see(offset, memoryview(buffer))
        if buffer != old:
            return False
        self._land(offset, new)
        return True

    def _see(self, offset: int, view: memoryview) -> None:
        self._inner.read_into(offset, view)
        self._cache.patch(offset, view)

    def _land(self, offset: int, data: bytes) -> None:
        if not self._plan.volatile_cache:
            self._inner.write(offset, data)
            return
        self._cache.put(offset, data)
        if self._cache.held_bytes > self._plan.cache_bytes:
            self._cache.destage()

    def _take_late(self, offset: int, data: bytes) -> Callable[[], bool]:
        """Where it waits: in the cache's place, or in the queue of a LUN that can abort it there."""
        if not self._plan.volatile_cache and isinstance(self._inner, RamDevice):
            return self._inner.accept(offset, data)

        def land() -> bool:
            self._land(offset, data)
            return True

        return land

    def _land_late(self, *, everything: bool) -> None:
        waiting, self._late = self._late, []
        for late in waiting:
            if everything or late.due <= self._writes:
                fate = f"lands before write {self._writes}" if late.land() else "was aborted by the LUN"
                self._note(f"late write of {late.length} bytes at {late.offset} {fate}")
            else:
                self._late.append(late)

    def _cut_when_due(self, operation: str, offset: int, length: int) -> None:
        due = self._plan.power_cut_after_writes
        if due is not None and self._writes >= due:
            self._cut_now(None)
            raise DeviceError(self.name, operation, offset, length, "the power was cut")

    def _cut_now(self, target: Device | None) -> None:
        if self._cut:
            return
        self._cut = True
        self._late.clear()
        if target is not None:
            for at in range(0, self.size_bytes, _COPY_CHUNK_BYTES):
                chunk = self._inner.read(at, min(_COPY_CHUNK_BYTES, self.size_bytes - at))
                if chunk.count(0) != len(chunk):
                    target.write(at, chunk)
        survivor = target or self._inner
        landed, cached = self._cache.cut(survivor, self._random)
        survivor.flush()
        self._note(f"power cut after write {self._writes}: {landed} of {cached} unflushed sectors landed")
        self._thawed.set()
        if self._on_power_cut is not None:
            self._on_power_cut()

    def _strikes(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate

    def _fault(self, operation: str, offset: int, length: int, reason: str) -> DeviceError:
        self._note(f"{operation} of {length} bytes at {offset} (write {self._writes}): {reason}")
        return DeviceError(self.name, operation, offset, length, reason)

    def _note(self, decision: str) -> None:
        self.decisions.append(decision)
        _log.info("%s (seed %d): %s", self.name, self.seed, decision)
