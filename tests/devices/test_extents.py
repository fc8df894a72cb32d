"""Volume addresses, and which extents a flush reaches."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.devices.extents import EXTENTS_MAX, OFFSET_MASK, ExtentSet, make_address, split_address
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, DeviceGone, OutOfRange

SIZE = 1 << 20


class CountingDevice(RamDevice):
    """Counts flushes, and lets a test stand inside one."""

    def __init__(self, name: str) -> None:
        super().__init__(SIZE, name=name)
        self.flushes = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def flush(self) -> None:
        self.flushes += 1
        self.entered.set()
        assert self.go_on.wait(10)
        super().flush()


@given(st.integers(0, EXTENTS_MAX - 1), st.integers(0, OFFSET_MASK))
def test_addresses_round_trip(extent: int, offset: int) -> None:
    assert split_address(make_address(extent, offset)) == (extent, offset)
    assert make_address(extent, offset) < 1 << 64


@pytest.mark.parametrize(("extent", "offset"), [(-1, 0), (256, 0), (0, -1), (0, 1 << 56)])
def test_what_has_no_address(extent: int, offset: int) -> None:
    with pytest.raises(ValueError, match="no volume address"):
        make_address(extent, offset)
    for address in (-1, 1 << 64):
        with pytest.raises(ValueError, match="no volume address"):
            split_address(address)


def test_each_call_reaches_its_extent() -> None:
    devices = [CountingDevice("a"), CountingDevice("b")]
    extents = ExtentSet(devices)
    at = make_address(1, 4096)
    extents.write(at, b"x" * 512)
    assert devices[1].read(4096, 512) == b"x" * 512
    assert devices[0].read(4096, 512) == bytes(512)
    assert extents.read(at, 512) == b"x" * 512
    buffer = bytearray(512)
    extents.read_into(at, memoryview(buffer))
    assert buffer == b"x" * 512
    assert extents.compare_and_write(at, b"x" * 512, b"y" * 512)
    assert not extents.compare_and_write(at, b"x" * 512, b"z" * 512)
    extents.zero(at, 512)
    assert devices[1].read(4096, 512) == bytes(512)
    assert extents.discard(at, 512)
    assert extents.locate(at) == (devices[1], 4096)


def test_ranges_do_not_cross_the_end_of_an_extent() -> None:
    extents = ExtentSet([RamDevice(SIZE), RamDevice(SIZE)])
    with pytest.raises(OutOfRange):
        extents.write(make_address(0, SIZE - 512), bytes(1024))
    with pytest.raises(OutOfRange):
        extents.read(make_address(1, SIZE), 512)


def test_missing_extents_are_named_and_can_be_filled_in() -> None:
    extents = ExtentSet([RamDevice(SIZE), None])
    for extent in (1, 2, 255):
        with pytest.raises(DeviceGone, match=f"extent {extent} of the volume"):
            extents.read(make_address(extent, 0), 512)
    with pytest.raises(ValueError, match="cannot be put"):
        extents.put(0, RamDevice(SIZE))
    with pytest.raises(ValueError, match="cannot be put"):
        extents.put(3, RamDevice(SIZE))
    extents.put(1, RamDevice(SIZE))
    extents.put(2, RamDevice(SIZE))
    extents.write(make_address(2, 0), bytes(512))
    assert len(extents) == 3
    extents.flush()


@pytest.mark.parametrize("change", ["write", "compare_and_write", "zero", "discard", "note_written"])
def test_flush_reaches_what_was_written_and_nothing_else(change: str) -> None:
    devices = [CountingDevice(str(n)) for n in range(3)]
    extents = ExtentSet(devices)
    extents.flush()
    at = make_address(1, 0)
    arguments = {
        "write": (at, bytes(512)),
        "compare_and_write": (at, bytes(512), bytes(512)),
        "zero": (at, 512),
        "discard": (at, 512),
        "note_written": (at,),
    }
    getattr(extents, change)(*arguments[change])
    extents.read(make_address(2, 0), 512)
    extents.flush()
    assert [device.flushes for device in devices] == [0, 1, 0]
    extents.flush()
    assert [device.flushes for device in devices] == [0, 1, 0]


def test_a_failed_flush_or_write_stays_due() -> None:
    device = FaultDevice(RamDevice(SIZE), seed=1, plan=FaultPlan(flush_error_rate=1.0))
    extents = ExtentSet([device])
    extents.write(0, bytes(512))
    for _ in range(2):
        with pytest.raises(DeviceError, match="flush"):
            extents.flush()
    device.set_plan(FaultPlan(write_error_rate=1.0))
    extents.flush()
    with pytest.raises(DeviceError, match="write"):
        extents.write(0, bytes(512))
    device.set_plan(FaultPlan(flush_error_rate=1.0))
    with pytest.raises(DeviceError, match="flush"):
        extents.flush()  # the write's fate is unknown: it may have landed


def test_a_write_during_a_flush_is_flushed_again() -> None:
    device = CountingDevice("a")
    extents = ExtentSet([device])
    extents.write(0, bytes(512))
    device.go_on.clear()
    first = threading.Thread(target=extents.flush, name="first-flush")
    first.start()
    assert device.entered.wait(10)
    extents.write(512, bytes(512))
    device.go_on.set()
    first.join(10)
    extents.flush()
    assert device.flushes == 2


def test_a_flush_does_not_lean_on_one_that_has_not_ended() -> None:
    device = CountingDevice("a")
    extents = ExtentSet([device])
    extents.write(0, bytes(512))
    device.go_on.clear()
    flushers = [threading.Thread(target=extents.flush, name=f"flush-{n}") for n in range(2)]
    flushers[0].start()
    assert device.entered.wait(10)
    device.entered.clear()
    flushers[1].start()
    assert device.entered.wait(10)  # the second goes to the device itself, or waits: it must not just return
    device.go_on.set()
    for flusher in flushers:
        flusher.join(10)
    assert device.flushes == 2
