"""The names of `threading` and `time` that the production modules use, on simulated threads.

`replaced(scheduler)` puts them in the place of the real ones in every `vmfs` module that is loaded; no production file
is changed. Locks cost nothing and switch only when they are contended (or by `preempt_rate`); a timeout counts on the
clock of the process whose thread waits.
"""

from __future__ import annotations

import sys
import threading as real_threading
import time as real_time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from tests.simulator.engine import Scheduler, Task
from vmfs.core.blockio import Scratch

_NAMES = ("Lock", "RLock", "Condition", "Event", "Thread", "current_thread", "get_ident")
GARBAGE = b"\xee" * (2 << 20)  # what fresh memory holds: nobody may rely on zeros


def _local_wait(scheduler: Scheduler, timeout: float | None) -> float | None:
    """True seconds of a timeout on the current process' clock."""
    if timeout is None or scheduler.current is None:
        return timeout
    return max(0.0, timeout) / scheduler.current.owner.clock_rate  # type: ignore[attr-defined]


class SimLock:
    """threading.Lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._holder: object | None = None
        self._waiting: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        task = scheduler.current
        scheduler.maybe_preempt()
        if task is not None and task.killed:
            return True
        limit = None if timeout < 0 else scheduler.now + (_local_wait(scheduler, timeout) or 0.0)
        while self._holder is not None:
            if not blocking:
                return False
            if task is None:
                raise AssertionError("a lock is contended outside of all tasks")
            self._waiting.append(task)
            if not scheduler.block_for(None if limit is None else limit - scheduler.now):
                if task in self._waiting:
                    self._waiting.remove(task)
                return False
        self._holder = task or self
        return True

    def release(self) -> None:
        task = self._scheduler.current
        if task is not None and task.killed:
            return
        if self._holder is None:
            raise RuntimeError("release unlocked lock")
        self._holder = None
        while self._waiting and not self._scheduler.wake(self._waiting.popleft()):
            pass  # its time was over just now

    def locked(self) -> bool:
        return self._holder is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class SimRLock:
    """threading.RLock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._inner = SimLock(scheduler)
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = self._scheduler.current or self._inner
        if self._inner._holder is me:
            self._count += 1
            return True
        if not self._inner.acquire(blocking, timeout):
            return False
        self._count = 1
        return True

    def release(self) -> None:
        task = self._scheduler.current
        if task is not None and task.killed:
            return
        if self._inner._holder is not (task or self._inner):
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._inner.release()

    def _let_go(self) -> int:
        count, self._count = self._count, 0
        self._inner.release()
        return count

    def _take_again(self, count: int) -> None:
        self._inner.acquire()
        self._count = count

    __enter__ = acquire

    def __exit__(self, *exc: object) -> None:
        self.release()


class SimCondition:
    """threading.Condition."""

    def __init__(self, scheduler: Scheduler, lock: SimLock | SimRLock | None = None) -> None:
        self._scheduler = scheduler
        self._lock = lock or SimRLock(scheduler)
        self._waiting: list[Task] = []
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        task = self._scheduler.current
        assert task is not None, "only a task can wait for a condition"
        self._waiting.append(task)
        count = self._lock._let_go() if isinstance(self._lock, SimRLock) else self._lock.release()
        try:
            return self._scheduler.block_for(_local_wait(self._scheduler, timeout))
        finally:
            if task in self._waiting:
                self._waiting.remove(task)
            if isinstance(self._lock, SimRLock):
                self._lock._take_again(count or 0)
            else:
                self._lock.acquire()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        limit = None if timeout is None else self._scheduler.now + (_local_wait(self._scheduler, timeout) or 0.0)
        while not predicate():
            if limit is not None and self._scheduler.now >= limit:
                return predicate()
            self.wait(None if limit is None else limit - self._scheduler.now)
        return True

    def notify(self, n: int = 1) -> None:
        while self._waiting and n:
            n -= self._scheduler.wake(self._waiting.pop(0))

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class SimEvent:
    """threading.Event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        woken, self._waiting = self._waiting, []
        for task in woken:
            self._scheduler.wake(task)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        task = self._scheduler.current
        assert task is not None, "only a task can wait for an event"
        self._waiting.append(task)
        self._scheduler.block_for(_local_wait(self._scheduler, timeout))
        if task in self._waiting:
            self._waiting.remove(task)
        return self._set


class SimThread:
    """threading.Thread: a task of the process that makes it."""

    def __init__(
        self, scheduler: Scheduler, group: None = None, target: Callable[..., object] | None = None,
        name: str | None = None, args: Sequence[object] = (), kwargs: Mapping[str, Any] | None = None, *,
        daemon: bool | None = None,
    ) -> None:  # fmt: skip
        self._scheduler = scheduler
        self._run = lambda: target(*args, **(kwargs or {})) if target else None
        self.name = name or "thread"
        self.daemon = bool(daemon)
        self.task: Task | None = None

    def start(self) -> None:
        maker = self._scheduler.current
        assert maker is not None, "threads are started by tasks"
        self.task = self._scheduler.spawn(maker.owner, self.name, lambda: (self._run(), None)[1])
        self.task.thread = self
        maker.owner.tasks.append(self.task)  # type: ignore[attr-defined]

    @property
    def ident(self) -> int | None:
        return None if self.task is None else self.task.ident

    def is_alive(self) -> bool:
        return self.task is not None and not self.task.done

    def join(self, timeout: float | None = None) -> None:
        if self.task is None or self.task.done:
            return
        me = self._scheduler.current
        assert me is not None
        self.task.waiters.append(me)
        limit = None if timeout is None else self._scheduler.now + (_local_wait(self._scheduler, timeout) or 0.0)
        while not self.task.done and (limit is None or self._scheduler.now < limit):
            self._scheduler.block_for(None if limit is None else limit - self._scheduler.now)
        if me in self.task.waiters:
            self.task.waiters.remove(me)


def _fake_threading(scheduler: Scheduler) -> SimpleNamespace:
    def current_thread() -> object:
        return None if scheduler.current is None else scheduler.current.thread

    class Thread(SimThread):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(scheduler, *args, **kwargs)

    def get_ident() -> int:
        return 1 if scheduler.current is None else scheduler.current.ident

    return SimpleNamespace(
        Lock=lambda: SimLock(scheduler),
        RLock=lambda: SimRLock(scheduler),
        Condition=lambda lock=None: SimCondition(scheduler, lock),
        Event=lambda: SimEvent(scheduler),
        Thread=Thread,
        local=real_threading.local,
        current_thread=current_thread,
        get_ident=get_ident,
    )


def _fresh_memory(self: Scratch, size: int) -> memoryview:
    """In the place of Scratch.take: all tasks are one real thread, so memory of each thread's own is new each time."""
    return memoryview(bytearray(GARBAGE[:size] if size <= len(GARBAGE) else b"\xee" * size))


class _FakeTime:
    """`time` for modules that must not use it: whatever they use of it fails the run."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("CLOCK_"):
            return getattr(real_time, name)
        raise AssertionError(f"time.{name} is not simulated: hand the clock in")


@contextmanager
def replaced(scheduler: Scheduler) -> Iterator[None]:
    """Inside, all loaded `vmfs` modules use simulated threads, and no real time."""
    fake = _fake_threading(scheduler)
    fakes: dict[int, object] = {id(real_threading): fake, id(real_time): _FakeTime()}
    fakes |= {id(getattr(real_threading, name)): getattr(fake, name) for name in _NAMES}
    undo: list[tuple[object, str, object]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("vmfs.") and name != "vmfs.clock":
            for attribute, value in list(vars(module).items()):
                if id(value) in fakes:
                    undo.append((module, attribute, value))
                    setattr(module, attribute, fakes[id(value)])
    undo.append((Scratch, "take", Scratch.take))
    Scratch.take = _fresh_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        for target, attribute, value in undo:
            setattr(target, attribute, value)
