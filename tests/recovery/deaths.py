"""A host that dies in the midst of everything, and recoverers that die at a chosen write, without the kernel's side.

Hosts of one name and other boots: each knows at once that those before it are dead. What a dead host wrote is there:
the storage keeps its power.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EBUSY

from tests.crash.ports import DirectPort
from tests.crash.power import boot, findings, mount, new_volume
from vmfs.core.mounting import MountedVolume
from vmfs.core.objects import InodeObject
from vmfs.devices.fault import FaultDevice, FaultPlan
from vmfs.devices.ram import RamDevice
from vmfs.errors import DeviceError, VmfsError
from vmfs.liveness import read_slots
from vmfs.ondisk.slot import SlotState
from vmfs.volume import open_volume

WHOLE = b"acknowledged " * 30_000
CUT_TO = 100_001
CUT_FROM = 3 << 20
SECRET = b"what was cut off "


class DyingDevice(FaultDevice):
    """A path to the storage that ends: nothing is cached, and behind the last write every call fails."""

    def __init__(self, ram: RamDevice, seed: int, last_write: int | None = None) -> None:
        super().__init__(ram.again(), seed, FaultPlan(volatile_cache=False, power_cut_after_writes=last_write))


def die_in_the_midst(ram: RamDevice, rng: random.Random) -> None:
    """A host that has fsynced a file, begun to remove another, and committed the cut of a third before it was made."""
    device = DyingDevice(ram, rng.getrandbits(32))
    host = mount(device, rng)
    port = DirectPort(host)
    for name, content in (("whole", WHOLE), ("gone", WHOLE), ("cut", SECRET * (CUT_FROM // len(SECRET)))):
        handle = port.create(name)
        for at in range(0, len(content), 1 << 19):
            port.write(handle, at, content[at : at + (1 << 19)])
        port.fsync(handle, data_only=False)
        port.close(handle)
    port.fsync_directory("")

    def later(number: int, generation: int, kind: int) -> None:
        raise OSError(EBUSY, "it dies before it removes anything")

    host.reaper.finish = later  # type: ignore[method-assign]
    port.unlink("gone")
    port.fsync_directory("")

    def dies(obj: InodeObject) -> None:
        host.core.transactions.commit()
        device.power_cut()
        raise DeviceError(device.name, "write", 0, 0, "the power was cut")

    host.reaper.trim = dies  # type: ignore[method-assign]
    handle = port.open("cut")
    try:
        port.truncate(handle, CUT_TO)
    except DeviceError:
        pass
    else:
        raise AssertionError("it did not die")
    finally:
        host.abandon()
        device.close()


def dead_volume(rng: random.Random) -> RamDevice:
    """A volume on which that host has died."""
    ram = new_volume(rng)
    die_in_the_midst(ram, rng)
    return ram


def take_all_slots(ram: RamDevice, rng: random.Random) -> RamDevice:
    """As after a site's power cut: every slot is of a host that is dead."""
    volume = open_volume([ram.again()])
    sb = volume.superblock
    for slot in read_slots(volume).records:
        if slot.state is SlotState.FREE:
            who = boot(rng)
            dead = replace(
                slot, state=SlotState.LIVE, incarnation=slot.incarnation + 1, sequence=slot.sequence + 1,
                host_name=who.name, host_uuid=who.host_uuid, boot_id=who.boot_id, pid=who.pid,
            )  # fmt: skip
            volume.extents.write(slot.address, dead.pack(sb.sector_bytes))
    volume.extents.flush()
    return ram


def recover_and_die(ram: RamDevice, rng: random.Random, last_write: int) -> bool:
    """A mount that recovers what is dead, and dies at its `last_write`-th write; whether it died in its mount.

    A mount that comes through dies then, in the midst of its removals perhaps.
    """
    device = DyingDevice(ram, rng.getrandbits(32), last_write)
    try:
        host = mount(device, rng)
    except VmfsError:
        assert device.power_is_cut
        return True
    else:
        device.freeze(fail_after_seconds=0.0)
        host.abandon()
        return False
    finally:
        device.close()


@contextmanager
def recovered(ram: RamDevice, rng: random.Random) -> Iterator[MountedVolume]:
    """A mount that lives, and leaves in order."""
    host = mount(ram.again(), rng)
    try:
        yield host
    except BaseException:
        host.abandon()
        raise
    host.leave()


def problems(ram: RamDevice, rng: random.Random) -> list[str]:
    """What is not as it must be once the next mount has recovered the dead: contents, slots, space, structure."""
    found = findings(ram.again(read_only=True), "before the last mount")
    with recovered(ram, rng) as host:
        port = DirectPort(host)
        if sorted(port.list("")) != ["cut", "whole"]:
            found.append(f"names: {port.list('')}")
        if port.read("whole") != WHOLE:
            found.append("whole is not what was fsynced")
        if port.read("cut") != (SECRET * (CUT_TO // len(SECRET) + 1))[:CUT_TO]:
            found.append("cut is not what is left of it")
        handle = port.open("cut")
        port.truncate(handle, CUT_FROM)
        port.close(handle)
        if any(port.read("cut")[CUT_TO:]):
            found.append("cut shows again what was cut off")
        mine = host.membership.holder.slot
        others = [r for r in host.membership.region.read_all().records if r.slot != mine and r.state]
        found += [f"slot {r.slot} is {r.state.name}" for r in others]
    return found + findings(ram.again(read_only=True), "at the end")
