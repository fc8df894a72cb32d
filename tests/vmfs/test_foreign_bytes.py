"""A reader never sees another file's bytes, whatever the other host does to the files (rule R8 of docs/locking.md).

Every sector of every file says whose it is. One host makes, cuts, rewrites and removes files on a volume that is almost
full, so that blocks are used again as soon as they may be; programs on another host read all the time, from files that
they keep open as long as they can.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vmfs.datastore import Datastore

SECONDS = 8
SOAK_SECONDS = 1800

_WRITER = """
import errno, os, random, struct, sys, time
folder, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
rng, until, made, files = random.Random(seed), time.monotonic() + seconds, 0, []
def content(number, length):
    return struct.pack("<Q", number) * (length // 8)
while time.monotonic() < until:
    action = rng.random()
    if action < 0.35 or len(files) < 3:
        made += 1
        path = f"{folder}/{made}"
        files.append(made)
        length = rng.randrange(1, 200) * 32768
        data = content(made, length)
        with open(path, "wb", buffering=0) as file:
            done = 0
            while done < length and time.monotonic() < until + 20:
                try:
                    done += file.write(data[done : done + 262144])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    for victim in files[:-1][:4]:
                        os.unlink(f"{folder}/{victim}")
                        files.remove(victim)
    else:
        number = rng.choice(files)
        path = f"{folder}/{number}"
        size = os.stat(path).st_size
        if action < 0.6:
            os.unlink(path)
            files.remove(number)
        elif action < 0.75:
            os.truncate(path, rng.randrange(size + 1) // 512 * 512)
        else:
            with open(path, "r+b", buffering=0) as file:
                file.seek(rng.randrange(size // 512 + 1) * 512)
                file.write(content(number, rng.randrange(1, 40) * 16384))
print(made)
"""

_READER = """
import contextlib, errno, mmap, os, random, struct, sys, time
folder, seconds, seed, direct = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "direct"
rng, until, opened, reads, stale = random.Random(seed), time.monotonic() + seconds, {}, 0, 0
memory = memoryview(mmap.mmap(-1, 1 << 20))
while time.monotonic() < until:
    if len(opened) < 8 and rng.random() < 0.3:
        names = os.listdir(folder)
        if names:
            number = int(rng.choice(names))
            if number not in opened:
                try:
                    opened[number] = os.open(f"{folder}/{number}", os.O_RDONLY | (os.O_DIRECT if direct else 0))
                except FileNotFoundError:
                    continue
    if not opened:
        continue
    number = rng.choice(list(opened))
    offset = rng.randrange(0, 100) * 65536
    view = memory[: rng.choice((4096, 65536, 300 * 512, 1 << 20))]
    try:
        count = os.preadv(opened[number], [view], offset)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        stale += 1
        with contextlib.suppress(OSError):
            os.close(opened.pop(number))
        continue
    reads += 1
    want = struct.pack("<Q", number)
    got = bytes(view[:count])
    if got != want * (count // 8):
        for at in range(0, count, 512):
            sector = got[at : at + 512]
            if sector != (want * 64)[: len(sector)] and any(sector):
                sys.exit(f"file {number} shows {sector[:16].hex()} at {offset + at}")
print(reads, stale)
"""


def _hunt(datastore: Datastore, seconds: float, seed: int) -> None:
    one, two = datastore.mount("esx1"), datastore.mount("esx2")
    (one / "files").mkdir()
    os.sync()

    def start(script: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(folder), str(seconds), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    while not (two / "files").is_dir():
        pass
    readers = [start(_READER, two / "files", seed + i, kind) for i, kind in enumerate(("direct", "buffered"))]
    programs = [start(_WRITER, one / "files", seed), *readers]
    try:
        outputs = [p.communicate(timeout=seconds + 60) for p in programs]
    finally:
        for program in programs:
            program.kill()
    print(f"AZEKURA_SEED={seed}", *(out.strip() for out, _ in outputs), sep="; ")
    assert [err for _, err in outputs] == ["", "", ""], two.log_text()[-3000:]
    made, reads = int(outputs[0][0]), [int(out.split()[0]) for out, _ in outputs[1:]]
    assert made > 5 * seconds / 10
    assert min(reads) > 10 * seconds


@pytest.fixture
def small(tmp_path: Path) -> Datastore:
    """A volume so small that blocks are wanted again at once."""
    return Datastore(tmp_path, "128M", "--max-hosts", "2")


def _run(datastore: Datastore, seconds: float) -> None:
    datastore.expect("is full: no room for")
    try:
        _hunt(datastore, seconds, int(os.environ.get("AZEKURA_SEED") or 1))
        datastore.umount_all()
        datastore.check()
        assert datastore.problems() == []
    finally:
        datastore.close()


def test_a_reader_never_sees_another_files_bytes(small: Datastore) -> None:
    _run(small, SECONDS)


@pytest.mark.soak
def test_a_reader_never_sees_another_files_bytes_for_long(small: Datastore) -> None:
    _run(small, SOAK_SECONDS)
