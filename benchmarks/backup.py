"""Speed of Data Recovery on this machine: a table of MB/s of logical data, and of peak memory.

The disk is made of this machine's own files (programs, libraries, documents under /usr), as a guest's would be, with
bytes that do not compress and repeats of earlier parts between them; half of it is unwritten. Each step is a
process of its own; `hash only` is the bound: the same threads read and hash, and store nothing.

    python -m benchmarks.backup [--size-mib 4096] [--dir /tmp]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
SEED = 20


def system_bytes() -> Iterator[bytes]:
    """MiB after MiB of the files under /usr, over and over."""
    pending = bytearray()
    while True:
        for folder, _, names in os.walk("/usr"):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                with open(path, "rb") as file:
                    while part := file.read(4 * MIB):
                        pending += part
                        while len(pending) >= MIB:
                            yield bytes(pending[:MIB])
                            del pending[:MIB]


def make_disk(path: Path, size_mib: int) -> None:
    """A sparse disk image: of each 8 MiB, 4 are never written."""
    files = system_bytes()
    with open(path, "wb") as file:
        for at in range(0, size_mib, 8):
            file.seek(at * MIB)
            file.write(b"".join(next(files) for _ in range(3)))
            # One MiB that does not compress; every eighth of them was on the disk before.
            file.write(random.Random(at - 56 if at % 64 == 56 else at).randbytes(MIB))
        file.truncate(size_mib * MIB)


def change(path: Path, size_mib: int) -> None:
    """Rewrite 1 % of the disk in runs of 1 MiB."""
    chance = random.Random(SEED + 1)
    with open(path, "r+b") as file:
        for at in chance.sample(range(0, size_mib, 8), max(1, size_mib // 100)):
            file.seek(at * MIB)
            file.write(chance.randbytes(MIB))


def drop_caches() -> None:
    """Read from the disk, not from memory; without root the figures are warm ones."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass


HASH_ONLY = """
import sys, threading, hashlib, os
from pathlib import Path
from datarecovery.sources.plain import OpenFile
from datarecovery.workers import in_order, worker_count
disk = OpenFile(Path(sys.argv[1]))
local = threading.local()
def work(offset, length):
    if not hasattr(local, "buffer"):
        local.buffer = bytearray(4 << 20)
    view = memoryview(local.buffer)[:length]
    disk.read_into(offset, view)
    for at in range(0, length, 65536):
        hashlib.sha256(view[at:at + 65536]).digest()
tasks = (
    lambda at=at, end=e.offset + e.length: work(at, min(4 << 20, end - at))
    for e in disk.data_extents() for at in range(e.offset, e.offset + e.length, 4 << 20)
)
for _ in in_order(tasks, worker_count(), "hash"):
    pass
"""


def run(command: list[str]) -> tuple[float, int, str]:
    """Seconds, peak memory in MiB and output of a process."""
    begun = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command} failed with exit code {child.returncode}: {output}")
    return time.monotonic() - begun, usage.ru_maxrss // 1024, output


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=4096)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="datarecovery-bench-", dir=options.dir))
    disk, store = work / "disk.raw", work / "store"
    tool = [sys.executable, "-c", "from datarecovery.cli import main; main()"]
    backup = [*tool, "backup", "--store", str(store), "--vm", "bench", str(disk), "--json"]
    try:
        make_disk(disk, options.size_mib)
        logical = disk.stat().st_size
        data = disk.stat().st_blocks * 512
        run([*tool, "store", "create", str(store)])
        print(f"disk {logical / 1e6:,.0f} MB, of it {data / 1e6:,.0f} MB written; {os.cpu_count()} cores")
        print(f"{'step':<14}{'s':>8}{'MB/s logical':>14}{'MB/s of data':>14}{'stored MB':>11}{'peak MiB':>10}")

        def step(name: str, command: list[str]) -> None:
            drop_caches()
            seconds, peak, output = run(command)
            stored = ""
            if command is backup:
                stored = f"{json.loads(output)['total']['stored'] / 1e6:,.1f}"
            rate, data_rate = logical / seconds / 1e6, data / seconds / 1e6
            print(f"{name:<14}{seconds:>8.2f}{rate:>14,.0f}{data_rate:>14,.0f}{stored:>11}{peak:>10}", flush=True)

        step("hash only", [sys.executable, "-c", HASH_ONLY, str(disk)])
        step("first", backup)
        step("unchanged", backup)
        change(disk, options.size_mib)
        step("1 % changed", backup)
        step("restore", [*tool, "restore", "--store", str(store), "bench@latest", str(work / "out")])
        step("verify", [*tool, "verify", "--store", str(store)])
        step("verify --quick", [*tool, "verify", "--store", str(store), "--quick"])
        run(["cmp", str(disk), str(work / "out" / "disk.raw")])
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
