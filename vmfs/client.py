"""A running mount, as other processes of this machine speak to it.

A mount is found by any path in it: the topmost directory of the same st_dev is its root, and the root's extended
attribute CONTROL_XATTR names the socket on which its process answers (`vmfs.control.protocol`). Files are resolved to
inode numbers here, through the mount; the process never opens a path that a client sent.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from vmfs.control.contract import CONTROL_XATTR, HostInfo, LockInfo, RecoveryPlan, RecoveryReport, VolumeInfo
from vmfs.control.errors import (
    ControlForbidden,
    ControlTimeout,
    ControlUnreachable,
    MountDead,
    NameTaken,
    NotAName,
    NotARegularFile,
    NotTheSameMount,
    PathUnusable,
    ProtocolError,
    RemoteFailure,
    StillServing,
)
from vmfs.control.protocol import REPLY_MAX_BYTES, LineReader, decode, encode
from vmfs.control.records import Json, from_json
from vmfs.control.server import NAME_MAX_BYTES, peer_of
from vmfs.errors import NameTooLong, NotAVmfsMount, VmfsError
from vmfs.processes import ProcessEnd

HAND_OVER_SECONDS: Final = 10.0  # for a host that waits for the file: it looks ten times a second
ACCEPT_SECONDS: Final = 600.0  # in which a guest's memory, hundreds of GiB at most, moves over a network
ANSWER_SECONDS: Final = 120.0  # several break times: an operation may wait while a dead host is recovered
LIST_MAX_ITEMS: Final = 1 << 24  # a diff of 1 TiB in which every second block of 64 KiB has changed has half of that
_BACKLOG_RETRY_SECONDS: Final = 0.02
StrPath = str | os.PathLike[str]


class Mount:
    """One mounted volume. Keeps no connection: each call makes its own, so it may be shared by threads."""

    def __init__(self, mountpoint: str, device: int, socket_path: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        """Use `for_path`. `device` is the mount's st_dev."""
        self.mountpoint = mountpoint
        self._device = device
        self._socket_path = socket_path
        self._answer_seconds = answer_seconds

    @classmethod
    def for_path(cls, path: StrPath, *, answer_seconds: float = ANSWER_SECONDS) -> Mount:
        """The mount that the existing `path` lies in.

        Raises NotAVmfsMount, PathUnusable (missing, not permitted), MountDead.
        """
        text = os.fspath(path)
        with _lookup(text):
            root = os.path.realpath(text, strict=True)
            device = os.stat(root).st_dev
            while root != "/" and os.lstat(parent := os.path.dirname(root)).st_dev == device:
                root = parent
            try:
                value = os.getxattr(root, CONTROL_XATTR)
            except OSError as error:
                if error.errno in (errno.ENODATA, errno.ENOTSUP):
                    raise NotAVmfsMount(text) from None
                raise
        return cls(root, device, os.fsdecode(value), answer_seconds)

    # -- questions ---------------------------------------------------------------------------------

    def info(self) -> VolumeInfo:
        """What the volume and this mount of it are."""
        return from_json(VolumeInfo, self._ask("info"))

    def hosts(self) -> list[HostInfo]:
        """The heartbeat slots in use, in order."""
        return [from_json(HostInfo, h) for h in self._ask_list("hosts")]

    def locks(self, path: StrPath | None = None) -> list[LockInfo]:
        """The locks that this host holds; with `path`, that file's or directory's lock wherever it is held."""
        if path is None:
            return [from_json(LockInfo, k) for k in self._ask_list("locks")]
        with self._pinned(path) as found:
            locks = [from_json(LockInfo, k) for k in self._ask_list("locks", inode=found.st_ino)]
        below = os.path.relpath(os.path.realpath(path), self.mountpoint)
        return [k if k.path is not None else replace(k, path=os.path.normpath(f"/{below}")) for k in locks]

    def diff(self, old: StrPath, new: StrPath) -> list[tuple[int, int]]:
        """Ranges (offset, length in bytes) in which `new` may differ from `old`: sorted, disjoint.

        Raises NotTheSameMount, NotARegularFile, PathUnusable; RemoteFailure when the two have nothing in common.
        """
        with self._pinned(old, regular=True) as a, self._pinned(new, regular=True) as b:
            ranges = self._ask_list("diff", old=a.st_ino, new=b.st_ino)
            return [_range(r) for r in ranges]

    # -- orders ------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Have a new process take this mount over; returns when that one serves.

        Raises RemoteFailure when the mount has no supervisor or the kernel is too old, ControlTimeout.
        """
        before = self.info().mount.pid
        self._ask("restart")
        deadline = time.monotonic() + self._answer_seconds
        while time.monotonic() < deadline:
            # The path is looked up again: it waits in the kernel until the new process answers, on another socket.
            with suppress(VmfsError):
                if Mount.for_path(self.mountpoint, answer_seconds=self._answer_seconds).info().mount.pid != before:
                    return
            time.sleep(_BACKLOG_RETRY_SECONDS)
        raise ControlTimeout(self.mountpoint, "restart", self._answer_seconds)

    def clone(self, source: StrPath, target: StrPath) -> int:
        """Clone the file `source` as the new file `target`, in constant time; returns the clone's inode number.

        Both lie in this mount, and `target` must not exist: nothing is replaced. The clone belongs to the caller and
        has the source's mode. Raises NotTheSameMount, NotARegularFile, NameTaken, NotAName, NameTooLong, PathUnusable,
        and RemoteFailure with the errno of what went wrong.
        """
        text = os.fspath(target)
        folder, last = os.path.split(text)
        name = os.fsencode(last)
        if name in (b"", b".", b".."):
            raise NotAName(text)
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(last, NAME_MAX_BYTES)
        with self._pinned(source, regular=True) as src, self._pinned(folder or ".") as parent:
            if not stat.S_ISDIR(parent.st_mode):
                raise PathUnusable(folder, errno.ENOTDIR)
            # Whether the name is taken is asked there: a look-up here would only leave a stale "no" in the kernel.
            args: dict[str, Json] = {"uid": os.geteuid(), "gid": os.getegid(), "name": name.hex()}
            try:
                made = self._ask("clone", source=src.st_ino, parent=parent.st_ino, **args)
            except RemoteFailure as error:
                if error.errno == errno.EEXIST:
                    raise NameTaken(text) from error
                raise
        return from_json(int, made)

    def hand_over(self, path: StrPath, host: str, *, wait_seconds: float = HAND_OVER_SECONDS) -> float:
        """Give a file that is open for writing here, and its lock, to the host of that name, which has to `accept` it.

        Returns for how many seconds writes here were held back. The open files of this host may read afterwards; their
        writes fail with ESTALE. Raises NotARegularFile, PathUnusable; RemoteFailure when it was not handed over: then
        it is writable here as before.
        """
        with self._pinned(path, regular=True) as found:
            wait_ms = round(wait_seconds * 1000)
            return from_json(float, self._ask("hand_over", inode=found.st_ino, host=host, wait_ms=wait_ms))

    def accept(self, path: StrPath, *, wait_seconds: float = ACCEPT_SECONDS) -> None:
        """Have this host wait for a file that another host has open for writing to be handed over to it.

        Returns at once. Until the file has come, or `wait_seconds` are over, it can be opened for writing here; writes
        wait for ten seconds at most, then they fail with ESTALE. Raises NotARegularFile, PathUnusable; RemoteFailure
        when no other host holds it.
        """
        with self._pinned(path, regular=True) as found:
            self._ask("accept", inode=found.st_ino, wait_ms=max(1, round(wait_seconds * 1000)))

    def cancel_accept(self, path: StrPath) -> None:
        """Wait for the file no more. RemoteFailure when it was not waited for."""
        with self._pinned(path, regular=True) as found:
            self._ask("accept", inode=found.st_ino, wait_ms=0)

    def recovery_plan(self, slot: int) -> RecoveryPlan:
        """What the recovery of a slot would be about. RemoteFailure when it is free, or there is no such slot."""
        return from_json(RecoveryPlan, self._ask("recovery_plan", slot=slot))

    def recover(
        self, slot: int, incarnation: int, *, declare_dead: bool = False, discard_journal: bool = False
    ) -> RecoveryReport:
        """Recover the host of a slot by an operator's order, as `vmfsctl fence` and `vmfsctl recover` do.

        `incarnation`: as the plan showed it; the slot must not have gone on since. RemoteFailure when it cannot be.
        """
        args: dict[str, Json] = {"declare_dead": declare_dead, "discard_journal": discard_journal}
        return from_json(RecoveryReport, self._ask("recover", slot=slot, incarnation=incarnation, **args))

    def unmount(self, *, wait_seconds: float = 60.0) -> None:
        """Ask the mount's process to unmount, and wait until it has ended.

        Raises RemoteFailure (EBUSY while files are open), and StillServing when it has not ended in time.
        """
        pid = self.info().mount.pid
        with ProcessEnd.of(pid) as process:
            self._ask("unmount")
            if not process.wait(wait_seconds):
                raise StillServing(self.mountpoint, pid, wait_seconds, "its log says what it is doing")

    # -- the connection ----------------------------------------------------------------------------

    def _ask(self, operation: str, **args: Json) -> Json:
        with self._asking(operation, args) as replies:
            for reply in replies:
                if "part" not in reply:
                    return reply["result"]
        raise ProtocolError(f"the mount's process ended the answer to {operation} early")

    def _ask_list(self, operation: str, **args: Json) -> list[Json]:
        items: list[Json] = []
        with self._asking(operation, args) as replies:
            for reply in replies:
                if "part" not in reply:
                    return items
                part = reply["part"]
                if not isinstance(part, list) or len(items) + len(part) > LIST_MAX_ITEMS:
                    raise ProtocolError(f"the answer to {operation} is no list of at most {LIST_MAX_ITEMS} items")
                items += part
        raise ProtocolError(f"the mount's process ended the answer to {operation} early")

    @contextmanager
    def _asking(self, operation: str, args: dict[str, Json]) -> Iterator[Iterator[dict[str, Json]]]:
        """Send a request and yield its replies; an error among them is raised."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                self._connect(connection)
                # The name came from a file system that anyone may have mounted: only root, or we, answer for it.
                if peer_of(connection).uid not in (0, os.geteuid()):
                    raise ProtocolError(f"{self._socket_path} is served by another user; it is not trusted")
                with suppress(BrokenPipeError):  # refused before it was asked: the reason lies ready to be read
                    connection.sendall(encode({"op": operation, "args": args}))
                yield _replies(connection)
        except TimeoutError:
            raise ControlTimeout(self.mountpoint, operation, self._answer_seconds) from None
        except PermissionError:
            raise ControlForbidden(f"the mount at {self.mountpoint}") from None
        except OSError as error:
            raise ControlUnreachable(self.mountpoint, error.strerror or str(error)) from error

    def _connect(self, connection: socket.socket) -> None:
        # With a timeout set, connect(2) does not wait for room in the server's backlog, but fails with EAGAIN.
        deadline = time.monotonic() + self._answer_seconds
        connection.settimeout(self._answer_seconds)
        while True:
            try:
                connection.connect(self._socket_path)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(_BACKLOG_RETRY_SECONDS)

    # -- paths -------------------------------------------------------------------------------------

    @contextmanager
    def _pinned(self, path: StrPath, *, regular: bool = False) -> Iterator[os.stat_result]:
        """The stat of `path` in this mount, kept open (without access) meanwhile: its inode number stays its own."""
        text = os.fspath(path)
        with _lookup(text):
            fd = os.open(text, os.O_PATH | os.O_CLOEXEC)
            found = os.fstat(fd)
        try:
            if found.st_dev != self._device:
                raise NotTheSameMount(text, self.mountpoint)
            if regular and not stat.S_ISREG(found.st_mode):
                raise NotARegularFile(text)
            yield found
        finally:
            os.close(fd)


@contextmanager
def _lookup(path: str) -> Iterator[None]:
    """Errors of path look-ups as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountDead(path) from None
        raise PathUnusable(path, error.errno or errno.EIO) from None
    except ValueError:  # a NUL in the path
        raise PathUnusable(repr(path), errno.EINVAL) from None


def _range(item: Json) -> tuple[int, int]:
    match item:
        case [int(offset), int(length)] if offset >= 0 and length > 0:
            return offset, length
    raise ProtocolError("a range of a diff is not [offset, length]")


def _replies(connection: socket.socket) -> Iterator[dict[str, Json]]:
    reader = LineReader(connection, REPLY_MAX_BYTES)
    while (line := reader.next_line()) is not None:
        reply = decode(line)
        if "error" in reply:
            raise _failure(reply["error"])
        if "part" not in reply and "result" not in reply:
            raise ProtocolError("an answer without part, result or error")
        yield reply


def _failure(error: Json) -> VmfsError:
    if not isinstance(error, dict):
        return ProtocolError("an error that is not an object")
    exit_code = from_json(int, error.get("exit_code"))
    number = from_json(int, error.get("errno"))
    kind, message = from_json(str, error.get("class")), from_json(str, error.get("message"))
    return RemoteFailure(kind, message, exit_code, number)
