"""The volumes of tests/vmfs, and an ext4 to compare them with."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmfs.conftest import datastore, esx1, shared_datastore

__all__ = ["datastore", "esx1", "ext4", "shared_datastore"]


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system on a loop device, with blocks as disks of today have them."""
    image, mountpoint = tmp_path / "ext4.img", tmp_path / "ext4"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,nosuid,nodev,user_xattr", str(image), str(mountpoint)], check=True)
    yield mountpoint
    subprocess.run(["umount", str(mountpoint)], check=True)
