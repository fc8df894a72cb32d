"""SCSI commands, sense data and pages, byte for byte as the standards have them, and what nonsense is made of."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.devices.reservations import Reservation
from vmfs.devices.scsi import commands, pages
from vmfs.devices.scsi.commands import ReserveIn, ReserveOut
from vmfs.devices.scsi.sense import INVALID_OPCODE, Key, parse_sense


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (commands.test_unit_ready(), "000000000000"),
        (commands.inquiry(96), "120000006000"),
        (commands.inquiry(1024, 0xB0), "1201b0040000"),
        (commands.read_capacity_16(32), "9e100000000000000000000000200000"),
        (commands.read_16(0x123456789A, 8), "8800000000123456789a000000080000"),
        (commands.write_16(1, 0x10000), "8a000000000000000001000100000000"),
        (commands.compare_and_write(0x0102030405060708, 1), "89000102030405060708000000010000"),
        (commands.synchronize_cache_16(), "91000000000000000000000000000000"),
        (commands.write_same_16(7, 9), "93000000000000000007000000090000"),
        (commands.unmap(bytes(24)), "42000000000000001800"),
        (commands.unmap_list(2, 3), "001600100000000000000000000000020000000300000000"),
        (commands.persistent_reserve_in(ReserveIn.READ_RESERVATION, 24), "5e010000000000001800"),
        (commands.persistent_reserve_out(ReserveOut.PREEMPT_AND_ABORT), "5f050700000000001800"),
        (commands.persistent_reserve_out(ReserveOut.REGISTER_AND_IGNORE_EXISTING_KEY), "5f060000000000001800"),
        (commands.reserve_list(0xA, 0xB), "000000000000000a000000000000000b0000000000000000"),
        (commands.reserve_list(0, 0xB, aptpl=True), "0000000000000000000000000000000b0000000001000000"),
    ],
)
def test_bytes_of_commands(made: bytes, wanted: str) -> None:
    assert made.hex() == wanted


def test_commands_that_would_mean_something_else_are_not_made() -> None:
    with pytest.raises(ValueError, match="all that follow"):
        commands.write_same_16(0, 0)
    for blocks in (0, 256):
        with pytest.raises(ValueError, match="1 to 255"):
            commands.compare_and_write(0, blocks)


@pytest.mark.parametrize(
    ("raw", "key", "code"),
    [
        ("70000e00000000 0a 00000000 1d00 00000000", Key.MISCOMPARE, 0x1D00),
        ("f0000500000000 0a 00000000 2000 00000000", Key.ILLEGAL_REQUEST, INVALID_OPCODE),
        ("72 06 29 00 00000000", Key.UNIT_ATTENTION, 0x2900),
        ("70 00 05 00 00 00 00 00", Key.ILLEGAL_REQUEST, 0),  # no additional bytes
        ("70 00 05", Key.ILLEGAL_REQUEST, 0),
        ("", Key.NO_SENSE, 0),
        ("7f 00 05 00", Key.NO_SENSE, 0),
    ],
)
def test_sense(raw: str, key: Key, code: int) -> None:
    sense = parse_sense(bytes.fromhex(raw))
    assert (sense.key, sense.code) == (key, code)


def test_sense_in_words() -> None:
    refused = parse_sense(bytes.fromhex("7205200000000000"))
    assert str(refused) == "the target does not know this command (illegal request, code 20/00)"
    assert str(parse_sense(bytes.fromhex("7205777700000000"))) == "illegal request, code 77/77"


def test_inquiry_and_capacity() -> None:
    data = b"\0" * 8 + b"LIO-ORG " + b"vol1            " + b"4.0 " + bytes(60)
    assert pages.parse_inquiry(data) == pages.Identity(True, "LIO-ORG", "vol1", "4.0")
    assert not pages.parse_inquiry(b"\x7f" + data[1:]).is_disk  # no such LUN
    assert not pages.parse_inquiry(b"\x05" + data[1:]).is_disk  # a CD drive
    capacity = pages.parse_capacity((99).to_bytes(8, "big") + (512).to_bytes(4, "big") + bytes(20))
    assert capacity == pages.Capacity(100, 512)


def test_pages() -> None:
    limits = bytearray(64)
    limits[1], limits[3], limits[5] = 0xB0, 60, 4
    limits[8:12], limits[20:24] = (2048).to_bytes(4, "big"), (1 << 20).to_bytes(4, "big")
    limits[24:28], limits[36:44] = (1).to_bytes(4, "big"), (77).to_bytes(8, "big")
    assert pages.parse_block_limits(bytes(limits)) == pages.BlockLimits(4, 2048, 1 << 20, 1, 77)
    assert pages.parse_block_limits(bytes(limits[:16])).transfer_blocks == 2048
    assert pages.parse_provisioning(bytes.fromhex("00b2000400e00200")).unmap
    assert not pages.parse_provisioning(bytes.fromhex("00b2000400600200")).unmap
    assert pages.parse_supported_pages(bytes.fromhex("000000030083b0")) == {0, 0x83, 0xB0}
    names = bytes.fromhex("02010004") + b"vend" + bytes.fromhex("01030010") + bytes(range(16))
    page = bytes([0, 0x83, 0, len(names)]) + names
    assert pages.parse_identification(page) == "naa.000102030405060708090a0b0c0d0e0f"
    assert pages.parse_identification(page[:-1]) == "t10.vend"


def test_reservations() -> None:
    keys = bytes(4) + (16).to_bytes(4, "big") + (5).to_bytes(8, "big") + (6).to_bytes(8, "big")
    assert pages.parse_keys(keys + b"rubbish") == (5, 6)
    with pytest.raises(ValueError, match="16 bytes, of which 12"):
        pages.parse_keys(keys[:-4])
    held = bytes(4) + (16).to_bytes(4, "big") + bytes(13) + b"\x07" + bytes(2)
    assert pages.parse_reservation(held) == Reservation(type=7)
    assert pages.parse_reservation(bytes(8)) is None
    assert pages.parse_capabilities(bytes.fromhex("00080180ea010000"))
    assert pages.parse_capabilities(bytes.fromhex("0008010000000000"))  # lists no types
    assert not pages.parse_capabilities(bytes.fromhex("000801806a010000"))  # not type 7h
    assert not pages.parse_capabilities(bytes.fromhex("00080080ea010000"))  # lost at a power cut


PARSERS = (
    pages.parse_inquiry,
    pages.parse_capacity,
    pages.parse_supported_pages,
    pages.parse_block_limits,
    pages.parse_provisioning,
    pages.parse_identification,
    pages.parse_keys,
    pages.parse_reservation,
    pages.parse_capabilities,
)


@given(st.binary(max_size=200), st.sampled_from(PARSERS), st.booleans())
def test_nonsense_is_refused_or_read_within_its_bounds(data: bytes, parse: object, plausible: bool) -> None:
    """Whatever a target sends: a result or ValueError, never another exception."""
    assert callable(parse)
    if plausible and len(data) > 2:
        page = {pages.parse_supported_pages: 0, pages.parse_block_limits: 0xB0, pages.parse_provisioning: 0xB2}
        data = data[:1] + bytes([page.get(parse, 0x83)]) + data[2:]
    with suppress(ValueError):
        parse(data)


@given(st.binary(max_size=40))
def test_any_sense_is_readable(raw: bytes) -> None:
    assert str(parse_sense(raw))
