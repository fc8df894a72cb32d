"""One mount's life: handshake, data threads, control pool, and an orderly end.

A session can be taken over: another process that has the descriptor, and knows what was agreed at INIT, goes on with it
and has the kernel send again what the one before had read and not answered.

A request that hangs in the storage can be answered in its worker's place (`fail_old`). The worker's thread is replaced,
so that the mount goes on, up to a bound.

The session ends when the kernel ends the connection: the mount point is unmounted (and its last file closed),
or the connection aborted. Then the control pool drains, `Operations.destroy` is called, the descriptor
closed. Requests that the kernel had not handed out by then are dropped by it, RELEASE and FORGET among them.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from vmfs.events import Event, event
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, DataPlane, Negotiated, Operations
from vmfs.fuse.control import ControlPool
from vmfs.fuse.dataloop import ENDED, RETRY, Worker, send, serve
from vmfs.fuse.dispatch import Dispatcher, error_reply
from vmfs.fuse.errors import HandshakeFailed
from vmfs.fuse.layouts import IN_HEADER, OUT_HEADER
from vmfs.fuse.negotiate import agree, encode_init, encode_older_major, parse_init
from vmfs.fuse.notify import Notifier
from vmfs.fuse.protocol import IN_HEADER_BYTES, MAJOR, MAX_WRITE_BYTES, Opcode, opcode_name
from vmfs.fuse.slowpath import SlowLane
from vmfs.fuse.underway import UnderWay

log = logging.getLogger("vmfs.fuse")

DATA_THREADS = 8
"""From 1 to 32 threads on two cores, 6 and 8 gave the most 4 KiB operations at queue depth 32, more gave fewer (they
fight for the interpreter's lock)."""
REPLACEMENTS_MAX = 64
"""Data threads that may hang in the storage while others have taken their places: each holds 1.1 MiB. Without a lease
nothing new is submitted, so hardly more hang than there were when the storage fell silent."""
CONTROL_THREADS = 8
"""Control threads that stay; the pool grows beyond as long as all of them wait."""


class Session:
    """Serves one mount. Owns `fd` from construction on.

    `_lock` guards `_serving`, the number of data threads that still run, and the count of replacements; the last thread
    that is not replaced ends the session.
    """

    def __init__(
        self,
        fd: int,
        operations: Operations,
        plane: DataPlane,
        *,
        data_threads: int = DATA_THREADS,
        control_threads: int = CONTROL_THREADS,
        mask: int = 0,
        name: str = "vmfs",
        agreed: Negotiated | None = None,
        on_agreed: Callable[[Negotiated], None] = lambda agreed: None,
        dispatcher: Callable[[Operations, Negotiated], Dispatcher] = Dispatcher,
    ) -> None:
        """`mask` clears INIT flags from the kernel's offer; `name` begins the threads' names.

        With `agreed` the session of a process that is dead goes on. `on_agreed` hears what a new one has agreed on.
        `dispatcher` makes what answers all requests but READ and WRITE.
        """
        self._taken_over = agreed
        self._on_agreed = on_agreed
        self._make_dispatcher = dispatcher
        self._under_way = UnderWay()
        self._replaced = 0
        self._fd = fd
        self._operations = operations
        self._plane = plane
        self._data_threads = data_threads
        self._mask = mask
        self._name = name
        self._pool = ControlPool(control_threads, f"{name}-control")
        self._lock = threading.Lock()
        self._serving = data_threads
        self._ended = threading.Event()
        self.notify = Notifier(fd)

    def start(self) -> Negotiated:
        """Answer INIT, call `Operations.init`, start the threads; the mount serves on return.

        Raises ProtocolTooOld, HandshakeFailed, Malformed, and what `Operations.init` raises; the descriptor
        is closed then, and with it the connection: the caller unmounts.
        """
        try:
            agreed = self._taken_over or self._handshake()
            self._operations.init(agreed)
            if self._taken_over is None:
                self._on_agreed(agreed)
        except BaseException:
            self.notify.close()
            self._pool.close()
            os.close(self._fd)
            self._ended.set()
            raise
        self._lane = SlowLane(
            self._fd,
            self._pool,
            self._make_dispatcher(self._operations, agreed),
            self._operations,
            self._plane,
            self.notify,
            agreed.max_write_bytes,
            self._under_way,
        )
        self._max_bytes = agreed.max_write_bytes
        if self._taken_over is not None and agreed.resend:
            self.notify.resend()  # before anything is read: it would be sent again, too
        for number in range(self._data_threads):
            self._start_worker(f"{self._name}-data-{number}")
        return agreed

    def fail_old(self, before: set[int]) -> set[int]:
        """Answer EIO to the requests of `before` that are under way still; return those that are under way now.

        Never waits for the storage, nor for whoever works on them: each worker's own answer comes to nothing. To be
        called by one thread.
        """
        under_way = self._under_way
        failed = 0
        for unique in under_way.old(before):
            instead = under_way.take(unique)
            if instead is not None:
                instead()
                send(self._fd, error_reply(unique, errno.EIO))
                failed += 1
        if failed:
            log.warning(
                "%d requests that wait for the storage were answered with EIO", failed, extra=event(Event.IO_ANSWERED)
            )
        return set(under_way.requests)

    def _start_worker(self, name: str) -> None:
        worker = Worker(self._replace)
        threading.Thread(target=self._serve, args=(worker,), name=name, daemon=True).start()

    def _replace(self, worker: Worker) -> None:
        """A data thread hangs: another takes its place."""
        with self._lock:
            if self._replaced >= REPLACEMENTS_MAX:
                return
            self._replaced += 1
            worker.replaced = True
            number = self._replaced
        self._start_worker(f"{self._name}-data-instead-{number}")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the session. False: it still runs after `timeout_s`."""
        return self._ended.wait(timeout_s)

    def _serve(self, worker: Worker) -> None:
        try:
            serve(self._fd, self._plane, self._lane, self._max_bytes, self._under_way, worker)
        finally:
            with self._lock:
                if worker.replaced:
                    self._replaced -= 1
                    last = False
                else:
                    self._serving -= 1
                    last = self._serving == 0
            if last:
                self._finish()

    def _finish(self) -> None:
        self._pool.close(lambda: self._under_way.left_behind)
        try:
            self._operations.destroy()
        except Exception:
            log.exception("the file system failed at its end")
        self.notify.close()
        os.close(self._fd)
        self._ended.set()

    def _handshake(self) -> Negotiated:
        while True:
            request = self._first_request()
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            if opcode != Opcode.INIT:
                os.write(self._fd, error_reply(unique, errno.EIO))
                raise HandshakeFailed(f"{opcode_name(opcode)} came before INIT")
            offer = parse_init(request)
            if offer.major > MAJOR:
                self._reply(unique, encode_older_major())
                continue
            agreed = agree(offer, self._mask)
            self._reply(unique, encode_init(agreed))
            return agreed

    def _first_request(self) -> bytes:
        """The next request, whole. Raises HandshakeFailed when the connection ends."""
        while True:
            try:
                request = os.read(self._fd, MAX_WRITE_BYTES + BUFFER_SLACK_BYTES)
            except OSError as error:
                if error.errno in RETRY:
                    continue
                if error.errno in ENDED:
                    raise HandshakeFailed("the mount was gone before it was served") from None
                raise HandshakeFailed(f"reading /dev/fuse: {error.strerror}") from None
            if len(request) < IN_HEADER_BYTES:
                raise HandshakeFailed(f"a request of {len(request)} bytes")
            return request

    def _reply(self, unique: int, payload: bytes) -> None:
        try:
            os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique) + payload)
        except OSError as error:
            raise HandshakeFailed(f"the answer to INIT was refused: {error.strerror}") from None
