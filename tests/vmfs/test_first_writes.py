"""First writes to blocks, many at once: as a guest makes them on a thin disk and on a clone."""

from __future__ import annotations

import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from vmfs.client import Mount

PIECE_BYTES = 4096
PIECES = 16 * 48  # 48 blocks of 64 KiB
THREADS = 8


def content(piece: int, writer: int) -> bytes:
    """What a writer puts there: each 8 bytes of it name the piece and the writer."""
    return (piece << 8 | writer).to_bytes(8, "little") * (PIECE_BYTES // 8)


def write_all(path: Path, writer: int, done: set[int]) -> None:
    """Every piece once, in random order, by threads that meet in the same blocks; `done`: what was acknowledged."""
    order = list(range(PIECES))
    random.Random(writer).shuffle(order)
    failures: list[BaseException] = []

    def body(mine: list[int]) -> None:
        memory = mmap.mmap(-1, PIECE_BYTES)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            for piece in mine:
                memory[:] = content(piece, writer)
                assert os.pwrite(fd, memory, piece * PIECE_BYTES) == PIECE_BYTES
                done.add(piece)
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(fd)

    # Neighbours in the shuffled order go to different threads, and so do the pieces of one block.
    threads = [threading.Thread(target=body, args=(order[n::THREADS],)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def pieces(path: Path) -> list[bytes]:
    """What is in the file, piece by piece."""
    data = path.read_bytes()
    assert len(data) == PIECES * PIECE_BYTES
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


@pytest.mark.parametrize("below", ["thin", "clone"])
def test_no_piece_is_lost(here: Path, below: str) -> None:
    disk = here / "disk"
    with disk.open("wb") as file:
        file.truncate(PIECES * PIECE_BYTES)
    if below == "clone":
        write_all(disk, 1, set())
        Mount.for_path(here).clone(disk, here / "clone")
        disk = here / "clone"
    write_all(disk, 2, set())
    assert pieces(disk) == [content(p, 2) for p in range(PIECES)]
    assert os.stat(disk).st_blocks * 512 == PIECES * PIECE_BYTES
    if below == "clone":
        assert pieces(here / "disk") == [content(p, 1) for p in range(PIECES)]


def test_a_clone_amid_first_writes_has_all_that_was_acknowledged(here: Path) -> None:
    disk = here / "disk"
    with disk.open("wb") as file:
        file.truncate(PIECES * PIECE_BYTES)
    done: set[int] = set()
    writing = threading.Thread(target=write_all, args=(disk, 3, done))
    writing.start()
    clones: list[tuple[Path, set[int]]] = []
    while writing.is_alive() and len(clones) < 6:
        before = set(done)
        clones.append((here / f"clone-{len(clones)}", before))
        Mount.for_path(here).clone(disk, clones[-1][0])
    writing.join()
    assert pieces(disk) == [content(p, 3) for p in range(PIECES)]
    assert clones
    nothing = bytes(PIECE_BYTES)
    for path, before in clones:
        for piece, found in enumerate(pieces(path)):
            assert found == content(piece, 3) or (piece not in before and found == nothing), (path, piece)
