"""Renaming: one transaction over both directories, what is moved and what is replaced.

Moving a directory elsewhere could make a loop when two hosts do it at once; such moves hold the superblock's lock, and
walk up from the new place to the root first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR
from functools import partial

from vmfs.core.directories import DirectoryWriter, new_entry
from vmfs.core.inodes import Inodes
from vmfs.core.namespace import DT_DIR, Namespace, check_name, touch_times
from vmfs.core.reaper import Reaper
from vmfs.core.space import Space
from vmfs.core.state import DIRECTORY_WAIT_SECONDS, Core
from vmfs.core.transactions import Operation
from vmfs.errors import LockedByOther
from vmfs.fuse.contract import RENAME_EXCHANGE, RENAME_NOREPLACE
from vmfs.ondisk.directory import Entry
from vmfs.ondisk.lock import Guards, LockMode

_TREE_MAX_DEPTH = 100_000  # more would be a loop


class Renamer:
    """The rename operation."""

    def __init__(
        self, core: Core, inodes: Inodes, space: Space, namespace: Namespace, writer: DirectoryWriter, reaper: Reaper
    ) -> None:
        self._core = core
        self._inodes = inodes
        self._space = space
        self._namespace = namespace
        self._writer = writer
        self._reaper = reaper

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """As renameat2(2), with RENAME_NOREPLACE or RENAME_EXCHANGE. OSError as there; EBUSY; NoSpace."""
        check_name(new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(EINVAL, "this kind of rename is not supported")
        while True:
            self._reaper.make_room()
            source = self._namespace.entry(parent, name)
            target = self._maybe(new_parent, new_name)
            numbers: set[int] = set()
            directories = {parent, new_parent}
            if target is not None:
                (directories if target.type == DT_DIR else numbers).add(target.inode)
            moves = parent != new_parent and any(e is not None and e.type == DT_DIR for e in (source, target))
            if moves or (target is not None and flags & RENAME_EXCHANGE):
                (directories if source.type == DT_DIR else numbers).add(source.inode)
            with self._tree_lock(moves):
                if moves:
                    self._check_no_loop(source, new_parent)
                    if target is not None and flags & RENAME_EXCHANGE:
                        self._check_no_loop(target, parent)
                action = partial(
                    self._rename, parent=parent, source=source, new_parent=new_parent, new_name=new_name,
                    target=target, flags=flags,
                )  # fmt: skip
                with self._inodes.locked(*numbers, directories=directories):
                    if self._space.run(action):
                        break
        self._reaper.kick()

    def _maybe(self, parent: int, name: bytes) -> Entry | None:
        try:
            return self._namespace.entry(parent, name)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return None

    @contextmanager
    def _tree_lock(self, wanted: bool) -> Iterator[None]:
        if not wanted:
            yield
            return
        core = self._core
        address = core.volume.superblock.superblock_lock
        try:
            tenure = core.locks.acquire(address, Guards.SUPERBLOCK, LockMode.EXCLUSIVE, wait=DIRECTORY_WAIT_SECONDS)
        except LockedByOther as error:
            raise self._inodes.busy(error) from error
        try:
            yield
        finally:
            core.locks.unpin(tenure)

    def _check_no_loop(self, moved: Entry, into: int) -> None:
        """OSError(EINVAL) when the directory `into` lies at or below what is moved."""
        if moved.type != DT_DIR:
            return
        root = self._core.volume.superblock.root_inode
        at = into
        for _ in range(_TREE_MAX_DEPTH):
            if at == moved.inode:
                raise OSError(EINVAL, "a directory cannot be moved into itself")
            if at == root:
                return
            at = self._inodes.look(at, fresh=True).inode.directory_parent
        raise OSError(EINVAL, "the directories above do not lead to the root")

    def _rename(
        self,
        op: Operation,
        parent: int,
        source: Entry,
        new_parent: int,
        new_name: bytes,
        target: Entry | None,
        flags: int,
    ) -> bool:
        """False: what was looked up is not there any more."""
        old_dir = self._inodes.owned(parent)
        new_dir = self._namespace.live_directory(new_parent)
        if self._writer.find(old_dir, source.name) != source or self._writer.find(new_dir, new_name) != target:
            return False
        if target is not None and flags & RENAME_NOREPLACE:
            raise OSError(EEXIST, "the new name exists")
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise OSError(ENOENT, "there is nothing to exchange with")
            self._exchange(op, old_dir.inode.number, source, new_dir.inode.number, target)
        else:
            if target is not None and target.inode == source.inode:
                return True  # two names of one file: rename(2) does nothing
            self._move(op, parent, source, new_parent, new_name, target)
        touch_times(self._core, old_dir.inode, modified=True)
        touch_times(self._core, new_dir.inode, modified=True)
        op.completes = True
        return True

    def _move(
        self, op: Operation, parent: int, source: Entry, new_parent: int, new_name: bytes, target: Entry | None
    ) -> None:
        old_dir, new_dir = self._inodes.owned(parent), self._inodes.owned(new_parent)
        is_directory = source.type == DT_DIR
        entry = new_entry(new_dir.inode, new_name, source.inode, source.generation, source.type)
        if target is not None:
            if is_directory != (target.type == DT_DIR):
                raise OSError(ENOTDIR if is_directory else EISDIR, "a directory and something else")
            replaced = self._inodes.owned(target.inode, target.generation)
            self._namespace.drop(op, new_dir, replaced)
            self._writer.replace(op, new_dir, entry)
        else:
            self._writer.insert(op, new_dir, entry)
        self._writer.remove(op, old_dir, source.name)
        if is_directory and parent != new_parent:
            self._reparent(op, source, new_parent)
            old_dir.inode.nlink -= 1
            new_dir.inode.nlink += 1

    def _exchange(self, op: Operation, parent: int, source: Entry, new_parent: int, target: Entry) -> None:
        old_dir, new_dir = self._inodes.owned(parent), self._inodes.owned(new_parent)
        self._writer.replace(
            op, old_dir, new_entry(old_dir.inode, source.name, target.inode, target.generation, target.type)
        )
        self._writer.replace(
            op, new_dir, new_entry(new_dir.inode, target.name, source.inode, source.generation, source.type)
        )
        for moved in (source, target):
            obj = self._inodes.owned(moved.inode, moved.generation)
            op.touch(obj)
            touch_times(self._core, obj.inode, modified=False)
        if parent == new_parent:
            return
        for moved, to, delta in ((source, new_parent, 1), (target, parent, -1)):
            if moved.type == DT_DIR:
                self._reparent(op, moved, to)
                new_dir.inode.nlink += delta
                old_dir.inode.nlink -= delta

    def _reparent(self, op: Operation, moved: Entry, to: int) -> None:
        obj = self._inodes.owned(moved.inode, moved.generation)
        op.touch(obj)
        obj.inode.directory_parent = to
        touch_times(self._core, obj.inode, modified=False)
