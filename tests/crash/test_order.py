"""The order in which things become durable, looked at write by write rather than left to a lucky cut."""

from __future__ import annotations

import random

import pytest

from tests.crash.load import Load
from tests.crash.ports import DirectPort
from tests.crash.power import CutDevice, mount, new_volume
from vmfs.core.journal import Journal
from vmfs.core.replay import JournalPlace, read_records
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import parse_lock

FSYNCS = 60


def test_the_locks_of_a_record_are_durable_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay drops blocks whose lock is not held: a record that outlives one of its locks would be replayed in part."""
    rng = random.Random(5)
    ram = new_volume(rng)
    device = CutDevice(ram.again(), 5)  # what was not flushed is not in `ram`
    mounted = mount(device, rng)
    sb, holder = mounted.volume.superblock, mounted.membership.holder
    slot = mounted.volume.geometry.slot_address(holder.slot)
    journal = mounted.volume.geometry.journal_address(holder.slot)
    place = JournalPlace(journal, sb.journal_bytes, mounted.volume.uuid, holder.slot, holder.incarnation)
    missing: list[str] = []
    seen = 0
    write_record = Journal.write_record

    def looked_at(self: Journal, position: int, data: bytes) -> None:
        nonlocal seen
        now = bytearray(device.read(journal, sb.journal_bytes))
        at = position * METADATA_BLOCK_BYTES
        now[at : at + len(data)] = data
        record = read_records(bytes(now), place)[-1]
        for image in record.images:
            if image.lock_address != slot:
                seen += 1
                try:
                    sector = ram.read(image.lock_address, sb.sector_bytes)
                    lock = parse_lock(sector, image.lock_address, mounted.volume.prefix)
                    durable = lock.owner == holder and lock.version == image.lock_version
                except DamagedBlock:
                    durable = False
                if not durable:
                    missing.append(f"record {record.sequence}: lock {image.lock_address:#x} is not durable")
        write_record(self, position, data)

    monkeypatch.setattr(Journal, "write_record", looked_at)
    load = Load(DirectPort(mounted), 5, lambda count: load.stopped.set() if count == FSYNCS else None)
    try:
        load.start()
        load.wait()
    finally:
        load.close()
        mounted.leave()
        device.close()
    assert seen > FSYNCS
    assert not missing, missing[:5]
