"""The process of a mount: how it is started, how it tells that it serves, and how signals end it.

In the background the process is forked twice and leads no terminal; its parent returns when the mount serves, or with
the error that kept it from serving. The two talk over a pipe, one line of JSON each: {"pid": N} at once, then
{"ready": true} or {"error": TEXT, "exit_code": N}; the pipe's end without either means that the process died.

SIGTERM and SIGINT unmount: at once when nothing is open, else lazily (the name goes, the process ends with the last
close). Before the mount serves, they make it give up. SIGKILL is what a crash is: the journal is replayed by the next
mount.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from vmfs.control.contract import MountOptions, Serve
from vmfs.errors import VmfsError
from vmfs.fuse import mount as kernel
from vmfs.fuse.errors import MountBusy, NotMounted
from vmfs.mountlog import MountLog

EXIT_INTERNAL: Final = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED: Final = 130  # as shells report SIGINT
GIVE_UP_SECONDS: Final = 10.0  # for the process to put things back when its parent is interrupted
REPORT_MAX_BYTES: Final = 64 << 10
Unmount = Callable[..., None]

log = logging.getLogger(__name__)


class MountDidNotStart(VmfsError):
    """The mount's process ended before it served. The message is the process's own, and so is the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# -- in the foreground -----------------------------------------------------------------------------


def run_foreground(options: MountOptions, serve: Serve, mount_log: MountLog) -> int:
    """Serve on this thread until it is unmounted; return the exit code. Raises what `serve` raises before it serves.

    KeyboardInterrupt when a signal came before it served.
    """
    mount_log.start(options.log_level)
    with Signals(options.mountpoint) as signals:
        code = serve(options, signals.serving)
    log.info("unmounted %s", options.mountpoint)
    return code


# -- in the background -----------------------------------------------------------------------------


def run_background(options: MountOptions, serve: Serve, mount_log: MountLog) -> int:
    """Serve in a process of its own; return that process's pid when the mount serves.

    To be called while this process has one thread. Raises MountDidNotStart, and VmfsError when the log cannot be
    opened. Interrupted (KeyboardInterrupt), it tells the process to give up first.
    """
    mount_log.check()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(options, serve, mount_log, writing)
    os.close(writing)
    try:
        return await_report(reading, mount_log, child)
    finally:
        os.close(reading)


def await_report(reading: int, mount_log: MountLog, child: int | None = None) -> int:
    """Hear how the mount's process gets on, having reaped the `child` that started it; its pid when it serves.

    Raises MountDidNotStart, and KeyboardInterrupt once the process was told to give up.
    """
    pid = 0
    lines = _Lines(reading)
    try:
        if child is not None:
            os.waitpid(child, 0)
        while (line := lines.next_line(None)) is not None:
            report = json.loads(line)
            if "pid" in report:
                pid = int(report["pid"])
            elif "ready" in report:
                return pid
            else:
                raise MountDidNotStart(str(report["error"]), int(report["exit_code"]))
    except KeyboardInterrupt:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        if not pid and (line := lines.next_line(deadline)) is not None:
            pid = int(json.loads(line).get("pid", 0))
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            lines.drain(deadline)
        raise
    raise MountDidNotStart(f"the mount's process {pid} died before it served; see {mount_log.where}", EXIT_INTERNAL)


class _Lines:
    """Lines from the pipe, at most REPORT_MAX_BYTES together."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = b""
        self._budget = REPORT_MAX_BYTES

    def next_line(self, deadline: float | None) -> bytes | None:
        """The next line; None at the end of the pipe, or when `deadline` (of time.monotonic) has passed."""
        while b"\n" not in self._pending:
            if deadline is not None and not select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]:
                return None
            received = os.read(self._fd, 4096)
            self._budget -= len(received)
            if not received or self._budget < 0:
                return None
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def drain(self, deadline: float) -> None:
        """Wait for the end of the pipe, that is of the process or of its report, until `deadline` at most."""
        while self.next_line(deadline) is not None:
            pass


def _become_daemon(options: MountOptions, serve: Serve, mount_log: MountLog, writing: int) -> NoReturn:
    """In the first child: leave the session, fork again, serve, and exit without running the parent's cleanup."""
    code = EXIT_INTERNAL
    try:
        os.setsid()
        if os.fork():  # so that no terminal can ever become ours; the parent waits for this exit
            os._exit(0)
        tell(writing, {"pid": os.getpid()})
        _detach(keep=writing)
        code = serve_and_report(options, serve, mount_log, writing)
    except BaseException:
        log.exception("the mount's process fails")
    finally:
        logging.shutdown()
        os._exit(code)


def _detach(keep: int) -> None:
    """Let go of the caller's directory, files and terminal; only `keep` stays open."""
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def serve_and_report(options: MountOptions, serve: Serve, mount_log: MountLog, writing: int) -> int:
    """Serve on this, the main thread, and say on the pipe `writing` (-1: to nobody) how it goes; the exit code."""
    reported = writing < 0

    def report(message: dict[str, object]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            tell(writing, message)
            os.close(writing)

    try:
        mount_log.start(options.log_level)
        with Signals(options.mountpoint) as signals:

            def ready() -> None:
                signals.serving()
                report({"ready": True})

            code = serve(options, ready)
        log.info("unmounted %s", options.mountpoint)
    except VmfsError as error:
        log.error("%s", error)
        report({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except KeyboardInterrupt:
        log.info("interrupted before %s served", options.mountpoint)
        report({"error": "interrupted", "exit_code": EXIT_INTERRUPTED})
        return EXIT_INTERRUPTED
    except Exception:
        log.exception("the mount's process fails")
        report({"error": f"internal error; {mount_log.where} has the details", "exit_code": EXIT_INTERNAL})
        return EXIT_INTERNAL
    report({"error": f"the mount ended before it served; see {mount_log.where}", "exit_code": code or EXIT_INTERNAL})
    return code


def tell(writing: int, message: dict[str, object]) -> None:
    """Send one line of the report."""
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more: the mount is served all the same
        os.write(writing, json.dumps(message).encode()[: REPORT_MAX_BYTES // 2] + b"\n")


# -- signals ---------------------------------------------------------------------------------------


class Signals:
    """SIGTERM and SIGINT while a mount is made and served. Used on the main thread.

    The handlers only write a byte to a pipe (what they interrupt may hold any lock, `threading`'s own included); a
    thread that `serving` starts reads it and unmounts.
    """

    HANDLED: Final = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, mountpoint: str, unmount: Unmount = kernel.unmount) -> None:
        self._mountpoint = mountpoint
        self._unmount = unmount
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._serving = False
        self._interrupted = False
        self._thread: threading.Thread | None = None
        self._before = {number: signal.getsignal(number) for number in self.HANDLED}
        self._hangup = signal.getsignal(signal.SIGHUP)

    def __enter__(self) -> Signals:
        for number in self.HANDLED:
            signal.signal(number, self._handle)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes does not unmount
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGHUP, self._hangup)
        writing, self._writing = self._writing, -1
        os.close(writing)
        if self._thread is not None:
            self._thread.join()
        os.close(self._reading)

    def serving(self) -> None:
        """From now on a signal unmounts; until now it gave up."""
        self._thread = threading.Thread(target=self._obey, name="signals")
        self._thread.start()
        self._serving = True
        if self._interrupted:  # where Python drops exceptions (a finalizer, a weak reference's callback)
            os.write(self._writing, b"!")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._serving:
            self._interrupted = True
            raise KeyboardInterrupt
        if self._writing >= 0:
            with contextlib.suppress(BlockingIOError):  # thousands of signals are waiting already
                os.write(self._writing, b"!")

    def _obey(self) -> None:
        while True:
            select.select([self._reading], [], [])
            if not os.read(self._reading, 1):
                return
            try:
                self._take_away()
            except NotMounted:
                log.info("%s is unmounted already; its process ends when its last file is closed", self._mountpoint)
            except VmfsError as error:
                log.error("a signal asked to unmount: %s", error)

    def _take_away(self) -> None:
        log.info("signalled: unmounting %s", self._mountpoint)
        try:
            self._unmount(self._mountpoint)
        except MountBusy:
            log.warning("%s is in use: unmounting it lazily; it ends when its last file is closed", self._mountpoint)
            self._unmount(self._mountpoint, lazy=True)
