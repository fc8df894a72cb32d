from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.world import SIZE, Host, format_volume
from vmfs.devices.ram import RamDevice


@pytest.fixture(params=[512, 4096])
def any_sector(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def paxos(request: pytest.FixtureRequest) -> bool:
    """Whether hosts agree by Disk-Paxos registers; parametrise it indirectly."""
    return bool(getattr(request, "param", False))


@pytest.fixture
def volume(paxos: bool) -> RamDevice:
    device = RamDevice(SIZE)
    format_volume(device, paxos=paxos)
    return device


@pytest.fixture
def host(volume: RamDevice) -> Iterator[Callable[..., Host]]:
    """Make hosts on the volume; whatever still runs at the end of the test is stopped."""
    made: list[Host] = []

    def make(name: str, **options: Any) -> Host:
        options.setdefault("device", volume.again(name=name))
        made.append(Host(name=name, seed=len(made) + 1, **options))
        return made[-1]

    yield make
    for one in made:
        one.crash()
