"""Which times of change a call moves: of the object, of its folder, of another name's folder; and what a read-only
mount answers to each call. Printed as JSON, as `battery` does.

    python -m tests.posix.ctimes FOLDER                 # times of change
    python -m tests.posix.ctimes --make FOLDER          # one object of each kind, for
    python -m tests.posix.ctimes --read-only FOLDER     # all calls on a mount that is read-only
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.posix.battery import Result, outcome
from tests.posix.calls import ONE_PATH, TWO_PATHS
from tests.posix.objects import MAKERS, make, walk

CLOCK_REALTIME_COARSE = 5  # linux/time.h; what file systems take their times from, some milliseconds apart

_KINDS = ("nothing", "file", "hard link", "empty directory", "full directory", "link to a file")
_PAIRS = (
    ("file", "nothing"), ("file", "file"), ("file", "hard link"), ("hard link", "nothing"), ("file", "full directory"),
    ("empty directory", "nothing"), ("empty directory", "empty directory"), ("empty directory", "full directory"),
    ("link to a file", "nothing"), ("nothing", "file"),
)  # fmt: skip


def _ctimes(folder: Path) -> dict[int, tuple[str, int]]:
    """Inode number: (first name, time of change)."""
    found: dict[int, tuple[str, int]] = {}
    for name, _, seen in walk(folder):
        found.setdefault(seen.st_ino, (name, seen.st_ctime_ns))
    return found


def _await_tick(after_ns: int) -> None:
    """Until a change now would be dated later than `after_ns`."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= after_ns:
        time.sleep(0.0005)


def _case(folder: Path, what: str, call: Callable[[Path], object]) -> Iterator[Result]:
    """One result for each object that was there before, by the name that it had then, and one for all that is new."""
    before = _ctimes(folder)
    _await_tick(max(changed for _, changed in before.values()))
    answer = outcome(lambda: call(folder))
    after = _ctimes(folder)
    for number, (name, changed) in before.items():
        now = after.get(number)
        yield f"{what}: {name}", answer, ["gone" if now is None else "same" if now[1] == changed else "moved"]
    yield f"{what}: new", answer, sorted(name for number, (name, _) in after.items() if number not in before)


def times_of_change(root: Path) -> Iterator[Result]:
    """Each call of one path on some kinds, each of two on some pairs."""
    count = 0
    for name, call in ONE_PATH.items():
        for kind in _KINDS:
            folder = root / f"c{(count := count + 1)}"
            folder.mkdir()
            make(folder / "a", kind)
            yield from _case(folder, f"{name}: {kind}", lambda f, c=call: c(str(f / "a")))
    for name, both in TWO_PATHS.items():
        for first, second in _PAIRS:
            folder = root / f"c{(count := count + 1)}"
            (folder / "sub").mkdir(parents=True)
            make(folder / "a", first)
            make(folder / "sub" / "b", second)
            what = f"{name}: {first} -> {second}"
            yield from _case(folder, what, lambda f, c=both: c(str(f / "a"), str(f / "sub" / "b")))


def make_objects(root: Path) -> None:
    """What `read_only` looks at, in a folder that anybody may write to."""
    for kind in MAKERS:
        folder = root / kind
        (folder / "sub").mkdir(parents=True)
        folder.chmod(0o777)
        make(folder / "a", kind)
        make(folder / "sub" / "b", kind)
        if kind not in ("nothing", "link to itself"):
            outcome(lambda f=folder: os.setxattr(f / "a", "user.a", b"1"))


def read_only(root: Path) -> Iterator[Result]:
    """Every call on every kind, as root."""
    for kind in MAKERS:
        folder = root / kind
        for name, call in ONE_PATH.items():
            if kind == "device":
                continue  # whether a device may be opened is a mount option, and another test's matter
            yield f"{name}: {kind}", outcome(lambda c=call, f=folder: c(str(f / "a"))), []
        for name, both in TWO_PATHS.items():
            for target in ("sub/b", "sub/new"):
                answer = outcome(lambda c=both, f=folder, t=target: c(str(f / "a"), str(f / t)))
                yield f"{name}: {kind} -> {target}", answer, []


def main() -> None:
    """Do what the arguments say."""
    os.umask(0o022)
    os.setgroups([])
    root = Path(sys.argv[-1])
    if "--make" in sys.argv:
        make_objects(root)
    else:
        json.dump(list(read_only(root) if "--read-only" in sys.argv else times_of_change(root)), sys.stdout)


if __name__ == "__main__":
    main()
