"""What the FUSE adapter itself costs: fio on a mounted file against fio on the file behind it, in turn.

    python -m benchmarks.fuse_protocol [--dir DIR] [--seconds S] [--rounds N] [--size-mib M] [--threads T]

The data plane is one preadv or pwritev on the backing file, so the ratio is the adapter's and the kernel's alone.
Within each round both are measured right after each other; the figures are medians. Needs root and fio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
from dataclasses import dataclass

from tests.fuse.ramfs import RamFs
from vmfs.fuse.contract import ROOT_ID, Context
from vmfs.fuse.mount import mount, unmount
from vmfs.fuse.session import DATA_THREADS, Session

NAME = "disk.img"
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Job:
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


class FileBacked(RamFs):
    """One file, whose data plane is one system call on the backing file."""

    def __init__(self, path: str) -> None:
        super().__init__(timeout_s=TIMEOUT_S)
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        entry = self.mknod(Context(0, 0, 0), ROOT_ID, NAME.encode(), 0o100644, 0)
        self.nodes[entry.nodeid].size = os.fstat(self._fd).st_size

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        return os.preadv(self._fd, (buf[:size],), offset)

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        return os.pwritev(self._fd, (buf[:size],), offset)

    def destroy(self) -> None:
        os.close(self._fd)


def fio(path: str, job: Job, seconds: float, size_mib: int) -> float:
    """Operations a second."""
    command = [
        "fio", "--name=x", f"--filename={path}", f"--rw={job.rw}", f"--bs={job.block}", f"--iodepth={job.depth}",
        "--ioengine=libaio", "--direct=1", "--time_based", f"--runtime={seconds}", f"--size={size_mib}M",
        "--randrepeat=1", "--norandommap", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(result["read"]["iops"] + result["write"]["iops"])


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(path: str, mounted: str, args: argparse.Namespace) -> None:
    print(f"{'':28}{'file':>10}{'mount':>10}{'ratio':>8}{'CPU us/op':>11}")
    for job in JOBS:
        behind, through, cost = [], [], []
        for _ in range(args.rounds):
            behind.append(fio(path, job, args.seconds, args.size_mib))
            before = cpu_s()
            through.append(fio(mounted, job, args.seconds, args.size_mib))
            cost.append((cpu_s() - before) / (through[-1] * args.seconds) * 1e6)
        ratio = statistics.median(t / b for t, b in zip(through, behind, strict=True))
        print(
            f"{job.title:28}{statistics.median(behind):10.0f}{statistics.median(through):10.0f}"
            f"{ratio:8.2f}{statistics.median(cost):11.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the backing file is made")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--threads", type=int, default=DATA_THREADS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="fuse-bench-") as scratch:
        path, target = os.path.join(scratch, NAME), os.path.join(scratch, "mnt")
        os.mkdir(target)
        with open(path, "wb") as backing:
            for _ in range(args.size_mib):
                backing.write(os.urandom(1 << 20))
            os.fsync(backing.fileno())
        fs = FileBacked(path)
        session = Session(mount(target, "bench"), fs, fs, data_threads=args.threads, name="bench")
        session.start()
        try:
            measure(path, os.path.join(target, NAME), args)
        finally:
            unmount(target)
            session.wait()


if __name__ == "__main__":
    main()
