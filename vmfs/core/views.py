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
from vmfs.ondisk.inode import Inode
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
    """Leaf `index` of a file as its readers see it. Raises DamagedBlock, DeviceError.

    Not by recursion: a file that is cloned every day has more layers than a stack is deep.
    """
    above: list[tuple[array[int] | None, int]] = []  # from the file down: its own leaf, and where it stops inheriting
    first_block = index * POINTERS_PER_NODE
    while inode.parent and first_block < inode.inherit_limit:
        above.append((leaf(inode, source, index), min(inode.inherit_limit - first_block, POINTERS_PER_NODE)))
        inode, source = layers.layer(inode.parent, inode.parent_generation), layers.nodes
    lowest = leaf(inode, source, index)
    found = lowest[:] if lowest is not None else empty_pointers()
    for own, inherited in reversed(above):
        if own is not None or inherited < POINTERS_PER_NODE:
            found = _over(own, found, inherited)
    # The layers that say nothing were passed over; a file that is one of them inherits all.
    return _over(None, found, POINTERS_PER_NODE) if above and above[0] == (None, POINTERS_PER_NODE) else found


def _over(own: array[int] | None, below: array[int], inherited: int) -> array[int]:
    """A leaf over the one below it, of which it inherits the first `inherited` pointers."""
    # All pointers at once, as one large number: marking each in a loop would cost more than reading the node.
    marked = (int.from_bytes(below.tobytes(), "little") | _INHERITED_BITS).to_bytes(_LEAF_BYTES, "little")
    found = array("Q", marked)
    if inherited < POINTERS_PER_NODE:
        found[inherited:] = array("Q", bytes((POINTERS_PER_NODE - inherited) * 8))
    if own is None:
        return found
    return array("Q", [o or i for o, i in zip(own, found, strict=True)])


class View:
    """The flattened map of one open file. `load` builds a leaf by its index; `guard` is the control mutex.

    Readers look into `leaves` without the mutex; whoever changes it holds the mutex. A leaf is built without the mutex,
    because that may read the disk, and thrown away if the map has changed meanwhile: so a leaf of an older map never
    replaces a newer one.
    """

    __slots__ = ("_changes", "_guard", "_load", "leaves")

    def __init__(self, guard: threading.RLock, load: Callable[[int], array[int]]) -> None:
        self.leaves: dict[int, array[int]] = {}
        self._guard = guard
        self._load = load
        self._changes = 0
        """Grows with every change of the map that a leaf which is being built may have missed."""

    def reset(self) -> None:
        """Forget every leaf."""
        with self._guard:
            self._changes += 1
            self.leaves = {}

    def pointer(self, block: int) -> int:
        """The pointer of a block. Raises what loading raises."""
        index, at = divmod(block, POINTERS_PER_NODE)
        found = self.leaves.get(index)
        while found is None:
            found = self._build(index)
        return found[at]

    def _build(self, index: int) -> array[int] | None:
        """Build a leaf and keep it; None when the map changed meanwhile."""
        with self._guard:
            found = self.leaves.get(index)
            if found is not None:
                return found
            changes = self._changes
        built = self._load(index)
        with self._guard:
            if changes != self._changes:
                return None
            return self.leaves.setdefault(index, built)

    def ready(self, first: int, last: int) -> None:
        """Build what blocks `first` to `last` need: for who is about to take the mutex. Raises what loading raises."""
        for index in range(first // POINTERS_PER_NODE, last // POINTERS_PER_NODE + 1):
            self.pointer(index * POINTERS_PER_NODE)

    def put(self, block: int, pointer: int) -> None:
        """The file's own map has changed. The mutex is held."""
        found = self.leaves.get(block // POINTERS_PER_NODE)
        if found is not None:
            found[block % POINTERS_PER_NODE] = pointer
        else:
            self._changes += 1
