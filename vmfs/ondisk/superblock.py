"""The superblock: what a volume is, where its parts lie, and who may touch it.

Copies lie at byte 64 KiB and 68 KiB of every extent and in its last whole 64 KiB; each says which extent it lies on.
They are written one after the other, with a generation that grows; a reader takes the valid copy of the highest
generation, so a crash between two copies leaves one good copy, old or new. Changed under the superblock lock only.

Layout (offsets in bytes; the common header of `vmfs.ondisk.header`, except that bytes 0..7 are b"AZKVMFS\\0"):

    64    format version u32, reserved u32
    72    feature words u64 x 3: compatible, read-only-compatible, incompatible. An unknown bit in the first means
          nothing, in the second allows read-only use, in the third refuses the volume
    96    label, 64 bytes utf-8, zero-padded
    160   created, ns since the epoch, u64
    168   block bytes u32, metadata block bytes u32, sector bytes u32, lock block bytes u32
    184   lock method u16, heartbeat slots u16, extents u16, segments u16, blocks per group u32, drift ppm u32
    200   timers in microseconds, u64 x 6: heartbeat, lease, margin, break, validity, quarantine
    248   addresses u64 x 6: superblock lock, probe block, slots, orphan lists, journals, root inode's number
    296   journal bytes a slot u64
    304   this copy: extent index u16, reserved u16
    308   u32, with INCOMPAT_RESERVATIONS: 0 where the LUNs have PREEMPT AND ABORT; else for how many milliseconds
          at most a write may still execute after a PREEMPT
    312   this copy: this extent's UUID 16 bytes
    512   extent table, 32 entries of 32 bytes: UUID 16, size in bytes u64, flags u64
    1536  segment table, 64 entries of 24 bytes: extent u16, flags u16, groups u32, first group u32, last group's
          blocks u32 (blocks per group when whole), start offset u64

A *segment* is a run of an extent that carries resource groups: one when the extent joins, one more each time it grows.
From its start: a table of lock blocks, one a group; a table of group blocks, one a group (see `vmfs.ondisk.group`);
then, from the next multiple of the block size, the groups' blocks without a gap.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from vmfs.errors import DamagedBlock, UnsupportedFormat
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, checksum_matches, seal, seal_checksum

SIGNATURE: Final = b"AZKVMFS\0"
FORMAT_VERSION: Final = 1
PRIMARY_OFFSET: Final = 64 << 10  # leaves room for boot code and partition tables of other makers
SECONDARY_OFFSET: Final = 68 << 10
BACKUP_FROM_END_BYTES: Final = 64 << 10
SUPERBLOCK_LOCK_OFFSET: Final = 128 << 10
PROBE_OFFSET: Final = 192 << 10  # where a mount proves that compare-and-write works
SLOTS_OFFSET: Final = 256 << 10
MAX_EXTENTS: Final = 32
MAX_SEGMENTS: Final = 64
MAX_SLOTS: Final = 256
MAX_LOCK_BLOCK_BYTES: Final = 64 << 10  # so far apart lie the superblock lock, the probe block and the slots
LABEL_MAX_BYTES: Final = 63
MIN_BLOCK_BYTES: Final = 64 << 10
MAX_BLOCK_BYTES: Final = 1 << 20  # a chunk head's bitmaps have room for 256 units
MIN_GROUP_BLOCKS: Final = 64
MAX_GROUP_BLOCKS: Final = 8192  # see `vmfs.ondisk.group`
MIN_JOURNAL_BYTES: Final = 256 << 10  # a record of the largest operation must fit half of the ring
MAX_JOURNAL_BYTES: Final = 64 << 20

INCOMPAT_RESERVATIONS: Final = 1 << 0
"""All hosts register with the LUNs and fence each other by persistent reservations of type 7h (docs/locking.md, R2)."""

KNOWN_RO_COMPAT: Final = 0
KNOWN_INCOMPAT: Final = INCOMPAT_RESERVATIONS

_BASE: Final = struct.Struct("<II3Q64sQ4I4H2I6Q6QQHHI16s")
_BASE_OFFSET: Final = 64
_EXTENT: Final = struct.Struct("<16sQQ")
_EXTENTS_OFFSET: Final = 512
_SEGMENT: Final = struct.Struct("<HHIIIQ")
_SEGMENTS_OFFSET: Final = 1536


@dataclass(frozen=True, slots=True)
class Extent:
    """One LUN of the volume."""

    uuid: UUID
    size_bytes: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of an extent that carries resource groups."""

    extent: int
    start: int
    group_count: int
    first_group: int
    last_group_blocks: int


@dataclass(frozen=True, slots=True)
class TimerFields:
    """The cluster's timers as they lie on disk, in microseconds (drift in parts per million)."""

    heartbeat_us: int
    lease_us: int
    margin_us: int
    break_us: int
    validity_us: int
    quarantine_us: int
    drift_ppm: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """A decoded superblock. Sizes in bytes, addresses are volume addresses."""

    volume: UUID
    label: str
    created_ns: int
    block_bytes: int
    sector_bytes: int
    lock_block_bytes: int
    lock_method: int
    max_hosts: int
    blocks_per_group: int
    timers: TimerFields
    slots_address: int
    orphans_address: int
    journals_address: int
    journal_bytes: int
    root_inode: int
    extents: tuple[Extent, ...]
    segments: tuple[Segment, ...]
    generation: int = 1
    superblock_lock: int = SUPERBLOCK_LOCK_OFFSET
    probe_address: int = PROBE_OFFSET
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    extent_index: int = field(default=0)
    preempt_wait_ms: int = 0

    @property
    def fenced(self) -> bool:
        """Whether the volume's hosts fence each other by persistent reservations."""
        return bool(self.incompat & INCOMPAT_RESERVATIONS)

    @property
    def group_count(self) -> int:
        """How many resource groups all segments have together."""
        return sum(s.group_count for s in self.segments)

    def copy_offsets(self, extent: int) -> tuple[int, ...]:
        """Where the copies lie on an extent, in the order in which they are written."""
        return PRIMARY_OFFSET, SECONDARY_OFFSET, backup_offset(self.extents[extent].size_bytes)

    def pack(self, extent: int, offset: int) -> bytes:
        """The image of the copy at `offset` of extent `extent`."""
        block = bytearray(METADATA_BLOCK_BYTES)
        t = self.timers
        _BASE.pack_into(
            block, _BASE_OFFSET, FORMAT_VERSION, 0, self.compat, self.ro_compat, self.incompat,
            self.label.encode(), self.created_ns,
            self.block_bytes, METADATA_BLOCK_BYTES, self.sector_bytes, self.lock_block_bytes,
            self.lock_method, self.max_hosts, len(self.extents), len(self.segments),
            self.blocks_per_group, t.drift_ppm,
            t.heartbeat_us, t.lease_us, t.margin_us, t.break_us, t.validity_us, t.quarantine_us,
            self.superblock_lock, self.probe_address, self.slots_address, self.orphans_address,
            self.journals_address, self.root_inode, self.journal_bytes,
            extent, 0, self.preempt_wait_ms, self.extents[extent].uuid.bytes,
        )  # fmt: skip
        for i, e in enumerate(self.extents):
            _EXTENT.pack_into(block, _EXTENTS_OFFSET + i * _EXTENT.size, e.uuid.bytes, e.size_bytes, e.flags)
        for i, s in enumerate(self.segments):
            at = _SEGMENTS_OFFSET + i * _SEGMENT.size
            _SEGMENT.pack_into(block, at, s.extent, 0, s.group_count, s.first_group, s.last_group_blocks, s.start)
        address = (extent << 56) | offset
        seal(
            block, BlockType.SUPERBLOCK, address=address, generation=self.generation, volume=self.volume.bytes
        )
        block[0:8] = SIGNATURE
        return bytes(seal_checksum(block))

    def with_generation(self, generation: int) -> Superblock:
        """The same superblock as its next write."""
        return replace(self, generation=generation)


def resealed(block: bytes) -> bytes:
    """A damaged copy with the signature and a checksum that matches it as it stands: for tools that show it."""
    fixed = bytearray(block)
    fixed[: len(SIGNATURE)] = SIGNATURE
    return bytes(seal_checksum(fixed))


def backup_offset(extent_bytes: int) -> int:
    """Where the copy at the end of an extent of that size lies."""
    return (extent_bytes - BACKUP_FROM_END_BYTES) & ~0xFFFF


def segment_data_start(segment: Segment, lock_block_bytes: int, block_bytes: int) -> int:
    """The byte offset in its extent where the first block of a segment's first group lies."""
    tables_end = segment.start + segment.group_count * (lock_block_bytes + METADATA_BLOCK_BYTES)
    return -(-tables_end // block_bytes) * block_bytes


def segment_end(segment: Segment, lock_block_bytes: int, block_bytes: int, blocks_per_group: int) -> int:
    """The byte offset in its extent behind the last block of a segment's last group."""
    blocks = (segment.group_count - 1) * blocks_per_group + segment.last_group_blocks
    return segment_data_start(segment, lock_block_bytes, block_bytes) + blocks * block_bytes


def _power_of_two(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _sizes_possible(sb: Superblock) -> bool:
    return (
        _power_of_two(sb.block_bytes, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)
        and sb.sector_bytes in (512, 4096)
        and sb.lock_block_bytes % METADATA_BLOCK_BYTES == 0
        # A chunk has room for its head and one inode with its lock block.
        and METADATA_BLOCK_BYTES <= sb.lock_block_bytes <= MAX_LOCK_BLOCK_BYTES
        and sb.lock_block_bytes <= sb.block_bytes - 2 * METADATA_BLOCK_BYTES
        and 1 <= sb.max_hosts <= MAX_SLOTS
        and 1 <= len(sb.extents) <= MAX_EXTENTS
        and 1 <= len(sb.segments) <= MAX_SEGMENTS
        and MIN_GROUP_BLOCKS <= sb.blocks_per_group <= MAX_GROUP_BLOCKS
        and sb.journal_bytes % METADATA_BLOCK_BYTES == 0
        and MIN_JOURNAL_BYTES <= sb.journal_bytes <= MAX_JOURNAL_BYTES
        and sb.timers.lease_us >= 1
        and sb.extent_index < len(sb.extents)
        and all(e.size_bytes < 1 << 56 for e in sb.extents)
    )


def _fixed_parts_possible(sb: Superblock) -> bool:
    return (
        (sb.superblock_lock, sb.probe_address) == (SUPERBLOCK_LOCK_OFFSET, PROBE_OFFSET)
        and not (sb.slots_address | sb.orphans_address | sb.journals_address) % METADATA_BLOCK_BYTES
        and sb.slots_address >= SLOTS_OFFSET
        and sb.orphans_address >= sb.slots_address + sb.max_hosts * sb.lock_block_bytes
        and sb.journals_address >= sb.orphans_address + sb.max_hosts * METADATA_BLOCK_BYTES
    )


def _segments_possible(sb: Superblock) -> bool:
    # Where the next segment of each extent may begin; growing appends, so each extent's segments come in order.
    free_from = [SUPERBLOCK_LOCK_OFFSET] * len(sb.extents)
    free_from[0] = sb.journals_address + sb.max_hosts * sb.journal_bytes
    first = 0
    for s in sb.segments:
        if s.extent >= len(sb.extents) or s.first_group != first or s.group_count < 1:
            return False
        if s.start % METADATA_BLOCK_BYTES or s.start < free_from[s.extent]:
            return False
        if not 1 <= s.last_group_blocks <= sb.blocks_per_group:
            return False
        end = segment_end(s, sb.lock_block_bytes, sb.block_bytes, sb.blocks_per_group)
        if end > sb.extents[s.extent].size_bytes:
            return False
        free_from[s.extent] = end
        first += s.group_count
    # The copy at the end of each extent lies behind everything else there.
    return all(end <= backup_offset(e.size_bytes) for end, e in zip(free_from, sb.extents, strict=True))


def _check_geometry(sb: Superblock, address: int) -> None:
    """Refuse values that no `format` writes: a damaged or forged superblock must not steer I/O anywhere else."""
    if not (_sizes_possible(sb) and _fixed_parts_possible(sb) and _segments_possible(sb)):
        raise DamagedBlock(address, "superblock: its geometry is impossible")


def parse(block: bytes, address: int, device: str) -> Superblock:
    """Decode and verify one copy.

    Raises:
        DamagedBlock: no signature, a checksum that does not match, or an impossible geometry.
        UnsupportedFormat: a version or an incompatible feature that this program does not know.
    """
    if block[:8] != SIGNATURE:
        raise DamagedBlock(address, "superblock: no signature")
    if not checksum_matches(block):
        raise DamagedBlock(address, "superblock: checksum does not match")
    f = _BASE.unpack_from(block, _BASE_OFFSET)
    version, incompat = f[0], f[4]
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(device, f"the volume has format version {version}, not {FORMAT_VERSION}")
    if unknown := incompat & ~KNOWN_INCOMPAT:
        raise UnsupportedFormat(device, f"the volume uses unknown incompatible features {unknown:#x}")
    if f[8] != METADATA_BLOCK_BYTES:
        raise UnsupportedFormat(device, f"the volume has metadata blocks of {f[8]} bytes")
    extent_count, segment_count = min(f[13], MAX_EXTENTS + 1), min(f[14], MAX_SEGMENTS + 1)
    if extent_count > MAX_EXTENTS or segment_count > MAX_SEGMENTS:
        raise DamagedBlock(address, "superblock: its geometry is impossible")
    own_address, generation, volume = struct.unpack_from("<QQ16s", block, 16)
    if own_address != address & ((1 << 56) - 1) | (f[30] << 56):
        raise DamagedBlock(address, f"superblock says that its address is {own_address:#x}")
    extents = []
    for i in range(extent_count):
        uuid, size, flags = _EXTENT.unpack_from(block, _EXTENTS_OFFSET + i * _EXTENT.size)
        extents.append(Extent(UUID(bytes=uuid), size, flags))
    segments = []
    for i in range(segment_count):
        ext, _, groups, first, last, start = _SEGMENT.unpack_from(block, _SEGMENTS_OFFSET + i * _SEGMENT.size)
        segments.append(Segment(ext, start, groups, first, last))
    sb = Superblock(
        volume=UUID(bytes=volume), label=f[5].rstrip(b"\0").decode("utf-8", "replace"), created_ns=f[6],
        block_bytes=f[7], sector_bytes=f[9], lock_block_bytes=f[10], lock_method=f[11], max_hosts=f[12],
        blocks_per_group=f[15], timers=TimerFields(f[17], f[18], f[19], f[20], f[21], f[22], f[16]),
        superblock_lock=f[23], probe_address=f[24], slots_address=f[25], orphans_address=f[26],
        journals_address=f[27], root_inode=f[28], journal_bytes=f[29], extent_index=f[30],
        extents=tuple(extents), segments=tuple(segments), generation=generation,
        compat=f[2], ro_compat=f[3], incompat=incompat, preempt_wait_ms=f[32],
    )  # fmt: skip
    _check_geometry(sb, address)
    if f[33] != sb.extents[sb.extent_index].uuid.bytes:
        raise DamagedBlock(address, "superblock: its extent's UUID is not the one in its table")
    return sb
