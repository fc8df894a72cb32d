"""A silent process of this machine is killed before its slot is taken, and no other ever is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.cluster.test_identity import slot_of
from vmfs.cluster.evict import evict, may_evict
from vmfs.cluster.identity import HostIdentity, is_process_alive
from vmfs.cluster.region import RegionSnapshot, SlotView
from vmfs.cluster.timers import Timers
from vmfs.cluster.watcher import Watcher
from vmfs.ondisk.slot import SlotRecord

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        named = "from vmfs.cluster.evict import name_this_process as name; name(); " if words[0] == "mount" else ""
        code = f"{named}import time; print('ready', flush=True); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def slot_for(process: subprocess.Popen[str], **change: object) -> SlotRecord:
    with open(f"/proc/{process.pid}/stat") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    me = HostIdentity.detect("esx1")
    return slot_of(replace(me, pid=process.pid, start_ticks=ticks), **change)


@pytest.mark.expected_log("killing it before its slot is taken")
def test_a_stopped_daemon_is_killed_and_gone(start: Start) -> None:
    process = start("mount")
    record = slot_for(process)
    os.kill(process.pid, signal.SIGSTOP)
    me = HostIdentity.detect("esx2")
    assert may_evict(record, me)
    assert evict(record, me, "ds1")
    assert is_process_alive(record, me) is False
    assert process.wait(30) == -signal.SIGKILL
    assert evict(record, me, "ds1")  # again: it is gone already


@pytest.mark.parametrize(
    "change",
    [
        {"start_ticks": 1},  # the pid is another process's by now
        {"boot_id": uuid.uuid4()},
        {"pid_namespace": 1},
    ],
    ids=str,
)
def test_a_process_that_is_not_the_slots_is_left_alone(start: Start, change: dict[str, object]) -> None:
    process = start("mount")
    record = slot_for(process, **change)
    me = HostIdentity.detect("esx2")
    assert not may_evict(record, me)
    evict(record, me, "ds1")
    assert process.poll() is None


def test_a_program_that_is_no_daemon_of_ours_is_left_alone(start: Start) -> None:
    process = start("vmfsctl", "backup")
    me = HostIdentity.detect("esx2")
    assert not may_evict(slot_for(process), me)
    assert not evict(slot_for(process), me, "ds1")
    assert process.poll() is None


def test_a_simulated_machine_neither_kills_nor_is_killed(start: Start) -> None:
    process = start("mount")
    boot = uuid.uuid4()
    simulated = replace(HostIdentity.detect("esx2", boot))
    for record in (slot_for(process), slot_for(process, boot_id=boot)):
        assert not may_evict(record, simulated)
        assert not evict(record, simulated, "ds1")
    assert not may_evict(slot_for(process, boot_id=boot), HostIdentity.detect("esx2"))
    assert process.poll() is None


def test_this_process_does_not_kill_itself() -> None:
    me = HostIdentity.detect("esx1")
    assert not may_evict(slot_of(me), me)


@pytest.mark.parametrize(("stopped", "patience_s"), [(True, 1.25), (False, 10.0)])
def test_a_process_that_runs_is_given_longer_than_one_that_is_stopped(stopped: bool, patience_s: float) -> None:
    watcher = Watcher(Timers.from_lease(1_000_000))
    view = SlotView(0, 0, b"image", None, None, 0.0, 0.0)
    watcher.observe(RegionSnapshot((view,), 0.0, 0.0))
    assert not watcher.is_stuck(view, patience_s - 0.01, stopped=stopped)
    assert watcher.is_stuck(view, patience_s, stopped=stopped)
