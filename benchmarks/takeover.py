"""From the death of a host to another host's lock on the file that the dead one had open.

Two hosts that count as machines of their own mount one volume. One writes to a file and has it fsynced, its process is
killed (SIGKILL), and the other opens the same file for writing as soon as it may. The parts are what that host's log
says of the recovery. Usage::

    python -m benchmarks.takeover                 # leases of 1 s and of the default; minutes
    python -m benchmarks.takeover --lease 1       # one of them
    python -m benchmarks.takeover --device iscsi://portal/target/lun    # WIPES it; with its fencing, if it has any
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import Table, write_section
from benchmarks.rig import run

DEFAULT_LEASE_S = 16.0
ROUNDS = {1.0: 9, DEFAULT_LEASE_S: 3}  # a round of the default's takes half a minute
LONGEST_S = 120.0
_VMFSCTL = str(Path(sys.executable).parent / "vmfsctl")
_FILES = 200  # made just before the death, so that there is something to replay
_STEPS = ("begin and fence", "replay", "removals", "finish")
_LINE = re.compile(
    r"recovered host victim .*silent for ([\d.]+) s.*?(\d+) records with (\d+) blocks.*; (.*)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Takeover:
    """One round. Seconds from the kill; the steps in milliseconds."""

    lease_s: float
    fencing: str
    seconds: float
    silent_s: float
    records: int
    blocks: int
    steps_ms: dict[str, float]


@contextmanager
def host(spec: str, folder: Path, name: str) -> Iterator[tuple[Path, int, Path]]:
    """A mount of a machine of that name: (mount point, pid, log). Whatever becomes of it, nothing is left."""
    mountpoint, log = folder / name, folder / f"{name}.log"
    mountpoint.mkdir(exist_ok=True)
    machine = ("--host", name, "--boot-id", str(uuid.uuid4()), "--no-supervisor")
    told = json.loads(run(_VMFSCTL, "mount", spec, str(mountpoint), *machine, "--log-file", str(log), "--json"))
    try:
        yield mountpoint, told["pid"], log
    finally:
        if Path(f"/proc/{told['pid']}").exists() and os.path.ismount(mountpoint):
            run(_VMFSCTL, "umount", str(mountpoint))
        else:
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=False, capture_output=True)


def take_over(path: Path, killed: float) -> float:
    """Open the file for writing as soon as its lock is to be had; the seconds since `killed`."""
    while True:
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() - killed > LONGEST_S:
                raise
        else:
            return time.monotonic() - killed


def one_round(spec: str, folder: Path, lease_s: float) -> Takeover:
    """Mount twice, kill one, take over."""
    with host(spec, folder, "survivor") as (there, _, log), host(spec, folder, "victim") as (here, pid, _):
        fencing = json.loads(run(_VMFSCTL, "info", "--json", str(there)))["volume"]["fencing"]
        disk = os.open(here / "disk", os.O_RDWR | os.O_CREAT, 0o600)
        for number in range(_FILES):
            (here / f"{uuid.uuid4()}-{number}").touch()
        os.pwrite(disk, os.urandom(1 << 20), 0)
        os.fsync(disk)
        time.sleep(lease_s * int.from_bytes(os.urandom(2)) / (1 << 16))  # anywhere between two heartbeats
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        took = take_over(there / "disk", killed)
        found = _LINE.search(log.read_text())
        assert found is not None, log.read_text()
        steps = {name: float(ms) for name, ms in re.findall(r"([a-z ]+?) (\d+) ms", found[4])}
        log.unlink()
        return Takeover(
            lease_s, fencing, took, float(found[1]), int(found[2]), int(found[3]),
            {name.strip(): ms for name, ms in steps.items()},
        )  # fmt: skip


def measure(device: str | None, lease_s: float, rounds: int) -> list[Takeover]:
    """A volume of that lease, and its rounds."""
    with tempfile.TemporaryDirectory(prefix="azekura-takeover-") as scratch:
        folder = Path(scratch)
        spec = device or str(folder / "lun.img")
        new = ["--force", "--yes"] if device else ["--create-size", "8G"]
        run(_VMFSCTL, "format", *new, "--name", "takeover", "--lease", f"{lease_s:g}", spec)
        return [one_round(spec, folder, lease_s) for _ in range(rounds)]


def row(rounds: list[Takeover]) -> tuple[str, ...]:
    """A line of the table."""
    times = [r.seconds for r in rounds]
    steps = [statistics.median(r.steps_ms.get(step, 0.0) for r in rounds) for step in _STEPS]
    return (
        f"{rounds[0].lease_s:g} s, {rounds[0].fencing.partition(':')[0]}", str(len(rounds)),
        f"{statistics.median(times):.2f}", f"{max(times):.2f}",
        f"{statistics.median(r.silent_s for r in rounds):.1f}",
        *(f"{step:.0f}" for step in steps),
        f"{statistics.median(r.blocks for r in rounds):.0f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="a LUN to format and use, instead of a file; all on it is lost")
    parser.add_argument("--lease", type=float, action="append", help="seconds; may be given again")
    parser.add_argument("--rounds", type=int, help="of each lease")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    leases = args.lease or sorted(ROUNDS)
    found = {lease: measure(args.device, lease, args.rounds or ROUNDS.get(lease, 3)) for lease in leases}
    table = Table(
        "From kill -9 to the lock",
        f"Seconds until another host has the lock of a file that the dead host had open for writing; that one had made "
        f"{_FILES} files just before. Silence: for how long its heartbeat had stood still when its slot was taken. The "
        "steps are medians. The worst total is of a kill right behind a heartbeat.",
        ("lease", "rounds", "median s", "worst s", "silence s", *(f"{s} ms" for s in _STEPS), "blocks"),
        [row(rounds) for rounds in found.values()],
    )
    if args.json:
        print(json.dumps([asdict(r) for rounds in found.values() for r in rounds], indent=2))
    else:
        print(table.text())
    if not args.no_docs:
        write_section("takeover", "Taking over from a dead host", "python -m benchmarks.takeover", [table])


if __name__ == "__main__":
    main()
