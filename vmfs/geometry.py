"""Where the parts of a volume lie: pure arithmetic over its superblock, no I/O.

All addresses are volume addresses (extent index in bits 56..63, byte offset in the extent below). The layout itself is
specified in `vmfs.ondisk.superblock`; the chunks' units in `vmfs.ondisk.chunk`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from vmfs.devices.extents import make_address
from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.superblock import Segment, Superblock, segment_data_start


@dataclass(frozen=True, slots=True)
class _Placed:
    """A segment with the addresses that follow from its start."""

    first_group: int
    group_count: int
    last_group_blocks: int
    locks: int
    blocks: int
    data: int
    end: int


class Geometry:
    """Addresses of everything whose place follows from the superblock. Immutable, safe for any thread."""

    __slots__ = ("_block_shift", "_by_data", "_data_starts", "_first_groups", "_placed", "_sb", "group_bytes",
                 "group_count", "inode_units", "units_per_chunk")  # fmt: skip

    def __init__(self, superblock: Superblock) -> None:
        """`superblock` has been verified (see `vmfs.ondisk.superblock.parse`)."""
        self._sb = sb = superblock
        self._block_shift = sb.block_bytes.bit_length() - 1
        self.group_bytes = sb.blocks_per_group * sb.block_bytes
        self.group_count = sb.group_count
        self.units_per_chunk = sb.block_bytes // METADATA_BLOCK_BYTES
        self.inode_units = sb.lock_block_bytes // METADATA_BLOCK_BYTES + 1
        self._placed = [self._place(s) for s in sb.segments]
        self._first_groups = [p.first_group for p in self._placed]
        self._by_data = sorted(self._placed, key=lambda p: p.data)
        self._data_starts = [p.data for p in self._by_data]

    def _place(self, s: Segment) -> _Placed:
        sb = self._sb
        start = make_address(s.extent, s.start)
        data = make_address(s.extent, segment_data_start(s, sb.lock_block_bytes, sb.block_bytes))
        blocks = (s.group_count - 1) * sb.blocks_per_group + s.last_group_blocks
        return _Placed(
            first_group=s.first_group,
            group_count=s.group_count,
            last_group_blocks=s.last_group_blocks,
            locks=start,
            blocks=start + s.group_count * sb.lock_block_bytes,
            data=data,
            end=data + blocks * sb.block_bytes,
        )

    # -- fixed tables ------------------------------------------------------------------------------

    def slot_address(self, slot: int) -> int:
        """The lock block that holds a host's heartbeat slot. IndexError for a slot that there is not."""
        return self._sb.slots_address + self._slot(slot) * self._sb.lock_block_bytes

    def orphans_address(self, slot: int) -> int:
        """A slot's orphan list. IndexError for a slot that there is not."""
        return self._sb.orphans_address + self._slot(slot) * METADATA_BLOCK_BYTES

    def journal_address(self, slot: int) -> int:
        """The header block of a slot's journal. IndexError for a slot that there is not."""
        return self._sb.journals_address + self._slot(slot) * self._sb.journal_bytes

    @property
    def journal_blocks(self) -> int:
        """Metadata blocks of a journal, its header blocks included."""
        return self._sb.journal_bytes // METADATA_BLOCK_BYTES

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self._sb.max_hosts:
            raise IndexError(f"slot {slot} of {self._sb.max_hosts}")
        return slot

    # -- groups ------------------------------------------------------------------------------------

    def _segment_of(self, group: int) -> _Placed:
        if not 0 <= group < self.group_count:
            raise IndexError(f"group {group} of {self.group_count}")
        return self._placed[bisect_right(self._first_groups, group) - 1]

    def group_lock_address(self, group: int) -> int:
        """The group's lock block. IndexError for a group that there is not."""
        p = self._segment_of(group)
        return p.locks + (group - p.first_group) * self._sb.lock_block_bytes

    def group_block_address(self, group: int) -> int:
        """The group's block with its bitmaps. IndexError for a group that there is not."""
        p = self._segment_of(group)
        return p.blocks + (group - p.first_group) * METADATA_BLOCK_BYTES

    def group_data_start(self, group: int) -> int:
        """The address of block 0 of the group. IndexError for a group that there is not."""
        p = self._segment_of(group)
        return p.data + (group - p.first_group) * self.group_bytes

    def group_blocks(self, group: int) -> int:
        """How many blocks the group has. IndexError for a group that there is not."""
        p = self._segment_of(group)
        last = group == p.first_group + p.group_count - 1
        return p.last_group_blocks if last else self._sb.blocks_per_group

    def block_address(self, group: int, index: int) -> int:
        """The address of a group's block. IndexError for one that there is not."""
        if not 0 <= index < self.group_blocks(group):
            raise IndexError(f"block {index} of group {group}")
        return self.group_data_start(group) + index * self._sb.block_bytes

    def group_of(self, address: int) -> tuple[int, int]:
        """The group and the number in it of the block that `address` lies in (anywhere in it).

        Raises DamagedBlock for an address that lies in no group's blocks: it came from a damaged pointer.
        """
        at = bisect_right(self._data_starts, address) - 1
        if at < 0 or address >= self._by_data[at].end:
            raise DamagedBlock(address, "no block of any resource group lies there")
        p = self._by_data[at]
        group, rest = divmod(address - p.data, self.group_bytes)
        return p.first_group + group, rest >> self._block_shift

    def total_blocks(self) -> int:
        """How many blocks all groups have together."""
        return sum((p.end - p.data) >> self._block_shift for p in self._placed)

    # -- chunks and inodes -------------------------------------------------------------------------

    def chunk_of(self, address: int) -> tuple[int, int]:
        """The address of the chunk (a block's start) that a unit lies in, and the unit's number in it.

        Raises DamagedBlock for an address outside all groups, or of no whole unit.
        """
        group, index = self.group_of(address)
        head = self.group_data_start(group) + index * self._sb.block_bytes
        unit, rest = divmod(address - head, METADATA_BLOCK_BYTES)
        if rest:
            raise DamagedBlock(address, "not the start of a metadata block")
        return head, unit

    def inode_lock_address(self, number: int) -> int:
        """The lock block of an inode: it lies just before the inode's block."""
        return inode_address(number) - self._sb.lock_block_bytes

    def check_inode(self, number: int) -> None:
        """Raise DamagedBlock unless an inode of that number, lock block included, can lie in a chunk here."""
        _, unit = self.chunk_of(inode_address(number))
        if unit < self.inode_units:  # unit 0 is the chunk's head, and the lock block comes first
            raise DamagedBlock(inode_address(number), "no inode can lie there")
