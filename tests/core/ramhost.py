"""Hosts on a volume in memory, called as the FUSE adapter calls them."""

from __future__ import annotations

import mmap
import os
import uuid

from vmfs.check import check_volume
from vmfs.clock import FakeClock, SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.core.nodeids import number_of
from vmfs.devices.ram import RamDevice
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, ROOT_ID, Context, WouldBlock
from vmfs.mkfs import FormatOptions, format_volume
from vmfs.volume import open_volume

BLOCK = 64 << 10
CONTEXT = Context(0, 0, 1)
_BUFFER_BYTES = (2 << 20) + BUFFER_SLACK_BYTES


class RamHost:
    """One mount of the volume in this process."""

    def __init__(self, device: RamDevice, name: str, boot_id: uuid.UUID | None = None) -> None:
        self.volume = MountedVolume(open_volume([device]), HostIdentity.detect(name, boot_id), SystemClock())
        self.core = self.volume.core
        self.fs = self.volume.filesystem
        self.plane = self.volume.plane
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    def create(self, name: str) -> tuple[int, int]:
        """(node, handle) of a new file that is open for reading and writing."""
        entry, opened = self.fs.create(CONTEXT, ROOT_ID, name.encode(), 0o644, os.O_RDWR | os.O_EXCL, False)
        return entry.nodeid, opened.fh

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        return self.fs.open(CONTEXT, node, flags, False).fh

    def close(self, node: int, fh: int) -> None:
        self.fs.release(node, fh, os.O_RDWR)

    def write(self, fh: int, offset: int, data: bytes) -> None:
        buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))  # of its own: tests write from several threads
        buffer[: len(data)] = data
        try:
            done = self.plane.write(fh, buffer, offset, len(data))
        except WouldBlock:
            done = self.plane.write_slow(fh, buffer, offset, len(data))
        assert done == len(data)

    def read(self, fh: int, offset: int, length: int) -> bytes:
        try:
            count = self.plane.read(fh, self._buffer, offset, length)
        except WouldBlock:
            count = self.plane.read_slow(fh, self._buffer, offset, length)
        return bytes(self._buffer[:count])

    def clone(self, node: int, name: str) -> int:
        root = self.core.volume.superblock.root_inode
        self.volume.cloner.clone(number_of(node), root, name.encode(), 0, 0)
        return self.fs.lookup(CONTEXT, ROOT_ID, name.encode()).nodeid


class RamVolume:
    """A formatted volume in memory, and its hosts."""

    def __init__(self, size_bytes: int = 64 << 20, *, fenced: bool = False, **options: int) -> None:
        defaults = {"max_hosts": 4, "journal_bytes": 1 << 20, "lease_us": 1_000_000, "heartbeat_us": 200_000}
        self.device = RamDevice(size_bytes, reservations=fenced)
        format_volume(self.device, FormatOptions("ram", fenced=fenced, **(defaults | options)))  # type: ignore[arg-type]
        self.hosts: list[RamHost] = []

    def host(self, name: str, boot_id: uuid.UUID | None = None) -> RamHost:
        """Mount it; with a `boot_id`, as a machine of its own, whose death shows in nothing but its silence."""
        made = RamHost(self.device.again(), name, boot_id)
        self.hosts.append(made)
        return made

    def leave_all(self) -> None:
        while self.hosts:
            self.hosts[-1].volume.leave()
            self.hosts.pop()

    def abandon_all(self) -> None:
        while self.hosts:
            self.hosts.pop().volume.abandon()

    def check(self) -> None:
        """The offline checker finds nothing."""
        volume = open_volume([self.device.again(read_only=True)], read_only=True)
        report = check_volume(volume, clock=FakeClock(sleep_advances=True))
        assert report.clean, "\n".join(map(str, report.findings))
