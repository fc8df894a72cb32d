"""Volumes on real mounts of hosts that count as machines of their own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, datastore_in

MakeDatastore = Callable[..., Datastore]


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Datastore]:
    """A volume of 4 GiB and four slots on a sparse file, with a lease of a second."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    with datastore_in(tmp_path, "4G", "--max-hosts", "4") as made:
        made.expect(r"recovered host|is locked by host")
        yield made


@pytest.fixture
def machine(datastore: Datastore) -> Callable[[str], Mount]:
    """Mount it as a machine of that name: another boot, of which nobody here can see the processes."""
    # A supervisor would start another process: here the whole host dies.
    return lambda name: datastore.mount(name, "--no-supervisor", boot_id=uuid.uuid4())
