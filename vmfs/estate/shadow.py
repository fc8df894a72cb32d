"""Changes of metadata that programs were told of and that the journal does not have yet.

A mount commits several times a second, and tells programs and guests before that what they did is done. A crash of the
machine may lose it, as long as nobody has synced. A crash of the process alone may not: the guest lives, and a block
that it wrote would turn into a hole under its feet. So each operation's blocks go into the estate as the operation
ends, and whoever takes the mount over commits them in the dead process's stead.

The operations between two commits are a *batch*; batch N lies in area N % 2 (commits come one after the other, so no
more than two batches are alive: one that is being committed, and the running one). An area begins with a header page of
words: batch number, bytes of records, slot and incarnation of its writer. A record of one operation:

    6 words      bytes of the record, images, revokes, 1 when file data must be flushed first, request that it
                 completes (0: none), 0
    4 words each of the images, then of the revokes: address, lock, version of the lock, rank (revoke: 0)
    4,096 bytes  each of the images

The record counts when the header's bytes of records include it. Within a batch a later record's image of a block
replaces an earlier one's, as in a transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vmfs.estate.layout import AREA_HEADER_BYTES, Estate
from vmfs.estate.memory import AREA_BYTES
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.journal import Image, Revoke
from vmfs.ondisk.lock import Holder

_NUMBER, _BYTES, _SLOT, _INCARNATION = 0, 1, 2, 3
_RECORD: Final = struct.Struct("<6Q")
_ENTRY: Final = struct.Struct("<4Q")
_ROOM_BYTES: Final = 1 << 20  # kept for one more operation: it has 40 blocks at most


@dataclass(slots=True)
class Batch:
    """The changes that were not committed, merged as the transaction would have been."""

    number: int
    holder: Holder
    images: dict[int, tuple[int, Image]] = field(default_factory=dict)
    """By address: (rank, image)."""
    revokes: dict[int, Revoke] = field(default_factory=dict)
    data_ordered: bool = False
    uniques: list[int] = field(default_factory=list)


class Shadow:
    """The writer of batches. All calls but `committed` are made under the control mutex."""

    def __init__(self, estate: Estate, holder: Holder) -> None:
        self._estate = estate
        self._holder = holder
        self._number = estate.committed + 1
        self._begin()

    def _begin(self) -> None:
        self._area = self._estate.area(self._number)
        self._words = self._area[:AREA_HEADER_BYTES].cast("Q")
        self._end = 0
        # No bytes first: an old batch's records must not be taken for the new one's.
        self._words[_BYTES] = 0
        self._words[_SLOT], self._words[_INCARNATION] = self._holder.slot, self._holder.incarnation
        self._words[_NUMBER] = self._number

    @property
    def is_full(self) -> bool:
        """Whether the running batch must be committed before another operation."""
        return self._end > AREA_BYTES - AREA_HEADER_BYTES - _ROOM_BYTES

    def add(
        self, images: Sequence[tuple[int, Image]], revokes: Sequence[Revoke], data_ordered: bool, unique: int
    ) -> None:
        """One operation's changes. `images` with their ranks; `unique`: the request that is done with it, or 0."""
        entries = len(images) + len(revokes)
        size = _RECORD.size + entries * _ENTRY.size + len(images) * METADATA_BLOCK_BYTES
        at = AREA_HEADER_BYTES + self._end
        if at + size > AREA_BYTES:
            raise ValueError(f"an operation of {len(images)} blocks does not fit the estate")
        area = self._area
        _RECORD.pack_into(area, at, size, len(images), len(revokes), data_ordered, unique, 0)
        at += _RECORD.size
        for rank, image in images:
            _ENTRY.pack_into(area, at, image.address, image.lock_address, image.lock_version, rank)
            at += _ENTRY.size
        for revoke in revokes:
            _ENTRY.pack_into(area, at, revoke.address, revoke.lock_address, revoke.lock_version, 0)
            at += _ENTRY.size
        for _, image in images:
            area[at : at + METADATA_BLOCK_BYTES] = image.data
            at += METADATA_BLOCK_BYTES
        self._end += size
        self._words[_BYTES] = self._end
        if unique:
            self._estate.note_applied(unique)

    def taken(self) -> int:
        """The running batch is being committed; returns its number. The next operation begins a new one."""
        number = self._number
        self._number += 1
        self._begin()
        return number

    def committed(self, number: int) -> None:
        """The batch is in the journal, flushed."""
        self._estate.committed = number


def pending(estate: Estate) -> list[Batch]:
    """The batches that the journal may not have, oldest first; empty ones are left out."""
    found = []
    for number in (estate.committed + 1, estate.committed + 2):
        area = estate.area(number)
        words = area[:AREA_HEADER_BYTES].cast("Q")
        if words[_NUMBER] == number and words[_BYTES]:
            batch = Batch(number, Holder(words[_SLOT], words[_INCARNATION]))
            _read(area[AREA_HEADER_BYTES : AREA_HEADER_BYTES + words[_BYTES]], batch)
            found.append(batch)
    return found


def _read(records: memoryview, batch: Batch) -> None:
    start = 0
    while start < len(records):
        size, images, revokes, data_ordered, unique, _ = _RECORD.unpack_from(records, start)
        at = start + _RECORD.size
        data = at + (images + revokes) * _ENTRY.size
        entries = [_ENTRY.unpack_from(records, at + i * _ENTRY.size) for i in range(images + revokes)]
        # As a transaction is merged: what is dropped first, then what is changed.
        for address, lock, version, _ in entries[images:]:
            batch.images.pop(address, None)
            batch.revokes[address] = Revoke(address, lock, version)
        for index, (address, lock, version, rank) in enumerate(entries[:images]):
            place = data + index * METADATA_BLOCK_BYTES
            image = Image(address, lock, version, bytes(records[place : place + METADATA_BLOCK_BYTES]))
            batch.images[address] = (rank, image)
        batch.data_ordered |= bool(data_ordered)
        if unique:
            batch.uniques.append(unique)
        start += size
