"""One wrong bit in a dead host's journal, put right in memory: a record that was acknowledged is not lost for it.

A record counts only when all its checksums match, so a bit that flipped in the last record would make it look like one
that a crash had cut off, and what it held would be lost without a word. A record that is cut off differs in whole
sectors; one that differs in a single bit is that record.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.ondisk.correct import corrected, corrected_block
from vmfs.ondisk.header import HEADER_BYTES, METADATA_BLOCK_BYTES, BlockType, checksum_matches, seal
from vmfs.ondisk.journal import HEADER_BLOCKS, MAX_RECORD_IMAGES, descriptor_blocks, image_checksums, record_shape

_CHECKSUM: Final = slice(8, 16)  # of the common header


def put_header_right(ring: bytearray, journal_address: int, volume: bytes, slot: int) -> list[int]:
    """Put right what copies of the journal's header have one wrong bit; their addresses."""
    found = []
    for copy in range(HEADER_BLOCKS):
        address = journal_address + copy * METADATA_BLOCK_BYTES
        expected = bytearray(METADATA_BLOCK_BYTES)
        seal(expected, BlockType.JOURNAL_HEADER, address=address, generation=0, volume=volume, role=slot)
        block = _block(ring, copy)
        expected[24:32] = block[24:32]  # the generation is whatever it is
        if not checksum_matches(block) and _is_near(block, expected) and _replace(ring, copy, corrected_block(block)):
            found.append(address)
    return found


def put_record_right(
    ring: bytearray, position: int, *, journal_address: int, volume: bytes, incarnation: int, sequence: int
) -> int | None:
    """Put the one wrong bit right of record `sequence` at `position`; the block's address, None when that is not it."""
    expected = bytearray(METADATA_BLOCK_BYTES)
    address = journal_address + position * METADATA_BLOCK_BYTES
    seal(
        expected, BlockType.JOURNAL_DESCRIPTOR, address=address, generation=sequence, volume=volume, owner=incarnation,
        role=sequence,
    )  # fmt: skip
    if not _is_near(_block(ring, position), expected):
        return None
    wrong = _wrong_block(ring, position)
    if wrong is None:
        return None
    index, right = wrong
    return journal_address + index * METADATA_BLOCK_BYTES if _replace(ring, index, right) else None


def _wrong_block(ring: bytearray, position: int) -> tuple[int, bytes | None] | None:
    """The number in the ring of the record's one wrong block, and what it should be; None: none, or more than one."""
    first = _block(ring, position)
    if not checksum_matches(first):
        return position, corrected_block(first)
    count, images, revokes = record_shape(first)
    if images > MAX_RECORD_IMAGES or count != descriptor_blocks(images, revokes):
        return None
    if position + count + images > len(ring) // METADATA_BLOCK_BYTES:
        return None
    descriptors = [_block(ring, position + i) for i in range(count)]
    torn = [i for i in range(count) if not checksum_matches(descriptors[i])]
    if torn:
        return (position + torn[0], corrected_block(descriptors[torn[0]])) if len(torn) == 1 else None
    checksums = image_checksums(descriptors, images)
    places = range(position + count, position + count + images)
    differing = [(at, sum_) for at, sum_ in zip(places, checksums, strict=True) if _digest(_block(ring, at)) != sum_]
    if len(differing) != 1:
        return None
    [(at, checksum)] = differing
    return at, corrected(_block(ring, at), lambda trial: xxh3_64_intdigest(trial) == checksum)


def _digest(block: memoryview) -> int:
    return xxh3_64_intdigest(block)


def _block(ring: bytearray, index: int) -> memoryview:
    return memoryview(ring)[index * METADATA_BLOCK_BYTES : (index + 1) * METADATA_BLOCK_BYTES]


def _is_near(block: memoryview, expected: bytearray) -> bool:
    """Whether the headers, but for the checksum, differ in one bit at most."""
    found, wanted = bytearray(block[:HEADER_BYTES]), expected[:HEADER_BYTES]
    found[_CHECKSUM] = wanted[_CHECKSUM] = bytes(8)
    return (int.from_bytes(found, "little") ^ int.from_bytes(wanted, "little")).bit_count() <= 1


def _replace(ring: bytearray, index: int, right: bytes | None) -> bool:
    if right is None:
        return False
    ring[index * METADATA_BLOCK_BYTES : (index + 1) * METADATA_BLOCK_BYTES] = right
    return True
