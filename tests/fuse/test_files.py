"""Files through real system calls."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.fuse.ramfs import IOCTL_DOUBLE
from tests.fuse.served import Serve, Served
from vmfs.fuse.mount import MountOptions

MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def raises(number: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert caught.value.errno == number


def python(code: str, *args: str) -> str:
    """Run a program of its own: for mappings, which this process must not touch."""
    return subprocess.run(
        [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True, timeout=20
    ).stdout


def test_write_read_append_truncate(ram: Served) -> None:
    body = os.urandom(3 * MIB + 17)
    with open(ram / "f", "wb") as f:
        f.write(body)
    with open(ram / "f", "rb") as f:
        assert f.read() == body
    with open(ram / "f", "ab") as f:
        f.write(b"tail")
    assert os.stat(ram / "f").st_size == len(body) + 4
    os.truncate(ram / "f", 100)
    with open(ram / "f", "rb") as f:
        assert f.read() == body[:100]
    os.truncate(ram / "f", 5000)
    with open(ram / "f", "rb") as f:
        assert f.read() == body[:100] + bytes(4900)
    with open(ram / "f", "wb"):
        pass
    assert os.stat(ram / "f").st_size == 0


def test_direct_io_arrives_whole_and_aligned(ram: Served) -> None:
    fd = os.open(ram / "d", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    buf = mmap.mmap(-1, MIB)
    try:
        os.ftruncate(fd, 8 * MIB)
        buf[:] = os.urandom(MIB)
        want = buf[:]
        assert os.pwrite(fd, buf, 3 * MIB) == MIB
        assert ram.fs.sizes == [MIB], "one request of 1 MiB"
        buf[:] = bytes(MIB)
        assert os.preadv(fd, [buf], 3 * MIB) == MIB
        assert buf[:] == want
        assert ram.fs.sizes == [MIB, MIB]
        assert os.preadv(fd, [memoryview(buf)[:512]], 8 * MIB - 512) == 512
        assert os.preadv(fd, [buf], 8 * MIB) == 0
        assert os.preadv(fd, [buf], 8 * MIB - 4096) == 4096, "short at the end"
    finally:
        os.close(fd)


def test_unaligned_direct_io_arrives_as_it_is(ram: Served) -> None:
    fd = os.open(ram / "d", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwrite(fd, b"0123456789", 4091) == 10
        assert os.pread(fd, 12, 4090) == b"\x000123456789"
    finally:
        os.close(fd)


def test_payloads_are_page_aligned(ram: Served) -> None:
    seen = []
    inner = ram.fs.write_slow

    def write_slow(fh: int, buf: memoryview, offset: int, size: int) -> int:
        seen.append((ctypes.addressof(ctypes.c_char.from_buffer(buf)) % 4096, len(buf) - size >= 65536))
        return inner(fh, buf, offset, size)

    ram.fs.write_slow = write_slow  # type: ignore[method-assign]
    with open(ram / "f", "wb") as f:
        f.write(b"x" * MIB)
        f.write(b"odd")
    assert seen
    assert set(seen) == {(0, True)}


def test_two_threads_write_in_parallel(ram: Served) -> None:
    fd = os.open(ram / "p", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    os.ftruncate(fd, 2 * MIB)
    together = threading.Barrier(2, timeout=5)
    ram.fs.hooks["write"] = together.wait

    def writer(at: int) -> None:
        buf = mmap.mmap(-1, 4096)
        buf[:] = bytes([at % 251]) * 4096
        for block in range(at, 512, 2):
            os.pwrite(fd, buf, block * 4096)

    threads = [threading.Thread(target=writer, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    ram.fs.hooks.clear()
    assert not together.broken, "the kernel never had two writes under way"
    for block in range(512):
        assert os.pread(fd, 1, block * 4096) == bytes([block % 2])
    os.close(fd)


def test_fallocate_punch_zero_and_seek(ram: Served) -> None:
    fd = os.open(ram / "s", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x" * 65536, 0)
    os.posix_fallocate(fd, 65536, 65536)
    assert os.fstat(fd).st_size == 131072
    keep_and_punch = 3
    assert _libc.fallocate(fd, keep_and_punch, ctypes.c_long(16384), ctypes.c_long(16384)) == 0
    assert os.pread(fd, 3, 16383) == b"x\0\0"
    assert os.fstat(fd).st_blocks * 512 == 131072 - 16384
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 16384
    assert os.lseek(fd, 16384, os.SEEK_DATA) == 32768
    raises(errno.ENXIO, os.lseek, fd, 1 << 30, os.SEEK_DATA)
    zero_range = 0x10
    assert _libc.fallocate(fd, zero_range, ctypes.c_long(0), ctypes.c_long(10)) == 0
    assert os.pread(fd, 11, 0) == bytes(10) + b"x"
    collapse_range = 8
    assert _libc.fallocate(fd, collapse_range, ctypes.c_long(0), ctypes.c_long(4096)) == -1
    assert ctypes.get_errno() == errno.EOPNOTSUPP
    os.close(fd)


def test_copy_file_range(ram: Served) -> None:
    with open(ram / "src", "wb") as f:
        f.write(b"abc" * 100_000)
    src, dst = os.open(ram / "src", os.O_RDONLY), os.open(ram / "dst", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(src, dst, 300_000, 0, 50) == 300_000
    assert "copy_file_range" in ram.fs.calls
    assert os.pread(dst, 53, 0) == bytes(50) + b"abc"
    assert os.copy_file_range(src, dst, 10, 300_000) == 0
    os.close(src)
    os.close(dst)


def test_ioctl(ram: Served) -> None:
    fd = os.open(ram / "i", os.O_CREAT | os.O_RDWR)
    value = bytearray(struct.pack("<I", 21))
    fcntl.ioctl(fd, IOCTL_DOUBLE, value)
    assert value == struct.pack("<I", 42)
    raises(errno.ENOTTY, fcntl.ioctl, fd, 0x80045432, bytearray(4))
    os.close(fd)


def test_fsync_and_close(ram: Served) -> None:
    fd = os.open(ram / "y", os.O_CREAT | os.O_RDWR)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    assert [call for call in ram.fs.calls if call in ("fsync", "fdatasync", "flush")] == ["fsync", "fdatasync", "flush"]


def test_statfs(ram: Served) -> None:
    s = os.statvfs(ram.path)
    assert (s.f_bsize, s.f_namemax, s.f_bfree - s.f_bavail) == (4096, 255, 7)


def test_chmod_chown_utime_rdev(serve: Serve) -> None:
    ram = serve(options=MountOptions(no_dev=False))
    os.mknod(ram / "dev", stat.S_IFCHR | 0o600, os.makedev(7, 300))
    assert os.stat(ram / "dev").st_rdev == os.makedev(7, 300)
    os.mkfifo(ram / "fifo")
    os.chmod(ram / "fifo", 0o4711)
    os.chown(ram / "fifo", 12, 34)
    os.utime(ram / "fifo", ns=(-5, 1_700_000_000_123_456_789))
    s = os.stat(ram / "fifo")
    assert (s.st_uid, s.st_gid) == (12, 34)
    assert (s.st_atime_ns, s.st_mtime_ns) == (-5, 1_700_000_000_123_456_789)


def test_mode_comes_with_the_umask_taken_off(ram: Served) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(ram / "m", os.O_CREAT | os.O_RDWR, 0o666))
        os.mkdir(ram / "md")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(ram / "m").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(ram / "md").st_mode) == 0o750


def test_an_unprivileged_write_kills_suid(ram: Served) -> None:
    assert ram.negotiated.killpriv_v2
    for name in ("cached", "direct"):
        open(ram / name, "wb").close()
        os.chmod(ram / name, 0o6777)
    code = """
import os, sys
os.setgid(1000); os.setuid(1000)
os.write(os.open(sys.argv[1], os.O_WRONLY), b"x")
os.write(os.open(sys.argv[2], os.O_WRONLY | os.O_DIRECT), b"x")
try: open(sys.argv[3], "w")
except PermissionError: print("refused")
"""
    os.chmod(ram.path, 0o755)
    open(ram / "locked", "wb").close()
    os.chmod(ram / "locked", 0o600)
    for parent in ram.path.parents:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    ram.path.parent.chmod(0o755)
    assert python(code, ram / "cached", ram / "direct", ram / "locked") == "refused\n", "the kernel checks permissions"
    assert stat.S_IMODE(os.stat(ram / "cached").st_mode) == 0o777
    assert stat.S_IMODE(os.stat(ram / "direct").st_mode) == 0o777


def test_programs_run_and_can_be_forbidden_to(serve: Serve) -> None:
    for options, runs in ((MountOptions(), True), (MountOptions(no_exec=True), False)):
        ram = serve(options=options)
        shutil.copy("/bin/true", ram / "true")
        if runs:
            assert subprocess.run([ram / "true"], check=False).returncode == 0
        else:
            raises(errno.EACCES, subprocess.run, [ram / "true"], check=False)


def test_read_only(serve: Serve) -> None:
    ram = serve(options=MountOptions(read_only=True))
    raises(errno.EROFS, os.mkdir, ram / "x")


def test_unlinked_files_live_until_closed(ram: Served) -> None:
    fd = os.open(ram / "u", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"still here")
    os.unlink(ram / "u")
    assert os.pread(fd, 10, 0) == b"still here"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_o_tmpfile_is_refused_not_wedged(ram: Served) -> None:
    raises(errno.EOPNOTSUPP, os.open, ram.path, os.O_TMPFILE | os.O_RDWR)
