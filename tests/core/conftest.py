"""A small volume in memory, mounted without a kernel; checked when its test is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.ramhost import RamVolume


@pytest.fixture
def ram() -> Iterator[RamVolume]:
    """`ram.host("esx1")` mounts it. At the end all hosts leave, and the checker must find nothing."""
    made = RamVolume()
    try:
        yield made
        made.leave_all()
        made.check()
    finally:
        made.abandon_all()
