"""Fixtures with real LUNs, for every test: `tests/conftest.py` takes them in.

The targets start when a test first wants one, and serve until the last test has ended. A LUN is empty, without
reservations, and the test's own until its end.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.luns.array import LioArray
from tests.luns.lun import Lun
from tests.luns.tgt import TgtTarget


@pytest.fixture(scope="session")
def lio_array(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LioArray]:
    """A Linux storage array."""
    array = LioArray(tmp_path_factory.mktemp("array"))
    yield array
    array.close()


@pytest.fixture(scope="session")
def tgt_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TgtTarget]:
    """A tgtd."""
    target = TgtTarget(tmp_path_factory.mktemp("tgt"))
    yield target
    target.close()


@pytest.fixture
def lio_lun(lio_array: LioArray) -> Lun:
    """A LUN of 512 MiB in sectors of 512 bytes, with COMPARE AND WRITE and persistent reservations."""
    lun = lio_array.lun(0)
    lun.empty()
    return lun


@pytest.fixture
def lio_lun_4096(lio_array: LioArray) -> Lun:
    """The same in sectors of 4096 bytes."""
    lun = lio_array.lun(1)
    lun.empty()
    return lun


@pytest.fixture
def second_lio_lun(lio_array: LioArray) -> Lun:
    """One more as `lio_lun`, on the same array: a second extent."""
    lun = lio_array.lun(2)
    lun.empty()
    return lun


@pytest.fixture
def tgt_lun(tgt_target: TgtTarget) -> Lun:
    """A LUN of 512 MiB in sectors of 512 bytes, with neither."""
    lun = tgt_target.lun(0)
    lun.empty()
    return lun


def small_lun_of(request: pytest.FixtureRequest, kind: str) -> Lun:
    """A LUN of 8 MiB: "lio-512", "lio-4096" or "tgt-512"."""
    if kind == "tgt-512":
        target: TgtTarget = request.getfixturevalue("tgt_target")
        small = target.lun(2)
    else:
        array: LioArray = request.getfixturevalue("lio_array")
        small = array.lun({"lio-512": 3, "lio-4096": 4}[kind])
    small.empty()
    return small


@pytest.fixture(params=["lio", "tgt"])
def lun(request: pytest.FixtureRequest) -> Lun:
    """A LUN of each kind in turn."""
    found: Lun = request.getfixturevalue(f"{request.param}_lun")
    return found
