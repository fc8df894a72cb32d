"""The journal's ring: what replay finds in it, lap after lap, torn anywhere. And what replay makes of what it finds."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from vmfs.core.journal import Journal
from vmfs.core.leased import LeasedIO
from vmfs.core.replay import JournalPlace, images_to_write, read_records, replay
from vmfs.devices.extents import ExtentSet
from vmfs.devices.ram import RamDevice
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, seal
from vmfs.ondisk.journal import HEADER_BLOCKS, Image, Record, Revoke

VOLUME = bytes(range(16))
ADDRESS = 1 << 20
BLOCKS = 24
SLOT, INCARNATION = 3, 7
SECTOR = 512
LOCK = 0x500000
TARGETS = 2 << 20


class _Always:
    def check(self) -> None:
        """The lease holds."""


class Ring:
    """A journal on a device in memory."""

    def __init__(self, incarnation: int = INCARNATION, device: RamDevice | None = None) -> None:
        self.device = device or RamDevice(4 << 20)
        self.io = LeasedIO(ExtentSet([self.device]), _Always())
        self.size = BLOCKS * METADATA_BLOCK_BYTES
        self.place = JournalPlace(ADDRESS, self.size, VOLUME, SLOT, incarnation)
        self.journal = Journal(
            self.io, address=ADDRESS, size_bytes=self.size, volume=VOLUME, slot=SLOT, incarnation=incarnation
        )
        self.journal.start()

    def append(self, images: list[Image], revokes: list[Revoke] | None = None) -> int:
        position = self.journal.place_for(len(images), len(revokes or []))
        assert position is not None
        return self.journal.append(images, revokes or [], position)

    def bytes(self) -> bytes:
        return self.device.read(ADDRESS, self.size)

    def records(self) -> list[Record]:
        return read_records(self.bytes(), self.place)

    def sequences(self) -> list[int]:
        return [r.sequence for r in self.records()]


def image(number: int, fill: int = 1, version: int = 1) -> Image:
    return Image(TARGETS + number * METADATA_BLOCK_BYTES, LOCK, version, bytes([fill]) * METADATA_BLOCK_BYTES)


def holds_all(lock: int, version: int) -> bool:
    return True


# -- the ring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_replay_finds_whatever_was_not_trimmed_lap_after_lap(seed: int) -> None:
    rng = random.Random(seed)
    ring = Ring()
    live: deque[tuple[int, int]] = deque()
    laps = 0
    for number in range(400):
        images = [image(i, number % 251) for i in range(rng.randint(1, 9))]
        revokes = [Revoke(TARGETS, LOCK, 1)] * rng.choice((0, 0, 1, 130))
        position = ring.journal.place_for(len(images), len(revokes))
        if position is None or (live and rng.random() < 0.2):
            settled = live[rng.randrange(len(live))][0] if position is not None else live[-1][0]
            ring.journal.trim(settled)
            while live and live[0][0] <= settled:
                live.popleft()
            position = ring.journal.place_for(len(images), len(revokes))
            if position is None:
                continue
        laps += position == HEADER_BLOCKS
        live.append((ring.journal.append(images, revokes, position), len(images)))
        found = ring.records()
        assert [(r.sequence, len(r.images)) for r in found] == list(live)
        assert all(set(i.data) == {number % 251} for i in found[-1].images)
    assert laps > 20


def test_a_full_ring_has_no_place_until_it_is_trimmed() -> None:
    ring = Ring()
    while ring.journal.place_for(4, 0) is not None:
        last = ring.append([image(i) for i in range(4)])
    before = ring.sequences()
    assert len(before) > 2
    ring.journal.trim(before[0])
    assert ring.journal.place_for(4, 0) is not None
    ring.journal.trim(last)
    assert ring.sequences() == []


def test_a_record_larger_than_the_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Ring().journal.place_for(BLOCKS, 0)


def test_trimming_what_is_trimmed_writes_nothing() -> None:
    ring = Ring()
    ring.journal.trim(ring.append([image(1)]))
    before = ring.bytes()
    ring.journal.trim(1)
    assert ring.bytes() == before


# -- torn, stale, foreign ----------------------------------------------------------------------------------------------


def test_a_record_of_which_any_sector_is_missing_ends_the_journal() -> None:
    ring = Ring()
    ring.append([image(1)])
    before = ring.bytes()
    ring.append([image(2), image(3)])
    after = ring.bytes()
    changed = [at for at in range(0, ring.size, SECTOR) if before[at : at + SECTOR] != after[at : at + SECTOR]]
    # All sectors of both images, and the one of the descriptor that is not zero.
    assert len(changed) == 2 * METADATA_BLOCK_BYTES // SECTOR + 1
    for missing in changed:
        torn = after[:missing] + before[missing : missing + SECTOR] + after[missing + SECTOR :]
        assert [r.sequence for r in read_records(torn, ring.place)] == [1]


@pytest.mark.parametrize("landed", range(9))
def test_a_torn_header_leaves_the_other_one(landed: int) -> None:
    """Trimming was cut off: whatever was not trimmed before it is found, and more may be."""
    ring = Ring()
    for number in range(3):
        ring.append([image(number)])
    before = ring.bytes()
    ring.journal.trim(2)
    after = ring.bytes()
    start = next(at for at in range(0, ring.size, METADATA_BLOCK_BYTES) if before[at:][:4096] != after[at:][:4096])
    assert start < HEADER_BLOCKS * METADATA_BLOCK_BYTES
    cut = start + landed * SECTOR
    torn = after[:cut] + bytes(SECTOR) + after[cut + SECTOR :] if landed < 8 else after
    found = [r.sequence for r in read_records(torn, ring.place)]
    assert found in ([3], [1, 2, 3])
    assert landed == 0 or found == [3] or torn != after


def test_without_any_header_the_journal_is_damaged() -> None:
    ring = Ring()
    with pytest.raises(DamagedBlock):
        read_records(bytes(2 * METADATA_BLOCK_BYTES) + ring.bytes()[2 * METADATA_BLOCK_BYTES :], ring.place)


def test_records_of_an_earlier_incarnation_do_not_count() -> None:
    old = Ring()
    old.append([image(1)])
    new = Ring(INCARNATION + 2, old.device)
    assert new.records() == []
    new.append([image(2, 9)])
    (record,) = new.records()
    assert record.images == (image(2, 9),)


def test_an_incarnation_that_never_began_its_journal_has_nothing_to_replay() -> None:
    ring = Ring()
    ring.append([image(1)])
    place = JournalPlace(ADDRESS, ring.size, VOLUME, SLOT, INCARNATION + 2)
    assert read_records(ring.bytes(), place) == []


def test_a_damaged_record_with_whole_ones_behind_it_is_told_from_the_end_of_the_journal() -> None:
    """Each record is flushed before the next one is written: only damage makes a gap, and what follows was promised."""
    ring = Ring()
    first = ring.journal.place_for(1, 0)
    assert first is not None
    for number in range(3):
        ring.append([image(number)])
    second = ADDRESS + (first + 2) * METADATA_BLOCK_BYTES
    ring.device.write(second, bytes(SECTOR))
    with pytest.raises(DamagedBlock, match="record 2"):
        ring.records()


# -- what is written ---------------------------------------------------------------------------------------------------


def _record(sequence: int, images: list[Image], revokes: list[Revoke] | None = None) -> Record:
    return Record(SLOT, INCARNATION, sequence, tuple(images), tuple(revokes or []))


def _written(records: list[Record], holds: Callable[[int, int], bool] = holds_all) -> list[Image]:
    return images_to_write(records, holds)


def test_the_newest_image_of_a_block_is_written() -> None:
    assert _written([_record(1, [image(1, 1), image(2, 1)]), _record(2, [image(1, 2)])]) == [image(1, 2), image(2, 1)]


def test_an_image_older_than_a_revoke_is_not_written_whatever_the_lock_of_the_revoke() -> None:
    revoke = Revoke(image(1).address, LOCK + 4096, 99)
    assert _written([_record(1, [image(1)]), _record(2, [image(2)], [revoke])]) == [image(2)]


@pytest.mark.parametrize("later", [2, 3])
def test_a_block_that_was_freed_and_used_again_is_written(later: int) -> None:
    """In the very record of the revoke, or in a later one."""
    revoke = Revoke(image(1).address, LOCK, 1)
    again = [_record(2, [image(1, 5)] if later == 2 else [], [revoke])]
    again += [_record(3, [image(1, 5)])] if later == 3 else []
    assert _written([_record(1, [image(1, 1)]), *again]) == [image(1, 5)]


def test_images_of_locks_that_were_given_up_are_not_written() -> None:
    records = [_record(1, [image(1, 1, version=4), image(2, 1, version=5)])]
    assert _written(records, lambda lock, version: version == 5) == [image(2, 1, version=5)]


def test_an_older_image_does_not_come_back_for_a_newer_one_whose_lock_is_lost() -> None:
    """The lock was given up after the newer image was settled: the block in place is newer than both."""
    records = [_record(1, [image(1, 1, version=4)]), _record(2, [image(1, 2, version=6)])]
    assert _written(records, lambda lock, version: version == 4) == []


def test_replay_writes_inodes_last_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()
    block = bytearray(METADATA_BLOCK_BYTES)
    address = TARGETS
    seal(block, BlockType.INODE, address=address, generation=1, volume=VOLUME, owner=address >> 12)
    ring.append([Image(address, LOCK, 1, bytes(block)), image(5, 5)])
    written: list[int] = []
    write = RamDevice.write

    def noted(self: RamDevice, offset: int, data: bytes) -> None:
        written.append(offset)
        write(self, offset, data)

    monkeypatch.setattr(RamDevice, "write", noted)
    assert replay(ring.io, ring.place, holds_all).blocks == 2
    assert written == [image(5).address, address]
    assert replay(ring.io, ring.place, holds_all).blocks == 2
    assert ring.device.read(address, METADATA_BLOCK_BYTES) == block
    assert ring.device.read(image(5).address, METADATA_BLOCK_BYTES) == image(5, 5).data
