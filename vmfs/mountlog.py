"""Where a mount's process writes its log: a file of bounded size, systemd's journal, syslog, or standard error."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import sys
import threading
from logging.handlers import RotatingFileHandler, SysLogHandler, WatchedFileHandler
from typing import Final

from vmfs.errors import EXIT_NOT_TRIED, VmfsError
from vmfs.journald import JournalHandler
from vmfs.logfields import JsonFormatter

LOG_DIRECTORY: Final = "/run/azekura/log"
SYSLOG: Final = "syslog"
JOURNAL: Final = "journal"
STDERR: Final = "stderr"
TEXT: Final = "text"
JSON: Final = "json"
_NO_FILE: Final = (SYSLOG, JOURNAL)
SYSLOG_SOCKET: Final = "/dev/log"
LOG_MAX_BYTES: Final = 4 << 20  # /run is memory; one older file of that size is kept beside it
_FORMAT: Final = "%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
_SYSLOG_FORMAT: Final = "vmfs[%(process)d]: %(levelname)s %(name)s: %(message)s"
_JOURNAL_FORMAT: Final = "%(message)s"  # the rest is in fields of their own


class LogUnusable(VmfsError):
    """The log cannot be written to."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EACCES

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"the log {where} cannot be written: {reason}; choose another with --log-file")


class MountLog:
    """A log to be: nothing is opened before `check` or `start`."""

    def __init__(self, where: str | None, form: str = TEXT) -> None:
        """`where`: the path of a file, SYSLOG, JOURNAL, or None for standard error. `form`: TEXT, or JSON lines."""
        self._path = where
        self._form = form

    @property
    def where(self) -> str:
        """What messages call it."""
        return self._path or "the messages above"

    def check(self) -> None:
        """Raise LogUnusable unless it can be written to: said before the process leaves its terminal."""
        self._handler().close()

    def start(self, level: int, *, shared: bool = False) -> None:
        """Send all of this process's log there from now on, with the last words of crashes and failed threads.

        `shared`: another process writes there too, and keeps the file's size; this one only follows it.
        """
        handler = self._handler()
        if shared and isinstance(handler, RotatingFileHandler):
            handler.close()
            handler = WatchedFileHandler(handler.baseFilename, encoding="utf-8")
        handler.setFormatter(self._formatter())
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(level)
        threading.excepthook = _log_thread_failure
        if self._path is None:
            faulthandler.enable(sys.__stderr__ or 2)
        elif self._path not in _NO_FILE:
            # Its own descriptor, open to the end: the handler's changes when the file is rotated.
            faulthandler.enable(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def _formatter(self) -> logging.Formatter:
        if self._form == JSON:
            return JsonFormatter()
        return logging.Formatter({SYSLOG: _SYSLOG_FORMAT, JOURNAL: _JOURNAL_FORMAT}.get(self._path or "", _FORMAT))

    def _handler(self) -> logging.Handler:
        try:
            if self._path is None:
                return logging.StreamHandler(sys.stderr)
            if self._path == SYSLOG:
                return SysLogHandler(SYSLOG_SOCKET, facility=SysLogHandler.LOG_DAEMON)
            if self._path == JOURNAL:
                return JournalHandler()
            if os.path.dirname(self._path) == LOG_DIRECTORY:
                os.makedirs(os.path.dirname(LOG_DIRECTORY), mode=0o755, exist_ok=True)
                os.makedirs(LOG_DIRECTORY, mode=0o700, exist_ok=True)
            return RotatingFileHandler(self._path, maxBytes=LOG_MAX_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise LogUnusable(self.where, error.strerror or str(error)) from error


def default_log_file(mountpoint: str) -> str:
    """The log of the mount at this absolute path when nobody chose another: one file a mount point."""
    # As systemd names mount units: readable, and no two mount points share a name.
    name = "".join(_escaped(c) for c in mountpoint.strip("/")) or "root"
    return os.path.join(LOG_DIRECTORY, f"{name[:200]}.log")


def _escaped(character: str) -> str:
    if character == "/":
        return "-"
    if character.isascii() and (character.isalnum() or character in "._"):
        return character
    return "".join(f"%{byte:02x}" for byte in os.fsencode(character))


def _log_thread_failure(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "?"
    failure = (args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value is not None else None
    logging.getLogger(__name__).error("thread %s failed", name, exc_info=failure)
