"""The FUSE adapter: the kernel's requests to operations and back. It holds no logic of its own."""

from __future__ import annotations

import logging
import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from errno import EBADF, EEXIST, EISDIR, ENFILE, ENOTDIR, ENOTTY, EOPNOTSUPP, EROFS, ESTALE
from typing import Final

from vmfs.cluster.locktable import Tenure
from vmfs.core.attributes import Attributes, attr_of
from vmfs.core.dataplane import DataPlane
from vmfs.core.fileops import FileOps
from vmfs.core.handover import FileHandOvers
from vmfs.core.inodes import Inodes, stale
from vmfs.core.namespace import Namespace, NewFile
from vmfs.core.nodeids import is_of, nodeid_of, number_of
from vmfs.core.openfile import Handle, OpenFiles
from vmfs.core.reaper import Reaper
from vmfs.core.rename import Renamer
from vmfs.core.space import Space
from vmfs.core.state import KERNEL_CACHE_SECONDS, LOCK_WAIT_SECONDS, Core
from vmfs.core.succession import Legacy, lost
from vmfs.errors import DamagedBlock, DeviceError, LockedByOther
from vmfs.fuse.contract import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    ROOT_ID,
    AttrReply,
    Context,
    CopyRange,
    DirEntry,
    Entry,
    Ioctl,
    IoctlReply,
    Negotiated,
    OpenReply,
    SetAttr,
    Statfs,
    WouldBlock,
    cache_policy,
)
from vmfs.ondisk.directory import Entry as NamedEntry
from vmfs.ondisk.inode import Inode
from vmfs.ondisk.lock import Guards, LockMode

log = logging.getLogger("vmfs.core")

COPY_MAX_BYTES: Final = 64 << 20  # a larger copy_file_range comes back short: it would hold its thread for too long
_COPY_STEP: Final = 1 << 20
_FIRST_COOKIE: Final = 2  # "." and ".." have cookies 1 and 2


class FileSystem:
    """Implements `vmfs.fuse.contract.Operations`."""

    def __init__(
        self, core: Core, inodes: Inodes, files: OpenFiles, space: Space, namespace: Namespace, renamer: Renamer,
        attributes: Attributes, fileops: FileOps, plane: DataPlane, reaper: Reaper, legacy: Legacy | None = None,
    ) -> None:  # fmt: skip
        self._legacy = legacy or Legacy()
        self._core = core
        self._root = core.volume.superblock.root_inode
        self._inodes = inodes
        self._files = files
        self._space = space
        self._namespace = namespace
        self._renamer = renamer
        self._attributes = attributes
        self._fileops = fileops
        self._plane = plane
        self._reaper = reaper
        self.hand_overs = FileHandOvers(core, inodes, files, attributes, self._legacy)
        plane.expects = self.hand_overs.expects
        self.negotiated: Negotiated | None = None
        self._root_seen: AttrReply | None = None

    # -- translation -------------------------------------------------------------------------------

    def _number(self, nodeid: int) -> int:
        """The number of the inode that the kernel means. OSError(ESTALE) when the number is another file's by now."""
        if nodeid == ROOT_ID:
            return self._root
        number = number_of(nodeid)
        for fresh in (False, True):  # what is believed of it may be older than what the kernel was told
            if is_of(nodeid, self._inodes.look(number, fresh=fresh).inode):
                return number
        raise stale(number)

    def _lock_address(self, nodeid: int) -> int:
        """The lock of an inode, whatever has become of it."""
        return self._inodes.lock_address(self._root if nodeid == ROOT_ID else number_of(nodeid))

    def _entry(self, inode: Inode) -> Entry:
        nodeid = ROOT_ID if inode.number == self._root else nodeid_of(inode)
        attr = attr_of(self._core, inode)
        return Entry(nodeid, inode.inode_generation, attr, KERNEL_CACHE_SECONDS, KERNEL_CACHE_SECONDS)

    def _attr_reply(self, number: int) -> AttrReply:
        return AttrReply(attr_of(self._core, self._inodes.look(number).inode), KERNEL_CACHE_SECONDS)

    # -- life --------------------------------------------------------------------------------------

    def init(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated

    def destroy(self) -> None:
        self.hand_overs.close()
        if not self._core.membership.lease_valid(self._core.clock.now()):
            return  # nothing can be put in order; whoever holds a lock may hang in the storage
        for fh in list(self._files.handles):
            self._close(fh)

    # -- names -------------------------------------------------------------------------------------

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Entry:
        number = self._number(parent)
        if name == b".":
            return self._entry(self._named(number))
        if name == b"..":
            return self._entry(self._named(self._inodes.look(number).inode.directory_parent or number))
        return self._entry(self._namespace.lookup(number, name))

    def _named(self, number: int) -> Inode:
        """What an NFS handle led to. OSError(ESTALE) for what is no file, or has no name any more."""
        inode = self._inodes.look(number).inode
        if inode.is_layer or not inode.nlink:
            raise stale(number)
        return inode

    def forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per look-up."""

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Entry:
        return self._entry(self._make(ctx, parent, name, NewFile(mode, ctx.uid, ctx.gid, rdev=rdev)))

    def _make(self, ctx: Context, parent: int, name: bytes, new: NewFile) -> Inode:
        with self._legacy.once(self._core, ctx.unique) as done:
            if done:
                return self._namespace.lookup(self._number(parent), name)
            return self._namespace.make(self._number(parent), name, new)

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Entry:
        new = NewFile(stat.S_IFDIR | stat.S_IMODE(mode), ctx.uid, ctx.gid)
        return self._entry(self._make(ctx, parent, name, new))

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Entry:
        new = NewFile(stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, target=target)
        return self._entry(self._make(ctx, parent, name, new))

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        return self._inodes.look(self._number(nodeid)).inode.inline

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        self._remove(ctx, parent, name, directory=False)

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        self._remove(ctx, parent, name, directory=True)

    def _remove(self, ctx: Context, parent: int, name: bytes, *, directory: bool) -> None:
        with self._legacy.once(self._core, ctx.unique) as done:
            if not done:
                self._namespace.remove(self._number(parent), name, directory=directory)

    def rename(self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        with self._legacy.once(self._core, ctx.unique) as done:
            if not done:
                self._renamer.rename(self._number(parent), name, self._number(newparent), newname, flags)

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> Entry:
        with self._legacy.once(self._core, ctx.unique) as done:
            if done:
                return self._entry(self._inodes.look(self._number(nodeid)).inode)
            return self._entry(self._namespace.link(self._number(nodeid), self._number(newparent), newname))

    # -- attributes --------------------------------------------------------------------------------

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> AttrReply:
        number = self._number(nodeid)
        if number == self._root:
            return self._root_attr()
        file = self._files.table.get(number)
        if file is not None and file.owned:
            self._attributes.set_times(file)
        return self._attr_reply(number)

    def _root_attr(self) -> AttrReply:
        """Of the root: from memory while the storage does not answer, so that the mount can be asked what is wrong."""
        if self._root_seen is None or self._core.membership.lease_valid(self._core.clock.now()):
            self._root_seen = self._attr_reply(self._root)
        return self._root_seen

    def setattr(self, ctx: Context, nodeid: int, fh: int | None, change: SetAttr) -> AttrReply:
        number = self._number(nodeid)
        if change.size is not None:
            self._fileops.truncate(number, change.size)
        if _changes_attributes(change):
            self._attributes.change(number, change)
        return self._attr_reply(number)

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        return self._attributes.get_xattr(self._number(nodeid), name)

    def listxattr(self, ctx: Context, nodeid: int) -> Sequence[bytes]:
        return self._attributes.list_xattrs(self._number(nodeid))

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int) -> None:
        with self._legacy.once(self._core, ctx.unique) as done:
            if not done:
                self._attributes.set_xattr(self._number(nodeid), name, value, flags)

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        with self._legacy.once(self._core, ctx.unique) as done:
            if not done:
                self._attributes.remove_xattr(self._number(nodeid), name)

    def statfs(self, ctx: Context, nodeid: int) -> Statfs:
        size = self._core.block_bytes
        free = self._space.free_blocks()
        units = free * self._core.geometry.units_per_chunk // self._core.geometry.inode_units
        total = self._core.geometry.total_blocks()
        return Statfs(total, free, free, files=units, ffree=units, bsize=size, frsize=size)

    # -- files -------------------------------------------------------------------------------------

    def open(self, ctx: Context, nodeid: int, flags: int, kill_suidgid: bool) -> OpenReply:
        number = self._number(nodeid)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        truncates = bool(flags & os.O_TRUNC) and self.negotiated is not None and self.negotiated.atomic_o_trunc
        # Anew, so that who opens a file sees what was synced before, wherever that was; a writer looks under the lock.
        inode = self._inodes.look(number, fresh=not writes).inode
        if inode.is_directory:
            raise OSError(EISDIR, "is a directory")
        if inode.is_layer:
            raise stale(number)
        if writes and self._core.read_only:
            raise OSError(EROFS, "the mount is read-only")
        if (fh := self._legacy.opened.pop(ctx.unique, None)) is not None and fh in self._files.handles:
            return OpenReply(fh, cache_policy(flags))
        fh = self._add(self._open(inode, flags, writes), ctx.unique)
        while self._files.handles[fh].waits and not self.hand_overs.expects(inode):  # it has come meanwhile
            self._close(fh)
            fh = self._add(self._open(inode, flags, writes), ctx.unique)
        try:
            if truncates:
                self._fileops.truncate(number, 0)
            if kill_suidgid and truncates:
                self._attributes.kill_setid(number)
        except BaseException:
            self._close(fh)
            raise
        return OpenReply(fh, cache_policy(flags))

    def _open(self, inode: Inode, flags: int, writes: bool) -> Handle:
        if not writes:
            return self._open_for_reading(inode, flags)
        if self.hand_overs.expects(inode):
            handle = self._open_for_reading(inode, flags)
            handle.waits = True
            return handle
        return self._open_for_writing(inode, flags)

    def _add(self, handle: Handle, unique: int) -> int:
        with self._core.transactions.mutex:
            fh = self._files.add(handle)
            try:
                self._legacy.add(fh, handle, unique)
                return fh
            except OSError:
                pass
        self._close(fh)
        raise OSError(ENFILE, "too many files are open in this mount")

    def _open_for_reading(self, inode: Inode, flags: int) -> Handle:
        with self._core.transactions.mutex:
            file = self._files.get(self._core, self._inodes, inode.number, inode.inode_generation)
            file.look_again()
            return Handle(file, flags, None)

    def _open_for_writing(self, inode: Inode, flags: int) -> Handle:
        core = self._core
        lock = self._inodes.lock_address(inode.number)
        try:
            tenure = core.locks.acquire(lock, Guards.INODE, LockMode.EXCLUSIVE, wait=LOCK_WAIT_SECONDS)
        except LockedByOther as error:
            raise self._inodes.busy(error) from error
        try:
            self._reaper.cut_before_writing(inode.number)
            with core.transactions.mutex:
                return self._begin_writing(inode.number, inode.inode_generation, flags, tenure)
        except BaseException:
            core.locks.unpin(tenure)
            raise

    def _begin_writing(self, number: int, generation: int, flags: int, tenure: Tenure) -> Handle:
        self._core.store.hold(tenure.address, tenure.version)
        self._inodes.forget(number)
        self._inodes.owned(number, generation)
        file = self._files.get(self._core, self._inodes, number, generation)
        try:
            file.start_writing()
        except BaseException:
            self._files.put(file)
            raise
        return Handle(file, flags, tenure)

    def create(
        self, ctx: Context, parent: int, name: bytes, mode: int, flags: int, kill_suidgid: bool
    ) -> tuple[Entry, OpenReply]:
        number = self._number(parent)
        try:
            inode = self._make(ctx, parent, name, NewFile(stat.S_IFREG | stat.S_IMODE(mode), ctx.uid, ctx.gid))
            flags &= ~os.O_TRUNC
        except OSError as error:
            if error.errno != EEXIST or flags & os.O_EXCL:
                raise
            inode = self._namespace.lookup(number, name)
        opened = self.open(ctx, nodeid_of(inode), flags, kill_suidgid)
        return self._entry(self._inodes.look(inode.number).inode), opened

    def flush(self, ctx: Context, nodeid: int, fh: int) -> None:
        handle = self._files.handles.get(fh)
        if handle is not None and handle.writes:
            self._attributes.set_times(handle.file)

    def release(self, nodeid: int, fh: int, flags: int) -> None:
        self._close(fh)

    def _close(self, fh: int) -> None:
        core = self._core
        handle = self._files.handles.pop(fh, None)
        if handle is None:
            return
        file = handle.file
        try:
            if handle.tenure is not None:
                self._attributes.set_times(file)
        finally:
            with core.transactions.mutex:
                self._legacy.drop(fh)
                tenure, handle.tenure = handle.tenure, None  # unless it was handed over in this moment
                if tenure is not None:
                    file.end_writing()
                if not handle.lost:
                    self._files.put(file)
            if tenure is not None:
                core.locks.unpin(tenure)
        with core.transactions.mutex:
            if not file.handles and (file.number, file.generation) in core.orphans.entries:
                self._reaper.kick()

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        handle = self._files.handles.get(fh)
        if handle is not None and handle.lost:
            raise lost(handle.file.number)
        if handle is not None and handle.writes and not datasync:
            self._attributes.set_times(handle.file)
        self._core.transactions.sync(self._lock_address(nodeid))

    def fallocate(self, ctx: Context, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        number = self._number(nodeid)
        keep_size = bool(mode & FALLOC_FL_KEEP_SIZE)
        match mode & ~FALLOC_FL_KEEP_SIZE:
            case 0:
                self._fileops.allocate(number, offset, length, keep_size=keep_size)
            case m if m == FALLOC_FL_PUNCH_HOLE and keep_size:
                self._fileops.punch(number, offset, length)
            case m if m == FALLOC_FL_ZERO_RANGE:
                self._fileops.zero(number, offset, length, keep_size=keep_size)
            case _:
                raise OSError(EOPNOTSUPP, f"fallocate mode {mode:#x}")

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        handle = self._files.handles.get(fh)
        if handle is None:
            raise stale(nodeid)
        return self._fileops.seek(handle.file, offset, whence)

    def copy_file_range(self, ctx: Context, copy: CopyRange) -> int:
        plane = self._plane
        memory = memoryview(mmap.mmap(-1, 2 * _COPY_STEP))
        done = 0
        while done < min(copy.length, COPY_MAX_BYTES):
            want = min(_COPY_STEP, copy.length - done)
            count = plane.read_slow(copy.fh_in, memory, copy.offset_in + done, want)
            if not count:
                break
            try:
                plane.write(copy.fh_out, memory, copy.offset_out + done, count)
            except WouldBlock:
                plane.write_slow(copy.fh_out, memory, copy.offset_out + done, count)
            done += count
        return done

    def ioctl(self, ctx: Context, nodeid: int, fh: int, request: Ioctl) -> IoctlReply:
        raise OSError(ENOTTY, "no such ioctl")

    # -- directories -------------------------------------------------------------------------------

    def opendir(self, ctx: Context, nodeid: int, flags: int) -> OpenReply:
        number = self._number(nodeid)
        inode = self._inodes.look(number).inode
        if not inode.is_directory:
            raise OSError(ENOTDIR, "is no directory")
        handle = self._open_for_reading(inode, flags)  # one that is removed stays until its users are gone
        return OpenReply(self._add(handle, ctx.unique))

    def releasedir(self, nodeid: int, fh: int) -> None:
        self._close(fh)

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        self._core.transactions.sync(self._lock_address(nodeid))

    def _dots(self, number: int, offset: int) -> Iterator[DirEntry]:
        if offset < 1:
            yield DirEntry(number, 1, stat.S_IFDIR, b".")
        if offset < _FIRST_COOKIE:
            above = self._inodes.look(number).inode.directory_parent or number
            yield DirEntry(above, _FIRST_COOKIE, stat.S_IFDIR, b"..")

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        number = self._number(nodeid)
        yield from self._dots(number, offset)
        for cookie, entry in self._list(number, fh, offset):
            yield DirEntry(entry.inode, cookie, entry.type << 12, entry.name)

    def _list(self, number: int, fh: int, offset: int) -> Iterator[tuple[int, NamedEntry]]:
        handle = self._files.handles.get(fh)
        if handle is None:
            raise OSError(EBADF, f"no open directory {fh}")
        return self._namespace.list(number, handle.file.generation, max(offset, _FIRST_COOKIE))

    def readdirplus(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        number = self._number(nodeid)
        yield from self._dots(number, offset)
        for cookie, entry in self._list(number, fh, offset):
            found: Entry | None = None
            try:
                inode = self._inodes.look(entry.inode).inode
                if inode.inode_generation == entry.generation:
                    found = self._entry(inode)
            except OSError as error:
                if error.errno != ESTALE:
                    raise
            except (DamagedBlock, DeviceError) as error:
                # One file that cannot be read does not hide its neighbours: whoever asks for it by name is told.
                log.error("volume %s: %r in directory %d: %s", self._core.name, entry.name, number, error)
            yield DirEntry(entry.inode, cookie, entry.type << 12, entry.name, found)


def _changes_attributes(change: SetAttr) -> bool:
    return bool(
        change.atime_now or change.mtime_now or change.kill_suidgid
        or any(v is not None for v in (change.mode, change.uid, change.gid, change.atime_ns, change.mtime_ns,
                                       change.ctime_ns))
    )  # fmt: skip
