"""What one host does, the other sees within a second."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vmfs.datastore import Mount, until

SEEN_SECONDS = 1.0
_MEGABYTE = 1 << 20


def _holds(path: Path, content: bytes) -> Callable[[], bool]:
    return lambda: path.read_bytes() == content


def _holds_at(fd: int, offset: int, content: bytes) -> Callable[[], bool]:
    return lambda: os.pread(fd, len(content), offset) == content


def _has_size(path: Path, size: int) -> Callable[[], bool]:
    return lambda: path.stat().st_size == size


def _lists(directory: Path, names: list[str]) -> Callable[[], bool]:
    return lambda: sorted(p.name for p in directory.iterdir()) == names


def _fails(action: Callable[[], object], kind: type[OSError]) -> bool:
    try:
        action()
    except kind:
        return True
    return False


def test_a_closed_file_is_read_on_the_other_host(here: Path, esx1: Mount, esx2: Mount) -> None:
    there = esx2.path / here.name
    until("the directory", there.is_dir, SEEN_SECONDS)
    slowest = 0.0
    for i in range(5):
        content = os.urandom(200_001 + i)
        (here / f"file{i}").write_bytes(content)
        path = there / f"file{i}"
        slowest = max(slowest, until(f"{path} has its content", _holds(path, content), SEEN_SECONDS))
    print(f"seen after {slowest:.3f} s at most")


def test_changed_content_replaces_what_the_other_kernel_has_cached(here: Path, esx2: Mount) -> None:
    there = esx2.path / here.name / "file"
    (here / "file").write_bytes(b"old" * 50_000)
    until("the first content", _holds(there, b"old" * 50_000), SEEN_SECONDS)
    for content in (b"new" * 50_000, b"mew" * 50_000, b"longer" * 50_000, b"s"):
        (here / "file").write_bytes(content)
        until(f"{content[:6]!r}", _holds(there, content), SEEN_SECONDS)


def test_an_overwrite_in_place_of_an_open_file_is_seen(here: Path, esx2: Mount) -> None:
    """Published without close or fsync: the writer keeps the file open, as a hypervisor does."""
    there = esx2.path / here.name / "disk"
    with open(here / "disk", "wb+", buffering=0) as disk:
        disk.write(bytes(_MEGABYTE))
        until("zeros", _has_size(there, _MEGABYTE), SEEN_SECONDS)
        with open(there, "rb", buffering=0) as reader:
            for i in range(1, 4):
                mark = b"%d" % i * 4096
                disk.seek(123_456)
                disk.write(mark)
                until("in place", _holds_at(reader.fileno(), 123_456, mark), SEEN_SECONDS)
                end = disk.seek(0, os.SEEK_END)
                disk.write(mark)
                until("growth", _has_size(there, end + 4096), SEEN_SECONDS)
                until("the tail", _holds_at(reader.fileno(), end, mark), SEEN_SECONDS)


def test_names_and_attributes_are_seen(here: Path, esx2: Mount) -> None:
    there = esx2.path / here.name
    until("the directory", there.is_dir, SEEN_SECONDS)
    steps: list[tuple[str, Callable[[], object], Callable[[], bool]]] = [
        ("mkdir", (here / "d").mkdir, (there / "d").is_dir),
        ("create", lambda: (here / "f").write_bytes(b"x"), _lists(there, ["d", "f"])),
        ("chmod", lambda: (here / "f").chmod(0o640), lambda: stat.S_IMODE((there / "f").stat().st_mode) == 0o640),
        ("chown", lambda: os.chown(here / "f", 7, 8), lambda: (there / "f").stat().st_uid == 7),
        ("rename", lambda: (here / "f").rename(here / "g"), (there / "g").exists),
        ("the old name", lambda: None, lambda: not (there / "f").exists()),
        ("move", lambda: (here / "g").rename(here / "d" / "g"), _lists(there / "d", ["g"])),
        ("symlink", lambda: (here / "s").symlink_to("d/g"), _holds(there / "s", b"x")),
        ("link", lambda: (here / "l").hardlink_to(here / "d" / "g"), lambda: (there / "l").stat().st_nlink == 2),
        ("times", lambda: os.utime(here / "l", ns=(1, 123)), lambda: (there / "l").stat().st_mtime_ns == 123),
        ("xattr", lambda: os.setxattr(here / "l", "user.a", b"v"), lambda: os.listxattr(there / "l") == ["user.a"]),
        ("truncate", lambda: os.truncate(here / "l", 70_000), _has_size(there / "l", 70_000)),
        ("unlink", (here / "l").unlink, lambda: not (there / "l").exists()),
        ("rmtree", lambda: ((here / "d" / "g").unlink(), (here / "d").rmdir()), lambda: not (there / "d").exists()),
        ("a dangling link", lambda: None, lambda: _fails((there / "s").read_bytes, FileNotFoundError)),
    ]  # fmt: skip
    for what, action, seen in steps:
        action()
        took = until(what, seen, SEEN_SECONDS)
        print(f"{what}: {took:.3f} s")


def test_both_hosts_change_one_directory_at_once(here: Path, esx2: Mount) -> None:
    there = esx2.path / here.name
    until("the directory", there.is_dir, SEEN_SECONDS)
    count = 300
    script = "import sys; [open(f'{sys.argv[1]}{i}', 'x').write(str(i)) for i in range(int(sys.argv[2]))]"
    makers = [subprocess.Popen(["python3", "-c", script, p, str(count)]) for p in (f"{here}/a", f"{there}/b")]
    assert [m.wait(60) for m in makers] == [0, 0]
    names = sorted(f"{n}{i}" for n in "ab" for i in range(count))
    for directory in (here, there):
        until("every name", _lists(directory, names), SEEN_SECONDS)
        assert all((directory / name).read_text() == name[1:] for name in names[::7])
    removers = [
        subprocess.Popen(["python3", "-c", "import os, sys; [os.unlink(p) for p in sys.argv[1:]]", *map(str, paths)])
        for paths in ([here / n for n in names if n[0] == "b"], [there / n for n in names if n[0] == "a"])
    ]
    assert [r.wait(60) for r in removers] == [0, 0]
    for directory in (here, there):
        until("nothing is left", _lists(directory, []), SEEN_SECONDS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Documentation as machines have it: part of /usr/share/doc, or something of its shape where it is small."""
    source = Path("/usr/share/doc")
    tree = tmp_path / "doc"
    tree.mkdir()
    bytes_left, files_left = 24 << 20, 400
    for package in sorted(source.iterdir()) if source.is_dir() else []:
        if package.is_dir() and not package.is_symlink() and files_left > 0 < bytes_left:
            subprocess.run(["cp", "-a", str(package), str(tree)], check=True)
            files = [p for p in (tree / package.name).rglob("*") if not p.is_dir() and not p.is_symlink()]
            files_left -= len(files)
            bytes_left -= sum(p.stat().st_size for p in files)
    for i in range(max(0, files_left)):
        path = tree / f"made{i % 37}" / f"part{i % 5}" / f"file{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % i * (i * i % 9973))
    (tree / "dangling").symlink_to("nowhere/at/all")
    (tree / "empty").mkdir()
    (tree / "name with\nnewline and \u00fcmlaut").touch()
    return tree


def test_a_tree_that_one_host_copies_is_the_same_on_the_other(tree: Path, here: Path, esx2: Mount) -> None:
    subprocess.run(["cp", "-r", str(tree), str(here)], check=True, timeout=60)
    there = esx2.path / here.name / tree.name
    until("the tree", lambda: there.is_dir() and len(os.listdir(there)) == len(os.listdir(tree)), SEEN_SECONDS)
    compare = ["diff", "-r", "--no-dereference", str(tree), str(there)]
    done = subprocess.run(compare, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
