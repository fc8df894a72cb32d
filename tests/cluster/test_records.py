"""The slot and lock records: they come back as they were written, and no flipped bit goes unseen."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk.lock import MAX_HOLDERS, Guards, HandOver, Holder, LockMode, LockRecord, parse_lock
from vmfs.ondisk.lockblock import NO_SLOT, RECORD_BYTES
from vmfs.ondisk.slot import MAX_REQUESTS, Request, SlotRecord, SlotState, parse_slot

PREFIX = b"\x01\x02\x03\x04\x05\x06\x07\x08"
ADDRESS = 5 << 56 | 0x3000

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
holders = st.builds(Holder, st.integers(0, NO_SLOT - 1), u64)
names = st.text(max_size=63).filter(lambda s: "\0" not in s and len(s.encode("utf-8", "replace")) <= 63).filter(
    lambda s: s.isprintable()
)
sectors = st.sampled_from([512, 4096])


@st.composite
def slot_records(draw: st.DrawFn) -> SlotRecord:
    state = draw(st.sampled_from(SlotState))
    return SlotRecord(
        ADDRESS, PREFIX, draw(st.integers(0, 255)), state, draw(u64), draw(u64), draw(names),
        draw(st.uuids()), draw(st.uuids()), draw(u32), draw(u64), draw(u64), draw(u64), draw(u64), draw(u64), draw(u64),
        draw(holders) if state is SlotState.RECOVERING else None,
        tuple(draw(st.lists(st.builds(Request, u16, u16, u32, u64, u64), max_size=MAX_REQUESTS))),
    )  # fmt: skip


@st.composite
def lock_records(draw: st.DrawFn) -> LockRecord:
    mode = draw(st.sampled_from(LockMode))
    listed = mode in (LockMode.SHARED, LockMode.MULTI_WRITER)
    many = st.lists(holders, min_size=1, max_size=MAX_HOLDERS, unique=True)
    intent = draw(st.sampled_from(LockMode))
    owner = draw(holders) if mode is LockMode.EXCLUSIVE else None
    over = draw(st.sampled_from(HandOver)) if owner is not None else HandOver.NONE
    return LockRecord(
        ADDRESS, PREFIX, draw(st.sampled_from(Guards)), mode, draw(u64), draw(u64),
        owner, tuple(draw(many)) if listed else (),
        None if intent is LockMode.FREE else draw(holders), intent, draw(st.integers(0, 1)),
        draw(st.binary(min_size=32, max_size=32)),
        None if over is HandOver.NONE else draw(holders.filter(lambda h: h != owner)), over,
    )  # fmt: skip


@given(slot_records(), sectors)
def test_slot_comes_back(record: SlotRecord, sector_bytes: int) -> None:
    sector = record.pack(sector_bytes)
    assert len(sector) == sector_bytes
    assert not any(sector[RECORD_BYTES:])
    assert parse_slot(sector, ADDRESS, PREFIX, record.slot) == record


@given(lock_records(), sectors)
def test_lock_comes_back(record: LockRecord, sector_bytes: int) -> None:
    sector = record.pack(sector_bytes)
    assert len(sector) == sector_bytes
    assert not any(sector[RECORD_BYTES:])
    assert parse_lock(sector, ADDRESS, PREFIX) == record


@settings(max_examples=2, deadline=None)
@given(slot_records(), lock_records())
def test_every_flipped_bit_is_seen(slot: SlotRecord, lock: LockRecord) -> None:
    for sector, parse in (
        (slot.pack(512), lambda s: parse_slot(s, ADDRESS, PREFIX, slot.slot)),
        (lock.pack(512), lambda s: parse_lock(s, ADDRESS, PREFIX)),
    ):
        for bit in range(512 * 8):
            flipped = bytearray(sector)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(DamagedBlock):
                parse(bytes(flipped))


@given(st.binary(min_size=512, max_size=512))
def test_garbage_with_a_right_checksum_is_damage_not_a_crash(garbage: bytes) -> None:
    for magic in (b"AZHB", b"AZLK"):
        head = magic + (1).to_bytes(2, "little") + garbage[6:8] + ADDRESS.to_bytes(8, "little") + PREFIX
        body = head + garbage[24:440]
        sector = body + xxh3_64_intdigest(body).to_bytes(8, "little") + bytes(64)
        with pytest.raises(DamagedBlock):
            parse_slot(sector, ADDRESS, PREFIX, 300) if magic == b"AZHB" else parse_lock(sector, ADDRESS, PREFIX)


def test_what_is_not_ours_is_named() -> None:
    slot, lock = SlotRecord(ADDRESS, PREFIX, 3), LockRecord(ADDRESS, PREFIX, Guards.INODE)
    with pytest.raises(DamagedBlock, match="never formatted"):
        parse_lock(bytes(512), ADDRESS, PREFIX)
    with pytest.raises(DamagedBlock, match="its address is"):
        parse_lock(lock.pack(512), ADDRESS + 4096, PREFIX)
    with pytest.raises(DamagedBlock, match="another volume"):
        parse_lock(lock.pack(512), ADDRESS, b"another!")
    with pytest.raises(DamagedBlock, match="magic"):
        parse_lock(slot.pack(512), ADDRESS, PREFIX)
    with pytest.raises(DamagedBlock, match="slot 3"):
        parse_slot(slot.pack(512), ADDRESS, PREFIX, 4)
    with pytest.raises(DamagedBlock, match="no sector"):
        parse_lock(lock.pack(512)[:500], ADDRESS, PREFIX)


def test_an_intact_record_of_a_later_layout_is_refused_not_guessed() -> None:
    sector = bytearray(LockRecord(ADDRESS, PREFIX, Guards.INODE).pack(512))
    sector[4:6] = (2).to_bytes(2, "little")
    sector[440:448] = xxh3_64_intdigest(bytes(sector[:440])).to_bytes(8, "little")
    with pytest.raises(UnsupportedFormat, match="version 2"):
        parse_lock(bytes(sector), ADDRESS, PREFIX)


def test_records_that_contradict_themselves_are_not_made() -> None:
    with pytest.raises(ValueError, match="owner"):
        LockRecord(ADDRESS, PREFIX, Guards.INODE, LockMode.EXCLUSIVE)
    with pytest.raises(ValueError, match="OFFERED to None"):
        LockRecord(ADDRESS, PREFIX, Guards.INODE, hand_over=HandOver.OFFERED)
    with pytest.raises(ValueError, match="is handed over"):
        LockRecord(ADDRESS, PREFIX, Guards.INODE).offered(Holder(1, 1))
    with pytest.raises(ValueError, match="twice"):
        LockRecord(ADDRESS, PREFIX, Guards.INODE, LockMode.SHARED, holders=(Holder(1, 1), Holder(1, 1)))
    sharers = tuple(Holder(i, 1) for i in range(MAX_HOLDERS + 1))
    with pytest.raises(ValueError, match="17 holders"):
        LockRecord(ADDRESS, PREFIX, Guards.INODE, LockMode.SHARED, holders=sharers)
    with pytest.raises(ValueError, match="host name"):
        SlotRecord(ADDRESS, PREFIX, 0, host_name="ü" * 32)
    with pytest.raises(ValueError, match="recoverer"):
        SlotRecord(ADDRESS, PREFIX, 0, SlotState.LIVE, recoverer=Holder(1, 1))


@given(lock_records(), st.lists(st.sampled_from(["take", "leave", "mark", "unmark", "offer", "withdraw"]), max_size=12))
def test_no_lock_image_ever_comes_back(record: LockRecord, steps: list[str]) -> None:
    """R10 and R4 lean on it: a late compare-and-write can match only the image that it was made from."""
    me, images = Holder(7, 9), {record.pack(512)}
    record = LockRecord(ADDRESS, PREFIX, record.guards)
    images = {record.pack(512)}
    for number, step in enumerate(steps, 1):
        if step == "take":
            record = record.taken(me, LockMode.EXCLUSIVE, version=record.version + 1)
        elif step == "leave":
            record = record.without(me, version=record.version)
        elif step in ("offer", "withdraw"):
            record = record.offered(Holder(8, 1) if step == "offer" and record.owner is not None else None)
        else:
            record = record.marked(*((me, LockMode.SHARED) if step == "mark" else (None, LockMode.FREE)))
        images.add(record.pack(512))
        assert len(images) == number + 1


def test_slot_images_count_on_through_claim_recovery_and_release() -> None:
    live = SlotRecord(ADDRESS, PREFIX, 2, SlotState.LIVE, 5, 40, "esx1", uuid.uuid4(), uuid.uuid4(), 12, 13, 14)
    recovering = live.turned(SlotState.RECOVERING, Holder(1, 1))
    assert (recovering.incarnation, recovering.sequence, recovering.host_name) == (5, 41, "esx1")
    freed = recovering.freed(wall_ns=1)
    assert (freed.state, freed.incarnation, freed.sequence, freed.host_name) == (SlotState.FREE, 6, 42, "")
