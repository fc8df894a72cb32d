"""Real mounts under load and faults: nothing that was acknowledged is lost, nothing held twice, names are made once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.seeds import replay, rounds
from tests.history.records import History
from tests.history.run import Report, judge, run
from tests.luns.lun import Lun

SHORT_SECONDS = 9.0
SHORT_LEASE_S = 2.0
SOAK_SECONDS = float(os.environ.get("AZEKURA_SECONDS", "600"))
MANY_HOSTS = 4  # on two processors, more of them need longer leases


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")


def _right(report: Report, seed: int) -> None:
    print(replay(seed))
    print(report.text())
    assert not report.problems, f"{replay(seed)}\n{report.text()}"
    counts = report.history.counts
    assert min(counts.get(what, 0) for what in ("writes", "fsyncs", "readings", "operations on names")) > 10


def _lease_s(hosts: int) -> float:
    return 1.0 if hosts < MANY_HOSTS else 3.0


@rounds(1)
def test_three_hosts_for_a_moment(seed: int, tmp_path: Path) -> None:
    report = run("apart", tmp_path, seed, hosts=3, seconds=SHORT_SECONDS, lease_s=SHORT_LEASE_S)
    _right(report, seed)
    _lose_a_write(report.history)
    assert any("found" in problem for problem in judge(report.history)), "a lost write would have been found"


def _lose_a_write(history: History) -> None:
    """As if the last write that was synced had not been there for the next one who opened the file."""
    final = history.tenures[-1]
    assert final.found is not None
    final.found[final.found.index(max(v for v in final.found if isinstance(v, int)))] = 0


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["apart", "machine", "paxos"])
@rounds(1)
def test_two_to_eight_hosts_for_long(mode: str, seed: int, tmp_path: Path) -> None:
    hosts = random.Random(seed).randint(2, 8)
    _right(run(mode, tmp_path, seed, hosts=hosts, seconds=SOAK_SECONDS, lease_s=_lease_s(hosts)), seed)


@pytest.mark.soak
@rounds(1)
def test_hosts_of_a_lun_that_fences_for_long(seed: int, tmp_path: Path, lio_lun: Lun) -> None:
    hosts = random.Random(seed).randint(2, 4)
    report = run("lun", tmp_path, seed, hosts=hosts, seconds=SOAK_SECONDS, lease_s=_lease_s(hosts), lun=lio_lun)
    assert report.fencing.startswith("reservations (7h)")
    _right(report, seed)
