"""Speed of a volume's data path against the disk beneath it.

    python -m benchmarks.datapath [--dir DIR] [--rounds N] [--seconds S] [--size-mib M] [--quick] [--json] [--no-docs]

- fio (libaio, O_DIRECT) on a written file of the mount and on a written plain file of the same size on the same disk,
  in turn within each round; medians over the rounds.
- What the first write to a block of 64 KiB costs, in a thin file and in a clone, against writing the same 4 KiB again.
- Files written from front to end, as `dd` and `cp` do, through the page cache and past it.
- How long a clone takes.

Needs root and fio. Writes its figures to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import Table, write_section
from benchmarks.rig import MIB, Rig, aligned, mounted_volume, run, write_whole
from vmfs.client import Mount

BLOCK_BYTES = 64 * 1024  # the volume's
PAGE_BYTES = 4096
SEED = 5


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job."""

    title: str
    rw: str
    block: str
    depth: int


JOBS = (
    Job("4k random read, QD 1", "randread", "4k", 1),
    Job("4k random read, QD 32", "randread", "4k", 32),
    Job("4k random write, QD 1", "randwrite", "4k", 1),
    Job("4k random write, QD 32", "randwrite", "4k", 32),
    Job("1M sequential read, QD 4", "read", "1M", 4),
    Job("1M sequential write, QD 4", "write", "1M", 4),
)


@dataclass(frozen=True, slots=True)
class JobResult:
    """Medians of a job: operations a second, the ratio of pairs, and the mount's CPU time an operation."""

    title: str
    disk_iops: float
    mount_iops: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds of a 4 KiB write past the page cache."""

    title: str
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """MB/s (10^6 bytes) of one way of writing, durable at its end."""

    title: str
    disk_mb_s: float
    mount_mb_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class CloneTime:
    """Milliseconds of a clone, asked for over the control socket (`vmfsctl` adds the start of Python)."""

    title: str
    milliseconds: float


def fio(path: Path, job: Job, seconds: float, size_mib: int) -> tuple[float, int]:
    """(operations a second, operations) of one run."""
    told = run(
        "fio", "--name=x", f"--filename={path}", f"--rw={job.rw}", f"--bs={job.block}", f"--iodepth={job.depth}",
        "--ioengine=libaio", "--direct=1", "--time_based", f"--runtime={seconds}", f"--size={size_mib}M",
        "--norandommap", "--output-format=json",
    )  # fmt: skip
    result = json.loads(told[told.index("{") :])["jobs"][0]
    sides = (result["read"], result["write"])
    return sum(s["iops"] for s in sides), sum(s["total_ios"] for s in sides)


def measure_jobs(rig: Rig, rounds: int, seconds: float, size_mib: int) -> list[JobResult]:
    """All fio jobs, the disk and the mount in turn."""
    plain, mounted = rig.plain / "disk", rig.mount / "disk"
    write_whole(plain, size_mib)
    write_whole(mounted, size_mib)
    disk: dict[Job, list[float]] = {job: [] for job in JOBS}
    mount: dict[Job, list[float]] = {job: [] for job in JOBS}
    cost: dict[Job, list[float]] = {job: [] for job in JOBS}
    for _ in range(rounds):
        for job in JOBS:
            disk[job].append(fio(plain, job, seconds, size_mib)[0])
            before = rig.cpu_seconds()
            iops, count = fio(mounted, job, seconds, size_mib)
            mount[job].append(iops)
            cost[job].append((rig.cpu_seconds() - before) / count * 1e6)
    plain.unlink()
    mounted.unlink()
    results = []
    for job in JOBS:
        ratios = [m / d for m, d in zip(mount[job], disk[job], strict=True)]
        results.append(
            JobResult(
                job.title, statistics.median(disk[job]), statistics.median(mount[job]), statistics.median(ratios),
                min(ratios), max(ratios), statistics.median(cost[job]),
            )
        )  # fmt: skip
    return results


def write_each_block(path: Path, blocks: Sequence[int], chance: random.Random) -> list[float]:
    """Write 4 KiB somewhere in each block, one after the other; microseconds of each."""
    memory = aligned(PAGE_BYTES)
    memory[:] = chance.randbytes(PAGE_BYTES)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    times = []
    try:
        for block in blocks:
            offset = block * BLOCK_BYTES + chance.randrange(BLOCK_BYTES // PAGE_BYTES) * PAGE_BYTES
            started = time.perf_counter()
            os.pwrite(fd, memory, offset)
            times.append((time.perf_counter() - started) * 1e6)
    finally:
        os.close(fd)
    return times


def measure_first_writes(rig: Rig, rounds: int, size_mib: int) -> list[Latency]:
    """First writes to every block in random order, and then once more to the same blocks."""
    titles = (
        "thin file, first write to a block", "thin file, again",
        "clone, first write to a block", "clone, again",
    )  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in titles}
    chance = random.Random(SEED)
    client = Mount.for_path(rig.mount)
    thin, source, clone = (rig.mount / name for name in ("thin", "source", "clone"))
    write_whole(source, size_mib)
    blocks = list(range(size_mib * MIB // BLOCK_BYTES))
    for _ in range(rounds):
        with thin.open("wb") as file:
            file.truncate(size_mib * MIB)
        client.clone(source, clone)
        for title, path in zip(titles, (thin, thin, clone, clone), strict=True):
            chance.shuffle(blocks)
            cuts = statistics.quantiles(write_each_block(path, blocks, chance), n=100)
            found[title].append((cuts[49], cuts[98]))
        thin.unlink()
        clone.unlink()
    source.unlink()
    return [
        Latency(title, statistics.median(p50 for p50, _ in each), statistics.median(p99 for _, p99 in each))
        for title, each in found.items()
    ]


def write_direct(path: Path, size_mib: int, source: Path) -> None:
    """As `dd bs=1M oflag=direct conv=fsync`."""
    run("dd", f"if={source}", f"of={path}", "bs=1M", f"count={size_mib}", "oflag=direct", "conv=fsync", "status=none")


def write_buffered(path: Path, size_mib: int, source: Path) -> None:
    """As `dd bs=1M conv=notrunc,fsync`: what is in the file already is written over."""
    run("dd", f"if={source}", f"of={path}", "bs=1M", f"count={size_mib}", "conv=notrunc,fsync", "status=none")


def write_small(path: Path, size_mib: int, source: Path) -> None:
    """As many small files of 4 to 100 KiB as make up the size, and one sync of the file system at the end."""
    path.mkdir()
    chance = random.Random(SEED)
    left = size_mib * MIB
    with source.open("rb") as data:
        bytes_at_hand = data.read(100 * 1024)
    number = 0
    while left > 0:
        length = min(left, chance.randrange(4 * 1024, 100 * 1024))
        (path / f"{number}").write_bytes(bytes_at_hand[:length])
        left -= length
        number += 1
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        run("sync", "-f", str(path))
    finally:
        os.close(fd)


SMALL_SHARE = 8  # small files take so much longer a byte that a part of the size will do

# How it is called, what writes, whether the file is there already, and the part of the size that is written.
WAYS: tuple[tuple[str, Callable[[Path, int, Path], None], bool, int], ...] = (
    ("new file, dd bs=1M, O_DIRECT", write_direct, False, 1),
    ("new file, dd bs=1M, page cache", write_buffered, False, 1),
    ("written file, dd bs=1M, page cache", write_buffered, True, 1),
    ("small files of 4 to 100 KiB", write_small, False, SMALL_SHARE),
)


def measure_throughput(rig: Rig, rounds: int, size_mib: int) -> list[Throughput]:
    """Each way of writing, on the disk and on the mount in turn."""
    source = rig.plain / "source"
    write_whole(source, size_mib)
    source.read_bytes()  # from here on it is read from the page cache
    results = []
    for title, way, again, share in WAYS:
        part_mib = size_mib // share
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for directory, found in zip((rig.plain, rig.mount), rates, strict=True):
                target = directory / f"new-{number}"
                if again:
                    way(target, part_mib, source)
                started = time.perf_counter()
                way(target, part_mib, source)
                found.append(part_mib * MIB / 1e6 / (time.perf_counter() - started))
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink()
        ratio = statistics.median(m / d for d, m in zip(*rates, strict=True))
        results.append(Throughput(title, statistics.median(rates[0]), statistics.median(rates[1]), ratio))
    source.unlink()
    return results


def measure_clones(rig: Rig, rounds: int, data_mib: int) -> list[CloneTime]:
    """Clones of files of 1 and 10 GiB of which `data_mib`, spread evenly, hold data."""
    client = Mount.for_path(rig.mount)
    results = []
    for size_gib in (1, 10):
        source, target = rig.mount / "source", rig.mount / "clone"
        with source.open("wb") as file:
            for index in range(data_mib):
                file.seek(index * (size_gib << 30) // data_mib)
                file.write(os.urandom(MIB))
            file.truncate(size_gib << 30)
        times = []
        for _ in range(max(rounds, 3)):
            started = time.perf_counter()
            client.clone(source, target)
            times.append((time.perf_counter() - started) * 1e3)
            target.unlink()
        source.unlink()
        results.append(CloneTime(f"{size_gib} GiB, {data_mib} MiB of it written", statistics.median(times)))
    return results


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    jobs: list[JobResult]
    first_writes: list[Latency]
    throughput: list[Throughput]
    clones: list[CloneTime]

    def tables(self, rounds: int, seconds: float, size_mib: int, stream_mib: int) -> list[Table]:
        """For people."""
        return [
            Table(
                "fio",
                f"Operations a second, O_DIRECT, on a written file of {size_mib} MiB; {seconds:g} s a run, medians of "
                f"{rounds} rounds, the range of the ratios beside theirs. CPU: of the mount's process.",
                ("", "disk", "mount", "ratio", "from - to", "CPU us/op"),
                [
                    (j.title, f"{j.disk_iops:,.0f}", f"{j.mount_iops:,.0f}", f"{j.ratio:.2f}",
                     f"{j.lowest_ratio:.2f} - {j.highest_ratio:.2f}", f"{j.cpu_us:.0f}")
                    for j in self.jobs
                ],
            ),
            Table(
                "The first write to a block",
                "4 KiB, O_DIRECT, one at a time, blocks of 64 KiB in random order; microseconds. A thin file's block "
                "is written whole the first time, a clone's is copied.",
                ("", "p50", "p99"),
                [(w.title, f"{w.p50_us:,.0f}", f"{w.p99_us:,.0f}") for w in self.first_writes],
            ),
            Table(
                "Files written from front to end",
                f"{stream_mib} MiB ({stream_mib // SMALL_SHARE} MiB of small files), durable at the end; MB/s. The "
                "disk is measured through its own file system; the LUN is a sparse file on it.",
                ("", "disk", "mount", "ratio"),
                [(t.title, f"{t.disk_mb_s:,.0f}", f"{t.mount_mb_s:,.0f}", f"{t.ratio:.2f}") for t in self.throughput],
            ),
            Table(
                "Clones",
                "Milliseconds, over the control socket.",
                ("", "ms"),
                [(c.title, f"{c.milliseconds:.1f}") for c in self.clones],
            ),
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the LUN is made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each fio run")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the file that fio works on")
    parser.add_argument("--stream-mib", type=int, default=512, help="of a file written from front to end")
    parser.add_argument("--quick", action="store_true", help="two short rounds on small files, for trying; no document")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.size_mib, args.stream_mib, args.no_docs = 2, 1.0, 256, 128, True
    with mounted_volume(args.dir, "16G") as rig:
        results = Results(
            jobs=measure_jobs(rig, args.rounds, args.seconds, args.size_mib),
            first_writes=measure_first_writes(rig, args.rounds, args.stream_mib // 4),
            throughput=measure_throughput(rig, args.rounds, args.stream_mib),
            clones=measure_clones(rig, args.rounds, args.stream_mib // 2),
        )
    tables = results.tables(args.rounds, args.seconds, args.size_mib, args.stream_mib)
    if args.json:
        print(json.dumps(asdict(results), indent=2))
    else:
        print("\n\n".join(table.text() for table in tables))
    if not args.no_docs:
        write_section("datapath", "The data path", "python -m benchmarks.datapath", tables)


if __name__ == "__main__":
    main()
