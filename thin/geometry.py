"""The cylinder/head/sector geometry that a descriptor records for firmware that still asks for one.

It decides nothing about where data lies (that is by sector number), so a wrong one in somebody else's
descriptor is reported, not refused. What we write is what VMware's tools compute:

- ide: 16 heads, 63 sectors, at most 16383 cylinders (ATA-5: the value that means "use LBA");
- SCSI adapters: 64 heads x 32 sectors below 1 GiB, 128 x 32 below 2 GiB, else 255 x 63 (the translation
  of the BusLogic and LSI Logic BIOS), cylinders without an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

SECTOR_BYTES = 512
"""The unit of every size in a descriptor, whatever the disk's own sector size is."""

ATA_MAX_CYLINDERS = 16383
MAX_HEADS = 255
"""INT 13h counts heads in 8 bits, and DOS fails on 256."""
MAX_SECTORS_PER_TRACK = 63
"""INT 13h counts sectors in 6 bits, from one."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Geometry:
    """A disk's geometry, in counts."""

    cylinders: int
    heads: int
    sectors: int

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if self.cylinders < 1:
            return f"geometry of {self.cylinders} cylinders (at least 1 is needed)"
        if not 1 <= self.heads <= MAX_HEADS:
            return f"geometry of {self.heads} heads (1 to {MAX_HEADS} are possible)"
        if not 1 <= self.sectors <= MAX_SECTORS_PER_TRACK:
            return f"geometry of {self.sectors} sectors a track (1 to {MAX_SECTORS_PER_TRACK} are possible)"
        return None

    def resized(self, size_bytes: int, adapter: str) -> Geometry:
        """The geometry of this disk grown to `size_bytes`: only the cylinders change.

        Heads and sectors stay, because a boot loader may have CHS addresses in them on the disk.
        """
        return _fit(size_bytes, self.heads, self.sectors, adapter)


def for_disk(size_bytes: int, adapter: str) -> Geometry:
    """The geometry of a new disk of `size_bytes` behind `adapter` (a `ddb.adapterType`)."""
    if _is_ide(adapter):
        return _fit(size_bytes, 16, 63, adapter)
    if size_bytes < _GIB:
        return _fit(size_bytes, 64, 32, adapter)
    if size_bytes < 2 * _GIB:
        return _fit(size_bytes, 128, 32, adapter)
    return _fit(size_bytes, 255, 63, adapter)


def _is_ide(adapter: str) -> bool:
    return adapter.casefold() == "ide"


def _fit(size_bytes: int, heads: int, sectors: int, adapter: str) -> Geometry:
    cylinders = max(1, size_bytes // (heads * sectors * SECTOR_BYTES))
    if _is_ide(adapter):
        cylinders = min(cylinders, ATA_MAX_CYLINDERS)
    return Geometry(cylinders, heads, sectors)
