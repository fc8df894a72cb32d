"""What is shown of one structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = "bool | int | str | Sequence[Value] | Mapping[str, Value] | None"
Fields: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure as it was read. `raw` is all of its bytes that were looked at."""

    kind: str
    address: int
    """The volume address that it was read from."""
    where: str
    """What lies at that address, as the superblock has it."""
    fields: Fields
    problems: tuple[str, ...] = ()
    """What is wrong with it. The fields are then what the bytes say as they stand, as far as they can be told."""
    raw: bytes = field(default=b"", repr=False)

    def as_dict(self, *, raw: bool) -> dict[str, Value]:
        """For JSON: addresses and sizes are numbers; `raw`: with the bytes, in hexadecimal."""
        shown: dict[str, Value] = {
            "kind": self.kind, "address": self.address, "where": self.where, "valid": not self.problems,
            "problems": list(self.problems), "fields": self.fields,
        }  # fmt: skip
        if raw:
            shown["raw"] = self.raw.hex()
        return shown


def bit_runs(bits: int) -> list[list[int]]:
    """The bits that are set, as [first, last] of each run."""
    runs: list[list[int]] = []
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & bits + 1).bit_length() - 1
        runs.append([at + skip, at + skip + length - 1])
        bits >>= length
        at += skip + length
    return runs


def text_of(data: bytes) -> str:
    """Bytes that are mostly text (names, link targets, attributes) as a string; others as \\xNN."""
    return data.decode("utf-8", "backslashreplace")
