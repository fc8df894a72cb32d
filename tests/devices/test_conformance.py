"""What every implementation of the contract must do, real ones and fakes alike."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.conftest import DEVICE_BYTES, LoopMaker
from tests.luns.fixtures import small_lun_of
from vmfs.devices import open_device
from vmfs.devices.contract import Device, LockMethod
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.iscsi import IscsiDevice
from vmfs.devices.ram import RamDevice
from vmfs.devices.sgio import ScsiBlockDevice
from vmfs.errors import (
    DeviceGone,
    DeviceReadOnly,
    LockMethodUnusable,
    MisalignedIO,
    OutOfRange,
    VmfsError,
)

KINDS = (
    "file-512",
    "file-4096",
    "loop-512",
    "loop-4096",
    "loop-512-used-as-4096",
    "ram-512",
    "ram-4096",
    "fault-cached",
    "fault-through",
    "fault-4096",
    "iscsi-lio-512",
    "iscsi-lio-4096",
    "iscsi-tgt-512",
)


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest, image: Path) -> Iterator[Device]:
    kind: str = request.param
    sector = 4096 if "4096" in kind else 512
    opened: Device
    if kind.startswith("iscsi"):
        opened = open_device(small_lun_of(request, kind.removeprefix("iscsi-")).url)
    elif kind.startswith("loop"):
        attach_loop: LoopMaker = request.getfixturevalue("attach_loop")
        own = 512 if kind == "loop-512-used-as-4096" else sector
        node = attach_loop(image, "--sector-size", str(own), "--direct-io=on")
        opened = open_device(node, sector_bytes=sector)
    elif kind.startswith("ram"):
        opened = RamDevice(DEVICE_BYTES, logical_block_bytes=sector)
    else:
        opened = open_device(str(image), sector_bytes=sector)
        if kind.startswith("fault"):
            opened = FaultDevice(opened, seed=1, plan=FaultPlan(volatile_cache=kind != "fault-through"))
    assert opened.logical_block_bytes == sector
    yield opened
    opened.close()


def _compares(device: Device) -> bool:
    """Whether the storage itself can compare and write (tgtd cannot, and hosts use a Paxos register on it)."""
    return device.lock_methods() != (LockMethod.PAXOS,)


def _compare_bytes(device: Device) -> set[int]:
    """The lengths that `compare_and_write` must take: LIO takes one sector at once."""
    is_scsi = isinstance(device, IscsiDevice | ScsiBlockDevice)
    return {device.logical_block_bytes} if is_scsi else {device.logical_block_bytes, 4096}


def _pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_size_and_first_content(device: Device) -> None:
    assert device.size_bytes == DEVICE_BYTES == device.refresh_size()
    assert not device.read_only
    assert device.read(0, DEVICE_BYTES) == bytes(DEVICE_BYTES)


@pytest.mark.parametrize("sectors", [1, 3, 256, 513])
def test_written_is_read(device: Device, sectors: int) -> None:
    length = sectors * device.logical_block_bytes
    for offset in (0, device.logical_block_bytes, DEVICE_BYTES - length):
        data = _pattern(offset, length)
        device.write(offset, data)
        assert device.read(offset, length) == data
        device.flush()
        assert device.read(offset, length) == data
    assert device.read(0, 0) == b""


@pytest.mark.parametrize("skew", [0, 1, 512, 4095])
def test_memory_of_any_alignment(device: Device, skew: int) -> None:
    length = (1 << 20) + device.logical_block_bytes  # longer than a bounce buffer
    with mmap.mmap(-1, length + 4096) as memory:
        view = memoryview(memory)[skew : skew + length]
        view[:] = _pattern(skew, length)
        device.write(4096, view)
        view[:] = bytes(length)
        device.read_into(4096, view)
        assert bytes(view) == _pattern(skew, length)
        view.release()


def test_neighbours_are_untouched(device: Device) -> None:
    sector = device.logical_block_bytes
    device.write(0, b"\xaa" * 8 * sector)
    device.write(3 * sector, b"\xbb" * sector)
    device.write_zeros(5 * sector, sector)
    if _compares(device):
        assert device.compare_and_write(6 * sector, b"\xaa" * sector, b"\xcc" * sector)
    else:
        device.write(6 * sector, b"\xcc" * sector)
    wanted = b"".join(bytes([each]) * sector for each in (0xAA, 0xAA, 0xAA, 0xBB, 0xAA, 0, 0xCC, 0xAA))
    assert device.read(0, 8 * sector) == wanted


@pytest.mark.parametrize("length", [4096, 3 << 20])
def test_write_zeros(device: Device, length: int) -> None:
    device.write(0, b"\xff" * (length + 8192))
    device.write_zeros(4096, length)
    assert device.read(0, length + 8192) == b"\xff" * 4096 + bytes(length) + b"\xff" * 4096
    device.write_zeros(0, 0)


def test_discard_leaves_the_rest_and_can_be_written_again(device: Device) -> None:
    device.write(0, b"\xff" * (3 << 20))
    device.discard(1 << 20, 1 << 20)
    assert device.read(0, 1 << 20) == b"\xff" * (1 << 20)
    assert device.read(2 << 20, 1 << 20) == b"\xff" * (1 << 20)
    device.write(1 << 20, b"\xee" * 4096)
    assert device.read(1 << 20, 4096) == b"\xee" * 4096


def test_compare_and_write(device: Device) -> None:
    if not _compares(device):
        with pytest.raises(LockMethodUnusable, match="PAXOS"):
            device.compare_and_write(8192, bytes(4096), bytes(4096))
        return
    for length in _compare_bytes(device):
        old, new, other = bytes(length), _pattern(1, length), _pattern(2, length)
        device.write_zeros(8192, 4096)
        assert not device.compare_and_write(8192, other, new)
        assert device.read(8192, length) == old
        assert device.compare_and_write(8192, old, new)
        assert device.read(8192, length) == new
        assert not device.compare_and_write(8192, old, other)
        last_byte_differs = new[:-1] + bytes([new[-1] ^ 1])
        assert not device.compare_and_write(8192, last_byte_differs, other)
        assert device.read(8192, length) == new


def test_longer_comparisons_than_the_target_makes_are_refused(device: Device) -> None:
    if _compares(device) and 4096 not in _compare_bytes(device):
        with pytest.raises(MisalignedIO, match="at most 512 bytes at once"):
            device.compare_and_write(8192, bytes(4096), bytes(4096))


def test_compare_and_write_excludes_threads(device: Device) -> None:
    if not _compares(device):
        return
    size = device.logical_block_bytes
    rounds, threads = 40, 4

    def count(at: int) -> None:
        done = 0
        while done < rounds:
            old = device.read(at, size)
            number = int.from_bytes(old[:8], "little")
            done += device.compare_and_write(at, old, (number + 1).to_bytes(8, "little") + old[8:])

    # Two sectors, two threads on each, so that one's unlock would open the other's range.
    workers = [threading.Thread(target=count, args=((n % 2) * size,), name=f"count-{n}") for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counted = [int.from_bytes(device.read(at, size)[:8], "little") for at in (0, size)]
    assert counted == [rounds * threads // 2] * 2


def test_ranges_outside_are_refused(device: Device) -> None:
    size = device.logical_block_bytes
    block = bytes(size)
    for offset in (DEVICE_BYTES, -size, DEVICE_BYTES + (1 << 40)):
        calls = (
            lambda at=offset: device.read(at, size),
            lambda at=offset: device.read_into(at, memoryview(bytearray(size))),
            lambda at=offset: device.write(at, block),
            lambda at=offset: device.compare_and_write(at, block, block),
            lambda at=offset: device.discard(at, size),
            lambda at=offset: device.write_zeros(at, size),
        )
        for call in calls:
            with pytest.raises(OutOfRange, match=str(DEVICE_BYTES)):
                call()
    with pytest.raises(OutOfRange):
        device.write(DEVICE_BYTES - size, bytes(2 * size))
    with pytest.raises(OutOfRange):
        device.read(0, -size)


def test_misalignment_is_refused(device: Device) -> None:
    size = device.logical_block_bytes
    for offset, length in ((1, size), (0, size - 1), (size // 2, size)):
        with pytest.raises(MisalignedIO):
            device.read(offset, length)
        with pytest.raises(MisalignedIO):
            device.write(offset, bytes(length))
        with pytest.raises(MisalignedIO):
            device.compare_and_write(offset, bytes(length), bytes(length))
    for old, new in ((b"", b""), (bytes(size), bytes(2 * size)), (bytes(8192), bytes(8192))):
        with pytest.raises(MisalignedIO, match="compare_and_write"):
            device.compare_and_write(0, old, new)
    assert device.read(0, 16384) == bytes(16384)


def test_lock_methods(device: Device) -> None:
    if isinstance(device, IscsiDevice):
        wanted = (LockMethod.PAXOS,) if "test:tgt" in device.name else (LockMethod.PAXOS, LockMethod.SCSI_CAW)
        foreign = LockMethod.OFD_FILE
    elif isinstance(device, ScsiBlockDevice):
        wanted, foreign = (LockMethod.PAXOS, LockMethod.SCSI_CAW, LockMethod.OFD_HOST), LockMethod.OFD_FILE
    else:
        wanted, foreign = (LockMethod.OFD_FILE,), LockMethod.SCSI_CAW
    assert device.lock_methods() == wanted
    device.use_lock_method(wanted[0])
    with pytest.raises(LockMethodUnusable, match=rf"{foreign.name}.*{wanted[0].name}"):
        device.use_lock_method(foreign)


def test_descriptor_reads_what_was_written(device: Device) -> None:
    fd = device.fileno()
    if fd is None:
        assert isinstance(device, RamDevice | FaultDevice | IscsiDevice)
        return
    device.write(4096, b"\x5a" * 4096)
    with mmap.mmap(-1, 4096) as memory:
        assert os.preadv(fd, [memory], 4096) == 4096
        assert memory[:] == b"\x5a" * 4096


def test_closed_device_does_nothing(device: Device) -> None:
    device.close()
    device.close()
    for call in (
        lambda: device.read(0, 4096),
        lambda: device.write(0, bytes(4096)),
        lambda: device.compare_and_write(0, bytes(4096), bytes(4096)),
        device.flush,
    ):
        with pytest.raises(VmfsError) as caught:
            call()
        assert isinstance(caught.value, DeviceGone)


@pytest.mark.parametrize("kind", ["file", "loop", "ram", "fault", "iscsi"])
def test_read_only(kind: str, image: Path, request: pytest.FixtureRequest) -> None:
    device: Device
    if kind == "ram":
        device = RamDevice(DEVICE_BYTES).again(read_only=True)
    elif kind == "loop":
        node = request.getfixturevalue("attach_loop")(image, "--direct-io=on")
        device = open_device(node, read_only=True)
    elif kind == "iscsi":
        device = open_device(small_lun_of(request, "lio-512").url, read_only=True)
        assert LockMethod.SCSI_CAW in device.lock_methods()  # told without a write
    else:
        device = open_device(str(image), read_only=True)
        if kind == "fault":
            device = FaultDevice(device, seed=1)
    block = bytes(4096)
    assert device.read_only
    assert device.read(0, 4096) == block
    for call in (
        lambda: device.write(0, block),
        lambda: device.compare_and_write(0, block, block),
        lambda: device.discard(0, 4096),
        lambda: device.write_zeros(0, 4096),
    ):
        with pytest.raises(DeviceReadOnly, match="read-only"):
            call()
    device.close()
