"""How the load reaches a volume: through the kernel, or straight into a mount's operations without one."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from errno import EIO
from pathlib import Path
from typing import Protocol

from vmfs.client import Mount
from vmfs.core.mounting import MountedVolume
from vmfs.core.nodeids import number_of
from vmfs.fuse.contract import (
    BUFFER_SLACK_BYTES,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    ROOT_ID,
    Context,
    SetAttr,
    WouldBlock,
)

LARGEST_WRITE = 1 << 20
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
ALLOCATE = FALLOC_FL_KEEP_SIZE
_ROOT = Context(0, 0, os.getpid())


class Port(Protocol):
    """What the load does. Paths are relative to the volume's root. A failure is an OSError or a VmfsError."""

    writes_whole: bool
    """Whether a write is one to the file system, too."""

    def mkdir(self, path: str) -> None: ...
    def create(self, path: str) -> int:
        """Create a file and open it; returns a handle."""
        ...

    def open(self, path: str) -> int: ...
    def write(self, handle: int, offset: int, data: bytes) -> None: ...
    def fsync(self, handle: int, *, data_only: bool) -> None: ...
    def fsync_directory(self, path: str) -> None: ...
    def truncate(self, handle: int, size: int) -> None: ...
    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None: ...
    def close(self, handle: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def clone(self, source: str, target: str) -> None: ...
    def list(self, path: str) -> list[str]: ...
    def read(self, path: str) -> bytes: ...


class DirectPort:
    """Calls a mount's operations and data plane as the FUSE session does, with the kernel left out."""

    writes_whole = True

    def __init__(self, mounted: MountedVolume) -> None:
        self._mounted = mounted
        self._fs = mounted.filesystem
        self._plane = mounted.plane
        self._nodes: dict[int, int] = {}
        self._memory = threading.local()

    def _buffer(self) -> memoryview:
        if not hasattr(self._memory, "view"):
            self._memory.view = memoryview(mmap.mmap(-1, LARGEST_WRITE + BUFFER_SLACK_BYTES))
        view: memoryview = self._memory.view
        return view

    def _node(self, path: str) -> int:
        node = ROOT_ID
        for name in path.split("/") if path else ():
            node = self._fs.lookup(_ROOT, node, name.encode()).nodeid
        return node

    def _place(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        return self._node(directory), name.encode()

    def mkdir(self, path: str) -> None:
        self._fs.mkdir(_ROOT, *self._place(path), 0o755)

    def create(self, path: str) -> int:
        entry, opened = self._fs.create(_ROOT, *self._place(path), 0o644, os.O_RDWR | os.O_CREAT, False)
        self._nodes[opened.fh] = entry.nodeid
        return opened.fh

    def open(self, path: str) -> int:
        node = self._node(path)
        fh = self._fs.open(_ROOT, node, os.O_RDWR, False).fh
        self._nodes[fh] = node
        return fh

    def write(self, handle: int, offset: int, data: bytes) -> None:
        buffer = self._buffer()
        buffer[: len(data)] = data
        try:
            self._plane.write(handle, buffer, offset, len(data))
        except WouldBlock:
            self._plane.write_slow(handle, buffer, offset, len(data))

    def fsync(self, handle: int, *, data_only: bool) -> None:
        self._fs.fsync(_ROOT, self._nodes[handle], handle, data_only)

    def fsync_directory(self, path: str) -> None:
        self._fs.fsyncdir(_ROOT, self._node(path), 0, False)

    def truncate(self, handle: int, size: int) -> None:
        self._fs.setattr(_ROOT, self._nodes[handle], handle, SetAttr(size=size))

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        self._fs.fallocate(_ROOT, self._nodes[handle], handle, mode, offset, length)

    def close(self, handle: int) -> None:
        node = self._nodes.pop(handle)
        try:
            self._fs.flush(_ROOT, node, handle)
        finally:
            self._fs.release(node, handle, 0)

    def rename(self, old: str, new: str) -> None:
        self._fs.rename(_ROOT, *self._place(old), *self._place(new), 0)

    def link(self, old: str, new: str) -> None:
        self._fs.link(_ROOT, self._node(old), *self._place(new))

    def unlink(self, path: str) -> None:
        self._fs.unlink(_ROOT, *self._place(path))

    def clone(self, source: str, target: str) -> None:
        parent, name = self._place(target)
        self._mounted.cloner.clone(number_of(self._node(source)), number_of(parent), name, 0, 0)

    def list(self, path: str) -> list[str]:
        node = self._node(path)
        fh = self._fs.opendir(_ROOT, node, 0).fh
        try:
            entries = self._fs.readdir(_ROOT, node, fh, 0)
            return [e.name.decode() for e in entries if e.name not in (b".", b"..")]
        finally:
            self._fs.releasedir(node, fh)

    def read(self, path: str) -> bytes:
        node = self._node(path)
        fh = self._fs.open(_ROOT, node, os.O_RDONLY, False).fh
        buffer = self._buffer()
        content = bytearray()
        while got := self._plane.read(fh, buffer, len(content), LARGEST_WRITE):
            content += buffer[:got]
        self._fs.release(node, fh, 0)
        return bytes(content)


class KernelPort:
    """System calls on a mount point."""

    writes_whole = False
    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, mountpoint: Path) -> None:
        self._root = mountpoint
        self._mount = Mount.for_path(mountpoint)

    def _path(self, path: str) -> str:
        return str(self._root / path)

    def mkdir(self, path: str) -> None:
        os.mkdir(self._path(path))

    def create(self, path: str) -> int:
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, 0o644)

    def open(self, path: str) -> int:
        return os.open(self._path(path), os.O_RDWR)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        if os.pwrite(handle, data, offset) != len(data):
            raise OSError(EIO, "a short write: its mount died half-way")

    def fsync(self, handle: int, *, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(handle)

    def fsync_directory(self, path: str) -> None:
        handle = os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        arguments = (ctypes.c_int(handle), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
        if self._libc.fallocate(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def link(self, old: str, new: str) -> None:
        os.link(self._path(old), self._path(new))

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def clone(self, source: str, target: str) -> None:
        self._mount.clone(self._path(source), self._path(target))

    def list(self, path: str) -> list[str]:
        return os.listdir(self._path(path))

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()
