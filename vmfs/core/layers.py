"""Clones: two files that share a frozen layer, and what differs between two of them.

A clone freezes the source's map as an immutable layer and gives source and clone an empty map each above it; no block
is copied or counted, so the time does not depend on the amount of data. A block belongs to exactly one layer. A layer
counts its children; the last one to go takes the layer with it (see `vmfs.core.reaper`).
"""

from __future__ import annotations

import stat
from contextlib import ExitStack
from errno import EEXIST, EINVAL, EISDIR, EROFS
from typing import Final

from vmfs.core.directories import DirectoryWriter, new_entry
from vmfs.core.filemap import leaf, leaf_indexes
from vmfs.core.inodes import Inodes, Seen
from vmfs.core.makeinode import InodeMaker, NewPlace
from vmfs.core.namespace import Namespace, check_name, dt_type, touch_times
from vmfs.core.objects import InodeObject
from vmfs.core.openfile import OpenFiles
from vmfs.core.reaper import Reaper
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.errors import VmfsError
from vmfs.ondisk.inode import FLAG_LAYER, NO_INHERIT_LIMIT, Inode
from vmfs.ondisk.node import POINTERS_PER_NODE, ROOT_POINTERS, empty_pointers

MAX_DEPTH: Final = 1000  # every one may cost a read or two when a leaf is flattened


class NotRelated(VmfsError):
    """Two files that share no layer have no difference to be read off their maps."""

    exit_code = 2
    errno = EINVAL

    def __init__(self, old: int, new: int) -> None:
        super().__init__(f"inodes {old} and {new} share no layer: they are no clones of one file")


class Cloner:
    """Clones and differences of files."""

    def __init__(
        self, core: Core, inodes: Inodes, files: OpenFiles, space: Space, maker: InodeMaker,
        namespace: Namespace, writer: DirectoryWriter, reaper: Reaper,
    ) -> None:  # fmt: skip
        self._core = core
        self._inodes = inodes
        self._files = files
        self._space = space
        self._maker = maker
        self._namespace = namespace
        self._writer = writer
        self._reaper = reaper

    def clone(self, source: int, parent: int, name: bytes, uid: int, gid: int) -> int:
        """Make `name` in `parent` a clone of file `source` as it is at one moment; returns its inode number.

        Writes that completed before are in the clone, later ones are not. OSError(EEXIST, EISDIR, EINVAL, EROFS,
        ESTALE, EBUSY when another host has the source open for writing); NoSpace.
        """
        check_name(name)
        if self._core.read_only:
            raise OSError(EROFS, "the mount is read-only")
        with self._maker.place() as layer, self._maker.place() as place, ExitStack() as stack:
            stack.enter_context(self._inodes.locked(source, directories=(parent,)))
            self._reaper.cut_before_writing(source)  # a layer's map has nothing behind its end
            above = self._inodes.look(source).inode
            if not above.is_regular or above.is_layer:
                raise OSError(EISDIR if above.is_directory else EINVAL, "only regular files can be cloned")
            file = stack.enter_context(self._files.quiet(self._core, self._inodes, source, above.inode_generation))
            below = self._inodes.look(source).inode.parent  # only now are others held back who clone it, too
            if below:
                stack.enter_context(self._inodes.locked(below))
            made = self._space.run(lambda op: self._clone(op, source, parent, name, uid, gid, layer, place))
            file.view.reset()
            return made

    def _clone(
        self, op: Operation, source: int, parent: int, name: bytes, uid: int, gid: int, layer: NewPlace, place: NewPlace
    ) -> int:
        obj = self._inodes.owned(source)
        directory = self._namespace.live_directory(parent)
        if self._writer.find(directory, name) is not None:
            raise OSError(EEXIST, "the name exists")
        inode = obj.inode
        op.touch(obj)
        if inode.own_blocks or not inode.parent or any(inode.root):
            below = self._freeze(op, obj, layer)
        else:
            # Nothing was written since the last clone: its layer serves once more.
            below = self._inodes.owned(inode.parent, inode.parent_generation)
            op.touch(below)
            below.inode.children += 1
        new = self._maker.make(op, place, inode.mode & ~(stat.S_ISUID | stat.S_ISGID), uid, gid)
        self._put_above(new.inode, below.inode, inode)
        new.inode.size = inode.size
        new.inode.mtime_ns = inode.mtime_ns
        new.inode.xattrs = dict(inode.xattrs)
        entry = new_entry(directory.inode, name, new.inode.number, new.inode.inode_generation, dt_type(inode.mode))
        self._writer.insert(op, directory, entry)
        touch_times(self._core, directory.inode, modified=True)
        # The layer's blocks may have been written a moment ago: they go to the disk before it does.
        op.data_ordered = True
        return new.inode.number

    def _freeze(self, op: Operation, obj: InodeObject, place: NewPlace) -> InodeObject:
        """Move a file's map into a new layer, and put the file above it."""
        inode = obj.inode
        if inode.layer_depth >= MAX_DEPTH:
            raise OSError(EINVAL, f"the file has {MAX_DEPTH} layers; copy it")
        frozen = self._maker.make(op, place, stat.S_IFREG, 0, 0)
        layer = frozen.inode
        layer.flags |= FLAG_LAYER
        layer.nlink = 0
        layer.size, layer.own_blocks, layer.shared_blocks = inode.size, inode.own_blocks, inode.shared_blocks
        layer.map_id, layer.height, layer.root = inode.map_id, inode.height, inode.root
        layer.parent, layer.parent_generation = inode.parent, inode.parent_generation
        layer.inherit_limit, layer.layer_depth = inode.inherit_limit, inode.layer_depth
        layer.children = 2
        store = self._core.store
        for node in store.covered(obj.lock):
            if node is not obj:
                store.move(node, frozen.lock)
                op.on_undo(lambda n=node: store.move(n, obj.lock))  # type: ignore[misc]
        inode.root = empty_pointers(ROOT_POINTERS)
        inode.height = 0
        inode.map_id = self._core.new_id()
        inode.inherit_limit = NO_INHERIT_LIMIT
        self._put_above(inode, layer, inode)
        inode.version += 1
        return frozen

    @staticmethod
    def _put_above(inode: Inode, layer: Inode, like: Inode) -> None:
        """An inode with an empty map becomes a child of a layer; it shares what `like` has or shares."""
        shared = like.own_blocks + like.shared_blocks
        inode.parent, inode.parent_generation = layer.number, layer.inode_generation
        inode.layer_depth = layer.layer_depth + 1
        inode.own_blocks, inode.shared_blocks = 0, shared
        inode.inherit_limit = like.inherit_limit

    # -- differences -------------------------------------------------------------------------------

    def diff(self, old: int, new: int) -> list[tuple[int, int]]:
        """Byte ranges (offset, length) of `new` that may differ from `old`, from the maps alone. Raises NotRelated.

        Time by the number of blocks changed since the layer that both share.
        """
        first, second = self._inodes.look(old, fresh=True), self._inodes.look(new, fresh=True)
        for seen in (first, second):
            if not seen.inode.is_regular:
                raise OSError(EISDIR if seen.inode.is_directory else EINVAL, "only regular files can be compared")
        if old == new:
            return []
        old_chain, new_chain = self._inodes.chain(first.inode), self._inodes.chain(second.inode)
        known = {(layer.number, layer.inode_generation) for layer in old_chain}
        keys = [(layer.number, layer.inode_generation) for layer in new_chain]
        shared = next((key for key in keys if key in known), None)
        if shared is None:
            raise NotRelated(old, new)
        changed: set[int] = set()
        limit = NO_INHERIT_LIMIT
        for seen, chain in ((first, old_chain), (second, new_chain)):
            self._collect(seen, changed)
            limit = min(limit, seen.inode.inherit_limit)
            for layer in chain:
                if (layer.number, layer.inode_generation) == shared:
                    break
                self._collect(Seen(layer, 0.0, self._inodes.nodes), changed)
                limit = min(limit, layer.inherit_limit)
        return self._ranges(changed, limit, first.inode.size, second.inode.size)

    def _collect(self, seen: Seen, changed: set[int]) -> None:
        """Add the blocks of which one map says anything at all."""
        for index in leaf_indexes(seen.inode, seen.source):
            pointers = leaf(seen.inode, seen.source, index)
            if pointers is not None:
                base = index * POINTERS_PER_NODE
                changed.update(base + i for i, p in enumerate(pointers) if p)

    def _ranges(self, changed: set[int], limit: int, old_size: int, new_size: int) -> list[tuple[int, int]]:
        size = self._core.block_bytes
        ranges: list[tuple[int, int]] = []
        # Above the limit one side has cut off what the other may still inherit; so it is behind the shorter one's end.
        cut = min(limit * size, old_size, new_size)
        whole = sorted(b for b in changed if b * size < cut)
        for block in whole:
            start, end = block * size, min((block + 1) * size, cut)
            if ranges and ranges[-1][0] + ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
            else:
                ranges.append((start, end - start))
        if cut < new_size:
            if ranges and sum(ranges[-1]) == cut:
                ranges[-1] = (ranges[-1][0], new_size - ranges[-1][0])
            else:
                ranges.append((cut, new_size - cut))
        return ranges
