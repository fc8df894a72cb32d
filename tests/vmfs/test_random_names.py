"""Random changes of names: alone against a local file system, and by many programs on two hosts at once.

AZEKURA_SEED=N repeats a run; each prints its seed.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore, Mount, until
from tests.vmfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

OPERATIONS = 2_500
SOAK_OPERATIONS = 250_000
_NAMES = ["a", "b", "c", "d", "e", "long" * 50]
_DEPTH_MAX = 5


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("AZEKURA_SEED") or secrets.randbelow(1 << 32))
    print(f"AZEKURA_SEED={chosen}")
    return chosen


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK)  # it may be a FIFO
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


class _Twins:
    """One operation on two directories: both must answer alike."""

    def __init__(self, one: Path, two: Path, seed: int) -> None:
        self._roots = one, two
        self._random = random.Random(seed)
        self.trail: list[str] = []

    def _path(self) -> str:
        depth = self._random.choice((1, 1, 2, 2, 3, 4, _DEPTH_MAX))
        return "/".join(self._random.choice(_NAMES) for _ in range(depth))

    def step(self) -> None:
        a, b = self._path(), self._path()
        kinds: list[tuple[str, int, Callable[[Path], object]]] = [
            ("create", 6, lambda r: os.close(os.open(r / a, os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
            ("write", 3, lambda r: _write(r / a, a.encode() * 9)),
            ("mkdir", 8, lambda r: os.mkdir(r / a)),
            ("symlink", 2, lambda r: os.symlink(b, r / a)),
            ("mkfifo", 1, lambda r: os.mkfifo(r / a)),
            ("link", 3, lambda r: os.link(r / a, r / b, follow_symlinks=False)),
            ("unlink", 5, lambda r: os.unlink(r / a)),
            ("rmdir", 4, lambda r: os.rmdir(r / a)),
            ("rename", 8, lambda r: os.rename(r / a, r / b)),
            ("exchange", 3, lambda r: renameat2(r / a, r / b, RENAME_EXCHANGE)),
            ("noreplace", 2, lambda r: renameat2(r / a, r / b, RENAME_NOREPLACE)),
            ("chmod", 1, lambda r: os.chmod(r / a, 0o700)),
        ]
        what, _, action = self._random.choices(kinds, [weight for _, weight, _ in kinds])[0]
        self.trail = [*self.trail[-39:], f"{what} {a} {b}"]
        answers = [self._answer(action, root) for root in self._roots]
        assert answers[0] == answers[1], (answers, self.trail)

    def _answer(self, action: Callable[[Path], object], root: Path) -> str:
        try:
            action(root)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"

    def compare(self) -> None:
        trees = [_tree(root) for root in self._roots]
        assert trees[0] == trees[1], self.trail


def _tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        found[str(path.relative_to(root))] = (status.st_mode, status.st_nlink, content)
    return found


def _like_a_local_file_system(here: Path, local: Path, seed: int, operations: int) -> None:
    local.mkdir()
    twins = _Twins(here, local, seed)
    for i in range(operations):
        twins.step()
        if i % 500 == 499:
            twins.compare()
    twins.compare()


def test_names_change_as_on_a_local_file_system(here: Path, tmp_path: Path, seed: int) -> None:
    _like_a_local_file_system(here, tmp_path / "local", seed, OPERATIONS)


@pytest.mark.soak
def test_names_change_as_on_a_local_file_system_for_long(here: Path, tmp_path: Path, seed: int) -> None:
    _like_a_local_file_system(here, tmp_path / "local", seed, SOAK_OPERATIONS)


_PROGRAM = """
import errno, os, random, sys, time
root, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
rng, until, done, refused = random.Random(seed), time.monotonic() + seconds, 0, {}
def path():
    return root + "/" + "/".join(rng.choice("abc") for _ in range(rng.choice((1, 2, 2, 3))))
def write(p):
    with open(p, "wb") as file:
        file.write(p.encode() * rng.randrange(2000))
def read(p):
    with open(p, "rb") as file:
        file.read()
actions = (write, write, read, os.mkdir, os.mkdir, os.unlink, os.unlink, os.rmdir, os.listdir,
           lambda p: os.rename(p, path()), lambda p: os.rename(p, path()), lambda p: os.link(p, path()),
           lambda p: os.truncate(p, rng.randrange(300000)), lambda p: os.symlink("x", p), os.stat)
while time.monotonic() < until:
    try:
        rng.choice(actions)(path())
        done += 1
    except OSError as error:
        name = errno.errorcode[error.errno]
        refused[name] = refused.get(name, 0) + 1
print(done, sorted(refused.items()))
print(",".join(sorted(refused)), file=sys.stderr)
"""
# What may happen when others change the tree: everything but damage, a full volume, or a dead mount.
_EXPECTED = {"ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "EINVAL", "EPERM", "EBUSY", "ESTALE", "ELOOP", "EIO"}


def _crowd(datastore: Datastore, seed: int, seconds: float) -> None:
    datastore.expect(r"inode \d+ is locked by host esx[12]; close it there|the superblock at 0x\w+ is locked by host")
    mounts = [datastore.mount(h) for h in ("esx1", "esx2")]
    (mounts[0] / "tree").mkdir()
    until("the tree", (mounts[1] / "tree").is_dir, 2)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(mounts[i % 2] / "tree"), str(seconds), str(seed + i)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    try:
        outputs = [p.communicate(timeout=seconds + 60) for p in programs]
    finally:
        for program in programs:
            program.kill()
    print(*(out.strip() for out, _ in outputs), sep="\n")
    for out, err in outputs:
        assert set(err.strip().split(",")) <= _EXPECTED | {""}, (out, err)
        assert int(out.split()[0]) > 5 * seconds, "nobody is kept waiting for long"
    _settle(mounts)


def _settle(mounts: list[Mount]) -> None:
    """Both hosts see the same tree when all is quiet, and can remove it."""
    trees: list[dict[str, tuple[int, int, bytes]]] = []

    def alike() -> bool:
        trees[:] = [_tree(m / "tree") for m in mounts]
        return trees[0] == trees[1]

    until("the same tree on both", alike, 3)
    subprocess.run(["rm", "-r", str(mounts[1] / "tree")], check=True, timeout=60)
    until("nothing is left", lambda: not os.listdir(mounts[0].path), 2)


def test_many_programs_on_two_hosts_change_one_tree(datastore: Datastore, seed: int) -> None:
    _crowd(datastore, seed, 5)


@pytest.mark.soak
def test_many_programs_on_two_hosts_change_one_tree_for_long(datastore: Datastore, seed: int) -> None:
    _crowd(datastore, seed, 1200)
