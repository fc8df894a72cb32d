"""What a log record says besides its text: the event, and which mount it is about. As fields, for programs to read."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

EVENT: Final = "event"
_about: dict[str, str] = {}


def about(**fields: str) -> None:
    """Say of which mount all records of this process are from now on: `volume`, `host`, `slot`, `mountpoint`."""
    _about.update(fields)


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The event of a record, where it has one, and its mount."""
    event = getattr(record, EVENT, None)
    return _about | ({} if event is None else {EVENT: str(event)})


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON. Members are added, never renamed: time, level, logger, thread, process, message,
    and where there are any: event, volume, host, slot, mountpoint, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging.Formatter's."""
        shown: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(), "logger": record.name, "thread": record.threadName,
            "process": record.process, "message": record.getMessage(), **fields_of(record),
        }  # fmt: skip
        if record.exc_info:
            shown["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shown)
