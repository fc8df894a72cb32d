"""Simulated time and simulated threads: one greenlet a thread, one of them running at a time.

The scheduler picks the next runnable task by its seeded random numbers; when nobody can run, time jumps to the next
timer. So a run depends on nothing but its seed: not on the machine, its load, or the order of a set.

A task belongs to a *process* (`vmfs` mounted on a host). A paused process' tasks stay where they are while time goes
on; a killed one's are unwound at once, and do no I/O while they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

STEPS_MAX: Final = 400_000  # of one run; above, something runs in circles


class Killed(GreenletExit):
    """Unwinds the tasks of a process that has died. No production code catches a BaseException for good."""


class Stuck(Exception):
    """The simulation cannot go on: nobody can run and no time will come, or it runs in circles."""


class Owner(Protocol):
    """What the scheduler must know of a process."""

    name: str
    paused: bool
    parked: list[Task]


class Task:
    """One simulated thread."""

    __slots__ = ("at_submission", "done", "epoch", "error", "greenlet", "ident", "killed", "name", "owner", "thread",
                 "waiters", "waiting")  # fmt: skip

    def __init__(self, ident: int, name: str, owner: Owner) -> None:
        self.ident = ident
        self.name = name
        self.owner = owner
        self.greenlet: greenlet | None = None
        self.done = False
        self.killed = False
        self.error: BaseException | None = None
        self.epoch = 0
        """Grows with every wait: a timer of an earlier one wakes nobody."""
        self.at_submission = False
        """Between its last look at the lease and the submission of a request."""
        self.waiters: list[Task] = []
        """Tasks that join this one."""
        self.waiting = False
        self.thread: object | None = None

    def __repr__(self) -> str:
        return f"{self.owner.name}/{self.name}"


class Timer:
    """Something that is due; `cancel` it, and it never happens."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Scheduler:
    """Time, the runnable tasks and the timers of one simulation."""

    def __init__(self, rng: Random, *, preempt_rate: float = 0.0) -> None:
        """`preempt_rate`: the chance that a task loses the processor as it takes a free lock."""
        self.now = 0.0
        self.steps = 0
        self.current: Task | None = None
        self._random = rng.random
        self._preempt_rate = preempt_rate
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._idents = 1000
        self._hub = getcurrent()
        self.on_error: Callable[[Task, BaseException], None] = lambda task, error: None

    # -- tasks --------------------------------------------------------------------------------------------------

    def spawn(self, owner: Owner, name: str, run: Callable[[], None]) -> Task:
        """A new task, runnable at once."""
        self._idents += 1
        task = Task(self._idents, name, owner)

        def body() -> None:
            try:
                run()
            except Killed:
                pass
            except BaseException as error:
                task.error = error
                self.on_error(task, error)
            finally:
                task.done = True
                for waiter in task.waiters:
                    self.wake(waiter)

        task.greenlet = greenlet(body, parent=self._hub)
        self._ready.append(task)
        return task

    def kill(self, task: Task) -> None:
        """Unwind a task. Call it from outside of all tasks."""
        if task.done or task.killed:
            return
        task.killed = True
        before, self.current = self.current, task
        try:
            assert task.greenlet is not None
            task.greenlet.throw(Killed)
        finally:
            self.current = before
        task.done = True

    def wake(self, task: Task, epoch: int | None = None) -> bool:
        """Make a task runnable that waits (in that wait of its, when `epoch` is given); False when it does not."""
        if not task.waiting or task.killed or (epoch is not None and epoch != task.epoch):
            return False
        task.epoch += 1
        task.waiting = False
        self._ready.append(task)
        return True

    def block(self) -> None:
        """The current task waits until somebody wakes it."""
        task = self.current
        assert task is not None, "only a task can wait"
        if task.killed:
            raise Killed
        task.waiting = True
        self._hub.switch()

    def give_way(self) -> None:
        """The current task stays runnable and lets others go first, perhaps."""
        task = self.current
        assert task is not None
        if task.killed:
            raise Killed
        self._ready.append(task)
        self._hub.switch()

    def maybe_preempt(self) -> None:
        """A moment at which a real thread might lose the processor."""
        task = self.current
        if task is None or task.killed or not self._preempt_rate:
            return
        if self._random() < self._preempt_rate:
            self.give_way()

    def resume(self, owner: Owner) -> None:
        """The tasks of a process that was paused may run again."""
        parked, owner.parked = owner.parked, []
        self._ready.extend(parked)

    # -- time ---------------------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Run `action` outside of all tasks at that time."""
        timer = Timer(action)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, timer))
        return timer

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.at(self.now + seconds, action)

    def sleep(self, seconds: float) -> None:
        """The current task waits that long, of true time."""
        task = self.current
        assert task is not None
        epoch = task.epoch
        self.after(seconds, lambda: self.wake(task, epoch))
        self.block()

    def block_for(self, seconds: float | None) -> bool:
        """Wait to be woken, at most so long; False when the time was over first."""
        if seconds is None:
            self.block()
            return True
        task = self.current
        assert task is not None
        epoch = task.epoch
        in_time = True

        def late() -> None:
            nonlocal in_time
            if task.epoch == epoch:
                in_time = False
                self.wake(task)

        timer = self.after(max(0.0, seconds), late)
        self.block()
        timer.cancel()
        return in_time

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, finished: Callable[[], bool], until: float) -> bool:
        """Run until `finished()` (True) or the time `until` (False). Raises Stuck."""
        ready = self._ready
        while True:
            while ready:
                index = int(self._random() * len(ready))
                task = ready[index]
                last = ready.pop()
                if last is not task:
                    ready[index] = last
                if task.done or task.killed:
                    continue
                if task.owner.paused:
                    task.owner.parked.append(task)
                    continue
                self.steps += 1
                if self.steps > STEPS_MAX:
                    raise Stuck(f"{STEPS_MAX} steps: it runs in circles, at last in {task}")
                self.current = task
                assert task.greenlet is not None
                task.greenlet.switch()
                self.current = None
            if finished():
                return True
            if not self._timers:
                raise Stuck("deadlock: nobody can run, and no timer is set")
            when, _, timer = heapq.heappop(self._timers)
            if timer.action is None:
                continue
            if when > until:
                heapq.heappush(self._timers, (when, self._serial, timer))
                self._serial += 1
                self.now = max(self.now, until)
                return False
            self.now = max(self.now, when)
            timer.action()
