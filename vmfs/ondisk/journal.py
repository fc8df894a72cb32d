"""A slot's journal: whole metadata blocks, written here and flushed before they are written in place.

`journal_bytes` a slot, at the superblock's `journals_address` + slot * journal_bytes. Blocks 0 and 1 hold the journal's
header, written in turns so that a torn one leaves the other; the valid one of the highest incarnation, then generation,
counts. The other blocks are a ring of records. Covered by the slot: only its live incarnation, or its recoverer,
writes.

Header block (role = slot), after the common header:

    64  incarnation u64, sequence of the oldest record needed u64, its position (its block number, from 2) u32

A record is one write: descriptor blocks, then as many block images as they list. It lies within the ring without a
break (a record that would not fit before the end of the ring starts again at its beginning; the descriptor carries its
own position, so what lies between is passed over by trying both). Descriptor block (owner = incarnation, role =
sequence), after the common header:

    64  slot u16, descriptor blocks in the record u16, this one's index u16, reserved u16, images u32, revokes u32,
        position of the record u32, reserved u32
    88  entries of 32 bytes, all images first, then all revokes, filling one descriptor block after the other:
        block address u64, address of the lock that covers it u64, that lock's version u64,
        XXH3-64 of the image u64 (revoke: 0)

Crash rules. A record counts only when every descriptor block and every image matches its checksum: the checksums are
its commit mark, so one write and one flush commit it, torn or not. Records count from the header's sequence on without
a gap; the first one that does not count ends the journal, unless a part of a later one lies in the ring: a record is
begun when the one before it has been flushed, so then the journal is damaged, and is not replayed. Replay (rule R5 of
docs/locking.md) drops an image older than a revoke of its block, and an image whose lock the dead incarnation does not
hold at that version any more. A lock address equal to the slot's own, with the incarnation as version, means: covered
by the slot itself.

The tail moves only after what lies before it was written in place and flushed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import MAGIC, METADATA_BLOCK_BYTES, BlockType, open_block, seal

_HEADER: Final = struct.Struct("<QQI")
_DESCRIPTOR: Final = struct.Struct("<HHHHIIII")
_ENTRY: Final = struct.Struct("<4Q")
_ENTRIES: Final = 88
ENTRIES_PER_DESCRIPTOR: Final = (METADATA_BLOCK_BYTES - _ENTRIES) // _ENTRY.size
HEADER_BLOCKS: Final = 2
MAX_RECORD_IMAGES: Final = 8192  # a bound for what is read before it is verified


@dataclass(frozen=True, slots=True)
class Image:
    """A metadata block's new content, and the lock tenure that it was made under."""

    address: int
    lock_address: int
    lock_version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Revoke:
    """From this record on, older images of the block must not be replayed."""

    address: int
    lock_address: int
    lock_version: int


@dataclass(frozen=True, slots=True)
class Record:
    """A transaction as it lies in the journal."""

    slot: int
    incarnation: int
    sequence: int
    images: tuple[Image, ...]
    revokes: tuple[Revoke, ...]


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """Where replay starts."""

    slot: int
    incarnation: int
    tail_sequence: int
    tail_position: int
    generation: int

    def pack(self, journal_address: int, copy: int, volume: bytes) -> bytes:
        """The image of header block `copy` (0 or 1)."""
        block = bytearray(METADATA_BLOCK_BYTES)
        _HEADER.pack_into(block, 64, self.incarnation, self.tail_sequence, self.tail_position)
        seal(
            block, BlockType.JOURNAL_HEADER, address=journal_address + copy * METADATA_BLOCK_BYTES,
            generation=self.generation, volume=volume, role=self.slot,
        )  # fmt: skip
        return bytes(block)


def parse_one_header(block: bytes | memoryview, address: int, volume: bytes, slot: int, blocks: int) -> JournalHeader:
    """One copy of the header of a journal of `blocks` blocks. Raises DamagedBlock."""
    header = open_block(block, BlockType.JOURNAL_HEADER, address=address, volume=volume)
    incarnation, sequence, position = _HEADER.unpack_from(block, 64)
    if header.role != slot or not HEADER_BLOCKS <= position < blocks:
        raise DamagedBlock(address, f"journal header of slot {header.role}, position {position}")
    return JournalHeader(slot, incarnation, sequence, position, header.generation)


def parse_header(
    journal: bytes | memoryview, journal_address: int, volume: bytes, slot: int, blocks: int
) -> JournalHeader:
    """The header that counts, of a journal of `blocks` blocks (`journal` holds its first two blocks at least).

    Raises:
        DamagedBlock: neither copy is valid.
    """
    found: list[JournalHeader] = []
    problem: DamagedBlock | None = None
    for copy in range(HEADER_BLOCKS):
        at = copy * METADATA_BLOCK_BYTES
        try:
            block = journal[at : at + METADATA_BLOCK_BYTES]
            found.append(parse_one_header(block, journal_address + at, volume, slot, blocks))
        except DamagedBlock as e:
            problem = problem or e
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda h: (h.incarnation, h.generation))


def record_blocks(images: int, revokes: int) -> int:
    """How many blocks of the ring a record takes."""
    return descriptor_blocks(images, revokes) + images


def descriptor_blocks(images: int, revokes: int) -> int:
    """How many descriptor blocks a record has."""
    return max(1, -(-(images + revokes) // ENTRIES_PER_DESCRIPTOR))


def pack_record(record: Record, *, journal_address: int, position: int, volume: bytes) -> bytes:
    """The record's bytes, to be written at `position` of the ring."""
    count = descriptor_blocks(len(record.images), len(record.revokes))
    entries = [(i.address, i.lock_address, i.lock_version, xxh3_64_intdigest(i.data)) for i in record.images]
    entries += [(r.address, r.lock_address, r.lock_version, 0) for r in record.revokes]
    parts: list[bytes | bytearray] = []
    for index in range(count):
        block = bytearray(METADATA_BLOCK_BYTES)
        _DESCRIPTOR.pack_into(
            block, 64, record.slot, count, index, 0, len(record.images), len(record.revokes), position, 0
        )
        first = index * ENTRIES_PER_DESCRIPTOR
        for at, entry in enumerate(entries[first : first + ENTRIES_PER_DESCRIPTOR]):
            _ENTRY.pack_into(block, _ENTRIES + at * _ENTRY.size, *entry)
        address = journal_address + (position + index) * METADATA_BLOCK_BYTES
        seal(
            block, BlockType.JOURNAL_DESCRIPTOR, address=address, generation=record.sequence, volume=volume,
            owner=record.incarnation, role=record.sequence,
        )  # fmt: skip
        parts.append(block)
    parts.extend(i.data for i in record.images)
    return b"".join(parts)


def _parse_entries(blocks: Sequence[memoryview], images: int, revokes: int) -> list[tuple[int, int, int, int]]:
    total = images + revokes
    entries: list[tuple[int, int, int, int]] = []
    for block in blocks:
        here = min(ENTRIES_PER_DESCRIPTOR, total - len(entries))
        entries.extend(_ENTRY.unpack_from(block, _ENTRIES + i * _ENTRY.size) for i in range(here))
    return entries


def parse_record(
    ring: memoryview, position: int, *, journal_address: int, volume: bytes, slot: int, incarnation: int, sequence: int
) -> tuple[Record, int] | None:
    """The record `sequence` at `position` of the journal (`ring` holds all of it, headers included), and its blocks.

    None when no whole record of that incarnation and sequence lies there: the journal ends.
    """
    size = METADATA_BLOCK_BYTES
    blocks = len(ring) // size

    def descriptor(index: int) -> tuple[int, ...] | None:
        at = position + index
        if at >= blocks:
            return None
        block = ring[at * size : (at + 1) * size]
        try:
            header = open_block(
                block, BlockType.JOURNAL_DESCRIPTOR, address=journal_address + at * size, volume=volume
            )
        except DamagedBlock:
            return None
        fields: tuple[int, ...] = _DESCRIPTOR.unpack_from(block, 64)
        if (header.owner, header.role) != (incarnation, sequence) or fields[0] != slot or fields[2] != index:
            return None
        return fields

    first = descriptor(0)
    if first is None:
        return None
    _, count, _, _, images, revokes, own_position, _ = first
    total = count + images
    if own_position != position or images > MAX_RECORD_IMAGES or count != descriptor_blocks(images, revokes):
        return None
    if position + total > blocks:
        return None
    for index in range(1, count):
        again = descriptor(index)
        if again is None or again[1] != count or again[4:7] != first[4:7]:
            return None
    descriptors = [ring[(position + i) * size : (position + i + 1) * size] for i in range(count)]
    entries = _parse_entries(descriptors, images, revokes)
    found: list[Image] = []
    for i, (address, lock, version, checksum) in enumerate(entries[:images]):
        at = (position + count + i) * size
        data = bytes(ring[at : at + size])
        if xxh3_64_intdigest(data) != checksum:
            return None
        found.append(Image(address, lock, version, data))
    revoked = tuple(Revoke(a, lock, version) for a, lock, version, _ in entries[images:])
    return Record(slot, incarnation, sequence, tuple(found), revoked), total


def record_shape(descriptor: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """(descriptor blocks, images, revokes) of a record, by its first descriptor block, whose checksum matches."""
    _, count, _, _, images, revokes, _, _ = _DESCRIPTOR.unpack_from(descriptor, 64)
    return count, images, revokes


def image_checksums(descriptors: Sequence[memoryview], images: int) -> list[int]:
    """The checksums of a record's images, by its descriptor blocks."""
    return [entry[3] for entry in _parse_entries(descriptors, images, 0)]


def goes_on_behind(ring: memoryview, *, journal_address: int, volume: bytes, incarnation: int, sequence: int) -> bool:
    """Whether the journal holds any part of a record of that incarnation that is later than `sequence`.

    A record is flushed before the next one is begun: so where a later one is, `sequence` was whole once.
    """
    size = METADATA_BLOCK_BYTES
    for position in range(HEADER_BLOCKS, len(ring) // size):
        block = ring[position * size : (position + 1) * size]
        if bytes(block[: len(MAGIC)]) != MAGIC:
            continue
        try:
            address = journal_address + position * size
            header = open_block(block, BlockType.JOURNAL_DESCRIPTOR, address=address, volume=volume)
        except DamagedBlock:
            continue
        if header.owner == incarnation and header.role > sequence:
            return True
    return False
