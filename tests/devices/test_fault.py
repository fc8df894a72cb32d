"""The fault device does what its plan says, the same each time, and nothing else."""

from __future__ import annotations

import hashlib
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmfs.clock import FakeClock
from vmfs.devices import open_device
from vmfs.devices.contract import Device
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, VmfsError

SIZE = 1 << 20
SECTOR = 512


def _wrap(seed: int = 7, **plan: object) -> tuple[RamDevice, FaultDevice]:
    below = RamDevice(SIZE)
    return below, FaultDevice(below.again(), seed, FaultPlan(**plan))  # type: ignore[arg-type]


def _sectors(device: Device, offset: int, length: int) -> list[int]:
    """The first byte of each sector."""
    return list(device.read(offset, length)[::SECTOR])


def _load(device: FaultDevice, seed: int, rounds: int = 400) -> list[str]:
    """A fixed load of all calls; what each gave."""
    rng = random.Random(seed)
    outcomes = []
    for number in range(rounds):
        at, length = rng.randrange(SIZE // SECTOR - 64) * SECTOR, rng.randint(1, 64) * SECTOR
        content = bytes([number % 255 + 1]) * length
        call = rng.choice(("write", "write", "write", "read", "flush", "zero", "swap", "discard"))
        try:
            if call == "write":
                device.write(at, content)
            elif call == "read":
                outcomes.append(hashlib.sha256(device.read(at, length)).hexdigest())
            elif call == "flush":
                device.flush()
            elif call == "zero":
                device.write_zeros(at, length)
            elif call == "swap":
                outcomes.append(str(device.compare_and_write(at, bytes(SECTOR), content[:SECTOR])))
            else:
                device.discard(at, length)
        except DeviceError as error:
            outcomes.append(str(error))
    return outcomes


ALL_FAULTS = {
    "read_error_rate": 0.1,
    "write_error_rate": 0.1,
    "flush_error_rate": 0.1,
    "torn_write_rate": 0.1,
    "late_write_rate": 0.1,
    "lost_write_rate": 0.1,
    "lost_flush_rate": 0.1,
    "power_cut_after_writes": 120,
    "cache_bytes": 256 << 10,
}


@pytest.mark.parametrize("volatile_cache", [True, False])
def test_one_seed_one_course(volatile_cache: bool) -> None:
    def course(seed: int) -> tuple[list[str], list[str], bytes]:
        below, device = _wrap(seed, volatile_cache=volatile_cache, **ALL_FAULTS)
        return _load(device, 1), device.decisions, below.read(0, SIZE)

    assert course(5) == course(5)
    assert course(5)[1] != course(6)[1]
    kinds = " ".join(course(5)[1])
    for kind in ("EIO", "torn", "lands late", "lands before", "lost", "power cut"):
        assert kind in kinds


def test_the_seed_and_the_decisions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmfs.devices.fault")
    _, device = _wrap(4711, lost_write_rate=1.0)
    device.write(0, bytes(SECTOR))
    texts = [record.getMessage() for record in caplog.records]
    assert "seed 4711" in texts[0]
    assert "(seed 4711): write 1 of 512 bytes at 0: lost" in texts[1]


def test_below_has_only_what_was_flushed() -> None:
    below, device = _wrap()
    device.write(0, b"a" * SECTOR)
    assert device.read(0, SECTOR) == b"a" * SECTOR
    assert below.read(0, SECTOR) == bytes(SECTOR)
    device.flush()
    assert below.read(0, SECTOR) == b"a" * SECTOR
    assert device.compare_and_write(0, b"a" * SECTOR, b"b" * SECTOR)
    assert device.read(0, SECTOR) == b"b" * SECTOR
    assert below.read(0, SECTOR) == b"a" * SECTOR
    device.close()
    assert below.read(0, SECTOR) == b"b" * SECTOR


def test_a_full_cache_is_destaged() -> None:
    below, device = _wrap(cache_bytes=8 * SECTOR)
    for number in range(9):
        device.write(number * SECTOR, b"x" * SECTOR)
    assert below.read(0, 9 * SECTOR) == b"x" * 9 * SECTOR


def test_power_cut_keeps_the_flushed_and_part_of_the_rest() -> None:
    """Over many seeds: nothing flushed is lost, and of two unflushed versions each of the possible ends is met."""
    ends: set[int] = set()
    reordered = 0
    for seed in range(60):
        below, device = _wrap(seed)
        device.write(0, b"\1" * 8 * SECTOR)
        device.flush()
        device.write(0, b"\2" * 4 * SECTOR)
        device.write(0, b"\3" * 2 * SECTOR)
        device.write(16 * SECTOR, b"\4" * SECTOR)
        device.power_cut()
        assert device.power_is_cut
        found = _sectors(below, 0, 8 * SECTOR)
        assert set(found[:2]) <= {1, 2, 3}
        assert set(found[2:4]) <= {1, 2}
        assert found[4:] == [1] * 4
        ends |= set(found[:2])
        last = _sectors(below, 16 * SECTOR, SECTOR)[0]
        reordered += last == 4 and 1 in found[:4]
        assert last in (0, 4)
    assert ends == {1, 2, 3}
    assert reordered > 0  # a later write landed, an earlier one did not


def test_after_a_power_cut_everything_raises() -> None:
    below, device = _wrap(power_cut_after_writes=3)
    device.write(0, b"a" * SECTOR)
    device.flush()
    assert device.compare_and_write(SECTOR, bytes(SECTOR), b"b" * SECTOR)
    with pytest.raises(DeviceError, match="power was cut"):
        device.write(2 * SECTOR, b"c" * SECTOR)
    content = below.read(0, SIZE)
    for call in (
        lambda: device.read(0, SECTOR),
        lambda: device.write(0, bytes(SECTOR)),
        lambda: device.compare_and_write(0, bytes(SECTOR), bytes(SECTOR)),
        lambda: device.discard(0, SECTOR),
        lambda: device.write_zeros(0, SECTOR),
        device.flush,
    ):
        with pytest.raises(DeviceError, match="power is cut"):
            call()
    device.close()
    assert below.read(0, SIZE) == content
    assert content[:SECTOR] == b"a" * SECTOR


def test_a_power_cut_comes_at_its_write_whatever_else_strikes_there() -> None:
    _, device = _wrap(power_cut_after_writes=1, write_error_rate=1.0)
    with pytest.raises(DeviceError, match="power was cut"):
        device.write(0, bytes(SECTOR))
    assert device.power_is_cut


def test_power_cut_into_another_device() -> None:
    below, device = _wrap(3)
    device.write(0, b"a" * SECTOR)
    device.flush()
    device.write(SECTOR, b"b" * 64 * SECTOR)
    survivor = RamDevice(SIZE)
    device.power_cut(survivor)
    assert below.read(SECTOR, 64 * SECTOR) == bytes(64 * SECTOR)
    assert survivor.read(0, SECTOR) == b"a" * SECTOR
    assert set(_sectors(survivor, SECTOR, 64 * SECTOR)) <= {0, ord("b")}


def test_a_lost_flush_loses_at_the_cut() -> None:
    survived = []
    for seed in range(30):
        below, device = _wrap(seed, lost_flush_rate=1.0)
        device.write(0, b"a" * SECTOR)
        device.flush()
        device.power_cut()
        survived.append(below.read(0, 1 * SECTOR)[0] == ord("a"))
    assert {True, False} == set(survived)


@pytest.mark.parametrize("volatile_cache", [True, False])
def test_torn_writes_land_in_part_and_raise(volatile_cache: bool) -> None:
    shares = set()
    for seed in range(40):
        _, device = _wrap(seed, volatile_cache=volatile_cache, torn_write_rate=1.0)
        with pytest.raises(DeviceError, match="torn"):
            device.write(0, b"\1" * 8 * SECTOR)
        found = _sectors(device, 0, 9 * SECTOR)
        assert found[8] == 0
        shares.add(tuple(found))
    assert len(shares) > 8
    assert any(sorted(each, reverse=True) == list(each) for each in shares)  # a prefix
    assert any(sorted(each, reverse=True) != list(each) for each in shares)  # any subset


def test_late_writes_land_after_later_ones() -> None:
    _, device = _wrap(late_write_rate=1.0, late_after_writes=2)
    with pytest.raises(DeviceError, match="timeout"):
        device.write(0, b"\1" * SECTOR)
    device.set_plan(FaultPlan())
    device.write(0, b"\2" * SECTOR)
    assert _sectors(device, 0, SECTOR) == [2]
    device.write(SECTOR, b"\3" * SECTOR)
    assert _sectors(device, 0, 2 * SECTOR) == [1, 3]


def test_late_writes_land_on_demand() -> None:
    _, device = _wrap(late_write_rate=1.0)
    with pytest.raises(DeviceError, match="timeout"):
        device.write(0, b"\1" * SECTOR)
    assert _sectors(device, 0, SECTOR) == [0]
    device.land_late_writes()
    assert _sectors(device, 0, SECTOR) == [1]


def test_lost_writes_are_acknowledged() -> None:
    _, device = _wrap(lost_write_rate=1.0)
    device.write(0, b"\1" * SECTOR)
    assert _sectors(device, 0, SECTOR) == [0]


def test_a_failed_compare_and_write_is_done_or_not() -> None:
    fates = set()
    for seed in range(30):
        _, device = _wrap(seed, write_error_rate=1.0)
        with pytest.raises(DeviceError, match="compare_and_write"):
            device.compare_and_write(0, bytes(SECTOR), b"\1" * SECTOR)
        fates.add(_sectors(device, 0, SECTOR)[0])
    assert fates == {0, 1}


def test_bad_ranges() -> None:
    _, device = _wrap(bad_ranges=((4096, 4608),))
    device.read(0, 4096)
    device.write(4608, bytes(SECTOR))
    for call in (
        lambda: device.read(3584, 2 * SECTOR),
        lambda: device.write(4096, bytes(SECTOR)),
        lambda: device.compare_and_write(4096, bytes(SECTOR), bytes(SECTOR)),
    ):
        with pytest.raises(DeviceError, match="bad range"):
            call()


def test_discard_drops_what_is_cached() -> None:
    below, device = _wrap()
    device.write(0, b"a" * 4 * SECTOR)
    device.discard(SECTOR, 2 * SECTOR)
    device.flush()
    assert below.read(0, SECTOR) == b"a" * SECTOR == below.read(3 * SECTOR, SECTOR)
    assert below.read(SECTOR, 2 * SECTOR) == bytes(2 * SECTOR)


@pytest.fixture
def frozen_call() -> Iterator[tuple[FaultDevice, threading.Thread, list[str]]]:
    _, device = _wrap()
    outcome: list[str] = []

    def call() -> None:
        try:
            device.write(0, b"a" * SECTOR)
            outcome.append("written")
        except VmfsError as error:
            outcome.append(str(error))

    device.freeze()
    thread = threading.Thread(target=call, name="frozen-call")
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    yield device, thread, outcome
    device.thaw()
    thread.join(10)


def test_frozen_calls_go_on_when_thawed(frozen_call: tuple[FaultDevice, threading.Thread, list[str]]) -> None:
    device, thread, outcome = frozen_call
    device.thaw()
    thread.join(10)
    assert outcome == ["written"]


def test_frozen_calls_fail_at_a_power_cut(
    frozen_call: tuple[FaultDevice, threading.Thread, list[str]],
) -> None:
    device, thread, outcome = frozen_call
    device.power_cut()
    thread.join(10)
    assert "power is cut" in outcome[0]


def test_frozen_calls_fail_after_their_time() -> None:
    clock = FakeClock(sleep_advances=True)
    device = FaultDevice(RamDevice(SIZE), 1, clock=clock)
    device.freeze(fail_after_seconds=30)
    before = clock.now()
    with pytest.raises(DeviceError, match="no answer within 30 s"):
        device.read(0, SECTOR)
    assert clock.now() == before + 30
    device.thaw()
    device.read(0, SECTOR)


def test_delay_is_slept_on_the_clock() -> None:
    clock = FakeClock(sleep_advances=True)
    device = FaultDevice(RamDevice(SIZE), 1, FaultPlan(delay_seconds=2.0), clock=clock)
    before = clock.now()
    for _ in range(20):
        device.read(0, SECTOR)
    assert 10 < clock.now() - before < 30


def test_a_process_may_die_at_the_cut(image: Path) -> None:
    """What a process under test leaves behind is what survived, though it is killed within the call."""
    code = (
        "import os, signal, sys\n"
        "from vmfs.devices import open_device\n"
        "from vmfs.devices.fault import FaultDevice, FaultPlan\n"
        "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "plan = FaultPlan(power_cut_after_writes=50)\n"
        "device = FaultDevice(open_device(sys.argv[1], sector_bytes=512), 11, plan, on_power_cut=die)\n"
        "for n in range(40): device.write(n * 512, bytes([n + 1]) * 512)\n"
        "device.flush(); print('flushed', flush=True)\n"
        "for n in range(40): device.write(n * 512, bytes([n + 101]) * 512)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(image)], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (-9, b"flushed\n")
    device = open_device(str(image), sector_bytes=512)
    found = _sectors(device, 0, 40 * SECTOR)
    device.close()
    assert all(value in ((n + 1, n + 101) if n < 10 else (n + 1,)) for n, value in enumerate(found))
