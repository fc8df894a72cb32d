"""Clones through a mount: one moment of a file that is being written, on both hosts, and what differs between two."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, until, vmfsctl
from vmfs.client import Mount as Client
from vmfs.errors import VmfsError

_BLOCK = 64 << 10
_MIB = 1 << 20


class _Counter(threading.Thread):
    """Writes 1, 2, 3... to one place and then, each time, to another: what is behind is never ahead."""

    def __init__(self, path: Path, first: int, second: int) -> None:
        super().__init__(daemon=True)
        self.places = first, second
        self.count = 0
        self.problem: BaseException | None = None
        self._path = path
        self._stop_it = threading.Event()

    def run(self) -> None:
        memory = mmap.mmap(-1, 4096)
        fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        try:
            while not self._stop_it.is_set():
                self.count += 1
                memory[:8] = self.count.to_bytes(8, "little")
                for place in self.places:
                    assert os.pwritev(fd, [memory], place) == 4096
        except BaseException as error:
            self.problem = error
        finally:
            os.close(fd)

    def end(self) -> None:
        self._stop_it.set()
        self.join()
        assert self.problem is None, self.problem


def test_a_clone_is_one_moment_of_a_file_under_writes(here: Path) -> None:
    disk = here / "disk"
    with open(disk, "wb") as file:
        file.truncate(64 * _MIB)
    counters = [_Counter(disk, i * 3 * _BLOCK, (40 - i) * _MIB + 8192) for i in range(4)]
    client = Client.for_path(here)
    for counter in counters:
        counter.start()
    try:
        until("all have begun", lambda: all(c.count > 3 for c in counters), 5)
        clones = []
        for i in range(12):
            before = [c.count for c in counters]
            clones.append(here / f"clone{i}")
            client.clone(disk, clones[-1])
            after = [c.count for c in counters]
            with open(clones[-1], "rb") as file:
                for counter, least, most in zip(counters, before, after, strict=True):
                    ahead, behind = (_number(file.fileno(), place) for place in counter.places)
                    assert behind <= ahead <= behind + 1, "a later write without an earlier one"
                    assert least - 1 <= behind, "a write that had completed is missing"
                    assert ahead <= most, "a write from after the clone"
    finally:
        for counter in counters:
            counter.end()
    for older, newer in itertools.pairwise(clones):
        _check_diff(client, older, newer)
    contents = {p: p.read_bytes() for p in clones[::4]}
    for path in (disk, *clones[1::2]):
        path.unlink()
    assert {p: p.read_bytes() for p in clones[::4]} == contents


def _number(fd: int, offset: int) -> int:
    return int.from_bytes(os.pread(fd, 8, offset), "little")


def _check_diff(client: Client, old: Path, new: Path) -> None:
    """What differs lies in the ranges that `diff` names, and they are few."""
    one, other = old.read_bytes(), new.read_bytes()
    covered = bytearray(one)
    ranges = client.diff(old, new)
    for offset, length in ranges:
        covered[offset : offset + length] = other[offset : offset + length]
    assert bytes(covered[: len(other)]) == other[: len(covered)]
    assert ranges == sorted(ranges)
    assert sum(length for _, length in ranges) <= 16 * _BLOCK


def test_clones_of_clones_keep_their_own_contents(here: Path, esx2: Mount) -> None:
    """Each generation changes a little; half of them go; all others are as they were, on the other host too."""
    rng = random.Random(5)
    client = Client.for_path(here)
    path = here / "g0"
    path.write_bytes(rng.randbytes(3 * _MIB))
    contents = {path: path.read_bytes()}
    for i in range(1, 25):
        new = here / f"g{i}"
        source = rng.choice(list(contents))
        client.clone(source, new)
        assert (new.stat().st_size, new.stat().st_blocks) == (source.stat().st_size, source.stat().st_blocks)
        with open(new, "r+b") as file:
            for _ in range(3):
                file.seek(rng.randrange(3 * _MIB))
                file.write(rng.randbytes(rng.randrange(100_000)))
            if i % 5 == 0:
                file.truncate(rng.randrange(2 * _MIB, 4 * _MIB))
        contents[new] = new.read_bytes()
        if i % 3 == 0:
            gone = rng.choice(list(contents))
            gone.unlink()
            del contents[gone]
    for path, content in contents.items():
        assert path.read_bytes() == content
        there = esx2.path / here.name / path.name
        until("the other host reads it", lambda there=there, content=content: there.read_bytes() == content, 1)
    for path in contents:
        path.unlink()


def test_what_is_no_clone(here: Path, tmp_path: Path) -> None:
    client = Client.for_path(here)
    (here / "file").write_bytes(b"x")
    (here / "dir").mkdir()
    (here / "link").symlink_to("file")
    (tmp_path / "outside").write_bytes(b"x")
    for source, target in (
        ("file", "file"), ("file", "dir"), ("dir", "new"), ("none", "new"), ("file", "none/new"), ("file", "n" * 256),
    ):  # fmt: skip
        with pytest.raises(VmfsError):
            client.clone(here / source, here / target)
    with pytest.raises(VmfsError):
        client.clone(tmp_path / "outside", here / "new")
    assert sorted(os.listdir(here)) == ["dir", "file", "link"]
    refused = vmfsctl("clone", here / "none", here / "new", check=False)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr


def test_a_file_that_another_host_writes_cannot_be_cloned(shared_datastore: Datastore, here: Path, esx2: Mount) -> None:
    shared_datastore.expect(r"inode \d+ is locked by host esx1; close it there")
    there = esx2.path / here.name
    with open(here / "disk", "wb") as file:
        file.write(b"x" * _MIB)
        file.flush()
        until("the file", (there / "disk").exists, 1)
        with pytest.raises(VmfsError) as refused:
            Client.for_path(there).clone(there / "disk", there / "clone")
        assert refused.value.errno == errno.EBUSY
    Client.for_path(there).clone(there / "disk", there / "clone")
    assert (there / "clone").read_bytes() == b"x" * _MIB
    with open(there / "clone", "r+b") as file:
        file.write(b"y")
    until("each its own", lambda: (here / "clone").read_bytes()[:2] == b"yx", 1)
    assert (here / "disk").read_bytes() == b"x" * _MIB
