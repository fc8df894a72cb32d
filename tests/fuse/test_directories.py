"""Names, directories, links and attributes through real system calls."""

import ctypes
import errno
import os
import time
from pathlib import Path

import pytest

from tests.fuse.served import Served
from tests.fuse.test_files import raises
from vmfs.fuse.contract import Context

AT_FDCWD = -100
CTX = Context(0, 0, 0)
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: str, new: str, flags: int) -> int:
    """0 or the errno."""
    done = _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def test_three_thousand_entries(ram: Served) -> None:
    names = {f"entry-{number:04}-{'x' * (number % 200)}" for number in range(3000)}
    for name in names:
        ram.fs.mknod(CTX, 1, name.encode(), 0o100644, 0)
    with os.scandir(ram.path) as entries:
        found = [(entry.name, entry.inode(), entry.stat().st_ino) for entry in entries]
    assert len(found) == 3000
    assert {name for name, _, _ in found} == names
    assert all(listed == there for _, listed, there in found)


def drop_caches() -> None:
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("2")


def test_lookup_counts_balance(ram: Served) -> None:
    """What readdirplus handed out but could not pack is given back at once, the rest when the kernel drops it."""
    for number in range(500):
        ram.fs.mknod(CTX, 1, b"n%03d" % number, 0o100644, 0)
    ram.fs.lookups.clear()
    with os.scandir(ram.path) as entries:
        assert sum(1 for _ in entries) == 500
    assert max(ram.fs.lookups.values()) == 1
    end = time.monotonic() + 5
    while any(ram.fs.lookups.values()) and time.monotonic() < end:
        drop_caches()
        time.sleep(0.02)
    assert not any(ram.fs.lookups.values())


def test_rename_and_its_flags(ram: Served) -> None:
    for name in ("a", "b"):
        with open(ram / name, "w") as f:
            f.write(name)
    assert renameat2(ram / "a", ram / "b", 1) == errno.EEXIST
    assert renameat2(ram / "a", ram / "b", 2) == 0
    assert (Path(ram / "a").read_text(), Path(ram / "b").read_text()) == ("b", "a")
    assert renameat2(ram / "a", ram / "b", 4) == errno.EINVAL
    os.mkdir(ram / "dir")
    os.rename(ram / "a", ram / "dir/c")
    os.rename(ram / "dir/c", ram / "b")
    assert os.listdir(ram / "dir") == []
    assert Path(ram / "b").read_text() == "b"


def test_directories(ram: Served) -> None:
    os.makedirs(ram / "x/y/z")
    assert os.stat(ram / "x").st_nlink == 3
    raises(errno.ENOTEMPTY, os.rmdir, ram / "x/y")
    raises(errno.EEXIST, os.mkdir, ram / "x")
    raises(errno.ENOENT, os.stat, ram / "nothing")
    raises(errno.ENOTDIR, os.listdir, __file__)
    os.rmdir(ram / "x/y/z")
    fd = os.open(ram / "x", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    assert "fsyncdir" in ram.fs.calls


def test_links(ram: Served) -> None:
    os.symlink("to/" + "nowhere" * 100, ram / "sym")
    assert os.readlink(ram / "sym") == "to/" + "nowhere" * 100
    with open(ram / "one", "w") as f:
        f.write("same")
    os.link(ram / "one", ram / "two")
    assert os.stat(ram / "one").st_nlink == 2
    assert os.path.samefile(ram / "one", ram / "two")
    os.unlink(ram / "one")
    assert os.stat(ram / "two").st_nlink == 1


@pytest.mark.parametrize(("length", "fine"), [(255, True), (256, False)])
def test_longest_name(ram: Served, length: int, fine: bool) -> None:
    name = "n" * length
    if fine:
        os.mkdir(ram / name)
        assert os.listdir(ram.path) == [name]
    else:
        raises(errno.ENAMETOOLONG, os.mkdir, ram / name)
        raises(errno.ENAMETOOLONG, os.stat, ram / name)


def test_xattrs(ram: Served) -> None:
    open(ram / "f", "wb").close()
    os.setxattr(ram / "f", "user.a", b"1" * 5000)
    os.setxattr(ram / "f", "user.b", b"", os.XATTR_CREATE)
    raises(errno.EEXIST, os.setxattr, ram / "f", "user.b", b"2", os.XATTR_CREATE)
    raises(errno.ENODATA, os.setxattr, ram / "f", "user.c", b"2", os.XATTR_REPLACE)
    assert sorted(os.listxattr(ram / "f")) == ["user.a", "user.b"]
    assert os.getxattr(ram / "f", "user.a") == b"1" * 5000
    os.removexattr(ram / "f", "user.a")
    raises(errno.ENODATA, os.getxattr, ram / "f", "user.a")
    acl = b"\2\0\0\0" + b"\1\0\6\0\xff\xff\xff\xff" + b"\4\0\4\0\xff\xff\xff\xff" + b"\x20\0\4\0\xff\xff\xff\xff"
    raises(errno.EOPNOTSUPP, os.setxattr, ram / "f", "system.posix_acl_access", acl)


class Handle(ctypes.Structure):
    """struct file_handle of open_by_handle_at(2)."""

    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def handle_of(path: str) -> Handle:
    handle, mount_id = Handle(bytes=128), ctypes.c_int()
    assert _libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0) == 0
    return handle


def test_file_handles_open_by_number_and_generation(ram: Served) -> None:
    """What an NFS server does: a handle outlives the kernel's caches, never opens another file."""
    os.makedirs(ram / "deep/er")
    with open(ram / "deep/er/f", "w") as f:
        f.write("by handle")
    handle, directory = handle_of(ram / "deep/er/f"), handle_of(ram / "deep/er")
    root = os.open(ram.path, os.O_RDONLY)
    drop_caches()
    fd = _libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
    assert fd >= 0
    assert os.read(fd, 20) == b"by handle"
    os.close(fd)
    fd = _libc.open_by_handle_at(root, ctypes.byref(directory), os.O_RDONLY)
    assert fd >= 0
    assert os.readlink(f"/proc/self/fd/{fd}") == ram / "deep/er", "its parents were found through '..'"
    os.close(fd)
    ino = os.stat(ram / "deep/er/f").st_ino
    os.unlink(ram / "deep/er/f")
    drop_caches()
    reused = ram.fs.nodes[1]
    ram.fs.nodes[ino] = type(reused)(ino, 2, 0o100644, 0, 0, size=3)
    assert _libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY) == -1
    assert ctypes.get_errno() == errno.ESTALE
    os.close(root)
