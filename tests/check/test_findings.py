"""One broken invariant at a time is found, by its name."""

import stat
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.check.small_volume import SmallVolume
from vmfs.check import Kind, Report
from vmfs.check.findings import MAX_FINDINGS_PER_KIND
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.journal import JournalHeader
from vmfs.ondisk.lock import Guards, Holder, LockMode
from vmfs.ondisk.node import PUNCHED, UNWRITTEN, WRITTEN
from vmfs.ondisk.orphans import OrphanKind
from vmfs.ondisk.slot import SlotRecord, SlotState

Check = Callable[[SmallVolume], Report]


def test_a_volume_with_one_of_everything_is_clean(small: SmallVolume, check: Check) -> None:
    report = check(small)
    assert report.findings == []
    assert report.exit_code == 0
    counts = report.counts
    assert (counts.files, counts.directories, counts.layers, counts.entries) == (8, 3, 1, 130)


def _set(name: str, **fields: object) -> Callable[[SmallVolume], None]:
    def change(small: SmallVolume) -> None:
        inode = small.inodes[name]
        for field, value in fields.items():
            assert hasattr(inode, field)
            setattr(inode, field, value)
        small.write_inode(inode)

    return change


def _pointer(name: str, index: int, pointer: Callable[[SmallVolume], int]) -> Callable[[SmallVolume], None]:
    def change(small: SmallVolume) -> None:
        inode = small.inodes[name]
        inode.root[index] = pointer(small)
        small.write_inode(inode)

    return change


def _block_freed(small: SmallVolume) -> None:
    small.groups[1].used &= ~1
    small.write_group(1)


def _block_leaked(small: SmallVolume) -> None:
    small.groups[2].used |= 1 << 30
    small.write_group(2)


def _unit_freed(small: SmallVolume) -> None:
    head, unit = small.geometry.chunk_of(next(iter(small.nodes)))
    small.chunks[head].used &= ~(1 << unit)
    small.write_bitmaps()


def _unit_leaked(small: SmallVolume) -> None:
    small.new_units(1)
    small.write_bitmaps()


def _free_units_miscounted(small: SmallVolume) -> None:
    small.groups[0].free_units += 1
    small.write_group(0)


def _lock_from_the_future(small: SmallVolume) -> None:
    address = small.geometry.inode_lock_address(small.inodes["plain"].number)
    lock = small.free_lock(address, Guards.INODE).taken(Holder(1, 99), LockMode.EXCLUSIVE, version=1)
    small.write(address, lock.pack(512).ljust(4096, b"\0"))


def _lock_of_another_kind(small: SmallVolume) -> None:
    address = small.geometry.group_lock_address(1)
    small.write(address, small.free_lock(address, Guards.INODE).pack(512).ljust(4096, b"\0"))


def _old_superblock(small: SmallVolume) -> None:
    sb = small.volume.superblock
    newer = sb.with_generation(sb.generation + 1)
    for offset in sb.copy_offsets(0)[:2]:
        small.write(offset, newer.pack(0, offset))


def _failed_slot(small: SmallVolume) -> None:
    address = small.geometry.slot_address(2)
    record = SlotRecord(address, small.volume.prefix, 2, SlotState.FAILED, 3, 9, host_name="esx9")
    small.write(address, record.pack(512).ljust(4096, b"\0"))


def _journal_from_the_future(small: SmallVolume) -> None:
    address = small.geometry.journal_address(1)
    small.write(address, JournalHeader(1, 77, 1, 2, 0).pack(address, 0, small.uuid))


def _inode_marked_free(small: SmallVolume) -> None:
    number = small.inodes["plain"].number
    small.write_inode(Inode(number))


def _name_twice(small: SmallVolume) -> None:
    # In the same bucket, in the next block of its chain.
    for map_id, bucket, block in small.directory_blocks.values():
        if block.overflow:
            twin = next(iter(block.entries.values()))
            _, _, behind = small.directory_blocks[block.overflow]
            behind.remove(next(iter(behind.entries)))
            behind.add(twin)
            assert (map_id, bucket) == small.directory_blocks[block.overflow][:2]
            small.write_directory_block(block.overflow)
            return
    pytest.fail("no bucket of the small volume overflows")


def _overflow_cycle(small: SmallVolume) -> None:
    for address, (_, _, block) in small.directory_blocks.items():
        if block.overflow:
            small.directory_blocks[block.overflow][2].overflow = address
            small.write_directory_block(block.overflow)
            return


def _bits_wrong(small: SmallVolume) -> None:
    address, block, _ = small.block_of("sub", b"inner")
    block.bits = 1
    small.write_directory_block(address)


def _hash_wrong(small: SmallVolume) -> None:
    _, _, entry = small.block_of("sub", b"inner")
    small.change_entry("sub", b"inner", hash=entry.hash ^ 1 << 63)


def _in_the_wrong_bucket(small: SmallVolume) -> None:
    """Moves an entry from bucket 0's chain to bucket 1's."""
    many = small.inodes["many"].map_id
    chains = {b: [v for v in small.directory_blocks.items() if v[1][:2] == (many, b)] for b in (0, 1, 2)}
    address, (_, _, source) = chains[0][-1]
    entry = source.remove(next(iter(source.entries)))
    small.write_directory_block(address)
    address, (_, _, target) = chains[1][-1]
    if not target.fits(entry):
        target.remove(next(iter(target.entries)))
    target.add(entry)
    small.write_directory_block(address)


def _second_name_of_a_directory(small: SmallVolume) -> None:
    sub = small.inodes["sub"]
    small.change_entry("root", b"one", inode=sub.number, generation=sub.inode_generation, type=4)


def _directory_in_itself(small: SmallVolume) -> None:
    """`sub` is taken from the root and put into itself."""
    sub = small.inodes["sub"]
    linked = small.inodes["linked"]
    small.change_entry("root", b"sub", inode=linked.number, generation=linked.inode_generation, type=8)
    small.change_entry("sub", b"inner", inode=sub.number, generation=sub.inode_generation, type=4)


def _layer_cycle(small: SmallVolume) -> None:
    layer = small.inodes["layer"]
    layer.parent, layer.parent_generation = layer.number, layer.inode_generation
    small.write_inode(layer)


def _layer_without_children(small: SmallVolume) -> None:
    for name in ("base", "copy"):
        small.inodes[name].parent = small.inodes[name].parent_generation = 0
        small.write_inode(small.inodes[name])
    _set("layer", children=0)(small)


def _orphan_with_a_name(small: SmallVolume) -> None:
    plain = small.inodes["plain"]
    small.write_orphans(0, {(plain.number, plain.inode_generation): OrphanKind.REMOVE})


def _orphan_of_the_past(small: SmallVolume) -> None:
    small.write_orphans(0, {(small.inodes["plain"].number, 55): OrphanKind.TRIM})


def _lost_file(small: SmallVolume) -> None:
    small.new_inode("lost", stat.S_IFREG | 0o644)
    small.write_inode(small.inodes["lost"])
    small.write_bitmaps()


def _first_block(small: SmallVolume) -> int:
    return small.inodes["plain"].root[0]


BREAKS: dict[str, tuple[Kind, Callable[[SmallVolume], None]]] = {
    "block in use marked free": (Kind.BLOCK_NOT_ALLOCATED, _block_freed),
    "block leaked": (Kind.BLOCK_LEAKED, _block_leaked),
    "unit in use marked free": (Kind.UNIT_NOT_ALLOCATED, _unit_freed),
    "unit leaked": (Kind.UNIT_LEAKED, _unit_leaked),
    "free units miscounted": (Kind.GROUP_COUNTS_WRONG, _free_units_miscounted),
    "block used by two files": (Kind.BLOCK_SHARED, _pointer("base", 0, _first_block)),
    "block used twice by one file": (Kind.BLOCK_SHARED, _pointer("plain", 1, _first_block)),
    "node used twice": (Kind.UNIT_SHARED, _pointer("big", 2, lambda s: next(iter(s.nodes)) | WRITTEN)),
    "pointer into a chunk": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: next(iter(s.chunks)) | WRITTEN)),
    "pointer outside groups": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: 0x10000 | WRITTEN)),
    "pointer to no extent": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: 9 << 56 | UNWRITTEN)),
    "pointer into a block": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: _first_block(s) + 4096)),
    "pointer with reserved bits": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: s.new_block() | WRITTEN | 8)),
    "punched with an address": (Kind.POINTER_WRONG, _pointer("plain", 1, lambda s: s.new_block() | PUNCHED)),
    "node pointer unwritten": (Kind.POINTER_WRONG, _pointer("big", 2, lambda s: next(iter(s.nodes)) | UNWRITTEN)),
    "node pointer to data": (Kind.POINTER_WRONG, _pointer("big", 2, lambda s: s.new_block() | WRITTEN)),
    "data behind the end": (Kind.POINTER_BEYOND_END, _set("plain", size=10)),
    "blocks miscounted": (Kind.BLOCK_COUNT_WRONG, _set("plain", own_blocks=9)),
    "directory blocks miscounted": (Kind.BLOCK_COUNT_WRONG, _set("sub", own_blocks=9)),
    "height too low": (Kind.POINTER_WRONG, _set("big", height=0)),
    "map of another": (Kind.NODE_DAMAGED, _set("big", map_id=12345)),
    "directory map of another": (Kind.DIRECTORY_DAMAGED, _set("sub", map_id=12345)),
    "superblock copies differ": (Kind.SUPERBLOCK_OLD, _old_superblock),
    "slot failed": (Kind.SLOT_FAILED, _failed_slot),
    "lock from the future": (Kind.LOCK_IMPOSSIBLE, _lock_from_the_future),
    "lock of another kind": (Kind.LOCK_DAMAGED, _lock_of_another_kind),
    "journal from the future": (Kind.JOURNAL_DAMAGED, _journal_from_the_future),
    "inode free, bitmap used": (Kind.INODE_STATE_WRONG, _inode_marked_free),
    "impossible mode": (Kind.INODE_STATE_WRONG, _set("linked", mode=0o644)),
    "root no directory": (Kind.INODE_STATE_WRONG, _set("root", mode=stat.S_IFREG)),
    "inode lost": (Kind.INODE_LOST, _lost_file),
    "inode not removed": (Kind.INODE_UNREMOVED, _set("linked", nlink=0)),
    "too few links": (Kind.LINKS_WRONG, _set("linked", nlink=1)),
    "too many links": (Kind.LINKS_WRONG, _set("linked", nlink=3)),
    "directory links": (Kind.LINKS_WRONG, _set("root", nlink=9)),
    "directory with two names": (Kind.LINKS_WRONG, _second_name_of_a_directory),
    "named layer": (Kind.LINKS_WRONG, _set("layer", nlink=1)),
    "directory within itself": (Kind.INODE_LOST, _directory_in_itself),
    "parent directory wrong": (Kind.PARENT_WRONG, _set("sub", directory_parent=5)),
    "layer not there": (Kind.LAYER_MISSING, _set("base", parent=7)),
    "layer is a file": (Kind.LAYER_MISSING, _set("layer", flags=0)),
    "layer of another generation": (Kind.LAYER_MISSING, _set("base", parent_generation=8)),
    "children miscounted": (Kind.LAYER_CHILDREN_WRONG, _set("layer", children=1)),
    "layers below miscounted": (Kind.LAYER_DEPTH_WRONG, _set("base", layer_depth=4)),
    "shared blocks miscounted": (Kind.SHARED_COUNT_WRONG, _set("base", shared_blocks=9)),
    "data inherited behind the end": (Kind.INHERITS_BEYOND_END, _set("base", size=65536)),
    "directory of another size": (Kind.SIZE_WRONG, _set("sub", size=1)),
    "link of another size": (Kind.SIZE_WRONG, _set("symlink", size=77)),
    "layers in a circle": (Kind.LAYER_CYCLE, _layer_cycle),
    "layer without children": (Kind.LAYER_LOST, _layer_without_children),
    "orphan with a name": (Kind.ORPHAN_WRONG, _orphan_with_a_name),
    "orphan of the past": (Kind.ORPHAN_WRONG, _orphan_of_the_past),
    "entries miscounted": (Kind.ENTRY_COUNT_WRONG, _set("many", entry_count=3)),
    "split point too high": (Kind.DIRECTORY_SHAPE_WRONG, _set("many", split=2)),
    "bucket too many": (Kind.DIRECTORY_SHAPE_WRONG, _set("many", level=0, split=0)),
    "hash bits wrong": (Kind.DIRECTORY_SHAPE_WRONG, _bits_wrong),
    "hash wrong": (Kind.ENTRY_WRONG, _hash_wrong),
    "entry in the wrong bucket": (Kind.ENTRY_WRONG, _in_the_wrong_bucket),
    "name twice": (Kind.ENTRY_WRONG, _name_twice),
    "overflow in a circle": (Kind.UNIT_SHARED, _overflow_cycle),
    "entry to nowhere": (Kind.ENTRY_DANGLING, lambda s: s.change_entry("sub", b"inner", inode=3)),
    "entry of the past": (Kind.ENTRY_DANGLING, lambda s: s.change_entry("sub", b"inner", generation=3)),
    "entry of another type": (Kind.ENTRY_DANGLING, lambda s: s.change_entry("sub", b"inner", type=4)),
    "entry to a layer": (
        Kind.ENTRY_DANGLING, lambda s: s.change_entry("sub", b"inner", inode=s.inodes["layer"].number)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_invariant_is_found(small: SmallVolume, check: Check, name: str) -> None:
    kind, break_it = BREAKS[name]
    break_it(small)
    report = check(small)
    assert kind in report.totals, [f.message for f in report.findings]
    assert report.exit_code == 4
    assert all(f.meaning and f.message for f in report.findings)


def test_every_kind_of_finding_is_tested() -> None:
    elsewhere = {
        Kind.SUPERBLOCK_DAMAGED, Kind.SLOT_DAMAGED, Kind.ORPHANS_DAMAGED, Kind.GROUP_DAMAGED, Kind.CHUNK_DAMAGED,
        Kind.INODE_DAMAGED, Kind.READ_FAILED,
    }  # fmt: skip  # test_damage.py
    assert {kind for kind, _ in BREAKS.values()} | elsewhere == set(Kind)


def test_both_owners_of_a_shared_block_are_named(small: SmallVolume, check: Check) -> None:
    _pointer("base", 0, _first_block)(small)
    [message] = [f.message for f in check(small).findings if f.kind is Kind.BLOCK_SHARED]
    assert str(small.inodes["plain"].number) in message
    assert str(small.inodes["base"].number) in message


@pytest.mark.parametrize("kind", list(OrphanKind))
def test_what_waits_for_its_host_is_clean(small: SmallVolume, check: Check, kind: OrphanKind) -> None:
    """A file without a name, or cut short, whose host has noted what remains to be done."""
    if kind is OrphanKind.REMOVE:
        gone = small.new_inode("gone", stat.S_IFREG | 0o644, nlink=0)
        small.write_inode(gone)
        small.write_bitmaps()
    else:
        gone = small.inodes["plain"]
        _set("plain", size=10)(small)
    small.write_orphans(3, {(gone.number, gone.inode_generation): kind})
    report = check(small)
    assert report.findings == []
    assert "1 removals or truncations" in report.notes[0]


def test_a_flood_of_findings_is_counted_and_not_kept(small: SmallVolume, check: Check) -> None:
    for address, (_, _, block) in small.directory_blocks.items():
        for name, entry in list(block.entries.items()):
            block.remove(name)
            block.add(replace(entry, hash=entry.hash ^ 1 << 60))
        small.write_directory_block(address)
    report = check(small)
    assert report.totals[Kind.ENTRY_WRONG] == 130
    assert sum(f.kind is Kind.ENTRY_WRONG for f in report.findings) == MAX_FINDINGS_PER_KIND
    assert report.as_dict()["totals"]["entry-wrong"] == 130
