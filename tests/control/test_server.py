"""The server against honest and hostile clients."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.control.conftest import StartServer
from tests.control.ramvolume import RamVolume
from tests.fuse.ramfs import RamFs
from vmfs.client import Mount
from vmfs.control.errors import ControlDirectoryUnsafe, ControlUnreachable, RemoteFailure
from vmfs.control.protocol import REPLY_MAX_BYTES, REQUEST_MAX_BYTES
from vmfs.control.server import MAX_CONNECTIONS, ControlServer, prepare_directory
from vmfs.errors import LeaseLost

Connect = Callable[[ControlServer], socket.socket]


def lines_of(connection: socket.socket) -> list[dict[str, Any]]:
    """All lines until the server closes."""
    data = b""
    while received := connection.recv(1 << 16):
        data += received
    return [json.loads(line) for line in data.splitlines()]


def ask(connection: socket.socket, message: object) -> dict[str, Any]:
    """One request, one line of answer."""
    connection.sendall(json.dumps(message).encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        received = connection.recv(1 << 16)
        assert received, "the server closed the connection"
        data += received
    answer = json.loads(data)
    assert isinstance(answer, dict)
    return answer


def error_of(answer: dict[str, Any]) -> str:
    return f"{answer['error']['class']}: {answer['error']['message']}"


def test_socket_and_directory_are_roots_alone(start_server: StartServer) -> None:
    server = start_server()
    directory = os.stat(os.path.dirname(server.path))
    assert stat.S_IMODE(directory.st_mode) == 0o700
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    server.close()
    assert os.listdir(os.path.dirname(server.path)) == []
    server.close()


def test_a_connection_serves_many_requests(start_server: StartServer, connect: Connect) -> None:
    connection = connect(start_server())
    assert ask(connection, {"v": 1, "op": "info"})["result"]["volume"]["label"] == "ram1"
    assert "unknown operation" in error_of(ask(connection, {"v": 1, "op": "format"}))
    assert "unknown operation" in error_of(ask(connection, {"v": 1, "op": ["info"]}))
    assert ask(connection, {"v": 1, "op": "info"})["result"]["mount"]["host"] == "esx1"


@pytest.mark.parametrize(
    "line",
    [b"", b"garbage", b"\xff\xfe", b"[1]", b"7", b'"info"', b"[" * 9000, b'{"v":' + b"9" * 6000 + b"}",
     b'{"op":"info"}', b'{"v":2,"op":"info"}', b'{"v":null}', b'{"v":"1"}'],
)  # fmt: skip
def test_garbage_is_answered_and_the_connection_closed(
    start_server: StartServer, connect: Connect, line: bytes
) -> None:
    server = start_server()
    connection = connect(server)
    connection.sendall(line + b"\n")
    (answer,) = lines_of(connection)
    assert answer["error"]["class"] == "ProtocolError"
    assert answer["error"]["exit_code"] == 2
    assert "result" in ask(connect(server), {"v": 1, "op": "info"})


def test_a_line_without_end_is_cut_off(start_server: StartServer, connect: Connect) -> None:
    server = start_server()
    connection = connect(server)
    with pytest.raises(OSError):  # the server stops reading and closes, long before all of it is sent
        connection.sendall(b"x" * (1000 * REQUEST_MAX_BYTES))
    assert "result" in ask(connect(server), {"v": 1, "op": "info"})


def test_the_longest_line_is_taken(start_server: StartServer, connect: Connect) -> None:
    connection = connect(start_server())
    request = {"v": 1, "op": "info", "pad": ""}
    request["pad"] = "x" * (REQUEST_MAX_BYTES - len(json.dumps(request)))
    assert "result" in ask(connection, request)
    request["pad"] = str(request["pad"]) + "x"
    assert "more than" in error_of(ask(connection, request))


def test_an_end_within_a_line_is_an_error(start_server: StartServer, connect: Connect) -> None:
    connection = connect(start_server())
    connection.sendall(b'{"v":1,"op":"unmount"')
    connection.shutdown(socket.SHUT_WR)
    (answer,) = lines_of(connection)
    assert "ended within a line" in error_of(answer)


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        ("locks", {"inode": -1}),
        ("locks", {"inode": 1 << 64}),
        ("locks", {"inode": "1"}),
        ("locks", {"inode": True}),
        ("locks", [1]),
        ("diff", {"old": 1}),
        ("diff", {"old": 1, "new": 1.5}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "/"}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": ""}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "2e"}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "2e2e"}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "612f62"}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "6100"}),
        ("clone", {"uid": 0, "gid": 0, "source": 1, "parent": 1, "name": "61" * 256}),
        ("clone", {"uid": 0, "gid": -1, "source": 1, "parent": 1, "name": "61"}),
        ("clone", {"uid": 1 << 32, "gid": 0, "source": 1, "parent": 1, "name": "61"}),
    ],
)
def test_bad_arguments_reach_nothing(
    start_server: StartServer, connect: Connect, operation: str, args: object
) -> None:
    fs = RamFs()
    connection = connect(start_server(RamVolume(fs, "/nowhere")))
    answer = ask(connection, {"v": 1, "op": operation, "args": args})
    assert error_of(answer).startswith("ProtocolError: control protocol: arg")
    assert len(fs.nodes) == 1


class Failing(RamVolume):
    """Each question fails in its own way."""

    def __init__(self) -> None:
        super().__init__(RamFs(), "/nowhere")

    def info(self) -> Any:
        raise LeaseLost("ds1", "the LUN is gone")

    def hosts(self) -> Any:
        raise OSError(28, "No space left on device")

    def locks(self, inode: int | None = None) -> Any:
        raise KeyError("planted: secret")


@pytest.mark.expected_log("control request 'locks' failed")
def test_errors_arrive_as_what_they_are(start_server: StartServer, connect: Connect) -> None:
    connection = connect(start_server(Failing()))
    lost = ask(connection, {"v": 1, "op": "info"})["error"]
    assert (lost["class"], lost["exit_code"], lost["errno"]) == ("LeaseLost", 1, 5)
    assert "volume ds1: this host's lease is lost: the LUN is gone" in lost["message"]
    full = ask(connection, {"v": 1, "op": "hosts"})["error"]
    assert full == {"class": "OSError", "message": "No space left on device", "exit_code": 1, "errno": 28}
    internal = ask(connection, {"v": 1, "op": "locks"})["error"]
    assert (internal["class"], internal["exit_code"]) == ("KeyError", 70)
    assert "secret" not in internal["message"]


def test_a_long_list_comes_in_bounded_lines(start_server: StartServer, connect: Connect) -> None:
    ranges = [(i * 8192, 4096) for i in range(100_000)]

    class Long(RamVolume):
        def diff(self, old: int, new: int) -> Any:
            return ranges

    connection = connect(start_server(Long(RamFs(), "/nowhere")))
    connection.sendall(b'{"v":1,"op":"diff","args":{"old":1,"new":1}}\n')
    connection.shutdown(socket.SHUT_WR)
    data = b""
    while received := connection.recv(1 << 20):
        data += received
    lines = data.splitlines()
    assert len(lines) > 10
    assert max(map(len, lines)) < REPLY_MAX_BYTES
    parts = [json.loads(line) for line in lines]
    assert [tuple(r) for p in parts[:-1] for r in p["part"]] == ranges
    assert parts[-1] == {"v": 1, "result": None}


def test_a_peer_that_may_not_is_refused(start_server: StartServer, connect: Connect) -> None:
    server = start_server(may_connect=lambda peer: peer.pid != os.getpid())
    (answer,) = lines_of(connect(server))
    assert answer["error"]["class"] == "ControlForbidden"
    assert answer["error"]["errno"] == 1


def as_nobody(server: ControlServer, request: str) -> str:
    """Ask as uid 65534, gid 65533; what went wrong, or nothing. The path is relative: only the last folder counts."""
    code = (
        "import os,socket,sys; os.setgroups([]); os.setgid(65533); os.setuid(65534); s=socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()+b'\\n'); s.recv(999)"
    )
    folder, name = os.path.split(server.path)
    command = [sys.executable, "-I", "-c", code, name, request]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr


def test_another_user_cannot_even_connect(start_server: StartServer) -> None:
    server = start_server(may_connect=lambda peer: True)
    request = '{"v":1,"op":"info"}'
    assert "PermissionError" in as_nobody(server, request)
    os.chmod(os.path.dirname(server.path), 0o755)
    assert "PermissionError" in as_nobody(server, request)
    os.chmod(server.path, 0o666)
    assert as_nobody(server, request) == ""


def test_an_ordinary_peer_clones_for_itself_only(start_server: StartServer, connect: Connect) -> None:
    asked: list[tuple[int, int]] = []

    class Noting(RamVolume):
        def clone(self, source: int, parent: int, name: bytes, uid: int, gid: int) -> int:
            asked.append((uid, gid))
            return 9

    server = start_server(Noting(RamFs(), "/nowhere"), may_connect=lambda peer: True)
    os.chmod(os.path.dirname(server.path), 0o755)
    os.chmod(server.path, 0o666)
    args = {"source": 1, "parent": 1, "name": "61", "uid": 7, "gid": 8}
    request = {"v": 1, "op": "clone", "args": args}
    assert as_nobody(server, json.dumps(request)) == ""
    assert ask(connect(server), request)["result"] == 9
    assert asked == [(65534, 65533), (7, 8)]


def test_a_silent_client_loses_its_thread(start_server: StartServer, connect: Connect) -> None:
    connection = connect(start_server(idle_seconds=0.05))
    assert lines_of(connection) == []


def test_no_more_than_so_many_connections(start_server: StartServer, connect: Connect) -> None:
    server = start_server(admit_seconds=0.1)
    kept = [connect(server) for _ in range(MAX_CONNECTIONS)]
    for connection in kept:  # each answered: so each has its thread
        assert "result" in ask(connection, {"v": 1, "op": "info"})
    one_more = Mount("/nowhere", 0, server.path)
    with pytest.raises(RemoteFailure, match="connections are open"):
        one_more.info()
    kept[0].close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert one_more.info().volume.label == "ram1"
            return
        except RemoteFailure:
            time.sleep(0.01)
    pytest.fail("a closed connection was never given to another client")


def test_close_waits_for_answers_and_not_for_readers(start_server: StartServer, connect: Connect) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(RamVolume):
        def hosts(self) -> Any:
            entered.set()
            assert leave.wait(10)
            return super().hosts()

        def diff(self, old: int, new: int) -> Any:
            return [(i, 1) for i in range(500_000)]

    server = start_server(Slow(RamFs(), "/nowhere"))
    stuck = connect(server)
    stuck.sendall(b'{"v":1,"op":"diff","args":{"old":1,"new":1}}\n')  # and never reads the answer
    asking = connect(server)
    asking.sendall(b'{"v":1,"op":"hosts"}\n')
    assert entered.wait(10)
    threading.Timer(0.1, leave.set).start()
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 5
    assert lines_of(asking)[0]["part"][0]["name"] == "esx1"
    assert not [t for t in threading.enumerate() if t.name.startswith("control")]


def test_sockets_of_the_dead_are_removed_and_others_kept(start_server: StartServer, connect: Connect) -> None:
    server = start_server()
    directory = os.path.dirname(server.path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.path.join(directory, "1-dead.sock"))
    other = os.path.join(directory, "notes.txt")
    Path(other).touch()
    second = start_server()
    assert sorted(os.listdir(directory)) == sorted(os.path.basename(p) for p in (server.path, second.path, other))
    assert "result" in ask(connect(server), {"v": 1, "op": "info"})


def test_an_unsafe_directory_is_refused(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o755)
    with pytest.raises(ControlDirectoryUnsafe, match="open to others"):
        prepare_directory(str(wide))
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 65534, 65534)
    with pytest.raises(ControlDirectoryUnsafe, match="belongs to uid 65534"):
        prepare_directory(str(foreign))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ControlDirectoryUnsafe, match="is not a directory"):
        prepare_directory(str(link))


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120)
    server = ControlServer(RamVolume(RamFs(), "/nowhere"), directory=str(long))
    with pytest.raises(ControlUnreachable, match="too long"):
        server.start()
    server.close()
