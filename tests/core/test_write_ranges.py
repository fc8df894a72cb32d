"""The lock of a file's blocks: what it lets run side by side, and what it keeps apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from vmfs.core.writeranges import WriteRanges

SOON_SECONDS = 0.05  # long enough for a thread that is not held back
LONG_SECONDS = 10.0


class Holder:
    """A thread that takes the lock, says so, and lets go when told."""

    def __init__(self, take: Callable[[], AbstractContextManager[None]]) -> None:
        self._take = take
        self.inside = threading.Event()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._take():
            self.inside.set()
            assert self._leave.wait(LONG_SECONDS)

    def end(self) -> None:
        self._leave.set()
        self._thread.join(LONG_SECONDS)
        assert self.inside.is_set()


def test_disjoint_blocks_are_held_at_once_and_common_ones_are_not() -> None:
    ranges = WriteRanges()
    first = Holder(lambda: ranges.blocks(0, 3))
    beside = Holder(lambda: ranges.blocks(4, 9))
    assert first.inside.wait(LONG_SECONDS)
    assert beside.inside.wait(LONG_SECONDS)
    across = Holder(lambda: ranges.blocks(3, 4))
    assert not across.inside.wait(SOON_SECONDS)
    first.end()
    assert not across.inside.wait(SOON_SECONDS)
    beside.end()
    assert across.inside.wait(LONG_SECONDS)
    across.end()


def test_the_whole_file_excludes_every_block_and_goes_before_later_ones() -> None:
    ranges = WriteRanges()
    early = Holder(lambda: ranges.blocks(7, 7))
    assert early.inside.wait(LONG_SECONDS)
    whole = Holder(lambda: ranges)
    time.sleep(SOON_SECONDS)
    assert not whole.inside.is_set()
    late = Holder(lambda: ranges.blocks(100, 100))
    assert not late.inside.wait(SOON_SECONDS)
    early.end()
    assert whole.inside.wait(LONG_SECONDS)
    assert not late.inside.wait(SOON_SECONDS)
    whole.end()
    assert late.inside.wait(LONG_SECONDS)
    late.end()
