"""Ordered work on a few threads, with a bound on what is under way, so that memory stays flat at any size of disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Hashing, compressing and reading run without the interpreter's lock, so the cores are the bound; one thread more fills
# the waits for the medium. More than 8 would be limited by the lock, and each holds some 10 MiB.
WORKERS_LIMIT = 8


def worker_count() -> int:
    """How many threads to use here."""
    return min(len(os.sched_getaffinity(0)) + 1, WORKERS_LIMIT)


def in_order(tasks: Iterable[Callable[[], T]], threads: int, name: str) -> Generator[T, None, None]:
    """The results of tasks in their order. At most twice as many as there are threads are started and not yet taken.

    The first error stops the rest: nothing new is started, what runs is waited for, and the error is raised.
    Wrap it in `contextlib.closing`, so that an error of the taker stops the rest as well.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
