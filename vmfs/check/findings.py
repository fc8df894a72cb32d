"""What the checker says: findings, each of a kind with a fixed meaning, and the report that collects them.

A kind's name is part of the command's JSON output: never change one. A later repair acts on kinds, addresses and inodes
alone, so everything it needs is in a finding's fields and not in its message only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from vmfs.errors import EXIT_FAILED

MAX_FINDINGS_PER_KIND: Final = 100  # a ruined volume has millions; the rest is counted


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Data is lost, unreachable, or in danger of being overwritten."""
    WARNING = "warning"
    """Something is wasted, or less safe than it should be; nothing is lost."""


class Kind(StrEnum):
    """What can be found. The values are the names that users and programs see."""

    SUPERBLOCK_DAMAGED = "superblock-damaged"
    SUPERBLOCK_OLD = "superblock-old"
    SLOT_DAMAGED = "slot-damaged"
    SLOT_FAILED = "slot-failed"
    LOCK_DAMAGED = "lock-damaged"
    LOCK_IMPOSSIBLE = "lock-impossible"
    JOURNAL_DAMAGED = "journal-damaged"
    ORPHANS_DAMAGED = "orphans-damaged"
    ORPHAN_WRONG = "orphan-wrong"
    GROUP_DAMAGED = "group-damaged"
    GROUP_COUNTS_WRONG = "group-counts-wrong"
    CHUNK_DAMAGED = "chunk-damaged"
    BLOCK_NOT_ALLOCATED = "block-not-allocated"
    BLOCK_LEAKED = "block-leaked"
    BLOCK_SHARED = "block-shared"
    UNIT_NOT_ALLOCATED = "unit-not-allocated"
    UNIT_LEAKED = "unit-leaked"
    UNIT_SHARED = "unit-shared"
    INODE_DAMAGED = "inode-damaged"
    INODE_STATE_WRONG = "inode-state-wrong"
    INODE_LOST = "inode-lost"
    INODE_UNREMOVED = "inode-unremoved"
    NODE_DAMAGED = "node-damaged"
    POINTER_WRONG = "pointer-wrong"
    POINTER_BEYOND_END = "pointer-beyond-end"
    BLOCK_COUNT_WRONG = "block-count-wrong"
    LAYER_MISSING = "layer-missing"
    LAYER_CHILDREN_WRONG = "layer-children-wrong"
    LAYER_CYCLE = "layer-cycle"
    LAYER_LOST = "layer-lost"
    DIRECTORY_DAMAGED = "directory-damaged"
    DIRECTORY_SHAPE_WRONG = "directory-shape-wrong"
    ENTRY_WRONG = "entry-wrong"
    ENTRY_DANGLING = "entry-dangling"
    ENTRY_COUNT_WRONG = "entry-count-wrong"
    LINKS_WRONG = "links-wrong"
    PARENT_WRONG = "parent-wrong"
    READ_FAILED = "read-failed"


_WARNINGS: Final = frozenset({
    Kind.SUPERBLOCK_DAMAGED, Kind.SUPERBLOCK_OLD, Kind.JOURNAL_DAMAGED, Kind.BLOCK_LEAKED, Kind.UNIT_LEAKED,
    Kind.GROUP_COUNTS_WRONG, Kind.INODE_UNREMOVED, Kind.LAYER_LOST, Kind.ORPHAN_WRONG, Kind.POINTER_BEYOND_END,
    Kind.ENTRY_COUNT_WRONG, Kind.BLOCK_COUNT_WRONG,
})  # fmt: skip

MEANING: Final[dict[Kind, str]] = {
    Kind.SUPERBLOCK_DAMAGED: "another copy serves; the volume is lost when the last one goes",
    Kind.SUPERBLOCK_OLD: "an update of the superblock was cut off between two copies; the newest copy serves",
    Kind.SLOT_DAMAGED: "no host can mount by this slot, and who had it cannot be known",
    Kind.SLOT_FAILED: "a dead host's journal could not be replayed; an operator has to decide",
    Kind.LOCK_DAMAGED: "what this lock guards can be changed by no host",
    Kind.LOCK_IMPOSSIBLE: "the lock is held by a mount that never was; what it guards can be changed by no host",
    Kind.JOURNAL_DAMAGED: "a copy of the journal's header is unreadable; with both gone its slot cannot be recovered",
    Kind.ORPHANS_DAMAGED: "removals that this slot's host had begun will never be finished",
    Kind.ORPHAN_WRONG: "the list names an inode that is not waiting for removal or trimming",
    Kind.GROUP_DAMAGED: "nothing can be allocated or freed in this resource group",
    Kind.GROUP_COUNTS_WRONG: "the group's counts do not match its bitmaps; allocation may pass over free space",
    Kind.CHUNK_DAMAGED: "nothing can be allocated or freed in this metadata chunk",
    Kind.BLOCK_NOT_ALLOCATED: "a block in use is marked free: it will be given away and overwritten",
    Kind.BLOCK_LEAKED: "a block is marked used and nothing uses it: its space is lost",
    Kind.BLOCK_SHARED: "two owners use one block: each overwrites the other's data",
    Kind.UNIT_NOT_ALLOCATED: "a metadata block in use is marked free: it will be given away and overwritten",
    Kind.UNIT_LEAKED: "a metadata block is marked used and nothing uses it: its space is lost",
    Kind.UNIT_SHARED: "two owners use one metadata block",
    Kind.INODE_DAMAGED: "the file, and all that it holds, cannot be opened",
    Kind.INODE_STATE_WRONG: "the inode and the bitmaps of its chunk contradict each other",
    Kind.INODE_LOST: "the inode is in use and no name leads to it",
    Kind.INODE_UNREMOVED: "the inode has no name left and nobody is going to remove it: its space is lost",
    Kind.NODE_DAMAGED: "the part of the file's map below this node cannot be read",
    Kind.POINTER_WRONG: "a map leads to where no block of its kind can be",
    Kind.POINTER_BEYOND_END: "there is data behind the end of the file: it would show when the file grows",
    Kind.BLOCK_COUNT_WRONG: "the size on disk that the file reports is wrong",
    Kind.LAYER_MISSING: "the layer below the file is gone: the data that it shares cannot be read",
    Kind.LAYER_CHILDREN_WRONG: "the layer counts its children wrongly: it may be freed under them, or never",
    Kind.LAYER_CYCLE: "the layers below this one lead back to it",
    Kind.LAYER_LOST: "no file stands on the layer any more: its space is lost",
    Kind.DIRECTORY_DAMAGED: "the names in this block of the directory cannot be read",
    Kind.DIRECTORY_SHAPE_WRONG: "the directory's hash table contradicts itself: names will not be found",
    Kind.ENTRY_WRONG: "the name will not be found, or twice",
    Kind.ENTRY_DANGLING: "the name leads to no file",
    Kind.ENTRY_COUNT_WRONG: "the directory counts its names wrongly: it may not be removable",
    Kind.LINKS_WRONG: "the inode counts its names wrongly: it may be removed while names still lead to it, or never",
    Kind.PARENT_WRONG: "the directory names another directory as the one that it lies in",
    Kind.READ_FAILED: "the storage does not give this block",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `address` is a volume address, `inode` an inode's number, where there is one."""

    kind: Kind
    message: str
    address: int | None = None
    inode: int | None = None

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.kind in _WARNINGS else Severity.ERROR

    @property
    def meaning(self) -> str:
        """What it means for whoever uses the volume."""
        return MEANING[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Addresses are in hexadecimal, as messages have them."""
        return {
            "severity": self.severity.value,
            "kind": self.kind.value,
            "address": None if self.address is None else f"{self.address:#x}",
            "inode": self.inode,
            "message": self.message,
            "meaning": self.meaning,
        }


@dataclass(slots=True)
class Counts:
    """What was looked at."""

    groups: int = 0
    chunks: int = 0
    inodes: int = 0
    files: int = 0
    directories: int = 0
    layers: int = 0
    entries: int = 0
    data_blocks: int = 0
    journal_blocks_pending: int = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Report:
    """The result of a check. Fewer than all findings are kept of a kind; `totals` counts them all."""

    volume: str
    label: str
    findings: list[Finding] = field(default_factory=list)
    totals: Counter[Kind] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    """What whoever reads the report should know and is no finding: a journal that waits for its recovery."""
    counts: Counts = field(default_factory=Counts)

    def add(self, kind: Kind, message: str, *, address: int | None = None, inode: int | None = None) -> None:
        """Note a finding."""
        self.totals[kind] += 1
        if self.totals[kind] <= MAX_FINDINGS_PER_KIND:
            self.findings.append(Finding(kind, message, address, inode))

    @property
    def clean(self) -> bool:
        return not self.totals

    @property
    def exit_code(self) -> int:
        """0: clean; 1: there are findings."""
        return 0 if self.clean else EXIT_FAILED

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "volume": self.volume,
            "label": self.label,
            "clean": self.clean,
            "findings": [f.as_dict() for f in self.findings],
            "totals": {kind.value: count for kind, count in sorted(self.totals.items())},
            "notes": self.notes,
            "counts": self.counts.as_dict(),
        }
