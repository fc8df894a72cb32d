"""What a volume says of itself on its devices: the records of `vmfs.control.contract`, with a mount or without.

Nothing is written and no lock taken. What other hosts change meanwhile may be seen half done: free space is a moment
old, and a slot or group that is being rewritten is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from vmfs.cluster.identity import HostIdentity, is_process_alive
from vmfs.control.contract import DeviceInfo, HostInfo, LockInfo, Timers, VolumeFacts
from vmfs.devices import Device, open_device
from vmfs.errors import DamagedBlock
from vmfs.liveness import read_slots
from vmfs.lockmethod import MEANINGS, image_in
from vmfs.ondisk import group
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Holder, LockMode, parse_lock
from vmfs.ondisk.slot import SlotRecord, SlotState
from vmfs.ondisk.superblock import FORMAT_VERSION, Superblock
from vmfs.volume import Volume, method_name, open_volume

NO_FENCING: Final = "no storage fencing"
RESERVATIONS: Final = "reservations (7h): the LUNs refuse the writes of a host that was broken"
_US_PER_S: Final = 1_000_000
_TORN_READ_TRIES: Final = 3  # a 4 KiB block on 512-byte sectors may be read while it is being written


def volume_facts(sb: Superblock, devices: Sequence[Device], lock_proof: str = "") -> VolumeFacts:
    """What the volume is. `devices` are its extents, in order. `lock_proof`: what a mount has shown of its locks."""
    t = sb.timers
    return VolumeFacts(
        label=sb.label,
        uuid=sb.volume,
        format_version=FORMAT_VERSION,
        compat=sb.compat,
        ro_compat=sb.ro_compat,
        incompat=sb.incompat,
        created_ns=sb.created_ns,
        block_bytes=sb.block_bytes,
        max_hosts=sb.max_hosts,
        lock_method=method_name(sb.lock_method),
        lock_method_reason=_lock_method_reason(sb, lock_proof),
        fencing=RESERVATIONS if sb.fenced else NO_FENCING,
        timers=Timers(
            heartbeat_seconds=t.heartbeat_us / _US_PER_S,
            lease_seconds=t.lease_us / _US_PER_S,
            margin_seconds=t.margin_us / _US_PER_S,
            break_seconds=t.break_us / _US_PER_S,
            validity_seconds=t.validity_us / _US_PER_S,
            quarantine_seconds=t.quarantine_us / _US_PER_S,
            drift_ppm=t.drift_ppm,
        ),
        devices=tuple(
            DeviceInfo(path=d.name, extent=i, size_bytes=sb.extents[i].size_bytes, sector_bytes=d.logical_block_bytes)
            for i, d in enumerate(devices)
        ),
    )


def _lock_method_reason(sb: Superblock, proof: str) -> str:
    meaning = MEANINGS.get(sb.lock_method, "this version does not know it")
    return f"{meaning}; {proof}" if proof else meaning


def host_info(
    record: SlotRecord,
    names: Sequence[str],
    *,
    here: HostIdentity | None = None,
    unchanged_seconds: float | None = None,
    is_self: bool = False,
    groups_held: int | None = None,
) -> HostInfo:
    """A slot for people. `names[i]` is the host of slot i.

    With `here`, a live slot whose process has ended on this very machine is told as such.
    """
    state = record.state.name.lower()
    recoverer = None
    if record.in_place:
        recoverer = record.host_name
        state = "recovering in place: every slot was taken"
    elif record.recoverer is not None:
        by = record.recoverer.slot
        recoverer = names[by] if by < len(names) and names[by] else f"slot {by}"
        state = f"recovering by {recoverer}"
    elif record.state is SlotState.LIVE and here is not None and is_process_alive(record, here) is False:
        state = "live, but its process has ended"
    return HostInfo(
        slot=record.slot,
        name=record.host_name,
        host_uuid=record.host_uuid,
        boot_id=record.boot_id,
        pid=record.pid,
        state=state,
        incarnation=record.incarnation,
        unchanged_seconds=unchanged_seconds,
        is_self=is_self,
        recoverer=recoverer,
        groups_held=groups_held,
    )


# -- without a mount -------------------------------------------------------------------------------


@contextmanager
def open_to_look(paths: Sequence[str]) -> Iterator[Volume]:
    """The volume on the devices at `paths` (all its extents), for reading only.

    Raises as `open_device` and `open_volume`.
    """
    with ExitStack() as opened:
        devices: list[Device] = []
        for path in paths:
            device = open_device(path, read_only=True)
            opened.callback(device.close)
            devices.append(device)
        yield open_volume(devices, read_only=True)


def look_at_volume(volume: Volume) -> VolumeFacts:
    """The facts of an open volume."""
    sb = volume.superblock
    return volume_facts(sb, [volume.extents.device(i) for i in range(len(sb.extents))])


def look_at_space(volume: Volume) -> tuple[int, int]:
    """(size, free) in bytes of the space for file data. Raises DamagedBlock, DeviceError."""
    sb, geometry = volume.superblock, volume.geometry
    free = sum(_free_blocks(volume, index) for index in range(geometry.group_count))
    return geometry.total_blocks() * sb.block_bytes, free * sb.block_bytes


def _free_blocks(volume: Volume, index: int) -> int:
    address = volume.geometry.group_block_address(index)
    blocks = volume.geometry.group_blocks(index)
    tries = 0
    while True:
        image = volume.extents.read(address, METADATA_BLOCK_BYTES)
        try:
            return group.parse(image, address, volume.uuid, index, blocks).free_blocks
        except DamagedBlock:
            tries += 1
            if tries == _TORN_READ_TRIES:
                raise


def look_at_hosts(volume: Volume) -> tuple[list[HostInfo], list[str]]:
    """The slots that are not free, and what is wrong with those that cannot be read. Raises DeviceError."""
    slots = read_slots(volume)
    names = [""] * volume.superblock.max_hosts
    for record in slots.records:
        names[record.slot] = record.host_name
    here = HostIdentity.detect("vmfsctl")
    hosts = [host_info(r, names, here=here) for r in slots.records if r.state is not SlotState.FREE]
    return hosts, [f"slot at {address:#x}: {problem}" for address, problem in slots.problems]


def look_at_locks(volume: Volume) -> list[LockInfo]:
    """The volume's own locks that are held: of the superblock and of the groups of blocks.

    Locks of files are found through a mount. Raises DamagedBlock, DeviceError, UnsupportedFormat.
    """
    sb, geometry = volume.superblock, volume.geometry
    slots = {r.slot: r for r in read_slots(volume).records}
    places = [("superblock", sb.superblock_lock)]
    places += [(f"group {i}", geometry.group_lock_address(i)) for i in range(geometry.group_count)]
    found = []
    for what, address in places:
        image = image_in(sb, volume.extents.read(address, sb.lock_block_bytes), address)
        record = parse_lock(image, address, volume.prefix)
        if record.mode is not LockMode.FREE:
            holders = tuple(_holder_name(h, slots) for h in record.all_holders)
            mode = record.mode.name.lower().replace("_", "-")
            found.append(LockInfo(what, inode=None, path=None, mode=mode, holders=holders, version=record.version))
    return found


def _holder_name(holder: Holder, slots: Mapping[int, SlotRecord]) -> str:
    record = slots.get(holder.slot)
    if record is None:
        return f"slot {holder.slot}"
    # A slot that has moved on to a greater incarnation has ended this hold (rule R7).
    if record.incarnation > holder.incarnation:
        return f"slot {holder.slot} (ended)"
    return record.host_name or f"slot {holder.slot}"
