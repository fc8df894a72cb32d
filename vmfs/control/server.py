"""The control socket's server: a thread a connection, in front of a `VolumeService`.

The socket lies in a directory that root alone may enter, is itself root's alone, and asks the kernel who its peer is
(SO_PEERCRED): root and the user that runs the mount are answered, nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmfs.control.contract import VolumeService
from vmfs.control.errors import ControlDirectoryUnsafe, ControlForbidden, ControlUnreachable, ProtocolError
from vmfs.control.protocol import REQUEST_MAX_BYTES, LineReader, decode, encode, encode_list
from vmfs.control.records import Json, to_json
from vmfs.errors import EXIT_FAILED, VmfsError

CONTROL_DIRECTORY: Final = "/run/azekura/control"
EXIT_INTERNAL: Final = 70  # EX_SOFTWARE of sysexits.h
MAX_CONNECTIONS: Final = 32  # a person, a monitor and a backup need a handful; each costs a thread
IDLE_SECONDS: Final = 60.0  # a silent client gives its thread back
ADMIT_SECONDS: Final = 2.0  # a finished connection's thread makes room sooner; only then is a newcomer refused
LAST_ANSWER_SECONDS: Final = 2.0  # what `close` gives answers under way, together
INODE_LIMIT: Final = 1 << 64
NAME_MAX_BYTES: Final = 255
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_BACKLOG: Final = 128

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel saw it at connect(2)."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process at the other end of a connected Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return Peer(*_PEER.unpack(raw))


class ControlServer:
    """Answers for one mount from `start` to `close`.

    `_changed` guards `_connections` and `_closing`, and wakes who waits for room; no I/O is done under it.
    """

    def __init__(
        self,
        service: VolumeService,
        *,
        directory: str = CONTROL_DIRECTORY,
        idle_seconds: float = IDLE_SECONDS,
        admit_seconds: float = ADMIT_SECONDS,
        may_connect: Callable[[Peer], bool] | None = None,
    ) -> None:
        """`may_connect` decides about a peer; by default root and this process's own user are let in."""
        self._service = service
        self._directory = directory
        self._idle_seconds = idle_seconds
        self._admit_seconds = admit_seconds
        self._may_connect = may_connect or (lambda peer: peer.uid in (0, os.geteuid()))
        self.path = os.path.join(directory, f"{os.getpid()}-{secrets.token_hex(4)}.sock")
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._changed = threading.Condition()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = False

    def start(self) -> None:
        """Make the socket and answer from now on. Raises ControlDirectoryUnsafe, ControlUnreachable."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Bound under another name first: who cleans up takes a socket that refuses connections for a dead one's.
        early = self.path + ".new"
        try:
            prepare_directory(self._directory)
            remove_dead_sockets(self._directory)
            listener.bind(early)
            os.chmod(early, 0o600)
            listener.listen(_BACKLOG)
            os.rename(early, self.path)
        except OSError as error:
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(early)
            reason = error.strerror or str(error)  # a path too long for a socket has a text and no number
            raise ControlUnreachable(self.path, f"its socket cannot be made: {reason}") from error
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="control-accept", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Take the socket away and end every thread, the operations under way included. A second call does nothing.

        Called from a connection's own thread it waits for all others but that one.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            listener, self._listener = self._listener, None
            connections = dict(self._connections)
        if listener is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):  # wakes the accept; ENOTCONN on some kernels, which woke it too
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):  # the peer has left already
                connection.shutdown(socket.SHUT_RD)  # no more requests; an answer under way still goes out
        if self._accepting is not None:
            self._accepting.join()
        deadline = time.monotonic() + LAST_ANSWER_SECONDS
        own = threading.current_thread()
        for connection, thread in connections.items():
            if thread is own:
                continue
            thread.join(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # who has not read the answer by now does not hold up the rest
            thread.join()

    # -- connections -------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._is_closing():
                    return
                # A client that gave up between connect and accept, or no descriptor left: the next may do better.
                log.warning("control socket %s: accept failed: %s", self.path, error.strerror)
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    threading.Event().wait(0.2)
                    continue
                if error.errno == errno.ECONNABORTED:
                    continue
                return
            self._admit(connection)

    def _is_closing(self) -> bool:
        with self._changed:
            return self._closing

    def _has_room_or_closes(self) -> bool:
        return self._closing or len(self._connections) < MAX_CONNECTIONS

    def _admit(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._converse, args=(connection,), name="control", daemon=True)
        with self._changed:
            self._changed.wait_for(self._has_room_or_closes, self._admit_seconds)
            admitted = not self._closing and len(self._connections) < MAX_CONNECTIONS
            if admitted:
                # Started here, so that `close` never meets a thread that cannot be joined yet.
                self._connections[connection] = thread
                thread.start()
        if not admitted:
            refusal = ControlUnreachable(self.path, f"{MAX_CONNECTIONS} connections are open")
            with contextlib.suppress(OSError):  # who does not read the refusal sees the end of the stream
                connection.setblocking(False)
                connection.sendall(error_line(refusal))
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(self._idle_seconds)
                peer = peer_of(connection)
                if self._may_connect(peer):
                    self._answer_all(connection, peer)
                else:
                    log.info("control socket: uid %d (pid %d) was refused", peer.uid, peer.pid)
                    connection.sendall(error_line(ControlForbidden("this mount")))
        except OSError as error:
            log.debug("control connection ended: %s", error)
        finally:
            with self._changed:
                self._connections.pop(connection, None)
                self._changed.notify_all()

    def _answer_all(self, connection: socket.socket, peer: Peer) -> None:
        reader = LineReader(connection, REQUEST_MAX_BYTES)
        while True:
            try:
                line = reader.next_line()
                if line is None:
                    return
                request = decode(line)
            except ProtocolError as error:
                log.info("control socket: pid %d: %s", peer.pid, error)
                connection.sendall(error_line(error))
                return
            for reply in self._answer(request, peer):
                connection.sendall(reply)

    # -- operations --------------------------------------------------------------------------------

    def _answer(self, request: dict[str, Json], peer: Peer) -> Iterator[bytes]:
        """The lines of one answer. Whatever goes wrong becomes the line that ends it."""
        try:
            yield from self._perform(request, peer)
        except VmfsError as error:
            yield error_line(error)
        except OSError as error:
            yield error_line(error)
        except Exception as error:
            log.exception("control request %.40r failed", request.get("op"))
            yield error_line(error)

    def _perform(self, request: dict[str, Json], peer: Peer) -> Iterator[bytes]:
        service, args = self._service, _Arguments(request.get("args"))
        match request.get("op"):
            case "info":
                yield encode({"result": to_json(service.info())})
            case "hosts":
                yield from encode_list(service.hosts())
            case "locks":
                yield from encode_list(service.locks(args.optional_inode("inode")))
            case "clone":
                uid, gid = (args.number("uid"), args.number("gid")) if peer.uid == 0 else (peer.uid, peer.gid)
                source, parent, name = args.inode("source"), args.inode("parent"), args.name("name")
                yield encode({"result": service.clone(source, parent, name, uid, gid)})
            case "diff":
                yield from encode_list(service.diff(args.inode("old"), args.inode("new")))
            case "hand_over":
                inode, host, wait = args.inode("inode"), args.host("host"), args.number("wait_ms") / 1000
                yield encode({"result": to_json(service.hand_over(inode, host, wait))})
            case "accept":
                service.accept(args.inode("inode"), args.number("wait_ms") / 1000)
                yield encode({"result": None})
            case "recovery_plan":
                yield encode({"result": to_json(service.recovery_plan(args.number("slot")))})
            case "recover":
                slot, incarnation = args.number("slot"), args.number("incarnation", INODE_LIMIT)
                declared, discard = args.flag("declare_dead"), args.flag("discard_journal")
                report = service.recover(slot, incarnation, declare_dead=declared, discard_journal=discard)
                yield encode({"result": to_json(report)})
            case "restart":
                service.restart()
                yield encode({"result": None})
            case "unmount":
                service.request_unmount()
                yield encode({"result": None})
            case other:
                raise ProtocolError(f"unknown operation {str(other)[:40]!r}")


class _Arguments:
    """A request's arguments, checked as they are taken. Each method raises ProtocolError."""

    def __init__(self, given: Json) -> None:
        if not isinstance(given, dict | None):
            raise ProtocolError("args is not an object")
        self._given = given or {}

    def number(self, key: str, limit: int = 1 << 32) -> int:
        value = self._given.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            raise ProtocolError(f"argument {key} is not a number from 0 to {limit - 1}")
        return value

    def flag(self, key: str) -> bool:
        value = self._given.get(key)
        if not isinstance(value, bool):
            raise ProtocolError(f"argument {key} is not true or false")
        return value

    def inode(self, key: str) -> int:
        return self.number(key, INODE_LIMIT)

    def optional_inode(self, key: str) -> int | None:
        return None if self._given.get(key) is None else self.inode(key)

    def host(self, key: str) -> str:
        value = self._given.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX_BYTES:
            raise ProtocolError(f"argument {key} is not the name of a host")
        return value

    def name(self, key: str) -> bytes:
        value = self._given.get(key)
        try:
            name = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            name = b""
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_MAX_BYTES:
            raise ProtocolError(f"argument {key} is not the name of a file, in hexadecimal")
        return name


def error_line(error: Exception) -> bytes:
    """The line that ends an answer with an error."""
    if isinstance(error, VmfsError):
        message, exit_code, number = str(error), error.exit_code, error.errno
    elif isinstance(error, OSError):
        message, exit_code, number = error.strerror or str(error), EXIT_FAILED, error.errno or errno.EIO
    else:
        message = "internal error in the mount's process; its log has the details"
        exit_code, number = EXIT_INTERNAL, errno.EIO
    kind = type(error).__name__
    fields: dict[str, Json] = {"class": kind, "message": message[:4096], "exit_code": exit_code, "errno": number}
    return encode({"error": fields})


def prepare_directory(directory: str) -> None:
    """Make the directory with mode 0700, or verify that it is this user's alone. Raises ControlDirectoryUnsafe."""
    os.makedirs(os.path.dirname(directory), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise ControlDirectoryUnsafe(directory, "is not a directory")
    if found.st_uid != os.geteuid():
        raise ControlDirectoryUnsafe(directory, f"belongs to uid {found.st_uid}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ControlDirectoryUnsafe(directory, f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})")


def remove_dead_sockets(directory: str) -> None:
    """Take away the sockets that killed processes left: nobody listens on them."""
    for entry in os.scandir(directory):
        if not entry.name.endswith(".sock"):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a full backlog is alive: EAGAIN
            try:
                probe.connect(entry.path)
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
            except OSError as error:
                log.debug("control socket %s was left alone: %s", entry.path, error.strerror)
