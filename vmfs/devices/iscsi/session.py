"""One login to one target: a nexus, on which one command at a time is under way.

The I_T nexus is named by the initiator's name and the ISID, which stay the same when a session logs in again after its
connection broke. So the target ends what was left of the old connection before it lets the new one in (session
reinstatement, RFC 7143, 6.3.5), and a registration that was made on the nexus is still there; or is not, when another
host took it away (SPC-4, 5.12.5: registrations outlive the loss of a nexus).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import time
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.iscsi import library
from vmfs.devices.iscsi.address import IscsiAddress
from vmfs.devices.iscsi.credentials import Credentials
from vmfs.devices.iscsi.library import CALLBACK, STATUS_FROM_LIBRARY, Task
from vmfs.devices.scsi.transport import Answer, Status

LOGOUT_SECONDS: Final = 1.0
LARGE_BYTES: Final = 32 << 10  # from here on copying takes longer than handing Python's lock over
_SERVE_AT_LEAST_EVERY_SECONDS: Final = 1.0  # libiscsi looks after its own timers when it is called
_ABORT_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_SENSE_AT: Final = 2  # after its length, in the data segment of a SCSI response (RFC 7143, 11.4.7)


class ConnectionLost(Exception):
    """No answer: the connection broke, or the time was over.

    `was_sent`: the command may have been executed, or may be yet. Else the target has not seen any of it.
    """

    def __init__(self, reason: str, *, was_sent: bool = False) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class Session:
    """A nexus. Not thread-safe: its pool gives it to one thread at a time."""

    def __init__(
        self, address: IscsiAddress, initiator: str, credentials: Credentials, isid: tuple[int, int]
    ) -> None:
        """Nothing is sent yet. `isid`: 24 random bits and a 16-bit qualifier (RFC 7143, 11.12.5, format 10b)."""
        self._library = library.load()
        self._address = address
        self._initiator = initiator
        self._credentials = credentials
        self._isid = isid
        self._context: int | None = None
        self._poll = select.poll()
        self._polled = (-1, 0)
        self._ended: int | None = None
        self._callback = CALLBACK(self._on_end)

    @property
    def is_connected(self) -> bool:
        """Whether it is logged in, as far as is known."""
        return self._context is not None

    def connect(self, seconds: float) -> None:
        """Log in. Raises ConnectionLost with the reason."""
        self.drop()
        lib, credentials = self._library, self._credentials
        context = lib.create_context(self._initiator.encode())
        if not context:
            raise ConnectionLost("libiscsi has no memory")
        self._context = context
        self._polled = (-1, 0)
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
        self._ended = None
        if lib.connect(context, self._address.portal.encode(), self._address.lun, self._callback, None):
            raise self._lost("cannot connect")
        self._serve(time.monotonic() + seconds, lib.serve_large)
        if self._ended != Status.GOOD:
            raise self._lost("cannot log in")

    def execute(
        self, cdb: bytes, data_out: ReadableBuffer | None, data_in: memoryview | None, seconds: float
    ) -> Answer:
        """Send a command and wait for its answer. ConnectionLost when there is none; the session is dropped then."""
        lib, context = self._library, self._context
        if context is None:
            raise ConnectionLost("not connected")
        direction, memory, length = _memory(data_out, data_in)
        task = lib.create_task(len(cdb), cdb, direction, length)
        if not task:
            raise ConnectionLost("libiscsi has no memory")
        try:
            if length:
                add = lib.add_data_out if direction == library.XFER_WRITE else lib.add_data_in
                if add(task, length, ctypes.addressof(memory)):
                    raise ConnectionLost("libiscsi has no memory")
            serve = lib.serve_large if length >= LARGE_BYTES else lib.serve_small
            deadline = time.monotonic() + seconds
            if serve(context, select.POLLIN) < 0:  # what came meanwhile: a ping, or the end
                raise self._lost("the connection was closed")
            self._ended = None
            if lib.command(context, self._address.lun, task, self._callback, None, None):
                raise self._lost("cannot send")
            try:
                serve(context, select.POLLOUT)
                self._serve(deadline, serve)
                if self._ended is None or self._ended >= STATUS_FROM_LIBRARY:
                    raise self._lost("the connection broke")
            except ConnectionLost as error:
                error.was_sent = True
                raise
            return _answer(Task.from_address(task), self._ended, length if data_in is not None else 0)
        finally:
            lib.free_task(task)  # after the context was dropped, if it was: nobody refers to it any more
            del memory

    def tend(self) -> None:
        """Answer the target's pings. ConnectionLost when the connection has ended meanwhile."""
        context = self._context
        if context is None:
            return
        descriptor = self._library.descriptor(context)
        self._watch(descriptor, select.POLLIN)
        while ready := self._poll.poll(0):
            if self._library.serve_small(context, ready[0][1]) < 0 or ready[0][1] & ~select.POLLIN:
                raise self._lost("the connection was closed")
            if not self._flush(context):
                raise self._lost("the connection was closed")

    def drop(self) -> None:
        """Give the connection up at once. What has not left this host never will: it is reset, not closed."""
        context, self._context = self._context, None
        if context is None:
            return
        last = None
        descriptor = self._library.descriptor(context)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                last = socket.socket(fileno=os.dup(descriptor))
                last.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_ON_CLOSE)
        self._library.destroy_context(context)
        if last is not None:
            last.close()

    def close(self) -> None:
        """Log out, if the target answers within LOGOUT_SECONDS."""
        context = self._context
        if context is None:
            return
        self._ended = None
        if not self._library.logout(context, self._callback, None):
            with contextlib.suppress(ConnectionLost):
                self._serve(time.monotonic() + LOGOUT_SECONDS, self._library.serve_small)
        self.drop()

    # -- the event loop ----------------------------------------------------------------------------

    def _on_end(self, context: int, status: int, data: int | None, private: int | None) -> None:
        """What libiscsi calls when a login, logout or command has ended, also by cancelling."""
        self._ended = status

    def _serve(self, deadline: float, serve: library.Serve) -> None:
        """Move bytes until the callback has been called. ConnectionLost when that does not come in time."""
        lib, context = self._library, self._context
        while self._ended is None:
            events = lib.events(context)
            self._watch(lib.descriptor(context), events)
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._lost("no answer in time", told=False)
            ready = self._poll.poll(max(1, min(left, _SERVE_AT_LEAST_EVERY_SECONDS) * 1000))
            if serve(context, ready[0][1] if ready else 0) < 0 and self._ended is None:
                raise self._lost("the connection broke")

    def _flush(self, context: int) -> bool:
        """Send what is queued as far as it goes; False: the connection has ended."""
        if self._library.events(context) & select.POLLOUT:
            return bool(self._library.serve_small(context, select.POLLOUT) >= 0)
        return True

    def _watch(self, descriptor: int, events: int) -> None:
        if self._polled == (descriptor, events):
            return
        old = self._polled[0]
        if old not in (-1, descriptor):
            with contextlib.suppress(KeyError):
                self._poll.unregister(old)
        if descriptor >= 0:
            self._poll.register(descriptor, events)
        self._polled = (descriptor, events)

    def _lost(self, what: str, *, told: bool = True) -> ConnectionLost:
        """The exception, with libiscsi's reason; the connection is dropped."""
        reason = self._library.error(self._context) if told and self._context is not None else None
        self.drop()
        if not reason:
            return ConnectionLost(what)
        text = "".join(c if c.isprintable() else " " for c in reason.decode("utf-8", "replace")).strip()
        return ConnectionLost(f"{what}: {text}")


def _memory(
    data_out: ReadableBuffer | None, data_in: memoryview | None
) -> tuple[int, ctypes.Array[ctypes.c_char] | ctypes.c_char, int]:
    """(direction, something that lies at the data's address and keeps it there, its length)."""
    if data_in is not None and data_in.nbytes:
        return library.XFER_READ, ctypes.c_char.from_buffer(data_in), data_in.nbytes
    view = memoryview(data_out or b"")
    if not view.nbytes:
        return library.XFER_NONE, ctypes.c_char(), 0
    if view.readonly:  # ctypes gives no address of such memory
        return library.XFER_WRITE, (ctypes.c_char * view.nbytes).from_buffer_copy(view), view.nbytes
    return library.XFER_WRITE, ctypes.c_char.from_buffer(view), view.nbytes


def _answer(task: Task, status: int, wanted_bytes: int) -> Answer:
    missing = task.residual if task.residual_status == library.RESIDUAL_UNDERFLOW else 0
    received = max(0, wanted_bytes - missing)
    if status != Status.CHECK_CONDITION:
        return Answer(status, b"", received if status == Status.GOOD else 0)
    segment = ctypes.string_at(task.datain, task.datain_bytes) if task.datain and task.datain_bytes > 0 else b""
    length = int.from_bytes(segment[:_SENSE_AT], "big")
    return Answer(status, segment[_SENSE_AT : _SENSE_AT + length], 0)
