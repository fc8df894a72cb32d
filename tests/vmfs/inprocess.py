"""A mounted volume without a kernel: the file system is called as the FUSE adapter calls it."""

from __future__ import annotations

import mmap
import os
import random
from errno import ENOENT
from pathlib import Path
from uuid import UUID

from vmfs.clock import SystemClock
from vmfs.cluster.identity import HostIdentity
from vmfs.core.mounting import MountedVolume
from vmfs.core.nodeids import number_of
from vmfs.devices import Device, open_device
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, ROOT_ID, Context, CopyRange, SetAttr, WouldBlock
from vmfs.volume import open_volume

CONTEXT = Context(0, 0, 1)
_BUFFER_BYTES = (4 << 20) + BUFFER_SLACK_BYTES


class InProcessHost:
    """One mount of a LUN in this process. `leave` it, or `abandon` it as a host that dies does."""

    def __init__(self, lun: Path, host: str, boot_id: UUID | None = None, seed: int | None = None) -> None:
        self._device: Device = open_device(str(lun))
        try:
            rng = None if seed is None else random.Random(seed)
            self.volume = MountedVolume(
                open_volume([self._device]), HostIdentity.detect(host, boot_id), SystemClock(), rng=rng
            )
        except BaseException:
            self._device.close()
            raise
        self.fs = self.volume.filesystem
        self.plane = self.volume.plane

    def leave(self) -> None:
        self.volume.leave()
        self._device.close()

    def abandon(self) -> None:
        self.volume.abandon()
        self._device.close()


class InProcessFiles:
    """The fuzzer's files, in the root of an `InProcessHost`."""

    def __init__(self, host: InProcessHost) -> None:
        self.host = host
        self._open: dict[str, tuple[int, int]] = {}
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    def _start(self, name: str) -> None:
        fs = self.host.fs
        node = fs.lookup(CONTEXT, ROOT_ID, name.encode()).nodeid
        self._open[name] = node, fs.open(CONTEXT, node, os.O_RDWR, False).fh

    def _end(self, name: str) -> None:
        node, fh = self._open.pop(name)
        self.host.fs.flush(CONTEXT, node, fh)
        self.host.fs.release(node, fh, os.O_RDWR)

    def move_to(self, host: InProcessHost | None) -> None:
        """Close all; then, with a host, open all there."""
        names = list(self._open)
        for name in names:
            self._end(name)
        if host is not None:
            self.use(host, names)

    def use(self, host: InProcessHost, names: list[str]) -> None:
        """From now on on that host."""
        self.host = host
        for name in names:
            self._start(name)

    def names(self) -> list[str]:
        return list(self._open)

    def create(self, name: str) -> None:
        entry, opened = self.host.fs.create(CONTEXT, ROOT_ID, name.encode(), 0o644, os.O_RDWR, False)
        self._open[name] = entry.nodeid, opened.fh

    def delete(self, name: str) -> None:
        self._end(name)
        self.host.fs.unlink(CONTEXT, ROOT_ID, name.encode())

    def clone(self, name: str, new: str) -> None:
        root = self.host.volume.core.volume.superblock.root_inode
        self.host.volume.cloner.clone(number_of(self._open[name][0]), root, new.encode(), 0, 0)
        self._start(new)

    def reopen(self, name: str) -> None:
        self._end(name)
        self._start(name)

    def read(self, name: str, offset: int, length: int, *, direct: bool) -> bytes:
        found = b""
        while len(found) < length:
            want = min(length - len(found), 1 << 20)
            count = self.host.plane.read(self._open[name][1], self._buffer, offset + len(found), want)
            found += self._buffer[:count]
            if count < want:
                break
        return found

    def write(self, name: str, offset: int, data: bytes, *, direct: bool) -> None:
        fh = self._open[name][1]
        self._buffer[: len(data)] = data
        try:
            done = self.host.plane.write(fh, self._buffer, offset, len(data))
        except WouldBlock:
            done = self.host.plane.write_slow(fh, self._buffer, offset, len(data))
        assert done == len(data)

    def truncate(self, name: str, size: int) -> None:
        node, fh = self._open[name]
        self.host.fs.setattr(CONTEXT, node, fh, SetAttr(size=size))

    def fallocate(self, name: str, mode: int, offset: int, length: int) -> None:
        node, fh = self._open[name]
        self.host.fs.fallocate(CONTEXT, node, fh, mode, offset, length)

    def copy(self, name: str, offset: int, new: str, new_offset: int, length: int) -> int:
        (node_in, fh_in), (node_out, fh_out) = self._open[name], self._open[new]
        copy = CopyRange(node_in, fh_in, offset, node_out, fh_out, new_offset, length)
        return self.host.fs.copy_file_range(CONTEXT, copy)

    def seek(self, name: str, offset: int, whence: int) -> int:
        node, fh = self._open[name]
        return self.host.fs.lseek(CONTEXT, node, fh, offset, whence)

    def sync(self, name: str) -> None:
        node, fh = self._open[name]
        self.host.fs.fsync(CONTEXT, node, fh, False)

    def stat(self, name: str) -> tuple[int, int]:
        attr = self.host.fs.getattr(CONTEXT, self._open[name][0], None).attr
        return attr.size, attr.blocks * 512

    def exists(self, name: str) -> bool:
        try:
            self.host.fs.lookup(CONTEXT, ROOT_ID, name.encode())
        except OSError as error:
            if error.errno == ENOENT:
                return False
            raise
        return True
