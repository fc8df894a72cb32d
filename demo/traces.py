"""What a demonstration leaves on a machine, and how it is taken away again, whatever state it stopped in.

A run's directory is its identity. Every process started for it carries that path in its environment, so processes,
mounts and loop devices of a run are found without a list that a crash could lose. Nothing else is ever touched.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

MARK = "AZEKURA_DEMO"
"""Environment variable that names the run's directory in each of its processes."""

PREFIX = "azekura-demo-"
"""How the names of run directories begin."""

_LOCK_NAME = ".running"
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_COMMAND_TIMEOUT_SECONDS = 20


def claim(directory: Path) -> int:
    """Mark `directory` as in use by this process; returns the descriptor that holds the mark while it is open."""
    descriptor = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def abandoned(parent: Path) -> list[Path]:
    """Directories in `parent` of runs whose process is gone, as after SIGKILL."""
    found = []
    for lock in parent.glob(f"{PREFIX}*/{_LOCK_NAME}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(lock.parent)
    return found


def clear(directory: Path) -> list[str]:
    """Take away all that the run of `directory` left; returns what is still there, as sentences."""
    for mount in reversed(mounts(directory)):
        # The lazy way works for a mount whose process is dead or stuck as well; the processes are ended next.
        subprocess.run(
            ["umount", "--lazy", str(mount)], capture_output=True, timeout=_COMMAND_TIMEOUT_SECONDS, check=False
        )
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(directory, number)
    for loop in loops(directory):
        subprocess.run(
            ["losetup", "--detach", str(loop)], capture_output=True, timeout=_COMMAND_TIMEOUT_SECONDS, check=False
        )
    if not mounts(directory):  # else it would remove the files of the mounted volume
        shutil.rmtree(directory, ignore_errors=True)
    return left_behind(directory)


def left_behind(directory: Path) -> list[str]:
    """What of the run of `directory` there is now on this machine, as sentences."""
    left = [f"{mount} is still mounted" for mount in mounts(directory)]
    left += [f"process {pid} still runs" for pid in processes(directory)]
    left += [f"{loop} is still attached" for loop in loops(directory)]
    if directory.exists():
        left.append(f"{directory} still exists")
    return left


def mounts(directory: Path) -> list[Path]:
    """Mount points below `directory`, in the order of mounting."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(point) for point in points if point.startswith(f"{directory}/")]


def processes(directory: Path) -> list[int]:
    """Pids of the processes marked with `directory`, without this one."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def loops(directory: Path) -> list[Path]:
    """Loop devices whose backing file lies below `directory`."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has been detached meanwhile
            if backing.read_text().startswith(f"{directory}/"):
                found.append(Path("/dev") / backing.parent.parent.name)
    return found


def _signal_all(directory: Path, number: signal.Signals) -> None:
    for pid in processes(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + _GRACE_SECONDS
    while processes(directory) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
