"""Blocks in which one bit is wrong: found by trying. The checksum of 64 bits tells the right one from all others.

A block has 32768 bits; that a wrong flip of one of them matches too has a chance of 2^-49.
"""

from __future__ import annotations

from collections.abc import Callable

from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, checksum_matches
from vmfs.ondisk.lockblock import RECORD_BYTES


def corrected_block(block: bytes | bytearray | memoryview) -> bytes | None:
    """A metadata block with the one bit put right that makes its checksum match, or None. Takes some 40 ms.

    Its magic, type and address are for the caller to look at, as with any block.
    """
    return corrected(block, checksum_matches) if len(block) == METADATA_BLOCK_BYTES else None


def corrected(data: bytes | bytearray | memoryview, matches: Callable[[bytearray], bool]) -> bytes | None:
    """The data with the one bit put right that makes it match, or None."""
    trial = bytearray(data)
    for at in range(len(trial)):
        right = trial[at]
        for bit in range(8):
            trial[at] = right ^ 1 << bit
            if matches(trial):
                return bytes(trial)
        trial[at] = right
    return None


def corrected_record(sector: bytes, parse: Callable[[bytes], object]) -> bytes | None:
    """A slot's or a lock's sector with the one bit put right that makes `parse` take it, or None.

    What follows the record is zeros and is set so.
    """
    trial = bytearray(sector[:RECORD_BYTES].ljust(len(sector), b"\0"))
    for at in range(-1, RECORD_BYTES):
        for bit in range(8 if at >= 0 else 1):
            if at >= 0:
                trial[at] ^= 1 << bit
            try:
                parse(bytes(trial))
            except (DamagedBlock, UnsupportedFormat):
                if at >= 0:
                    trial[at] ^= 1 << bit
                continue
            return bytes(trial)
    return None
