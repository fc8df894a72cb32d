"""What a call may find at a path: one maker for each kind, and what a folder looks like afterwards."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

Found = tuple[str, str, os.stat_result]
"""(name below a folder, path, status)."""

CONTENT: Final = b"some content"
OLD_NS: Final = 1_000_000_000 * 10**9 + 123_456_789  # a time that no call of the battery happens to set
LONG_NAME: Final = "n" * 255
OWNER: Final = 1234  # the plain user who makes the calls; not root, not the owner of what others made
OTHER: Final = 4321


def _file(path: Path) -> None:
    path.write_bytes(CONTENT)


def _full_directory(path: Path) -> None:
    path.mkdir()
    _file(path / "inside")


def _link_to_file(path: Path) -> None:
    _file(path.with_name(f"{path.name[:200]}.target"))
    path.symlink_to(f"{path.name[:200]}.target")


def _link_to_directory(path: Path) -> None:
    path.with_name(f"{path.name[:200]}.folder").mkdir()
    path.symlink_to(f"{path.name[:200]}.folder")


def _socket(path: Path) -> None:
    # Bound by its short name: a socket's path has 107 bytes at most.
    before = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(before)
        os.close(before)


def _second_name(path: Path) -> None:
    _file(path)
    os.link(path, path.with_name(f"{path.name[:200]}.other"))


MAKERS: Final[dict[str, Callable[[Path], object]]] = {
    "nothing": lambda path: None,
    "file": _file,
    "hard link": _second_name,
    "empty directory": lambda path: path.mkdir(),
    "full directory": _full_directory,
    "link to a file": _link_to_file,
    "link to a directory": _link_to_directory,
    "dangling link": lambda path: path.symlink_to("is.not.there"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "fifo": lambda path: os.mkfifo(path, 0o644),
    "socket": _socket,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
}


def make(path: Path, kind: str, *, owner: int = 0) -> None:
    """Make that kind of object there, with an old time of change."""
    MAKERS[kind](path)
    if kind != "nothing":
        if owner:
            os.chown(path, owner, owner, follow_symlinks=False)
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def walk(folder: Path) -> Iterator[Found]:
    """The folder, as ".", and all below it, in the order of names: a directory before what is in it."""
    yield ".", str(folder), os.lstat(folder)
    left = [""]
    found = []
    while left:
        prefix = left.pop()
        for name in os.listdir(folder / prefix):
            below = f"{prefix}{name}"
            seen = os.lstat(folder / below)
            found.append((below, str(folder / below), seen))
            if stat.S_ISDIR(seen.st_mode):
                left.append(f"{below}/")
    yield from sorted(found, key=lambda entry: entry[0])


def described(found: Iterable[Found]) -> list[str]:
    """One line for each object: all that stat tells and two file systems share."""
    lines = []
    for name, path, seen in found:
        size = seen.st_size if stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode) else "-"
        touched = "old" if seen.st_mtime_ns == OLD_NS else "new"
        number = f" {seen.st_rdev:#x}" if seen.st_rdev else ""
        more = f" -> {os.readlink(path)}" if stat.S_ISLNK(seen.st_mode) else number
        shown = name if len(name) < 60 else f"{name[:20]}...({len(name)})"
        lines.append(
            f"{shown} {stat.filemode(seen.st_mode)} {seen.st_nlink} {seen.st_uid}:{seen.st_gid} {size} {touched}{more}"
        )
    return lines
