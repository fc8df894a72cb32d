"""Every flipped bit of every kind of block is detected; no bytes make a parser raise anything unforeseen."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ondisk.blocks import AT, JOURNAL_BLOCKS, RECORD, SIZE, VOLUME, packed, read_record
from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk import journal
from vmfs.ondisk.header import HEADER_BYTES, seal_checksum
from vmfs.ondisk.journal import HEADER_BLOCKS

KINDS = sorted(packed())


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_detected(kind: str) -> None:
    image, parse = packed()[kind]
    parse(image)
    block = bytearray(image)
    for bit in range(SIZE * 8):
        block[bit // 8] ^= 1 << bit % 8
        try:
            parse(bytes(block))
        except DamagedBlock:
            pass
        else:
            pytest.fail(f"bit {bit} may be flipped unnoticed")
        block[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_another_place_volume_or_length_is_refused(kind: str) -> None:
    image, parse = packed()[kind]
    for at, length in ((16, 8), (32, 16)):  # own address, volume
        moved = bytearray(image)
        moved[at : at + length] = bytes(b ^ 0xFF for b in moved[at : at + length])
        if kind == "superblock" and at == 32:
            continue  # a superblock says which volume it is of
        with pytest.raises(DamagedBlock):
            parse(bytes(seal_checksum(moved)))
    for wrong in (b"", image[:-1], bytes(SIZE)):
        with pytest.raises(DamagedBlock):
            parse(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_forged_contents_raise_nothing_unforeseen(kind: str) -> None:
    """With a checksum that is right: parsers check bounds, they do not trust."""
    image, parse = packed()[kind]
    rng = random.Random(kind)
    for _ in range(2000):
        block = bytearray(image)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(HEADER_BYTES, rng.choice((100, 400, SIZE)))
            block[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        try:
            parse(bytes(seal_checksum(block)))
        except (DamagedBlock, UnsupportedFormat):
            pass


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=SIZE))
def test_any_bytes_raise_nothing_unforeseen(kind: str, data: bytes) -> None:
    _, parse = packed()[kind]
    with pytest.raises(DamagedBlock):
        parse(data.ljust(SIZE, b"\0"))


def test_every_flipped_bit_of_a_journal_record_ends_the_journal() -> None:
    data = journal.pack_record(RECORD, journal_address=AT, position=HEADER_BLOCKS, volume=VOLUME)
    assert read_record(data) == (RECORD, 3)
    rng = random.Random(3)
    for bit in {*range(SIZE, SIZE + 800), *(rng.randrange(len(data) * 8) for _ in range(3000))}:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        assert read_record(bytes(broken)) is None, bit


def test_forged_journal_descriptors_raise_nothing() -> None:
    data = journal.pack_record(RECORD, journal_address=AT, position=HEADER_BLOCKS, volume=VOLUME)
    rng = random.Random(4)
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(HEADER_BYTES, 200)] = rng.randrange(256)
        broken[:SIZE] = seal_checksum(broken[:SIZE])
        read_record(bytes(broken))


def test_a_record_that_would_leave_the_ring_is_none() -> None:
    last = JOURNAL_BLOCKS - 2
    data = journal.pack_record(RECORD, journal_address=AT, position=last, volume=VOLUME)
    ring = bytearray(JOURNAL_BLOCKS * SIZE)
    ring[last * SIZE :] = data[: 2 * SIZE]
    found = journal.parse_record(
        memoryview(ring), last, journal_address=AT, volume=VOLUME, slot=2, incarnation=9, sequence=4
    )
    assert found is None
