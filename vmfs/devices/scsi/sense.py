"""Sense data: why a target ended a command with CHECK CONDITION (SPC-4, 4.5), in both formats that it may come in.

Fixed format (response codes 70h, 71h): byte 2 bits 0-3 sense key, byte 7 additional length, bytes 12 and 13 additional
sense code and qualifier. Descriptor format (72h, 73h): byte 1 bits 0-3 key, bytes 2 and 3 code and qualifier. The odd
codes report an earlier command's error. What is cut short counts as zeros.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Key(enum.IntEnum):
    """Sense keys (SPC-4, table 48)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


# Additional sense code and qualifier in one number (SPC-4, annex F): the ones that storage hosts meet.
BECOMING_READY: Final = 0x0401
INVALID_OPCODE: Final = 0x2000
INVALID_FIELD_IN_CDB: Final = 0x2400
SPACE_ALLOCATION_FAILED: Final = 0x2707
CAPACITY_CHANGED: Final = 0x2A09
_MEANINGS: Final = {
    BECOMING_READY: "the logical unit is becoming ready",
    0x0404: "format in progress",
    0x0C02: "write error, reallocation failed",
    0x1100: "unrecovered read error",
    0x1D00: "miscompare during verify operation",
    INVALID_OPCODE: "the target does not know this command",
    0x2100: "logical block address out of range",
    INVALID_FIELD_IN_CDB: "the target does not take this form of the command",
    0x2500: "there is no such logical unit",
    0x2600: "the target does not take this parameter",
    0x2700: "write protected",
    SPACE_ALLOCATION_FAILED: "the thin LUN's storage is full",
    0x2900: "power on, reset, or bus device reset occurred",
    0x2A03: "reservations preempted",
    0x2A04: "reservations released",
    0x2A05: "registrations preempted",
    CAPACITY_CHANGED: "its capacity has changed",
    0x3F0E: "the target's list of logical units has changed",
    0x4400: "internal target failure",
    0x5504: "the target has no room for another registration",
}


@dataclass(frozen=True, slots=True)
class Sense:
    """A sense key, and additional code and qualifier as one number (0x2000: invalid opcode)."""

    key: Key
    code: int

    def __str__(self) -> str:
        meaning = _MEANINGS.get(self.code)
        text = f"{self.key.name.replace('_', ' ').lower()}, code {self.code >> 8:02x}/{self.code & 0xFF:02x}"
        return f"{meaning} ({text})" if meaning else text


def parse_sense(raw: bytes) -> Sense:
    """What the sense data say; no sense at all when there are none, or when they are of an unknown format."""
    padded = raw[:18].ljust(18, b"\0")
    response = padded[0] & 0x7F
    if response in (0x70, 0x71):
        length = 8 + padded[7]
        code = int.from_bytes(padded[12:14], "big") if length >= 14 else 0
        return Sense(Key(padded[2] & 0xF), code)
    if response in (0x72, 0x73):
        return Sense(Key(padded[1] & 0xF), int.from_bytes(padded[2:4], "big"))
    return Sense(Key.NO_SENSE, 0)
