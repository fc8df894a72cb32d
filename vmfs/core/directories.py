"""Directories: linear hash tables of names (see `vmfs.ondisk.directory`).

Changes are made under the directory's lock, within an operation. Readers without the lock may meet a bucket that was
split after they read the inode: its hash bits tell, and they look again (`Changed`).

Order of reading: by the hash's bits from the lowest up, that is, by the bit-reversed hash. A bucket is a run of that
order, a split cuts the run in two, so a cookie stays good while the directory grows. A cookie is the reversed hash of
the entry it lies behind, with 4 bits to tell names of equal hash apart.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmfs.core.filemap import MapWriter, NodeSource, leaf
from vmfs.core.objects import DirectoryObject, InodeObject
from vmfs.core.store import Store
from vmfs.core.transactions import Operation
from vmfs.core.units import Units
from vmfs.core.unlocked import Changed
from vmfs.errors import DamagedBlock, NoSpace
from vmfs.geometry import Geometry
from vmfs.ondisk.directory import DirectoryBlock, Entry, name_hash
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.node import ADDRESS_MASK, POINTERS_PER_NODE, WRITTEN

COOKIE_HASH_BITS: Final = 58  # with 4 bits of ordinal: positive as a signed 64-bit offset, "." and ".." below
_ORDINAL_BITS: Final = 4
_FIRST_COOKIE: Final = 16  # cookies below belong to "." and ".."
_CHAIN_MAX_BLOCKS: Final = 1 << 16  # a longer overflow chain is a damaged one

ReadBlock = Callable[[int, int, int], DirectoryBlock]
"""(address, map id, bucket) -> the block. Raises DamagedBlock, DeviceError."""


def bucket_of(inode: Inode, hash_: int) -> tuple[int, int]:
    """(bucket, its hash bits) of a hash."""
    bucket = hash_ & ((1 << inode.level) - 1)
    if bucket < inode.split:
        return hash_ & ((2 << inode.level) - 1), inode.level + 1
    return bucket, inode.level


def bucket_bits(inode: Inode, bucket: int) -> int:
    """The hash bits that a bucket stands for."""
    split_already = bucket < inode.split or bucket >= 1 << inode.level
    return inode.level + 1 if split_already else inode.level


def _bucket_address(inode: Inode, source: NodeSource, bucket: int) -> int:
    pointers = leaf(inode, source, bucket // POINTERS_PER_NODE)
    return pointers[bucket % POINTERS_PER_NODE] & ADDRESS_MASK if pointers is not None else 0


def _blocks(inode: Inode, source: NodeSource, read: ReadBlock, bucket: int) -> Iterator[tuple[int, DirectoryBlock]]:
    """The blocks of a bucket with their addresses. Raises Changed when the bucket is not what the inode says."""
    address = _bucket_address(inode, source, bucket)
    bits = bucket_bits(inode, bucket)
    for _ in range(_CHAIN_MAX_BLOCKS):
        if not address:
            return
        block = read(address, inode.map_id, bucket)
        if block.bits != bits:
            raise Changed
        yield address, block
        address = block.overflow
    raise DamagedBlock(address, "a directory's overflow chain does not end")


def find(inode: Inode, source: NodeSource, read: ReadBlock, name: bytes) -> Entry | None:
    """The entry of a name. Raises Changed, DamagedBlock, DeviceError."""
    bucket, _ = bucket_of(inode, name_hash(name, inode.seed))
    for _, block in _blocks(inode, source, read, bucket):
        entry = block.entries.get(name)
        if entry is not None:
            return entry
    return None


def _reverse(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2) if bits else 0


def position_of(cookie: int) -> int:
    """Where in the order of reading the entries behind a cookie begin."""
    return max(0, (cookie - _FIRST_COOKIE) >> _ORDINAL_BITS)


def list_bucket(
    inode: Inode, source: NodeSource, read: ReadBlock, position: int
) -> tuple[list[tuple[int, Entry]], int | None]:
    """((cookie, entry) of the whole bucket at a position, in cookie order; the next bucket's position, None: no more).

    Raises Changed, DamagedBlock, DeviceError.
    """
    bucket, bits = bucket_of(inode, _reverse(position, COOKIE_HASH_BITS))
    places: list[tuple[int, Entry]] = []
    for _, block in _blocks(inode, source, read, bucket):
        for entry in block.entries.values():
            places.append((_reverse(entry.hash & ((1 << COOKIE_HASH_BITS) - 1), COOKIE_HASH_BITS), entry))
    places.sort(key=lambda item: (item[0], item[1].hash, item[1].name))
    found: list[tuple[int, Entry]] = []
    ordinal, before = 0, -1
    for place, entry in places:
        ordinal = ordinal + 1 if place == before else 0
        before = place
        found.append(((place << _ORDINAL_BITS | min(ordinal, 15)) + _FIRST_COOKIE, entry))
    width = COOKIE_HASH_BITS - bits
    following = ((position >> width) + 1) << width
    return found, following if following < 1 << COOKIE_HASH_BITS else None


@dataclass(slots=True)
class _Bucket:
    """A bucket's blocks, first to last."""

    number: int
    bits: int
    blocks: list[DirectoryObject]


class DirectoryWriter:
    """Changes to directories whose locks are held; the control mutex is held too."""

    def __init__(self, store: Store, units: Units, maps: MapWriter, geometry: Geometry) -> None:
        self._store = store
        self._units = units
        self._maps = maps
        self._geometry = geometry

    def _bucket(self, obj: InodeObject, bucket: int) -> _Bucket:
        inode = obj.inode
        found = _Bucket(bucket, bucket_bits(inode, bucket), [])
        source = _StoreNodes(self._store, obj.lock)
        address = _bucket_address(inode, source, bucket)
        while address:
            block = self._store.directory(address, obj.lock, inode.map_id, bucket)
            if block.block.bits != found.bits or len(found.blocks) > _CHAIN_MAX_BLOCKS:
                raise DamagedBlock(address, f"bucket {bucket} of directory {inode.number} does not fit its inode")
            found.blocks.append(block)
            address = block.block.overflow
        return found

    def find(self, obj: InodeObject, name: bytes) -> Entry | None:
        """The entry of a name. Raises DamagedBlock, DeviceError."""
        bucket, _ = bucket_of(obj.inode, name_hash(name, obj.inode.seed))
        for block in self._bucket(obj, bucket).blocks:
            entry = block.block.entries.get(name)
            if entry is not None:
                return entry
        return None

    def insert(self, op: Operation, obj: InodeObject, entry: Entry) -> None:
        """Add an entry whose name is not there. Raises NoSpace: the operation is to be undone and tried again."""
        op.touch(obj)
        number, bits = bucket_of(obj.inode, entry.hash)
        bucket = self._bucket(obj, number)
        overflowed = self._add(op, obj, bucket, entry)
        obj.inode.entry_count += 1
        obj.inode.version += 1
        if overflowed and bits < 60:
            self._split(op, obj)

    def remove(self, op: Operation, obj: InodeObject, name: bytes) -> Entry:
        """Take an entry out. KeyError when it is not there."""
        number, _ = bucket_of(obj.inode, name_hash(name, obj.inode.seed))
        for block in self._bucket(obj, number).blocks:
            if name in block.block.entries:
                op.touch(obj)
                op.touch(block)
                obj.inode.entry_count -= 1
                obj.inode.version += 1
                return block.block.remove(name)
        raise KeyError(name)

    def replace(self, op: Operation, obj: InodeObject, entry: Entry) -> Entry:
        """Make a name that is there lead elsewhere; returns the entry that was there. KeyError when it is not."""
        number, _ = bucket_of(obj.inode, entry.hash)
        for block in self._bucket(obj, number).blocks:
            old = block.block.entries.get(entry.name)
            if old is not None:
                op.touch(obj)
                op.touch(block)
                obj.inode.version += 1
                block.block.entries[entry.name] = entry
                return old
        raise KeyError(entry.name)

    def _add(self, op: Operation, obj: InodeObject, bucket: _Bucket, entry: Entry) -> bool:
        """Put an entry into a bucket; whether the bucket is longer than one block now."""
        for block in bucket.blocks:
            if block.block.fits(entry):
                op.touch(block)
                block.block.add(entry)
                return len(bucket.blocks) > 1
        new = self._new_block(op, obj, bucket)
        new.block.add(entry)
        return len(bucket.blocks) > 1

    def _new_block(self, op: Operation, obj: InodeObject, bucket: _Bucket) -> DirectoryObject:
        found = self._units.allocate_unit(op)
        if found is None:
            raise NoSpace("the volume", "a directory block")
        block = DirectoryObject(found[0], obj.lock, obj.inode.map_id, bucket.number, DirectoryBlock({}, bucket.bits))
        op.add(block)
        self._store.put(block)
        op.on_undo(lambda: self._store.remove(block))
        if bucket.blocks:
            op.touch(bucket.blocks[-1])
            bucket.blocks[-1].block.overflow = block.address
        else:
            self._maps.set(op, obj, bucket.number, block.address | WRITTEN)
        obj.inode.own_blocks += 1
        obj.inode.size += METADATA_BLOCK_BYTES
        bucket.blocks.append(block)
        return block

    def _split(self, op: Operation, obj: InodeObject) -> None:
        """Split the bucket at the split point into itself and the next new one."""
        inode = obj.inode
        old = self._bucket(obj, inode.split)
        new_number = (1 << inode.level) + inode.split
        bits = inode.level + 1
        entries = [e for block in old.blocks for e in block.block.entries.values()]
        stay = [e for e in entries if e.hash & ((1 << bits) - 1) == old.number]
        go = [e for e in entries if e.hash & ((1 << bits) - 1) != old.number]
        for block in old.blocks:
            op.touch(block)
            block.block.entries = {}
            block.block.used_bytes = 0
            block.block.bits = bits
        old.bits = bits
        for entry in stay:
            self._add(op, obj, old, entry)
        # Blocks left empty stay in the bucket's chain: they are the room of the entries to come.
        inode.split += 1
        if inode.split == 1 << inode.level:
            inode.level += 1
            inode.split = 0
        new = _Bucket(new_number, bits, [])
        for entry in go:
            self._add(op, obj, new, entry)


class _StoreNodes:
    """The nodes of a directory's map, from the store."""

    __slots__ = ("_lock", "_store")

    def __init__(self, store: Store, lock: int) -> None:
        self._store = store
        self._lock = lock

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        return self._store.node(address, self._lock, map_id, level, index).pointers


def new_entry(inode: Inode, name: bytes, number: int, generation: int, type_: int) -> Entry:
    """An entry for a name in that directory."""
    return Entry(name, name_hash(name, inode.seed), number, generation, type_)

