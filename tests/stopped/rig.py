"""A host is stopped in a burst of writes, another takes its lock and writes, the first one goes on: what landed?

As a program it measures how often a late write gets through:

    python -m tests.stopped.rig none --rounds 100            # --boot-id apart, a file: nothing fences
    python -m tests.stopped.rig kill --rounds 100            # one machine: the stopped process is killed first
    python -m tests.stopped.rig reservations --rounds 100    # Linux LIO in a guest
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.vmfs.datastore import vmfsctl

LEASE_S: Final = 1.0
STOPPED_LEASES: Final = 3
FILE_BYTES: Final = 2 << 20
PAGE: Final = 4096
LIMIT_S: Final = 60.0
HELD_UP_S: Final = 15.0  # a takeover takes a break time and some milliseconds; a busy machine several times that
THEIRS, OURS = b"\x11", b"\x22"
_WRITERS: Final = 8
_BURST_S: Final = (0.05, 0.3)
_SETTLE_S: Final = 0.5  # a late write is there within milliseconds of SIGCONT: it was about to be submitted

# Several processes, as several guests would be: each writes a page, waits for its end, writes another.
_WRITER: Final = """
import errno, mmap, os, random, sys
path, size, ready = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
while True:
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        break
    except OSError as error:
        if error.errno != errno.EBUSY:  # the other host has just used it
            raise
page = mmap.mmap(-1, 4096)
page[:] = b"\\x11" * 4096
os.write(ready, b"x")
while True:
    try:
        os.pwrite(fd, page, random.randrange(size // 4096) * 4096)
    except OSError:
        os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round."""

    late_pages: int
    """Pages that hold what the stopped host wrote, after the other one had written them all."""
    takeover_s: float
    """From the stop to the other host's lock."""
    held_up: bool = False
    """It was stopped within the lock section of a compare-and-write on a file, where it holds up everyone: no round."""


class Pair:
    """Two mounts of one volume. Close it."""

    def __init__(self, folder: Path, lun: str, *, apart: bool, seed: int, file_lun: bool) -> None:
        self.folder = folder
        self.lun = lun
        self.apart = apart
        self.random = random.Random(seed)
        self.mounts: dict[str, int] = {}
        made = ("--create-size", "256M") if file_lun else ()
        out = vmfsctl("format", "--name", "ds1", "--lease", LEASE_S, "--max-hosts", 4, *made, "--json", lun)
        self.can_be_held_up = file_lun and apart
        self.fencing: str = json.loads(out.stdout)["fencing"]
        self.mount("esx1")
        self.mount("esx2")
        self.write_all("esx1", "disk", b"\0")

    def path(self, host: str) -> Path:
        return self.folder / host

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text()

    def mount(self, host: str) -> None:
        path = self.path(host)
        path.mkdir(exist_ok=True)
        boot = ("--boot-id", uuid.UUID(int=self.random.getrandbits(128))) if self.apart else ()
        log = self.folder / f"{host}.log"
        out = vmfsctl("mount", self.lun, path, "--host", host, "--log-file", log, "--no-supervisor", "--json", *boot)
        self.mounts[host] = json.loads(out.stdout)["pid"]

    def umount(self, host: str) -> None:
        """In order where it still can be; nothing is left in any case."""
        pid = self.mounts.pop(host)
        subprocess.run(["umount", "--lazy", str(self.path(host))], capture_output=True, check=False)
        until = time.monotonic() + LIMIT_S
        while _exists(pid):
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def info(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(vmfsctl("info", "--json", self.path(host)).stdout)
        return found

    def write_all(self, host: str, name: str, byte: bytes) -> None:
        """Every page of the file, past all caches."""
        fd = os.open(self.path(host) / name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            with mmap.mmap(-1, FILE_BYTES) as memory:
                memory[:] = byte * FILE_BYTES
                assert os.pwrite(fd, memory, 0) == FILE_BYTES
        finally:
            os.close(fd)

    def read_all(self, host: str, name: str) -> bytes:
        fd = os.open(self.path(host) / name, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, FILE_BYTES) as memory:
                assert os.preadv(fd, [memory], 0) == FILE_BYTES
                return bytes(memory)
        finally:
            os.close(fd)

    def close(self) -> None:
        for host in list(self.mounts):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.mounts[host], signal.SIGCONT)
            self.umount(host)

    # -- one round ---------------------------------------------------------------------------------

    def stop_in_a_burst(self) -> Outcome:
        """esx1 writes, is stopped for three leases, and goes on; esx2 has the file meanwhile. esx1 mounts again."""
        victim = self.mounts["esx1"]
        with self._burst("esx1"):
            time.sleep(self.random.uniform(*_BURST_S))
            os.kill(victim, signal.SIGSTOP)
            stopped = time.monotonic()
            taken = self.take_over(stopped)
            took = time.monotonic() - stopped
            if taken:
                self.write_all("esx2", "disk", OURS)
                time.sleep(max(0.0, stopped + STOPPED_LEASES * LEASE_S - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):  # the other host has killed it
                os.kill(victim, signal.SIGCONT)
            time.sleep(_SETTLE_S)
            found = self.read_all("esx2", "disk") if taken else OURS * FILE_BYTES
        late = sum(found[at : at + PAGE] != OURS * PAGE for at in range(0, FILE_BYTES, PAGE))
        self.umount("esx1")
        self.mount("esx1")
        return Outcome(late, took, held_up=not taken)

    def take_over(self, began: float) -> bool:
        """Open the file for writing on esx2 as soon as that is possible. False: the stopped host holds up everyone.

        Each try is a process: one that hangs in the volume can be left.
        """
        script = "import os, sys; os.open(sys.argv[1], os.O_RDWR)"
        while True:
            opener = subprocess.Popen(
                [sys.executable, "-S", "-c", script, str(self.path("esx2") / "disk")], stderr=subprocess.DEVNULL
            )
            try:
                if opener.wait(HELD_UP_S) == 0:
                    return True
            except subprocess.TimeoutExpired:
                if self.can_be_held_up:
                    opener.kill()
                    return False
                raise
            waited = time.monotonic() - began
            if waited > HELD_UP_S and self.can_be_held_up:
                return False
            assert waited < LIMIT_S, f"esx2 never got the file\n{self.log('esx2')}"

    @contextlib.contextmanager
    def _burst(self, host: str) -> Iterator[None]:
        reading, writing = os.pipe()
        arguments = [sys.executable, "-c", _WRITER, str(self.path(host) / "disk"), str(FILE_BYTES), str(writing)]
        writers = [subprocess.Popen(arguments, pass_fds=[writing]) for _ in range(_WRITERS)]
        try:
            os.close(writing)
            ready = 0
            while ready < _WRITERS:
                got = os.read(reading, _WRITERS)
                assert got, "the writers ended before they wrote"
                ready += len(got)
            yield
        finally:
            os.close(reading)
            for writer in writers:
                writer.kill()
                writer.wait(LIMIT_S)


def _exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def measure(pair: Pair, rounds: int) -> list[Outcome]:
    """Rounds one after the other, told as they end."""
    outcomes: list[Outcome] = []
    for number in range(rounds):
        outcome = pair.stop_in_a_burst()
        if outcome.held_up:
            print(f"round {number + 1}: stopped within a compare-and-write, which holds up everyone: not counted")
            continue
        outcomes.append(outcome)
        late = sum(o.late_pages > 0 for o in outcomes)
        last = outcomes[-1]
        print(
            f"round {number + 1}: {last.late_pages} late pages, taken over after {last.takeover_s:.2f} s; "
            f"{late} of {len(outcomes)} let something through", flush=True,
        )  # fmt: skip
    return outcomes


@contextlib.contextmanager
def a_pair(folder: Path, mode: str, seed: int, lun: str | None = None) -> Iterator[Pair]:
    """Two hosts in one of the modes: "none", "kill", or "reservations" on the LUN at `lun`."""
    path = lun if lun is not None else str(folder / "lun.img")
    pair = Pair(folder, path, apart=mode != "kill", seed=seed, file_lun=lun is None)
    try:
        yield pair
    finally:
        pair.close()
        if lun is None:
            Path(path).unlink()


def main() -> None:
    """The measurement; see the module's head."""
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("mode", choices=["none", "kill", "reservations"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, lun = Path(name), None
        if given.mode == "reservations":
            from tests.luns.array import LioArray

            (folder / "array").mkdir()
            array = LioArray(folder / "array")
            stack.callback(array.close)
            lun = array.lun(0).url
        with a_pair(folder, given.mode, given.seed, lun) as pair:
            print(pair.fencing)
            outcomes = measure(pair, given.rounds)
    late = sum(o.late_pages > 0 for o in outcomes)
    slowest = max(o.takeover_s for o in outcomes)
    print(f"{late} of {len(outcomes)} stops let late writes through; taken over after {slowest:.2f} s at most")


if __name__ == "__main__":
    main()
