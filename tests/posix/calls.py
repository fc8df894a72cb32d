"""The system calls of the battery: by one path, by two, and what is done with an open file.

Each returns what its caller can see (never a time, an inode number, or a descriptor's number).
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.posix.objects import OLD_NS
from tests.vmfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

OnePath = Callable[[str], object]
TwoPaths = Callable[[str, str], object]

BIG: Final = 1 << 50  # beyond what any file may have


def _opened(flags: int, mode: int = 0o640) -> OnePath:
    """Open without waiting for the other end of a FIFO; say what kind of thing was opened, and its size."""

    def call(path: str) -> object:
        fd = os.open(path, flags | os.O_NONBLOCK, mode)
        try:
            seen = os.fstat(fd)
            return stat.S_IFMT(seen.st_mode), seen.st_size if stat.S_ISREG(seen.st_mode) else 0
        finally:
            os.close(fd)

    return call


def _with_file(flags: int, use: Callable[[int], object]) -> OnePath:
    def call(path: str) -> object:
        fd = os.open(path, flags | os.O_NONBLOCK)
        try:
            return use(fd)
        finally:
            os.close(fd)

    return call


def _resized(fd: int, size: int) -> int:
    os.ftruncate(fd, size)
    return os.fstat(fd).st_size


def _appended(fd: int) -> bytes:
    os.write(fd, b"+tail")
    return os.pread(fd, 100, 0)


def _sought(fd: int) -> tuple[object, ...]:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return ()  # where a directory ends is each file system's own affair
    found: list[object] = []
    for whence in (os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (0, 5, 12, 13, 1 << 20):
            try:
                found.append(os.lseek(fd, offset, whence))
            except OSError as error:
                found.append(error.errno)
    return tuple(found)


ONE_PATH: Final[dict[str, OnePath]] = {
    "open read": _opened(os.O_RDONLY),
    "open write": _opened(os.O_WRONLY),
    "open read-write": _opened(os.O_RDWR),
    "open create": _opened(os.O_WRONLY | os.O_CREAT),
    "open create exclusive": _opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open create read-only set-id": _opened(os.O_RDONLY | os.O_CREAT, 0o6777),
    "open truncate": _opened(os.O_WRONLY | os.O_TRUNC),
    "open truncate for reading": _opened(os.O_RDONLY | os.O_TRUNC),
    "open directory": _opened(os.O_RDONLY | os.O_DIRECTORY),
    "open directory to write": _opened(os.O_WRONLY | os.O_DIRECTORY),
    "open no follow": _opened(os.O_RDONLY | os.O_NOFOLLOW),
    "open path": _opened(os.O_PATH),
    "open create directory": _opened(os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "mkdir": lambda p: os.mkdir(p, 0o751),
    "mkdir set-id sticky": lambda p: os.mkdir(p, 0o7777),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "mkfifo": lambda p: os.mkfifo(p, 0o640),
    "mknod file": lambda p: os.mknod(p, stat.S_IFREG | 0o640),
    "mknod socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o640),
    "mknod character device": lambda p: os.mknod(p, stat.S_IFCHR | 0o640, os.makedev(240, 70_000)),
    "mknod block device": lambda p: os.mknod(p, stat.S_IFBLK | 0o640, os.makedev(7, 200)),
    "mknod directory": lambda p: os.mknod(p, stat.S_IFDIR | 0o640),
    "symlink": lambda p: os.symlink("to/somewhere", p),
    "symlink of nothing": lambda p: os.symlink("", p),
    "symlink of 4095": lambda p: os.symlink("t" * 4095, p),
    "symlink of 4096": lambda p: os.symlink("t" * 4096, p),
    "readlink": os.readlink,
    "chmod 0": lambda p: os.chmod(p, 0),
    "chmod 7777": lambda p: os.chmod(p, 0o7777),
    "chmod 2755": lambda p: os.chmod(p, 0o2755),
    "chown": lambda p: os.chown(p, 77, 88),
    "chown group": lambda p: os.chown(p, -1, 88),
    "chown nobody": lambda p: os.chown(p, -1, -1),
    "lchown": lambda p: os.lchown(p, 77, 88),
    "truncate 0": lambda p: os.truncate(p, 0),
    "truncate 5": lambda p: os.truncate(p, 5),
    "truncate 100000": lambda p: os.truncate(p, 100_000),
    "truncate -1": lambda p: os.truncate(p, -1),
    "truncate big": lambda p: os.truncate(p, BIG),
    "utime old": lambda p: os.utime(p, ns=(OLD_NS, OLD_NS)),
    "utime now": os.utime,
    "utime no follow": lambda p: os.utime(p, ns=(7, 8), follow_symlinks=False),
    "access read": lambda p: os.access(p, os.R_OK, effective_ids=True),
    "access all": lambda p: os.access(p, os.R_OK | os.W_OK | os.X_OK, effective_ids=True),
    "list": lambda p: sorted(os.listdir(p)),
    "set attribute": lambda p: os.setxattr(p, "user.a", b"1"),
    "set attribute again": lambda p: os.setxattr(p, "user.a", b"1", os.XATTR_REPLACE),
    "get attribute": lambda p: os.getxattr(p, "user.a").hex(),
    "remove attribute": lambda p: os.removexattr(p, "user.a"),
    "set odd attribute": lambda p: os.setxattr(p, "odd.a", b"1"),
    "set trusted attribute": lambda p: os.setxattr(p, "trusted.a", b"1"),
    "read": _with_file(os.O_RDONLY, lambda fd: os.read(fd, 100).hex()),
    "read where it may only write": _with_file(os.O_WRONLY, lambda fd: os.read(fd, 100).hex()),
    "write where it may only read": _with_file(os.O_RDONLY, lambda fd: os.write(fd, b"x")),
    "append": _with_file(os.O_RDWR | os.O_APPEND, lambda fd: _appended(fd).hex()),
    "write far behind the end": _with_file(os.O_RDWR, lambda fd: (os.pwrite(fd, b"x", 300_000), os.fstat(fd).st_size)),
    "write beyond all limits": _with_file(os.O_RDWR, lambda fd: os.pwrite(fd, b"x", (1 << 63) - 2)),
    "ftruncate 3": _with_file(os.O_RDWR, lambda fd: _resized(fd, 3)),
    "ftruncate read-only": _with_file(os.O_RDONLY, lambda fd: _resized(fd, 3)),
    "fallocate": _with_file(os.O_RDWR, lambda fd: (os.posix_fallocate(fd, 0, 200_000), os.fstat(fd).st_size)),
    "fallocate nothing": _with_file(os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 0)),
    "seek": _with_file(os.O_RDONLY, _sought),
    "fchmod": _with_file(os.O_RDONLY, lambda fd: os.fchmod(fd, 0o600)),
    "fsync": _with_file(os.O_RDONLY, os.fsync),
    "flock": _with_file(os.O_RDONLY, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    "lock": _with_file(os.O_RDWR, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 2)),
}

TWO_PATHS: Final[dict[str, TwoPaths]] = {
    "rename": os.rename,
    "rename no replace": lambda a, b: renameat2(Path(a), Path(b), RENAME_NOREPLACE),
    "rename exchange": lambda a, b: renameat2(Path(a), Path(b), RENAME_EXCHANGE),
    "rename contradiction": lambda a, b: renameat2(Path(a), Path(b), RENAME_EXCHANGE | RENAME_NOREPLACE),
    "link": lambda a, b: os.link(a, b, follow_symlinks=False),
}
