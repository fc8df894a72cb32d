"""Attributes of inodes: what stat shows, how they are changed, and extended attributes."""

from __future__ import annotations

import os
import stat
from errno import EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, EPERM, ERANGE
from typing import Final

from vmfs.control.contract import CONTROL_XATTR
from vmfs.core.inodes import Inodes
from vmfs.core.namespace import touch_times
from vmfs.core.openfile import OpenFile, OpenFiles
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.transactions import Operation
from vmfs.fuse.contract import Attr, SetAttr
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import TAIL_MAX_BYTES, Inode

_STAT_UNIT: Final = 512  # st_blocks counts these
_XATTR_NAME_MAX_BYTES: Final = 255
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")  # system.* is access control lists: not kept
_TIME_MIN_NS: Final = -(1 << 63)
_TIME_MAX_NS: Final = (1 << 63) - 1
_SETID: Final = stat.S_ISUID | stat.S_ISGID


def attr_of(core: Core, inode: Inode) -> Attr:
    """What stat(2) shows: `blocks` is the space of the file's own and of what it shares with its clones."""
    unit = METADATA_BLOCK_BYTES if inode.is_directory else core.block_bytes
    return Attr(
        ino=inode.number, mode=inode.mode, size=inode.size,
        blocks=(inode.own_blocks + inode.shared_blocks) * (unit // _STAT_UNIT),
        atime_ns=inode.atime_ns, mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns, nlink=inode.nlink,
        uid=inode.uid, gid=inode.gid, rdev=inode.rdev, blksize=core.block_bytes,
    )  # fmt: skip


def _storable(time_ns: int) -> int:
    """The nearest time that an inode can hold: 64 bits of nanoseconds end in the years 1677 and 2262."""
    return min(max(time_ns, _TIME_MIN_NS), _TIME_MAX_NS)


def without_setid(mode: int) -> int:
    """The mode less set-user-id, and less set-group-id where the group may execute."""
    if not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


class Attributes:
    """Changes of attributes, each under the inode's lock."""

    def __init__(self, core: Core, inodes: Inodes, files: OpenFiles, space: Space) -> None:
        self._core = core
        self._inodes = inodes
        self._files = files
        self._space = space
        self.control_path = b""
        """Path of the control socket: shown as an extended attribute of the root, never stored."""

    def change(self, number: int, change: SetAttr) -> None:
        """Apply all of a SETATTR but the size. OSError(EBUSY, ESTALE)."""
        with self._inodes.locked(number):
            self._space.run(lambda op: self._change(op, number, change), units=0)

    def _change(self, op: Operation, number: int, change: SetAttr) -> None:
        obj = self._inodes.owned(number)
        op.touch(obj)
        inode = obj.inode
        now = self._core.clock.wall_ns()
        if change.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None or change.gid is not None:
            inode.uid = inode.uid if change.uid is None else change.uid
            inode.gid = inode.gid if change.gid is None else change.gid
            if change.mode is None:
                inode.mode = without_setid(inode.mode)
        if change.kill_suidgid:
            inode.mode = without_setid(inode.mode)
        if change.atime_now or change.atime_ns is not None:
            inode.atime_ns = now if change.atime_ns is None else _storable(change.atime_ns)
        if change.mtime_now or change.mtime_ns is not None:
            inode.mtime_ns = now if change.mtime_ns is None else _storable(change.mtime_ns)
        inode.ctime_ns = now if change.ctime_ns is None else _storable(change.ctime_ns)
        inode.version += 1
        file = self._files.table.get(number)
        if file is not None:
            file.setid = bool(inode.mode & _SETID)
            # A time that was set stays: what was written before must not set it again.
            file.touched = file.touched and change.mtime_ns is None and not change.mtime_now

    def kill_setid(self, number: int) -> None:
        """Clear set-user-id and set-group-id before a write. OSError(EBUSY, ESTALE)."""
        if self._inodes.look(number).inode.mode & _SETID:
            self.change(number, SetAttr(kill_suidgid=True))

    def set_times(self, file: OpenFile) -> None:
        """A file was written in place: now its times say so. Its lock is pinned by a writer."""
        if not file.touched:
            return
        with self._core.transactions.operation() as op:
            if not file.owned:
                return
            file.touched = False
            obj = self._core.store.inode(file.number)
            op.touch(obj)
            touch_times(self._core, obj.inode, modified=True)

    # -- extended attributes -----------------------------------------------------------------------

    def _is_root(self, number: int) -> bool:
        return number == self._core.volume.superblock.root_inode

    def get_xattr(self, number: int, name: bytes) -> bytes:
        """OSError(ENODATA, ESTALE)."""
        if name == CONTROL_XATTR.encode() and self._is_root(number) and self.control_path:
            return self.control_path
        value = self._inodes.look(number).inode.xattrs.get(name)
        if value is None:
            raise OSError(ENODATA, "no such attribute")
        return value

    def list_xattrs(self, number: int) -> list[bytes]:
        """OSError(ESTALE)."""
        return list(self._inodes.look(number).inode.xattrs)

    def set_xattr(self, number: int, name: bytes, value: bytes, flags: int) -> None:
        """OSError(EEXIST, ENODATA, ENOSPC, ERANGE, EOPNOTSUPP, EPERM, EBUSY)."""
        self._check_xattr(name)
        if len(name) > _XATTR_NAME_MAX_BYTES:
            raise OSError(ERANGE, "the attribute's name is too long")

        def action(op: Operation) -> None:
            obj = self._inodes.owned(number)
            op.touch(obj)
            inode = obj.inode
            if flags & os.XATTR_CREATE and name in inode.xattrs:
                raise OSError(EEXIST, "the attribute exists")
            if flags & os.XATTR_REPLACE and name not in inode.xattrs:
                raise OSError(ENODATA, "no such attribute")
            op.completes = True
            inode.xattrs[name] = value
            if len(value) > TAIL_MAX_BYTES or inode.tail_bytes() > TAIL_MAX_BYTES:
                raise OSError(ENOSPC, f"a file's extended attributes have {TAIL_MAX_BYTES} bytes together")
            touch_times(self._core, inode, modified=False)

        with self._inodes.locked(number):
            self._space.run(action, units=0)

    def remove_xattr(self, number: int, name: bytes) -> None:
        """OSError(ENODATA, EOPNOTSUPP, EPERM, EBUSY)."""
        self._check_xattr(name)

        def action(op: Operation) -> None:
            obj = self._inodes.owned(number)
            op.touch(obj)
            if obj.inode.xattrs.pop(name, None) is None:
                raise OSError(ENODATA, "no such attribute")
            op.completes = True
            touch_times(self._core, obj.inode, modified=False)

        with self._inodes.locked(number):
            self._space.run(action, units=0)

    @staticmethod
    def _check_xattr(name: bytes) -> None:
        if name == CONTROL_XATTR.encode():
            raise OSError(EPERM, "this attribute is the mount's own")
        if not name.startswith(_XATTR_NAMESPACES):
            raise OSError(EOPNOTSUPP, "attributes are user.*, trusted.* and security.* ones")
        if name == b"security.capability":
            raise OSError(EOPNOTSUPP, "file capabilities are not kept: a write would have to remove them")
