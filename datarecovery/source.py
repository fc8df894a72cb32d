"""The port through which disks are read, and the words in which a source says how it found what changed.

A backup takes the highest rung of a ladder that a disk offers, and names it with its reason:

1. `vmfs-diff`: a clone of the disk's file on a VMFS volume, compared with the clone of the last backup;
2. `dirty-bitmap`: a hypervisor's persistent bitmap of written blocks (no source of this package offers it yet);
3. `full-read`: everything is read, and compared with the last restore point by hash.

A lower rung is taken rather than the backup failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from datarecovery.extents import Extent

Baseline = Mapping[str, object]
"""What a source wrote into a manifest to know its changes by later; made and read by that kind of source alone."""


class Rung(StrEnum):
    """How changes were found."""

    VMFS_DIFF = "vmfs-diff"
    DIRTY_BITMAP = "dirty-bitmap"
    FULL_READ = "full-read"


@dataclass(frozen=True, slots=True)
class RungReport:
    """The rung used, and why that one."""

    rung: Rung
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What may differ from the baseline: sorted extents, or None where everything must be read."""

    report: RungReport
    extents: tuple[Extent, ...] | None = None


class DiskSource(Protocol):
    """One disk, open for one backup.

    Between opening and `close` its size never changes. `read_into` may be called from several threads at once.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def path(self) -> str:
        """The disk's file as it was named, made absolute."""

    @property
    def point_in_time(self) -> bool:
        """Whether all reads see the disk at one moment, whatever is written to it meanwhile."""

    def allocated(self) -> Iterator[Extent]:
        """What may hold other bytes than zeros, sorted, not overlapping. Raises SourceError."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` bytes on; it ends within the disk. Raises SourceError."""

    def changes_since(self, baseline: Baseline | None, why_none: str) -> Changes:
        """What may differ from the disk when `baseline` was made; never raises for a baseline that does not fit.

        Without a baseline the report's reason is `why_none`.
        """

    def baseline(self) -> Baseline | None:
        """What the next backup can know its changes by, once `commit` was called."""

    def commit(self) -> None:
        """The restore point is durable: keep our baseline, drop the one that it replaces."""

    def close(self) -> None:
        """Let go; without `commit` before, leave everything as it was found."""
