"""Power cuts under load: what an fsync acknowledged is there, and the volume is whole. And bugs that this notices."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.crash import planted
from tests.crash.load import Load, Worker
from tests.crash.ports import DirectPort
from tests.crash.power import (
    ACKS,
    JOIN_SECONDS,
    CutDevice,
    Moment,
    findings,
    mount,
    new_volume,
    power_cut_round,
    quiet_round,
    remount,
)
from tests.crash.seeds import replay, rounds
from vmfs.cluster.locks import IDLE_S
from vmfs.devices.fault import FaultPlan

# What a mount says when its storage goes away under it, and what its successor says.
pytestmark = pytest.mark.expected_log(
    r"the power (is|was) cut|no answer within|recovered host|mount failed|was abandoned|mount has failed"
)

PLANTED_ACKS = 60  # a bug that takes more to show is not what these tests are for
PLANTED_TRIES = 24


def _cut(seed: int) -> None:
    print(replay(seed))
    outcome = power_cut_round(seed)
    assert outcome.acknowledged >= ACKS
    assert not outcome.problems, f"{replay(seed)}: power cut {outcome.moment}: {outcome.problems} {outcome.decisions}"


@rounds(9)
def test_what_was_acknowledged_survives_a_power_cut(seed: int) -> None:
    _cut(seed)


@pytest.mark.soak
@rounds(400)
def test_what_was_acknowledged_survives_many_power_cuts(seed: int) -> None:
    _cut(seed)


@rounds(2)
def test_a_host_that_dies_loses_nothing_on_a_device_that_lies(seed: int) -> None:
    """Lost flushes and a storage that keeps its power: what it acknowledged and never wrote is in its cache still."""
    print(replay(seed))
    rng = random.Random(seed)
    ram = new_volume(rng)
    device = CutDevice(ram.again(), seed, FaultPlan(lost_flush_rate=0.5))
    mounted = mount(device, rng)
    last = ACKS + rng.randint(0, 40)

    def on_ack(count: int) -> None:
        if count == last:
            device.freeze(fail_after_seconds=0.0)  # the host has lost its way to the storage

    load = Load(DirectPort(mounted), seed, on_ack)
    try:
        load.start()
        load.join(JOIN_SECONDS)
    finally:
        load.stopped.set()
        mounted.abandon()
    device.thaw()
    problems = findings(device, "before the remount") + remount(device, load, rng)
    device.close()
    assert load.count >= ACKS
    assert not problems, f"{replay(seed)}: {problems}"


# -- bugs that must be noticed ----------------------------------------------------------------------------------------


def _create_and_idle(worker: Worker) -> None:
    """A file, acknowledged; then nothing more, so that its locks are given up: the next to be given up are these."""
    time.sleep(3 * IDLE_S)
    path = worker.new()
    worker.put(path)
    worker.fsync(path)
    worker.close(path)


def _remove_and_write(worker: Worker) -> None:
    """Files are removed, and others written, and none of it is acknowledged: the removed ones must be whole still."""
    old = [worker.new() for _ in range(4)]
    for path in old:
        worker.put_at(path, 0, 400_000)
        worker.fsync(path)
    for directory in worker.directories:
        worker.sync_directory(directory)
    for path in old[:3]:
        worker.remove(path)
    worker.pause(0.02)  # for the removals' thread, less than a lock stays idle and has them committed
    for _ in range(4):
        worker.put_at(worker.new(), 0, 400_000)


def _busy(moment: Moment) -> Callable[[int], list[str]]:
    return lambda seed: list(power_cut_round(seed, acks=PLANTED_ACKS, moment=moment).problems)


@pytest.mark.parametrize(
    ("plant", "one_round"),
    [
        (planted.commit_before_its_blocks, _busy(Moment.ACKNOWLEDGED)),
        (planted.commit_not_flushed, _busy(Moment.ACKNOWLEDGED)),
        (planted.map_before_data, _busy(Moment.JOURNAL)),
        (planted.lock_before_flush, lambda seed: quiet_round(seed, _create_and_idle, Moment.LOCK)),
        (planted.freed_blocks_at_once, lambda seed: quiet_round(seed, _remove_and_write)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_bug_is_noticed(
    plant: planted.Plant, one_round: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch,
    expected_log: Callable[[str], None],
) -> None:  # fmt: skip
    expected_log("")  # a broken file system may say anything
    plant(monkeypatch)
    for seed in range(PLANTED_TRIES):
        if problems := one_round(seed):
            print(f"noticed in round {seed}: {problems[0]}")
            return
    pytest.fail(f"{plant.__name__} was not noticed in {PLANTED_TRIES} rounds")


@pytest.mark.parametrize("script", [_create_and_idle, _remove_and_write])
def test_without_a_planted_bug_the_quiet_rounds_notice_nothing(script: Callable[[Worker], None]) -> None:
    for seed in range(3):
        assert quiet_round(seed, script, Moment.LOCK if script is _create_and_idle else None) == []
