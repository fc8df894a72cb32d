"""What data threads hand on: control requests, and the reads and writes that must or may wait.

A slow read or write gets a buffer of its own from a free list; the data thread goes on with the next request. A buffer
whose request was answered by somebody else (`vmfs.fuse.underway`) is not used again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from functools import partial

from vmfs.fuse.contract import Context, DataPlane, Operations
from vmfs.fuse.control import ControlPool
from vmfs.fuse.dataloop import ACK, ACK_BYTES, DATA_REQUEST, REPLY_AT, REQUEST_AT, DataBuffer, send
from vmfs.fuse.dispatch import Dispatcher, errno_of, error_reply
from vmfs.fuse.layouts import IN_HEADER, OUT_HEADER
from vmfs.fuse.notify import Notifier
from vmfs.fuse.protocol import OUT_HEADER_BYTES, PAGE_BYTES, UNIQUE_RESEND, WRITE_KILL_SUIDGID, Opcode
from vmfs.fuse.underway import UnderWay

log = logging.getLogger("vmfs.fuse")

SILENT = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
"""Requests that get no answer."""
SPARE_BUFFERS = 8
"""Buffers kept for reuse (1.1 MiB each, when touched); more are made and dropped as needed."""


class SlowLane:
    """Implements `dataloop.SlowPath` on a `ControlPool`. `_spare` is a deque: its ends are atomic, no
    lock."""

    def __init__(
        self,
        fd: int,
        pool: ControlPool,
        dispatcher: Dispatcher,
        operations: Operations,
        plane: DataPlane,
        notifier: Notifier,
        max_bytes: int,
        under_way: UnderWay,
    ) -> None:
        self._under_way = under_way
        self._fd = fd
        self._pool = pool
        self._dispatcher = dispatcher
        self._operations = operations
        self._plane = plane
        self._notifier = notifier
        self._max_bytes = max_bytes
        self._spare: deque[DataBuffer] = deque(maxlen=SPARE_BUFFERS)

    def control(self, request: bytes) -> None:
        """Queue any request but READ and WRITE."""
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request) if len(request) >= IN_HEADER.size else (0, 0, 0)
        if opcode not in SILENT:
            self._under_way.requests[unique] = self._under_way.leave_behind
        self._pool.submit(partial(self._answer, request, unique, opcode))

    def slow_read(self, unique: int, fh: int, offset: int, size: int) -> None:
        """Queue a READ that raised WouldBlock."""
        self._under_way.requests[unique] = self._under_way.leave_behind
        self._pool.submit(partial(self._read, unique, fh, offset, size))

    def slow_write(self, request: memoryview) -> None:
        """Queue a WRITE that raised WouldBlock, appends, or is synchronous; `request` is copied here."""
        buffer = self._take()
        buffer.frame[REQUEST_AT : REQUEST_AT + len(request)] = request
        _, _, unique, *_ = IN_HEADER.unpack_from(request)
        self._under_way.requests[unique] = self._under_way.leave_behind
        self._pool.submit(partial(self._write, buffer))

    def _take(self) -> DataBuffer:
        try:
            return self._spare.pop()
        except IndexError:
            return DataBuffer(self._max_bytes)

    def _mine(self, unique: int) -> bool:
        """Whether the answer is this thread's to give; it is by then."""
        if self._under_way.requests.pop(unique, None) is not None:
            return True
        self._under_way.came_back()
        return False

    def _answer(self, request: bytes, unique: int, opcode: int) -> None:
        reply = self._dispatcher.handle(request)
        if opcode not in SILENT and self._mine(unique) and reply is not None:
            send(self._fd, reply)

    def _read(self, unique: int, fh: int, offset: int, size: int) -> None:
        buffer = self._take()
        try:
            count = self._plane.read_slow(fh, buffer.payload, offset, size)
            OUT_HEADER.pack_into(buffer.frame, REPLY_AT, OUT_HEADER_BYTES + count, 0, unique)
            reply = buffer.frame[REPLY_AT : PAGE_BYTES + count]
        except Exception as error:
            reply = memoryview(error_reply(unique, errno_of(error, "READ")))
        if self._mine(unique):
            send(self._fd, reply)
            self._spare.append(buffer)

    def _write(self, buffer: DataBuffer) -> None:
        _, _, unique, nodeid, uid, gid, pid, _, _ = IN_HEADER.unpack_from(buffer.frame, REQUEST_AT)
        _, _, _, fh, offset, size, how, flags = DATA_REQUEST.unpack_from(buffer.frame, REQUEST_AT)
        moved = False
        try:
            if how & WRITE_KILL_SUIDGID:
                self._plane.kill_suidgid(fh)
            if flags & os.O_APPEND:
                moved = self._plane.append(fh, buffer.payload, size, unique & ~UNIQUE_RESEND) != offset
                count = size
            else:
                count = self._plane.write_slow(fh, buffer.payload, offset, size)
            if flags & os.O_DSYNC:
                self._operations.fsync(Context(uid, gid, pid), nodeid, fh, flags & os.O_SYNC != os.O_SYNC)
            reply = ACK.pack(ACK_BYTES, 0, unique, count)
        except Exception as error:
            reply = error_reply(unique, errno_of(error, "WRITE"))
        if self._mine(unique):
            send(self._fd, reply)
            self._spare.append(buffer)
        if moved:
            # The kernel has cached the bytes, and counted the size, at the place that it had computed.
            self._notifier.inval_inode(nodeid)
