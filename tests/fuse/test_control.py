"""The pool: grows while all wait, shrinks, drains at its end, survives a lack of threads."""

import threading
import time

import pytest

from vmfs.fuse import control
from vmfs.fuse.control import ControlPool


def test_grows_to_its_limit_and_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_S", 0.05)
    pool = ControlPool(2, "pool", limit=5)
    go, done = threading.Event(), []

    def job() -> None:
        go.wait(10)
        done.append(threading.current_thread().name)

    def alive() -> int:
        return sum(thread.name.startswith("pool-") for thread in threading.enumerate())

    for _ in range(20):
        pool.submit(job)
    assert alive() == 5
    go.set()
    end = time.monotonic() + 5
    while alive() > 2 and time.monotonic() < end:
        pool.submit(lambda: None)
        time.sleep(0.01)
    assert alive() == 2, "a trickle of work keeps only the base"
    pool.close()
    assert len(done) == 20
    assert alive() == 0
    pool.submit(lambda: done.append("late"))
    assert len(done) == 20


@pytest.mark.expected_log("failed outside its request")
def test_a_job_that_raises_costs_no_thread() -> None:
    pool = ControlPool(1, "pool", limit=1)
    ran = threading.Event()
    pool.submit(lambda: 1 // 0)  # type: ignore[arg-type]
    pool.submit(ran.set)
    assert ran.wait(5)
    pool.close()


@pytest.mark.expected_log("no thread for a control job")
def test_without_more_threads_jobs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ControlPool(4, "pool")
    go, ran = threading.Event(), threading.Event()
    pool.submit(lambda: go.wait(10))  # type: ignore[arg-type]

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.submit(ran.set)
    assert not ran.is_set()
    go.set()
    assert ran.wait(5)
    pool.close()


def test_not_one_thread_is_an_error_and_close_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ControlPool(4, "pool")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        pool.submit(lambda: None)
    pool.close()
