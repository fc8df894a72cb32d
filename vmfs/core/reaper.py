"""Unfinished removals and truncations: what the orphan list names is worked off here, in the background.

A removal frees the file's blocks, its map and last its inode, in steps that fit a transaction each; a crash between two
steps leaves the rest on the orphan list, for this host's next mount or for whoever recovers its slot. Blocks in a group
that another host keeps wait until it lets go of the group.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY, ENOSPC, ESTALE
from functools import partial
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.core.filemap import last_leaf, leaf, leaf_indexes
from vmfs.core.inodes import Inodes, LiveNodes
from vmfs.core.objects import DirectoryObject, InodeObject, NodeObject
from vmfs.core.openfile import OpenFiles
from vmfs.core.slowwrite import SlowWriter
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import OPERATION_MAX_BLOCKS, MountFailed, Operation
from vmfs.errors import LeaseLost, VmfsError
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.node import ADDRESS_MASK, HOLE, POINTERS_PER_NODE, PUNCHED, STATE_MASK, UNWRITTEN, WRITTEN, span
from vmfs.ondisk.orphans import CAPACITY, OrphanKind

log = logging.getLogger("vmfs.core")

_RESERVE: Final = 32  # places that operations under way may still take
_ROOM_WAIT_SECONDS: Final = 30.0  # a removal waits that long for earlier ones to finish
_RETRY_SECONDS: Final = 2.0  # after something was busy
_GROUP_WAIT_SECONDS: Final = 5.0

OrphanKey = tuple[int, int]
"""(inode, generation)."""


class Reaper:
    """Works off this host's orphan list. The list is guarded by the control mutex, the work by `_working`."""

    def __init__(self, core: Core, inodes: Inodes, files: OpenFiles, space: Space, slow: SlowWriter) -> None:
        self._core = core
        self._slow = slow
        self._inodes = inodes
        self._files = files
        self._space = space
        self._wake = threading.Event()
        self._stop = False
        self._working = threading.Lock()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None
        # Locks of a dead host's half-cut files, pinned until they are cut. Guarded by the control mutex.
        self._adopted: dict[OrphanKey, Tenure] = {}
        self._uncut: set[OrphanKey] = set()

    # -- the list ----------------------------------------------------------------------------------

    def add(self, op: Operation, inode: Inode, kind: OrphanKind) -> None:
        """Put an inode on the list, within the operation that makes it an orphan. OSError(ENOSPC) when it is full."""
        orphans = self._core.orphans
        key = inode.number, inode.inode_generation
        before = orphans.entries.get(key)
        if before is not None and before <= kind:
            return
        if before is None and len(orphans.entries) >= CAPACITY:
            raise OSError(ENOSPC, f"{CAPACITY} removed files are still open or being removed")
        op.touch(orphans)
        orphans.entries[key] = kind

    def make_room(self) -> None:
        """Wait until an operation can put inodes on the list."""
        if len(self._core.orphans.entries) < CAPACITY - _RESERVE:
            return
        self.kick()
        with self._progress:
            self._progress.wait_for(
                lambda: len(self._core.orphans.entries) < CAPACITY - _RESERVE, timeout=_ROOM_WAIT_SECONDS
            )

    def adopt(self, key: OrphanKey, tenure: Tenure) -> None:
        """Keep the lock of a file on the list until it is done: nobody may make it longer before. Under the mutex."""
        before = self._adopted.get(key)
        self._adopted[key] = tenure
        if before is not None:
            self._core.locks.unpin(before)

    def expect_cut(self, key: OrphanKey) -> None:
        """What is behind the end of that file is there still: nobody may make it longer before it is cut, or hidden."""
        with self._core.transactions.mutex:
            self._uncut.add(key)

    def is_uncut(self, number: int) -> bool:
        """Whether that holds for any file of this number."""
        return bool(self._uncut) and any(key[0] == number for key in list(self._uncut))

    def cut_before_writing(self, number: int) -> None:
        """For whoever is about to write to a file and has its lock: what a dead host has left to cut is cut first.

        Called without the control mutex. Raises VmfsError, and OSError of the storage.
        """
        if not self.is_uncut(number):
            return
        for key in [k for k in list(self._uncut) if k[0] == number]:
            try:
                self.finish(*key, OrphanKind.TRIM)
            except OSError as error:
                if error.errno not in (EBUSY, ESTALE):
                    raise
            self._let_go(key)

    def _let_go(self, key: OrphanKey) -> None:
        with self._core.transactions.mutex:
            self._uncut.discard(key)
            tenure = self._adopted.pop(key, None)
        if tenure is not None:
            self._core.locks.unpin(tenure)

    # -- the thread --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work in the background."""
        self._thread = threading.Thread(target=self._run, name="vmfs-reaper", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """There is work."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; what is not done stays on the list."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(_RETRY_SECONDS if self._core.orphans.entries else None)
            self._wake.clear()
            if self._stop:
                return
            try:
                self.work()
            except (LeaseLost, MountFailed):
                return
            except VmfsError as error:
                log.error("volume %s: removing files: %s", self._core.name, error)

    def finish_all(self) -> None:
        """Before an unmount: do what can be done now; the rest stays on the list for the next mount."""
        self._stop = False
        before: set[tuple[int, int]] = set()
        try:
            while before != (now := set(self._core.orphans.entries)):  # a layer follows its last child onto the list
                before = now
                self.work()
        except VmfsError as error:
            log.warning("volume %s: removals are left to the next mount: %s", self._core.name, error)

    def work(self) -> None:
        """Go through the list once. Raises VmfsError of what could not be done; the rest is done all the same."""
        problem: VmfsError | None = None
        with self._working:
            for (number, generation), kind in list(self._core.orphans.entries.items()):
                if self._stop:
                    break
                open_file = self._files.table.get(number)
                if kind == OrphanKind.REMOVE and open_file is not None and open_file.generation == generation:
                    continue
                try:
                    self.finish(number, generation, kind)
                    self._let_go((number, generation))
                except OSError as error:
                    if error.errno not in (EBUSY, ESTALE):
                        log.error("volume %s: removing inode %d: %s", self._core.name, number, error)
                    else:
                        self._let_go((number, generation))  # what could not be freed reads as zeros
                except (LeaseLost, MountFailed):
                    raise
                except VmfsError as error:
                    problem = error
                with self._progress:
                    self._progress.notify_all()
        if problem is not None:
            raise problem

    # -- the work ----------------------------------------------------------------------------------

    def finish(self, number: int, generation: int, kind: OrphanKind) -> None:
        """Do what the list says of one inode. OSError(EBUSY) when another host keeps what is needed: later."""
        core = self._core
        with self._inodes.locked(number):
            with core.transactions.mutex:
                obj = core.store.inode(number)
                same = obj.inode.in_use and obj.inode.inode_generation == generation
                is_open = number in self._files.table  # if not, nobody opens it any more: see OpenFiles.get
            if not same:
                self._space.run(lambda op: self._forget(op, number, generation), units=0)
            elif kind == OrphanKind.TRIM:
                self._trim_quietly(obj)
            elif not is_open:
                self._remove(obj)

    def _remove(self, obj: InodeObject) -> None:
        self.free_map(obj, 0)
        numbers = [obj.inode.parent] if obj.inode.parent else []
        with self._inodes.locked(*numbers, obj.inode.number), self._groups_of([obj.address]):
            self._space.run(lambda op: self._remove_inode(op, obj), units=0)
        if numbers:
            self.kick()  # its layer may be an orphan now

    def _trim_quietly(self, obj: InodeObject) -> None:
        """Trim a file that may be open here for writing, or may be opened meanwhile: its writers are held back."""
        key = obj.inode.number, obj.inode.inode_generation
        with self._files.quiet(self._core, self._inodes, *key) as file:
            if self._core.orphans.entries.get(key) == OrphanKind.TRIM:  # else whoever truncated it has done it by now
                self.trim(obj)
                file.view.reset()

    def trim(self, obj: InodeObject) -> None:
        """Finish a truncation: nothing behind the end of the file stays, in blocks or in the last one.

        The inode's lock is held and nobody writes. OSError(EBUSY) when blocks lie in a group that another host keeps,
        VmfsError when the storage fails: the blocks read as zeros then, and the file stays on the list.
        """
        keep = -(-obj.inode.size // self._core.block_bytes)
        try:
            self._clear_tail(obj, keep)
            self.free_map(obj, keep)
        except (OSError, VmfsError) as error:
            if error.errno == EBUSY or isinstance(error, VmfsError):
                self._hide(obj, keep)
            raise
        self._space.run(lambda op: self._trimmed(op, obj), units=0)

    def _clear_tail(self, obj: InodeObject, keep: int) -> None:
        """Write zeros behind the end of the file into its last block, number `keep` - 1."""
        core = self._core
        size = obj.inode.size
        if not size % core.block_bytes:
            return
        pointers = leaf(obj.inode, LiveNodes(core, self._inodes, obj.lock), (keep - 1) // POINTERS_PER_NODE)
        pointer = pointers[(keep - 1) % POINTERS_PER_NODE] if pointers is not None else 0
        if pointer & STATE_MASK == WRITTEN:
            # Zeros on the disk before the new size were there would cut the file that a crash brings back.
            core.transactions.commit()
            self._slow.zero_in_block(pointer & ADDRESS_MASK, size % core.block_bytes, core.block_bytes)

    def _trimmed(self, op: Operation, obj: InodeObject) -> None:
        key = obj.inode.number, obj.inode.inode_generation
        if self._core.orphans.entries.get(key) == OrphanKind.TRIM:  # not if the file was removed in the meantime
            self._forget(op, *key)

    def _hide(self, obj: InodeObject, keep: int) -> None:
        """Make the blocks from `keep` on read as zeros, without freeing them."""
        source = LiveNodes(self._core, self._inodes, obj.lock)
        for index in list(leaf_indexes(obj.inode, source, keep // POINTERS_PER_NODE)):
            self._space.run(partial(self._hide_leaf, obj=obj, index=index, keep=keep), units=0)

    def _hide_leaf(self, op: Operation, obj: InodeObject, index: int, keep: int) -> None:
        pointers, base = self._core.maps.leaf_for_change(op, obj, index * POINTERS_PER_NODE)
        for at, pointer in enumerate(pointers):
            if base + at >= keep and pointer & STATE_MASK == WRITTEN:
                pointers[at] = pointer & ADDRESS_MASK | UNWRITTEN
        obj.inode.version += 1

    def _forget(self, op: Operation, number: int, generation: int) -> None:
        op.touch(self._core.orphans)
        self._core.orphans.entries.pop((number, generation), None)

    def _remove_inode(self, op: Operation, obj: InodeObject) -> None:
        core = self._core
        inode = obj.inode
        self._forget(op, inode.number, inode.inode_generation)  # first: its place on the list may be its layer's
        if inode.parent:
            above = self._inodes.owned(inode.parent, inode.parent_generation)
            op.touch(above)
            above.inode.children -= 1
            if not above.inode.children:
                self.add(op, above.inode, OrphanKind.REMOVE)
        group, _ = core.geometry.group_of(obj.address)
        op.touch(obj)
        core.units.free_inode(op, obj, group)
        obj.inode = Inode(
            inode.number, inode_generation=inode.inode_generation, version=inode.version + 1,
            generation=inode.generation, ctime_ns=core.clock.wall_ns(),
        )  # fmt: skip

    @contextmanager
    def _groups_of(self, addresses: list[int]) -> Iterator[None]:
        """Hold the groups in which these lie. OSError(EBUSY) when another host keeps one."""
        with self._space.groups_held(addresses, _GROUP_WAIT_SECONDS) as held:
            if not held:
                raise OSError(EBUSY, "a resource group is kept by another host")
            yield

    def free_map(self, obj: InodeObject, keep: int) -> None:
        """Free the blocks from number `keep` on, in steps. The inode's lock is held. OSError(EBUSY); VmfsError."""
        while self._free_step(obj, keep):
            pass

    def _free_step(self, obj: InodeObject, keep: int) -> bool:
        """Free part of the last leaf. False when nothing is left to free."""
        core = self._core
        with core.transactions.mutex:
            core.transactions.check()
            inode = obj.inode
            source = LiveNodes(core, self._inodes, obj.lock)
            last = last_leaf(inode, source)
            if last is None or last < keep // POINTERS_PER_NODE:
                return False
            pointers = leaf(inode, source, last)
            assert pointers is not None
            base = last * POINTERS_PER_NODE
            low = max(0, keep - base)
            victims = [(base + i, p) for i, p in enumerate(pointers) if p and i >= low]
            if not victims and low:
                return False
            chosen, needed, whole = self._choose(obj, victims, low == 0, last)
        with self._groups_of(needed):
            self._space.run(lambda op: self._free_chosen(op, obj, chosen, last if whole else None), units=0)
        return True

    def _choose(
        self, obj: InodeObject, victims: list[tuple[int, int]], all_of_leaf: bool, last: int
    ) -> tuple[list[tuple[int, int]], list[int], bool]:
        """(pointers to free now, addresses whose groups are needed, whether the leaf is empty then)."""
        core = self._core
        directory = obj.inode.is_directory
        chosen: list[tuple[int, int]] = []
        needed: list[int] = []
        groups: set[int] = set()
        for block, pointer in reversed(victims):
            addresses = self._chain(obj, block, pointer) if directory else [pointer & ADDRESS_MASK]
            if pointer & STATE_MASK == PUNCHED:
                addresses = []
            more = {core.geometry.group_of(a)[0] for a in addresses}
            # Each group costs its block, and each chunk of a directory its head.
            if len(groups | more) + (len(chosen) if directory else 0) > OPERATION_MAX_BLOCKS // 3:
                break
            groups |= more
            chosen.append((block, pointer))
            needed.extend(addresses)
        whole = all_of_leaf and len(chosen) == len(victims)
        if whole and obj.inode.height:
            needed.extend(n.address for n in self._path(obj, last))
        return chosen, needed, whole

    def _chain(self, obj: InodeObject, bucket: int, pointer: int) -> list[int]:
        """The blocks of a directory's bucket."""
        found: list[int] = []
        address = pointer & ADDRESS_MASK
        while address and len(found) < OPERATION_MAX_BLOCKS // 3:
            found.append(address)
            address = self._core.store.directory(address, obj.lock, obj.inode.map_id, bucket).block.overflow
        return found

    def _path(self, obj: InodeObject, index: int) -> list[NodeObject]:
        """The nodes that lead to a leaf, from the top."""
        inode, store = obj.inode, self._core.store
        found: list[NodeObject] = []
        pointers, level = inode.root, inode.height
        position = index // span(level - 1)
        while level:
            level -= 1
            node = store.node(pointers[position] & ADDRESS_MASK, obj.lock, inode.map_id, level, index // span(level))
            found.append(node)
            pointers = node.pointers
            position = index // span(level - 1) % POINTERS_PER_NODE if level else 0
        return found

    def _free_chosen(
        self, op: Operation, obj: InodeObject, chosen: list[tuple[int, int]], emptied: int | None
    ) -> None:
        core = self._core
        inode = obj.inode
        op.touch(obj)
        if inode.is_directory:
            for bucket, pointer in chosen:
                for address in self._chain(obj, bucket, pointer):
                    self._drop_unit(op, core.store.directory(address, obj.lock, inode.map_id, bucket))
                    inode.own_blocks -= 1
        else:
            held = [p & ADDRESS_MASK for _, p in chosen if p & STATE_MASK in (WRITTEN, UNWRITTEN)]
            core.groups.free(op, held)
            inode.own_blocks -= len(held)
        for block, _ in chosen:
            core.maps.set(op, obj, block, HOLE)
        if emptied is not None:
            self._drop_leaf(op, obj, emptied)
        inode.version += 1

    def _drop_leaf(self, op: Operation, obj: InodeObject, index: int) -> None:
        """Free an empty leaf, and the nodes above it that are empty then."""
        inode = obj.inode
        if not inode.height:
            return
        path = self._path(obj, index)
        for node in reversed(path):
            if any(node.pointers):
                return
            self._drop_unit(op, node)
            level = node.level + 1
            position = node.index if level == inode.height else node.index % POINTERS_PER_NODE
            above = inode.root if level == inode.height else path[path.index(node) - 1].pointers
            if level != inode.height:
                op.touch(path[path.index(node) - 1])
            above[position] = HOLE

    def _drop_unit(self, op: Operation, obj: NodeObject | DirectoryObject) -> None:
        core = self._core
        group, _ = core.geometry.group_of(obj.address)
        core.units.free_unit(op, obj.address, group)
        op.drop(obj)
        core.store.remove(obj)
        op.on_undo(lambda: core.store.put(obj))
