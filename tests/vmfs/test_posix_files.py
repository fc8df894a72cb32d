"""Open files, attributes, extended attributes, mappings, handles."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, until
from tests.vmfs.syscalls import name_to_handle, open_by_handle
from vmfs.ondisk.inode import TAIL_MAX_BYTES

_BLOCK = 64 << 10


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


def _as_nobody(folder: Path, script: str) -> str:
    """Run Python as user 99, in `folder`."""
    code = f"import os; os.setgroups([]); os.setgid(99); os.setuid(99)\n{script}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_removed_file_lives_until_it_is_closed(here: Path) -> None:
    path, content = here / "file", os.urandom(20 * _BLOCK + 7)
    before = _free(here)
    with open(path, "wb+") as file:
        file.write(content)
        file.flush()
        path.unlink()
        with open(path, "xb") as other:  # the name is free at once
            other.write(b"other")
        file.seek(0)
        assert file.read() == content
        file.write(content)
        file.flush()
        assert os.pread(file.fileno(), len(content), len(content)) == content
        assert (os.fstat(file.fileno()).st_nlink, os.fstat(file.fileno()).st_size) == (0, 2 * len(content))
        assert _free(here) <= before - 2 * len(content)
    until("its space is free", lambda: _free(here) >= before - 2 * _BLOCK, 5)
    assert path.read_bytes() == b"other"


def test_a_reader_keeps_a_file_that_was_replaced(here: Path) -> None:
    (here / "a").write_bytes(b"old" * 100_000)
    (here / "b").write_bytes(b"new" * 100_000)
    with open(here / "a", "rb") as reader:
        os.rename(here / "b", here / "a")
        assert reader.read() == b"old" * 100_000
    assert (here / "a").read_bytes() == b"new" * 100_000


def test_appends_of_two_processes_do_not_overwrite_each_other(here: Path) -> None:
    script = (
        "import os, sys\nfd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for i in range(300): os.write(fd, f'{sys.argv[1]}{i:05}'.encode() * 30 + b'\\n')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, n], cwd=here) for n in "ab"]
    assert [w.wait(60) for w in writers] == [0, 0]
    lines = (here / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n}{i:05}" * 30 for n in "ab" for i in range(300))
    assert [line for line in lines if line[0] == "a"] == sorted(line for line in lines if line[0] == "a")


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_truncating_opens(here: Path, flags: int) -> None:
    path = here / "file"
    path.write_bytes(b"x" * 3 * _BLOCK)
    with open(path, "rb") as reader:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | flags))
        assert (path.stat().st_size, path.stat().st_blocks, reader.read()) == (0, 0, b"")
    os.truncate(path, 100)
    assert path.read_bytes() == bytes(100)


def test_a_cut_tail_never_comes_back(here: Path) -> None:
    path = here / "file"
    for size in (0, 1, 511, 512, 4097, _BLOCK - 1, _BLOCK, _BLOCK + 1):
        path.write_bytes(b"x" * (2 * _BLOCK))
        os.truncate(path, size)
        os.truncate(path, 3 * _BLOCK)
        assert path.read_bytes() == b"x" * size + bytes(3 * _BLOCK - size)


def test_writes_beyond_the_end_leave_zeros(here: Path) -> None:
    with open(here / "file", "wb+", buffering=0) as file:
        for at in (10, 5000, 3 * _BLOCK + 100, 200 * _BLOCK - 1):
            file.seek(at)
            file.write(b"#")
        content = (here / "file").read_bytes()
    assert {i: content[i] for i in range(len(content)) if content[i]} == dict.fromkeys(
        (10, 5000, 3 * _BLOCK + 100, 200 * _BLOCK - 1), ord("#")
    )


def test_times_to_the_nanosecond(here: Path) -> None:
    path = here / "file"
    path.touch()
    recent = (1_700_000_000_123_456_789, 1_600_000_000_987_654_321)
    for ns in ((1, 2), recent, (-5, -1_000_000_001), (1 << 62, 4 << 60)):
        os.utime(path, ns=ns)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == ns
    changed = path.stat().st_ctime_ns
    path.chmod(0o600)
    assert path.stat().st_ctime_ns > changed
    assert path.stat().st_mtime_ns == 4 << 60
    path.write_bytes(b"x")
    assert abs(path.stat().st_mtime_ns - path.stat().st_ctime_ns) < 10**9
    os.utime(here, ns=(5, 5))
    (here / "new").touch()
    assert here.stat().st_mtime_ns > 5
    os.utime(path, ns=(7, 7))
    with open(path, "rb") as file:
        assert file.read() == b"x"
    assert path.stat().st_mtime_ns == 7


def test_a_time_that_was_set_stays_when_the_writer_closes(here: Path) -> None:
    """cp -p and rsync set the time of a file that is still open."""
    with open(here / "file", "wb") as file:
        file.write(b"x" * 5000)
        file.flush()
        file.seek(100)
        file.write(b"in place")
        file.flush()
        os.utime(file.fileno(), ns=(11, 12))
    assert (here / "file").stat().st_mtime_ns == 12


_SETID: list[tuple[str, Callable[[Path], object], int, int]] = [
    ("chown", lambda p: os.chown(p, 5, 5), 0o6755, 0o755),
    ("chown of a file without group execute", lambda p: os.chown(p, 5, 5), 0o6744, 0o2744),
    ("chmod", lambda p: p.chmod(0o6711), 0o755, 0o6711),
    ("a write by root", lambda p: p.write_bytes(b"x"), 0o4777, 0o4777),
    ("a write by another", lambda p: _as_nobody(p.parent, f"open({p.name!r}, 'r+b').write(b'x')"), 0o6777, 0o777),
    ("a truncation by another", lambda p: _as_nobody(p.parent, f"os.truncate({p.name!r}, 0)"), 0o4777, 0o777),
    ("O_TRUNC by another", lambda p: _as_nobody(p.parent, f"open({p.name!r}, 'wb')"), 0o4777, 0o777),
    ("an in-place write by another",
     lambda p: _as_nobody(p.parent, f"os.pwrite(os.open({p.name!r}, os.O_WRONLY), b'y', 1)"), 0o4777, 0o777),
]  # fmt: skip


@pytest.mark.parametrize(("what", "action", "before", "after"), _SETID, ids=[c[0] for c in _SETID])
def test_set_user_id_is_taken_away(
    here: Path, what: str, action: Callable[[Path], object], before: int, after: int
) -> None:
    path = here / "file"
    path.write_bytes(b"content")
    path.chmod(before)
    action(path)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(after)


def test_permissions_are_the_kernels_business(here: Path) -> None:
    (here / "secret").write_bytes(b"x")
    (here / "secret").chmod(0o600)
    assert "PermissionError" in _as_nobody(here, "open('secret')")
    (here / "secret").chmod(0o644)
    assert _as_nobody(here, "print(open('secret').read())") == "x\n"
    assert "PermissionError" in _as_nobody(here, "open('new', 'w')")
    assert "PermissionError" in _as_nobody(here, "os.chmod('secret', 0o777)")


def test_extended_attributes_up_to_their_limits(here: Path) -> None:
    path = here / "file"
    path.touch()
    values = {f"user.{'k' * i}": os.urandom(i) for i in (1, 50, 200)} | {"trusted.t": b"", "user.\u00fc": b"x"}
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert {n: os.getxattr(path, n) for n in os.listxattr(path)} == values
    os.setxattr(path, "user.k", b"other", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.k") == b"other"
    os.removexattr(path, "trusted.t")
    assert "trusted.t" not in os.listxattr(path)
    refused: list[tuple[int, Callable[[], object]]] = [
        (errno.EEXIST, lambda: os.setxattr(path, "user.k", b"", os.XATTR_CREATE)),
        (errno.ENODATA, lambda: os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)),
        (errno.ENODATA, lambda: os.getxattr(path, "user.none")),
        (errno.ENODATA, lambda: os.removexattr(path, "user.none")),
        (errno.ERANGE, lambda: os.setxattr(path, "user." + "k" * 251, b"")),
        (errno.ENOSPC, lambda: os.setxattr(path, "user.big", bytes(TAIL_MAX_BYTES))),
        (errno.ENOSPC, lambda: os.setxattr(path, "user.big", bytes(60_000))),
        (errno.EOPNOTSUPP, lambda: os.setxattr(path, "system.posix_acl_access", b"\2\0\0\0")),
    ]
    before = {n: os.getxattr(path, n) for n in os.listxattr(path)}
    for number, action in refused:
        with pytest.raises(OSError) as error:
            action()
        assert error.value.errno == number
    assert {n: os.getxattr(path, n) for n in os.listxattr(path)} == before
    room = TAIL_MAX_BYTES - 1000
    os.setxattr(path, "user.big", bytes(room))
    assert os.getxattr(path, "user.big") == bytes(room)
    os.setxattr(here, "user.of-a-directory", b"d")
    assert os.getxattr(here, "user.of-a-directory") == b"d"


def test_a_shared_mapping_is_written_back(here: Path) -> None:
    path = here / "file"
    path.write_bytes(bytes(3 * _BLOCK))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 3 * _BLOCK) as mapped:
        mapped[100:105] = b"first"
        mapped[2 * _BLOCK + 5 : 2 * _BLOCK + 9] = b"last"
        mapped.flush()
        assert path.read_bytes()[100:105] == b"first"
        mapped[_BLOCK : _BLOCK + 3] = b"mid"
    content = path.read_bytes()
    assert [content[at : at + 4] for at in (100, _BLOCK, 2 * _BLOCK + 5)] == [b"firs", b"mid\0", b"last"]


def test_locks_between_processes_of_one_host(here: Path) -> None:
    with open(here / "file", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        for kind in ("flock", "lockf"):
            script = f"import fcntl; fcntl.{kind}(open('file', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=False)
            assert "BlockingIOError" in done.stderr


def test_a_handle_opens_its_file_after_a_remount(datastore: Datastore) -> None:
    """As an NFS server's clients hold them: for ever, and never for another file."""
    mount = datastore.mount("esx1")
    (mount / "d").mkdir()
    for i in range(20):
        (mount / "d" / f"f{i}").write_bytes(b"%d" % i)
    handles = {i: name_to_handle(mount / "d" / f"f{i}") for i in range(20)}
    directory = name_to_handle(mount / "d")
    for again in range(2):
        for i, handle in handles.items():
            fd = open_by_handle(mount.path, handle)
            assert os.read(fd, 10) == b"%d" % i
            os.close(fd)
        fd = open_by_handle(mount.path, directory, os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(fd)) == sorted(f"f{i}" for i in range(20))
        os.close(fd)
        if not again:
            os.rename(mount / "d" / "f0", mount / "moved")
            os.rename(mount / "moved", mount / "d" / "f0")
            mount.umount()
            mount = datastore.mount("esx1")
    for i in range(10):
        (mount / "d" / f"f{i}").unlink()
    mount.umount()
    mount = datastore.mount("esx1")
    for i in range(30):  # takes the places of those that were removed
        (mount / "d" / f"new{i}").write_bytes(b"another file")
    for i, handle in handles.items():
        if i < 10:
            with pytest.raises(OSError) as stale:
                open_by_handle(mount.path, handle)
            assert stale.value.errno == errno.ESTALE
        else:
            fd = open_by_handle(mount.path, handle)
            assert os.read(fd, 10) == b"%d" % i
            os.close(fd)


# INIT flags of linux/fuse.h that an older kernel does not offer.
_ATOMIC_O_TRUNC, _EXPORT_SUPPORT, _READDIRPLUS, _MAX_PAGES = 1 << 3, 1 << 4, 3 << 13, 1 << 22
_KILLPRIV_V2, _SETXATTR_EXT, _PARALLEL, _ASYNC_DIO, _AUTO_INVAL = 1 << 28, 1 << 29, 1 << 18, 1 << 15, 1 << 12
_ALL_NEW = _ATOMIC_O_TRUNC | _EXPORT_SUPPORT | _READDIRPLUS | _MAX_PAGES | _KILLPRIV_V2 | _SETXATTR_EXT | _PARALLEL


_SMALL = _MAX_PAGES | _ASYNC_DIO | _AUTO_INVAL


@pytest.mark.parametrize("mask", [_ALL_NEW, _SMALL], ids=["old kernel", "small requests"])
def test_without_what_newer_kernels_offer(datastore: Datastore, mask: int) -> None:
    mount = datastore.mount("esx1", "-o", f"init_mask={mask:#x}")
    path, content = mount / "file", os.urandom(3_000_001)
    path.write_bytes(content)
    assert path.read_bytes() == content
    with open(path, "wb") as file:
        assert path.stat().st_size == 0
        file.write(content[:100_000])
    path.chmod(0o4777)
    os.setxattr(path, "user.a", b"b")
    mount.path.chmod(0o777)
    assert _as_nobody(mount.path, "open('file', 'r+b').write(b'x')") == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert os.getxattr(path, "user.a") == b"b"
    for i in range(300):
        (mount / f"n{i}").touch()
    assert len(os.listdir(mount.path)) == 301
    assert {p.stat().st_size for p in mount.path.iterdir()} == {0, 100_000}
    memory = mmap.mmap(-1, 1 << 20)
    memory.write(content[: 1 << 20])
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    assert os.pwritev(fd, [memory], 4096) == 1 << 20
    os.close(fd)
    assert path.read_bytes()[4096:] == content[: 1 << 20]


def test_a_read_only_mount(datastore: Datastore) -> None:
    first: Mount = datastore.mount("esx1")
    (first / "file").write_bytes(b"content")
    first.umount()
    mount = datastore.mount("esx1", "-o", "ro")
    assert (mount / "file").read_bytes() == b"content"
    actions: list[Callable[[], object]] = [
        lambda: (mount / "file").write_bytes(b""), (mount / "new").touch, (mount / "file").unlink,
        (mount / "d").mkdir, lambda: (mount / "file").chmod(0), lambda: os.utime(mount / "file"),
        lambda: os.setxattr(mount / "file", "user.a", b""), lambda: os.truncate(mount / "file", 0),
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(OSError) as error:
            action()
        assert error.value.errno == errno.EROFS
