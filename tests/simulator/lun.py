"""The disk that all hosts share: what it holds, who may write to it, and when a request lands.

A request is *submitted* by a host, *accepted* by the disk, *lands*, and is *answered*. In between it may be slow, torn
between two sectors, cut off from its answer, or outlive its host. The disk keeps what was not flushed in a volatile
cache; a power cut loses any of it. Compare-and-write is atomic. One logical sector is never torn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from tests.simulator.engine import Scheduler, Task, Timer
from vmfs.errors import DeviceError, ReservationConflict

if TYPE_CHECKING:
    from tests.simulator.path import Path

SECTOR: Final = 512
CHANGES: Final = frozenset({"write", "caw", "discard"})


@dataclass(slots=True)
class Timing:
    """How long things take (true seconds), and how often they go wrong."""

    latency: float = 0.0005
    """The mean of one leg; there are two."""
    slow_rate: float = 0.0
    slow_max: float = 0.0
    tear_rate: float = 0.0
    """Of writes of several sectors: part of them lands first."""
    lost_answer_rate: float = 0.0
    """The request fails, whether it has landed or not; or it lands later."""
    late_max: float = 0.0
    """F: no request lands later than so long after its submission."""
    stuck_rate: float = 0.0
    stuck_max: float = 0.0
    """The disk has accepted the request, and executes it only much later (where nothing is fenced: reads alone)."""
    slow_replay_rate: float = 0.0
    """The same, of the requests of a host that is just recovering another."""
    timeout: float = 1.0
    """After so long without an answer the request fails."""
    submit_delay: float = 0.0
    """P: the longest way from the look at the lease to the submission."""


@dataclass(slots=True, eq=False)
class Io:
    """One request."""

    number: int
    path: Path
    kind: str
    offset: int
    length: int
    data: bytes | None
    expected: bytes | None
    action: Callable[[], object] | None
    submitted: float
    accepted: float = 0.0
    parts: list[tuple[float, int, bytes]] = field(default_factory=list)
    dropped: bool = False
    landed: bool = False
    answered: bool = False
    result: object = None
    error: Exception | None = None
    task: Task | None = None
    timeout: Timer | None = None


class Lun:
    """The disk: what it holds, what of it is durable, who may write."""

    def __init__(self, scheduler: Scheduler, image: bytes, rng: Random, timing: Timing, *, volatile: bool) -> None:
        """`volatile`: keep account of what was not flushed, for a power cut."""
        self.scheduler = scheduler
        self.memory = bytearray(image)
        self.rng = rng
        self.timing = timing
        self.count = 0
        self.compares = True
        """Whether it has COMPARE AND WRITE."""
        self.reserves = False
        """Whether it has persistent reservations."""
        self.keys: dict[Path, int] = {}
        self.reserved = False
        self.stalled_until = 0.0
        """Nobody reaches it before then."""
        self.on_write: Callable[[Io, int, bytes], None] = lambda io, offset, data: None
        self.on_landed: Callable[[Io], None] = lambda io: None
        self.is_recovering: Callable[[Io], bool] = lambda io: False
        self.note: Callable[..., None] = lambda *words: None
        self._volatile = volatile
        self._before: dict[int, bytes] = {}
        self._unflushed: list[tuple[int, bytes]] = []

    # -- what it holds ------------------------------------------------------------------------------------------

    def put(self, offset: int, data: bytes) -> None:
        """Change the content; the cache has it until a flush."""
        if self._volatile:
            for at in range(offset, offset + len(data), SECTOR):
                if at not in self._before:
                    self._before[at] = bytes(self.memory[at : at + SECTOR])
            self._unflushed.append((offset, data))
        self.memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._before.clear()
        self._unflushed.clear()

    def power_cut(self) -> None:
        """Of what was not flushed any sectors survive, in any of their contents since the last flush."""
        share = self.rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for at, content in self._before.items():
            self.memory[at : at + SECTOR] = content
        pieces = [(at + i, data[i : i + SECTOR]) for at, data in self._unflushed for i in range(0, len(data), SECTOR)]
        self.rng.shuffle(pieces)
        landed = 0
        for at, piece in pieces:
            if self.rng.random() < share:
                self.memory[at : at + SECTOR] = piece
                landed += 1
        self.note("lun", f"power cut: {landed} of {len(pieces)} cached sectors survive")
        self.flush()

    # -- requests -----------------------------------------------------------------------------------------------

    def start(self, io: Io) -> None:
        """A request has been submitted: decide when it is accepted and when it lands."""
        rng, timing, now = self.rng, self.timing, self.scheduler.now
        self.count += 1
        io.number = self.count
        delay = rng.expovariate(1.0) * timing.latency
        if timing.slow_rate and rng.random() < timing.slow_rate:
            delay += rng.random() * timing.slow_max
        work = rng.expovariate(1.0) * timing.latency
        if timing.slow_rate and rng.random() < timing.slow_rate:
            work += rng.random() * timing.slow_max
        if timing.late_max:
            delay = min(delay, timing.late_max * 0.5)
            work = min(work, timing.late_max * 0.45)
        if (timing.stuck_rate or timing.slow_replay_rate) and (self.reserves or io.kind == "read"):
            rate = timing.stuck_rate
            if timing.slow_replay_rate and io.kind != "caw" and self.is_recovering(io):
                rate = timing.slow_replay_rate
            if rng.random() < rate:
                work += rng.random() * timing.stuck_max
        io.accepted = now + delay
        if io.kind == "write" and io.length > SECTOR and timing.tear_rate and rng.random() < timing.tear_rate:
            self._tear(io, now + delay, work)
        else:
            self.scheduler.at(now + delay + work, lambda: self.land(io))

    def _tear(self, io: Io, accepted: float, work: float) -> None:
        """Part of a write lands first: a head, a tail, or any sectors."""
        assert io.data is not None
        count = io.length // SECTOR
        cut = self.rng.randrange(1, count)
        if count <= 16 and self.rng.random() < 0.5:
            chosen = [n for n in range(count) if self.rng.random() < 0.5]
        else:
            chosen = list(range(cut)) if self.rng.random() < 0.5 else list(range(cut, count))
        early = [(io.offset + n * SECTOR, io.data[n * SECTOR : (n + 1) * SECTOR]) for n in chosen]

        def part() -> None:
            if self._may_land(io):
                for at, piece in early:
                    self.on_write(io, at, piece)
                    self.put(at, piece)

        self.scheduler.at(accepted + work * 0.5, part)
        self.scheduler.at(accepted + work + self.timing.latency, lambda: self.land(io))

    def _may_land(self, io: Io) -> bool:
        if io.dropped:
            return False
        path = io.path
        refused = self.reserved and path not in self.keys and io.kind in CHANGES
        if refused and (io.accepted >= path.preempted_at or not path.was_registered):
            io.error = ReservationConflict(path.name, io.kind, io.offset, io.length, "reservation conflict")
            return False
        return True

    def land(self, io: Io) -> None:
        """A request is executed, unless it was dropped or is refused."""
        if not self._may_land(io):
            if io.error is not None:
                self.note("refused", io.path.process.name, io.number, io.kind, io.offset)
            self._answer(io)
            return
        offset, length = io.offset, io.length
        if io.kind == "read":
            io.result = bytes(self.memory[offset : offset + length])
        elif io.kind == "write":
            assert io.data is not None
            self.on_write(io, offset, io.data)
            self.put(offset, io.data)
        elif io.kind == "caw":
            assert io.data is not None
            io.result = self.memory[offset : offset + length] == io.expected
            if io.result:
                self.on_write(io, offset, io.data)
                self.put(offset, io.data)
        elif io.kind == "flush":
            self.flush()
        elif io.kind == "discard":
            zeros = bytes(length)
            self.on_write(io, offset, zeros)
            self.put(offset, zeros)
            io.result = True
        elif io.action is not None:
            try:
                io.result = io.action()
            except DeviceError as error:
                io.error = error
        io.landed = True
        self.on_landed(io)
        self._answer(io)

    def _answer(self, io: Io) -> None:
        io.path.inflight.discard(io)
        if io.answered:
            return
        if io.path.cut:
            io.path.unanswered.append(io)
            return
        self.scheduler.after(self.rng.expovariate(1.0) * self.timing.latency * 0.3, lambda: self.deliver(io))

    def deliver(self, io: Io) -> None:
        """The answer reaches its host."""
        if io.answered:
            return
        io.answered = True
        if io.timeout is not None:
            io.timeout.cancel()
        if io.task is not None:
            self.scheduler.wake(io.task)

    def abort(self, path: Path) -> None:
        """End all that a path has under way at the disk."""
        for io in list(path.inflight):
            if io.accepted <= self.scheduler.now:
                io.dropped = True
                io.error = DeviceError(path.name, io.kind, io.offset, io.length, "aborted by another host")
