"""What a benchmark of the volume stands on: a volume on a file, mounted, with its process's CPU time in view."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_VMFSCTL = str(Path(sys.executable).parent / "vmfsctl")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def run(*command: str) -> str:
    """Run a program to its end; its standard output. Raises CalledProcessError; its standard error is shown."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@dataclass(frozen=True, slots=True)
class Rig:
    """A mounted volume, and the directory of plain files on the same disk beside it."""

    mount: Path
    plain: Path
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time, user and system, that the mount's process has used so far (in steps of 10 ms)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


@contextmanager
def mounted_volume(directory: Path, size: str) -> Iterator[Rig]:
    """A volume on a sparse LUN file of `size` (as vmfsctl writes sizes) below `directory`, mounted."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="azekura-bench-") as scratch:
        here = Path(scratch)
        lun, mount, plain = here / "lun.img", here / "mnt", here / "plain"
        mount.mkdir()
        plain.mkdir()
        run(_VMFSCTL, "format", "--create-size", size, "--name", "bench", str(lun))
        log = str(here / "log")
        told = json.loads(run(_VMFSCTL, "mount", str(lun), str(mount), "--host", "bench", "--log-file", log, "--json"))
        try:
            yield Rig(mount, plain, told["pid"])
        finally:
            run(_VMFSCTL, "umount", str(mount))


def write_whole(path: Path, size_mib: int) -> None:
    """Write a file of bytes that do not compress, past the page cache, and make it durable."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        memory = aligned(MIB)
        memory[:] = os.urandom(MIB)
        for index in range(size_mib):
            os.pwrite(fd, memory, index * MIB)
        os.fsync(fd)
    finally:
        os.close(fd)


def aligned(size: int) -> memoryview:
    """Page-aligned memory, as O_DIRECT needs it."""
    return memoryview(mmap.mmap(-1, size))
