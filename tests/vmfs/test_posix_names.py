"""Names: creating, linking, renaming, removing, listing, and what is refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vmfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from vmfs.core.slowwrite import FILE_MAX_BYTES
from vmfs.ondisk.inode import TAIL_MAX_BYTES

_LONGEST = "n" * 255


def _make(d: Path) -> None:
    """What every case of the table finds."""
    (d / "file").write_bytes(b"file")
    (d / "other").write_bytes(b"other")
    (d / "dir").mkdir()
    (d / "full").mkdir()
    (d / "full" / "inner").write_bytes(b"inner")
    (d / "link").symlink_to("file")
    (d / "loop").symlink_to("loop")
    os.mkfifo(d / "fifo")


_REFUSED: list[tuple[str, int, Callable[[Path], object]]] = [
    ("open what is not there", errno.ENOENT, lambda d: os.open(d / "none", os.O_RDONLY)),
    ("open an empty name", errno.ENOENT, lambda d: os.open("", os.O_RDONLY)),
    ("a file as a directory", errno.ENOTDIR, lambda d: os.open(d / "file" / "x", os.O_RDONLY)),
    ("open a directory for writing", errno.EISDIR, lambda d: os.open(d / "dir", os.O_WRONLY)),
    ("open a loop of links", errno.ELOOP, lambda d: os.open(d / "loop", os.O_RDONLY)),
    ("O_NOFOLLOW", errno.ELOOP, lambda d: os.open(d / "link", os.O_RDONLY | os.O_NOFOLLOW)),
    ("O_DIRECTORY", errno.ENOTDIR, lambda d: os.open(d / "file", os.O_RDONLY | os.O_DIRECTORY)),
    ("O_EXCL", errno.EEXIST, lambda d: os.open(d / "file", os.O_CREAT | os.O_EXCL)),
    ("O_EXCL on a link", errno.EEXIST, lambda d: os.open(d / "link", os.O_CREAT | os.O_EXCL)),
    ("create in what is not there", errno.ENOENT, lambda d: os.open(d / "no" / "x", os.O_CREAT)),
    ("a name of 256 bytes", errno.ENAMETOOLONG, lambda d: os.open(d / ("n" * 256), os.O_CREAT)),
    ("look up 256 bytes", errno.ENAMETOOLONG, lambda d: os.stat(d / ("n" * 256))),
    ("256 bytes of two-byte letters", errno.ENAMETOOLONG, lambda d: os.mkdir(d / ("\u00fc" * 128))),
    ("mkdir on a file", errno.EEXIST, lambda d: os.mkdir(d / "file")),
    ("mkdir on a directory", errno.EEXIST, lambda d: os.mkdir(d / "dir")),
    ("mkdir under a file", errno.ENOTDIR, lambda d: os.mkdir(d / "file" / "x")),
    ("rmdir of a file", errno.ENOTDIR, lambda d: os.rmdir(d / "file")),
    ("rmdir of a full directory", errno.ENOTEMPTY, lambda d: os.rmdir(d / "full")),
    ("rmdir of what is not there", errno.ENOENT, lambda d: os.rmdir(d / "none")),
    ("rmdir .", errno.EINVAL, lambda d: os.rmdir(f"{d}/dir/.")),
    ("unlink a directory", errno.EISDIR, lambda d: os.unlink(d / "dir")),
    ("unlink what is not there", errno.ENOENT, lambda d: os.unlink(d / "none")),
    ("link to a directory", errno.EPERM, lambda d: os.link(d / "dir", d / "x")),
    ("link on a name", errno.EEXIST, lambda d: os.link(d / "file", d / "other")),
    ("link to nothing", errno.ENOENT, lambda d: os.link(d / "none", d / "x")),
    ("link out of the volume", errno.EXDEV, lambda d: os.link(d / "file", "/tmp/vmfs-never-made")),
    ("symlink on a name", errno.EEXIST, lambda d: os.symlink("x", d / "file")),
    ("an empty symlink", errno.ENOENT, lambda d: os.symlink("", d / "x")),
    ("readlink of a file", errno.EINVAL, lambda d: os.readlink(d / "file")),
    ("rename nothing", errno.ENOENT, lambda d: os.rename(d / "none", d / "x")),
    ("rename a file over a directory", errno.EISDIR, lambda d: os.rename(d / "file", d / "dir")),
    ("rename a directory over a file", errno.ENOTDIR, lambda d: os.rename(d / "dir", d / "file")),
    ("rename over a full directory", errno.ENOTEMPTY, lambda d: os.rename(d / "dir", d / "full")),
    ("rename into itself", errno.EINVAL, lambda d: os.rename(d / "dir", d / "dir" / "x")),
    ("rename to 256 bytes", errno.ENAMETOOLONG, lambda d: os.rename(d / "file", d / ("n" * 256))),
    ("rename out of the volume", errno.EXDEV, lambda d: os.rename(d / "file", "/tmp/vmfs-never-made")),
    ("NOREPLACE", errno.EEXIST, lambda d: renameat2(d / "file", d / "other", RENAME_NOREPLACE)),
    ("EXCHANGE with nothing", errno.ENOENT, lambda d: renameat2(d / "file", d / "none", RENAME_EXCHANGE)),
    ("WHITEOUT", errno.EINVAL, lambda d: renameat2(d / "file", d / "x", RENAME_WHITEOUT)),
    ("NOREPLACE and EXCHANGE", errno.EINVAL,
     lambda d: renameat2(d / "file", d / "other", RENAME_NOREPLACE | RENAME_EXCHANGE)),
    ("exchange with an ancestor", errno.EINVAL, lambda d: renameat2(d / "full", d / "full" / "inner", RENAME_EXCHANGE)),
    ("list a file", errno.ENOTDIR, lambda d: os.listdir(d / "file")),
    ("truncate a directory", errno.EISDIR, lambda d: os.truncate(d / "dir", 0)),
    ("truncate below zero", errno.EINVAL, lambda d: os.truncate(d / "file", -1)),
    ("truncate beyond all", errno.EFBIG, lambda d: os.truncate(d / "file", FILE_MAX_BYTES + 1)),
]  # fmt: skip


def _tree(d: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(d.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(d))] = (status.st_mode, status.st_nlink, content)
    return found


def test_what_is_refused_changes_nothing(here: Path) -> None:
    _make(here)
    before = _tree(here)
    wrong = []
    for what, number, action in _REFUSED:
        try:
            action(here)
            wrong.append(f"{what}: succeeded")
        except OSError as error:
            if error.errno != number:
                wrong.append(f"{what}: {errno.errorcode[error.errno or 0]} instead of {errno.errorcode[number]}")
        if _tree(here) != before:
            wrong.append(f"{what}: changed something")
            before = _tree(here)
    assert not wrong, "\n".join(wrong)


def test_renames(here: Path) -> None:
    _make(here)
    os.rename(here / "file", here / "dir" / "moved")
    assert (here / "dir" / "moved").read_bytes() == b"file"
    os.rename(here / "dir" / "moved", here / "other")
    assert (here / "other").read_bytes() == b"file"
    renameat2(here / "other", here / "new", RENAME_NOREPLACE)
    renameat2(here / "new", here / "full", RENAME_EXCHANGE)
    assert (here / "full").read_bytes() == b"file"
    assert (here / "new" / "inner").read_bytes() == b"inner"
    links = here.stat().st_nlink
    os.rename(here / "new", here / "dir" / "sub")
    assert here.stat().st_nlink == links - 1
    assert (here / "dir").stat().st_nlink == 3
    assert os.stat(here / "dir" / "sub" / "..").st_ino == (here / "dir").stat().st_ino
    (here / "empty").mkdir()
    os.rename(here / "dir" / "sub", here / "empty")
    assert os.listdir(here / "empty") == ["inner"]
    assert (here / "dir").stat().st_nlink == 2
    (here / "a").mkdir()
    (here / "a" / "x").touch()
    renameat2(here / "a" / "x", here / "empty", RENAME_EXCHANGE)  # a file and a directory of two directories
    assert ((here / "a").stat().st_nlink, here.stat().st_nlink) == (3, 2 + sum(p.is_dir() for p in here.iterdir()))
    os.link(here / "full", here / "same")
    os.rename(here / "full", here / "same")  # two names of one file: nothing happens
    assert (here / "full").stat().st_nlink == 2
    os.rename(here / "link", here / "fifo")
    assert os.readlink(here / "fifo") == "file"


def test_hard_links_count(here: Path) -> None:
    (here / "a").write_bytes(b"content")
    for i in range(50):
        os.link(here / "a", here / f"l{i}")
    assert (here / "a").stat().st_nlink == 51
    (here / "a").unlink()
    (here / "l49").write_bytes(b"changed")
    assert {(here / f"l{i}").read_bytes() for i in range(50)} == {b"changed"}
    assert len({(here / f"l{i}").stat().st_ino for i in range(50)}) == 1
    for i in range(50):
        assert (here / f"l{i}").stat().st_nlink == 50 - i
        (here / f"l{i}").unlink()
    os.symlink("target", here / "s")
    os.link(here / "s", here / "t", follow_symlinks=False)
    assert (os.readlink(here / "t"), os.lstat(here / "t").st_nlink) == ("target", 2)


def test_symbolic_links_up_to_their_limit(here: Path) -> None:
    for length in (1, 59, 60, 255, 1000, 2000):
        path = here / f"s{length}"
        path.symlink_to("x" * length)
        assert os.readlink(path) == "x" * length
        assert path.lstat().st_size == length
    (here / "longest").symlink_to("y" * TAIL_MAX_BYTES)
    assert os.readlink(here / "longest") == "y" * TAIL_MAX_BYTES
    with pytest.raises(OSError, match="too long") as refused:
        (here / "longer").symlink_to("y" * (TAIL_MAX_BYTES + 1))
    assert refused.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("name", [_LONGEST, "\u00fc" * 127, "a b\n\t\\'\"", "\udcff\udc80", "...", "-rf"])
def test_names_are_bytes(here: Path, name: str) -> None:
    (here / name).write_bytes(b"x")
    os.rename(here / name, here / "y")
    os.rename(here / "y", here / name)
    assert os.listdir(here) == [name]
    (here / name).unlink()
    assert os.listdir(here) == []


def test_special_files_keep_their_numbers(here: Path) -> None:
    os.mknod(here / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(here / "b", stat.S_IFBLK | 0o640, os.makedev(4000, 70_000))
    os.mknod(here / "s", stat.S_IFSOCK | 0o777)
    os.mkfifo(here / "p")
    assert ((here / "c").stat().st_rdev, (here / "b").stat().st_rdev) == (os.makedev(1, 3), os.makedev(4000, 70_000))
    assert [stat.S_IFMT((here / n).stat().st_mode) for n in "sp"] == [stat.S_IFSOCK, stat.S_IFIFO]


def test_sticky_and_set_group_id_directories(here: Path) -> None:
    os.chown(here, 0, 4711)
    here.chmod(0o3777)
    (here / "file").touch()
    (here / "dir").mkdir()
    assert ((here / "file").stat().st_gid, (here / "dir").stat().st_gid) == (4711, 4711)
    assert (here / "dir").stat().st_mode & stat.S_ISGID
    assert not (here / "file").stat().st_mode & stat.S_ISGID
    script = "import os; os.setgid(99); os.setuid(99); open('mine', 'w'); os.unlink('file')"
    done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr, "only its owner removes a file from a sticky directory"
    assert (here / "file").exists()
    assert ((here / "mine").stat().st_uid, (here / "mine").stat().st_gid) == (99, 4711)


def test_an_empty_directory_is_removed_with_its_users_in_it(here: Path) -> None:
    (here / "d").mkdir()
    fd = os.open(here / "d", os.O_RDONLY)
    try:
        (here / "d").rmdir()
        with pytest.raises(FileNotFoundError):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        with pytest.raises(FileNotFoundError):
            os.mkdir("x", dir_fd=fd)
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
    finally:
        os.close(fd)


ENTRIES = 5000


def test_a_large_directory_is_listed_whole_while_it_changes(here: Path) -> None:
    """Each name that stays is listed once, whatever comes and goes meanwhile."""
    keep = {f"keep-{i}" for i in range(ENTRIES)}
    file = here.parent / f"{here.name}-file"
    file.touch()
    for name in sorted(keep):
        os.link(file, here / name)
    assert sorted(os.listdir(here)) == sorted(keep)
    stop = threading.Event()
    problems: list[BaseException] = []

    def churn() -> None:
        i = 0
        try:
            while not stop.is_set():
                os.link(file, here / f"come-{i}")
                if i >= 40:
                    os.unlink(here / f"come-{i - 40}")
                i += 1
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(6):
            names = [entry.name for entry in os.scandir(here)]
            assert len(names) == len(set(names))
            assert keep <= set(names)
    finally:
        stop.set()
        thread.join()
    assert not problems
    with os.scandir(here) as listing:
        for entry in listing:
            os.unlink(here / entry.name)  # as `rm -r` does: removed while it is read
    assert os.listdir(here) == []
    here.rmdir()
