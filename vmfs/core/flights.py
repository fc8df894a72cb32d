"""Writes that are on their way to the storage."""

from __future__ import annotations

from threading import get_ident
from typing import Final


class Flights:
    """By thread: who is within a write call. Single operations of a dict, so the hot path takes no lock."""

    def __init__(self) -> None:
        self.under_way: Final[dict[int, None]] = {}

    def __enter__(self) -> None:
        self.under_way[get_ident()] = None

    def __exit__(self, *_: object) -> None:
        self.under_way.pop(get_ident(), None)

    def none(self) -> bool:
        """Whether every write has come back."""
        return not self.under_way
