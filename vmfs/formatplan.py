"""Where everything of a new volume will lie: pure arithmetic over a device's size and the options."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.timers import Timers
from vmfs.devices.contract import Device, LockMethod
from vmfs.errors import BadFormatOption, DeviceNotUsable, DeviceTooSmall, LockMethodUnusable
from vmfs.geometry import Geometry
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.lockblock import SECTOR_BYTES_ALLOWED
from vmfs.ondisk.superblock import (
    BACKUP_FROM_END_BYTES,
    INCOMPAT_RESERVATIONS,
    LABEL_MAX_BYTES,
    MAX_GROUP_BLOCKS,
    MAX_JOURNAL_BYTES,
    MAX_SLOTS,
    MIN_GROUP_BLOCKS,
    MIN_JOURNAL_BYTES,
    PRIMARY_OFFSET,
    SECONDARY_OFFSET,
    SLOTS_OFFSET,
    Extent,
    Segment,
    Superblock,
    TimerFields,
    backup_offset,
    segment_data_start,
)

BLOCK_BYTES_ALLOWED: Final = (64 << 10, 256 << 10, 1 << 20)
DEFAULT_BLOCK_BYTES: Final = 64 << 10
DEFAULT_MAX_HOSTS: Final = 64
DEFAULT_LEASE_US: Final = 16_000_000
# A compare-and-write under a file lock needs the sector alone; a Paxos register for many hosts will need more.
LOCK_BLOCK_BYTES: Final = METADATA_BLOCK_BYTES
GROUPS_WANTED: Final = 128  # so that as many hosts as usual find several groups each
MIN_DATA_BLOCKS: Final = MIN_GROUP_BLOCKS  # a volume of fewer blocks is of no use
_JOURNALS_SHARE: Final = 64  # all journals together take at most this part of a volume, down to the least size
_JOURNAL_MIN_BYTES: Final = 1 << 20
_JOURNAL_MAX_BYTES: Final = 16 << 20

@dataclass(frozen=True, slots=True)
class FormatOptions:
    """What can be chosen about a new volume. None: what suits the device."""

    label: str
    block_bytes: int = DEFAULT_BLOCK_BYTES
    max_hosts: int = DEFAULT_MAX_HOSTS
    lease_us: int = DEFAULT_LEASE_US
    heartbeat_us: int | None = None
    journal_bytes: int | None = None
    sector_bytes: int | None = None
    blocks_per_group: int | None = None
    lock_method: LockMethod | None = None
    fenced: bool = False
    """By persistent reservations; the caller has tried out that they work (`vmfs.cluster.fenceproof`)."""
    in_flight_us: int = 0
    """Without fencing: how long a write may stay on its way to the device after it was submitted (F of A1)."""
    preempt_wait_ms: int = 0
    """With fencing by PREEMPT without ABORT: how long a write may execute after it."""
    discard: bool = True
    """Give the device's old content back to the storage first."""


@dataclass(frozen=True, slots=True)
class Part:
    """A region of the device in the plan. Offsets and sizes in bytes."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FormatPlan:
    """A volume that is to be written: its superblock, and the random numbers of its root directory."""

    superblock: Superblock
    root_seed: int
    root_map_id: int
    discard: bool

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.superblock)

    def parts(self) -> tuple[Part, ...]:
        """What lies where, in the order of the device."""
        sb, geometry = self.superblock, self.geometry
        data = geometry.group_data_start(0)
        blocks = sb.group_count * METADATA_BLOCK_BYTES
        backup = backup_offset(sb.extents[0].size_bytes)
        return (
            Part("superblock, first copy", PRIMARY_OFFSET, METADATA_BLOCK_BYTES),
            Part("superblock, second copy", SECONDARY_OFFSET, METADATA_BLOCK_BYTES),
            Part("superblock lock", sb.superblock_lock, sb.lock_block_bytes),
            Part("probe block", sb.probe_address, sb.lock_block_bytes),
            Part("heartbeat slots", sb.slots_address, sb.max_hosts * sb.lock_block_bytes),
            Part("orphan lists", sb.orphans_address, sb.max_hosts * METADATA_BLOCK_BYTES),
            Part("journals", sb.journals_address, sb.max_hosts * sb.journal_bytes),
            Part("group locks", geometry.group_lock_address(0), sb.group_count * sb.lock_block_bytes),
            Part("group blocks", geometry.group_block_address(0), blocks),
            Part("data", data, geometry.total_blocks() * sb.block_bytes),
            Part("superblock, last copy", backup, METADATA_BLOCK_BYTES),
        )


def plan(
    device: Device,
    options: FormatOptions,
    *,
    clock: Clock | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> FormatPlan:
    """Lay a volume out on `device`, of which only the size and the kind are looked at.

    Raises:
        BadFormatOption, TimersRefused: a choice that does not work.
        DeviceTooSmall: says what the least size is.
        DeviceNotUsable, LockMethodUnusable: hosts cannot exclude each other on this device.
    """
    _check_options(device, options)
    timers = Timers.from_lease(
        options.lease_us, options.heartbeat_us, fenced=options.fenced, in_flight_us=options.in_flight_us
    )
    size = device.size_bytes
    journal = options.journal_bytes or _journal_bytes(size, options.max_hosts)
    segment, per_group = _lay_out(device, options, journal)
    orphans_address = SLOTS_OFFSET + options.max_hosts * LOCK_BLOCK_BYTES
    data = segment_data_start(segment, LOCK_BLOCK_BYTES, options.block_bytes)
    sb = Superblock(
        volume=UUID(bytes=random_bytes(16), version=4),
        label=options.label,
        created_ns=(clock or SystemClock()).wall_ns(),
        block_bytes=options.block_bytes,
        sector_bytes=options.sector_bytes or device.logical_block_bytes,
        lock_block_bytes=LOCK_BLOCK_BYTES,
        lock_method=_lock_method(device, options),
        max_hosts=options.max_hosts,
        blocks_per_group=per_group,
        timers=TimerFields(
            heartbeat_us=timers.interval_us, lease_us=timers.lease_us, margin_us=timers.margin_us,
            break_us=timers.break_us, validity_us=timers.validity_us, quarantine_us=timers.quarantine_us,
            drift_ppm=timers.drift_ppm,
        ),
        slots_address=SLOTS_OFFSET,
        orphans_address=orphans_address,
        journals_address=orphans_address + options.max_hosts * METADATA_BLOCK_BYTES,
        journal_bytes=journal,
        # In the first chunk: the chunk's head, the inode's lock block, the inode.
        root_inode=(data + METADATA_BLOCK_BYTES + LOCK_BLOCK_BYTES) >> ADDRESS_SHIFT,
        extents=(Extent(UUID(bytes=random_bytes(16), version=4), size),),
        segments=(segment,),
        incompat=INCOMPAT_RESERVATIONS if options.fenced else 0,
        preempt_wait_ms=options.preempt_wait_ms,
    )  # fmt: skip
    seed, map_id = (int.from_bytes(random_bytes(8), "little") for _ in range(2))
    return FormatPlan(sb, seed, map_id or 1, options.discard)


def _check_options(device: Device, o: FormatOptions) -> None:
    size = len(o.label.encode("utf-8", "surrogateescape"))
    if not 1 <= size <= LABEL_MAX_BYTES or not o.label.isprintable() or "/" in o.label:
        rule = f"it must have 1 to {LABEL_MAX_BYTES} printable bytes without /"
        raise BadFormatOption("the name", repr(o.label), rule)
    if o.block_bytes not in BLOCK_BYTES_ALLOWED:
        raise BadFormatOption("a block size of", o.block_bytes, "it must be 64K, 256K or 1M")
    if not 1 <= o.max_hosts <= MAX_SLOTS:
        raise BadFormatOption("room for hosts:", o.max_hosts, f"it must be 1 to {MAX_SLOTS}")
    j = o.journal_bytes
    if j is not None and (j % METADATA_BLOCK_BYTES or not MIN_JOURNAL_BYTES <= j <= MAX_JOURNAL_BYTES):
        rule = f"it must be {MIN_JOURNAL_BYTES >> 10}K to {MAX_JOURNAL_BYTES >> 20}M, in steps of 4K"
        raise BadFormatOption("a journal size of", j, rule)
    if o.sector_bytes is not None and o.sector_bytes not in SECTOR_BYTES_ALLOWED:
        raise BadFormatOption("a sector size of", o.sector_bytes, "it must be 512 or 4096")
    if o.sector_bytes is not None and o.sector_bytes < device.logical_block_bytes:
        raise BadFormatOption("a sector size of", o.sector_bytes, f"{device.name} has {device.logical_block_bytes}")
    g = o.blocks_per_group
    if g is not None and (g & (g - 1) or not MIN_GROUP_BLOCKS <= g <= MAX_GROUP_BLOCKS):
        rule = f"it must be a power of two from {MIN_GROUP_BLOCKS} to {MAX_GROUP_BLOCKS}"
        raise BadFormatOption("blocks per group:", g, rule)


def _lock_method(device: Device, options: FormatOptions) -> LockMethod:
    usable = device.lock_methods()
    if not usable:
        raise DeviceNotUsable(device.name, "offers no way to compare and write, so hosts could not exclude each other")
    wanted = options.lock_method or usable[0]
    if wanted not in usable:
        raise LockMethodUnusable(device.name, wanted.name, ", ".join(m.name for m in usable))
    return wanted


def _floor_power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def _journal_bytes(size_bytes: int, max_hosts: int) -> int:
    share = _floor_power_of_two(size_bytes // (_JOURNALS_SHARE * max_hosts))
    return max(_JOURNAL_MIN_BYTES, min(share, _JOURNAL_MAX_BYTES))


def _segment_start(options: FormatOptions, journal_bytes: int) -> int:
    per_host = LOCK_BLOCK_BYTES + METADATA_BLOCK_BYTES + journal_bytes
    return -(-(SLOTS_OFFSET + options.max_hosts * per_host) // options.block_bytes) * options.block_bytes


def minimum_bytes(options: FormatOptions) -> int:
    """The least size of a device that these options fit on."""
    journal = options.journal_bytes or _JOURNAL_MIN_BYTES
    one = Segment(0, _segment_start(options, journal), 1, 0, MIN_DATA_BLOCKS)
    data_end = segment_data_start(one, LOCK_BLOCK_BYTES, options.block_bytes) + MIN_DATA_BLOCKS * options.block_bytes
    return data_end + BACKUP_FROM_END_BYTES


def _lay_out(device: Device, options: FormatOptions, journal_bytes: int) -> tuple[Segment, int]:
    """The one segment of a new volume, and its blocks per group. Raises DeviceTooSmall."""
    least = minimum_bytes(options)
    if device.size_bytes < least:
        raise DeviceTooSmall(device.name, device.size_bytes, least, options.max_hosts)
    start = _segment_start(options, journal_bytes)
    end = backup_offset(device.size_bytes)
    blocks = (end - start) // options.block_bytes
    wanted = _floor_power_of_two(blocks // GROUPS_WANTED)
    per_group = options.blocks_per_group or max(MIN_GROUP_BLOCKS, min(wanted, MAX_GROUP_BLOCKS))
    while True:  # the tables take space that then needs no groups; a few rounds settle it
        groups = -(-blocks // per_group)
        segment = Segment(0, start, groups, 0, blocks - (groups - 1) * per_group)
        data = segment_data_start(segment, LOCK_BLOCK_BYTES, options.block_bytes)
        fitting = (end - data) // options.block_bytes
        if fitting >= blocks:
            return segment, per_group
        blocks = fitting
