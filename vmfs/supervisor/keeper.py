"""What the supervisor does: it keeps a mount's connection to the kernel, and starts its processes one after another.

A process is replaced only when it is dead with all its threads (the kernel tells its parent no sooner), so no I/O of
its is under way any more. It is not replaced when the kernel has ended the session, when the mount never came about,
when somebody asked the supervisor to end it (SIGTERM, which is handed on), or when the kernel cannot send requests
again (before Linux 6.9): the requests that the dead process had read would then never be answered, so the connection
ends with it and every user of the mount gets an error, as without a supervisor.

The supervisor ends when there is nothing to be kept. Its end closes the last descriptor of the connection, on which the
kernel fails whatever still waits.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Final

from vmfs.estate.link import MESSAGE_MAX_BYTES, VARIABLE
from vmfs.events import Event, event
from vmfs.supervisor.restarts import Restarts

WORKER: Final = (sys.executable, "-m", "vmfs.supervisor.worker")
_HANDED_ON: Final = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


class Keeper:
    """One mount's supervisor. One thread."""

    def __init__(self, estate_fd: int, job_fd: int, report_fd: int, mountpoint: str) -> None:
        """`job_fd`: what to mount, for the worker; `report_fd`: where the first worker says how it gets on."""
        self._estate = estate_fd
        self._job = job_fd
        self._report = report_fd
        self._mountpoint = mountpoint
        self._restarts = Restarts()
        self._fuse: int | None = None
        self._served = False
        """The present worker has got to serve."""
        self._ever_served = False
        self._resend = False
        self._ended = False
        self._restart_wanted = False
        self._stopping = False
        self._worker: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._waking, self._wakeup = socket.socketpair()

    def run(self) -> int:
        """Until there is nothing to be kept; returns the last worker's exit code."""
        self._waking.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _HANDED_ON:
            signal.signal(number, self._hand_on)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while True:
            self._start()
            code = self._wait_for_end()
            pause = self._pause_before_next(code)
            if pause is None or not self._still_wanted(pause):
                return code

    # -- a worker --------------------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [theirs.fileno(), self._estate, *([] if self._fuse is None else [self._fuse])]
        given = {"fds": inherited, "job": self._job, "report": self._report}
        passed = [*inherited, self._job, *([] if self._report < 0 else [self._report])]
        self._served = self._restart_wanted = False
        self._link = ours
        self._worker = subprocess.Popen(
            WORKER, pass_fds=passed, stdin=subprocess.DEVNULL, env=os.environ | {VARIABLE: json.dumps(given)},
        )  # fmt: skip
        theirs.close()
        if self._report >= 0:
            os.close(self._report)  # the worker's end alone is left: it ends with the worker
            self._report = -1
        if self._stopping:  # the signal came before there was anybody to hand it to
            self._worker.terminate()

    def _wait_for_end(self) -> int:
        """Take messages until the worker is dead; its exit code."""
        worker, link = self._worker, self._link
        assert worker is not None
        assert link is not None
        poller = select.poll()
        pidfd = os.pidfd_open(worker.pid)
        for fd in (pidfd, link.fileno(), self._waking.fileno()):
            poller.register(fd, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poller.poll()}
                if self._waking.fileno() in ready:
                    self._drain_wakeups()
                if link.fileno() in ready and not self._take_message(link):
                    poller.unregister(link.fileno())
                if pidfd in ready:
                    code = worker.wait()
                    link.setblocking(False)
                    while self._take_message(link):
                        pass
                    return code
        finally:
            os.close(pidfd)
            link.close()

    def _take_message(self, link: socket.socket) -> bool:
        """False at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(link, MESSAGE_MAX_BYTES, 1)
        except (BlockingIOError, ConnectionResetError):
            return False
        if not data:
            return False
        message = json.loads(data)
        if "keep" in message and fds:
            os.set_inheritable(fds[0], False)
            self._fuse = fds[0]
        elif "serving" in message:
            self._served = self._ever_served = True
            self._resend = bool(message["resend"])
        elif "ended" in message:
            self._ended = True
        elif "restart" in message:
            self._restart_wanted = True
        return True

    # -- between two workers -----------------------------------------------------------------------------

    def _pause_before_next(self, code: int) -> float | None:
        """Seconds before another worker is started; None: there is to be none."""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._ended or self._fuse is None or not self._ever_served:
            return None
        if not self._resend:
            log.error(
                "%s: its process %s, and cannot be replaced on this kernel (Linux 6.9 could): the mount is dead",
                self._mountpoint, how, extra=event(Event.MOUNT_DEAD),
            )  # fmt: skip
            return None
        if self._stopping:
            log.warning("%s: its process %s while it was to be ended", self._mountpoint, how)
            return None
        if self._restart_wanted:
            log.info("%s: a new process takes over, as ordered", self._mountpoint)
            return 0.0
        pause = self._restarts.note_end(time.monotonic(), served=self._served)
        if pause is None:
            log.error("%s: its process %s, too often by now: no other is started, the mount is dead",
                      self._mountpoint, how, extra=event(Event.MOUNT_DEAD))  # fmt: skip
        else:
            log.warning("%s: its process %s; another takes over in %.1f s", self._mountpoint, how, pause,
                        extra=event(Event.PROCESS_DIED))  # fmt: skip
        return pause

    def _still_wanted(self, pause: float) -> bool:
        """Wait; False when the mount is taken away, or this process asked to end, meanwhile or before."""
        assert self._fuse is not None
        poller = select.poll()
        poller.register(self._fuse, 0)  # an ended connection shows as an error
        poller.register(self._waking.fileno(), select.POLLIN)
        until = time.monotonic() + pause
        while True:
            ready = {fd for fd, _ in poller.poll(max(0.0, until - time.monotonic()) * 1000)}
            if self._fuse in ready:
                log.warning("%s was unmounted before another process took over: the next mount recovers its slot",
                            self._mountpoint)  # fmt: skip
                return False
            if self._waking.fileno() in ready:
                self._drain_wakeups()
            if self._stopping:
                return False
            if time.monotonic() >= until:
                return True

    # -- signals -----------------------------------------------------------------------------------------

    def _hand_on(self, number: int, frame: object) -> None:
        self._stopping = True
        worker = self._worker
        if worker is not None and worker.returncode is None:
            worker.send_signal(number)

    def _drain_wakeups(self) -> None:
        try:
            while self._waking.recv(4096):
                pass
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise
