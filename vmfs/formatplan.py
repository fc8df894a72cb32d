"""Where everything of a new volume will lie: pure arithmetic over the devices' sizes and the options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.timers import Timers
from vmfs.devices.contract import Device, LockMethod
from vmfs.errors import BadFormatOption, DeviceTooSmall, ExtentTooSmall
from vmfs.geometry import Geometry
from vmfs.lockmethod import choose, default_max_hosts, lock_block_bytes
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.lockblock import SECTOR_BYTES_ALLOWED
from vmfs.ondisk.superblock import (
    BACKUP_FROM_END_BYTES,
    INCOMPAT_RESERVATIONS,
    LABEL_MAX_BYTES,
    MAX_EXTENTS,
    MAX_GROUP_BLOCKS,
    MAX_JOURNAL_BYTES,
    MAX_SLOTS,
    MIN_GROUP_BLOCKS,
    MIN_JOURNAL_BYTES,
    SLOTS_OFFSET,
    SUPERBLOCK_LOCK_OFFSET,
    Extent,
    Segment,
    Superblock,
    TimerFields,
    backup_offset,
    segment_data_start,
)

BLOCK_BYTES_ALLOWED: Final = (64 << 10, 256 << 10, 1 << 20)
DEFAULT_BLOCK_BYTES: Final = 64 << 10
DEFAULT_LEASE_US: Final = 16_000_000
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
    max_hosts: int | None = None
    lease_us: int = DEFAULT_LEASE_US
    heartbeat_us: int | None = None
    journal_bytes: int | None = None
    sector_bytes: int | None = None
    blocks_per_group: int | None = None
    lock_method: LockMethod | None = None
    """None: the best that works on all devices (`vmfs.lockmethod.choose`)."""
    fenced: bool = False
    """By persistent reservations; the caller has tried out that they work (`vmfs.cluster.fenceproof`)."""
    in_flight_us: int = 0
    """Without fencing: how long a write may stay on its way to the device after it was submitted (F of A1)."""
    preempt_wait_ms: int = 0
    """With fencing by PREEMPT without ABORT: how long a write may execute after it."""
    discard: bool = True
    """Give the device's old content back to the storage first."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """The options with every choice made, and what follows from them."""

    options: FormatOptions
    max_hosts: int
    lock_block_bytes: int
    journal_bytes: int

    @property
    def block_bytes(self) -> int:
        return self.options.block_bytes

    @property
    def first_segment_start(self) -> int:
        """Where the first extent's segment may begin: behind the hosts' slots, orphan lists and journals."""
        per_host = self.lock_block_bytes + METADATA_BLOCK_BYTES + self.journal_bytes
        return _round_up(SLOTS_OFFSET + self.max_hosts * per_host, self.block_bytes)

    def segment_start(self, extent: int) -> int:
        """Where an extent's segment begins. Others than the first have their superblock copies before it alone."""
        return self.first_segment_start if extent == 0 else _round_up(SUPERBLOCK_LOCK_OFFSET, self.block_bytes)

    def minimum_bytes(self, extent: int) -> int:
        """The least size of a device that can be that extent."""
        one = Segment(extent, self.segment_start(extent), 1, 0, MIN_DATA_BLOCKS)
        data = segment_data_start(one, self.lock_block_bytes, self.block_bytes)
        return data + MIN_DATA_BLOCKS * self.block_bytes + BACKUP_FROM_END_BYTES


@dataclass(frozen=True, slots=True)
class Part:
    """A region of a device in the plan. Offsets and sizes in bytes."""

    name: str
    offset: int
    size_bytes: int
    extent: int = 0


@dataclass(frozen=True, slots=True)
class FormatPlan:
    """A volume that is to be written: its superblock, and the random numbers of its root directory."""

    superblock: Superblock
    lock_reason: str
    """Why its lock method is that one."""
    root_seed: int
    root_map_id: int
    discard: bool

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.superblock)

    def parts(self) -> tuple[Part, ...]:
        """What lies where, in the order of the devices."""
        sb = self.superblock
        found = [
            Part("superblock lock", sb.superblock_lock, sb.lock_block_bytes),
            Part("probe block", sb.probe_address, sb.lock_block_bytes),
            Part("heartbeat slots", sb.slots_address, sb.max_hosts * sb.lock_block_bytes),
            Part("orphan lists", sb.orphans_address, sb.max_hosts * METADATA_BLOCK_BYTES),
            Part("journals", sb.journals_address, sb.max_hosts * sb.journal_bytes),
        ]
        for extent in range(len(sb.extents)):
            first, second, last = sb.copy_offsets(extent)
            for name, at in (("first", first), ("second", second), ("last", last)):
                found.append(Part(f"superblock, {name} copy", at, METADATA_BLOCK_BYTES, extent))
        for s in sb.segments:
            locks, groups = s.group_count * sb.lock_block_bytes, s.group_count * METADATA_BLOCK_BYTES
            blocks = (s.group_count - 1) * sb.blocks_per_group + s.last_group_blocks
            data = segment_data_start(s, sb.lock_block_bytes, sb.block_bytes)
            found += [
                Part("group locks", s.start, locks, s.extent),
                Part("group blocks", s.start + locks, groups, s.extent),
                Part("data", data, blocks * sb.block_bytes, s.extent),
            ]
        return tuple(sorted(found, key=lambda p: (p.extent, p.offset)))


def plan(
    device: Device,
    options: FormatOptions,
    more: Sequence[Device] = (),
    *,
    clock: Clock | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> FormatPlan:
    """Lay a volume out on `device` and, as further extents, on `more`: any sizes. Only sizes and kinds are looked at.

    Raises:
        BadFormatOption, TimersRefused: a choice that does not work.
        DeviceTooSmall, ExtentTooSmall: say what the least size is.
        LockMethodUnusable: hosts cannot exclude each other in the wanted way on these devices.
    """
    devices = (device, *more)
    _check_options(devices, options)
    timers = Timers.from_lease(
        options.lease_us, options.heartbeat_us, fenced=options.fenced, in_flight_us=options.in_flight_us
    )
    chosen = choose(devices, options.lock_method)
    sector = options.sector_bytes or max(d.logical_block_bytes for d in devices)
    max_hosts = default_max_hosts(chosen.method) if options.max_hosts is None else options.max_hosts
    lock_bytes = lock_block_bytes(chosen.method, max_hosts, sector, options.block_bytes)
    journal = options.journal_bytes or _journal_bytes(device.size_bytes, max_hosts)
    shape = _Shape(options, max_hosts, lock_bytes, journal)
    segments, per_group = _lay_out(devices, shape)
    orphans_address = SLOTS_OFFSET + max_hosts * lock_bytes
    data = segment_data_start(segments[0], lock_bytes, options.block_bytes)
    sb = Superblock(
        volume=UUID(bytes=random_bytes(16), version=4),
        label=options.label,
        created_ns=(clock or SystemClock()).wall_ns(),
        block_bytes=options.block_bytes,
        sector_bytes=sector,
        lock_block_bytes=lock_bytes,
        lock_method=chosen.method,
        max_hosts=max_hosts,
        blocks_per_group=per_group,
        timers=TimerFields(
            heartbeat_us=timers.interval_us, lease_us=timers.lease_us, margin_us=timers.margin_us,
            break_us=timers.break_us, validity_us=timers.validity_us, quarantine_us=timers.quarantine_us,
            drift_ppm=timers.drift_ppm,
        ),
        slots_address=SLOTS_OFFSET,
        orphans_address=orphans_address,
        journals_address=orphans_address + max_hosts * METADATA_BLOCK_BYTES,
        journal_bytes=journal,
        # In the first chunk: the chunk's head, the inode's lock block, the inode.
        root_inode=(data + METADATA_BLOCK_BYTES + lock_bytes) >> ADDRESS_SHIFT,
        extents=tuple(Extent(UUID(bytes=random_bytes(16), version=4), d.size_bytes) for d in devices),
        segments=segments,
        incompat=INCOMPAT_RESERVATIONS if options.fenced else 0,
        preempt_wait_ms=options.preempt_wait_ms,
    )  # fmt: skip
    seed, map_id = (int.from_bytes(random_bytes(8), "little") for _ in range(2))
    return FormatPlan(sb, chosen.reason, seed, map_id or 1, options.discard)


def _check_options(devices: Sequence[Device], o: FormatOptions) -> None:
    size = len(o.label.encode("utf-8", "surrogateescape"))
    if not 1 <= size <= LABEL_MAX_BYTES or not o.label.isprintable() or "/" in o.label:
        rule = f"it must have 1 to {LABEL_MAX_BYTES} printable bytes without /"
        raise BadFormatOption("the name", repr(o.label), rule)
    if o.block_bytes not in BLOCK_BYTES_ALLOWED:
        raise BadFormatOption("a block size of", o.block_bytes, "it must be 64K, 256K or 1M")
    if o.max_hosts is not None and not 1 <= o.max_hosts <= MAX_SLOTS:
        raise BadFormatOption("room for hosts:", o.max_hosts, f"it must be 1 to {MAX_SLOTS}")
    j = o.journal_bytes
    if j is not None and (j % METADATA_BLOCK_BYTES or not MIN_JOURNAL_BYTES <= j <= MAX_JOURNAL_BYTES):
        rule = f"it must be {MIN_JOURNAL_BYTES >> 10}K to {MAX_JOURNAL_BYTES >> 20}M, in steps of 4K"
        raise BadFormatOption("a journal size of", j, rule)
    if o.sector_bytes is not None and o.sector_bytes not in SECTOR_BYTES_ALLOWED:
        raise BadFormatOption("a sector size of", o.sector_bytes, "it must be 512 or 4096")
    for device in devices:
        if o.sector_bytes is not None and o.sector_bytes < device.logical_block_bytes:
            raise BadFormatOption("a sector size of", o.sector_bytes, f"{device.name} has {device.logical_block_bytes}")
    if len(devices) > MAX_EXTENTS:
        raise BadFormatOption("extents:", len(devices), f"there can be {MAX_EXTENTS}")
    g = o.blocks_per_group
    if g is not None and (g & (g - 1) or not MIN_GROUP_BLOCKS <= g <= MAX_GROUP_BLOCKS):
        rule = f"it must be a power of two from {MIN_GROUP_BLOCKS} to {MAX_GROUP_BLOCKS}"
        raise BadFormatOption("blocks per group:", g, rule)


def _floor_power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def _journal_bytes(size_bytes: int, max_hosts: int) -> int:
    share = _floor_power_of_two(size_bytes // (_JOURNALS_SHARE * max_hosts))
    return max(_JOURNAL_MIN_BYTES, min(share, _JOURNAL_MAX_BYTES))


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def minimum_bytes(options: FormatOptions) -> int:
    """The least size of a device that these options fit on, by a lock method that needs one sector."""
    hosts = default_max_hosts(LockMethod.OFD_FILE) if options.max_hosts is None else options.max_hosts
    shape = _Shape(options, hosts, METADATA_BLOCK_BYTES, options.journal_bytes or _JOURNAL_MIN_BYTES)
    return shape.minimum_bytes(0)


def _lay_out(devices: Sequence[Device], shape: _Shape) -> tuple[tuple[Segment, ...], int]:
    """A segment an extent, and the blocks per group of all. Raises DeviceTooSmall, ExtentTooSmall."""
    first = devices[0]
    least = replace(shape, journal_bytes=shape.options.journal_bytes or _JOURNAL_MIN_BYTES).minimum_bytes(0)
    if first.size_bytes < least:
        raise DeviceTooSmall(first.name, first.size_bytes, least, shape.max_hosts)
    for extent, device in enumerate(devices[1:], 1):
        if device.size_bytes < (least := shape.minimum_bytes(extent)):
            raise ExtentTooSmall(device.name, device.size_bytes, least)
    rooms = [
        (backup_offset(d.size_bytes) - shape.segment_start(extent)) // shape.block_bytes
        for extent, d in enumerate(devices)
    ]
    wanted = _floor_power_of_two(sum(rooms) // GROUPS_WANTED)
    per_group = shape.options.blocks_per_group or max(MIN_GROUP_BLOCKS, min(wanted, MAX_GROUP_BLOCKS))
    segments: list[Segment] = []
    groups = 0
    for extent, (device, blocks) in enumerate(zip(devices, rooms, strict=True)):
        segments.append(_segment(shape, extent, backup_offset(device.size_bytes), blocks, per_group, groups))
        groups += segments[-1].group_count
    return tuple(segments), per_group


def _segment(shape: _Shape, extent: int, end: int, blocks: int, per_group: int, first_group: int) -> Segment:
    """The segment of an extent, up to byte `end`; `blocks`: what would fit without its tables."""
    while True:  # the tables take space that then needs no groups; a few rounds settle it
        groups = -(-blocks // per_group)
        last = blocks - (groups - 1) * per_group
        segment = Segment(extent, shape.segment_start(extent), groups, first_group, last)
        data = segment_data_start(segment, shape.lock_block_bytes, shape.block_bytes)
        fitting = (end - data) // shape.block_bytes
        if fitting >= blocks:
            return segment
        blocks = fitting
