"""As `test_against_ext4`, for what that battery leaves out: times of change, and mounts that are read-only."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.posix.compare import compared, run
from tests.vmfs.datastore import Datastore

_RENAMED = (
    "it is renamed without its lock, so that a file that another host has open can be; who holds no lock writes nothing"
)
EXPECTED: dict[str, str] = {
    "chown nobody: ": "POSIX leaves it open, and the kernel asks the file system for nothing",
    "symlink of 4095: nothing: ": "docs/posix.md: a link's target has less room",
    **dict.fromkeys(
        (
            "rename: file -> nothing: a", "rename: file -> file: a", "rename: file -> hard link: a",
            "rename: hard link -> nothing: a", "rename: link to a file -> nothing: a",
            "rename no replace: file -> nothing: a", "rename no replace: hard link -> nothing: a",
            "rename no replace: link to a file -> nothing: a",
        ),
        _RENAMED,
    ),
}
"""Part of a case's name: why it differs."""


def test_the_same_times_of_change_as_ext4(datastore: Datastore, ext4: Path) -> None:
    mount = datastore.mount("esx1")
    cases = compared("tests.posix.ctimes", mount / "times", ext4 / "times", expected=EXPECTED)
    assert cases > 1000


def test_a_read_only_mount_answers_as_ext4_does(datastore: Datastore, ext4: Path) -> None:
    mount = datastore.mount("esx1")
    for folder in (mount / "objects", ext4 / "objects"):
        folder.mkdir()
        run("tests.posix.ctimes", folder, "--make")
    mount.umount()
    mount = datastore.mount("esx1", "-o", "ro")
    subprocess.run(["mount", "-o", "remount,ro", str(ext4)], check=True)
    before = sorted(str(path) for path in mount.path.rglob("*"))
    cases = compared("tests.posix.ctimes", mount / "objects", ext4 / "objects", "--read-only", expected={})
    assert cases > 700
    assert sorted(str(path) for path in mount.path.rglob("*")) == before
