"""The session: errors, threads, waiting, notifications, the end."""

import errno
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.ramfs import RamFs
from tests.fuse.served import END_TIMEOUT_S, Serve, Served
from tests.fuse.test_files import MIB, raises
from vmfs.fuse.contract import Negotiated
from vmfs.fuse.errors import HandshakeFailed, MountBusy
from vmfs.fuse.mount import mount, mounted_at, unmount
from vmfs.fuse.session import CONTROL_THREADS, Session


def threads_named(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_threads_start_and_end(serve: Serve) -> None:
    ram = serve()
    assert len(threads_named("ram-data")) == 8
    fds = len(os.listdir("/proc/self/fd"))
    ram.end()
    end = time.monotonic() + 5
    while threads_named("ram-") and time.monotonic() < end:
        time.sleep(0.01)
    assert threads_named("ram-") == []
    assert ram.fs.destroyed == 1
    assert len(os.listdir("/proc/self/fd")) == fds - 1


@pytest.mark.parametrize("operation", ["lookup", "read", "write"])
def test_a_bug_in_the_file_system_is_eio_and_one_line(
    ram: Served, operation: str, caplog: pytest.LogCaptureFixture, expected_log: Callable[[str], None]
) -> None:
    expected_log(f"{operation.upper()} failed by a bug: ZeroDivisionError")
    fd = os.open(ram / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    ram.fs.hooks[operation] = lambda: 1 // 0
    if operation == "lookup":
        raises(errno.EIO, os.stat, ram / "other")
    elif operation == "read":
        raises(errno.EIO, os.pread, fd, 4096, 0)
    else:
        raises(errno.EIO, os.pwrite, fd, b"x" * 4096, 0)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    ram.fs.hooks.clear()
    assert os.pwrite(fd, b"x" * 4096, 0) == 4096, "the thread goes on"
    os.close(fd)


def test_an_error_of_the_data_plane_reaches_the_caller(ram: Served) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    ram.fs.hooks["write"] = full
    fd = os.open(ram / "f", os.O_CREAT | os.O_RDWR)
    raises(errno.ENOSPC, os.write, fd, b"x")
    os.close(fd)


def test_reads_and_writes_that_would_block_run_on_the_control_pool(ram: Served) -> None:
    ram.fs.would_block = True
    names = set()
    ram.fs.hooks["write"] = lambda: names.add(threading.current_thread().name.rsplit("-", 1)[0])
    ram.fs.hooks["read"] = ram.fs.hooks["write"]
    body = os.urandom(3 * MIB + 5)
    Path(ram / "f").write_bytes(body)
    assert Path(ram / "f").read_bytes() == body
    assert names == {"ram-control"}


def test_many_waiting_calls_hold_nobody_else(ram: Served) -> None:
    """More calls wait than there are threads of either kind: the pool grows, reads go on."""
    Path(ram / "f").write_bytes(b"x" * 4096)
    go = threading.Event()
    waiting = threading.Semaphore(0)

    def wait() -> None:
        waiting.release()
        go.wait(20)

    ram.fs.hooks["unlink"] = wait
    count = 3 * CONTROL_THREADS
    for number in range(count):
        os.mkdir(ram / f"d{number}")
        open(ram / f"d{number}/x", "w").close()
    callers = [threading.Thread(target=os.unlink, args=(ram / f"d{n}/x",)) for n in range(count)]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert waiting.acquire(timeout=10)
    assert Path(ram / "f").read_bytes() == b"x" * 4096
    os.stat(ram / "f")
    go.set()
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()


def test_an_interrupted_caller_wedges_nothing(ram: Served) -> None:
    entered, go = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        go.wait(20)

    ram.fs.hooks["readlink"] = wait
    os.symlink("there", ram / "link")
    caller = subprocess.Popen(["readlink", ram / "link"], stdout=subprocess.PIPE)
    assert entered.wait(10)
    caller.send_signal(signal.SIGKILL)
    os.mkdir(ram / "meanwhile")
    assert "meanwhile" in os.listdir(ram.path)
    go.set()
    caller.communicate(timeout=10)
    ram.fs.hooks.clear()
    assert os.readlink(ram / "link") == "there"


def test_invalidations(serve: Serve) -> None:
    ram = serve(RamFs(timeout_s=3600))
    with open(ram / "f", "wb") as f:
        f.write(b"a" * 4096)
    reader = os.open(ram / "f", os.O_RDONLY)
    ino = os.fstat(reader).st_ino
    assert os.pread(reader, 1, 0) == b"a"
    ram.fs.nodes[ino].pages[0][:] = b"b" * 4096
    ram.fs.nodes[ino].mode = 0o100600
    assert os.pread(reader, 1, 0) == b"a", "cached"
    assert ram.session.notify.inval_inode(ino)
    assert os.pread(reader, 1, 0) == b"b"
    assert os.fstat(reader).st_mode == 0o100600
    os.close(reader)
    del ram.fs.nodes[1].children[b"f"]
    os.stat(ram / "f")
    assert ram.session.notify.inval_entry(1, b"f")
    raises(errno.ENOENT, os.stat, ram / "f")
    assert not ram.session.notify.inval_inode(987654), "nothing cached is no error"
    ram.end()
    assert not ram.session.notify.inval_inode(ino), "nor is an ended session"


def test_a_busy_mount_and_a_lazy_unmount(serve: Serve) -> None:
    ram = serve()
    with open(ram / "f", "w+") as f:
        with pytest.raises(MountBusy, match="lazily"):
            unmount(str(ram.path))
        unmount(str(ram.path), lazy=True)
        assert mounted_at(str(ram.path)) is None
        f.write("still")
        f.flush()
        assert not ram.session.wait(0.05)
    assert ram.session.wait(END_TIMEOUT_S), "it ends with its last file"


def test_an_aborted_connection_ends_the_session(serve: Serve) -> None:
    ram = serve()
    fd = os.open(ram / "f", os.O_CREAT | os.O_RDWR)
    unmount(str(ram.path), lazy=True, force=True)
    assert ram.session.wait(END_TIMEOUT_S)
    raises(errno.ENOTCONN, os.pread, fd, 1, 0)
    raises(errno.ENOTCONN, os.close, fd)
    assert ram.fs.destroyed == 1


def test_start_fails_cleanly(tmp_path: Path) -> None:
    class Refusing(RamFs):
        def init(self, negotiated: Negotiated) -> None:
            raise RuntimeError("not today")

    fs = Refusing()
    session = Session(mount(str(tmp_path), "ram"), fs, fs, name="refused")
    try:
        with pytest.raises(RuntimeError, match="not today"):
            session.start()
    finally:
        unmount(str(tmp_path))
    assert session.wait(1)
    assert threads_named("refused") == []


def test_a_mount_that_is_gone_before_it_is_served(tmp_path: Path) -> None:
    fd = mount(str(tmp_path), "ram")
    unmount(str(tmp_path), lazy=True, force=True)
    fs = RamFs()
    with pytest.raises(HandshakeFailed, match="mount again"):
        Session(fd, fs, fs).start()
