"""What is packed comes back as it was."""

import stat
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ondisk.blocks import AT, JOURNAL_BLOCKS, SIZE, SUPERBLOCK, VOLUME
from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk import chunk, directory, group, inode, journal, node, orphans, superblock
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.directory import CAPACITY_BYTES, DirectoryBlock, Entry, name_hash
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.header import seal_checksum
from vmfs.ondisk.inode import FLAG_INLINE, FLAG_LAYER, Inode
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, JournalHeader, Record, Revoke
from vmfs.ondisk.orphans import CAPACITY, OrphanKind

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
FAST = settings(max_examples=60, deadline=None)


@FAST
@given(st.integers(1, 8192), st.integers(0, 1 << 8192), st.integers(0, 1 << 8192), st.integers(0, 1 << 8192), U32)
def test_group(count: int, used: int, meta: int, late: int, units: int) -> None:
    mask = (1 << count) - 1
    made = GroupBlock(3, count, used & mask, meta & used & mask, late & ~used & mask, units)
    assert group.parse(made.pack(AT, VOLUME), AT, VOLUME, 3, count) == made


@pytest.mark.parametrize(
    "bad",
    [
        GroupBlock(3, 10, used=1 << 10),
        GroupBlock(3, 10, quarantine=1 << 10),
        GroupBlock(3, 10, used=1, meta=2),
        GroupBlock(3, 10, used=1, quarantine=1),
        GroupBlock(4, 10),
        GroupBlock(3, 11),
    ],
)
def test_group_that_contradicts_itself(bad: GroupBlock) -> None:
    with pytest.raises(DamagedBlock):
        group.parse(bad.pack(AT, VOLUME), AT, VOLUME, 3, 10)


@FAST
@given(st.integers(2, 256), st.integers(0, 1 << 256), st.integers(0, 1 << 256))
def test_chunk(units: int, used: int, inodes: int) -> None:
    mask = (1 << units) - 1
    made = ChunkHead(5, units, used & mask | 1, inodes & mask & ~1)
    assert chunk.parse(made.pack(AT, VOLUME), AT, VOLUME, 5, units) == made


@FAST
@given(
    st.lists(U32, min_size=6, max_size=6), st.lists(U64, min_size=8, max_size=8), st.lists(I64, min_size=4, max_size=4),
    st.sampled_from([0, FLAG_LAYER, FLAG_INLINE]), st.integers(0, 62), st.integers(0, 3), U16,
    st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=200), max_size=5), st.binary(max_size=900),
    st.lists(U64, min_size=64, max_size=64),
)  # fmt: skip
def test_inode(
    small: list[int], large: list[int], times: list[int], flags: int, level: int, height: int, depth: int,
    xattrs: dict[bytes, bytes], inline: bytes, root: list[int],
) -> None:  # fmt: skip
    made = Inode(
        AT >> 12, stat.S_IFREG | small[0] & 0o777, small[1], small[2], small[3], small[4], flags, large[0], large[1],
        *times, large[2], large[3], large[4], large[5], small[5], small[0], large[6], large[7], large[0], large[1],
        small[1], level, height, depth, large[2],
    )  # fmt: skip
    made.root = node.array("Q", root)
    made.xattrs, made.inline = xattrs, inline
    if made.tail_bytes() > inode.TAIL_MAX_BYTES:
        return
    assert inode.parse(made.pack(VOLUME), AT >> 12, VOLUME) == made


@settings(max_examples=20, deadline=None)
@given(st.lists(U64, min_size=504, max_size=504), U64, st.integers(0, 3), st.integers(0, (1 << 50)))
def test_node(pointers: list[int], map_id: int, level: int, index: int) -> None:
    made = node.array("Q", pointers)
    image = node.pack(made, address=AT, volume=VOLUME, map_id=map_id, level=level, index=index, generation=6)
    assert node.parse(image, AT, VOLUME, map_id, level, index) == (made, 6)
    with pytest.raises(DamagedBlock):
        node.parse(image, AT, VOLUME, map_id, level, index + 1)
    with pytest.raises(DamagedBlock):
        node.parse(image, AT, VOLUME, map_id ^ 1, level, index)


NAMES = st.binary(min_size=1, max_size=255).filter(lambda n: b"/" not in n and b"\0" not in n)


@FAST
@given(st.sets(NAMES, max_size=30), U64, U64, U32, st.integers(0, 255), st.integers(0, 63))
def test_directory(names: set[bytes], seed: int, target: int, generation: int, kind: int, bits: int) -> None:
    made = DirectoryBlock({}, bits, overflow=target)
    for name in names:
        entry = Entry(name, name_hash(name, seed), target, generation, kind)
        if made.fits(entry):
            made.add(entry)
    image = made.pack(address=AT, volume=VOLUME, map_id=4, bucket=2)
    assert directory.parse(image, AT, VOLUME, 4, 2) == made
    for name in list(made.entries):
        made.remove(name)
    assert made.used_bytes == 0


def test_a_directory_block_can_be_filled_to_its_last_byte() -> None:
    made = DirectoryBlock({}, 0)
    size = Entry(b"", 0, 0, 0, 0).stored_bytes
    while CAPACITY_BYTES - made.used_bytes > size:
        length = min(255, CAPACITY_BYTES - made.used_bytes - size)
        name = b"%d" % len(made.entries) + b"n" * 255
        made.add(Entry(name[:length], 0, 1, 1, 8))
    assert made.used_bytes == CAPACITY_BYTES
    assert directory.parse(made.pack(address=AT, volume=VOLUME, map_id=4, bucket=2), AT, VOLUME, 4, 2) == made


@FAST
@given(st.dictionaries(st.tuples(U64, U32), st.sampled_from(OrphanKind), max_size=CAPACITY))
def test_orphans(entries: dict[tuple[int, int], OrphanKind]) -> None:
    image = orphans.pack(entries, address=AT, volume=VOLUME, slot=2, generation=5)
    assert orphans.parse(image, AT, VOLUME, 2) == (entries, 5)


def test_of_two_journal_headers_the_newest_valid_one_counts() -> None:
    old, new = JournalHeader(1, 4, 100, 9, 50), JournalHeader(1, 5, 1, 2, 1)
    both = new.pack(AT, 0, VOLUME) + old.pack(AT, 1, VOLUME)
    assert journal.parse_header(both, AT, VOLUME, 1, JOURNAL_BLOCKS) == new
    torn = bytes(SIZE) + both[SIZE:]
    assert journal.parse_header(torn, AT, VOLUME, 1, JOURNAL_BLOCKS) == old
    with pytest.raises(DamagedBlock):
        journal.parse_header(bytes(2 * SIZE), AT, VOLUME, 1, JOURNAL_BLOCKS)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_journal_record(images: int, revokes: int) -> None:
    made = Record(
        2, 9, 4, tuple(Image(i << 12, 7, i, bytes([i & 0xFF]) * SIZE) for i in range(images)),
        tuple(Revoke(i << 12, 8, i) for i in range(revokes)),
    )  # fmt: skip
    data = journal.pack_record(made, journal_address=AT, position=HEADER_BLOCKS, volume=VOLUME)
    blocks = journal.record_blocks(images, revokes)
    assert len(data) == blocks * SIZE
    ring = memoryview(bytes(HEADER_BLOCKS * SIZE) + data)
    place = {"journal_address": AT, "volume": VOLUME, "slot": 2, "incarnation": 9}
    assert journal.parse_record(ring, HEADER_BLOCKS, sequence=4, **place) == (made, blocks)  # type: ignore[arg-type]
    assert journal.parse_record(ring, HEADER_BLOCKS, sequence=5, **place) is None  # type: ignore[arg-type]


def test_superblock() -> None:
    for extent in (0, 1):
        for offset in SUPERBLOCK.copy_offsets(extent):
            found = superblock.parse(SUPERBLOCK.pack(extent, offset), offset, "lun")
            assert found.extent_index == extent
            assert (found.label, found.extents, found.segments) == ("ds-ü", SUPERBLOCK.extents, SUPERBLOCK.segments)
    assert superblock.parse(SUPERBLOCK.pack(0, 64 << 10), 64 << 10, "lun") == SUPERBLOCK


@pytest.mark.parametrize(("at", "value"), [(64, 2), (88, superblock.KNOWN_INCOMPAT + 1)])
def test_superblocks_of_the_future_are_refused(at: int, value: int) -> None:
    block = bytearray(SUPERBLOCK.pack(0, 64 << 10))
    block[at] = value  # format version, incompatible features
    with pytest.raises(UnsupportedFormat, match="lun"):
        superblock.parse(bytes(seal_checksum(block)), 64 << 10, "lun")


def test_an_extent_of_another_uuid_is_refused() -> None:
    block = bytearray(SUPERBLOCK.pack(0, 64 << 10))
    assert block[512:528] == UUID(int=1).bytes
    block[512:528] = UUID(int=9).bytes
    with pytest.raises(DamagedBlock, match="UUID"):
        superblock.parse(bytes(seal_checksum(block)), 64 << 10, "lun")
