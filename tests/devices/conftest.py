"""Real and fake devices for the tests of this folder; loop devices are detached at each test's end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEVICE_BYTES = 8 << 20

LoopMaker = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse file of DEVICE_BYTES."""
    path = tmp_path / "lun.img"
    path.touch()
    os.truncate(path, DEVICE_BYTES)
    return path


@pytest.fixture
def attach_loop() -> Iterator[LoopMaker]:
    """attach_loop(path, *losetup options) -> the loop device's node."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    nodes: list[str] = []

    def attach(path: Path | str, *options: str) -> str:
        command = ["losetup", "--find", "--show", *options, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        nodes.append(done.stdout.strip())
        return nodes[-1]

    yield attach
    for node in reversed(nodes):
        subprocess.run(["losetup", "--detach", node], check=True, timeout=30)
