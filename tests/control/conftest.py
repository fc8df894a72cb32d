"""Control servers over the file system in memory, with a real mount or with none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.control.ramvolume import RamVolume, publish
from tests.fuse.ramfs import RamFs
from tests.fuse.served import Served
from vmfs.control.contract import VolumeService
from vmfs.control.server import ControlServer

StartServer = Callable[..., ControlServer]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """A function that serves: start_server(service=None, **options) -> ControlServer."""
    servers: list[ControlServer] = []

    def start(service: VolumeService | None = None, **options: object) -> ControlServer:
        chosen = service or RamVolume(RamFs(), "/nowhere")
        servers.append(ControlServer(chosen, directory=str(tmp_path / "run" / "control"), **options))  # type: ignore[arg-type]
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect() -> Iterator[Callable[[ControlServer], socket.socket]]:
    """A function that connects to a server."""
    opened: list[socket.socket] = []

    def to(server: ControlServer) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(server.path)  # before the timeout: a full backlog shall make it wait, not fail
        connection.settimeout(10)
        opened.append(connection)
        return connection

    yield to
    for connection in opened:
        connection.close()


@pytest.fixture
def mounted(tmp_path: Path, start_server: StartServer) -> Iterator[Served]:
    """A RamFs mounted for real, whose root names a control socket."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    path = tmp_path / "mnt"
    path.mkdir()
    served = Served(path, RamFs())
    try:
        publish(served.fs, start_server(RamVolume(served.fs, str(path))))
        yield served
    finally:
        served.end()
