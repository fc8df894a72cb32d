"""Bugs to plant: each breaks a rule of docs/locking.md or of the journal, and power cuts must make it show."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from vmfs.core.groups import Groups
from vmfs.core.journal import Journal
from vmfs.core.transactions import Operation, Transactions, _Batch
from vmfs.ondisk.header import METADATA_BLOCK_BYTES

Plant = Callable[[pytest.MonkeyPatch], None]
_COUNT = slice(66, 68)  # of a journal descriptor: how many descriptor blocks the record has


def commit_before_its_blocks(patch: pytest.MonkeyPatch) -> None:
    """A record's descriptor is written and flushed, and the commit acknowledged, before its block images are there."""

    def write_record(self: Journal, position: int, data: bytes) -> None:
        at = self._address + position * METADATA_BLOCK_BYTES
        descriptors = int.from_bytes(data[_COUNT], "little") * METADATA_BLOCK_BYTES
        self._io.write(at, data[:descriptors])
        self._io.flush()
        if len(data) > descriptors:
            self._io.write(at + descriptors, data[descriptors:])

    patch.setattr(Journal, "write_record", write_record)


def commit_not_flushed(patch: pytest.MonkeyPatch) -> None:
    """The whole record is written, and acknowledged without a flush."""

    def write_record(self: Journal, position: int, data: bytes) -> None:
        self._io.write(self._address + position * METADATA_BLOCK_BYTES, data)

    patch.setattr(Journal, "write_record", write_record)


def map_before_data(patch: pytest.MonkeyPatch) -> None:
    """File data is not flushed before the record of the map that points at it."""
    whole = Transactions._write

    def write(self: Transactions, batch: _Batch) -> None:
        batch.data_ordered = False
        self._durable_locks.update(batch.locks)
        whole(self, batch)

    patch.setattr(Transactions, "_write", write)


def lock_before_flush(patch: pytest.MonkeyPatch) -> None:
    """Locks are given up when what they cover is written in place, and not flushed (R5)."""

    def settle(self: Transactions) -> None:
        self.commit()

    patch.setattr(Transactions, "settle", settle)
    patch.setattr(Transactions, "unsettled", Transactions.covers)


def freed_blocks_at_once(patch: pytest.MonkeyPatch) -> None:
    """A freed block may be used again at once, before its free is committed (R8)."""
    free = Groups.free

    def free_at_once(self: Groups, op: Operation, blocks: Iterable[int]) -> None:
        addresses = list(blocks)
        free(self, op, addresses)
        for address in addresses:
            index, bit = self._geometry.group_of(address)
            self.held[index].obj.group.quarantine &= ~(1 << bit)

    patch.setattr(Groups, "free", free_at_once)


