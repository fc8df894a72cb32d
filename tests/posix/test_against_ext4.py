"""The same 2,900 calls on a volume and on ext4: what one answers, the other must answer, and leave behind.

ext4 is what administrators and programs are used to. Where the two differ, `EXPECTED` says why; docs/posix.md tells
users.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmfs.datastore import Mount

REPOSITORY = Path(__file__).parents[2]
BATTERY_SECONDS = 240
SHOWN = 40  # differences; the first tell enough

EXPECTED: dict[str, str] = {
    "append: fifo": "the kernel sets the time of a FIFO that is written to on disk file systems only",
}
"""Part of a case's name: why it differs."""


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system on a loop device."""
    image, mountpoint = tmp_path / "ext4.img", tmp_path / "ext4"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,nosuid,nodev,user_xattr", str(image), str(mountpoint)], check=True)
    yield mountpoint
    subprocess.run(["umount", str(mountpoint)], check=True)


def _start(folder: Path) -> subprocess.Popen[str]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.posix.battery", str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_the_same_as_ext4(esx1: Mount, ext4: Path) -> None:
    both = [_start(esx1 / "battery"), _start(ext4 / "battery")]
    outputs = [p.communicate(timeout=BATTERY_SECONDS)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    ours, theirs = (json.loads(out) for out in outputs)
    assert [case[0] for case in ours] == [case[0] for case in theirs]
    assert len(ours) > 2800
    differing = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine != other]
    surprising = [pair for pair in differing if not any(part in pair[0][0] for part in EXPECTED)]
    shown = [f"{m[0]}:\n  here {m[1:]}\n  ext4 {o[1:]}" for m, o in surprising[:SHOWN]]
    print(f"{len(ours)} calls, {len(differing)} differ, {len(surprising)} of them without a reason")
    assert not surprising, "\n".join(shown)
    unused = [part for part in EXPECTED if not any(part in mine[0] for mine, _ in differing)]
    assert not unused, "these do not differ any more"
