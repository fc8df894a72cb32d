"""A repair that dies at any of its writes, with a power cut: the next one ends clean. And a dry run writes nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from tests.check.fastclock import FastClock
from tests.check.small_volume import SmallVolume
from tests.check.test_findings import BREAKS
from tests.check.test_repair import LOSSES, ruin
from vmfs.check import Report, repair_volume
from vmfs.check.alone import REPAIR_NAME
from vmfs.check.dryrun import ScratchDevice
from vmfs.check.repair import Repaired
from vmfs.cluster.fencing import NoFence
from vmfs.cluster.identity import HostIdentity
from vmfs.devices import Device
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.errors import VmfsError, VolumeInUse
from vmfs.volume import open_volume

Check = Callable[[SmallVolume], Report]
ROUNDS = int(os.environ.get("AZEKURA_ROUNDS", "12"))
# What may be broken together: no break undoes another's ground.
TOGETHER = sorted(
    set(BREAKS) - LOSSES
    - {"slot failed", "journal from the future", "superblock copies differ", "name twice", "overflow in a circle"}
)  # fmt: skip
RUINED = (
    "chunk", "group", "group with chunks", "directory block", "node", "root", "orphans", "inode lock",
    "journal header",
)  # fmt: skip


def boot(rng: random.Random) -> HostIdentity:
    """The same machine, booted again: what it left is known to be dead."""
    return replace(HostIdentity.detect(REPAIR_NAME), boot_id=UUID(int=rng.getrandbits(128)))


def repair(device: Device, rng: random.Random) -> Repaired:
    return repair_volume(open_volume([device]), clock=FastClock(), rng=rng, identity=boot(rng))


def damage(small: SmallVolume, rng: random.Random) -> list[str]:
    """Two broken invariants and a ruined block or two."""
    chosen = rng.sample(TOGETHER, 2)
    for name in chosen:
        BREAKS[name][1](small)
    ruined = rng.sample(RUINED, rng.randrange(3))
    for name in ruined:
        ruin(small, small.all_blocks()[name])
    return chosen + ruined


@pytest.mark.expected_log("heartbeat|lease|could not be read|handed back|still waits")
def test_a_repair_that_dies_can_be_run_again(check: Check) -> None:
    seed = int(os.environ.get("AZEKURA_SEED", random.randrange(1 << 32)))
    print(f"AZEKURA_SEED={seed}")
    cuts = 0
    for number in range(ROUNDS):
        rng = random.Random(seed + number)
        small = SmallVolume()
        what = damage(small, rng)
        cut_after = rng.randrange(1, 70)
        plan = FaultPlan(power_cut_after_writes=cut_after)
        device = FaultDevice(small.device.again(), seed=rng.getrandbits(32), plan=plan)
        where = f"round {number} (AZEKURA_SEED={seed + number}): {what}, cut after {cut_after} writes"
        try:
            repair(device, rng)
        except VmfsError:
            assert device.power_is_cut, where
            cuts += 1
        else:
            device.flush()
        again = repair(small.device.again(), rng)
        assert again.exit_code in (0, 1), (where, again.left.findings, again.problem)
        assert check(small).findings == [], where
    print(f"{cuts} of {ROUNDS} repairs were cut off")
    assert cuts


def test_a_dry_run_says_the_same_and_writes_nothing(small: SmallVolume, check: Check) -> None:
    damage(small, random.Random(3))
    before = small.device.read(0, small.device.size_bytes)
    volume = open_volume([ScratchDevice(small.device.again(read_only=True))])
    tried = repair_volume(volume, clock=FastClock(), rng=random.Random(1), fence=NoFence())
    assert small.device.read(0, small.device.size_bytes) == before
    done = repair_volume(open_volume([small.device.again()]), clock=FastClock(), rng=random.Random(1))
    assert (tried.done, tried.exit_code) == (done.done, 1)
    assert check(small).findings == []


def test_nobody_joins_while_it_is_repaired(small: SmallVolume) -> None:
    """All slots are taken, and a second repair is refused."""
    ruin(small, small.all_blocks()["group"])
    refused: list[BaseException] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "mending bitmaps" and not refused:
            for attempt in (lambda: repair(small.device.again(), random.Random(2)), lambda: join(small)):
                with pytest.raises(VmfsError) as caught:
                    attempt()
                refused.append(caught.value)

    done = repair_volume(open_volume([small.device.again()]), meanwhile, clock=FastClock(), rng=random.Random(1))
    assert done.exit_code == 1
    assert isinstance(refused[0], VolumeInUse)
    assert "none of its 4 heartbeat slots is free" in str(refused[1])


def join(small: SmallVolume) -> None:
    """As a mount begins."""
    from vmfs.core.mounting import MountedVolume

    MountedVolume(open_volume([small.device.again()]), HostIdentity.detect("esx1"), FastClock())
