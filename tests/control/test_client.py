"""The client: on a real mount of the file system in memory, and against servers that misbehave."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.control.conftest import StartServer
from tests.control.ramvolume import RamVolume
from tests.fuse.ramfs import RamFs, fail
from tests.fuse.served import Served
from vmfs.client import Mount
from vmfs.control.errors import (
    ControlTimeout,
    ControlUnreachable,
    NameTaken,
    NotAName,
    NotARegularFile,
    NotTheSameMount,
    PathUnusable,
    ProtocolError,
    RemoteFailure,
)
from vmfs.errors import NameTooLong, NotAVmfsMount


def test_a_mount_is_found_from_any_path_in_it(mounted: Served, tmp_path: Path) -> None:
    os.makedirs(mounted / "a/b")
    Path(mounted / "a/b/file").write_text("x")
    (tmp_path / "link").symlink_to(mounted / "a/b/file")
    for path in (mounted.path, mounted / "a", mounted / "a/b/file", tmp_path / "link", mounted / "a/../a/b/"):
        assert Mount.for_path(path).mountpoint == str(mounted.path)
    assert Mount.for_path(mounted.path).info().mount.mountpoint == str(mounted.path)


def test_a_mount_is_found_from_the_directory_that_one_stands_in(
    mounted: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkdir(mounted / "d")
    with monkeypatch.context() as there:
        there.chdir(mounted / "d")
        assert Mount.for_path(".").mountpoint == str(mounted.path)


@pytest.mark.parametrize("path", ["/", "/proc/self/status", "/dev/null", "."])
def test_other_paths_are_in_no_mount(path: str) -> None:
    with pytest.raises(NotAVmfsMount, match="vmfsctl list"):
        Mount.for_path(path)


def test_paths_that_are_not_there(mounted: Served) -> None:
    with pytest.raises(PathUnusable, match="No such file") as missing:
        Mount.for_path(mounted / "missing")
    assert (missing.value.exit_code, missing.value.errno) == (2, errno.ENOENT)
    with pytest.raises(PathUnusable, match="Invalid argument"):
        Mount.for_path("a\0b")


def test_clone_and_diff(mounted: Served) -> None:
    mount = Mount.for_path(mounted.path)
    source, target = Path(mounted / "disk"), Path(mounted / "clone")
    source.write_bytes(b"a" * 20000)
    inode = mount.clone(source, target)
    assert target.stat().st_ino == inode
    assert target.read_bytes() == b"a" * 20000
    assert mount.diff(target, source) == []
    with source.open("r+b") as f:
        f.seek(5000)
        f.write(b"b")
        f.seek(16384)
        f.write(b"b")
    assert mount.diff(target, source) == [(4096, 4096), (16384, 3616)]


def test_a_clones_name_may_be_any_bytes(mounted: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(mounted / "disk").write_bytes(b"x")
    mount = Mount.for_path(mounted.path)
    name = os.fsdecode(b"\xff\n\xe3\x81\x82" + b"n" * 250)
    mount.clone(mounted / "disk", mounted / name)
    assert os.fsencode(name) in os.listdir(os.fsencode(mounted.path))
    with monkeypatch.context() as there:
        there.chdir(mounted.path)
        mount.clone("disk", "beside")
    assert Path(mounted / "beside").read_bytes() == b"x"


def test_clones_that_are_refused_change_nothing(mounted: Served, tmp_path: Path) -> None:
    mount = Mount.for_path(mounted.path)
    disk, outside = Path(mounted / "disk"), tmp_path / "outside"
    disk.write_bytes(b"x")
    outside.write_bytes(b"y")
    os.mkdir(mounted / "d")
    before = set(mounted.fs.nodes)
    refusals: list[tuple[Path | str, Path | str, type[Exception]]] = [
        (disk, mounted / "d", NameTaken),
        (disk, disk, NameTaken),
        (disk, mounted / ("n" * 256), NameTooLong),
        (disk, f"{mounted.path}/d/", NotAName),
        (disk, f"{mounted.path}/d/..", NotAName),
        (disk, tmp_path / "new", NotTheSameMount),
        (outside, mounted / "new", NotTheSameMount),
        (mounted / "d", mounted / "new", NotARegularFile),
        (disk, mounted / "missing/new", PathUnusable),
        (disk, mounted / "disk/new", PathUnusable),
        (mounted / "missing", mounted / "new", PathUnusable),
    ]
    for source, target, expected in refusals:
        with pytest.raises(expected):
            mount.clone(source, target)
    assert set(mounted.fs.nodes) == before
    assert not (tmp_path / "new").exists()


def test_locks_and_hosts(mounted: Served) -> None:
    mount = Mount.for_path(mounted.path)
    path = Path(mounted / "disk")
    path.write_bytes(b"x")
    assert [k.mode for k in mount.locks(path)] == ["free"]
    with path.open("r+b"):
        (lock,) = mount.locks(path)
        assert (lock.mode, lock.holders, lock.open_files, lock.path) == ("exclusive", ("esx1",), 1, "/disk")
        assert [k.inode for k in mount.locks()] == [lock.inode]
        assert [k.path for k in mount.locks(mounted.path)] == ["/"]
    assert [h.name for h in mount.hosts()] == ["esx1", "esx2"]
    assert [h.unchanged_seconds for h in mount.hosts()] == [1.25, None]


def test_a_pinned_file_keeps_its_inode_number(mounted: Served) -> None:
    """The file is removed between the look-up and the question: its number must not mean another one."""
    mount = Mount.for_path(mounted.path)
    path = Path(mounted / "disk")
    path.write_bytes(b"x")
    with mount._pinned(path) as found:
        path.unlink()
        Path(mounted / "other").write_bytes(b"y")
        assert Path(mounted / "other").stat().st_ino != found.st_ino


def test_the_mounts_own_errors_arrive(mounted: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(mounted / "disk").write_bytes(b"x")
    monkeypatch.setattr(RamVolume, "clone", lambda *_: (_ for _ in ()).throw(fail(errno.ENOSPC)))
    with pytest.raises(RemoteFailure, match="No space left") as full:
        Mount.for_path(mounted.path).clone(mounted / "disk", mounted / "new")
    assert (full.value.errno, full.value.exit_code, full.value.kind) == (errno.ENOSPC, 1, "OSError")


def test_unmount_is_refused_while_files_are_open(mounted: Served) -> None:
    mount = Mount.for_path(mounted.path)
    with Path(mounted / "disk").open("wb"), pytest.raises(RemoteFailure) as busy:
        mount.unmount(wait_seconds=1)
    assert busy.value.errno == errno.EBUSY


# -- servers that misbehave ------------------------------------------------------------------------

Misbehave = Callable[[Callable[[socket.socket], None]], Mount]


@pytest.fixture
def misbehaving(tmp_path: Path) -> Iterator[Misbehave]:
    """A function that makes a Mount whose socket is answered by the given function."""
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:

        def start(answer: Callable[[socket.socket], None]) -> Mount:
            path = str(tmp_path / "s")
            listener.bind(path)
            listener.listen()

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    answer(connection)

            threads.append(threading.Thread(target=serve))
            threads[0].start()
            return Mount("/mnt/x", 0, path, answer_seconds=0.5)

        yield start
        for thread in threads:
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "ended the answer to hosts early"),
        (b'{"v":1,"part":[]}\n', "ended the answer to hosts early"),
        (b'{"v":1,"part":[', "ended within a line"),
        (b"garbage\n", "not JSON"),
        (b'{"v":9,"result":null}\n', "version '9'"),
        (b'{"v":1}\n', "without part, result or error"),
        (b'{"v":1,"part":7}\n', "no list"),
        (b'{"v":1,"part":[7]}\n{"v":1,"result":null}\n', "HostInfo: not an object but int"),
        (b'{"v":1,"error":7}\n', "not an object"),
        (b'{"v":1,"error":{"class":"X","message":"m","exit_code":"0","errno":1}}\n', "not int but str"),
        (b'{"v":1,"error":{"class":"X"}}\n', "not int but NoneType"),
        (b'{"v":1,"part":["' + b"x" * (2 << 20) + b'"]}\n', "a line of more than"),
    ],
)
def test_answers_that_make_no_sense(misbehaving: Misbehave, answer: bytes, complaint: str) -> None:
    def reply(connection: socket.socket) -> None:
        try:
            connection.sendall(answer)
        except BrokenPipeError:
            assert len(answer) > 1 << 20  # the client has heard enough

    with pytest.raises(ProtocolError, match=complaint):
        misbehaving(reply).hosts()


@pytest.mark.parametrize("item", [7, [1], [1, 2, 3], [-1, 2], [0, 0], ["0", 1], None])
def test_ranges_that_make_no_sense(mounted: Served, monkeypatch: pytest.MonkeyPatch, item: object) -> None:
    Path(mounted / "disk").write_bytes(b"x")
    monkeypatch.setattr(RamVolume, "diff", lambda *_: [item])
    with pytest.raises(ProtocolError, match="range of a diff"):
        Mount.for_path(mounted.path).diff(mounted / "disk", mounted / "disk")


def test_no_answer_in_time(misbehaving: Misbehave) -> None:
    done = threading.Event()

    def silent(connection: socket.socket) -> None:
        done.wait(10)

    mount = misbehaving(silent)
    with pytest.raises(ControlTimeout, match=r"did not answer `hosts` within 0.5 s"):
        mount.hosts()
    done.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ControlUnreachable, match="No such file"):
        Mount("/mnt/x", 0, str(tmp_path / "none")).hosts()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(ControlUnreachable, match="refused"):
        Mount("/mnt/x", 0, str(tmp_path / "dead")).hosts()


def test_a_socket_that_another_user_serves_is_not_trusted(tmp_path: Path) -> None:
    """Whoever may mount a file system may put any path into the attribute of its root."""
    code = (
        "import os,socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.setuid(65534); s.listen();"
        "print('up', flush=True); c,_=s.accept(); print(len(c.recv(999)))"
    )
    path = str(tmp_path / "s")
    impostor = subprocess.Popen(["python3", "-I", "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert impostor.stdout is not None
    try:
        assert impostor.stdout.readline() == "up\n"
        with pytest.raises(ProtocolError, match="another user"):
            Mount("/mnt/x", 0, path).info()
        assert impostor.stdout.readline() == "0\n"  # it was told nothing
    finally:
        impostor.stdout.close()
        impostor.wait(10)


def test_many_clients_at_once(start_server: StartServer) -> None:
    server = start_server(RamVolume(RamFs(), "/nowhere"))
    labels: list[str] = []

    def ask() -> None:
        for _ in range(20):
            labels.append(Mount("/nowhere", 0, server.path).info().volume.label)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels == ["ram1"] * 160


def test_the_request_is_what_the_protocol_says(tmp_path: Path) -> None:
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "q"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(1 << 16))
                connection.sendall(b'{"v":1,"result":null}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        assert Mount("/mnt/x", 0, str(tmp_path / "q")).locks() == []
        thread.join()
    assert json.loads(seen[0]) == {"v": 1, "op": "locks", "args": {}}
