"""A slot's journal: its headers, and every record that can be found in its ring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmfs.dump.anyblock import decode_image
from vmfs.dump.fixed import Dumper
from vmfs.dump.places import place_of
from vmfs.dump.structure import Fields, Structure, Value
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, open_block, peek
from vmfs.ondisk.journal import HEADER_BLOCKS, JournalHeader, Record, parse_record

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Found:
    """A whole record in the ring."""

    position: int
    blocks: int
    record: Record


def dump_journal(dumper: Dumper, slot: int, *, images: bool, every: bool) -> list[Structure]:
    """The journal of a slot: both header copies, and the records that a replay would read; with `every` also older ones
    that still lie in the ring. `images`: each block that a record holds, decoded.

    Raises NoSuchStructure, DeviceError.
    """
    dumper.check_slot(slot)
    volume = dumper.volume
    start = volume.geometry.journal_address(slot)
    size = volume.superblock.journal_bytes
    data = b"".join(dumper.read(start + at, min(_READ_BYTES, size - at)) for at in range(0, size, _READ_BYTES))
    shown, best = dumper.journal_headers(slot)
    records = sorted(_records(volume.uuid, slot, start, data), key=lambda f: (f.record.incarnation, f.record.sequence))
    needed = _needed(best, records)
    for found in records:
        counts = (found.record.incarnation, found.record.sequence) in needed
        if counts or every:
            shown.append(_record(dumper, start, data, found, counts))
            if images:
                shown.extend(decode_image(dumper, i.address, i.data) for i in found.record.images)
    if best is not None and (gap := _gap(best, records, needed)) is not None:
        problem = f"record {gap} is damaged or missing, and later ones are whole: it will not be replayed"
        shown[0] = replace(shown[0], problems=(*shown[0].problems, problem))
    return shown


def _records(volume: bytes, slot: int, start: int, data: bytes) -> Iterator[_Found]:
    """Every whole record, wherever it lies."""
    view = memoryview(data)
    for position in range(HEADER_BLOCKS, len(data) // METADATA_BLOCK_BYTES):
        block = view[position * METADATA_BLOCK_BYTES : (position + 1) * METADATA_BLOCK_BYTES]
        try:
            address = start + position * METADATA_BLOCK_BYTES
            head = open_block(block, BlockType.JOURNAL_DESCRIPTOR, address=address, volume=volume)
        except DamagedBlock:
            continue
        found = parse_record(
            view, position, journal_address=start, volume=volume, slot=slot, incarnation=head.owner, sequence=head.role
        )
        if found is not None:
            yield _Found(position, found[1], found[0])


def _needed(best: JournalHeader | None, records: list[_Found]) -> set[tuple[int, int]]:
    """(incarnation, sequence) of the records that a replay reads."""
    if best is None:
        return set()
    whole = {f.record.sequence for f in records if f.record.incarnation == best.incarnation}
    sequence = best.tail_sequence
    while sequence in whole:
        sequence += 1
    return {(best.incarnation, s) for s in range(best.tail_sequence, sequence)}


def _gap(best: JournalHeader, records: list[_Found], needed: set[tuple[int, int]]) -> int | None:
    """The sequence at which a replay stops although later records are there."""
    end = best.tail_sequence + len(needed)
    later = any(f.record.incarnation == best.incarnation and f.record.sequence > end for f in records)
    return end if later else None


def _record(dumper: Dumper, start: int, data: bytes, found: _Found, counts: bool) -> Structure:
    record, size = found.record, METADATA_BLOCK_BYTES
    address = start + found.position * size
    images: list[Fields] = [
        {
            "address": i.address, "where": _where(dumper, i.address), "type": _type(i.data),
            "lock_address": i.lock_address, "lock_version": i.lock_version,
        }
        for i in record.images
    ]  # fmt: skip
    revokes: list[Fields] = [
        {"address": r.address, "lock_address": r.lock_address, "lock_version": r.lock_version} for r in record.revokes
    ]
    fields: dict[str, Value] = {
        "slot": record.slot, "incarnation": record.incarnation, "sequence": record.sequence,
        "position": found.position, "blocks": found.blocks, "needed": counts, "images": images, "revokes": revokes,
    }  # fmt: skip
    raw = data[found.position * size : (found.position + found.blocks) * size]
    return Structure("journal-record", address, place_of(dumper.volume, address), fields, (), raw)


def _type(image: bytes) -> str:
    try:
        return BlockType(peek(image).type).name.lower()
    except ValueError:
        return f"type {peek(image).type}"


def _where(dumper: Dumper, address: int) -> str:
    if address >> 56 >= len(dumper.volume.superblock.extents):
        return "nothing"
    return place_of(dumper.volume, address)
