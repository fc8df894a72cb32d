"""A network between one host and a target that a test can cut, freeze and heal: a TCP relay on a thread of its own."""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import struct
import threading
from types import TracebackType

_CHUNK_BYTES = 256 << 10
_QUEUE_BYTES = 1 << 20  # what one direction holds at most, as a socket buffer would
_ABORT_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class _State(enum.Enum):
    UP = "up"
    HELD = "held"
    CUT = "cut"


class _Pair:
    """Two connected sockets, and what was read from one and not yet written to the other."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = (client, server)
        self.queues = (bytearray(), bytearray())  # to the server, to the client
        for each in self.sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_ON_CLOSE)
            each.close()


class Relay:
    """Listens on a port of its own and passes on what comes to the target's.

    `cut`: nothing passes, as with a pulled cable; after `heal` a connection whose host has given up meanwhile is gone,
    with all that was under way in it. `hold`: nothing passes either, but all of it comes late, after `heal`, also what
    its host has long given up: a network that keeps packets. `drop`: connections are reset, new ones are welcome.
    `_mutex` guards the pairs and the state; the thread "relay" moves the bytes.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self.portal = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._mutex = threading.Lock()
        self._pairs: list[_Pair] = []
        self._state = _State.UP
        self._late = False  # what waited in the listener's queue is passed on although its host has gone
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        self._become(_State.CUT)

    def hold(self) -> None:
        self._become(_State.HELD)

    def heal(self) -> None:
        self._become(_State.UP)

    def drop(self) -> None:
        with self._mutex:
            self._close_pairs(self._pairs)

    def close(self) -> None:
        self._ended = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        with self._mutex:
            self._close_pairs(self._pairs)
        self._listener.close()
        os.close(self._bell)

    def _become(self, state: _State) -> None:
        with self._mutex:
            if self._state is _State.CUT and state is _State.UP:
                self._close_pairs([pair for pair in self._pairs if _is_reset(pair.sockets[0])])
            self._late = self._state is _State.HELD or (self._late and state is not _State.CUT)
            self._state = state
        os.eventfd_write(self._bell, 1)

    def _close_pairs(self, pairs: list[_Pair]) -> None:
        for pair in list(pairs):
            pair.close()
            self._pairs.remove(pair)

    def _run(self) -> None:
        while not self._ended:
            with self._mutex:
                poll, sides = self._watched()
            for descriptor, events in poll.poll(1000):
                if descriptor == self._bell:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
                    continue
                with self._mutex:
                    if self._state is not _State.UP:
                        break
                    if descriptor not in sides:
                        self._accept()
                    elif sides[descriptor][0] in self._pairs:
                        self._move(*sides[descriptor], events)

    def _watched(self) -> tuple[select.poll, dict[int, tuple[_Pair, int]]]:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        sides: dict[int, tuple[_Pair, int]] = {}
        if self._state is _State.UP:
            poll.register(self._listener, select.POLLIN)
            for pair in self._pairs:
                for side in (0, 1):
                    events = select.POLLIN if len(pair.queues[side]) < _QUEUE_BYTES else 0
                    events |= select.POLLOUT if pair.queues[1 - side] else 0
                    poll.register(pair.sockets[side], events)
                    sides[pair.sockets[side].fileno()] = (pair, side)
        return poll, sides

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            if not self._late and _is_reset(client):
                client.close()  # made and given up while nothing passed: the target never hears of it
                return
            try:
                server = socket.create_connection(self._target, timeout=1)
            except OSError:
                client.close()  # the target is down: refused, a moment late
                return
            self._pairs.append(_Pair(client, server))

    def _move(self, pair: _Pair, side: int, events: int) -> None:
        try:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = pair.sockets[side].recv(_CHUNK_BYTES)
                if not data:
                    raise ConnectionResetError
                pair.queues[side].extend(data)
            for there in (0, 1):
                queue = pair.queues[1 - there]
                if queue:
                    del queue[: pair.sockets[there].send(queue)]
        except BlockingIOError:
            pass
        except OSError:
            self._close_pairs([pair])


def _is_reset(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
