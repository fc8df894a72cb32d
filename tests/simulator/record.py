"""What happened in a run: the trace, its digest, and the first thing that must not have happened."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable
from typing import Final

from xxhash import xxh3_64

from tests.simulator.engine import Scheduler, Task
from tests.simulator.model import Violation
from vmfs.errors import VmfsError

_TRACE_MAX: Final = 400
_FRAMES_SHOWN: Final = 8


class Record:
    """The events of one run."""

    def __init__(self, scheduler: Scheduler, *, keep_all: bool) -> None:
        """`keep_all`: keep every event for the trace, not the last ones alone."""
        self.violation: str | None = None
        self._scheduler = scheduler
        self._digest = xxh3_64()
        self._trace: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=None if keep_all else _TRACE_MAX)
        scheduler.on_error = self.task_failed

    def note(self, *words: object) -> None:
        """An event."""
        self._digest.update(repr((round(self._scheduler.now, 9), words)).encode())
        self._trace.append((self._scheduler.now, words))

    def digest(self) -> str:
        """Of all events: the same for every run of one seed."""
        return self._digest.hexdigest()

    def lines(self) -> list[str]:
        """The events for people: time, host, what."""
        return [f"{when:12.6f}  {' '.join(map(str, words))}" for when, words in self._trace]

    def task_failed(self, task: Task, error: BaseException) -> None:
        """A task ended with an exception: what a client found, or a bug of the product."""
        if self.violation is None:
            what = str(error) if isinstance(error, Violation) else f"{task} failed: {error!r}\n{_frames(error)}"
            self.violation = what

    def log_record(self, record: logging.LogRecord) -> None:
        """A WARNING or ERROR of the product; one with the traceback of a bug is a violation."""
        self.note("log", record.levelname, record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, VmfsError) and self.violation is None:
            self.violation = f"a thread of the product failed: {record.getMessage()}\n{_frames(error)}"


class LogHandler(logging.Handler):
    """Hands WARNINGs and ERRORs to `take`."""

    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


def _frames(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-_FRAMES_SHOWN:])
