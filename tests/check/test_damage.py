"""Damaged, forged and unreadable blocks: a finding that names them, never a traceback."""

import random
from collections.abc import Callable

import pytest

from tests.check.small_volume import UNIT, SmallVolume
from vmfs.check import Kind, Report, check_volume
from vmfs.clock import FakeClock
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.ondisk.header import HEADER_BYTES, seal_checksum
from vmfs.ondisk.inode import inode_address
from vmfs.volume import open_volume

Check = Callable[[SmallVolume], Report]

EXPECTED = {
    "superblock": Kind.SUPERBLOCK_DAMAGED,
    "superblock 2": Kind.SUPERBLOCK_DAMAGED,
    "last superblock": Kind.SUPERBLOCK_DAMAGED,
    "superblock lock": Kind.LOCK_DAMAGED,
    "slot": Kind.SLOT_DAMAGED,
    "orphans": Kind.ORPHANS_DAMAGED,
    "journal header": Kind.JOURNAL_DAMAGED,
    "journal header 2": Kind.JOURNAL_DAMAGED,
    "group lock": Kind.LOCK_DAMAGED,
    "group": Kind.GROUP_DAMAGED,
    "group with chunks": Kind.GROUP_DAMAGED,
    "chunk": Kind.CHUNK_DAMAGED,
    "inode lock": Kind.LOCK_DAMAGED,
    "inode": Kind.INODE_DAMAGED,
    "directory inode": Kind.INODE_DAMAGED,
    "root": Kind.INODE_DAMAGED,
    "layer": Kind.INODE_DAMAGED,
    "node": Kind.NODE_DAMAGED,
    "directory block": Kind.DIRECTORY_DAMAGED,
}


@pytest.mark.parametrize("kind_of_block", EXPECTED)
def test_a_flipped_bit_is_found_and_named(small: SmallVolume, check: Check, kind_of_block: str) -> None:
    address = small.all_blocks()[kind_of_block]
    for bit in (0, 77, 130, 1111, random.Random(kind_of_block).randrange(UNIT * 8), UNIT * 8 - 1):
        small.flip(address, bit)
        report = check(small)
        found = [f for f in report.findings if f.kind is EXPECTED[kind_of_block]]
        assert [f.address for f in found] == [address], (bit, report.findings)
        assert report.exit_code == 4
        small.flip(address, bit)
    assert check(small).clean


def test_every_block_of_the_small_volume_is_covered(small: SmallVolume) -> None:
    assert set(small.all_blocks()) == set(EXPECTED)


def test_damage_is_not_blamed_on_what_it_hides(small: SmallVolume, check: Check) -> None:
    """With an inode's block gone its data is not called leaked, nor its name anything but dangling."""
    small.flip(inode_address(small.inodes["big"].number), 3000)
    report = check(small)
    assert set(report.totals) == {Kind.INODE_DAMAGED, Kind.ENTRY_DANGLING}
    assert any("may belong to what is damaged" in note for note in report.notes)


@pytest.mark.parametrize("kind_of_block", ["group with chunks", "chunk"])
def test_inodes_are_found_without_their_bitmaps(small: SmallVolume, check: Check, kind_of_block: str) -> None:
    small.flip(small.all_blocks()[kind_of_block], 2000)
    report = check(small)
    assert report.counts.inodes == 12
    assert set(report.totals) <= {Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED}


def test_forged_blocks_never_raise(small: SmallVolume, check: Check) -> None:
    """Blocks whose checksum is right and whose content is not: what a hostile host could write."""
    rng = random.Random(20)
    targets = [
        a for name, a in small.all_blocks().items()
        if "lock" not in name.split() and name not in ("slot",) and "superblock" not in name
    ]  # fmt: skip
    for _ in range(300):
        address = rng.choice(targets)
        before = small.read(address)
        block = bytearray(before)
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(HEADER_BYTES, 1200 if rng.random() < 0.7 else UNIT - 8)
            if rng.random() < 0.3:
                block[at : at + 8] = rng.choice(list(small.all_blocks().values())).to_bytes(8, "little")
            else:
                block[at] = rng.randrange(256)
        small.write(address, bytes(seal_checksum(block)))
        check(small)
        small.write(address, before)
    assert check(small).clean


@pytest.mark.parametrize("kind_of_block", ["journal header", "group", "chunk", "inode", "node", "directory block"])
def test_an_unreadable_block_is_a_finding(small: SmallVolume, kind_of_block: str) -> None:
    address = small.all_blocks()[kind_of_block]
    plan = FaultPlan(volatile_cache=False, bad_ranges=((address, address + 512),))
    volume = open_volume([FaultDevice(small.device.again(), seed=1, plan=plan)], read_only=True)
    report = check_volume(volume, clock=FakeClock(sleep_advances=True))
    assert report.exit_code == 4
    assert address in {f.address for f in report.findings}


def test_a_volume_whose_every_metadata_block_is_gone_is_still_reported(small: SmallVolume, check: Check) -> None:
    start = small.volume.superblock.slots_address
    small.write(start, bytes(small.device.size_bytes - start - (128 << 10)))
    report = check(small)
    assert report.totals[Kind.GROUP_DAMAGED] == small.geometry.group_count
    assert report.totals[Kind.SLOT_DAMAGED] == 4
