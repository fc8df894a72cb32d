"""A volume to damage. It is made once; tests work on copies."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.damage.scene import Scene, make_scene, remove_scene


@pytest.fixture(autouse=True)
def _need_root() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = make_scene(tmp_path_factory.mktemp("scene"))
    yield made
    remove_scene(made)
