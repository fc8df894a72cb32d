"""A recoverer does not let go of a slot while a write of its own may still land."""

from __future__ import annotations

from tests.cluster.world import TIMERS, Host, format_volume
from vmfs.clock import FakeClock
from vmfs.devices.ram import RamDevice
from vmfs.ondisk.slot import SlotState


def test_a_slot_is_handed_back_when_a_failed_write_of_its_replay_can_land_no_more() -> None:
    device = RamDevice(16 << 20)
    format_volume(device)
    clock = FakeClock(sleep_advances=True)
    dead = Host(device.again(), "esx1", clock=clock).join(start=False)
    other = Host(device.again(), "esx2", clock=clock).join(start=False)
    slot = dead.membership.holder.slot
    dead.crash()
    other.membership.begin_recovery(slot, operator=True)
    other.membership.recovery.disturbed(slot)
    before = clock.now()
    other.membership.hand_back(slot)
    assert clock.now() - before >= TIMERS.quarantine_us / 1e6 > TIMERS.flight_slack_us / 1e6
    assert other.membership.read_slot(slot).require().state is SlotState.DEAD
    other.leave()
