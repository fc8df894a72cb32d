"""Volumes on real mounts. Each is checked when its test is done, and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, datastore_in


def _need_root() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Datastore]:
    """A volume of 4 GiB on a sparse file: `datastore.mount(host)`."""
    _need_root()
    with datastore_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_datastore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datastore]:
    """One for a whole module, whose tests keep to directories of their own."""
    _need_root()
    with datastore_in(tmp_path_factory.mktemp("datastore")) as made:
        yield made


@pytest.fixture(scope="module")
def esx1(shared_datastore: Datastore) -> Mount:
    """The module's volume, mounted."""
    return shared_datastore.mount("esx1")


@pytest.fixture(scope="module")
def esx2(shared_datastore: Datastore, esx1: Mount) -> Mount:
    """The module's volume, mounted by a second host."""
    return shared_datastore.mount("esx2")


@pytest.fixture
def here(esx1: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty directory of this test's own in the module's volume."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    path = esx1 / name
    path.mkdir()
    return path
