"""Volumes on which clones can be made and compared, for the tests of the VMFS source.

`VOLUMES` maps a name to a context manager that gives (folder, mount_for): every test of the source runs on every one.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from datarecovery.sources.disks import vmfs_mount_for
from datarecovery.sources.vmfs_clone import CloneMount
from vmfs.errors import VmfsError

BLOCK = 64 << 10

MountFor = Callable[[Path], CloneMount]


class FakeVolumeError(VmfsError):
    """What a real volume raises, for its fake."""


class FakeMount:
    """Behaves as a mounted volume does: whole-file clones of regular files, diffs by blocks, unrelated files refused.

    Lineage is by inode: a clone belongs to the family of what it was made of. Inodes are pinned by open files, since
    the file system beneath gives their numbers out again and has no generations.
    """

    def __init__(self) -> None:
        self.families: dict[int, int] = {}
        self._pins: list[int] = []

    def close(self) -> None:
        for fd in self._pins:
            os.close(fd)

    def _family(self, path: Path) -> int:
        inode = path.stat().st_ino
        return self.families.get(inode, inode)

    def clone(self, src: Path, dst: Path) -> None:
        if dst.exists():
            raise FakeVolumeError(f"{dst} exists")
        try:
            shutil.copyfile(src, dst)
        except OSError as error:
            raise FakeVolumeError(f"{src}: {error}") from error
        self._pins += [os.open(path, os.O_RDONLY) for path in (src, dst)]
        self.families[dst.stat().st_ino] = self._family(src)

    def diff(self, old: Path, new: Path) -> list[tuple[int, int]]:
        if self._family(old) != self._family(new):
            raise FakeVolumeError(f"{old} and {new} have nothing in common")
        one, other = old.read_bytes(), new.read_bytes()
        found: list[tuple[int, int]] = []
        for at in range(0, max(len(one), len(other)), BLOCK):
            if one[at : at + BLOCK] != other[at : at + BLOCK]:
                length = min(BLOCK, max(len(one), len(other)) - at)
                if found and sum(found[-1]) == at:
                    found[-1] = (found[-1][0], found[-1][1] + length)
                else:
                    found.append((at, length))
        return found


@contextmanager
def fake_volume(scratch: Path) -> Iterator[tuple[Path, MountFor]]:
    folder = scratch / "fake-volume"
    folder.mkdir()
    mount = FakeMount()
    try:
        yield folder, lambda path: mount
    finally:
        mount.close()


def _vmfsctl(*arguments: object) -> None:
    command = [sys.executable, "-c", "from vmfs.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)


@contextmanager
def real_volume(scratch: Path) -> Iterator[tuple[Path, MountFor]]:
    """A VMFS volume of its own, formatted and mounted."""
    lun, folder = scratch / "lun", scratch / "volume"
    folder.mkdir()
    with open(lun, "wb") as file:
        file.truncate(1 << 30)
    _vmfsctl("format", "--name", "backup-test", lun)
    _vmfsctl("mount", lun, folder, "--host", "esx1", "--log-file", scratch / "volume.log")
    try:
        yield folder, vmfs_mount_for
    finally:
        gc.collect()  # tracebacks of expected errors hold files of the volume open
        _vmfsctl("umount", folder)


VOLUMES: dict[str, Callable[[Path], AbstractContextManager[tuple[Path, MountFor]]]] = {
    "fake": fake_volume,
    "vmfs": real_volume,
}


def clones_in(folder: Path) -> list[str]:
    """The names of the clones that backups keep in a folder."""
    return sorted(name for name in os.listdir(folder) if name.startswith(".") and ".backup-" in name)
