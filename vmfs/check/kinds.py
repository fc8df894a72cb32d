"""The kinds of findings: their names, how bad each is, what it means, and what `--repair` does about it.

A kind's name is part of the command's JSON output: never change one. docs/check.md has the same as a table.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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
    SIZE_WRONG = "size-wrong"
    SHARED_COUNT_WRONG = "shared-count-wrong"
    LAYER_DEPTH_WRONG = "layer-depth-wrong"
    INHERITS_BEYOND_END = "inherits-beyond-end"
    READ_FAILED = "read-failed"


WARNINGS: Final = frozenset({
    Kind.SUPERBLOCK_DAMAGED, Kind.SUPERBLOCK_OLD, Kind.JOURNAL_DAMAGED, Kind.BLOCK_LEAKED, Kind.UNIT_LEAKED,
    Kind.GROUP_COUNTS_WRONG, Kind.INODE_UNREMOVED, Kind.LAYER_LOST, Kind.ORPHAN_WRONG, Kind.POINTER_BEYOND_END,
    Kind.ENTRY_COUNT_WRONG, Kind.BLOCK_COUNT_WRONG, Kind.SIZE_WRONG, Kind.SHARED_COUNT_WRONG, Kind.LAYER_DEPTH_WRONG,
})  # fmt: skip

MEANING: Final[dict[Kind, str]] = {
    Kind.SUPERBLOCK_DAMAGED: "another copy serves; the volume is lost when the last one goes",
    Kind.SUPERBLOCK_OLD: "the copies differ: an update was cut off between two of them; the newest copy serves",
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
    Kind.SIZE_WRONG: "the size that stat reports does not fit what is there",
    Kind.SHARED_COUNT_WRONG: "the size on disk that the file reports is wrong: it miscounts what it shares with layers",
    Kind.LAYER_DEPTH_WRONG: "the file counts the layers below it wrongly: the limit of clones of clones is not kept",
    Kind.INHERITS_BEYOND_END: "a layer holds data behind the end of the file: it would show when the file grows",
    Kind.READ_FAILED: "the storage does not give this block",
}

_ONE_BIT: Final = "a block in which one bit is wrong is put right; else "
REPAIRS: Final[dict[Kind, str]] = {
    Kind.SUPERBLOCK_DAMAGED: "written anew from the newest copy",
    Kind.SUPERBLOCK_OLD: "written anew from the newest copy",
    Kind.SLOT_DAMAGED: _ONE_BIT + "the slot is made free with an incarnation that no lock knows",
    Kind.SLOT_FAILED: "only with --discard-journal: what the journal holds is given up",
    Kind.LOCK_DAMAGED: "written anew as free: no host lives that could hold it",
    Kind.LOCK_IMPOSSIBLE: "written anew as free",
    Kind.JOURNAL_DAMAGED: "its header is written anew; a dead host's journal is given up with --discard-journal only",
    Kind.ORPHANS_DAMAGED: _ONE_BIT + "written anew, empty; what it named is found by its links",
    Kind.ORPHAN_WRONG: "the name is taken off the list",
    Kind.GROUP_DAMAGED: _ONE_BIT + "made anew from the maps of all inodes",
    Kind.GROUP_COUNTS_WRONG: "counted anew",
    Kind.CHUNK_DAMAGED: _ONE_BIT + "made anew from what lies in the chunk and what refers to it",
    Kind.BLOCK_NOT_ALLOCATED: "marked used",
    Kind.BLOCK_LEAKED: "marked free",
    Kind.BLOCK_SHARED: "each owner but the first gets a copy; which of them the content belongs to cannot be known",
    Kind.UNIT_NOT_ALLOCATED: "marked used",
    Kind.UNIT_LEAKED: "marked free",
    Kind.INODE_DAMAGED: _ONE_BIT + "a directory is made anew; a file goes with --remove-damaged only",
    Kind.INODE_STATE_WRONG: "the inode's own word counts, the chunk follows",
    Kind.INODE_LOST: "gets a name in lost+found",
    Kind.INODE_UNREMOVED: "removed",
    Kind.NODE_DAMAGED: _ONE_BIT + "the blocks that it led to are marked lost: reads of them fail, the rest is kept",
    Kind.POINTER_WRONG: "the block is marked lost: reads of it fail",
    Kind.POINTER_BEYOND_END: "freed",
    Kind.BLOCK_COUNT_WRONG: "counted anew",
    Kind.LAYER_MISSING: "only with --remove-damaged: the file is removed",
    Kind.LAYER_CHILDREN_WRONG: "counted anew",
    Kind.LAYER_CYCLE: "the circle is cut: reads of what is inherited fail",
    Kind.LAYER_LOST: "removed",
    Kind.DIRECTORY_DAMAGED: _ONE_BIT + "the directory is made anew; what had its name there goes to lost+found",
    Kind.DIRECTORY_SHAPE_WRONG: "the directory is made anew from its names",
    Kind.ENTRY_WRONG: "the directory is made anew from its names",
    Kind.ENTRY_DANGLING: "the name is removed, unless it leads to a damaged inode that is kept",
    Kind.ENTRY_COUNT_WRONG: "counted anew",
    Kind.LINKS_WRONG: "counted anew; of several names of a directory one stays",
    Kind.PARENT_WRONG: "set to where it lies",
    Kind.SIZE_WRONG: "set to what is there",
    Kind.SHARED_COUNT_WRONG: "counted anew",
    Kind.LAYER_DEPTH_WRONG: "counted anew",
    Kind.INHERITS_BEYOND_END: "cut off at the end of the file",
}
"""What `--repair` does about each kind; a kind that is not there is not mended."""
