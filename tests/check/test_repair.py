"""One broken invariant at a time: found, mended, and found clean."""

import random
from collections.abc import Callable

import pytest

from tests.check.fastclock import FastClock
from tests.check.small_volume import UNIT, SmallVolume
from tests.check.test_damage import EXPECTED
from tests.check.test_findings import BREAKS
from vmfs.check import Kind, Repaired, Report, repair_volume
from vmfs.volume import open_volume

Check = Callable[[SmallVolume], Report]

# What no repair can bring back; the rest of the volume is mended all the same.
LOSSES = {"layer not there", "layer is a file", "layer of another generation", "layers in a circle"}


def repair(small: SmallVolume, *, remove_damaged: bool = False, discard_journals: bool = False) -> Repaired:
    """As the command does: opened anew."""
    return repair_volume(
        open_volume([small.device.again()]), clock=FastClock(), rng=random.Random(1), remove_damaged=remove_damaged,
        discard_journals=discard_journals,
    )  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_invariant_is_mended(small: SmallVolume, check: Check, name: str) -> None:
    kind, break_it = BREAKS[name]
    break_it(small)
    done = repair(small, discard_journals=kind is Kind.SLOT_FAILED)
    assert kind in done.found.totals
    if name in LOSSES:
        assert done.exit_code == 4
        assert set(check(small).totals) == {Kind.LAYER_MISSING}
        assert repair(small, remove_damaged=True).exit_code == 1
    else:
        assert done.left.findings == []
        assert done.exit_code == 1
        assert done.done
    after = check(small)
    assert after.findings == []
    assert repair(small).exit_code == 0


@pytest.mark.parametrize("kind_of_block", EXPECTED)
def test_a_flipped_bit_is_put_right(small: SmallVolume, check: Check, kind_of_block: str) -> None:
    """To the last byte, where the block is not one that is written anew in any case."""
    address = small.all_blocks()[kind_of_block]
    before = small.read(address)
    small.flip(address, 8 * 100 + 3)
    done = repair(small)
    assert done.found.totals[EXPECTED[kind_of_block]]
    assert done.exit_code == 1, done.left.findings
    assert check(small).findings == []
    if "lock" not in kind_of_block and "journal" not in kind_of_block and kind_of_block != "slot":
        assert small.read(address) == before


def ruin(small: SmallVolume, address: int) -> None:
    """More than one bit."""
    block = bytearray(small.read(address))
    block[200:900] = bytes(b ^ 0x5A for b in block[200:900])
    small.write(address, bytes(block))


@pytest.mark.parametrize("kind_of_block", sorted(set(EXPECTED) - {"inode", "layer"}))
def test_a_ruined_block_is_made_anew(small: SmallVolume, check: Check, kind_of_block: str) -> None:
    ruin(small, small.all_blocks()[kind_of_block])
    done = repair(small)
    assert done.exit_code == 1, done.left.findings
    after = check(small)
    assert after.findings == []
    before_files = 8
    assert after.counts.files == before_files
    assert repair(small).exit_code == 0


@pytest.mark.parametrize("kind_of_block", ["inode", "layer"])
def test_a_ruined_file_is_kept_until_it_is_given_up(small: SmallVolume, check: Check, kind_of_block: str) -> None:
    ruin(small, small.all_blocks()[kind_of_block])
    used = [g.used for g in small.groups]
    done = repair(small)
    assert done.exit_code == 4
    assert {f.path for f in done.left.findings if f.kind is Kind.ENTRY_DANGLING} <= {"/plain"}
    assert [small._read_group(g.index).used & u == u for g, u in zip(small.groups, used, strict=True)]
    assert repair(small, remove_damaged=True).exit_code == 1
    assert check(small).findings == []


def test_half_the_metadata_ruined_at_once(small: SmallVolume, check: Check) -> None:
    rng = random.Random(5)
    for name, address in small.all_blocks().items():
        if rng.random() < 0.6 and name != "superblock 2":
            ruin(small, address)
    done = repair(small, remove_damaged=True)
    assert done.exit_code == 1, done.left.findings
    assert check(small).findings == []


def test_the_names_of_a_ruined_directory_come_back(small: SmallVolume, check: Check) -> None:
    ruin(small, small.all_blocks()["root"])
    assert repair(small).exit_code == 1
    assert check(small).counts.entries == 130


def test_what_lost_its_name_is_found_under_it(small: SmallVolume, check: Check) -> None:
    """A bucket of the directory is gone, and one of the names in it was the only one of its file."""
    address, _, entry = small.block_of("sub", b"inner")
    small.write(address, bytes(UNIT))
    assert repair(small).exit_code == 1
    report = check(small)
    assert report.findings == []
    assert report.counts.directories == 4
    volume = open_volume([small.device.again()])
    assert b"#%d" % entry.inode in b"".join(
        volume.extents.read(a, UNIT)
        for a in range(small.geometry.block_address(0, 0), small.geometry.block_address(0, 10), UNIT)
    )
