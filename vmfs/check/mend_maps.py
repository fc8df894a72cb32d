"""Mends maps and inodes: lost parts are marked so that reads of them fail, the rest is kept."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator

from vmfs.check.inodes import FILE_TYPES
from vmfs.check.kinds import Kind
from vmfs.check.shop import Allocator, Shop
from vmfs.check.survey import Survey, find_sharers
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import node
from vmfs.ondisk.header import checksum_matches
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import (
    ADDRESS_MASK,
    HOLE,
    LOST,
    POINTERS_PER_NODE,
    PUNCHED,
    STATE_MASK,
    UNWRITTEN,
    WRITTEN,
)
from vmfs.ondisk.orphans import OrphanKind

_STATE_AND_RESERVED = 0xFFF
_NEW_DIRECTORY_MODE = stat.S_IFDIR | 0o700


def mend_maps(shop: Shop, seen: Survey) -> None:
    """Go over the maps in which something is wrong, and cut off what lies behind a file's end."""
    waiting = seen.named.get(OrphanKind.REMOVE, set()) | seen.named.get(OrphanKind.TRIM, set())
    for number, facts in seen.inodes.facts.items():
        if facts.is_directory:
            continue
        early = facts.ends_early and number not in waiting
        if early or number in seen.maps.broken:
            _MapMender(shop, seen, seen.inodes.read(number), early).mend()


def finish_truncations(shop: Shop, seen: Survey) -> None:
    """Do what is left of truncations on the lists of hosts that are gone: no lock of theirs keeps writers away now."""
    size = shop.volume.superblock.block_bytes
    sector = shop.volume.superblock.sector_bytes
    for number in seen.named.get(OrphanKind.TRIM, set()):
        facts = seen.inodes.facts.get(number)
        if facts is None or facts.is_directory or number in seen.maps.broken:
            continue
        inode = seen.inodes.read(number)
        last, rest = divmod(inode.size, size)
        for block, address in _written_blocks(seen, inode):
            if rest and block == last:
                start = rest // sector * sector
                edge = shop.volume.extents.read(address + start, sector)[: rest - start]
                shop.alone.io.write(address + start, edge.ljust(size - start, b"\0"))
                shop.alone.io.flush()
        _MapMender(shop, seen, inode, cut=True).mend()
        shop.finished.add(number)
        shop.done(f"inode {number}: its truncation to {inode.size} bytes is finished")


def _written_blocks(seen: Survey, inode: Inode) -> Iterator[tuple[int, int]]:
    """(block number, address) of the blocks of its own that hold data."""
    for first, pointers in seen.maps.leaves(inode, claim=False):
        for at, pointer in enumerate(pointers):
            if pointer & STATE_MASK == WRITTEN and pointer != LOST:
                yield first + at, pointer & ADDRESS_MASK


class _MapMender:
    """One inode's map, from its root down."""

    def __init__(self, shop: Shop, seen: Survey, inode: Inode, cut: bool) -> None:
        self._shop = shop
        self._seen = seen
        self._inode = inode
        self._end = -(-inode.size // shop.volume.superblock.block_bytes)
        self._cut = cut
        self._lost = self._freed = 0

    def mend(self) -> None:
        inode = self._inode
        if self._pointers(inode.root, inode.height, 0):
            inode.version += 1
            self._shop.write_inode(inode)
        if self._lost:
            self._shop.done(f"inode {inode.number}: {self._lost} pointers marked lost: reads of what they led to fail")
        if self._freed:
            self._shop.done(f"inode {inode.number}: {self._freed} blocks behind its end freed")

    def _pointers(self, pointers: array[int], level: int, first: int) -> bool:
        """Go over one node's pointers; whether any was changed."""
        changed = False
        for position, pointer in enumerate(pointers):
            if not pointer or pointer == LOST:
                continue
            index = first + position
            new = self._data(pointer, index) if level == 0 else self._node(pointer, level - 1, index)
            if new != pointer:
                pointers[position] = new
                changed = True
        return changed

    def _data(self, pointer: int, block: int) -> int:
        state = pointer & _STATE_AND_RESERVED
        if self._cut and block >= self._end and state == WRITTEN:
            self._freed += 1
            return self._nothing(block)
        if pointer == PUNCHED or (state in (WRITTEN, UNWRITTEN) and self._is_data(pointer - state)):
            return pointer
        self._lost += 1
        return LOST if block < self._end else self._nothing(block)

    def _nothing(self, block: int) -> int:
        return PUNCHED if self._inode.parent and block < self._inode.inherit_limit else HOLE

    def _is_data(self, address: int) -> bool:
        geometry = self._shop.volume.geometry
        try:
            group, index = geometry.group_of(address)
        except DamagedBlock:
            return False
        return geometry.block_address(group, index) == address and address not in self._seen.space.chunks

    def _node(self, pointer: int, level: int, index: int) -> int:
        address = pointer & ADDRESS_MASK
        volume = self._shop.volume
        try:
            head, unit = volume.geometry.chunk_of(address)
        except DamagedBlock:
            head = unit = 0
        if pointer & _STATE_AND_RESERVED != WRITTEN or not unit or head not in self._seen.space.chunks:
            self._lost += 1
            return LOST
        try:
            block = self._seen.source.unit(address)
            pointers, generation = node.parse(block, address, volume.uuid, self._inode.map_id, level, index)
        except DeviceError:
            return pointer  # the storage may give it another day
        except DamagedBlock:
            self._lost += 1
            if checksum_matches(block) or self._seen.space.is_claimed(address):
                return LOST  # it is whole, and another's
            pointers, generation = self._all_lost(level, index), 0
        else:
            if not self._pointers(pointers, level, index * POINTERS_PER_NODE):
                return pointer
        self._shop.mender.one(
            address,
            node.pack(
                pointers, address=address, volume=volume.uuid, map_id=self._inode.map_id, level=level, index=index,
                generation=generation + 1,
            ),
        )  # fmt: skip
        return pointer

    def _all_lost(self, level: int, index: int) -> array[int]:
        """A node in the place of one that is gone: nothing is known of its blocks up to the file's end."""
        span = node.span(level)
        first = index * POINTERS_PER_NODE
        return array("Q", [LOST if (first + i) * span < self._end else HOLE for i in range(POINTERS_PER_NODE)])


def mend_shared_blocks(shop: Shop, seen: Survey) -> None:
    """Of several owners of a block each but the first gets a copy of its own, in its own map."""
    allocator = Allocator(shop, seen)
    moves: dict[int, dict[int, int]] = {}
    for address, owners in find_sharers(seen).items():
        for number, block in owners[1:]:
            new = allocator.block()
            shop.alone.io.write(new, shop.volume.extents.read(address, shop.volume.superblock.block_bytes))
            moves.setdefault(number, {})[block] = new
    allocator.seal()
    for number, blocks in moves.items():
        inode = seen.inodes.read(number)
        for block, new in blocks.items():
            _set_pointer(shop, seen, inode, block, new)
        shop.write_inode(inode)
        shop.done(f"inode {number}: {len(blocks)} blocks that others use too are copied; look at its content")
        shop.mender.flush()


def _set_pointer(shop: Shop, seen: Survey, inode: Inode, block: int, address: int) -> None:
    """Lead a block elsewhere; the state stays. A node is changed on the disk, the root in `inode`."""
    level, pointers, holder = inode.height, inode.root, 0
    generation = 0
    while True:
        index = block // node.span(level)
        position = index if level == inode.height else index % POINTERS_PER_NODE
        if level == 0:
            pointers[position] = address | pointers[position] & STATE_MASK
            break
        level -= 1
        holder = pointers[position] & ADDRESS_MASK
        index = block // node.span(level + 1)
        image = shop.volume.extents.read(holder, 4096)
        pointers, generation = node.parse(image, holder, shop.volume.uuid, inode.map_id, level, index)
    if holder:
        image = node.pack(
            pointers, address=holder, volume=shop.volume.uuid, map_id=inode.map_id, level=0,
            index=block // POINTERS_PER_NODE, generation=generation + 1,
        )  # fmt: skip
        shop.mender.together({holder: image})


def mend_inodes(shop: Shop, seen: Survey) -> None:
    """Inodes that cannot be read, or contradict themselves: directories are made anew, files go when it was asked."""
    root = shop.volume.superblock.root_inode
    parents = {f.directory_parent for f in seen.inodes.facts.values() if f.is_directory}
    for number in sorted(seen.inodes.damaged):
        named = seen.directories.to_damaged.get(number)
        if number == root or number in parents or (named is not None and named[1].type == stat.S_IFDIR >> 12):
            _new_directory(shop, number, named[1].generation if named is not None else 0)
        elif shop.remove_damaged:
            shop.clear_inode(number, shop.random.getrandbits(31) | 1)
            shop.done(f"inode {number}: damaged, removed")
    for number, facts in seen.inodes.facts.items():
        if stat.S_IFMT(facts.mode) not in FILE_TYPES or (number == root and not facts.is_directory):
            named = seen.directories.to_damaged.get(number)
            kind = stat.S_IFDIR if number == root else named[1].type << 12 if named is not None else stat.S_IFREG
            inode = seen.inodes.read(number)
            inode.mode = kind | stat.S_IMODE(inode.mode)
            shop.write_inode(inode)
            shop.done(f"inode {number}: its impossible mode is now {inode.mode:#o}")
    if shop.remove_damaged:
        for finding in seen.report.findings:
            if finding.kind is Kind.LAYER_MISSING and finding.inode is not None:
                shop.clear_inode(finding.inode, seen.inodes.facts[finding.inode].generation)
                shop.done(f"inode {finding.inode}: what it inherits is gone, removed")


def _new_directory(shop: Shop, number: int, generation: int) -> None:
    """An empty directory where an unreadable one was; its names come back from what is left of its blocks."""
    wall = shop.clock.wall_ns()
    root = shop.volume.superblock.root_inode
    shop.anew.add(number)
    shop.write_inode(
        Inode(
            number, mode=_NEW_DIRECTORY_MODE | (0o755 if number == root else 0), nlink=2, version=1,
            inode_generation=generation or shop.random.getrandbits(31) | 1, atime_ns=wall, mtime_ns=wall,
            ctime_ns=wall, btime_ns=wall, map_id=shop.new_id(), directory_parent=root, seed=shop.new_id(),
        )
    )  # fmt: skip
    shop.done(f"inode {number} at {inode_address(number):#x}: damaged; made anew as a directory of mode 0700")
