"""Every structure of a volume is shown as it lies there, damaged or not, and nothing is written."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from tests.check.small_volume import OPTIONS, SIZE_BYTES, UNIT, SmallVolume
from tests.crash.seeds import replay, rounds
from vmfs.devices.contract import LockMethod
from vmfs.devices.ram import RamDevice
from vmfs.dump.anyblock import dump_block
from vmfs.dump.fixed import Dumper, dump_superblocks
from vmfs.dump.journals import dump_journal
from vmfs.dump.structure import Structure, bit_runs
from vmfs.dump.trees import Trees
from vmfs.errors import NoSuchStructure
from vmfs.mkfs import FormatOptions, format_volume
from vmfs.ondisk.header import checksum_matches, seal_checksum
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.journal import Image, JournalHeader, Record, Revoke, pack_record, record_blocks
from vmfs.ondisk.orphans import OrphanKind
from vmfs.volume import open_volume

SLOT, INCARNATION = 2, 9
SUPERBLOCKS = ("superblock", "superblock 2", "last superblock")


@pytest.fixture
def small() -> SmallVolume:
    made = SmallVolume()
    made.write_orphans(2, {(made.inodes["plain"].number, 1): OrphanKind.TRIM})
    return made


def look(small: SmallVolume) -> Dumper:
    return Dumper(open_volume([small.device.again(read_only=True)], read_only=True))


def write_journal(small: SmallVolume, *sequences: int) -> list[int]:
    """Records one after the other from position 2; the header names the second one as the oldest needed."""
    start = small.geometry.journal_address(SLOT)
    lock = small.geometry.group_lock_address(0)
    target = small.geometry.group_block_address(0)
    positions = []
    at = 2
    for sequence in sequences:
        image = Image(target, lock, 7, small.read(target))
        record = Record(SLOT, INCARNATION, sequence, (image,), (Revoke(target + UNIT, lock, 7),))
        data = pack_record(record, journal_address=start, position=at, volume=small.uuid)
        small.write(start + at * UNIT, data)
        positions.append(at)
        at += record_blocks(1, 1)
    header = JournalHeader(SLOT, INCARNATION, sequences[1], positions[1], 5)
    small.write(start, header.pack(start, 0, small.uuid))
    return positions


def everything(small: SmallVolume) -> list[Structure]:
    dumper = look(small)
    trees = Trees(dumper)
    sb, plain = small.volume.superblock, small.inodes["plain"].number
    shown = dump_superblocks([small.device])
    for slot in range(sb.max_hosts):
        shown += [*dumper.slot(slot), dumper.orphans(slot), *dump_journal(dumper, slot, images=True, every=True)]
    for group in range(small.geometry.group_count):
        shown += [*dumper.group_lock(group), dumper.group(group)]
    shown += [*dumper.lock(sb.superblock_lock), *dumper.inode_lock(plain)]
    shown += [dumper.chunk(address) for address in small.chunks]
    for made in small.inodes.values():
        shown += [trees.inode(made.number), *trees.map(made.number)]
        if made.is_directory:
            shown += trees.directory(made.number, None)
    shown += [trees.node(address) for address in small.nodes]
    for address in small.all_blocks().values():
        shown += dump_block(dumper, address)
    return shown


def test_a_sound_volume_is_shown_without_problems(small: SmallVolume) -> None:
    write_journal(small, 3, 4, 5)
    before = small.device.read(0, SIZE_BYTES)
    shown = everything(small)
    assert [s for s in shown if s.problems] == []
    assert all(s.fields for s in shown)
    assert {s.kind for s in shown} == set(SCHEMA) - {"paxos-sector"}
    assert small.device.read(0, SIZE_BYTES) == before


def test_what_is_shown_is_what_is_there(small: SmallVolume) -> None:
    dumper = look(small)
    trees = Trees(dumper)
    big = small.inodes["big"]
    (shown,) = trees.map(big.number)
    first, second = (p[3][7] & ~0xFFF for p in small.nodes.values())
    assert shown.fields["runs"] == [
        {"first": 7, "count": 1, "state": "written", "address": first},
        {"first": 504 + 7, "count": 1, "state": "written", "address": second},
    ]
    copy, layer = trees.map(small.inodes["copy"].number)
    assert copy.fields["parent_inode"] == layer.fields["inode"] == small.inodes["layer"].number
    assert [run["state"] for run in copy.fields["runs"]] == ["written", "punched"]  # type: ignore[union-attr, index, call-overload]
    names = {
        entry["name"]  # type: ignore[index, call-overload]
        for block in trees.directory(small.inodes["many"].number, None)[1:]
        for entry in block.fields["entries"]  # type: ignore[union-attr]
    }
    assert names == {f"name-{i:03}" + "-" * 100 for i in range(120)}
    assert trees.find("/sub/inner") == small.inodes["inner"].number
    assert trees.find("/") == small.root
    assert dumper.orphans(2).fields["entries"] == [
        {"inode": small.inodes["plain"].number, "generation": 1, "what": "trim"}
    ]
    used = dumper.group(0).fields["used"]
    assert used == bit_runs(small.groups[0].used)


def test_bit_runs() -> None:
    for bits, runs in ((0, []), (1, [[0, 0]]), (0b11011, [[0, 1], [3, 4]]), (1 << 8191, [[8191, 8191]])):
        assert bit_runs(bits) == runs


def test_a_journal_says_which_records_count(small: SmallVolume) -> None:
    positions = write_journal(small, 3, 4, 5)
    shown = dump_journal(look(small), SLOT, images=True, every=True)
    records = [s for s in shown if s.kind == "journal-record"]
    assert [(r.fields["sequence"], r.fields["position"], r.fields["needed"]) for r in records] == [
        (3, positions[0], False), (4, positions[1], True), (5, positions[2], True)
    ]  # fmt: skip
    images = [s for s in shown if s.kind == "group"]
    assert len(images) == 3
    assert all(i.where == "image of block of group 0" and not i.problems for i in images)
    needed = dump_journal(look(small), SLOT, images=False, every=False)
    assert [s.fields["sequence"] for s in needed if s.kind == "journal-record"] == [4, 5]

    small.flip(small.geometry.journal_address(SLOT) + (positions[1] + 1) * UNIT, 77)  # an image of the first needed one
    header, *_ = dump_journal(look(small), SLOT, images=False, every=False)
    assert header.problems == ("record 4 is damaged or missing, and later ones are whole: it will not be replayed",)


# -- damage ----------------------------------------------------------------------------------------


def readers(small: SmallVolume, dumper: Dumper) -> dict[str, Callable[[], list[Structure]]]:
    """How each block of `all_blocks` is asked for by what it is."""
    sb, trees, at = small.volume.superblock, Trees(dumper), small.all_blocks()
    copies = {name: i for i, name in enumerate(SUPERBLOCKS)}
    found: dict[str, Callable[[], list[Structure]]] = {
        name: lambda i=i: [dump_superblocks([small.device])[i]] for name, i in copies.items()  # type: ignore[misc]
    }
    for name in ("inode", "directory inode", "root", "layer"):
        found[name] = lambda name=name: [trees.inode(at[name] >> 12)]  # type: ignore[misc]
    return found | {
        "superblock lock": lambda: dumper.lock(sb.superblock_lock), "slot": lambda: dumper.slot(1),
        "orphans": lambda: [dumper.orphans(2)], "group lock": lambda: dumper.group_lock(1),
        "journal header": lambda: dump_journal(dumper, 3, images=False, every=False)[:1],
        "journal header 2": lambda: dump_journal(dumper, 3, images=False, every=False)[1:2],
        "group": lambda: [dumper.group(1)], "group with chunks": lambda: [dumper.group(0)],
        "chunk": lambda: [dumper.chunk(at["chunk"])], "node": lambda: [trees.node(at["node"])],
        "inode lock": lambda: dumper.inode_lock(small.inodes["plain"].number),
        "directory block": lambda: [trees.directory_block(at["directory block"])],
    }  # fmt: skip


@pytest.mark.parametrize("name", SmallVolume().all_blocks())
def test_a_damaged_block_is_shown_as_it_stands(name: str) -> None:
    """One wrong bit in a number that only grows: all fields are there, as they stand."""
    small = SmallVolume()
    address = small.all_blocks()[name]
    dumper = look(small)
    (sound,) = readers(small, dumper)[name]()
    small.flip(address, 8 * (34 if name == "slot" or name.endswith(" lock") else 26))
    (found,) = readers(small, dumper)[name]()
    assert "checksum does not match" in found.problems[0]
    assert list(found.fields) == list(sound.fields)
    assert found.raw == small.device.read(address, len(found.raw))


def test_a_block_in_the_wrong_place_shows_whose_it_is(small: SmallVolume) -> None:
    one, other = (small.inodes[n].number for n in ("plain", "big"))
    small.write(inode_address(one), small.read(inode_address(other)))
    found = Trees(look(small)).inode(one)
    assert f"says that its address is {inode_address(other):#x}" in found.problems[0]
    assert found.fields["inode"] == other


def test_maps_and_directories_with_holes_in_them_are_shown_around_the_holes(small: SmallVolume) -> None:
    trees = Trees(look(small))
    small.flip(next(iter(small.nodes)), 999)
    (shown,) = trees.map(small.inodes["big"].number)
    assert len(shown.problems) == 1
    assert "checksum" in shown.problems[0]
    assert [run["first"] for run in shown.fields["runs"]] == [511]  # type: ignore[union-attr, index, call-overload]
    address, _, _ = small.block_of("many", b"name-000" + b"-" * 100)
    small.flip(address, 999)
    blocks = trees.directory(small.inodes["many"].number, None)
    assert [b.address for b in blocks if b.problems] == [address]
    layer = small.inodes["layer"]
    layer.parent = small.inodes["copy"].number
    small.write_inode(layer)
    assert "go round" in trees.map(small.inodes["copy"].number)[-1].problems[-1]


@rounds(1)
def test_random_bytes_never_end_in_anything_else_than_a_report(small: SmallVolume, seed: int) -> None:
    """Fields are overwritten at random below checksums that match: the parsers must bear it, and so must what shows."""
    rng = random.Random(seed)
    write_journal(small, 3, 4, 5)
    originals = {
        address: small.read(address) for name, address in small.all_blocks().items() if name not in SUPERBLOCKS
    }
    for address, block in originals.items():
        for _ in range(6):
            changed = bytearray(block)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(16, 300)
                changed[at : at + 4] = rng.randbytes(4)
            small.write(address, bytes(seal_checksum(changed) if checksum_matches(block) else changed))
            dumper = look(small)
            for name, read in readers(small, dumper).items():
                assert read(), f"{name}; {replay(seed)}"
            for number in (small.root, small.inodes["copy"].number):
                Trees(dumper).map(number)
        small.write(address, block)


# -- bounds ----------------------------------------------------------------------------------------


def test_what_a_volume_does_not_have(small: SmallVolume) -> None:
    dumper = look(small)
    trees = Trees(dumper)
    sb = small.volume.superblock
    absent: list[Callable[[], object]] = [
        lambda: dumper.slot(sb.max_hosts), lambda: dumper.orphans(10**6),
        lambda: dumper.group(small.geometry.group_count),
        lambda: dumper.group_lock(-1), lambda: dumper.inode_lock(7), lambda: trees.inode(0), lambda: trees.map(1 << 60),
        lambda: dump_block(dumper, SIZE_BYTES), lambda: dump_block(dumper, 1 << 56),
        lambda: dump_block(dumper, 1 << 64),
        lambda: dump_block(dumper, 4097), lambda: dumper.chunk(0), lambda: trees.node(SIZE_BYTES - 512),
        lambda: trees.find("/nosuch"), lambda: trees.find("/plain/x"),
        lambda: trees.directory(small.inodes["plain"].number, None), lambda: trees.directory(small.root, 99),
        lambda: dump_journal(dumper, 77, images=False, every=False),
    ]  # fmt: skip
    for ask in absent:
        with pytest.raises(NoSuchStructure):
            ask()


def test_data_and_what_was_never_used(small: SmallVolume) -> None:
    dumper = look(small)
    data = small.inodes["plain"].root[0] & ~0xFFF
    (found,) = dump_block(dumper, data)
    assert (found.kind, found.where, found.fields) == ("block", "block 0 of group 1, unit 0", {"zeros": True})
    small.write(data, small.read(small.geometry.group_block_address(0)))
    (found,) = dump_block(dumper, data)
    assert found.fields["own_address"] == small.geometry.group_block_address(0)


# -- Disk-Paxos ------------------------------------------------------------------------------------


def test_every_hosts_sector_of_a_paxos_register() -> None:
    device = RamDevice(SIZE_BYTES, name="paxos")
    format_volume(device, FormatOptions("p", max_hosts=4, journal_bytes=256 << 10, blocks_per_group=64,
                                        lock_method=LockMethod.PAXOS))  # fmt: skip
    volume = open_volume([device])
    dumper = Dumper(volume)
    counted, *sectors = dumper.slot(1)
    assert (counted.kind, counted.fields["state"], len(sectors)) == ("slot", "free", OPTIONS.max_hosts)
    assert [s.fields["bal"] for s in sectors] == [1, 0, 0, 0]
    assert sectors[0].fields["record"] == counted.fields
    assert {s.kind: set(s.fields) for s in sectors} == {"paxos-sector": SCHEMA["paxos-sector"]}
    address = volume.geometry.slot_address(1)
    broken = bytearray(device.read(address, 4096))
    broken[512 + 460] ^= 1
    device.write(address, bytes(broken))
    counted, *sectors = dumper.slot(1)
    assert "sector 1 has a checksum" in counted.problems[0]
    assert [bool(s.problems) for s in sectors] == [False, True, False, False]


# -- the schema ------------------------------------------------------------------------------------

_HEADER = "type layout_version own_address generation volume owner role"
_FIELDS = f"""
superblock: label volume generation created_ns compat ro_compat incompat block_bytes sector_bytes lock_block_bytes
    lock_method max_hosts blocks_per_group preempt_wait_ms heartbeat_us lease_us margin_us break_us validity_us
    quarantine_us drift_ppm superblock_lock_address probe_address slots_address orphans_address journals_address
    journal_bytes root_inode extent extents segments
slot: slot state incarnation sequence host host_uuid boot_id pid start_ticks pid_namespace written_ns interval_us
    lease_us features recoverer_slot recoverer_incarnation requests
lock: guards mode version stamp kept_until_asked waiter waiter_intent hand_over destination value holders
paxos-sector: index mbal bal parent claimant record
group: {_HEADER} group blocks free_blocks free_units used metadata quarantine
chunk: {_HEADER} group units free_units used lock_blocks_at inodes
orphans: {_HEADER} slot entries
journal-header: {_HEADER} slot incarnation tail_sequence tail_position counts
journal-record: slot incarnation sequence position blocks needed images revokes
inode: {_HEADER} inode in_use file_type mode uid gid links inode_generation flags size own_blocks shared_blocks
    atime_ns mtime_ns ctime_ns btime_ns rdev version map_id height layer_depth parent_inode parent_generation children
    inherit_limit directory_parent seed entries split level inline xattrs root
map: inode map_id height size own_blocks shared_blocks layer layer_depth parent_inode nodes runs
node: {_HEADER} level index map_id pointers runs
directory: {_HEADER} bucket bits overflow_address used_bytes entries
"""
SCHEMA = {
    kind: set(names.split()) for kind, names in re.findall(r"^([\w-]+): ((?:.|\n )*)", _FIELDS, flags=re.MULTILINE)
}


def test_programs_can_rely_on_the_names_of_fields(small: SmallVolume) -> None:
    """Scripts read them: one may be added here, none changed or taken away."""
    write_journal(small, 3, 4, 5)
    for structure in everything(small):
        assert set(structure.fields) == SCHEMA[structure.kind], structure.kind
        assert set(structure.as_dict(raw=True)) == {"kind", "address", "where", "valid", "problems", "fields", "raw"}
