"""Command descriptor blocks (CDBs) and parameter lists, byte for byte. All numbers are big-endian.

Sources: SPC-4 (INQUIRY, PERSISTENT RESERVE, TEST UNIT READY), SBC-3 (all that names blocks). Lengths and addresses are
in the logical unit's own blocks where a parameter says `blocks` or `lba`, in bytes where it says so.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS

COMPARE_BLOCKS_MAX: Final = 255  # the CDB has one byte for it

TEST_UNIT_READY: Final = 0x00
INQUIRY: Final = 0x12
UNMAP: Final = 0x42
PERSISTENT_RESERVE_IN: Final = 0x5E
PERSISTENT_RESERVE_OUT: Final = 0x5F
READ_16: Final = 0x88
COMPARE_AND_WRITE: Final = 0x89
WRITE_16: Final = 0x8A
SYNCHRONIZE_CACHE_16: Final = 0x91
WRITE_SAME_16: Final = 0x93
SERVICE_ACTION_IN_16: Final = 0x9E
_READ_CAPACITY_16: Final = 0x10

_BLOCKS = struct.Struct(">BBQIBB")  # opcode, flags, LBA, blocks, group number, control
_COMPARE = struct.Struct(">BBQ3xBBB")  # opcode, flags, LBA, reserved, blocks, group number, control
_INQUIRY = struct.Struct(">BBBHB")  # opcode, EVPD, page, allocation bytes, control
_UNMAP = struct.Struct(">BB4xBHB")  # opcode, anchor, reserved, group number, parameter bytes, control
_UNMAP_LIST = struct.Struct(">HH4xQI4x")  # bytes that follow, bytes of descriptors; one descriptor: LBA, blocks
_RESERVE_IN = struct.Struct(">BB5xHB")  # opcode, service action, reserved, allocation bytes, control
_RESERVE_OUT = struct.Struct(">BBB2xIB")  # opcode, service action, scope and type, reserved, parameter bytes, control
_RESERVE_LIST = struct.Struct(">QQ4xB3x")  # key, service action's key, obsolete, flags, obsolete
_CAPACITY = struct.Struct(">BBQIBB")  # opcode, service action, obsolete, allocation bytes, reserved, control

_UNMAP_DESCRIPTOR_BYTES: Final = 16
UNMAP_NOTHING: Final = bytes.fromhex("0006000000000000")
"""A parameter list of UNMAP without a range: it changes nothing, and is refused as a write would be."""
_APTPL: Final = 0x01  # the registration outlives a power cut of the logical unit


class ReserveIn(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE IN (SPC-4, 6.15)."""

    READ_KEYS = 0
    READ_RESERVATION = 1
    REPORT_CAPABILITIES = 2


class ReserveOut(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4, 6.16)."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE_EXISTING_KEY = 6


def test_unit_ready() -> bytes:
    return bytes(6)


def inquiry(allocation_bytes: int, page: int | None = None) -> bytes:
    """Standard inquiry data, or a page of vital product data."""
    return _INQUIRY.pack(INQUIRY, page is not None, page or 0, allocation_bytes, 0)


def read_capacity_16(allocation_bytes: int) -> bytes:
    return _CAPACITY.pack(SERVICE_ACTION_IN_16, _READ_CAPACITY_16, 0, allocation_bytes, 0, 0)


def read_16(lba: int, blocks: int) -> bytes:
    return _BLOCKS.pack(READ_16, 0, lba, blocks, 0, 0)


def write_16(lba: int, blocks: int) -> bytes:
    return _BLOCKS.pack(WRITE_16, 0, lba, blocks, 0, 0)


def synchronize_cache_16() -> bytes:
    """Of the whole logical unit; answered when it is done (IMMED is 0)."""
    return _BLOCKS.pack(SYNCHRONIZE_CACHE_16, 0, 0, 0, 0, 0)


def compare_and_write(lba: int, blocks: int) -> bytes:
    """Its data-out is the old content and then the new, of the same length."""
    if not 0 < blocks <= COMPARE_BLOCKS_MAX:
        raise ValueError(f"COMPARE AND WRITE takes 1 to {COMPARE_BLOCKS_MAX} blocks, not {blocks}")
    return _COMPARE.pack(COMPARE_AND_WRITE, 0, lba, blocks, 0, 0)


def write_same_16(lba: int, blocks: int) -> bytes:
    """Its data-out is one block, which is written to all of them; without the UNMAP bit, so it is surely written."""
    if blocks < 1:
        raise ValueError("WRITE SAME of 0 blocks means all that follow")
    return _BLOCKS.pack(WRITE_SAME_16, 0, lba, blocks, 0, 0)


def unmap(parameters: bytes) -> bytes:
    """Its data-out is `parameters`: `unmap_list`, or UNMAP_NOTHING."""
    return _UNMAP.pack(UNMAP, 0, 0, len(parameters), 0)


def unmap_list(lba: int, blocks: int) -> bytes:
    """The parameter list of UNMAP for one range."""
    return _UNMAP_LIST.pack(_UNMAP_LIST.size - 2, _UNMAP_DESCRIPTOR_BYTES, lba, blocks)


def persistent_reserve_in(action: ReserveIn, allocation_bytes: int) -> bytes:
    return _RESERVE_IN.pack(PERSISTENT_RESERVE_IN, action, allocation_bytes, 0)


def persistent_reserve_out(action: ReserveOut) -> bytes:
    """Its data-out is `reserve_list`. Scope and type are those of the one reservation that volumes use."""
    with_type = (ReserveOut.RESERVE, ReserveOut.RELEASE, ReserveOut.PREEMPT, ReserveOut.PREEMPT_AND_ABORT)
    kind = WRITE_EXCLUSIVE_ALL_REGISTRANTS if action in with_type else 0
    return _RESERVE_OUT.pack(PERSISTENT_RESERVE_OUT, action, kind, _RESERVE_LIST.size, 0)


def reserve_list(key: int, action_key: int = 0, *, aptpl: bool = False) -> bytes:
    """The parameter list of PERSISTENT RESERVE OUT. `key`: this nexus's; `action_key`: the new, or the other's, key."""
    return _RESERVE_LIST.pack(key, action_key, _APTPL if aptpl else 0)
