"""Three hosts and one directory: what each does, and what the others see of it."""

from __future__ import annotations

import collections
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EBUSY, ESTALE
from pathlib import Path

from tests.vmfs.datastore import Datastore, Mount, until, vmfsctl

SEEN_SECONDS = 10  # what is promised within a second; a busy machine's
WORK_SECONDS = 3
SEED = int(os.environ.get("AZEKURA_SEED") or random.randrange(1 << 32))
BLOCK = 64 << 10

Folders = tuple[Path, Path, Path]

_PRELUDE = """
import errno, json, os, random, sys, time
folder, me, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rng, until = random.Random(seed), time.monotonic() + seconds
def attempt(action, *names, may=()):
    try:
        action(*(os.path.join(folder, n) for n in names))
        return True
    except OSError as error:
        if error.errno not in may:
            raise
        return False
"""

_CREATE = """
made = 0
while time.monotonic() < until:
    os.close(os.open(f"{folder}/{me}-{made}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    made += 1
print(json.dumps(made))
"""

# Names that all hosts fight for. Each success of one kind has its counterpart: who made it, who took it away.
_FIGHT = """
done = {}
def count(name, kind):
    done[f"{kind} {name}"] = done.get(f"{kind} {name}", 0) + 1
def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
GONE, THERE = (errno.ENOENT,), (errno.EEXIST,)
mine = 0
make(f"{folder}/{me}-0")
while time.monotonic() < until:
    shared, kind = f"shared{rng.randrange(4)}", rng.randrange(7)
    if kind == 0:
        attempt(make, shared, may=THERE) and count(shared, "+")
    elif kind == 1:
        attempt(os.unlink, shared, may=GONE) and count(shared, "-")
    elif kind == 2:
        attempt(os.link, f"{me}-{mine}", shared, may=THERE) and count(shared, "+")
    elif kind == 3:
        os.rename(f"{folder}/{me}-{mine}", f"{folder}/{me}-{mine + 1}")
        mine += 1
    elif kind == 4:
        attempt(os.mkdir, f"dir-{shared}", may=THERE) and count(f"dir-{shared}", "+")
    elif kind == 5:
        attempt(os.rmdir, f"dir-{shared}", may=(*GONE, errno.ENOTEMPTY)) and count(f"dir-{shared}", "-")
    else:
        make(f"{folder}/{me}-new")
        os.rename(f"{folder}/{me}-new", f"{folder}/{me}-{mine}")  # over the one that is there
print(json.dumps([mine, done]))
"""

_CHURN = """
turn = 0
while time.monotonic() < until:
    name = f"{folder}/{me}-{turn}-{'x' * rng.randrange(200)}"
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    if rng.random() < 0.5:
        os.rename(name, name + "y")
        name += "y"
    if rng.random() < 0.7:
        os.unlink(name)
    turn += 1
print(json.dumps(turn))
"""


def _start(script: str, folder: Path, me: str, seconds: float = WORK_SECONDS) -> subprocess.Popen[str]:
    print(f"AZEKURA_SEED={SEED}")
    command = [sys.executable, "-c", _PRELUDE + script, str(folder), me, str(SEED + hash(me) % 97), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _results(programs: Sequence[subprocess.Popen[str]]) -> list[object]:
    found = []
    try:
        for program in programs:
            out, err = program.communicate(timeout=60)
            assert program.returncode == 0, err
            found.append(json.loads(out))
    finally:
        for program in programs:
            program.kill()
            program.wait()
    return found


def _all_list(folders: Folders, names: set[str]) -> None:
    for folder in folders:
        until(f"{folder} lists all", lambda f=folder: set(os.listdir(f)) == names, SEEN_SECONDS)  # type: ignore[misc]


def test_three_hosts_create_in_one_directory_and_each_gets_its_share(folders: Folders) -> None:
    made = _results([_start(_CREATE, f, f"h{i}") for i, f in enumerate(folders)])
    print(f"files made in {WORK_SECONDS} s: {made}")
    counts = [int(str(m)) for m in made]
    assert min(counts) * 30 >= sum(counts), "a host starved"  # a third each, on a machine that is not busy
    _all_list(folders, {f"h{i}-{j}" for i, count in enumerate(counts) for j in range(count)})


def test_names_that_all_hosts_fight_for_are_made_once_and_removed_once(folders: Folders) -> None:
    """create, link, unlink, rename (over a file, too), mkdir and rmdir at once in one directory."""
    results = _results([_start(_FIGHT, f, f"h{i}") for i, f in enumerate(folders)])
    total: collections.Counter[str] = collections.Counter()
    expected = set()
    for i, result in enumerate(results):
        mine, done = result  # type: ignore[misc]
        expected.add(f"h{i}-{mine}")
        total.update(done)
    for name in {key.split()[1] for key in total}:
        left = total[f"+ {name}"] - total[f"- {name}"]
        assert left in (0, 1), f"{name}: made {total[f'+ {name}']} times, removed {total[f'- {name}']} times"
        if left:
            expected.add(name)
    assert sum(total.values()) > 30
    _all_list(folders, expected)


def test_a_listing_has_every_name_that_was_there_all_the_time_once(folders: Folders) -> None:
    """Two hosts make, rename and remove others meanwhile, and make the directory grow."""
    stable = {f"stable-{i:03}-{'s' * (i % 150)}" for i in range(200)}
    for name in stable:
        (folders[0] / name).touch()
    until("all are seen", lambda: stable <= set(os.listdir(folders[2])), SEEN_SECONDS)
    programs = [_start(_CHURN, f, f"h{i}") for i, f in enumerate(folders[:2])]
    listings = 0
    while programs[0].poll() is None:
        for lister in (lambda: os.listdir(folders[2]), lambda: [e.name for e in os.scandir(folders[2])]):
            found = collections.Counter(lister())
            assert stable <= set(found), sorted(stable - set(found))[:3]
            assert max(found[name] for name in stable) == 1
            listings += 1
    turns = _results(programs)
    print(f"{listings} listings during {turns} changes")
    assert listings > 2


def _errno_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return 0


def test_what_another_host_has_open_for_writing_is_left_alone(
    hosts: tuple[Mount, Mount, Mount], folders: Folders, volume: Datastore
) -> None:
    """Not removed, replaced, cut, written, appended to or changed: EBUSY, and the log and `locks` say who has it."""
    volume.expect("is locked by host esx1")
    here, there, _ = folders
    disk, other = there / "disk", there / "other"
    with (here / "disk").open("wb", buffering=0) as file:
        file.write(b"d" * BLOCK)
        os.fsync(file.fileno())
        other.touch()
        attempts: tuple[Callable[[], object], ...] = (
            disk.unlink,
            lambda: other.rename(disk),
            lambda: os.truncate(disk, 10),
            lambda: os.open(disk, os.O_RDWR),
            lambda: os.open(disk, os.O_WRONLY | os.O_APPEND),
            lambda: disk.chmod(0o600),
            lambda: os.link(disk, there / "second"),
        )
        with ThreadPoolExecutor(len(attempts)) as pool:  # each waits for a second
            assert list(pool.map(_errno_of, attempts)) == [EBUSY] * len(attempts)
        assert re.search(r"inode \d+ is locked by host esx1", hosts[1].log_text())
        assert "esx1" in vmfsctl("locks", disk).stdout
        disk.rename(there / "moved")  # its name is the directory's, not the file's
        assert (there / "moved").read_bytes() == b"d" * BLOCK
        file.write(b"e" * BLOCK)
    until("it can be removed", lambda: _errno_of((there / "moved").unlink) == 0, SEEN_SECONDS)


def test_a_file_that_is_removed_while_it_is_open(folders: Folders) -> None:
    """Here it goes on to be read and written until it is closed. Who reads it on another host gets ESTALE, not other
    bytes, from the moment on that its blocks may go."""
    here, there, _ = folders
    for name in ("mine", "theirs"):
        (here / name).write_bytes(b"m" * BLOCK)
    until("it is there", lambda: (there / "theirs").read_bytes() == b"m" * BLOCK, SEEN_SECONDS)
    with (here / "mine").open("r+b", buffering=0) as file, (there / "theirs").open("rb", buffering=0) as reader:
        (here / "mine").unlink()
        (here / "theirs").unlink()  # a reader on another host holds nothing that would keep it
        (here / "new").write_bytes(b"n" * (40 * BLOCK))
        assert file.write(b"x" * BLOCK) == BLOCK
        assert os.pread(file.fileno(), BLOCK, 0) == b"x" * BLOCK
        assert os.fstat(file.fileno()).st_nlink == 0

        def gone() -> bool:
            try:
                os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(reader.fileno(), BLOCK, 0) in (b"m" * BLOCK, b"")
                return False
            except OSError as error:
                if error.errno != ESTALE:
                    raise
                return True

        until("the reader is told", gone, SEEN_SECONDS)
        until("no name", lambda: not (there / "mine").exists(), SEEN_SECONDS)


def test_a_file_that_grows_is_seen_growing(folders: Folders) -> None:
    """Size and mtime within a second; and behind every byte of the size there is the data."""
    here, there, _ = folders
    (here / "log").touch()
    until("it is there", (there / "log").exists, SEEN_SECONDS)
    with (here / "log").open("wb", buffering=0) as file, (there / "log").open("rb", buffering=0) as reader:
        before = os.stat(there / "log").st_mtime_ns
        for step in range(1, 6):
            file.write(bytes([step]) * 3000)
            os.fsync(file.fileno())
            wanted = b"".join(bytes([i]) * 3000 for i in range(1, step + 1))
            size = len(wanted)
            until("the size", lambda s=size: os.fstat(reader.fileno()).st_size == s, SEEN_SECONDS)  # type: ignore[misc]
            assert os.pread(reader.fileno(), 1 << 20, 0) == wanted
        until("the time", lambda: os.stat(there / "log").st_mtime_ns > before, SEEN_SECONDS)


def test_what_was_synced_is_read_by_who_opens_it_then(folders: Folders) -> None:
    """Close-to-open: no wait between fsync here and open there, over bytes that the other host had read before."""
    here, there, _ = folders
    path = here / "disk"
    path.write_bytes(bytes(BLOCK))
    until("it is there", lambda: (there / "disk").read_bytes() == bytes(BLOCK), SEEN_SECONDS)
    for round_ in range(1, 20):
        with path.open("r+b", buffering=0) as file:
            file.write(bytes([round_]) * BLOCK)
            os.fsync(file.fileno())
        with (there / "disk").open("rb", buffering=0) as reader:
            assert reader.read(BLOCK) == bytes([round_]) * BLOCK


def test_free_space_is_the_same_on_all_hosts(hosts: tuple[Mount, Mount, Mount], folders: Folders) -> None:
    def free() -> set[int]:
        return {os.statvfs(m.path).f_bfree for m in hosts}

    until("all agree", lambda: len(free()) == 1, SEEN_SECONDS)
    (before,) = free()
    (folders[1] / "large").write_bytes(b"l" * (100 * BLOCK))
    until("all see less", lambda: len(free()) == 1 and before - 110 <= max(free()) <= before - 100, SEEN_SECONDS)
    used = before - max(free())
    (folders[2] / "large").unlink()
    until("all see more", lambda: len(free()) == 1 and max(free()) >= before - (used - 100), SEEN_SECONDS)


def test_appending_hosts_take_turns(folders: Folders) -> None:
    """O_APPEND is a writer like others: one host at a time, and what each appended lies behind what was there."""
    written = b""
    for turn in range(9):
        folder = folders[turn % 3]

        def append(f: Path = folder, t: int = turn) -> bool:
            with suppress(OSError), (f / "log").open("ab", buffering=0) as file:
                return file.write(bytes([t]) * 1000) == 1000
            return False

        until("its turn", append, SEEN_SECONDS)
        written += bytes([turn]) * 1000
    until("all of it", lambda: (folders[0] / "log").read_bytes() == written, SEEN_SECONDS)
