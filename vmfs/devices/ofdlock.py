"""Exclusion of byte ranges between processes by open-file-description locks (fcntl(2), F_OFD_SETLKW).

The kernel keeps them on the inode: two openers of one file exclude each other whatever path they took, and a
process that dies lets go of all it held. They are advisory, and they go no further than the file system carries
them: local file systems serve one machine, NFS carries them to its server, FUSE file systems usually do not.
A process that is stopped while it holds a range keeps it: every other host waits for it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (which must be 0 for OFD locks).
_FLOCK = struct.Struct("@hhqqi4x")


class OfdRangeLock:
    """Locks byte ranges of one file, against other processes and against this one's other threads.

    Threads share the open file description, so the kernel would let them all in, and one's unlock would free the
    other's range: `_held` (guarded by `_changed`) keeps overlapping ranges of this process apart first. Disjoint
    ranges do not wait for each other.
    """

    def __init__(self, fd: int, base_offset: int = 0) -> None:
        """Take over `fd`, open for writing. `base_offset`: where byte 0 of the device lies in that file."""
        self._fd = fd
        self._base = base_offset
        self._changed = threading.Condition()
        self._held: list[tuple[int, int]] = []

    @contextmanager
    def hold(self, offset: int, length: int) -> Iterator[None]:
        """Have the range alone. Waits without limit; OSError when the kernel refuses the lock."""
        start, end = self._base + offset, self._base + offset + length
        with self._changed:
            self._changed.wait_for(lambda: not any(a < end and start < b for a, b in self._held))
            self._held.append((start, end))
        try:
            self._set(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, start, length)
            try:
                yield
            finally:
                self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, start, length)
        finally:
            with self._changed:
                self._held.remove((start, end))
                self._changed.notify_all()

    def _set(self, command: int, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
