"""The checker's fixtures."""

from collections.abc import Callable

import pytest

from tests.check.small_volume import SmallVolume
from vmfs.check import Report, check_volume
from vmfs.clock import FakeClock
from vmfs.volume import open_volume


@pytest.fixture
def small() -> SmallVolume:
    return SmallVolume()


@pytest.fixture
def check() -> Callable[[SmallVolume], Report]:
    """Check it as the command does: opened anew, for reading only."""

    def run(small: SmallVolume) -> Report:
        volume = open_volume([small.device.again(read_only=True)], read_only=True)
        return check_volume(volume, clock=FakeClock(sleep_advances=True))

    return run
