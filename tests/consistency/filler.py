"""A program that fills a volume: `python filler.py FOLDER PREFIX SEED` writes files until there is no room.

Files have random sizes; every 512 bytes say whose they are. When there is no room for a file, some grow block by
block until not one more fits. Prints {name: size} of what it wrote, as JSON. `verify` reads such files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import sys
from pathlib import Path

BLOCK = 64 << 10
_REQUEST = 4 * BLOCK
_GROWN = 3
_LONGEST_BLOCKS = 90  # longer than what an inode holds without map nodes


def content(name: str, length: int) -> bytes:
    """What a file of that name holds."""
    sector = hashlib.sha256(name.encode()).digest() * 16
    return (sector * (length // 512 + 1))[:length]


def verify(path: Path, size: int) -> None:
    """Every byte of a file is its own."""
    with path.open("rb", buffering=0) as file:
        at = 0
        while data := file.read(1 << 20):
            assert data == content(path.name, len(data)), f"{path} is not its own near {at}"
            at += len(data)
        assert at == size, (path, at, size)


def _append(fd: int, data: bytes) -> bool:
    """Write all of it; False when there is no room."""
    try:
        done = os.write(fd, data)
        assert done == len(data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def _write_file(path: str, length: int) -> tuple[int, bool]:
    """(bytes written, whether there was room for all of it)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        done, name = 0, os.path.basename(path)
        while done < length:
            part = min(_REQUEST, length - done)
            if not _append(fd, content(name, part)):
                break
            done += part
        os.fsync(fd)
        return done, done == length
    finally:
        os.close(fd)


def _grow(path: str, size: int) -> int:
    """Make a file of whole blocks longer as long as there is room for one more; its size."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while _append(fd, content(os.path.basename(path), BLOCK)):
            size += BLOCK
        os.fsync(fd)
        return size
    finally:
        os.close(fd)


def fill(folder: str, prefix: str, seed: int) -> dict[str, int]:
    """Write files until there is no room; {name: size}."""
    rng, made = random.Random(seed), dict[str, int]()
    while True:
        name = f"{prefix}-{len(made)}"
        length = rng.randrange(1, _LONGEST_BLOCKS) * BLOCK - rng.choice((0, 0, rng.randrange(0, BLOCK, 512)))
        try:
            made[name], whole = _write_file(f"{folder}/{name}", length)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            break
        if not whole:
            break
    # What is left is less than a request. A file whose map must grow first needs two blocks for one: then another does.
    whole_blocks = [name for name, size in made.items() if not size % BLOCK]
    for name in whole_blocks[-_GROWN:]:
        made[name] = _grow(f"{folder}/{name}", made[name])
    return made


if __name__ == "__main__":
    print(json.dumps(fill(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
