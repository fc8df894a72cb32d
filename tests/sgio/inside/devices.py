"""Within the guest: the devices' conformance suite and that of reservations, on real SCSI disks by SG_IO.

Two disks stand for two hosts: one LUN by two adapters, each of which is an initiator. Keys are taken away by PREEMPT
here: at PREEMPT AND ABORT, Linux 6.1's tcm_loop waits for itself for ever.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.devices.conftest import DEVICE_BYTES
from tests.devices.test_conformance import (  # noqa: F401
    test_closed_device_does_nothing,
    test_compare_and_write,
    test_compare_and_write_excludes_threads,
    test_descriptor_reads_what_was_written,
    test_discard_leaves_the_rest_and_can_be_written_again,
    test_lock_methods,
    test_longer_comparisons_than_the_target_makes_are_refused,
    test_neighbours_are_untouched,
    test_size_and_first_content,
)
from tests.luns.test_reservations import (  # noqa: F401
    test_register_reserve_clear,
    test_who_is_not_registered_reads_and_changes_nothing,
)
from tests.sgio.inside.disks import disks
from vmfs.devices import Device, open_device
from vmfs.devices.reservations import PlainPreempt
from vmfs.devices.sgio import ScsiBlockDevice
from vmfs.errors import DeviceError, ReservationConflict

KEYS = (0xA001, 0xB001)
_LUNS = {512: 0, 4096: 1}
_RESERVED_LUN = 2
_BLKPG, _BLKPG_ADD, _BLKPG_DELETE = 0x1269, 1, 2  # linux/blkpg.h


@pytest.fixture(params=list(_LUNS))
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    node = disks()[_LUNS[request.param]][0]
    opened = open_device(node)
    assert isinstance(opened, ScsiBlockDevice)
    assert opened.logical_block_bytes == request.param
    assert opened.discard(0, DEVICE_BYTES)  # what lies behind is a sparse file: zeros again
    yield opened
    opened.close()


@pytest.fixture
def hosts() -> Iterator[tuple[Device, Device]]:
    """On a LUN that no other test compares on: LIO's compare-and-write excludes no longer where one was refused."""
    first, second = (open_device(node) for node in disks()[_RESERVED_LUN])
    yield first, second
    theirs = first.reservations()
    assert theirs is not None
    theirs.register(1)
    theirs.clear()
    for opened in (first, second):
        opened.close()


def test_two_hosts_exclude_each_other_by_the_lun() -> None:
    """Each counts in one sector by compare-and-write, at the same time; no step is lost."""
    rounds, at = 100, 8192
    hosts = [open_device(node) for node in disks()[0]]
    size = hosts[0].logical_block_bytes
    hosts[0].write_zeros(at, 4096)

    def count(host: Device) -> None:
        done = 0
        while done < rounds:
            old = host.read(at, size)
            done += host.compare_and_write(at, old, (int.from_bytes(old, "big") + 1).to_bytes(size, "big"))

    with ThreadPoolExecutor(len(hosts), "count") as workers:
        for counted in [workers.submit(count, host) for host in hosts]:
            counted.result()
    last = int.from_bytes(hosts[0].read(at, size), "big")
    assert last == 2 * rounds, last
    for host in hosts:
        host.close()


def test_whose_key_is_taken_away_is_refused_by_the_kernel(hosts: tuple[Device, Device]) -> None:
    winner, victim = hosts
    theirs = winner.reservations()
    assert isinstance(theirs, PlainPreempt)
    theirs.register(KEYS[0])
    theirs.reserve()
    other = victim.reservations()
    assert other is not None
    other.register(KEYS[1])
    victim.write(0, b"1" * 4096)
    assert theirs.preempt(KEYS[1])
    assert theirs.keys() == (KEYS[0],)
    fd = victim.fileno()
    assert fd is not None
    with mmap.mmap(-1, 4096) as memory:
        memory[:] = b"2" * 4096
        with pytest.raises(OSError) as refused:  # as the data plane writes
            os.pwritev(fd, [memory], 0)
    assert refused.value.errno == errno.EBADE
    for change in (
        lambda: victim.write(0, b"3" * 4096),
        lambda: victim.compare_and_write(0, b"1" * 512, b"4" * 512),
    ):
        with pytest.raises(ReservationConflict, match="not registered"):
            change()
    assert winner.read(0, 4096) == b"1" * 4096
    winner.write(0, b"5" * 4096)


def test_a_part_of_a_lun_is_compared_at_its_own_place(device: Device) -> None:
    """BLKPG makes a partition without a table."""
    start, length, number = 1 << 20, 4 << 20, 1
    fd = device.fileno()
    assert fd is not None
    partition = struct.pack("@qqi64s64s4x", start, length, number, b"", b"")
    with memoryview(bytearray(partition)) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(fd, _BLKPG, struct.pack("@iiiP", _BLKPG_ADD, 0, len(partition), address))
        node = f"{device.name}{number}"
        try:
            part = open_device(node)
            size = part.logical_block_bytes
            assert part.size_bytes == length
            assert part.compare_and_write(4096, bytes(size), b"p" * size)
            assert part.read(4096, size) == b"p" * size == device.read(start + 4096, size)
            part.close()
        finally:
            fcntl.ioctl(fd, _BLKPG, struct.pack("@iiiP", _BLKPG_DELETE, 0, len(partition), address))


def test_a_disk_that_is_taken_away_is_an_error(device: Device) -> None:
    name = os.path.basename(device.name)
    other = next(node for pair in disks() if device.name in pair for node in pair if node != device.name)
    assert open_device(other).lock_methods() == device.lock_methods()
    Path(f"/sys/block/{name}/device/state").write_text("offline\n")
    try:
        size = device.logical_block_bytes
        with pytest.raises(DeviceError):
            device.compare_and_write(0, bytes(size), b"x" * size)
        with pytest.raises(DeviceError):
            device.write(0, bytes(size))
    finally:
        Path(f"/sys/block/{name}/device/state").write_text("running\n")
    assert device.compare_and_write(0, bytes(size), b"x" * size)
