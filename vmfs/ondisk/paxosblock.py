"""A lock block as a Disk-Paxos register: one sector for every host that can have the volume mounted.

On volumes of the lock method PAXOS a lock block (`vmfs.ondisk.lockblock`) has `max_hosts` sectors of the volume's
sector size. Sector i is written by the host in heartbeat slot i alone, whole, and holds the last image which that host
proposed or finished, together with its ballots. Little-endian; in each sector:

    offset  size  field
         0   448  the image's record (a slot or a lock, with its own magic and checksum); zeros while `bal` is 0
       448     4  magic b"AZPX"
       452     2  this sector's index
       454     2  sectors in the block
       456     8  mbal: the highest ballot that this host has begun here
       464     8  bal: the ballot at which it proposed the image; 0: it never proposed any
       472     8  parent: XXH3-64 of the record that this image replaced; 0 for a register's first image
       480    16  claimant: a random number while a host claims the slot of this block (`vmfs.cluster.entering`)
       496     8  zero
       504     8  checksum: XXH3-64 of bytes 0..503, the block's address u64, and the first 8 bytes of the volume's UUID
       512        zeros up to the end of a 4096-byte sector

Ballots are unique: ballot = round * sectors + index + 1. The image of the highest `bal` is what the next swap starts
from. It is settled when, after it has been read, no sector shows a higher `mbal`. A new register has its first image
in one sector with mbal = bal = index + 1; the others have ballots of 0.

Crash rules: a sector is replaced as a whole; only bytes 0..511 of it are ever written after the block was made.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from vmfs.errors import DamagedBlock
from vmfs.ondisk.lockblock import RECORD_BYTES

MAGIC: Final = b"AZPX"
SECTOR_USED_BYTES: Final = 512
NO_CLAIMANT: Final = bytes(16)
NO_RECORD: Final = bytes(RECORD_BYTES)

_FIELDS: Final = struct.Struct("<4sHHQQQ16sQ")
_CHECKSUM: Final = struct.Struct("<Q")
_CHECKSUM_OFFSET: Final = 504


@dataclass(frozen=True, slots=True)
class PaxosLayout:
    """How the lock blocks of a volume are divided: `count` sectors, `sector_bytes` apart."""

    sector_bytes: int
    count: int
    volume_prefix: bytes

    @property
    def used_bytes(self) -> int:
        """The part of a lock block that holds sectors."""
        return self.sector_bytes * self.count


@dataclass(frozen=True, slots=True)
class Sector:
    """One host's sector, decoded. `record` is 448 bytes, NO_RECORD while `bal` is 0."""

    index: int
    mbal: int = 0
    bal: int = 0
    parent: int = 0
    record: bytes = NO_RECORD
    claimant: bytes = NO_CLAIMANT

    def pack(self, layout: PaxosLayout, address: int) -> bytes:
        """The sector's 512 bytes, for the lock block at `address`."""
        sector = bytearray(SECTOR_USED_BYTES)
        sector[:RECORD_BYTES] = self.record
        _FIELDS.pack_into(
            sector, RECORD_BYTES, MAGIC, self.index, layout.count, self.mbal, self.bal, self.parent, self.claimant, 0
        )
        _CHECKSUM.pack_into(sector, _CHECKSUM_OFFSET, _checksum(sector, layout, address))
        return bytes(sector)


@dataclass(frozen=True, slots=True)
class PaxosBlock:
    """All sectors of a register, each as it was when it was read."""

    sectors: tuple[Sector, ...]

    @property
    def top(self) -> Sector:
        """The sector with the image of the highest ballot."""
        return max(self.sectors, key=lambda s: s.bal)

    @property
    def highest(self) -> int:
        """The highest ballot that anyone has begun."""
        return max(s.mbal for s in self.sectors)


def record_hash(record: bytes) -> int:
    """How a sector names the record that its own replaced; never 0."""
    return xxh3_64_intdigest(record[:RECORD_BYTES]) or 1


def next_ballot(above: int, layout: PaxosLayout, index: int) -> int:
    """The lowest ballot of sector `index` that is above `above`."""
    rounds = max(0, above - index - 1) // layout.count + 1
    ballot = rounds * layout.count + index + 1
    return ballot - layout.count if ballot - layout.count > above else ballot


def fresh_block(image: bytes, layout: PaxosLayout, address: int, block_bytes: int, index: int = 0) -> bytes:
    """A whole new lock block that holds `image`, proposed by sector `index`."""
    block = bytearray(block_bytes)
    for i in range(layout.count):
        own = Sector(i, i + 1, i + 1, 0, image[:RECORD_BYTES]) if i == index else Sector(i)
        block[i * layout.sector_bytes : i * layout.sector_bytes + SECTOR_USED_BYTES] = own.pack(layout, address)
    return bytes(block)


def parse_block(block: bytes | memoryview, layout: PaxosLayout, address: int) -> PaxosBlock:
    """Decode the sectors of the lock block read from `address`.

    Raises DamagedBlock when any of them is not whole: what a lost sector said may be what counts.
    """
    if not any(block[: layout.used_bytes]):
        raise DamagedBlock(address, "Paxos register: never formatted (all zeros)")
    sectors = []
    for i in range(layout.count):
        raw = block[i * layout.sector_bytes : i * layout.sector_bytes + SECTOR_USED_BYTES]
        sectors.append(parse_sector(bytes(raw), layout, address, i))
    parsed = PaxosBlock(tuple(sectors))
    if not parsed.top.bal:
        raise DamagedBlock(address, "Paxos register: it holds no image")
    return parsed


def spare_bytes_are_zero(block: bytes, layout: PaxosLayout) -> bool:
    """Whether everything in a lock block that no sector uses is zero."""
    gaps: Sequence[slice] = [
        slice(i * layout.sector_bytes + SECTOR_USED_BYTES, (i + 1) * layout.sector_bytes) for i in range(layout.count)
    ]
    return not any(any(block[gap]) for gap in gaps) and not any(block[layout.used_bytes :])


def _checksum(sector: bytes | bytearray, layout: PaxosLayout, address: int) -> int:
    return xxh3_64_intdigest(bytes(sector[:_CHECKSUM_OFFSET]) + address.to_bytes(8, "little") + layout.volume_prefix)


def parse_sector(sector: bytes, layout: PaxosLayout, address: int, index: int) -> Sector:
    """Decode sector `index` (SECTOR_USED_BYTES of it) of the lock block at `address`. Raises DamagedBlock."""
    if len(sector) != SECTOR_USED_BYTES or _CHECKSUM.unpack_from(sector, _CHECKSUM_OFFSET)[0] != _checksum(
        sector, layout, address
    ):
        raise DamagedBlock(address, f"Paxos register: sector {index} has a checksum that does not match")
    magic, own, count, mbal, bal, parent, claimant, zero = _FIELDS.unpack_from(sector, RECORD_BYTES)
    record = sector[:RECORD_BYTES]
    if magic != MAGIC or (own, count) != (index, layout.count) or zero:
        raise DamagedBlock(address, f"Paxos register: sector {index} is not what it must be")
    if mbal < bal or any(b and (b - 1) % count != index for b in (mbal, bal)) or bool(bal) != any(record):
        raise DamagedBlock(address, f"Paxos register: sector {index} has impossible ballots ({mbal}, {bal})")
    return Sector(index, mbal, bal, parent, record, claimant)
