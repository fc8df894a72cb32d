"""Addresses: everything has its place, and no two things share one."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest

from vmfs.devices.ram import RamDevice
from vmfs.errors import DamagedBlock
from vmfs.geometry import Geometry
from vmfs.mkfs import FormatOptions, plan
from vmfs.ondisk.superblock import Extent, Segment, Superblock

MIB = 1 << 20


@pytest.fixture(params=[(64 << 10, 4096), (256 << 10, 4096), (MIB, 8192)])
def superblock(request: pytest.FixtureRequest) -> Superblock:
    block_bytes, lock_block_bytes = request.param
    options = FormatOptions("v", block_bytes=block_bytes, max_hosts=3, journal_bytes=256 << 10, blocks_per_group=64)
    sb = plan(RamDevice(200 * MIB), options).superblock
    groups = sb.group_count
    return replace(
        sb, lock_block_bytes=lock_block_bytes, orphans_address=sb.slots_address + 3 * lock_block_bytes,
        journals_address=sb.slots_address + 3 * lock_block_bytes + 3 * 4096,
        extents=(sb.extents[0], Extent(UUID(int=1), 1 << 30)),
        segments=(sb.segments[0], Segment(1, MIB, 2, groups, 5), Segment(1, 300 * MIB, 1, groups + 2, 64)),
    )  # fmt: skip


def _everything(sb: Superblock, geometry: Geometry) -> Iterator[tuple[int, int]]:
    """(first, behind the last) byte of each thing that has a place."""
    for slot in range(sb.max_hosts):
        yield geometry.slot_address(slot), geometry.slot_address(slot) + sb.lock_block_bytes
        yield geometry.orphans_address(slot), geometry.orphans_address(slot) + 4096
        yield geometry.journal_address(slot), geometry.journal_address(slot) + sb.journal_bytes
    for group in range(geometry.group_count):
        yield geometry.group_lock_address(group), geometry.group_lock_address(group) + sb.lock_block_bytes
        yield geometry.group_block_address(group), geometry.group_block_address(group) + 4096
        start = geometry.group_data_start(group)
        yield start, start + geometry.group_blocks(group) * sb.block_bytes
    for extent in range(len(sb.extents)):
        for offset in sb.copy_offsets(extent):
            yield extent << 56 | offset, (extent << 56 | offset) + 4096


def test_nothing_overlaps(superblock: Superblock) -> None:
    geometry = Geometry(superblock)
    places = sorted(_everything(superblock, geometry))
    for (_, end), (start, _) in pairwise(places):
        assert end <= start
    assert geometry.total_blocks() == sum(geometry.group_blocks(g) for g in range(geometry.group_count))


def test_every_block_knows_its_group(superblock: Superblock) -> None:
    geometry = Geometry(superblock)
    for group in range(geometry.group_count):
        for index in (0, geometry.group_blocks(group) // 2, geometry.group_blocks(group) - 1):
            address = geometry.block_address(group, index)
            assert address % superblock.block_bytes == 0
            assert geometry.group_of(address) == (group, index)
            assert geometry.group_of(address + superblock.block_bytes - 1) == (group, index)
            assert geometry.chunk_of(address + 3 * 4096) == (address, 3)


def test_addresses_outside_all_groups_are_damage(superblock: Superblock) -> None:
    geometry = Geometry(superblock)
    first, last = geometry.group_data_start(0), geometry.group_count - 1
    end = geometry.group_data_start(last) + geometry.group_blocks(last) * superblock.block_bytes
    for address in (0, first - 1, 1 << 56, end, 7 << 56, (1 << 64) - 1):
        with pytest.raises(DamagedBlock):
            geometry.group_of(address)
    with pytest.raises(DamagedBlock):
        geometry.chunk_of(first + 512)


def test_indexes_beyond_the_end_are_errors(superblock: Superblock) -> None:
    geometry = Geometry(superblock)
    for call in (geometry.group_lock_address, geometry.group_block_address, geometry.group_blocks):
        for group in (-1, geometry.group_count):
            with pytest.raises(IndexError):
                call(group)
    for call in (geometry.slot_address, geometry.orphans_address, geometry.journal_address):
        for slot in (-1, superblock.max_hosts):
            with pytest.raises(IndexError):
                call(slot)
    with pytest.raises(IndexError):
        geometry.block_address(0, geometry.group_blocks(0))


def test_inodes_have_room_for_their_locks(superblock: Superblock) -> None:
    geometry = Geometry(superblock)
    chunk = geometry.block_address(1, 0) >> 12
    least = geometry.inode_units
    geometry.check_inode(chunk + least)
    assert geometry.inode_lock_address(chunk + least) == (chunk + 1) << 12
    for unit in range(least):
        with pytest.raises(DamagedBlock):
            geometry.check_inode(chunk + unit)
    with pytest.raises(DamagedBlock):
        geometry.check_inode(3)
