"""A directory block: one bucket of a directory's linear hash table, or an overflow block behind one.

Owner = the directory's map id; role = the bucket's number. Covered by the directory inode's lock. The directory's map
(see `vmfs.ondisk.node`) leads from bucket numbers to the buckets' first blocks.

An entry's hash is XXH3-64 of its name, seeded with the directory's own seed. With a level L and a split point S in the
inode, the bucket of hash h is h mod 2^L, or h mod 2^(L+1) where that first result is below S: 2^L + S buckets.

Layout after the common header:

    64  overflow: address of the next block of the same bucket, or 0, u64
    72  entries u16, bytes of entries u16, hash bits that this bucket stands for u8 (L or L+1), reserved 3
    80  entries, one after the other: hash u64, inode u64, generation u32, file type u8 (a DT_* value),
        name length u8, name

A reader without the lock compares the bits with what the inode it read says: where they differ, the bucket was split
in between, and it reads again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, open_block, seal

NAME_MAX_BYTES: Final = 255
_FIELDS: Final = struct.Struct("<QHHB3x")
_ENTRY: Final = struct.Struct("<QQIBB")
_ENTRIES: Final = 80
CAPACITY_BYTES: Final = METADATA_BLOCK_BYTES - _ENTRIES


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory."""

    name: bytes
    hash: int
    inode: int
    generation: int
    type: int

    @property
    def stored_bytes(self) -> int:
        """What the entry takes in its block."""
        return _ENTRY.size + len(self.name)


def name_hash(name: bytes, seed: int) -> int:
    """The hash of a name in a directory with that seed."""
    return xxh3_64_intdigest(name, seed)


@dataclass(slots=True)
class DirectoryBlock:
    """A decoded block: its entries by name."""

    entries: dict[bytes, Entry]
    bits: int
    overflow: int = 0
    used_bytes: int = 0
    generation: int = 0

    def fits(self, entry: Entry) -> bool:
        return self.used_bytes + entry.stored_bytes <= CAPACITY_BYTES

    def add(self, entry: Entry) -> None:
        """Add an entry that fits and whose name is not there."""
        self.entries[entry.name] = entry
        self.used_bytes += entry.stored_bytes

    def remove(self, name: bytes) -> Entry:
        """Take an entry out. KeyError when it is not there."""
        entry = self.entries.pop(name)
        self.used_bytes -= entry.stored_bytes
        return entry

    def pack(self, *, address: int, volume: bytes, map_id: int, bucket: int) -> bytes:
        """The block's image, with the next generation."""
        self.generation += 1
        block = bytearray(METADATA_BLOCK_BYTES)
        _FIELDS.pack_into(block, 64, self.overflow, len(self.entries), self.used_bytes, self.bits)
        at = _ENTRIES
        for e in self.entries.values():
            _ENTRY.pack_into(block, at, e.hash, e.inode, e.generation, e.type, len(e.name))
            at += _ENTRY.size
            block[at : at + len(e.name)] = e.name
            at += len(e.name)
        seal(
            block, BlockType.DIRECTORY, address=address, generation=self.generation, volume=volume,
            owner=map_id, role=bucket,
        )  # fmt: skip
        return bytes(block)


def parse(block: bytes | memoryview, address: int, volume: bytes, map_id: int, bucket: int) -> DirectoryBlock:
    """Decode a block of bucket `bucket`. Raises DamagedBlock."""
    header = open_block(block, BlockType.DIRECTORY, address=address, volume=volume, owner=map_id)
    if header.role != bucket:
        raise DamagedBlock(address, f"directory block of bucket {header.role}, expected bucket {bucket}")
    overflow, count, used, bits = _FIELDS.unpack_from(block, 64)
    if used > CAPACITY_BYTES or bits > 63:
        raise DamagedBlock(address, "directory block: impossible size")
    entries: dict[bytes, Entry] = {}
    at, end = _ENTRIES, _ENTRIES + used
    for _ in range(count):
        if at + _ENTRY.size > end:
            raise DamagedBlock(address, "directory block: an entry is cut short")
        hash_, inode, generation, type_, length = _ENTRY.unpack_from(block, at)
        at += _ENTRY.size
        name = bytes(block[at : at + length])
        at += length
        if not length or at > end or b"/" in name or b"\0" in name or name in entries:
            raise DamagedBlock(address, "directory block: an entry's name is impossible")
        entries[name] = Entry(name, hash_, inode, generation, type_)
    if at != end:
        raise DamagedBlock(address, "directory block: bytes left over behind the entries")
    return DirectoryBlock(entries, bits, overflow, used, header.generation)
