"""The rows of docs/posix.md that no other test looks at: what a mount keeps to its limits, and how it says no."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount
from vmfs.core.slowwrite import FILE_MAX_BYTES

_BLOCK = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]

# fallocate(2), linux/falloc.h
_COLLAPSE_RANGE, _INSERT_RANGE, _UNSHARE_RANGE = 0x08, 0x20, 0x40
# linux/fs.h
_FS_IOC_SETFLAGS, _FICLONE = 0x40086602, 0x40049409
_FS_IMMUTABLE_FL, _FS_COMPR_FL = 0x10, 0x04


@pytest.fixture
def file(here: Path) -> Iterator[tuple[Path, int]]:
    """A file of three blocks, and a descriptor of it."""
    path = here / "file"
    path.write_bytes(b"content." * (3 * _BLOCK // 8))
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


def _refuses(number: int, action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as refused:
        action()
    assert errno.errorcode[refused.value.errno or 0] == errno.errorcode[number]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_a_file_of_488_tib(here: Path) -> None:
    assert FILE_MAX_BYTES >> 40 == 488
    with open(here / "huge", "wb+", buffering=0) as huge:
        os.ftruncate(huge.fileno(), FILE_MAX_BYTES)
        assert os.fstat(huge.fileno()).st_blocks == 0
        assert os.pwrite(huge.fileno(), b"end", FILE_MAX_BYTES - 3) == 3
        assert os.pread(huge.fileno(), 10, FILE_MAX_BYTES - 3) == b"end"
        assert os.pread(huge.fileno(), 10, 1 << 47) == bytes(10)
        assert os.lseek(huge.fileno(), 0, os.SEEK_DATA) >= FILE_MAX_BYTES - _BLOCK * 16
        _refuses(errno.EFBIG, lambda: os.pwrite(huge.fileno(), b"beyond", FILE_MAX_BYTES))
        assert os.fstat(huge.fileno()).st_size == FILE_MAX_BYTES


def test_ways_to_change_a_file_that_are_not_kept(file: tuple[Path, int], here: Path) -> None:
    path, fd = file
    before = path.read_bytes()
    for mode in (_COLLAPSE_RANGE, _INSERT_RANGE, _UNSHARE_RANGE):
        _refuses(errno.EOPNOTSUPP, lambda mode=mode: _fallocate(fd, mode, 0, _BLOCK))
    with open(here / "other", "wb") as other:
        _refuses(errno.EOPNOTSUPP, lambda: fcntl.ioctl(other.fileno(), _FICLONE, fd))
    _refuses(errno.EOPNOTSUPP, lambda: os.open(here, os.O_TMPFILE | os.O_RDWR))
    for flag in (_FS_IMMUTABLE_FL, _FS_COMPR_FL):
        _refuses(errno.ENOTTY, lambda flag=flag: fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flag)))
    assert path.read_bytes() == before


def test_copies_within_the_kernel_fall_back(file: tuple[Path, int], here: Path) -> None:
    path, fd = file
    with open(here / "copied", "wb") as target:
        assert os.copy_file_range(fd, target.fileno(), 100_000, 0, 0) == 100_000
        target.seek(100_000)
        assert os.sendfile(target.fileno(), fd, 100_000, 96_608) == 96_608
    assert (here / "copied").read_bytes() == path.read_bytes()
    subprocess.run(["cp", "--reflink=auto", "--sparse=auto", "-a", path, here / "cp"], check=True)
    assert (here / "cp").read_bytes() == path.read_bytes()


def test_names_that_differ_in_case_are_two(here: Path) -> None:
    (here / "name").write_text("small")
    (here / "NAME").write_text("large")
    assert ((here / "name").read_text(), len(os.listdir(here))) == ("small", 2)


def test_fifos_and_sockets_work(here: Path) -> None:
    os.mkfifo(here / "fifo")
    with subprocess.Popen(["cat", here / "fifo"], stdout=subprocess.PIPE) as reader:
        (here / "fifo").write_bytes(b"through")
        assert reader.communicate(timeout=60)[0] == b"through"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        folder = os.open(here, os.O_PATH)  # a socket's path has 107 bytes at most
        server.bind(f"/proc/self/fd/{folder}/socket")
        server.listen()
        client.connect(f"/proc/self/fd/{folder}/socket")
        client.sendall(b"hello")
        with server.accept()[0] as accepted:
            assert accepted.recv(10) == b"hello"
        os.close(folder)
    assert stat.S_ISSOCK((here / "socket").stat().st_mode)


def test_devices_open_where_the_mount_allows_it(datastore: Datastore) -> None:
    mount: Mount = datastore.mount("esx1")
    os.mknod(mount / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    _refuses(errno.EACCES, lambda: os.open(mount / "zero", os.O_RDONLY))
    mount.umount()
    mount = datastore.mount("esx1", "-o", "dev")
    with open(mount / "zero", "rb", buffering=0) as zero:
        assert zero.read(5) == bytes(5)


def test_access_control_lists_and_capabilities_are_refused(file: tuple[Path, int], here: Path) -> None:
    path, _ = file
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", tag, 6, -1) for tag in (1, 4, 32))
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    for where, name, value in (
        (path, "system.posix_acl_access", acl), (here, "system.posix_acl_default", acl),
        (path, "security.capability", capability), (path, "system.other", b"x"),
    ):  # fmt: skip
        _refuses(errno.EOPNOTSUPP, lambda w=where, n=name, v=value: os.setxattr(w, n, v))
        assert name not in os.listxattr(where)
    os.setxattr(path, "security.azekura", b"kept")
    assert os.getxattr(path, "security.azekura") == b"kept"


def test_times_at_the_ends_of_what_is_kept(here: Path) -> None:
    path = here / "file"
    path.touch()
    ends = (-(1 << 63), (1 << 63) - 1)  # the years 1677 and 2262
    os.utime(path, ns=ends)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == ends
    for beyond, kept in ((1 << 40, ends[1]), (-(1 << 40), ends[0])):
        os.utime(path, (beyond, beyond))
        assert path.stat().st_mtime_ns == kept
    os.utime(path, ns=(7, 7))
    with open(path, "rb") as opened:
        opened.read()
    os.listdir(here)
    assert path.stat().st_atime_ns == 7, "reading would write"


def test_open_file_description_locks(file: tuple[Path, int]) -> None:
    path, fd = file
    whole = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
    other = os.open(path, os.O_RDWR)
    try:
        _refuses(errno.EAGAIN, lambda: fcntl.fcntl(other, fcntl.F_OFD_SETLK, whole))
        part = struct.pack("hhqqi", fcntl.F_UNLCK, os.SEEK_SET, 100, 50, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, part)
        free = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 100, 50, 0)
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, free)
    finally:
        os.close(other)


def test_a_private_mapping_changes_nothing(file: tuple[Path, int]) -> None:
    path, fd = file
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE) as mapped:
        mapped[:3] = b"new"
        assert mapped[:8] == b"newtent."
        mapped.flush()
    assert path.read_bytes()[:8] == b"content."


def test_space_is_told_and_bounds_the_number_of_files(here: Path) -> None:
    found = os.statvfs(here)
    assert 0 < found.f_bfree <= found.f_blocks
    assert 0 < found.f_ffree <= found.f_files
    assert found.f_namemax == 255
    assert sys.maxsize > found.f_blocks * found.f_frsize > 3 << 30
