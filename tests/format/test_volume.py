"""Opening volumes: which devices are accepted, and what is said of the others."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from vmfs.devices import LockMethod, open_device
from vmfs.devices.ram import RamDevice
from vmfs.errors import (
    DamagedBlock,
    DeviceGone,
    DeviceNotUsable,
    LockMethodUnusable,
    NotAVolume,
    UnsupportedFormat,
)
from vmfs.mkfs import FormatOptions, format_volume
from vmfs.ondisk.superblock import Extent, Segment, Superblock
from vmfs.volume import open_volume, read_copies

MIB = 1 << 20
TINY = FormatOptions("tiny", max_hosts=2, journal_bytes=256 << 10)


@pytest.fixture
def device() -> RamDevice:
    made = RamDevice(8 * MIB)
    format_volume(made, TINY)
    return made


def _write(device: RamDevice, sb: Superblock, extent: int = 0, copies: int = 3) -> None:
    for offset in sb.copy_offsets(extent)[:copies]:
        device.write(offset, sb.pack(extent, offset))


def test_each_copy_alone_opens_the_volume(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    for keep in sb.copy_offsets(0):
        for offset in sb.copy_offsets(0):
            device.write(offset, sb.pack(0, offset) if offset == keep else bytes(4096))
        assert open_volume([device]).superblock == sb


def test_the_newest_copy_counts(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    _write(device, replace(sb, label="newer", generation=sb.generation + 1), copies=1)
    assert open_volume([device]).superblock.label == "newer"


def test_the_last_copy_is_found_after_the_device_grew(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    grown = RamDevice(16 * MIB)
    grown.write(0, device.read(0, device.size_bytes))
    assert open_volume([grown]).superblock == sb
    assert sb.copy_offsets(0)[2] in {c.offset for c in read_copies(grown) if c.superblock is not None}


def test_a_truncated_lun_is_said_to_be_one(device: RamDevice) -> None:
    short = RamDevice(7 * MIB)
    short.write(0, device.read(0, 7 * MIB))
    with pytest.raises(DeviceNotUsable, match="is truncated: volume tiny uses 8388608 bytes of it and 7340032"):
        open_volume([short], read_only=True)


def test_an_empty_device_is_no_volume() -> None:
    with pytest.raises(NotAVolume, match="nothing known"):
        open_volume([RamDevice(MIB)])


def test_another_file_system_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ext4.img"
    path.touch()
    os.truncate(path, 8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    device = open_device(str(path))
    try:
        with pytest.raises(NotAVolume, match="found there: ext4 file system"):
            open_volume([device])
    finally:
        device.close()


def test_damaged_copies_are_not_called_an_empty_device(device: RamDevice) -> None:
    for offset in open_volume([device]).superblock.copy_offsets(0):
        block = bytearray(device.read(offset, 4096))
        block[300] ^= 1
        device.write(offset, bytes(block))
    with pytest.raises(DamagedBlock, match="no superblock copy is intact"):
        open_volume([device])


def test_features_that_allow_reading_only(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    _write(device, replace(sb, ro_compat=1 << 40, compat=1 << 41, generation=2))
    assert open_volume([device], read_only=True).superblock.ro_compat == 1 << 40
    with pytest.raises(UnsupportedFormat, match="read only"):
        open_volume([device])


def test_features_that_allow_nothing(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    _write(device, replace(sb, incompat=1 << 42, generation=2))
    with pytest.raises(UnsupportedFormat, match="0x40000000000"):
        open_volume([device], read_only=True)


def test_a_lock_method_that_this_host_cannot_use(device: RamDevice) -> None:
    sb = open_volume([device]).superblock
    _write(device, replace(sb, lock_method=LockMethod.SCSI_CAW, generation=2))
    with pytest.raises(LockMethodUnusable, match=r"SCSI_CAW.*OFD_FILE"):
        open_volume([device])
    assert open_volume([device], read_only=True).read_only
    _write(device, replace(sb, lock_method=77, generation=3))
    with pytest.raises(LockMethodUnusable, match="method 77"):
        open_volume([device])


def test_sectors_larger_than_the_volumes(device: RamDevice) -> None:
    other = RamDevice(8 * MIB, logical_block_bytes=4096)
    other.write(0, device.read(0, device.size_bytes))
    with pytest.raises(DeviceNotUsable, match="sectors of 4096"):
        open_volume([other])


@pytest.fixture
def two() -> tuple[RamDevice, RamDevice]:
    """A volume of two extents."""
    first, second = RamDevice(8 * MIB, name="first"), RamDevice(8 * MIB, name="second")
    one = format_volume(first, TINY)
    sb = replace(
        one, extents=(*one.extents, Extent(UUID(int=5), 8 * MIB)), generation=2,
        segments=(*one.segments, Segment(1, MIB, 1, one.group_count, 64)),
    )  # fmt: skip
    _write(first, sb, 0)
    _write(second, sb, 1)
    return first, second


def test_two_extents_in_any_order(two: tuple[RamDevice, RamDevice]) -> None:
    for order in (two, two[::-1]):
        volume = open_volume(order)
        assert [volume.extents.device(i).name for i in (0, 1)] == ["first", "second"]
        assert volume.geometry.group_data_start(volume.geometry.group_count - 1) >> 56 == 1


def test_a_missing_extent_is_named(two: tuple[RamDevice, RamDevice]) -> None:
    with pytest.raises(DeviceGone, match=f"extent 1 .{UUID(int=5)}, [0-9]+ bytes. of volume tiny"):
        open_volume(two[:1])


def test_one_extent_given_twice(two: tuple[RamDevice, RamDevice]) -> None:
    with pytest.raises(DeviceNotUsable, match="same extent of the volume as first"):
        open_volume([two[0], two[0].again(name="path 2"), two[1]])


def test_an_extent_of_another_volume(two: tuple[RamDevice, RamDevice], device: RamDevice) -> None:
    with pytest.raises(DeviceNotUsable, match="belongs to volume tiny"):
        open_volume([*two, device])


def _forge(**fields: object) -> Callable[[Superblock], Superblock]:
    return lambda sb: replace(sb, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "forge",
    [
        _forge(block_bytes=4096), _forge(block_bytes=2 << 20), _forge(lock_block_bytes=0), _forge(max_hosts=0),
        _forge(sector_bytes=1024), _forge(blocks_per_group=1), _forge(journal_bytes=1 << 30), _forge(segments=()),
        _forge(slots_address=0), _forge(slots_address=(256 << 10) + 512), _forge(orphans_address=256 << 10),
        _forge(journals_address=0), _forge(superblock_lock=64 << 10), _forge(probe_address=64 << 10),
        _forge(root_inode=0), _forge(root_inode=1 << 60), _forge(extents=(Extent(UUID(int=1), MIB),)),
        lambda sb: replace(sb, segments=(replace(sb.segments[0], start=0),)),
        lambda sb: replace(sb, segments=(replace(sb.segments[0], group_count=1 << 31),)),
        lambda sb: replace(sb, segments=(replace(sb.segments[0], extent=3),)),
        lambda sb: replace(sb, segments=(replace(sb.segments[0], last_group_blocks=0),)),
        lambda sb: replace(sb, segments=(sb.segments[0], replace(sb.segments[0], first_group=sb.group_count))),
    ],
)  # fmt: skip
def test_a_forged_geometry_steers_nothing(device: RamDevice, forge: Callable[[Superblock], Superblock]) -> None:
    sb = open_volume([device]).superblock
    forged = forge(sb)
    for offset in sb.copy_offsets(0):
        device.write(offset, forged.pack(0, offset))
    with pytest.raises(DamagedBlock):
        open_volume([device], read_only=True)
