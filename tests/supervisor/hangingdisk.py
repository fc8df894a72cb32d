"""A disk that stops answering on command: a file of a FUSE file system whose reads, writes and flushes wait.

    python -m tests.supervisor.hangingdisk BACKING MOUNTPOINT SIZE

It passes `MOUNTPOINT/lun` through to the file BACKING. While the file BACKING.hang exists, whoever reads or writes
waits, as with a LUN whose paths are all gone; what waits is done when the file is taken away. It runs as a process of
its own, so that the mount under test and the tests share no interpreter with it.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.fuse.ramfs import RamFs
from vmfs.fuse import mount as kernel
from vmfs.fuse.contract import ROOT_ID, Context
from vmfs.fuse.session import Session

NAME: Final = "lun"
_POLL_SECONDS: Final = 0.01
_START_SECONDS: Final = 20


class HangingDisk(RamFs):
    """One file, passed through."""

    def __init__(self, backing: Path, size: int) -> None:
        super().__init__()
        self._fd = os.open(backing, os.O_RDWR)
        self._sign = backing.with_name(f"{backing.name}.hang")
        entry, _ = self.create(Context(0, 0, 0), ROOT_ID, NAME.encode(), stat.S_IFREG | 0o600, os.O_RDWR, False)
        self.nodes[entry.nodeid].size = size

    def _pass(self) -> None:
        while self._sign.exists():
            time.sleep(_POLL_SECONDS)

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        self._pass()
        return os.preadv(self._fd, [buf[:size]], offset)

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        self._pass()
        return os.pwritev(self._fd, [buf[:size]], offset)

    read_slow, write_slow = read, write

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        self._pass()
        os.fdatasync(self._fd)


class Hanging:
    """The disk from outside. `lun` is the file; `hang` and `answer` order it about."""

    def __init__(self, folder: Path, size: int) -> None:
        self.backing = folder / "backing.img"
        self.sign = folder / "backing.img.hang"
        self._mountpoint = folder / "disk"
        self._mountpoint.mkdir()
        self.backing.touch()
        os.truncate(self.backing, size)
        self.lun = self._mountpoint / NAME
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.supervisor.hangingdisk", self.backing, self._mountpoint, str(size)]
        )
        deadline = time.monotonic() + _START_SECONDS
        while not os.path.ismount(self._mountpoint) or not self.lun.exists():
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(_POLL_SECONDS)

    def hang(self) -> None:
        self.sign.touch()

    def answer(self) -> None:
        self.sign.unlink(missing_ok=True)

    def close(self) -> None:
        self.answer()
        subprocess.run(["umount", "--lazy", self._mountpoint], capture_output=True, check=False)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@contextmanager
def hanging_disk(folder: Path, size: int) -> Iterator[Hanging]:
    """A disk that is taken away at the end."""
    disk = Hanging(folder, size)
    try:
        yield disk
    finally:
        disk.close()


def main() -> None:
    backing, mountpoint, size = sys.argv[1:]
    fs = HangingDisk(Path(backing), int(size))
    session = Session(kernel.mount(mountpoint, "disk"), fs, fs, data_threads=32, name="disk")
    session.start()
    session.wait()


if __name__ == "__main__":
    main()
