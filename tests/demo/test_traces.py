"""Whatever state a run stopped in, what it left is found and taken away, and nothing else is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import traces

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 30.0


@pytest.fixture
def run_directory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / f"{traces.PREFIX}test"
    directory.mkdir()
    yield directory
    traces.clear(directory)


def sleeper(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that ignores SIGTERM, so that only SIGKILL ends it."""
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_mounts_processes_loops_and_files_go_and_others_stay(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "_GRACE_SECONDS", 0.3)
    (run_directory / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(run_directory / "mnt")], check=True)
    (run_directory / "disk").write_bytes(bytes(1 << 20))
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(run_directory / "disk")], check=True, capture_output=True, text=True
    ).stdout.strip()
    with (
        sleeper({**os.environ, traces.MARK: str(run_directory)}) as ours,
        sleeper({**os.environ, traces.MARK: f"{run_directory}-other"}) as other,
    ):
        try:
            assert traces.mounts(run_directory) == [run_directory / "mnt"]
            assert traces.processes(run_directory) == [ours.pid]
            assert traces.loops(run_directory) == [Path(loop)]
            assert len(traces.left_behind(run_directory)) == 4
            # A killed process is a zombie, without an environment, until its parent waits for it.
            assert traces.clear(run_directory) == []
            assert ours.wait(END_SECONDS) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            ours.kill()
            other.kill()
    assert not run_directory.exists()


def test_only_runs_whose_process_is_gone_are_abandoned(run_directory: Path) -> None:
    lock = traces.claim(run_directory)
    assert traces.abandoned(run_directory.parent) == []
    os.close(lock)
    assert traces.abandoned(run_directory.parent) == [run_directory]


def program(directory: Path, text: str) -> Path:
    """A directory with a stand-in for vmfsctl, to see how the demo takes failure and delay."""
    directory.mkdir()
    (directory / "vmfsctl").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "vmfsctl").chmod(0o755)
    return directory


def start_demo(parent: Path, programs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demo.run", "--dir", str(parent), "--programs", str(programs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_failing_command_fails_the_demo_and_leaves_nothing(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    programs = program(tmp_path / "bin", "echo 'no such luck' >&2; exit 3")
    with start_demo(parent, programs) as demo:
        output, _ = demo.communicate(timeout=END_SECONDS)
    assert demo.returncode == 1
    assert "VERDICT: FAILED" in output
    assert "step 1: vmfsctl format --name ds1 lun.img exited 3: no such luck" in output
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    programs = program(tmp_path / "bin", "exec sleep 60")
    with start_demo(parent, programs) as demo:
        deadline = time.monotonic() + END_SECONDS
        while not any(sleeping(directory) for directory in parent.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        [directory] = parent.iterdir()
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=END_SECONDS)
    assert demo.returncode == 130
    assert f"stopped by {number.name}" in output
    assert traces.left_behind(directory) == []


def sleeping(directory: Path) -> bool:
    """Whether the stand-in of this run is asleep."""
    for pid in traces.processes(directory):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return True
    return False
