"""Checks one pack: what of it cannot be relied on. Part of `verify`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datarecovery.errors import DamagedPackError
from datarecovery.store import pack, record
from datarecovery.store.pack import Entry, Location
from datarecovery.store.store import Store

_BATCH_BYTES = 4 << 20
_WHOLE = (0, 1 << 62)


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a pack, in bytes, and what is wrong with it.

    `harmless`: what lies there can be read all the same. `if_used`: wrong only if something should lie there.
    """

    begin: int
    end: int
    detail: str
    harmless: bool = False
    if_used: bool = False

    def touches(self, place: Location) -> bool:
        """Whether a record lies in the range."""
        return place.offset < self.end and place.offset + place.size > self.begin


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was found in a pack, how many records were read whole, and the file's size in bytes."""

    number: int
    damage: tuple[Damage, ...]
    records: int
    size: int


def check_pack(store: Store, number: int, unsealed_allowed: bool, quick: bool) -> PackReport:
    """Check a pack's header and footer and, unless `quick`, read and prove every record."""
    try:
        reader = pack.PackReader(store.root / "packs", store.config.store, number)
    except DamagedPackError as error:
        path = pack.path_of(store.root / "packs", number)
        if unsealed_allowed and not (path.exists() and path.stat().st_size > pack.HEADER_BYTES):
            return PackReport(number, (), 0, 0)  # just being created, or left so by a crash: nothing is in it
        return PackReport(number, (Damage(*_WHOLE, str(error)),), 0, 0)
    try:
        damage: list[Damage] = []
        entries: Iterable[Entry]
        unchecked_from = None
        if reader.is_sealed() or not unsealed_allowed:
            try:
                entries = reader.footer()
            except DamagedPackError as error:
                damage.append(Damage(*_WHOLE, str(error), harmless=True))
                entries = list(reader.scan())
                unchecked_from = entries[-1].location.offset + entries[-1].location.size if entries else 0
        else:
            entries = reader.scan()
        if unchecked_from is not None:
            detail = f"pack {reader.path}: what lies from byte {unchecked_from} on cannot be read"
            damage.append(Damage(unchecked_from, _WHOLE[1], detail, if_used=True))
        count = 0
        if not quick:
            count = _check_records(reader, entries, damage)
        return PackReport(number, tuple(damage), count, reader.size)
    except DamagedPackError as error:
        return PackReport(number, (*damage, Damage(*_WHOLE, str(error))), 0, reader.size)
    finally:
        reader.close()


def _check_records(reader: pack.PackReader, entries: Iterable[Entry], damage: list[Damage]) -> int:
    decoder = record.Decoder()
    batch: list[Entry] = []
    size = count = 0
    for entry in entries:
        batch.append(entry)
        size += entry.location.size
        if size >= _BATCH_BYTES:
            count += _check_batch(reader, decoder, batch, damage)
            batch, size = [], 0
    return count + (_check_batch(reader, decoder, batch, damage) if batch else 0)


def _check_batch(
    reader: pack.PackReader, decoder: record.Decoder, batch: list[Entry], damage: list[Damage]
) -> int:
    begin = batch[0].location.offset
    end = batch[-1].location.offset + batch[-1].location.size
    data = memoryview(reader.read(begin, end - begin))
    for entry in batch:
        place = entry.location
        part = data[place.offset - begin : place.offset - begin + place.size]
        try:
            head = record.parse_header(part)
            if head.id != entry.id or record.HEADER_BYTES + head.stored_bytes != place.size:
                raise ValueError("the footer lists another record there")
            decoder.decode(head, part[record.HEADER_BYTES :])
        except ValueError as error:
            detail = f"pack {reader.path}: record at byte {place.offset}: {error}"
            damage.append(Damage(place.offset, place.offset + place.size, detail))
    return len(batch)
