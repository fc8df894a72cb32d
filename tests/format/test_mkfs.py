"""Making volumes: what is refused, what is laid out, and that a format cut off half-way leaves no half volume."""

import itertools
import os
import time
from pathlib import Path

import pytest

from vmfs.check import check_volume
from vmfs.clock import FakeClock
from vmfs.cluster.identity import HostIdentity
from vmfs.devices import LockMethod, open_device
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import (
    BadFormatOption,
    DamagedBlock,
    DeviceError,
    DeviceTooSmall,
    FormatRefused,
    LockMethodUnusable,
    NotAVolume,
    TimersRefused,
    VolumeInUse,
)
from vmfs.formatplan import minimum_bytes
from vmfs.mkfs import FormatOptions, check_free, format_volume, make_volume, plan
from vmfs.ondisk.slot import SlotRecord, SlotState
from vmfs.volume import newest_superblock, open_volume

TINY = FormatOptions("tiny", max_hosts=2, journal_bytes=256 << 10)
MIB = 1 << 20


def _clean(device: RamDevice) -> bool:
    volume = open_volume([device], read_only=True)
    return check_volume(volume, clock=FakeClock(sleep_advances=True)).clean


@pytest.mark.parametrize("block_bytes", [64 << 10, 256 << 10, MIB])
@pytest.mark.parametrize("sectors", [(512, None), (4096, None), (512, 4096)])
@pytest.mark.parametrize("max_hosts", [1, 256])
def test_every_shape_is_clean(block_bytes: int, sectors: tuple[int, int | None], max_hosts: int) -> None:
    options = FormatOptions(
        "v", block_bytes=block_bytes, max_hosts=max_hosts, journal_bytes=256 << 10, sector_bytes=sectors[1]
    )
    device = RamDevice(minimum_bytes(options) + 3 * MIB + 4096, logical_block_bytes=sectors[0])
    sb = format_volume(device, options)
    assert sb.sector_bytes == (sectors[1] or sectors[0])
    assert newest_superblock(device) == sb
    assert _clean(device)


def test_the_least_size_is_the_least() -> None:
    least = minimum_bytes(TINY)
    format_volume(RamDevice(least), TINY)
    with pytest.raises(DeviceTooSmall, match=str(least)):
        format_volume(RamDevice(least - 512), TINY)


@pytest.mark.parametrize(
    ("size", "journal", "per_group"),
    [(256 * MIB, MIB, 64), (4 << 30, MIB, 256), (1 << 40, 16 * MIB, 8192), (15 << 40, 16 * MIB, 8192)],
)
def test_sizes_follow_the_device(tmp_path: Path, size: int, journal: int, per_group: int) -> None:
    path = tmp_path / "lun"
    path.touch()
    os.truncate(path, size)
    device = open_device(str(path))
    try:
        sb = plan(device, FormatOptions("v")).superblock
    finally:
        device.close()
    assert (sb.journal_bytes, sb.blocks_per_group) == (journal, per_group)
    assert sb.group_count >= 128 or sb.blocks_per_group == 64 or sb.blocks_per_group == 256


def test_fifteen_tebibytes_take_seconds_and_little_space(tmp_path: Path) -> None:
    path = tmp_path / "lun"
    path.touch()
    os.truncate(path, 15 << 40)
    device = open_device(str(path))
    try:
        seen: list[tuple[str, int, int]] = []
        started = time.monotonic()
        planned = plan(device, FormatOptions("large"))
        make_volume(device, planned, lambda *step: seen.append(step))
        assert time.monotonic() - started < 30
        assert newest_superblock(device) == planned.superblock
    finally:
        device.close()
    assert path.stat().st_blocks * 512 < 400 * MIB
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"label": ""}, BadFormatOption),
        ({"label": "ü" * 32}, BadFormatOption),
        ({"label": "a/b"}, BadFormatOption),
        ({"label": "a\nb"}, BadFormatOption),
        ({"block_bytes": 128 << 10}, BadFormatOption),
        ({"max_hosts": 0}, BadFormatOption),
        ({"max_hosts": 257}, BadFormatOption),
        ({"journal_bytes": 1000}, BadFormatOption),
        ({"journal_bytes": 128 * MIB}, BadFormatOption),
        ({"sector_bytes": 1024}, BadFormatOption),
        ({"blocks_per_group": 100}, BadFormatOption),
        ({"lease_us": 500_000}, TimersRefused),
        ({"heartbeat_us": 9_000_000}, TimersRefused),
        ({"lock_method": LockMethod.SCSI_CAW}, LockMethodUnusable),
    ],
)
def test_options_that_do_not_work_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    device = RamDevice(8 * MIB)
    fields = {name: getattr(TINY, name) for name in TINY.__slots__} | change
    with pytest.raises(error):
        format_volume(device, FormatOptions(**fields))  # type: ignore[arg-type]
    assert not any(device.read(0, device.size_bytes))


def test_sectors_larger_than_the_wanted_are_refused() -> None:
    options = FormatOptions("v", max_hosts=2, journal_bytes=256 << 10, sector_bytes=512)
    with pytest.raises(BadFormatOption, match="4096"):
        format_volume(RamDevice(8 * MIB, logical_block_bytes=4096), options)


def test_what_a_device_holds_is_named_and_kept() -> None:
    device = RamDevice(8 * MIB)
    first = format_volume(device, TINY)
    with pytest.raises(FormatRefused, match="Azekura VMFS volume"):
        format_volume(device, TINY)
    assert newest_superblock(device) == first
    assert check_free(device, force=True) == 'Azekura VMFS volume "tiny"'


def test_a_mounted_volume_is_refused_whatever_is_said() -> None:
    device = RamDevice(8 * MIB)
    format_volume(device, TINY)
    volume = open_volume([device])
    here = HostIdentity.detect("esx7")
    address = volume.geometry.slot_address(1)
    record = SlotRecord(
        address, volume.prefix, 1, SlotState.LIVE, 1, 1, "esx7", here.host_uuid, here.boot_id, here.pid,
        here.start_ticks, here.pid_namespace,
    )  # fmt: skip
    device.write(address, record.pack(512))
    with pytest.raises(VolumeInUse, match="esx7"):
        check_free(device, force=True)


def test_nothing_of_an_old_volume_shows_through() -> None:
    device = RamDevice(16 * MIB)
    format_volume(device, FormatOptions("old", max_hosts=8, journal_bytes=256 << 10, discard=False))
    device.write(0, b"\x55\xaa" * 256)
    new = FormatOptions("new", max_hosts=2, journal_bytes=512 << 10, discard=False)
    make_volume(device, plan(device, new))
    assert newest_superblock(device).label == "new"
    assert not any(device.read(0, 64 << 10))
    assert _clean(device)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_power_cut_at_any_write_leaves_the_old_volume_none_or_the_whole_new_one(seed: int) -> None:
    seen = set()
    for cut in itertools.count(1):
        below = RamDevice(8 * MIB)
        format_volume(below, TINY)
        device = FaultDevice(below.again(), seed=seed + cut, plan=FaultPlan(power_cut_after_writes=cut))
        whole = True
        try:
            make_volume(device, plan(device, FormatOptions("new", max_hosts=3, journal_bytes=256 << 10, discard=False)))
        except DeviceError:
            whole = False
        try:
            label = newest_superblock(below).label
        except (NotAVolume, DamagedBlock):
            label = None
        seen.add(label)
        if label is not None:
            report = check_volume(open_volume([below], read_only=True), clock=FakeClock(sleep_advances=True))
            assert all("superblock" in f.kind for f in report.findings), f"seed {seed}, write {cut}: {label}"
        if whole:
            assert label == "new"
            break
    assert seen == {"tiny", None, "new"}
