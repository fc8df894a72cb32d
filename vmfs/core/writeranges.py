"""Which of one file's blocks have slow writes under way: others of the same blocks wait, and so does the whole file.

Two first writes to one block would each promise it a place, and the later one would win with the earlier one's data
missing. First writes to different blocks have nothing to do with each other, and a guest on a thin disk has many of
them at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WriteRanges:
    """A lock of a file's blocks. `with ranges:` takes the whole file, `with ranges.blocks(first, last):` some blocks.

    Not reentrant. Whoever waits for the whole file goes before later ranges, so that writers do not starve it.
    `_changed` guards everything, and is a leaf: nothing is done under it.
    """

    __slots__ = ("_changed", "_held", "_waiting", "_whole")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._held: list[tuple[int, int]] = []
        self._whole = False
        self._waiting = 0

    def __enter__(self) -> None:
        with self._changed:
            self._waiting += 1
            try:
                while self._whole or self._held:
                    self._changed.wait()
                self._whole = True
            finally:
                self._waiting -= 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._whole = False
            self._changed.notify_all()

    @contextmanager
    def blocks(self, first: int, last: int) -> Iterator[None]:
        """Hold blocks `first` to `last`."""
        with self._changed:
            while self._whole or self._waiting or any(low <= last and first <= high for low, high in self._held):
                self._changed.wait()
            self._held.append((first, last))
        try:
            yield
        finally:
            with self._changed:
                self._held.remove((first, last))
                self._changed.notify_all()
