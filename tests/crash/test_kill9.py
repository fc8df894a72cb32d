"""kill -9 of a mount's process under load: the next mount has whatever was acknowledged, and the volume is whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.load import Load
from tests.crash.ports import KernelPort
from tests.crash.seeds import replay, rounds

ACKS = 200
KILL_AFTER_MAX_SECONDS = 0.1
JOIN_SECONDS = 60.0
COMMAND_SECONDS = 60.0
LUN_BYTES = 512 << 20


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from vmfs.cli import main; main()", *map(str, arguments)]


def _vmfsctl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)


def _check(lun: Path, when: str) -> None:
    done = _vmfsctl("check", lun)
    assert done.returncode == 0, f"check {when}: {done.stdout}{done.stderr}"


@contextmanager
def _mounted(lun: Path, mountpoint: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A mount whose process is a child, so that its end is seen. Unmounted at the end, in order if it lives."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            _command("mount", lun, mountpoint, "--host", "esx1", "--foreground"), stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + COMMAND_SECONDS
        while not os.path.ismount(mountpoint):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield process
        if process.poll() is None:
            assert _vmfsctl("umount", mountpoint).returncode == 0, log.read_text()
            assert process.wait(COMMAND_SECONDS) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        subprocess.run(["umount", "--lazy", mountpoint], stderr=subprocess.DEVNULL, check=False)


def _kill_round(seed: int, folder: Path) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    lun, mountpoint, log = folder / "lun.img", folder / "mnt", folder / "mount.log"
    lun.touch()
    os.truncate(lun, LUN_BYTES)
    mountpoint.mkdir()
    made = _vmfsctl("format", "--name", "ds1", "--heartbeat", 0.5, "--lease", 3, lun)
    assert made.returncode == 0, made.stderr
    with _mounted(lun, mountpoint, log) as process:
        load = Load(KernelPort(mountpoint), seed, lambda count: None)
        load.start()
        until = time.monotonic() + JOIN_SECONDS
        while load.count < ACKS and time.monotonic() < until and any(w.failure is None for w in load.workers):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, KILL_AFTER_MAX_SECONDS))
        acknowledged = load.count
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        load.join(JOIN_SECONDS)
    why = f"{replay(seed)}: the load ended before it was killed: {load.failures()} {log.read_text()}"
    assert acknowledged >= ACKS, why
    load.close()
    _check(lun, f"before the remount ({replay(seed)})")
    with _mounted(lun, mountpoint, log):
        problems = load.problems(KernelPort(mountpoint))
        assert not problems, f"{replay(seed)}: {problems}"
    _check(lun, f"after the unmount ({replay(seed)})")


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")


@rounds(6)
def test_what_was_acknowledged_survives_kill_9(seed: int, tmp_path: Path) -> None:
    _kill_round(seed, tmp_path)


@pytest.mark.soak
@rounds(100)
def test_what_was_acknowledged_survives_many_a_kill_9(seed: int, tmp_path: Path) -> None:
    _kill_round(seed, tmp_path)
