"""Disks made from a seed, and stores to put them in."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

from datarecovery.store.store import Store

CHUNK = 64 << 10


def make_store(root: Path) -> Store:
    return Store.create(root, 1, False, datetime.now(UTC))


def write_disk(path: Path, seed: int, chunks: int, tail: int = 0) -> bytes:
    """A disk of `chunks` chunks and `tail` bytes: data, zeros that were written, holes, repeats; its bytes."""
    chance = random.Random(seed)
    data = bytearray(chunks * CHUNK + tail)
    with open(path, "wb") as file:
        for at in range(0, len(data), CHUNK):
            length = min(CHUNK, len(data) - at)
            kind = chance.randrange(6)
            if kind == 0:
                continue  # a hole
            if kind == 1:
                part = bytes(length)
            elif kind == 2:
                part = (b"text %d " % seed * CHUNK)[:length]
            elif kind == 3:
                part = chance.randbytes(100) + bytes(length)
                part = part[:length]
            else:
                part = chance.randbytes(length)
            file.seek(at)
            file.write(part)
            data[at : at + length] = part
        file.truncate(len(data))
    return bytes(data)


def patch(path: Path, data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """Write bytes into a disk; the new content."""
    changed = bytearray(data)
    with open(path, "r+b") as file:
        for offset, part in edits:
            file.seek(offset)
            file.write(part)
            changed[offset : offset + len(part)] = part
    return bytes(changed)
