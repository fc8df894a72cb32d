"""kill -9 of a mount's process under programs: they wait, and nothing that they were told is taken back."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from errno import ECONNABORTED, EIO, ENOTCONN
from pathlib import Path

import pytest

from tests.crash.seeds import replay, rounds
from tests.vmfs.datastore import Datastore, Mount, datastore_in, until, vmfsctl
from vmfs.client import Mount as Asked
from vmfs.errors import VmfsError
from vmfs.fuse.protocol import InitFlag
from vmfs.supervisor.restarts import ENDS_MAX

PAGE = 4096
PAGES = 2000
SERVES_SECONDS = 30.0
KILLED = r"its process was killed by signal 9; another takes over|recovered host"


class Program(threading.Thread):
    """Does one thing over and over; `worst` is its longest wait, `failure` what an operation raised."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._stop_it = threading.Event()
        self.count = 0
        self.worst = 0.0
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._stop_it.is_set():
                began = time.monotonic()
                self._step(self.count)
                self.worst = max(self.worst, time.monotonic() - began)
                self.count += 1
        except Exception as error:  # the test fails with it
            self.failure = error

    def end(self) -> None:
        self._stop_it.set()
        self.join(SERVES_SECONDS)
        assert not self.is_alive(), f"it hangs after {self.count} steps"
        if self.failure is not None:
            raise self.failure


class Disk:
    """A file as a hypervisor uses it: O_DIRECT, fsync now and then, and all that was acknowledged is known."""

    def __init__(self, path: Path, seed: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        self._rng = random.Random(seed)
        self._memory = mmap.mmap(-1, PAGE)
        self.acknowledged: dict[int, int] = {}

    def step(self, count: int) -> None:
        page = self._rng.randrange(PAGES)
        self._memory[:8] = (count + 1).to_bytes(8, "little")
        assert os.pwrite(self.fd, self._memory, page * PAGE) == PAGE
        self.acknowledged[page] = count + 1
        if self._rng.random() < 0.2:
            os.fsync(self.fd)
        other = self._rng.choice(list(self.acknowledged))
        assert self.read(other) == self.acknowledged[other], f"page {other}"

    def read(self, page: int) -> int:
        memory = mmap.mmap(-1, PAGE)
        os.preadv(self.fd, [memory], page * PAGE)
        return int.from_bytes(memory[:8], "little")

    def check(self) -> None:
        wrong = {p: (self.read(p), v) for p, v in self.acknowledged.items() if self.read(p) != v}
        assert not wrong, wrong
        os.close(self.fd)


def names_step(folder: Path) -> Callable[[int], None]:
    """Each of these must be done exactly once: twice, it fails, or leaves another state behind."""

    def step(count: int) -> None:
        a, b = folder / f"a{count}", folder / f"b{count}"
        fd = os.open(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"x" * 100)
        os.close(fd)
        os.rename(a, b)
        os.link(b, a)
        os.mkdir(folder / f"d{count}")
        os.rmdir(folder / f"d{count}")
        os.unlink(b)
        assert a.stat().st_nlink == 1
        assert a.read_bytes() == b"x" * 100
        if count % 3:
            os.unlink(a)

    return step


def append_step(fd: int) -> Callable[[int], None]:
    """One line after the other in an O_APPEND file."""

    def step(count: int) -> None:
        os.write(fd, b"%07d\n" % count)

    return step


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Datastore]:
    with datastore_in(tmp_path, "2G") as made:
        made.expect(KILLED)
        yield made


def worker_of(mount: Mount) -> int:
    return Asked.for_path(mount.path).info().mount.pid


def kill_worker(mount: Mount) -> None:
    """kill -9 of the process that serves now, and wait until another one does."""
    before = worker_of(mount)
    os.kill(before, signal.SIGKILL)

    def another_serves() -> bool:
        with contextlib.suppress(VmfsError):  # the dead one's socket was told to us a moment ago
            return worker_of(mount) != before
        return False

    until("another process serves", another_serves, SERVES_SECONDS)
    mount.pid = worker_of(mount)


def _kills(datastore: Datastore, seed: int, kills: int) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    mount = datastore.mount("esx1", supervised=True)
    names = mount / "names"
    names.mkdir()
    disk = Disk(mount / "disk", seed)
    log = os.open(mount / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    programs = [Program(disk.step), Program(names_step(names)), Program(append_step(log))]
    for _ in range(kills):
        before = [p.count for p in programs]
        until("all go on", lambda b=before: all(  # type: ignore[misc]
            p.count > n + 3 or p.failure is not None for p, n in zip(programs, b, strict=True)), SERVES_SECONDS)
        time.sleep(rng.uniform(0.0, 0.3))
        kill_worker(mount)
    for program in programs:
        program.end()
    os.close(log)
    disk.check()
    lines = (mount / "log").read_text().splitlines()
    assert lines == [f"{n:07d}" for n in range(programs[2].count)]
    assert sorted(p.name for p in names.iterdir()) == sorted(f"a{n}" for n in range(0, programs[1].count, 3))
    worst = max(p.worst for p in programs)
    print(f"{kills} kills; {[p.count for p in programs]} steps; longest wait {worst:.2f} s")


@rounds(1)
def test_programs_go_on_and_nothing_is_lost_or_done_twice(datastore: Datastore, seed: int) -> None:
    _kills(datastore, seed, 4)


@pytest.mark.soak
@rounds(20)
def test_programs_go_on_through_many_kills(datastore: Datastore, seed: int) -> None:
    _kills(datastore, seed, 15)


def test_an_ordered_restart(datastore: Datastore) -> None:
    mount = datastore.mount("esx1", supervised=True)
    disk = Disk(mount / "disk", 1)
    program = Program(disk.step)
    before = mount.pid
    done = json.loads(vmfsctl("restart", "--json", mount.path).stdout)
    assert done["pid"] != before
    mount.pid = done["pid"]
    program.end()
    disk.check()
    facts = mount.info()["mount"]
    assert (facts["takeovers"], facts["supervisor"]) == (1, mount.supervisor)
    assert "killed" not in mount.log_text()
    print(f"took {done['seconds']:.2f} s, a program waited for {program.worst:.2f} s")


def test_what_has_no_supervisor_cannot_be_restarted(datastore: Datastore) -> None:
    mount = datastore.mount("esx1")
    done = vmfsctl("restart", mount.path, check=False)
    assert done.returncode != 0
    assert "no supervisor" in done.stderr
    assert mount.info()["mount"]["supervisor"] == 0


def test_an_unmount_ends_both_processes(datastore: Datastore) -> None:
    mount = datastore.mount("esx1", supervised=True)
    kill_worker(mount)
    mount.umount()
    assert not Path(f"/proc/{mount.pid}").exists()
    until("the supervisor ends", lambda: not Path(f"/proc/{mount.supervisor}").exists(), 10)


def test_a_mount_goes_on_without_its_supervisor(datastore: Datastore) -> None:
    mount = datastore.mount("esx1", supervised=True)
    assert mount.supervisor is not None
    os.kill(mount.supervisor, signal.SIGKILL)
    (mount / "f").write_bytes(b"x")
    assert worker_of(mount) == mount.pid


def test_a_kernel_that_cannot_send_again_gets_errors_and_no_hang(datastore: Datastore) -> None:
    datastore.expect("cannot be replaced on this kernel")
    mount = datastore.mount("esx1", "-o", f"init_mask={int(InitFlag.HAS_RESEND):#x}", supervised=True)
    assert "needs Linux 6.9" in vmfsctl("restart", mount.path, check=False).stderr
    fd = os.open(mount / "f", os.O_CREAT | os.O_RDWR)
    os.kill(mount.pid, signal.SIGKILL)
    until("the supervisor ends", lambda: not Path(f"/proc/{mount.supervisor}").exists(), 10)
    with pytest.raises(OSError) as error:
        os.pread(fd, 1, 0)
    assert error.value.errno in (ENOTCONN, ECONNABORTED)
    with pytest.raises(OSError):
        os.close(fd)
    mount.umount()


@pytest.mark.soak
def test_one_that_dies_again_and_again_is_given_up(datastore: Datastore, tmp_path: Path) -> None:
    """Its LUN is gone: no process gets to serve. Whoever waits gets an error."""
    datastore.expect("another takes over|too often by now|is not there|no such file")
    mount = datastore.mount("esx1", supervised=True)
    fd = os.open(mount / "f", os.O_CREAT | os.O_RDWR)
    away = tmp_path / "away"
    datastore.lun.rename(away)
    os.kill(mount.pid, signal.SIGKILL)
    with pytest.raises(OSError) as error:
        os.fsync(fd)
    assert error.value.errno in (ENOTCONN, ECONNABORTED, EIO)
    away.rename(datastore.lun)
    with pytest.raises(OSError):
        os.close(fd)
    assert mount.log_text().count("another takes over") < ENDS_MAX
    mount.umount()


def test_an_unmount_while_no_process_serves(datastore: Datastore, tmp_path: Path) -> None:
    datastore.expect("another takes over|was unmounted before|is not there|no such file")
    mount = datastore.mount("esx1", supervised=True)
    away = tmp_path / "away"
    datastore.lun.rename(away)
    os.kill(mount.pid, signal.SIGKILL)
    until("several have failed", lambda: mount.log_text().count("another takes over") > 4, SERVES_SECONDS)
    assert "umount --lazy" in vmfsctl("umount", mount.path, check=False).stderr
    vmfsctl("umount", "--lazy", mount.path)
    mount.mounted = False
    until("the supervisor ends", lambda: not Path(f"/proc/{mount.supervisor}").exists(), SERVES_SECONDS)
    away.rename(datastore.lun)
    datastore.mount("esx1")  # recovers what was left
