"""A LUN that a test may use: where it is, what lies behind it, and how it is emptied."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tests.luns.relay import Relay
from vmfs.devices import open_device, syscalls
from vmfs.devices.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

_ANY_KEY = (1 << 64) - 2


@dataclass(frozen=True, slots=True)
class Lun:
    """A logical unit of a running target. `file` is what its sectors are kept in; nothing caches it."""

    portal: str
    target: str
    number: int
    file: Path
    has_compare_and_write: bool

    @property
    def url(self) -> str:
        """Where a host finds it."""
        return self.url_by(self.portal)

    def url_by(self, portal: str) -> str:
        """Where a host finds it by another way: a relay's portal, say."""
        return f"iscsi://{portal}/{self.target}/{self.number}"

    def relay(self) -> Relay:
        """A network of its own to the target, to be closed by who asked."""
        host, _, port = self.portal.rpartition(":")
        return Relay(host, int(port))

    def empty(self) -> None:
        """Zeros, no reservation, no registration: as new."""
        device = open_device(self.url)
        try:
            reservations = device.reservations()
            if reservations is not None and (reservations.keys() or reservations.reservation()):
                reservations.register(_ANY_KEY)
                reservations.clear()
        finally:
            device.close()
        with open(self.file, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            syscalls.fallocate(file.fileno(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def sparse_file(path: Path, size_bytes: int) -> Path:
    """A file of that size without blocks."""
    path.touch()
    os.truncate(path, size_bytes)
    return path


def wait_accepting(portal: str, tries: int = 1500) -> None:
    """Return when somebody listens there."""
    host, _, port = portal.rpartition(":")
    for _ in range(tries):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at {portal}")
