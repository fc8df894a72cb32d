"""One mount a machine of a LUN that the machine reaches by one nexus, as it does through the kernel's disks (R3).

Two incarnations on one nexus would share a registration: a breaker that takes the older one's key away would find it
gone, replaced by the younger one's, and the older one's writes would still be admitted. So the whole life of a mount
is under a lock of this machine's. The kernel lets go of it when the process has ended with all its threads, and so with
all its I/O.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from vmfs.devices.block import HOST_LOCK_FOLDER


class NexusBusy(Exception):
    """Another process of this machine has it."""


class NexusLock:
    """Held from its making to `release` or the process's end."""

    def __init__(self, fd: int, folder: Path = HOST_LOCK_FOLDER) -> None:
        """Lock the disk that is open as `fd`. NexusBusy, OSError."""
        found = os.fstat(fd)
        number = found.st_rdev if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode) else found.st_ino
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = folder / f"nexus-{stat.S_IFMT(found.st_mode):o}-{number:x}"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise NexusBusy from None
        except BaseException:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Let another mount have it. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
