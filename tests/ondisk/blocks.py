"""One of each kind of metadata block, as the format's own modules write it, and how it is read again."""

import stat
from collections.abc import Callable
from uuid import UUID

from vmfs.ondisk import chunk, directory, group, inode, journal, node, orphans, superblock
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.directory import DirectoryBlock, Entry, name_hash
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, JournalHeader, Record, Revoke
from vmfs.ondisk.node import WRITTEN
from vmfs.ondisk.orphans import OrphanKind
from vmfs.ondisk.superblock import Extent, Segment, Superblock, TimerFields

VOLUME = bytes(range(16))
AT = (3 << 56) | 0x123000
SIZE = 4096
JOURNAL_BLOCKS = 16

SUPERBLOCK = Superblock(
    volume=UUID(bytes=VOLUME), label="ds-ü", created_ns=1_700_000_000_000_000_000, block_bytes=64 << 10,
    sector_bytes=512, lock_block_bytes=4096, lock_method=1, max_hosts=4, blocks_per_group=64,
    timers=TimerFields(3_000_000, 16_000_000, 2_000_000, 20_000_000, 5_000_000, 6_000_000, 10_000),
    slots_address=256 << 10, orphans_address=272 << 10, journals_address=288 << 10, journal_bytes=256 << 10,
    root_inode=999, extents=(Extent(UUID(int=1), 64 << 20), Extent(UUID(int=2), 1 << 30, 5)),
    segments=(Segment(0, 2 << 20, 2, 0, 17), Segment(1, 1 << 20, 3, 2, 64)), generation=7,
)  # fmt: skip


def _directory() -> DirectoryBlock:
    block = DirectoryBlock({}, bits=5, overflow=AT + SIZE)
    for name in (b"a", "ö".encode(), b"x" * 255):
        block.add(Entry(name, name_hash(name, 42), 77, 3, 8))
    return block


def _inode() -> Inode:
    made = Inode(AT >> 12, stat.S_IFREG | 0o640, 1, 2, 3, 4, 0, 1 << 40, 6, -1, 8, 9, 10, map_id=11, version=12)
    made.xattrs = {b"user.a": b"1", b"user.empty": b""}
    made.root[3] = 0x5000 | WRITTEN
    made.shared_blocks = 13
    return made


def _pointers() -> node.array:  # type: ignore[type-arg]
    pointers = node.empty_pointers()
    pointers[0], pointers[503] = 0x5000 | WRITTEN, node.PUNCHED
    return pointers


RECORD = Record(
    2, 9, 4, (Image(0x5000, 0x6000, 1, b"i" * SIZE), Image(0x7000, 0x6000, 1, b"j" * SIZE)), (Revoke(0x8000, 1, 2),)
)


def packed() -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """(image, its parser) by kind. A journal record is longer than a block."""
    journal_header = JournalHeader(2, 9, 4, 5, 3)

    def parse_journal_header(block: bytes) -> object:
        behind = bytes(SIZE) if len(block) == SIZE else b""
        return journal.parse_header(bytes(block) + behind, AT, VOLUME, 2, JOURNAL_BLOCKS)

    return {
        "superblock": (SUPERBLOCK.pack(0, 64 << 10), lambda b: superblock.parse(b, 64 << 10, "lun")),
        "group": (
            GroupBlock(4, 100, used=7, meta=1, quarantine=8, free_units=5).pack(AT, VOLUME),
            lambda b: group.parse(b, AT, VOLUME, 4, 100),
        ),
        "chunk": (
            ChunkHead(4, 16, used=0b111, inodes=0b10).pack(AT, VOLUME),
            lambda b: chunk.parse(b, AT, VOLUME, 4, 16),
        ),
        "inode": (_inode().pack(VOLUME), lambda b: inode.parse(b, AT >> 12, VOLUME)),
        "node": (
            node.pack(_pointers(), address=AT, volume=VOLUME, map_id=8, level=1, index=2, generation=1),
            lambda b: node.parse(b, AT, VOLUME, 8, 1, 2),
        ),
        "directory": (
            _directory().pack(address=AT, volume=VOLUME, map_id=8, bucket=3),
            lambda b: directory.parse(b, AT, VOLUME, 8, 3),
        ),
        "orphans": (
            orphans.pack({(5, 1): OrphanKind.TRIM, (6, 2): OrphanKind.REMOVE}, address=AT, volume=VOLUME, slot=1,
                         generation=1),
            lambda b: orphans.parse(b, AT, VOLUME, 1),
        ),
        "journal header": (journal_header.pack(AT, 0, VOLUME), parse_journal_header),
    }  # fmt: skip


def read_record(data: bytes, sequence: int = 4) -> tuple[Record, int] | None:
    """A record that was packed for the first position of the ring at AT."""
    ring = bytearray(JOURNAL_BLOCKS * SIZE)
    ring[HEADER_BLOCKS * SIZE : HEADER_BLOCKS * SIZE + len(data)] = data
    return journal.parse_record(
        memoryview(ring), HEADER_BLOCKS, journal_address=AT, volume=VOLUME, slot=2, incarnation=9, sequence=sequence
    )
