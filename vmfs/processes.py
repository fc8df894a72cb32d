"""Other processes of this machine, as /proc and pidfds show them: when one ends, and who uses a mount."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

PROC: Final = "/proc"


class ProcessEnd:
    """Waits for the end of a process that need not be a child of ours. Use `of`."""

    def __init__(self, pidfd: int | None) -> None:
        self._pidfd = pidfd

    @classmethod
    @contextmanager
    def of(cls, pid: int) -> Iterator[ProcessEnd]:
        """Begin before the process is told to end: its pid may be another's afterwards."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            yield cls(None)
            return
        try:
            yield cls(fd)
        finally:
            os.close(fd)

    def wait(self, timeout_seconds: float) -> bool:
        """Whether it has ended, after at most that time."""
        if self._pidfd is None:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(timeout_seconds * 1000))


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process that keeps a mount busy, and one example of what it uses there."""

    pid: int
    command: str
    path: str


def users_of(mountpoint: str) -> list[MountUser]:
    """The other processes with an open file, a mapped file, a working or a root directory below `mountpoint`.

    It is a real path. Only links of /proc are read, never the files themselves: a dead or stuck mount does not hang
    this. As root it sees all processes of this pid namespace, else the caller's own. Loop devices over files of the
    mount keep it busy too, and belong to no process: see `loops_over`.
    """
    inside = mountpoint.rstrip("/") + "/"
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        for path in _paths_of(pid):
            if path == mountpoint or path.startswith(inside):
                found.append(MountUser(pid, _command_of(pid), path))
                break
    return found


def loops_over(mountpoint: str) -> list[tuple[str, str]]:
    """Loop devices (/dev/loopN, backing file) whose backing file lies below `mountpoint`."""
    inside = mountpoint.rstrip("/") + "/"
    found = []
    for entry in sorted(os.listdir("/sys/block")):
        with contextlib.suppress(OSError):  # no loop device, or detached meanwhile
            with open(f"/sys/block/{entry}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as f:
                backing = f.read().rstrip("\n")
            if backing.startswith(inside):
                found.append((f"/dev/{entry}", backing))
    return found


def holders_of_device(device: str) -> list[int]:
    """Processes in whose mount namespace the file system `device` (major:minor, as in mountinfo) is mounted.

    One process a namespace: the first that /proc lists.
    """
    seen: set[str] = set()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):  # ended, or another's and we are not root
            namespace = os.readlink(f"{PROC}/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            with open(f"{PROC}/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
                if any(line.split(" ", 3)[2] == device for line in lines):
                    found.append(pid)
    return found


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())


def _paths_of(pid: int) -> Iterator[str]:
    """What a process has open, mapped, or stands in. Nothing when it has ended or is not ours to look at."""
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{PROC}/{pid}/{link}")
    for folder in ("fd", "map_files"):
        try:
            names = os.listdir(f"{PROC}/{pid}/{folder}")
        except OSError:
            continue
        for name in names:
            with contextlib.suppress(OSError):
                yield os.readlink(f"{PROC}/{pid}/{folder}/{name}")


def _command_of(pid: int) -> str:
    try:
        with open(f"{PROC}/{pid}/comm", encoding="utf-8", errors="replace") as f:
            return f.read().rstrip("\n")
    except OSError:
        return "?"
