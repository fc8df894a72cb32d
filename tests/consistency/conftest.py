"""Hosts on one volume: in memory where a moment must be hit exactly, on real mounts where the kernels matter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.conftest import ram as ram
from tests.vmfs.datastore import Datastore, Mount, datastore_in


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount, Mount]]:
    """One volume on three hosts; its tests keep to directories of their own."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    with datastore_in(tmp_path_factory.mktemp("hosts")) as made:
        yield made.mount("esx1"), made.mount("esx2"), made.mount("esx3")


@pytest.fixture
def volume(hosts: tuple[Mount, Mount, Mount]) -> Datastore:
    """The volume of `hosts`: to say which lines its logs may have."""
    return hosts[0].datastore


@pytest.fixture
def folders(hosts: tuple[Mount, Mount, Mount], request: pytest.FixtureRequest) -> tuple[Path, Path, Path]:
    """One new directory, as each host sees it."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    (hosts[0] / name).mkdir()
    fd = os.open(hosts[0].path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    found = tuple(h / name for h in hosts)
    for path in found:
        while not path.is_dir():
            pass
    return found[0], found[1], found[2]
