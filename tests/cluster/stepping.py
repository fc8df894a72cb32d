"""Hosts as threads that do one I/O at a time, in the order that a chooser decides, on a clock that it moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vmfs.devices.ram import RamDevice

SECTOR = 512


class Crash(BaseException):
    """The host dies at this I/O. Not an Exception: nothing in the code under test may catch it."""


@dataclass
class _Task:
    name: str
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wakes: float | None = None
    waiting_since: float = 0.0
    done: bool = False
    crash: str | None = None


class Scheduler:
    """Runs tasks one at a time. `choose(n)` returns a number below n; `crash_at(task)` says whether it dies there.

    Only the running task or the scheduler touches shared state, so there is no lock but the gates.
    """

    def __init__(self, choose: Callable[[int], int], *, step_seconds: float = 0.0, starve_seconds: float = 1e9) -> None:
        self.choose = choose
        self.time = 1000.0
        self.steps = 0
        self.crash: Callable[[str], str | None] = lambda name: None
        self._step = step_seconds
        self._starve = starve_seconds
        self._back = threading.Semaphore(0)
        self._tasks: list[_Task] = []
        self._current: _Task | None = None
        self.errors: list[BaseException] = []

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        task = _Task(name, waiting_since=self.time)
        self._tasks.append(task)

        def body() -> None:
            task.gate.acquire()
            try:
                run()
            except Crash:
                pass
            except BaseException as error:
                self.errors.append(error)
            task.done = True
            self._back.release()

        threading.Thread(target=body, name=name, daemon=True).start()

    def run(self) -> None:
        while tasks := [t for t in self._tasks if not t.done]:
            for t in tasks:
                if t.wakes is not None and t.wakes <= self.time:
                    t.wakes, t.waiting_since = None, t.wakes
            ready = [t for t in tasks if t.wakes is None]
            if not ready:
                self.time = min(t.wakes for t in tasks if t.wakes is not None)
                continue
            late = [t for t in ready if self.time - t.waiting_since >= self._starve]
            task = min(late, key=lambda t: t.waiting_since) if late else ready[self.choose(len(ready))]
            self._current = task
            self.steps += 1
            self.time += self._step
            task.gate.release()
            self._back.acquire()
        if self.errors:
            raise self.errors[0]

    def io(self, action: Callable[[], object]) -> object:
        """One I/O of the running task, at the moment when it is chosen again."""
        task = self._yield(None)
        how = self.crash(task.name)
        if how == "before":
            raise Crash
        result = action()
        if how == "after":
            raise Crash
        return result

    def sleep(self, seconds: float) -> None:
        self._yield(self.time + max(0.0, seconds))

    def _yield(self, wakes: float | None) -> _Task:
        task = self._current
        assert task is not None
        task.wakes, task.waiting_since = wakes, self.time
        self._back.release()
        task.gate.acquire()
        return task


class StepClock:
    """The scheduler's time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def now(self) -> float:
        return self._scheduler.time

    def wall_ns(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)

    def wait(self, event: threading.Event, timeout_seconds: float) -> bool:
        self.sleep(timeout_seconds)
        return event.is_set()


class StepDevice:
    """A RamDevice of which each I/O is a step. With `split`, a read takes its sectors one by one, in any order."""

    def __init__(self, inner: RamDevice, scheduler: Scheduler, *, split: bool = False) -> None:
        self.inner = inner
        self._scheduler = scheduler
        self._split = split
        self.ios = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def read(self, offset: int, length: int) -> bytes:
        self.ios += 1
        if not self._split:
            return self._scheduler.io(lambda: self.inner.read(offset, length))  # type: ignore[return-value]
        parts: dict[int, bytes] = {}
        left = list(range(offset, offset + length, SECTOR))
        while left:
            at = left.pop(self._scheduler.choose(len(left)))
            parts[at] = self._scheduler.io(lambda at=at: self.inner.read(at, SECTOR))  # type: ignore[misc, assignment]
        return b"".join(parts[at] for at in sorted(parts))

    def write(self, offset: int, data: bytes) -> None:
        self.ios += 1
        self._scheduler.io(lambda: self.inner.write(offset, data))
