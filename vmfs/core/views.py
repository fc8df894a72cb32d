"""What a file's blocks are, layers looked through: the flattened map that the data plane reads.

A view holds, per leaf of 504 blocks, pointers as on disk with one more bit:

    INHERITED (4): the block belongs to a parent layer: readable there, to be copied before it is written

Leaves are built when first needed and dropped when the map may have changed elsewhere. A leaf that is there is changed
in place by the file's own writer (one 8-byte store: a reader sees the old or the new pointer).
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import Final, Protocol

from vmfs.core.filemap import NodeSource, leaf
from vmfs.ondisk.inode import NO_INHERIT_LIMIT, Inode
from vmfs.ondisk.node import POINTERS_PER_NODE, empty_pointers

INHERITED: Final = 4
OWN_WRITTEN_MASK: Final = 7  # p & 7 == WRITTEN: a block of the file's own, holding data
_LEAF_BYTES: Final = POINTERS_PER_NODE * 8
_INHERITED_BITS: Final = int.from_bytes(INHERITED.to_bytes(8, "little") * POINTERS_PER_NODE, "little")
NO_POINTERS: Final = empty_pointers()


class Layers(Protocol):
    """Where frozen layers come from."""

    def layer(self, number: int, generation: int) -> Inode:
        """A frozen layer's inode: its map part never changes. Raises DamagedBlock, DeviceError."""

    @property
    def nodes(self) -> NodeSource:
        """The nodes of frozen maps."""


def flatten(inode: Inode, source: NodeSource, layers: Layers, index: int) -> array[int]:
    """Leaf `index` of a file as its readers see it. Raises DamagedBlock, DeviceError."""
    own = leaf(inode, source, index)
    if not inode.parent or index * POINTERS_PER_NODE >= inode.inherit_limit:
        return own[:] if own is not None else empty_pointers()
    parent = layers.layer(inode.parent, inode.parent_generation)
    below = flatten(parent, layers.nodes, layers, index)
    # All pointers at once, as one large number: marking each in a loop would cost more than reading the node.
    marked = (int.from_bytes(below.tobytes(), "little") | _INHERITED_BITS).to_bytes(_LEAF_BYTES, "little")
    inherited = array("Q", marked)
    if inode.inherit_limit != NO_INHERIT_LIMIT:
        first = inode.inherit_limit - index * POINTERS_PER_NODE
        if first < POINTERS_PER_NODE:
            inherited[first:] = array("Q", bytes((POINTERS_PER_NODE - first) * 8))
    if own is None:
        return inherited
    return array("Q", [o or i for o, i in zip(own, inherited, strict=True)])


class View:
    """The flattened map of one open file. `load` builds a leaf by its index; `guard` is the control mutex.

    Readers look into `leaves` without the mutex; whoever changes it holds the mutex, so that a leaf built from an older
    map never replaces a newer one.
    """

    __slots__ = ("_guard", "_load", "leaves")

    def __init__(self, guard: threading.RLock, load: Callable[[int], array[int]]) -> None:
        self.leaves: dict[int, array[int]] = {}
        self._guard = guard
        self._load = load

    def reset(self) -> None:
        """Forget every leaf."""
        with self._guard:
            self.leaves = {}

    def pointer(self, block: int) -> int:
        """The pointer of a block. Raises what loading raises."""
        index, at = divmod(block, POINTERS_PER_NODE)
        found = self.leaves.get(index)
        if found is None:
            with self._guard:
                found = self.leaves.get(index)
                if found is None:
                    found = self.leaves[index] = self._load(index)
        return found[at]

    def put(self, block: int, pointer: int) -> None:
        """The file's own map has changed; a leaf that is not loaded needs nothing. The mutex is held."""
        found = self.leaves.get(block // POINTERS_PER_NODE)
        if found is not None:
            found[block % POINTERS_PER_NODE] = pointer
