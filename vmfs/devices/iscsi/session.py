"""One login to one target: a nexus, on which many threads have commands under way at once.

The I_T nexus is named by the initiator's name and the ISID, which stay the same when a session logs in again after its
connection broke. So the target ends what was left of the old connection before it lets the new one in (session
reinstatement, RFC 7143, 6.3.5), and a registration that was made on the nexus is still there; or is not, when another
host took it away (SPC-4, 5.12.5: registrations outlive the loss of a nexus).

A libiscsi context is for one thread at a time, and somebody must wait for what the target sends. There is no thread for
that, whose every command would cost two switches: of the threads that wait for an answer, one leads. It polls the
connection, and hands the lead on when its own command has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.iscsi import library
from vmfs.devices.iscsi.address import IscsiAddress
from vmfs.devices.iscsi.command import Command
from vmfs.devices.iscsi.credentials import Credentials
from vmfs.devices.iscsi.library import CALLBACK, STATUS_FROM_LIBRARY
from vmfs.devices.scsi.transport import Answer, Status

LOGOUT_SECONDS: Final = 1.0
LARGE_BYTES: Final = 32 << 10  # from here on copying takes longer than handing Python's lock over
_SERVE_AT_LEAST_EVERY_SECONDS: Final = 1.0  # libiscsi looks after its own timers when it is called
_ABORT_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class ConnectionLost(Exception):
    """No answer: the connection broke, or the time was over.

    `was_sent`: the command may have been executed, or may be yet. Else the target has not seen any of it.
    """

    def __init__(self, reason: str, *, was_sent: bool = False) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class Session:
    """A nexus. Thread-safe: `_mutex` guards the context, every call of libiscsi with it, and the commands under way.

    Nobody polls under `_mutex`. Who drops the connection wakes the leader by `_bell`.
    """

    def __init__(
        self, address: IscsiAddress, initiator: str, credentials: Credentials, isid: tuple[int, int]
    ) -> None:
        """Nothing is sent yet. `isid`: 24 random bits and a 16-bit qualifier (RFC 7143, 11.12.5, format 10b)."""
        self._library = library.load()
        self._address = address
        self._initiator = initiator
        self._credentials = credentials
        self._isid = isid
        self._mutex = threading.Lock()
        self._context: int | None = None
        self._under_way: dict[int, Command] = {}  # by the address of their tasks, the oldest first
        self._led = False
        self._why_lost = ""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._polled = (-1, 0)
        self._asked: int | None = None
        self._on_end = CALLBACK(self._command_ended)
        self._on_asked = CALLBACK(self._login_ended)

    @property
    def is_connected(self) -> bool:
        """Whether it is logged in, as far as is known."""
        return self._context is not None

    @property
    def busy(self) -> int:
        """How many commands are under way."""
        return len(self._under_way)

    # -- coming and going --------------------------------------------------------------------------

    def connect(self, seconds: float) -> None:
        """Log in unless it is. Raises ConnectionLost with the reason."""
        with self._mutex:
            if self._context is None:
                self._log_in(time.monotonic() + seconds)

    def _log_in(self, deadline: float) -> None:
        lib, credentials = self._library, self._credentials
        context = lib.create_context(self._initiator.encode())
        if not context:
            raise ConnectionLost("libiscsi has no memory")
        lib.set_log_level(context, 0)  # LIBISCSI_DEBUG in the environment would have it write to standard error
        lib.set_no_reconnect(context, 1)  # it would send again by itself what was under way
        lib.set_isid_random(context, *self._isid)
        lib.set_target_name(context, self._address.target.encode())
        lib.set_session_type(context, library.SESSION_NORMAL)
        lib.set_header_digest(context, library.DIGEST_NONE_CRC32C)
        if credentials.user is not None and credentials.password is not None:
            lib.set_chap(context, credentials.user.encode(), credentials.password.encode())
        if credentials.target_user is not None and credentials.target_password is not None:
            lib.set_target_chap(context, credentials.target_user.encode(), credentials.target_password.encode())
        self._asked = None
        refused = lib.connect(context, self._address.portal.encode(), self._address.lun, self._on_asked, None)
        if refused or not self._answered(context, deadline) or self._asked != Status.GOOD:
            reason = self._reason(context, "cannot log in" if self._asked is not None else "no answer to the login")
            self._destroy(context)
            raise ConnectionLost(reason)
        self._context = context

    def tend(self) -> None:
        """Answer the target's pings where no command is under way, and notice when the connection has ended."""
        with self._mutex:
            if self._context is None or self._led:
                return
            while (context := self._context) is not None:
                self._watch(self._library.descriptor(context), self._library.events(context))
                ready = self._connection(self._poll.poll(0))
                if not ready:
                    return
                self._serve(context, ready)

    def close(self) -> None:
        """Log out, if the target answers within LOGOUT_SECONDS. Nothing is under way any more."""
        with self._mutex:
            context = self._context
            if context is not None:
                self._asked = None
                if not self._library.logout(context, self._on_asked, None):
                    self._answered(context, time.monotonic() + LOGOUT_SECONDS)
                self._drop("closed")
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1

    # -- commands ----------------------------------------------------------------------------------

    def execute(
        self,
        cdb: bytes,
        data_out: ReadableBuffer | None,
        data_in: memoryview | None,
        seconds: float,
        before_sending: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a command and wait for its answer. ConnectionLost when there is none; the session is dropped then.

        `before_sending` is called immediately before that, and may raise; it takes no lock and does not wait.
        """
        command = Command(self._library, cdb, data_out, data_in)
        try:
            with self._mutex:
                if before_sending is not None:
                    before_sending()
                self._send(command, seconds)
                if not self._led:
                    self._led = command.leads = True
            self._wait(command)
            if command.status is None or command.status >= STATUS_FROM_LIBRARY:
                raise ConnectionLost(self._why_lost, was_sent=True)
            return command.answer()
        finally:
            command.free()  # it is not under way any more: nobody refers to it

    def _send(self, command: Command, seconds: float) -> None:
        context = self._context
        if context is not None and not self._led:
            self._serve(context, select.POLLIN)  # what came meanwhile: a ping, or the end
            context = self._context
        if context is None:
            raise ConnectionLost(self._why_lost or "not connected")
        command.deadline = time.monotonic() + seconds
        self._under_way[command.task] = command
        if self._library.command(context, self._address.lun, command.task, self._on_end, None, command.task):
            del self._under_way[command.task]
            reason = self._reason(context, "cannot send")
            self._drop(reason)
            raise ConnectionLost(reason)
        self._serve(context, select.POLLOUT, command.length)
        if self._led and self._context is not None and self._library.events(context) != self._polled[1]:
            os.eventfd_write(self._bell, 1)  # the leader must wait for more than it does

    def _wait(self, command: Command) -> None:
        try:
            if not command.leads:
                command.ended_or_leads.acquire()
            if command.leads:
                self._lead(command)
        except BaseException:  # a signal: libiscsi must not refer to this command's memory any more
            with self._mutex:
                if command.leads:
                    self._led = False
                if command.task in self._under_way:
                    self._drop("interrupted")
            raise

    def _lead(self, own: Command) -> None:
        """Move bytes until `own` has ended; then another waiting thread does."""
        while True:
            with self._mutex:
                context = self._context
                if own.status is None and context is not None:
                    oldest = next(iter(self._under_way.values()))
                    left = oldest.deadline - time.monotonic()
                    if left <= 0:
                        self._drop("no answer in time")
                if own.status is not None or self._context is None:
                    self._hand_on(own)
                    return
                self._watch(self._library.descriptor(context), self._library.events(context))
            ready = self._connection(self._poll.poll(max(1, min(left, _SERVE_AT_LEAST_EVERY_SECONDS) * 1000)))
            with self._mutex:
                if self._context == context and context is not None:
                    self._serve(context, ready, own.length)

    def _hand_on(self, own: Command) -> None:
        for command in self._under_way.values():
            if command is not own:
                command.leads = True
                command.ended_or_leads.release()
                return
        self._led = False

    def _command_ended(self, context: int, status: int, data: int | None, task: int | None) -> None:
        """What libiscsi calls when a command has ended, also by cancelling. `_mutex` is held."""
        command = self._under_way.pop(task or 0, None)
        if command is not None:
            command.end(status)

    def _login_ended(self, context: int, status: int, data: int | None, private: int | None) -> None:
        self._asked = status

    # -- with `_mutex` held ------------------------------------------------------------------------

    def _serve(self, context: int, events: int, length: int = 0) -> None:
        """Have libiscsi send and receive. The session is dropped when the connection has ended."""
        serve = self._library.serve_large if length >= LARGE_BYTES else self._library.serve_small
        gone = events & (select.POLLHUP | select.POLLERR | select.POLLNVAL)
        if serve(context, events) < 0 or gone:
            self._drop(self._reason(context, "the connection broke"))

    def _answered(self, context: int, deadline: float) -> bool:
        """Whether the answer to a login or logout came in time. Waits with `_mutex` held: others want the same."""
        lib = self._library
        while self._asked is None:
            poll = select.poll()
            descriptor = lib.descriptor(context)
            left = deadline - time.monotonic()
            if left <= 0 or descriptor < 0:
                return False
            poll.register(descriptor, lib.events(context))
            ready = poll.poll(max(1, min(left, _SERVE_AT_LEAST_EVERY_SECONDS) * 1000))
            if lib.serve_large(context, ready[0][1] if ready else 0) < 0:
                return self._asked is not None
        return True

    def _drop(self, why: str) -> None:
        """What has not left this host never will: the connection is reset, not closed."""
        context, self._context = self._context, None
        if context is None:
            return
        self._why_lost = why
        self._destroy(context)
        for command in list(self._under_way.values()):  # libiscsi has cancelled them; none may wait for ever
            command.end(STATUS_FROM_LIBRARY)
        self._under_way.clear()
        os.eventfd_write(self._bell, 1)

    def _destroy(self, context: int) -> None:
        last = None
        descriptor = self._library.descriptor(context)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                last = socket.socket(fileno=os.dup(descriptor))
                last.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_ON_CLOSE)
        self._watch(-1, 0)
        self._library.destroy_context(context)
        if last is not None:
            last.close()

    def _watch(self, descriptor: int, events: int) -> None:
        if self._polled == (descriptor, events):
            return
        if self._polled[0] not in (-1, descriptor):
            self._poll.unregister(self._polled[0])
        if descriptor >= 0:
            self._poll.register(descriptor, events)
        self._polled = (descriptor, events)

    def _connection(self, ready: list[tuple[int, int]]) -> int:
        """The connection's events; the bell is silenced."""
        found = 0
        for descriptor, events in ready:
            if descriptor == self._bell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            else:
                found = events
        return found

    def _reason(self, context: int, what: str) -> str:
        raw: bytes | None = self._library.error(context)
        text = "".join(c if c.isprintable() else " " for c in (raw or b"").decode("utf-8", "replace")).strip()
        return f"{what}: {text}" if text else what
