"""Looking at a volume that hosts use: nothing is found while they work on it, and damage is."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.check.fastclock import FastClock
from tests.check.small_volume import SmallVolume
from tests.check.test_damage import EXPECTED
from tests.check.test_findings import BREAKS
from tests.core.ramhost import CONTEXT, RamHost, RamVolume
from vmfs.check import Kind, Report
from vmfs.check.scrub import scrub_volume
from vmfs.fuse.contract import ROOT_ID
from vmfs.volume import open_volume

SECONDS_OF_LOAD = 4.0
# What several locks cover together, and what a mount would not look at either.
OFFLINE_ONLY = {
    Kind.BLOCK_LEAKED, Kind.UNIT_LEAKED, Kind.GROUP_COUNTS_WRONG, Kind.BLOCK_SHARED, Kind.SLOT_FAILED,
    Kind.INODE_LOST, Kind.INODE_UNREMOVED, Kind.LINKS_WRONG, Kind.PARENT_WRONG, Kind.LAYER_CHILDREN_WRONG,
    Kind.LAYER_CYCLE, Kind.LAYER_LOST, Kind.LAYER_DEPTH_WRONG, Kind.ORPHAN_WRONG, Kind.POINTER_BEYOND_END,
    Kind.SHARED_COUNT_WRONG, Kind.INHERITS_BEYOND_END,
}  # fmt: skip


def scrub(small: SmallVolume) -> Report:
    volume = open_volume([small.device.again(read_only=True)], read_only=True)
    return scrub_volume(volume, clock=FastClock(200.0))


def test_an_idle_volume_is_clean(small: SmallVolume) -> None:
    report = scrub(small)
    assert report.findings == []
    assert report.counts.inodes == 12


@pytest.mark.parametrize("kind_of_block", EXPECTED)
def test_damage_is_found_without_locks(small: SmallVolume, kind_of_block: str) -> None:
    address = small.all_blocks()[kind_of_block]
    small.flip(address, 8 * 100 + 3)
    found = [f for f in scrub(small).findings if f.kind is EXPECTED[kind_of_block]]
    assert [f.address for f in found] == [address]


@pytest.mark.parametrize("name", [n for n, (kind, _) in BREAKS.items() if kind not in OFFLINE_ONLY])
def test_what_one_lock_covers_is_compared(small: SmallVolume, name: str) -> None:
    kind, break_it = BREAKS[name]
    break_it(small)
    assert kind in scrub(small).totals


class _Load:
    """One host's share of heavy work on names, maps and clones, until it is told to stop."""

    def __init__(self, host: RamHost, name: str, seed: int) -> None:
        self._host = host
        self._name = name
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self.rounds = 0
        self._thread = threading.Thread(target=self._run, name=f"load-{name}")
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
                self.rounds += 1
        except BaseException as error:
            self.errors.append(error)

    def _round(self) -> None:
        fs, rng = self._host.fs, self._random
        directory = fs.mkdir(CONTEXT, ROOT_ID, f"{self._name}-{self.rounds}".encode(), 0o755).nodeid
        made = []
        for i in range(rng.randrange(2, 30)):
            name = f"file-{i}-{'x' * rng.randrange(120)}".encode()
            entry, opened = fs.create(CONTEXT, directory, name, 0o644, os.O_RDWR, False)
            for _ in range(rng.randrange(3)):
                self._host.write(opened.fh, rng.randrange(100) * 65536, b"d" * 65536)
            self._host.close(entry.nodeid, opened.fh)
            made.append((name, entry.nodeid))
        for name, node in rng.sample(made, len(made) // 2):
            if rng.random() < 0.3:
                self._host.clone(node, f"clone-{self._name}-{self.rounds}-{node}")
                fs.unlink(CONTEXT, ROOT_ID, f"clone-{self._name}-{self.rounds}-{node}".encode())
            elif rng.random() < 0.5:
                fs.rename(CONTEXT, directory, name, ROOT_ID, name + self._name.encode(), 0)
                fs.unlink(CONTEXT, ROOT_ID, name + self._name.encode())
            else:
                fs.unlink(CONTEXT, directory, name)


def test_no_false_alarm_while_two_hosts_work(expected_log: Callable[[str], None]) -> None:
    seed = int(os.environ.get("AZEKURA_SEED", random.randrange(1 << 32)))
    print(f"AZEKURA_SEED={seed}")
    ram = RamVolume(256 << 20, lease_us=4_000_000, heartbeat_us=500_000)
    loads = [_Load(ram.host(name), name, seed + i) for i, name in enumerate(("esx1", "esx2"))]
    until = time.monotonic() + SECONDS_OF_LOAD
    scrubs = inodes = 0
    try:
        while time.monotonic() < until:
            volume = open_volume([ram.device.again(read_only=True)], read_only=True)
            report = scrub_volume(volume)
            assert report.findings == []
            scrubs += 1
            inodes += report.counts.inodes
    finally:
        for load in loads:
            load.end()
    assert [e for load in loads for e in load.errors] == []
    print(f"{scrubs} scrubs, {inodes} inodes looked at, {[load.rounds for load in loads]} rounds of load")
    assert scrubs
    assert all(load.rounds for load in loads)
    ram.leave_all()
    ram.check()
