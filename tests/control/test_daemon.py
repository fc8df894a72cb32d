"""The mount's process: started for real, in the background and in the foreground, with signals and failures."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.control.ramvolume import serve_ram
from vmfs.client import Mount
from vmfs.control.contract import MountOptions
from vmfs.control.errors import BusyMount, MountDead
from vmfs.daemon import EXIT_INTERNAL, MountDidNotStart, Signals, run_background
from vmfs.errors import NotAVmfsMount, VmfsError
from vmfs.fuse.errors import MountBusy, NotMounted
from vmfs.fuse.mount import mounted_at, unmount
from vmfs.mountlog import LOG_DIRECTORY, LogUnusable, MountLog, default_log_file
from vmfs.processes import ProcessEnd
from vmfs.registry import STATE_DEAD, STATE_SILENT, mounted_volumes
from vmfs.unmounting import unmount as unmount_and_wait

END_SECONDS = 10.0


class Started:
    """Mounts in a process of its own, started from a fresh interpreter (this one has threads)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.log = folder / "mount.log"
        self.pids: list[int] = []

    def start(self, device: str = "ram") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(device), capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            self.pids.append(int(done.stdout))
        return done

    def command(self, device: str) -> list[str]:
        """Prints the pid, or the error with the exit code of it."""
        code = f"""
            import functools, sys
            from tests.control.ramvolume import serve_ram
            from vmfs.control.contract import MountOptions
            from vmfs.daemon import run_background
            from vmfs.errors import VmfsError
            from vmfs.mountlog import MountLog
            serve = functools.partial(serve_ram, directory={str(self.folder / "run")!r})
            try:
                print(run_background(MountOptions(({device!r},), {str(self.mountpoint)!r}, "esx1"), serve,
                                     MountLog({str(self.log)!r})))
            except VmfsError as error:
                print(error, file=sys.stderr)
                sys.exit(error.exit_code)
            except KeyboardInterrupt:
                sys.exit(130)
        """
        return [sys.executable, "-c", textwrap.dedent(code)]

    def end(self) -> None:
        if mounted_at(str(self.mountpoint)):
            unmount(str(self.mountpoint), lazy=True, force=True)
        for pid in self.pids:
            with ProcessEnd.of(pid) as process:
                assert process.wait(END_SECONDS), f"process {pid} did not end"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    found = Started(tmp_path)
    yield found
    found.end()


def has_ended(pid: int) -> bool:
    """Also of a zombie: who reaps a daemon is not ours to say."""
    with ProcessEnd.of(pid) as process:
        return process.wait(0)


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)


def test_the_parent_returns_when_it_serves(started: Started) -> None:
    done = started.start()
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(done.stdout)
    (started.mountpoint / "file").write_text("served")
    assert Mount.for_path(started.mountpoint).info().mount.pid == pid
    link = functools.partial(os.path.join, f"/proc/{pid}")
    assert os.readlink(link("cwd")) == "/"
    assert {os.readlink(link("fd", n)) for n in "012"} == {"/dev/null"}
    session = Path(link("stat")).read_text().rsplit(")", 1)[1].split()
    assert session[3] != str(pid), "it leads a session, so a terminal could become its own"
    assert session[4] == "0", "it has a terminal"
    unmount_and_wait(str(started.mountpoint))
    assert has_ended(pid)
    assert "unmounted" in started.log.read_text()


def test_nothing_of_the_caller_stays_open(started: Started, tmp_path: Path) -> None:
    with (tmp_path / "callers").open("w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        pid = int(subprocess.check_output(started.command("ram"), pass_fds=[inherited.fileno()], timeout=30))
    started.pids.append(pid)
    names = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    assert str(tmp_path / "callers") not in names
    assert str(started.log) in names


@pytest.mark.parametrize(
    ("device", "message", "exit_code"),
    [
        ("missing", "missing: there is no such file or block device", 2),
        ("broken", "internal error; {log} has the details", EXIT_INTERNAL),
        ("dies", "died before it served; see {log}", EXIT_INTERNAL),
    ],
)
def test_what_keeps_it_from_serving_is_told(started: Started, device: str, message: str, exit_code: int) -> None:
    done = started.start(device)
    assert done.returncode == exit_code
    assert message.format(log=started.log) in done.stderr
    assert "Traceback" not in done.stderr
    assert mounted_at(str(started.mountpoint)) is None
    if device == "broken":
        assert "RuntimeError: planted" in started.log.read_text()


def test_a_mount_point_that_is_not_there(started: Started) -> None:
    started.mountpoint.rmdir()
    done = started.start()
    assert done.returncode == 2
    assert "does not exist; create it with" in done.stderr
    started.mountpoint.mkdir()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    options = MountOptions(("ram",), str(tmp_path), "esx1")
    with pytest.raises(LogUnusable, match="choose another with --log-file"):
        run_background(options, functools.partial(serve_ram, directory=""), MountLog(str(tmp_path / "no" / "log")))


def test_an_interrupted_parent_calls_it_back(started: Started) -> None:
    with subprocess.Popen(started.command("slow")) as parent:
        try:
            wait_until(lambda: children_logging(started.log), "the process of the mount")
            (pid,) = children_logging(started.log)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(END_SECONDS) == 130
        finally:
            parent.kill()
    assert has_ended(pid)
    # As a rule the first; the second where Python had dropped the exception that a signal raises.
    assert re.search("interrupted before|signalled: unmounting", started.log.read_text())


def children_logging(log: Path) -> list[int]:
    """The processes that have the log open and have left their session (the mount's, not the parent)."""
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            names = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
            if str(log) in names and b"pipe:" in b"".join(map(os.fsencode, names)) and os.getsid(pid) != os.getsid(0):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(started: Started, number: signal.Signals) -> None:
    pid = int(started.start().stdout)
    with ProcessEnd.of(pid) as process:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, number)
        assert process.wait(END_SECONDS)
    assert mounted_at(str(started.mountpoint)) is None
    assert "signalled: unmounting" in started.log.read_text()


def test_a_signal_leaves_open_files_working(started: Started) -> None:
    pid = int(started.start().stdout)
    with ProcessEnd.of(pid) as process:
        with (started.mountpoint / "file").open("w+b", buffering=0) as file:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: mounted_at(str(started.mountpoint)) is None, "the unmount")
            os.kill(pid, signal.SIGTERM)
            assert file.write(b"still here") == 10
            file.seek(0)
            assert file.read() == b"still here"
            assert not process.wait(0)
        assert process.wait(END_SECONDS)
    assert "unmounting it lazily" in started.log.read_text()


def test_umount_names_who_keeps_it_busy(started: Started) -> None:
    started.start()
    (started.mountpoint / "d").mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=started.mountpoint / "d") as sleeper:
        try:
            with pytest.raises(BusyMount, match=rf"sleep \(pid {sleeper.pid}: {started.mountpoint}/d\)") as busy:
                unmount_and_wait(str(started.mountpoint))
            assert busy.value.exit_code == 1
            assert mounted_at(str(started.mountpoint)) is not None
        finally:
            sleeper.kill()
    assert unmount_and_wait(str(started.mountpoint)) == started.pids[0]


def test_umount_of_what_is_no_mount(tmp_path: Path) -> None:
    for path in (tmp_path, "/", "/proc", tmp_path / "missing"):
        with pytest.raises(NotAVmfsMount):
            unmount_and_wait(str(path))


def test_what_a_killed_process_leaves(started: Started) -> None:
    pid = int(started.start().stdout)
    os.kill(pid, signal.SIGKILL)
    with ProcessEnd.of(pid) as process:
        assert process.wait(END_SECONDS)
    with pytest.raises(MountDead, match="vmfsctl umount"):
        Mount.for_path(started.mountpoint)
    (found,) = [m for m in mounted_volumes() if m.mountpoint == str(started.mountpoint)]
    assert (found.label, found.state, found.info) == ("ram1", STATE_DEAD, None)
    assert unmount_and_wait(str(started.mountpoint)) is None
    assert mounted_at(str(started.mountpoint)) is None
    (started.mountpoint).rmdir()
    started.mountpoint.mkdir()
    assert started.start().returncode == 0
    assert len(os.listdir(started.folder / "run")) == 1, "the dead one's socket is gone"


def test_a_stopped_process_hangs_nothing(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = int(started.start().stdout)
    os.kill(pid, signal.SIGSTOP)
    try:
        found = {m.mountpoint: m for m in mounted_volumes(ask_seconds=0.3)}[str(started.mountpoint)]
        assert (found.state, found.info) == (STATE_SILENT, None)
        assert found.problem is not None
        assert "no answer within 0.3 s" in found.problem
        monkeypatch.setattr("vmfs.registry.ask_mount.__kwdefaults__", {"ask_seconds": 0.3})
        with pytest.raises(BusyMount, match="its process, which does not answer"):
            unmount_and_wait(str(started.mountpoint))
    finally:
        os.kill(pid, signal.SIGCONT)
    found = {m.mountpoint: m for m in mounted_volumes()}[str(started.mountpoint)]
    assert found.info is not None
    assert (found.label, found.state, found.info.mount.pid) == ("ram1", "serving", pid)


def test_the_client_unmounts(started: Started) -> None:
    pid = int(started.start().stdout)
    Mount.for_path(started.mountpoint).unmount(wait_seconds=END_SECONDS)
    assert has_ended(pid)


def test_the_foreground_stays_until_a_signal(started: Started) -> None:
    code = "\n".join(line for line in started.command("ram")[2].splitlines() if "print(error" not in line)
    code = code.replace("run_background", "run_foreground").replace(f"MountLog({str(started.log)!r})", "MountLog(None)")
    code = code.replace("except VmfsError as error:", "except VmfsError as error:\n    raise")
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        try:
            wait_until(lambda: serves(started.mountpoint, p.pid), "the mount")
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=END_SECONDS)
        finally:
            p.kill()
    assert (p.returncode, out) == (0, "0\n")
    assert f"INFO signals vmfs.daemon: signalled: unmounting {started.mountpoint}" in err


def serves(mountpoint: Path, pid: int) -> bool:
    try:
        return Mount.for_path(mountpoint).info().mount.pid == pid
    except VmfsError:
        return False


# -- signals, without a mount ----------------------------------------------------------------------


def test_before_it_serves_a_signal_gives_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Signals("/mnt/x"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.expected_log("a signal asked to unmount: planted", "/mnt/x is in use: unmounting it lazily")
def test_signals_go_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked: list[bool] = []
    heard = threading.Event()

    def refuse(mountpoint: str, *, lazy: bool = False) -> None:
        asked.append(lazy)
        if len(asked) == 1:
            raise VmfsError("planted")
        if len(asked) == 3:
            heard.set()
            raise NotMounted(mountpoint)
        raise MountBusy(mountpoint)

    with Signals("/mnt/x", refuse) as signals:
        signals.serving()
        signal.raise_signal(signal.SIGTERM)
        wait_until(lambda: asked, "the first")
        signal.raise_signal(signal.SIGINT)
        assert heard.wait(END_SECONDS)
    assert asked == [False, False, True]
    assert "is unmounted already" in caplog.text


# -- the log ---------------------------------------------------------------------------------------


def test_each_mount_point_has_a_log_of_its_own() -> None:
    points = ["/", "/mnt/a", "/mnt/a/b", "/mnt/a-b", "/mnt/a%2fb", "/mnt/ä", os.fsdecode(b"/mnt/\xff"), "/mnt/ a\n"]
    names = [default_log_file(p) for p in points]
    assert names[:4] == [f"{LOG_DIRECTORY}/{n}.log" for n in ("root", "mnt-a", "mnt-a-b", "mnt-a%2db")]
    assert len(set(names)) == len(points)
    assert all(json.dumps(n).isascii() and "\n" not in n for n in names)


def test_the_message_is_the_processs_own() -> None:
    error = MountDidNotStart("no such device", 2)
    assert (str(error), error.exit_code) == ("no such device", 2)
