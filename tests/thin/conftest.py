"""Real file systems for the disk tests: small ones to fill up, and one that cannot reserve space."""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def _mounted(mountpoint: Path, *arguments: str) -> Generator[Path]:
    mountpoint.mkdir()
    subprocess.run(["mount", *arguments, str(mountpoint)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


@contextmanager
def _image(tmp_path: Path, kind: str, mib: int) -> Generator[Path]:
    image = tmp_path / f"{kind}.img"
    with image.open("xb") as file:
        file.truncate(mib << 20)
    subprocess.run([f"mkfs.{kind}", "-q", "-m", "0", str(image)], check=True)
    with _mounted(tmp_path / kind, "-o", "loop", str(image)) as mountpoint:  # umount detaches the loop device
        yield mountpoint


@pytest.fixture
def small_ext4(tmp_path: Path) -> Generator[Path]:
    """An ext4 file system of 24 MiB: reserves space, does direct I/O."""
    with _image(tmp_path, "ext4", 24) as mountpoint:
        yield mountpoint


@pytest.fixture
def small_ext2(tmp_path: Path) -> Generator[Path]:
    """An ext2 file system of 16 MiB: no fallocate."""
    with _image(tmp_path, "ext2", 16) as mountpoint:
        yield mountpoint


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Generator[Path]:
    """A tmpfs of 8 MiB."""
    with _mounted(tmp_path / "tmpfs", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as mountpoint:
        yield mountpoint


@pytest.fixture(params=["ext4", "ext2", "tmpfs"])
def small_volume(request: pytest.FixtureRequest) -> Path:
    """Each of them in turn."""
    mountpoint = request.getfixturevalue(f"small_{request.param}")
    assert isinstance(mountpoint, Path)
    return mountpoint
