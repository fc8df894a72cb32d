"""Sizes as people write them, in binary units: `512`, `20G`, `1.5T`, `64 KiB`, `+10G`.

K, M, G, T, P are powers of 1024, with or without `iB` or `B` behind them and in either case; a plain number
is bytes. (VMware's and QEMU's tools read `20G` in the same way.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from thin.errors import SizeInvalid

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"\s*(\+?)\s*([0-9]{1,20})(?:\.([0-9]{1,12}))?\s*([KMGTP]?)(?:I?B)?\s*", re.ASCII)

MAX_SIZE_BYTES = (1 << 63) - 1
"""The largest file offset that Linux has (loff_t)."""


@dataclass(frozen=True, slots=True)
class SizeChange:
    """A size as asked for: absolute, or relative to what a disk has now."""

    size_bytes: int
    relative: bool

    def apply(self, current_bytes: int) -> int:
        """The size in bytes that a disk of `current_bytes` shall have."""
        return current_bytes + self.size_bytes if self.relative else self.size_bytes


def parse_change(text: str) -> SizeChange:
    """Read `20G` (absolute) or `+10G` (relative). Raises SizeInvalid."""
    match = _SIZE.fullmatch(text.upper())
    # upper() maps some non-ASCII letters onto ASCII ones (the dotless i, the long s): not a size.
    if match is None or not text.isascii():
        raise SizeInvalid(f"{text[:40]!a} is not a size; write a number with an optional unit, such as 20G or 512M")
    sign, whole, fraction, unit = match.groups()
    number = Fraction(f"{whole}.{fraction}") if fraction else Fraction(whole)
    size = number * _UNITS[unit]
    if size.denominator != 1:
        raise SizeInvalid(f"{text!a} is not a whole number of bytes; choose a size without so many decimals")
    if size > MAX_SIZE_BYTES:
        raise SizeInvalid(f"{text!a} is more than a file can hold ({MAX_SIZE_BYTES} bytes)")
    return SizeChange(int(size), relative=bool(sign))


def parse_size(text: str) -> int:
    """Read an absolute size such as `20G`; returns bytes. Raises SizeInvalid, also for a relative one."""
    change = parse_change(text)
    if change.relative:
        raise SizeInvalid(f"{text!a} is relative; an absolute size is needed here, such as 20G")
    return change.size_bytes


def format_size(size_bytes: int) -> str:
    """The size for people: `20 GiB`, `1.5 TiB`, `512 B`; rounded ones keep two decimals: `2.00 KiB`."""
    for unit in "PTGMK":
        factor = _UNITS[unit]
        if size_bytes >= factor:
            if size_bytes % factor == 0:
                return f"{size_bytes // factor} {unit}iB"
            exact = size_bytes * 100 % factor == 0
            number = f"{size_bytes / factor:.2f}"
            return f"{number.rstrip('0') if exact else number} {unit}iB"
    return f"{size_bytes} B"
