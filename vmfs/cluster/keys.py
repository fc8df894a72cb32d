"""Reservation keys: which incarnation of which slot a registration belongs to (rule R3).

64 bits, never 0 and never used twice on one volume, because an incarnation is not:

    bits 56..63   0xA2 a mount's key; 0xA3 the throw-away key of a mount's proof that fencing works; 0xA4 a tool's
    bits 48..55   the slot's index (the format has at most 256 slots); of a tool's key random
    bits  0..47   the incarnation (one mount a millisecond would need 8900 years); of a tool's key random

Any other number is somebody else's key and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from vmfs.ondisk.lock import Holder

_KIND_SHIFT: Final = 56
_SLOT_SHIFT: Final = 48
_SLOT_MAX: Final = 0xFF
_INCARNATION_MASK: Final = (1 << _SLOT_SHIFT) - 1
_TOOL_RANDOM_BYTES: Final = 7


class KeyKind(IntEnum):
    """Who registers with a key of ours."""

    MOUNT = 0xA2
    PROOF = 0xA3
    TOOL = 0xA4


def key_of(holder: Holder, kind: KeyKind = KeyKind.MOUNT) -> int:
    """The key of one incarnation. ValueError when it does not fit (no volume gets there)."""
    if not 0 <= holder.slot <= _SLOT_MAX or not 0 <= holder.incarnation <= _INCARNATION_MASK:
        raise ValueError(f"no reservation key for {holder}")
    return kind << _KIND_SHIFT | holder.slot << _SLOT_SHIFT | holder.incarnation


def tool_key(random_bytes: Callable[[int], bytes]) -> int:
    """A key for a tool that has no slot."""
    return KeyKind.TOOL << _KIND_SHIFT | int.from_bytes(random_bytes(_TOOL_RANDOM_BYTES), "big")


def kind_of(key: int) -> KeyKind | None:
    """What kind of key of ours it is; None: somebody else's."""
    kind = key >> _KIND_SHIFT
    return KeyKind(kind) if kind in KeyKind._value2member_map_ else None


def holder_of(key: int) -> Holder:
    """The incarnation of a key of the kinds MOUNT and PROOF."""
    return Holder(key >> _SLOT_SHIFT & _SLOT_MAX, key & _INCARNATION_MASK)
