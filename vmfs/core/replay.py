"""Replay of a dead incarnation's journal (rule R5 of docs/locking.md). Idempotent: a replayer may die half-way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from vmfs.core.leased import LeasedIO
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, Record, goes_on_behind, parse_header, parse_record
from vmfs.ondisk.journalbits import put_header_right, put_record_right

log = logging.getLogger("vmfs.core")

_TYPE_OFFSET = 4  # of the common header


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where a journal lies and whose it is."""

    address: int
    size_bytes: int
    volume: bytes
    slot: int
    incarnation: int


def read_records(data: bytes, place: JournalPlace) -> list[Record]:
    """The records that count, oldest first. A single wrong bit in a header or a record is put right, and logged.

    Raises DamagedBlock when no header can be read, or a record is damaged that others follow.
    """
    ring = bytearray(data)
    view = memoryview(ring)
    blocks = len(data) // METADATA_BLOCK_BYTES
    for address in put_header_right(ring, place.address, place.volume, place.slot):
        _tell(place, address)
    header = parse_header(view, place.address, place.volume, place.slot, blocks)
    records: list[Record] = []
    if header.incarnation != place.incarnation:
        return records  # that incarnation died before it wrote anything
    position, sequence = header.tail_position, header.tail_sequence
    while True:
        for start in (position, HEADER_BLOCKS):
            found = parse_record(
                view, start, journal_address=place.address, volume=place.volume, slot=place.slot,
                incarnation=place.incarnation, sequence=sequence,
            )  # fmt: skip
            if found is not None:
                break
        else:
            if _put_right(ring, place, position, sequence):
                continue
            break
        record, length = found
        records.append(record)
        position = start + length if start + length < blocks else HEADER_BLOCKS
        sequence += 1
    if goes_on_behind(
        view, journal_address=place.address, volume=place.volume, incarnation=place.incarnation, sequence=sequence
    ):
        address = place.address + position * METADATA_BLOCK_BYTES
        raise DamagedBlock(address, f"journal record {sequence} of slot {place.slot} is damaged; later ones are whole")
    return records


def _put_right(ring: bytearray, place: JournalPlace, position: int, sequence: int) -> bool:
    """Whether the next record was one wrong bit away from being whole, and is whole now."""
    for start in (position, HEADER_BLOCKS):
        address = put_record_right(
            ring, start, journal_address=place.address, volume=place.volume, incarnation=place.incarnation,
            sequence=sequence,
        )  # fmt: skip
        if address is not None:
            _tell(place, address)
            return True
    return False


def _tell(place: JournalPlace, address: int) -> None:
    log.warning("slot %d: the journal block at %#x had one wrong bit, which was put right", place.slot, address)


def images_to_write(records: list[Record], holds: Callable[[int, int], bool]) -> list[Image]:
    """What replay writes: the newest image per block, less what was revoked and what is not covered any more.

    `holds(lock_address, version)` says whether the dead incarnation holds that lock at that version.
    """
    newest: dict[int, tuple[int, Image]] = {}
    revoked: dict[int, int] = {}
    for record in records:
        for revoke in record.revokes:
            revoked[revoke.address] = record.sequence
        for image in record.images:
            newest[image.address] = (record.sequence, image)
    held: dict[tuple[int, int], bool] = {}
    result = []
    for address, (sequence, image) in newest.items():
        if sequence < revoked.get(address, 0):
            continue
        key = image.lock_address, image.lock_version
        if key not in held:
            held[key] = holds(*key)
        if held[key]:
            result.append(image)
    return result


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found and wrote."""

    records: int
    blocks: int


def read_journal(io: LeasedIO, place: JournalPlace) -> bytes:
    """All of a journal. Raises DeviceError."""
    return b"".join(
        io.read(place.address + at, min(1 << 20, place.size_bytes - at)) for at in range(0, place.size_bytes, 1 << 20)
    )


def replay(io: LeasedIO, place: JournalPlace, holds: Callable[[int, int], bool]) -> Replayed:
    """Write what the journal holds in place and flush.

    Raises:
        DamagedBlock: the journal has no readable header, or a damaged record within.
        DeviceError: the storage failed; nothing is lost, replay can be tried again.
    """
    records = read_records(read_journal(io, place), place)
    images = images_to_write(records, holds)
    inodes = [(i.address, i.data) for i in images if _is_inode(i)]
    others = [(i.address, i.data) for i in images if not _is_inode(i)]
    io.write_blocks(others)
    io.write_blocks(inodes)
    io.flush()
    log.info(
        "slot %d incarnation %d: replayed %d journal records, %d blocks",
        place.slot, place.incarnation, len(records), len(images),
    )  # fmt: skip
    return Replayed(len(records), len(images))


def _is_inode(image: Image) -> bool:
    return int.from_bytes(image.data[_TYPE_OFFSET : _TYPE_OFFSET + 2], "little") == BlockType.INODE
