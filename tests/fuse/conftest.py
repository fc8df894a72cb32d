"""Real mounts of the file system in memory, ended by each test."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.ramfs import RamFs
from tests.fuse.served import Serve, Served
from vmfs.fuse.mount import MountOptions


@pytest.fixture
def serve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Serve]:
    """A function that mounts: serve(fs=None, mask=0, options=None) -> Served."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    caplog.set_level(logging.INFO, logger="vmfs.fuse")
    served: list[Served] = []

    def start(fs: RamFs | None = None, mask: int = 0, options: MountOptions | None = None) -> Served:
        path = tmp_path / f"mnt{len(served)}"
        path.mkdir()
        served.append(Served(path, fs or RamFs(), mask, options))
        return served[-1]

    yield start
    for one in served:
        one.end()


@pytest.fixture
def ram(serve: Serve) -> Served:
    """One mount with everything that the kernel offers."""
    return serve()
