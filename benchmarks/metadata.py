"""Rates of operations on names and small files: a volume against ext4 on a loop device over the same disk.

    python -m benchmarks.metadata [--dir DIR] [--rounds N] [--files N] [--threads N] [--quick] [--json] [--no-docs]

Both file systems lie in a sparse file on the same disk, and both are used in turn, one phase after the other: create
empty files, create files of 4 KiB, stat, rename, read and unlink them; then files that are each made durable (fsync).
With one thread, and with several in directories of their own. Needs root. Writes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import Table, write_section
from benchmarks.rig import MIB, mounted_volume, run

SMALL_BYTES = 4096
LUN_BYTES = 4096 * MIB


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second, all threads together: medians, and the median ratio of pairs."""

    phase: str
    threads: int
    ext4: float
    mount: float
    ratio: float


@contextmanager
def ext4_on_loop(directory: Path) -> Iterator[Path]:
    """A mounted ext4 on a loop device (direct I/O) over a sparse file in `directory`."""
    image, target = directory / "ext4.img", directory / "ext4"
    with image.open("wb") as file:
        file.truncate(LUN_BYTES)
    target.mkdir()
    run("mkfs.ext4", "-q", "-F", str(image))
    loop = run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    try:
        run("mount", loop, str(target))
        try:
            yield target
        finally:
            run("umount", str(target))
    finally:
        run("losetup", "--detach", loop)


def _write(path: Path, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, bytes(SMALL_BYTES))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


PHASES: tuple[tuple[str, Callable[[Path, int], object]], ...] = (
    ("create, empty", lambda d, n: os.close(os.open(d / f"e{n}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))),
    ("create, 4 KiB", lambda d, n: _write(d / f"f{n}", durable=False)),
    ("stat", lambda d, n: os.stat(d / f"f{n}")),
    ("rename", lambda d, n: os.rename(d / f"f{n}", d / f"g{n}")),
    ("open, read, close", lambda d, n: (d / f"g{n}").read_bytes()),
    ("unlink, 4 KiB", lambda d, n: os.unlink(d / f"g{n}")),
    ("create, 4 KiB, fsync", lambda d, n: _write(d / f"s{n}", durable=True)),
)


def timed(directories: list[Path], files: int, work: Callable[[Path, int], object]) -> float:
    """Operations a second of one thread for each directory."""
    failures: list[BaseException] = []

    def body(directory: Path) -> None:
        try:
            for number in range(files):
                work(directory, number)
        except BaseException as error:  # told to the main thread, which raises it
            failures.append(error)

    threads = [threading.Thread(target=body, args=(d,), name=f"bench-{d.name}") for d in directories]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if failures:
        raise failures[0]
    return files * len(directories) / elapsed


def measure(ext4: Path, mount: Path, rounds: int, files: int, threads: int) -> list[Rate]:
    """All phases, both file systems in turn."""
    rates: dict[str, tuple[list[float], list[float]]] = {phase: ([], []) for phase, _ in PHASES}
    for number in range(rounds):
        for phase, work in PHASES:
            for root, found in zip((ext4, mount), rates[phase], strict=True):
                directories = [root / f"{threads}-{number}-{t}" for t in range(threads)]
                for directory in directories:
                    directory.mkdir(exist_ok=True)
                found.append(timed(directories, files, work))
    return [
        Rate(
            phase, threads, statistics.median(pair[0]), statistics.median(pair[1]),
            statistics.median(m / e for e, m in zip(*pair, strict=True)),
        )
        for phase, pair in rates.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the two images are made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=1000, help="of each thread")
    parser.add_argument("--threads", type=int, default=4, help="of the second table")
    parser.add_argument("--quick", action="store_true", help="one round of 200 files, for trying; no document")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.files, args.no_docs = 1, 200, True
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="azekura-ext4-") as scratch:
        with ext4_on_loop(Path(scratch)) as ext4, mounted_volume(args.dir, f"{LUN_BYTES // MIB}M") as rig:
            rates = [r for n in (1, args.threads) for r in measure(ext4, rig.mount, args.rounds, args.files, n)]
    table = Table(
        "Names and small files",
        f"Operations a second, all threads together; {args.files} files a thread in a directory of its own, medians of "
        f"{args.rounds} rounds. ext4 serves them from the kernel; a volume's host takes a lock on the disk for each "
        "inode, which other hosts can see.",
        ("", "threads", "ext4", "mount", "ratio"),
        [(r.phase, str(r.threads), f"{r.ext4:,.0f}", f"{r.mount:,.0f}", f"{r.ratio:.3f}") for r in rates],
    )
    if args.json:
        print(json.dumps([asdict(r) for r in rates], indent=2))
    else:
        print(table.text())
    if not args.no_docs:
        write_section("metadata", "Names and small files", "python -m benchmarks.metadata", [table])


if __name__ == "__main__":
    main()
