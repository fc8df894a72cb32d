"""The same 2,200 calls on a volume and on ext4: what one answers, the other must answer, and leave behind.

ext4 is what administrators and programs are used to. Where the two differ, `EXPECTED` says why; docs/posix.md tells
users.
"""

from __future__ import annotations

from pathlib import Path

from tests.posix.compare import compared
from tests.vmfs.datastore import Mount

EXPECTED: dict[str, str] = {
    "append: fifo": "the kernel sets the time of a FIFO that is written to on disk file systems only",
    "symlink of 4095: nothing": "a link's target lies in the inode's block, which has less room",
}
"""Part of a case's name: why it differs."""


def test_the_same_as_ext4(esx1: Mount, ext4: Path) -> None:
    assert compared("tests.posix.battery", esx1 / "battery", ext4 / "battery", expected=EXPECTED) > 2100
