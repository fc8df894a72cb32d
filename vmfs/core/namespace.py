"""Names: looking up, listing, creating, linking, removing. Renaming is in `vmfs.core.rename`.

Every change holds the locks of all inodes that it changes. What it is about is looked up before the locks are taken
(which ones is known only then), and looked up again under them; if it is not the same any more, it starts over.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EEXIST, EISDIR, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, ESTALE
from functools import partial
from typing import Final

from vmfs.core import directories
from vmfs.core.directories import DirectoryWriter, new_entry
from vmfs.core.inodes import Inodes, Seen, stale
from vmfs.core.makeinode import InodeMaker, NewPlace
from vmfs.core.objects import InodeObject
from vmfs.core.reaper import Reaper
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.ondisk.directory import NAME_MAX_BYTES, Entry
from vmfs.ondisk.inode import FLAG_INLINE, TAIL_MAX_BYTES, Inode
from vmfs.ondisk.orphans import OrphanKind

LINKS_MAX: Final = 1 << 31  # what 32 bits carry, signed as some tools read them
DT_DIR: Final = stat.S_IFDIR >> 12


def dt_type(mode: int) -> int:
    """The DT_* value of a mode, as directory entries carry it."""
    return stat.S_IFMT(mode) >> 12


def check_name(name: bytes) -> None:
    """OSError(ENAMETOOLONG) for more than 255 bytes."""
    if len(name) > NAME_MAX_BYTES:
        raise OSError(ENAMETOOLONG, f"names have at most {NAME_MAX_BYTES} bytes")


def touch_times(core: Core, inode: Inode, *, modified: bool) -> None:
    """The inode is changed now; with `modified`, its content too."""
    inode.ctime_ns = core.clock.wall_ns()
    if modified:
        inode.mtime_ns = inode.ctime_ns
    inode.version += 1


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is to be made."""

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    """Of a symbolic link."""


class Namespace:
    """The tree of names of a mounted volume."""

    def __init__(
        self, core: Core, inodes: Inodes, space: Space, maker: InodeMaker, writer: DirectoryWriter, reaper: Reaper
    ) -> None:
        self._core = core
        self._inodes = inodes
        self._space = space
        self._maker = maker
        self._writer = writer
        self._reaper = reaper

    # -- looking -----------------------------------------------------------------------------------

    def _reader(self, seen: Seen) -> directories.ReadBlock:
        """Reads the blocks of a directory that was looked at. OSError(ENOTDIR)."""
        if not seen.inode.is_directory:
            raise OSError(ENOTDIR, f"inode {seen.inode.number} is no directory")
        return lambda address, map_id, bucket: self._inodes.directory_block(seen, address, bucket)

    def entry(self, parent: int, name: bytes) -> Entry:
        """The entry of a name. OSError(ENOENT, ENOTDIR, ESTALE); DamagedBlock, DeviceError."""
        check_name(name)
        found = self._inodes.walk_from(
            parent, lambda seen: directories.find(seen.inode, seen.source, self._reader(seen), name)
        )
        if found is None:
            raise OSError(ENOENT, "no such name")
        return found

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that a name leads to, as it was at one moment. OSError as `entry`."""
        for _ in range(3):
            entry = self.entry(parent, name)
            try:
                inode = self._inodes.look(entry.inode).inode
            except OSError as error:
                if error.errno != ESTALE:
                    raise
            else:
                if inode.inode_generation == entry.generation:
                    return inode
            # Removed on another host since we read the directory: look at both again.
            self._inodes.forget(parent)
            self._inodes.forget(entry.inode)
        raise OSError(ENOENT, "no such name")

    def list(self, number: int, generation: int, cookie: int) -> Iterator[tuple[int, Entry]]:
        """(cookie, entry) behind `cookie` of an open directory. OSError(ENOTDIR, ESTALE); DamagedBlock, DeviceError.

        A bucket is read whole and a split cuts its order in two, so a name that is there all the time comes once.
        """
        position: int | None = directories.position_of(cookie)
        while position is not None:
            found, position = self._inodes.walk_from(number, partial(self._bucket, generation, position))
            yield from (item for item in found if item[0] > cookie)

    def _bucket(self, generation: int, position: int, seen: Seen) -> tuple[Sequence[tuple[int, Entry]], int | None]:
        if seen.inode.inode_generation != generation:
            raise stale(seen.inode.number)
        return directories.list_bucket(seen.inode, seen.source, self._reader(seen), position)

    # -- making ------------------------------------------------------------------------------------

    def make(self, parent: int, name: bytes, new: NewFile) -> Inode:
        """Create a file of any type. OSError(EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG, EMLINK); NoSpace."""
        check_name(name)
        if len(new.target) > TAIL_MAX_BYTES:
            raise OSError(ENAMETOOLONG, f"a symbolic link's target has at most {TAIL_MAX_BYTES} bytes")
        with self._maker.place() as place, self._inodes.locked(directories=(parent,)):
            return self._space.run(lambda op: self._make(op, parent, name, new, place).snapshot())

    def live_directory(self, number: int) -> InodeObject:
        """A locked directory that still has a name. OSError(ENOTDIR, ENOENT, ESTALE)."""
        directory = self._inodes.owned(number)
        if not directory.inode.is_directory:
            raise OSError(ENOTDIR, f"inode {number} is no directory")
        if not directory.inode.nlink:
            raise OSError(ENOENT, "the directory was removed")
        return directory

    def _make(self, op: Operation, parent: int, name: bytes, new: NewFile, place: NewPlace) -> InodeObject:
        directory = self.live_directory(parent)
        if self._writer.find(directory, name) is not None:
            raise OSError(EEXIST, "the name exists")
        above = directory.inode
        mode, gid = new.mode, new.gid
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        obj = self._maker.make(op, place, mode, new.uid, gid)
        inode = obj.inode
        inode.rdev = new.rdev
        if new.target:
            inode.flags |= FLAG_INLINE
            inode.inline = new.target
            inode.size = len(new.target)
        if stat.S_ISDIR(mode):
            if above.nlink >= LINKS_MAX:
                raise OSError(EMLINK, "too many directories in one")
            inode.nlink = 2
            inode.directory_parent = parent
            inode.seed = self._core.new_id()
        self._writer.insert(op, directory, new_entry(above, name, inode.number, inode.inode_generation, dt_type(mode)))
        if stat.S_ISDIR(mode):
            above.nlink += 1
        touch_times(self._core, above, modified=True)
        op.completes = True
        return obj

    def link(self, number: int, parent: int, name: bytes) -> Inode:
        """Another name for a file. OSError(EEXIST, EPERM for a directory, EMLINK, ESTALE, EBUSY); NoSpace."""
        check_name(name)
        with self._inodes.locked(number, directories=(parent,)):
            return self._space.run(lambda op: self._link(op, number, parent, name).snapshot())

    def _link(self, op: Operation, number: int, parent: int, name: bytes) -> InodeObject:
        directory = self.live_directory(parent)
        obj = self._inodes.owned(number)
        inode = obj.inode
        if inode.is_directory or inode.is_layer:
            raise OSError(EPERM, "directories have one name")
        if not inode.nlink:
            raise OSError(ENOENT, "the file was removed")
        if inode.nlink >= LINKS_MAX:
            raise OSError(EMLINK, "too many names for one file")
        if self._writer.find(directory, name) is not None:
            raise OSError(EEXIST, "the name exists")
        op.touch(obj)
        inode.nlink += 1
        touch_times(self._core, inode, modified=False)
        entry = new_entry(directory.inode, name, number, inode.inode_generation, dt_type(inode.mode))
        self._writer.insert(op, directory, entry)
        touch_times(self._core, directory.inode, modified=True)
        op.completes = True
        return obj

    # -- removing ----------------------------------------------------------------------------------

    def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        """Remove a name, and with its last name the file. OSError(ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EBUSY)."""
        while True:
            self._reaper.make_room()
            child = self.entry(parent, name)
            directories = (parent, child.inode) if child.type == DT_DIR else (parent,)
            with self._inodes.locked(child.inode, directories=directories):
                action = partial(self._remove, parent=parent, name=name, child=child, directory=directory)
                if self._space.run(action, units=0):
                    break
        self._reaper.kick()

    def _remove(self, op: Operation, parent: int, name: bytes, child: Entry, directory: bool) -> bool:
        above = self._inodes.owned(parent)
        now = self._writer.find(above, name)
        if now is None:
            raise OSError(ENOENT, "no such name")
        if now != child:
            return False
        obj = self._inodes.owned(child.inode, child.generation)
        if directory != obj.inode.is_directory:
            raise OSError(ENOTDIR if directory else EISDIR, "rmdir is for directories, unlink for all else")
        self.drop(op, above, obj)
        self._writer.remove(op, above, name)
        touch_times(self._core, above.inode, modified=True)
        op.completes = True
        return True

    def drop(self, op: Operation, above: InodeObject, obj: InodeObject) -> None:
        """An inode loses a name in `above`. OSError(ENOTEMPTY) for a directory that is not empty."""
        inode = obj.inode
        op.touch(obj)
        if inode.is_directory:
            if inode.entry_count:
                raise OSError(ENOTEMPTY, "the directory is not empty")
            op.touch(above)
            above.inode.nlink -= 1
            inode.nlink = 0
        else:
            inode.nlink -= 1
        touch_times(self._core, inode, modified=False)
        if not inode.nlink:
            self._reaper.add(op, inode, OrphanKind.REMOVE)
