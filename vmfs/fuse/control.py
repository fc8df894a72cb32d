"""The pool of threads for everything that is not an inline READ or WRITE."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger("vmfs.fuse")

Job = Callable[[], None]

THREADS_MAX = 256
"""Where growth ends: each thread beyond the base stands for one system call that waits in the file system.
With as many waiting the volume is in trouble anyway, and the rest queues."""

IDLE_S = 10.0
"""Threads beyond the base end when for so long there was always one free."""

LEFT_BEHIND_POLL_S = 0.1
"""How often `close` looks whether those that it waits for are worth it."""


class ControlPool:
    """Runs jobs on `base` threads, and on more as long as all are busy; `submit` never waits.

    One lock (`_lock`, with the condition `_wake`) guards the queue and the counts; no job runs under it.
    """

    def __init__(
        self, base: int, name: str, *, limit: int = THREADS_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._base = base
        self._limit = max(base, limit)
        self._name = name
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._empty = threading.Condition(self._lock)
        self._queue: deque[Job] = deque()
        self._idle = 0
        self._started = 0
        self._alive = 0
        self._clock = clock
        self._short_at = clock()
        self._closed = False

    def submit(self, job: Job) -> None:
        """Queue a job; it must not raise. After `close` it is dropped: nobody is left to be answered.

        Raises RuntimeError when not one thread can be started.
        """
        with self._lock:
            if self._closed:
                return
            self._queue.append(job)
            if self._idle < len(self._queue):
                self._short_at = self._clock()
            if self._idle >= len(self._queue) or self._alive >= self._limit:
                self._wake.notify()
                return
            self._alive += 1
            self._started += 1
            number = self._started
        try:
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True).start()
        except RuntimeError:
            # The process is at its limit of threads: the job waits for one of those that run.
            with self._lock:
                self._alive -= 1
                if self._alive == 0:
                    self._queue.clear()
                    raise
            log.warning("no thread for a control job (%d run): it waits", number - 1)

    def close(self, left_behind: Callable[[], int] = lambda: 0) -> None:
        """Run what is queued, end all threads, and wait for them; not for as many as are `left_behind`."""
        with self._lock:
            self._closed = True
            self._wake.notify_all()
            while self._alive > left_behind():
                self._empty.wait(LEFT_BEHIND_POLL_S)

    def _next(self) -> Job | None:
        with self._lock:
            while not self._queue:
                surplus = self._alive > self._base
                if self._closed or (surplus and self._clock() - self._short_at >= IDLE_S):
                    return None
                self._idle += 1
                self._wake.wait(IDLE_S if surplus else None)
                self._idle -= 1
            return self._queue.popleft()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                try:
                    job()
                except Exception:
                    log.exception("a control job failed outside its request")
                del job
        finally:
            with self._lock:
                self._alive -= 1
                self._empty.notify_all()
