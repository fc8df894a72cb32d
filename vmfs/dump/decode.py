"""Bytes to fields, by the parsers of `vmfs.ondisk`.

What a parser refuses is tried once more with what its checks look at put right in a copy (magic, type, checksum, and
the place and owner that the block itself names): so that the fields of a torn or misplaced block can be seen as they
stand, beside what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from vmfs.dump.fields import header_fields
from vmfs.dump.structure import Fields, Value
from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk import header
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, Header
from vmfs.ondisk.lockblock import peek, resealed

T = TypeVar("T")
TRIES: Final = 3
"""How often a damaged block is read: another host may have been writing it at that moment."""



def problem_of(error: DamagedBlock | UnsupportedFormat) -> str:
    """What is wrong, without the advice that goes with it."""
    return error.what if isinstance(error, DamagedBlock) else str(error)


def read_settled(read: Callable[[], bytes], parse: Callable[[bytes], object]) -> bytes:
    """The bytes, read until `parse` takes them or TRIES times. Raises DeviceError."""
    for _ in range(TRIES):
        data = read()
        try:
            parse(data)
        except (DamagedBlock, UnsupportedFormat):
            continue
        break
    return data


def decode_block(
    block: bytes,
    kind: BlockType,
    strict: Callable[[bytes], T],
    as_stated: Callable[[bytes, Header], T],
    show: Callable[[T], Fields],
) -> tuple[dict[str, Value], list[str]]:
    """(fields, problems) of a metadata block: those of its header, and those of its content where they can be told.

    `strict` parses it as what it must be, `as_stated` a copy as what its own header says.
    """
    fields = header_fields(header.peek(block))
    try:
        return fields | dict(show(strict(block))), []
    except (DamagedBlock, UnsupportedFormat) as error:
        problems = [problem_of(error)]
    copy = bytearray(block)
    copy[:6] = header.MAGIC + int(kind).to_bytes(2, "little")
    try:
        fields |= dict(show(as_stated(bytes(header.seal_checksum(copy)), header.peek(copy))))
    except (DamagedBlock, UnsupportedFormat) as error:
        if problem_of(error) not in problems:
            problems.append(problem_of(error))
    return fields, problems


def decode_sector(
    sector: bytes,
    magic: bytes,
    parse: Callable[[bytes, int, bytes], T],
    expected: tuple[int, bytes],
    show: Callable[[T], Fields],
) -> tuple[dict[str, Value], list[str]]:
    """(fields, problems) of a slot's or a lock's record; `expected` is its address and its volume's prefix."""
    try:
        return dict(show(parse(sector, *expected))), []
    except (DamagedBlock, UnsupportedFormat) as error:
        problems = [problem_of(error)]
    if not any(sector):
        return {}, problems
    try:
        return dict(show(parse(resealed(sector, magic), *peek(sector)))), problems
    except (DamagedBlock, UnsupportedFormat) as error:
        if problem_of(error) not in problems:
            problems.append(problem_of(error))
        return {}, problems


def is_block(data: bytes) -> bool:
    """Whether bytes begin as a metadata block does."""
    return len(data) == METADATA_BLOCK_BYTES and data[: len(header.MAGIC)] == header.MAGIC
