"""What targets say about themselves: parsers that believe no length that a target sends.

Sources: SPC-4 6.6.2 (inquiry data), 7.8 (vital product data), 6.15 (PERSISTENT RESERVE IN); SBC-3 5.16 (READ CAPACITY
(16)), 6.6.4 (block limits), 6.6.2 (logical block provisioning). All numbers are big-endian. Each raises ValueError for
data that cannot be what was asked for; its message says what is wrong, and the caller adds the device's name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmfs.devices.reservations import Reservation

INQUIRY_BYTES: Final = 96
CAPACITY_BYTES: Final = 32
PAGE_BYTES: Final = 1024  # more than any of the pages below has in practice; what is cut off is not looked at
KEYS_BYTES: Final = 16 << 10  # some two thousand registrations; targets keep a few hundred at most
RESERVATION_BYTES: Final = 24
CAPABILITIES_BYTES: Final = 8

PAGE_SUPPORTED: Final = 0x00
PAGE_IDENTIFICATION: Final = 0x83
PAGE_BLOCK_LIMITS: Final = 0xB0
PAGE_PROVISIONING: Final = 0xB2

_PAGE_HEAD_BYTES: Final = 4
_TYPE_DISK: Final = 0
_CAPACITY = struct.Struct(">QI")
_KEYS_HEAD = struct.Struct(">II")  # generation, bytes that follow
_KEY_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """Standard inquiry data."""

    is_disk: bool
    vendor: str
    product: str
    revision: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """READ CAPACITY (16)."""

    blocks: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Page B0, in blocks of the logical unit. 0: the target sets (or states) no limit."""

    compare_and_write_blocks: int = 0
    """0: the page says that there is no COMPARE AND WRITE. Some targets say otherwise and refuse it all the same."""
    transfer_blocks: int = 0
    unmap_blocks: int = 0
    unmap_descriptors: int = 0
    write_same_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Provisioning:
    """Page B2: whether the target takes UNMAP."""

    unmap: bool = False


def parse_inquiry(data: bytes) -> Identity:
    """Standard inquiry data."""
    if len(data) < 36:
        raise ValueError(f"its inquiry data has {len(data)} of 36 bytes")
    vendor, product, revision = (_text(data[a:b]) for a, b in ((8, 16), (16, 32), (32, 36)))
    # The peripheral's qualifier in the upper three bits: 0 means that a device is there.
    return Identity(data[0] == _TYPE_DISK, vendor, product, revision)


def parse_capacity(data: bytes) -> Capacity:
    """READ CAPACITY (16)."""
    if len(data) < _CAPACITY.size:
        raise ValueError(f"its capacity data has {len(data)} of {_CAPACITY.size} bytes")
    last, block_bytes = _CAPACITY.unpack_from(data)
    if not 0 < block_bytes <= 1 << 20 or (last + 1) * block_bytes >= 1 << 64:
        raise ValueError(f"it claims {last + 1} blocks of {block_bytes} bytes")
    return Capacity(last + 1, block_bytes)


def parse_supported_pages(data: bytes) -> frozenset[int]:
    """Which pages of vital product data there are."""
    return frozenset(_page(data, PAGE_SUPPORTED))


def parse_block_limits(data: bytes) -> BlockLimits:
    """Page B0. Short pages are those of older targets, which know fewer limits."""
    body = _page(data, PAGE_BLOCK_LIMITS).ljust(60, b"\0")

    def u32(at: int) -> int:
        return int.from_bytes(body[at - 4 : at], "big")

    # Offsets are the standard's, which count the page's head.
    return BlockLimits(
        compare_and_write_blocks=body[1],
        transfer_blocks=u32(8),
        unmap_blocks=u32(20),
        unmap_descriptors=u32(24),
        write_same_blocks=int.from_bytes(body[32:40], "big"),
    )


def parse_provisioning(data: bytes) -> Provisioning:
    """Page B2."""
    body = _page(data, PAGE_PROVISIONING).ljust(4, b"\0")
    return Provisioning(unmap=bool(body[1] & 0x80))


def parse_identification(data: bytes) -> str | None:
    """Page 83: the logical unit's name: "naa.HEX", "eui.HEX" or "t10.TEXT", the surest there is; None: it has none."""
    names: dict[int, str] = {}
    body = _page(data, PAGE_IDENTIFICATION)
    at = 0
    while at + 4 <= len(body):
        code_set, association, kind, length = body[at] & 0xF, body[at + 1] >> 4 & 3, body[at + 1] & 0xF, body[at + 3]
        value = body[at + 4 : at + 4 + length]
        at += 4 + length
        if association != 0 or len(value) < length or not value:
            continue  # of the port or the target, or cut off
        if kind in (2, 3) and code_set == 1:
            names.setdefault(kind, f"{'naa' if kind == 3 else 'eui'}.{value.hex()}")
        elif kind == 1:
            names.setdefault(kind, f"t10.{_text(value)}")
    return next((names[kind] for kind in (3, 2, 1) if kind in names), None)


def parse_keys(data: bytes) -> tuple[int, ...]:
    """READ KEYS. ValueError when there are more than were received: a list that is cut off proves nothing absent."""
    body = _reserve_body(data, "keys")
    if len(body) % _KEY_BYTES:
        raise ValueError(f"its list of keys has {len(body)} bytes")
    return tuple(int.from_bytes(body[at : at + _KEY_BYTES], "big") for at in range(0, len(body), _KEY_BYTES))


def parse_reservation(data: bytes) -> Reservation | None:
    """READ RESERVATION. The holder's key in it says nothing where all registrants hold it."""
    body = _reserve_body(data, "reservation")
    if not body:
        return None
    if len(body) < 16:
        raise ValueError(f"its reservation has {len(body)} of 16 bytes")
    return Reservation(type=body[13] & 0xF, scope=body[13] >> 4)


def parse_capabilities(data: bytes) -> bool:
    """REPORT CAPABILITIES: whether reservations can be what volumes want of them.

    That is: registrations that outlive a power cut of the logical unit (PTPL_C), and, where the target lists the types
    that it has, type 7h among them.
    """
    if len(data) < CAPABILITIES_BYTES:
        raise ValueError(f"its reservation capabilities have {len(data)} of {CAPABILITIES_BYTES} bytes")
    lists_types, has_type = bool(data[3] & 0x80), bool(data[4] & 0x80)
    return bool(data[2] & 0x01) and (has_type or not lists_types)


def _page(data: bytes, page: int) -> bytes:
    """What follows the head of a page."""
    if len(data) < _PAGE_HEAD_BYTES or data[1] != page:
        raise ValueError(f"it answers {data[:_PAGE_HEAD_BYTES].hex() or 'nothing'} when asked for page {page:02x}")
    length = int.from_bytes(data[2:4], "big")
    return data[_PAGE_HEAD_BYTES : _PAGE_HEAD_BYTES + length]


def _reserve_body(data: bytes, what: str) -> bytes:
    if len(data) < _KEYS_HEAD.size:
        raise ValueError(f"its {what} come in {len(data)} of {_KEYS_HEAD.size} bytes at least")
    _, length = _KEYS_HEAD.unpack_from(data)
    body = data[_KEYS_HEAD.size : _KEYS_HEAD.size + length]
    if len(body) < length:
        raise ValueError(f"its {what} take {length} bytes, of which {len(body)} were received")
    return body


def _text(raw: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in raw.rstrip(b"\0").decode("ascii", "replace")).strip()
