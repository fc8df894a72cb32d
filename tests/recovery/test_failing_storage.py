"""A dead host's journal that the storage does not read: tried again, then left to an operator; nobody is held up."""

from __future__ import annotations

import random

import pytest

from tests.crash.power import findings, mount
from tests.crash.seeds import replay, rounds
from tests.recovery.deaths import dead_volume, problems
from vmfs.core.deadhosts import DeadHosts
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.errors import DeviceError
from vmfs.ondisk.slot import SlotState
from vmfs.volume import open_volume

pytestmark = pytest.mark.expected_log(
    r"the power (was|is) cut|mount failed|recovered host|recovery of host .* has failed|is not recovered|"
    r"removing files|operator orders|a lock could not be given up"
)


@rounds(1)
def test_a_journal_that_is_not_read_is_left_to_an_operator_and_is_whole_when_it_is_again(seed: int) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    ram = dead_volume(rng)
    device = FaultDevice(ram.again(), seed, FaultPlan(volatile_cache=False))
    volume = open_volume([ram.again(read_only=True)], read_only=True)
    journal = volume.geometry.journal_address(0)
    bad = ((journal, journal + volume.superblock.journal_bytes),)
    device.set_plan(FaultPlan(volatile_cache=False, bad_ranges=bad))
    host = mount(device, rng)
    try:
        slot = host.membership.read_slot(0).require()
        assert slot.state is SlotState.FAILED
        orders = DeadHosts(host.core, host.recoverer)
        with pytest.raises(DeviceError):
            orders.recover(0, slot.incarnation, declare_dead=False, discard_journal=False)
        device.set_plan(FaultPlan(volatile_cache=False))
        report = orders.recover(0, slot.incarnation, declare_dead=False, discard_journal=False)
        assert report.records
        assert host.membership.read_slot(0).require().state is SlotState.FREE
    except BaseException:
        host.abandon()
        raise
    host.leave()
    assert problems(ram, rng) == []
    assert findings(ram.again(read_only=True), "at the end") == []
