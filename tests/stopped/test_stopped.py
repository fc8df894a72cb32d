"""No byte of a host that was stopped in a burst of writes lands after another has taken its lock (R2)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.crash.seeds import replay, rounds
from tests.luns.lun import Lun
from tests.stopped.rig import LEASE_S, LIMIT_S, OURS, Pair, a_pair, measure
from tests.vmfs.datastore import until, vmfsctl

SOAK_ROUNDS = 100


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")


def _nothing_late(pair: Pair, count: int, seed: int) -> None:
    outcomes = measure(pair, count)
    assert [o.late_pages for o in outcomes] == [0] * count, replay(seed)


@rounds(1)
def test_a_stopped_process_of_this_machine_is_killed_first(seed: int, tmp_path: Path) -> None:
    with a_pair(tmp_path, "kill", seed) as pair:
        in_use = pair.info("esx1")["mount"]["fencing"]
        assert in_use.startswith("process kill (same machine only)")
        _nothing_late(pair, 1, seed)
        log = pair.log("esx2")
    assert "of this machine exists and is silent: killing it before its slot is taken" in log


@rounds(1)
def test_the_lun_refuses_the_writes_of_a_stopped_host(seed: int, tmp_path: Path, lio_lun: Lun) -> None:
    with a_pair(tmp_path, "reservations", seed, lio_lun.url) as pair:
        assert pair.fencing.startswith("reservations (7h), proved")
        for host in ("esx1", "esx2"):
            mount = pair.info(host)["mount"]
            assert mount["fencing"].startswith("reservations (7h) on 1 extent, proved at mount")
            assert mount["lease"].startswith("valid for ")
        _nothing_late(pair, 1, seed)
        log = pair.log("esx1")
    assert "fenced by" in log
    assert "reserved" in log or "onflict" in log, "the LUN's refusal was seen"


@pytest.mark.soak
@rounds(1)
def test_a_hundred_stops_of_a_process_of_this_machine(seed: int, tmp_path: Path) -> None:
    with a_pair(tmp_path, "kill", seed) as pair:
        _nothing_late(pair, SOAK_ROUNDS, seed)


@pytest.mark.soak
@rounds(1)
def test_a_hundred_stops_of_a_host_of_a_lun_that_fences(seed: int, tmp_path: Path, lio_lun: Lun) -> None:
    with a_pair(tmp_path, "reservations", seed, lio_lun.url) as pair:
        _nothing_late(pair, SOAK_ROUNDS, seed)


@rounds(1)
def test_a_fenced_mount_says_so_and_is_mounted_again(seed: int, tmp_path: Path) -> None:
    """Without storage fencing: what its own look at the lease and at its slot tells it."""
    with a_pair(tmp_path, "none", seed) as pair:
        assert pair.info("esx1")["mount"]["fencing"].startswith("no storage fencing: a host that was stopped")
        os.kill(pair.mounts["esx1"], signal.SIGSTOP)
        until("it is recovered", lambda: "recovered host esx1" in pair.log("esx2"), LIMIT_S)
        pair.write_all("esx2", "disk", OURS)
        os.kill(pair.mounts["esx1"], signal.SIGCONT)
        until("it knows", lambda: "fenced by" in pair.log("esx1"), LIMIT_S)
        until("it says so", lambda: pair.info("esx1")["mount"]["lease"].startswith("fenced by"), LIMIT_S)
        said = vmfsctl("info", pair.path("esx1")).stdout
        assert "mount again when the storage is back" in said
        assert "failed: another host took this one for dead" in said
        with pytest.raises(OSError):
            (pair.path("esx1") / "new").write_bytes(b"x")
        pair.umount("esx1")
        pair.mount("esx1")
        assert pair.info("esx1")["mount"]["state"] == "serving"
        assert pair.read_all("esx1", "disk") == pair.read_all("esx2", "disk")


def test_a_lapsed_lease_is_told_and_comes_back(tmp_path: Path) -> None:
    """Nobody else is there to break it: the process is stopped for three leases, and goes on."""
    with a_pair(tmp_path, "none", 1) as pair:
        pair.umount("esx2")
        pid = pair.mounts["esx1"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3 * LEASE_S)
        os.kill(pid, signal.SIGCONT)
        told = re.compile(r"the lease (has|had) run out")
        until("the lapse is told", lambda: told.search(pair.log("esx1")) is not None, LIMIT_S)
        until("its end is told", lambda: "is valid again" in pair.log("esx1"), LIMIT_S)
        until("it serves", lambda: pair.info("esx1")["mount"]["lease"].startswith("valid for "), LIMIT_S)
        (pair.path("esx1") / "new").write_bytes(b"x")


def test_a_flight_that_is_too_long_for_the_volume_is_refused(tmp_path: Path) -> None:
    """A1, with the numbers; and the break time that format makes of a longer one."""
    lun, here = tmp_path / "lun.img", tmp_path / "mnt"
    here.mkdir()
    made = ("--create-size", "64M", "--max-hosts", 2, "--lease", 1, "--json")
    assert json.loads(vmfsctl("format", "--name", "ds1", *made, lun).stdout)["break_seconds"] == 1.25
    done = vmfsctl("mount", lun, here, "--in-flight", 5, check=False)
    assert done.returncode == 2
    assert "may stay on its way for 5 s" in done.stderr
    assert "break time of 1.25 s allows 0.30 s" in done.stderr
    assert "format with --in-flight 5" in done.stderr
    assert not os.path.ismount(here)
    lun.unlink()
    planned = json.loads(vmfsctl("format", "--name", "ds1", *made, "--in-flight", 5, lun).stdout)
    assert planned["break_seconds"] == pytest.approx(5.99, abs=0.01)
    vmfsctl("mount", lun, here, "--in-flight", 5)
    vmfsctl("umount", here)


def test_a_watchdog_that_does_not_fit_the_lease_is_refused(tmp_path: Path) -> None:
    lun, here = tmp_path / "lun.img", tmp_path / "mnt"
    here.mkdir()
    vmfsctl("format", "--name", "ds1", "--create-size", "64M", "--max-hosts", 2, "--lease", 1, lun)
    done = vmfsctl("mount", lun, here, "--watchdog", tmp_path / "watchdog", check=False)
    assert done.returncode == 2
    assert "whole seconds" in done.stderr
    assert subprocess.run(["mountpoint", "-q", here], check=False).returncode != 0
    lun.unlink()
    vmfsctl("format", "--name", "ds1", "--create-size", "64M", "--max-hosts", 2, lun)
    done = vmfsctl("mount", lun, here, "--watchdog", tmp_path / "watchdog", check=False)
    assert done.returncode == 2
    assert "cannot be opened: No such file" in done.stderr
    hosts = json.loads(vmfsctl("hosts", "--json", lun).stdout)
    assert hosts["hosts"] == []
