"""A file system in memory that keeps the contract of `vmfs.fuse.contract`, for tests of the protocol adapter.

Sparse: a file is a dict of 4 KiB pages. One lock over everything: correctness is what it is for.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vmfs.fuse.contract import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_ID,
    SEEK_DATA,
    Attr,
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

PAGE = 4096
CAPACITY_PAGES = 1 << 20
IOCTL_DOUBLE = 0xC0047A01
"""A read-write ioctl of this file system: gives back twice the u32 it is given."""


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(eq=False)
class Node:
    ino: int
    generation: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 1
    size: int = 0
    parent: int = ROOT_ID
    target: bytes = b""
    pages: dict[int, bytearray] = field(default_factory=dict)
    children: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime_ns: int = field(default_factory=time.time_ns)
    mtime_ns: int = field(default_factory=time.time_ns)
    ctime_ns: int = field(default_factory=time.time_ns)
    opens: int = 0

    def touch(self) -> None:
        self.mtime_ns = self.ctime_ns = time.time_ns()


class RamFs:
    """Implements `Operations` and `DataPlane`. `hooks[op]` is called first in that operation, to fail or to wait."""

    def __init__(self, *, timeout_s: float = 0.0) -> None:
        self.lock = threading.RLock()
        self.timeout_s = timeout_s
        self.nodes: dict[int, Node] = {}
        self.handles: dict[int, Node] = {}
        self.lookups: dict[int, int] = {}
        self.calls: list[str] = []
        self.hooks: dict[str, Callable[[], object]] = {}
        self.sizes: list[int] = []
        self.negotiated: Negotiated | None = None
        self.destroyed = 0
        self.would_block = False
        self._next_ino = ROOT_ID
        self._next_fh = 1
        self._generation = 1
        self._new(stat.S_IFDIR | 0o755, Context(0, 0, 0), ROOT_ID)

    # -- helpers -----------------------------------------------------------------------------------

    def _call(self, name: str) -> None:
        self.calls.append(name)
        hook = self.hooks.get(name)
        if hook is not None:
            hook()

    def _new(self, mode: int, ctx: Context, parent: int, rdev: int = 0) -> Node:
        node = Node(self._next_ino, self._generation, mode, ctx.uid, ctx.gid, rdev, parent=parent)
        if stat.S_ISDIR(mode):
            node.nlink = 2
        self.nodes[node.ino] = node
        self._next_ino += 1
        return node

    def _node(self, nodeid: int) -> Node:
        try:
            return self.nodes[nodeid]
        except KeyError:
            raise fail(errno.ESTALE) from None

    def _dir(self, nodeid: int) -> Node:
        node = self._node(nodeid)
        if not stat.S_ISDIR(node.mode):
            raise fail(errno.ENOTDIR)
        return node

    def _attr(self, node: Node) -> Attr:
        return Attr(
            ino=node.ino,
            mode=node.mode,
            size=node.size,
            blocks=len(node.pages) * (PAGE // 512),
            atime_ns=node.atime_ns,
            mtime_ns=node.mtime_ns,
            ctime_ns=node.ctime_ns,
            nlink=node.nlink,
            uid=node.uid,
            gid=node.gid,
            rdev=node.rdev,
        )

    def _entry(self, node: Node) -> Entry:
        self.lookups[node.ino] = self.lookups.get(node.ino, 0) + 1
        return Entry(node.ino, node.generation, self._attr(node), self.timeout_s, self.timeout_s)

    def _add(self, parent: int, name: bytes, node: Node) -> Entry:
        self._dir(parent).children[name] = node.ino
        self._dir(parent).touch()
        return self._entry(node)

    def _absent(self, parent: int, name: bytes) -> None:
        if name in self._dir(parent).children:
            raise fail(errno.EEXIST)

    def _drop(self, node: Node) -> None:
        if node.nlink == 0 and node.opens == 0:
            self.nodes.pop(node.ino, None)

    def _open(self, node: Node, flags: int) -> OpenReply:
        fh = self._next_fh
        self._next_fh += 1
        node.opens += 1
        self.handles[fh] = node
        return OpenReply(fh, flags)

    def _cut(self, node: Node, size: int) -> None:
        if size < node.size:
            self._zero(node, size, node.size - size, punch=True)
        node.size = size
        node.touch()

    def _zero(self, node: Node, offset: int, length: int, *, punch: bool) -> None:
        at, end = offset, offset + length
        while at < end:
            n = min(end - at, PAGE - at % PAGE)
            if n == PAGE and punch:
                node.pages.pop(at // PAGE, None)
            elif at // PAGE in node.pages:
                node.pages[at // PAGE][at % PAGE : at % PAGE + n] = bytes(n)
            at += n

    def _kill(self, node: Node) -> None:
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID

    # -- DataPlane ---------------------------------------------------------------------------------

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        if self.would_block:
            raise WouldBlock
        return self.read_slow(fh, buf, offset, size)

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        if self.would_block:
            raise WouldBlock
        return self.write_slow(fh, buf, offset, size)

    def read_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        self._call("read")
        with self.lock:
            node = self.handles[fh]
            self.sizes.append(size)
            size = max(0, min(size, node.size - offset))
            done = 0
            while done < size:
                at = offset + done
                n = min(size - done, PAGE - at % PAGE)
                page = node.pages.get(at // PAGE)
                buf[done : done + n] = page[at % PAGE : at % PAGE + n] if page is not None else bytes(n)
                done += n
            return size

    def write_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        self._call("write")
        with self.lock:
            node = self.handles[fh]
            self.sizes.append(size)
            done = 0
            while done < size:
                at = offset + done
                n = min(size - done, PAGE - at % PAGE)
                page = node.pages.setdefault(at // PAGE, bytearray(PAGE))
                page[at % PAGE : at % PAGE + n] = buf[done : done + n]
                done += n
            node.size = max(node.size, offset + size)
            node.touch()
            return size

    def append(self, fh: int, buf: memoryview, size: int, unique: int = 0) -> int:
        self._call("append")
        with self.lock:
            offset = self.handles[fh].size
            self.write_slow(fh, buf, offset, size)
            return offset

    def kill_suidgid(self, fh: int) -> None:
        with self.lock:
            self._kill(self.handles[fh])

    # -- Operations --------------------------------------------------------------------------------

    def init(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated

    def destroy(self) -> None:
        self.destroyed += 1

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Entry:
        self._call("lookup")
        with self.lock:
            if name == b".":
                return self._entry(self._node(parent))
            node = self._dir(parent)
            if name == b"..":
                return self._entry(self._node(node.parent))
            if name not in node.children:
                raise fail(errno.ENOENT)
            return self._entry(self._node(node.children[name]))

    def forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        with self.lock:
            for nodeid, count in forgets:
                self.lookups[nodeid] = self.lookups.get(nodeid, 0) - count

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> AttrReply:
        self._call("getattr")
        with self.lock:
            return AttrReply(self._attr(self._node(nodeid)), self.timeout_s)

    def setattr(self, ctx: Context, nodeid: int, fh: int | None, change: SetAttr) -> AttrReply:
        self._call("setattr")
        with self.lock:
            node = self._node(nodeid)
            if change.kill_suidgid or change.uid is not None or change.gid is not None:
                self._kill(node)
            if change.mode is not None:
                node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(change.mode)
            node.uid = node.uid if change.uid is None else change.uid
            node.gid = node.gid if change.gid is None else change.gid
            if change.size is not None:
                self._cut(node, change.size)
            now = time.time_ns()
            if change.atime_now or change.atime_ns is not None:
                node.atime_ns = now if change.atime_ns is None else change.atime_ns
            if change.mtime_now or change.mtime_ns is not None:
                node.mtime_ns = now if change.mtime_ns is None else change.mtime_ns
            node.ctime_ns = now
            return AttrReply(self._attr(node), self.timeout_s)

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        self._call("readlink")
        return self._node(nodeid).target

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Entry:
        with self.lock:
            self._absent(parent, name)
            node = self._new(stat.S_IFLNK | 0o777, ctx, parent)
            node.target, node.size = target, len(target)
            return self._add(parent, name, node)

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Entry:
        with self.lock:
            self._absent(parent, name)
            return self._add(parent, name, self._new(mode, ctx, parent, rdev))

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Entry:
        with self.lock:
            self._absent(parent, name)
            self._dir(parent).nlink += 1
            return self._add(parent, name, self._new(stat.S_IFDIR | mode, ctx, parent))

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        self._call("unlink")
        with self.lock:
            node = self._node(self._dir(parent).children.pop(name))
            self._dir(parent).touch()
            node.nlink -= 1
            self._drop(node)

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        with self.lock:
            node = self._dir(self._dir(parent).children[name])
            if node.children:
                raise fail(errno.ENOTEMPTY)
            del self._dir(parent).children[name]
            self._dir(parent).nlink -= 1
            node.nlink = 0
            self._drop(node)

    def rename(self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise fail(errno.EINVAL)
        with self.lock:
            source, goal = self._dir(parent).children, self._dir(newparent).children
            if flags & RENAME_NOREPLACE and newname in goal:
                raise fail(errno.EEXIST)
            if flags & RENAME_EXCHANGE:
                source[name], goal[newname] = goal[newname], source[name]
                return
            if newname in goal:
                old = self._node(goal[newname])
                if old.children:
                    raise fail(errno.ENOTEMPTY)
                old.nlink = 0 if stat.S_ISDIR(old.mode) else old.nlink - 1
                self._drop(old)
            goal[newname] = source.pop(name)
            self._node(goal[newname]).parent = newparent

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> Entry:
        with self.lock:
            self._absent(newparent, newname)
            node = self._node(nodeid)
            node.nlink += 1
            return self._add(newparent, newname, node)

    def open(self, ctx: Context, nodeid: int, flags: int, kill_suidgid: bool) -> OpenReply:
        self._call("open")
        with self.lock:
            node = self._node(nodeid)
            if flags & os.O_TRUNC:
                self.calls.append("open-trunc")
                if kill_suidgid:
                    self._kill(node)
                self._cut(node, 0)
            return self._open(node, cache_policy(flags))

    def create(
        self, ctx: Context, parent: int, name: bytes, mode: int, flags: int, kill_suidgid: bool
    ) -> tuple[Entry, OpenReply]:
        self._call("create")
        with self.lock:
            if name in self._dir(parent).children:
                if flags & os.O_EXCL:
                    raise fail(errno.EEXIST)
                node = self._node(self._dir(parent).children[name])
                return self._entry(node), self.open(ctx, node.ino, flags, kill_suidgid)
            node = self._new(mode, ctx, parent)
            return self._add(parent, name, node), self._open(node, cache_policy(flags))

    def flush(self, ctx: Context, nodeid: int, fh: int) -> None:
        self._call("flush")

    def release(self, nodeid: int, fh: int, flags: int) -> None:
        with self.lock:
            node = self.handles.pop(fh)
            node.opens -= 1
            self._drop(node)

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        self._call("fdatasync" if datasync else "fsync")

    def opendir(self, ctx: Context, nodeid: int, flags: int) -> OpenReply:
        with self.lock:
            return self._open(self._dir(nodeid), 0)

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        self._call("readdir")
        node = self._dir(nodeid)
        names = [(b".", node.ino), (b"..", node.parent), *node.children.items()]
        for index, (name, ino) in enumerate(names[offset:], offset + 1):
            yield DirEntry(ino, index, self.nodes[ino].mode, name)

    def readdirplus(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        self._call("readdirplus")
        for e in self.readdir(ctx, nodeid, fh, offset):
            dots = e.name in (b".", b"..")
            yield DirEntry(e.ino, e.offset, e.mode, e.name, None if dots else self._entry(self.nodes[e.ino]))

    def releasedir(self, nodeid: int, fh: int) -> None:
        self.release(nodeid, fh, 0)

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        self._call("fsyncdir")

    def statfs(self, ctx: Context, nodeid: int) -> Statfs:
        used = sum(len(node.pages) for node in self.nodes.values())
        free = CAPACITY_PAGES - used
        return Statfs(CAPACITY_PAGES, free, free - 7, 1000, 1000 - len(self.nodes))

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int) -> None:
        xattrs = self._node(nodeid).xattrs
        if flags & os.XATTR_CREATE and name in xattrs:
            raise fail(errno.EEXIST)
        if flags & os.XATTR_REPLACE and name not in xattrs:
            raise fail(errno.ENODATA)
        xattrs[name] = value

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        try:
            return self._node(nodeid).xattrs[name]
        except KeyError:
            raise fail(errno.ENODATA) from None

    def listxattr(self, ctx: Context, nodeid: int) -> Sequence[bytes]:
        return list(self._node(nodeid).xattrs)

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        self.getxattr(ctx, nodeid, name)
        del self._node(nodeid).xattrs[name]

    def fallocate(self, ctx: Context, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None:
        self._call("fallocate")
        with self.lock:
            node = self.handles[fh]
            if mode & FALLOC_FL_PUNCH_HOLE:
                self._zero(node, offset, length, punch=True)
            elif mode & FALLOC_FL_ZERO_RANGE:
                self._zero(node, offset, length, punch=False)
            else:
                for page in range(offset // PAGE, (offset + length + PAGE - 1) // PAGE):
                    node.pages.setdefault(page, bytearray(PAGE))
            if not mode & FALLOC_FL_KEEP_SIZE:
                node.size = max(node.size, offset + length)
            node.touch()

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        with self.lock:
            node = self.handles[fh]
            if offset >= node.size:
                raise fail(errno.ENXIO)
            at = offset
            while at < node.size and (at // PAGE in node.pages) != (whence == SEEK_DATA):
                at = (at // PAGE + 1) * PAGE
            if at >= node.size and whence == SEEK_DATA:
                raise fail(errno.ENXIO)
            return min(at, node.size)

    def copy_file_range(self, ctx: Context, copy: CopyRange) -> int:
        self._call("copy_file_range")
        with self.lock:
            buf = memoryview(bytearray(copy.length))
            count = self.read_slow(copy.fh_in, buf, copy.offset_in, copy.length)
            if count:
                self.write_slow(copy.fh_out, buf, copy.offset_out, count)
            return count

    def ioctl(self, ctx: Context, nodeid: int, fh: int, request: Ioctl) -> IoctlReply:
        if request.cmd != IOCTL_DOUBLE:
            raise fail(errno.ENOTTY)
        value = int.from_bytes(request.data, "little")
        return IoctlReply(0, (2 * value & 0xFFFFFFFF).to_bytes(4, "little"))

