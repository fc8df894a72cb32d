"""The hot path: a data thread reads requests, runs READ and WRITE in place, and hands everything else on.

One buffer a thread, one system call to fetch a request and one to answer it. The buffer is laid out so that
both are one contiguous piece and the payload is page-aligned either way (P = one page):

    P-80  fuse_in_header, fuse_write_in | P  payload of a WRITE           as /dev/fuse is read
                          P-16  fuse_out_header | P  data of a READ       as the answer is written

Nothing is built per request but the integers of one unpack, and the slices of sizes other than 4 KiB.

A request that hangs in the storage may be answered by somebody else (`vmfs.fuse.underway`). The thread that finds so
when its call returns goes on with another buffer, or ends when another thread has taken its place: a buffer that the
storage may still write to is never used again.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from vmfs.fuse.contract import BUFFER_SLACK_BYTES, DataPlane, WouldBlock
from vmfs.fuse.dispatch import errno_of, error_reply
from vmfs.fuse.layouts import OUT_HEADER
from vmfs.fuse.protocol import (
    DATA_HEADER_BYTES,
    IN_HEADER_BYTES,
    OUT_HEADER_BYTES,
    PAGE_BYTES,
    READ_IN_BYTES,
    WRITE_KILL_SUIDGID,
    WRITE_OUT_BYTES,
    Opcode,
    opcode_name,
)
from vmfs.fuse.underway import UnderWay

log = logging.getLogger("vmfs.fuse")

REQUEST_AT = PAGE_BYTES - DATA_HEADER_BYTES
REPLY_AT = PAGE_BYTES - OUT_HEADER_BYTES
READ_REQUEST_BYTES = IN_HEADER_BYTES + READ_IN_BYTES
ACK_BYTES = OUT_HEADER_BYTES + WRITE_OUT_BYTES

DATA_REQUEST = Struct("<IIQ24xQQII8xI")
"""len, opcode, unique of fuse_in_header; fh, offset, size, write_flags, flags of fuse_write_in or
fuse_read_in."""
ACK = Struct("<IiQI4x")
"""fuse_out_header and fuse_write_out: the answer to a WRITE."""

SLOW_OPEN_FLAGS = os.O_APPEND | os.O_DSYNC
"""Writes that take the slow way: the place, or the durability, is not the kernel's to decide. O_SYNC has
O_DSYNC's bit among its own."""

ENDED = (errno.ENODEV, errno.ECONNABORTED)
"""What reading or writing the device says when the mount is gone, or was aborted."""
RETRY = (errno.ENOENT, errno.EINTR, errno.EAGAIN)
"""ENOENT: the request was interrupted before it was copied out."""


class DataBuffer:
    """A page-aligned buffer for one request or reply of up to `max_bytes` of payload."""

    __slots__ = ("frame", "payload", "target")

    def __init__(self, max_bytes: int) -> None:
        self.frame = memoryview(mmap.mmap(-1, PAGE_BYTES + max_bytes + BUFFER_SLACK_BYTES))
        # Every page is made now. A kill while the kernel makes a page for a request to be copied to fails that request
        # with EIO; where all pages are there it is copied, and sent again. (MAP_POPULATE does nothing under mlockall's
        # MCL_ONFAULT.)
        for page in range(0, len(self.frame), PAGE_BYTES):
            self.frame[page] = 0
        self.payload = self.frame[PAGE_BYTES:]
        self.target = [self.frame[REQUEST_AT:]]


class SlowPath(Protocol):
    """Where a data thread leaves what it must not wait for; none of these may block."""

    def control(self, request: bytes) -> None:
        """Any request but READ and WRITE, whole."""

    def slow_read(self, unique: int, fh: int, offset: int, size: int) -> None: ...

    def slow_write(self, request: memoryview) -> None:
        """A WRITE, whole; the bytes are the caller's again on return."""


def send(fd: int, reply: bytes | bytearray | memoryview) -> None:
    """Answer a request. A request that is gone meanwhile (the mount ended) is no error; others are logged."""
    try:
        os.write(fd, reply)
    except OSError as error:
        if error.errno != errno.ENOENT and error.errno not in ENDED:
            log.error("a reply of %d bytes was refused by the kernel: %s", len(reply), error)


@dataclass(slots=True)
class Worker:
    """One data thread."""

    replace: Callable[[Worker], None]
    """Called by whoever answers in this thread's place."""
    replaced: bool = False
    """Another thread has its place: it ends when it comes back."""

    def give_up(self) -> None:
        """Its request was answered by somebody else."""
        self.replace(self)


def serve(
    fd: int, plane: DataPlane, slow: SlowPath, max_bytes: int, under_way: UnderWay, worker: Worker
) -> None:
    """Serve requests until the mount ends. Raises nothing; an unexpected error of the device ends it,
    logged."""
    while _serve(fd, plane, slow, DataBuffer(max_bytes), under_way, worker) and not worker.replaced:
        pass


def _serve(
    fd: int, plane: DataPlane, slow: SlowPath, buffer: DataBuffer, under_way: UnderWay, worker: Worker
) -> bool:
    """Serve with one buffer. True when somebody else has answered: the buffer must not be used again."""
    frame, payload, target = buffer.frame, buffer.payload, buffer.target
    max_bytes = len(payload) - BUFFER_SLACK_BYTES
    page_reply = frame[REPLY_AT : PAGE_BYTES + PAGE_BYTES]
    ack = bytearray(ACK_BYTES)
    requests, give_up = under_way.requests, worker.give_up
    take = requests.pop
    ours = 0
    """The last request that nobody else can answer any more."""
    # Names looked up once: attribute look-ups are a measurable part of a 4 KiB request.
    readv, device_write = os.readv, os.write
    unpack, pack_reply, pack_ack = DATA_REQUEST.unpack_from, OUT_HEADER.pack_into, ACK.pack_into
    read, write, kill_suidgid = plane.read, plane.write, plane.kill_suidgid
    op_read, op_write = int(Opcode.READ), int(Opcode.WRITE)
    page, page_out, slow_flags, kill = PAGE_BYTES, REPLY_AT, SLOW_OPEN_FLAGS, WRITE_KILL_SUIDGID
    while True:
        try:
            got = readv(fd, target)
        except OSError as error:
            if error.errno in RETRY:
                continue
            if error.errno not in ENDED:
                log.error("reading requests failed: %s", error)
            return False
        length, opcode, unique, fh, offset, size, how, flags = unpack(frame, REQUEST_AT)
        try:
            if opcode == op_read and got == READ_REQUEST_BYTES and size <= max_bytes:
                requests[unique] = give_up
                count = read(fh, payload, offset, size)
                if take(unique, None) is None:
                    return True
                ours = unique
                pack_reply(frame, page_out, OUT_HEADER_BYTES + count, 0, unique)
                device_write(fd, page_reply if count == page else frame[page_out : page + count])
            elif opcode == op_write and length == got == DATA_HEADER_BYTES + size:
                if flags & slow_flags:
                    ours = unique
                    slow.slow_write(frame[REQUEST_AT : PAGE_BYTES + size])
                    continue
                requests[unique] = give_up
                if how & kill:
                    kill_suidgid(fh)
                count = write(fh, payload, offset, size)
                if take(unique, None) is None:
                    return True
                ours = unique
                pack_ack(ack, 0, ACK_BYTES, 0, unique, count)
                device_write(fd, ack)
            else:
                ours = unique
                slow.control(bytes(frame[REQUEST_AT : REQUEST_AT + got]))
        except WouldBlock:
            if take(unique, None) is None:
                return True
            if opcode == op_read:
                slow.slow_read(unique, fh, offset, size)
            else:
                slow.slow_write(frame[REQUEST_AT : PAGE_BYTES + size])
        except Exception as error:
            # Also where sending the answer raised: that fails the caller the same way.
            number = errno_of(error, opcode_name(opcode))
            if ours != unique and take(unique, None) is None:
                return True
            send(fd, error_reply(unique, number))

