"""Whether any host has a volume mounted: for operations that want the volume for themselves.

A host lives as long as its slot changes. Of a process of this machine's own boot it is known at once; of others only
by watching, for as long as a lease may last between two changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmfs.clock import Clock
from vmfs.cluster.identity import HostIdentity, is_process_alive
from vmfs.errors import DamagedBlock, UnsupportedFormat, VolumeInUse
from vmfs.lockmethod import image_in, is_padded_with_zeros
from vmfs.ondisk.slot import SlotRecord, SlotState, parse_slot
from vmfs.volume import Volume

_WATCHER_NAME: Final = "vmfsctl"
_LOOKS_PER_HEARTBEAT: Final = 2
_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Slots:
    """The slot region as it was read: the records, and what could not be decoded."""

    records: tuple[SlotRecord, ...]
    problems: tuple[tuple[int, str], ...]
    """(address, what is wrong) of each slot that cannot be decoded, or is not as it was formatted."""


def read_slots(volume: Volume) -> Slots:
    """Read every slot, in one read. Raises DeviceError."""
    sb = volume.superblock
    region = volume.extents.read(sb.slots_address, sb.max_hosts * sb.lock_block_bytes)
    records: list[SlotRecord] = []
    problems: list[tuple[int, str]] = []
    for slot in range(sb.max_hosts):
        address = volume.geometry.slot_address(slot)
        block = region[slot * sb.lock_block_bytes : (slot + 1) * sb.lock_block_bytes]
        try:
            records.append(parse_slot(image_in(sb, block, address), address, volume.prefix, slot))
            if not is_padded_with_zeros(sb, block):
                problems.append((address, f"heartbeat slot {slot}: the bytes behind its record are not zero"))
        except DamagedBlock as error:
            problems.append((address, error.what))
        except UnsupportedFormat as error:
            problems.append((address, str(error)))
    return Slots(tuple(records), tuple(problems))


def who_is(record: SlotRecord) -> str:
    """How messages name the host of a slot."""
    return f"host {record.host_name} (slot {record.slot}, pid {record.pid})"


def refuse_when_mounted(
    volume: Volume, clock: Clock, waiting: Callable[[str], None] | None = None, *, to_write: bool = False
) -> Slots:
    """Return the slots, having made sure that none of them is a living host's.

    Where a slot is neither free nor of a process that this machine can look up, its slot is watched for one lease, and
    for the break time by whoever wants `to_write`; `waiting` is then told for whom.

    Raises:
        VolumeInUse: a host has the volume mounted.
        DeviceError: the slots could not be read.
    """
    first = read_slots(volume)
    here = HostIdentity.detect(_WATCHER_NAME)
    unknown: dict[int, SlotRecord] = {}
    for record in first.records:
        if record.state is SlotState.FREE:
            continue
        alive = is_process_alive(record, here)
        if alive:
            raise VolumeInUse(volume.superblock.label, who_is(record))
        if alive is None:
            unknown[record.slot] = record
    if not unknown:
        return first
    timers = volume.superblock.timers
    watch_us = timers.break_us if to_write else timers.lease_us
    if waiting is not None:
        waiting(f"watching {', '.join(who_is(r) for r in unknown.values())} for {watch_us / _US_PER_S:g} s")
    until = clock.now() + watch_us / _US_PER_S
    while clock.now() < until:
        clock.sleep(timers.heartbeat_us / _LOOKS_PER_HEARTBEAT / _US_PER_S)
        for record in read_slots(volume).records:
            before = unknown.get(record.slot)
            if before is not None and record.sequence != before.sequence and record.state is not SlotState.FREE:
                raise VolumeInUse(volume.superblock.label, who_is(record))
    return read_slots(volume)
