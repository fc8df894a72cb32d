"""What a file system must offer to be mounted: `Operations` (control plane) and `DataPlane`, and their
records.

Rules that hold for all calls:

- *Errors*: raise `OSError(errno, ...)`; the caller's system call fails with that errno. Anything else that is
  raised is a bug: it is logged (logger "vmfs.fuse") with its traceback and becomes EIO.
- *Threads*: `Operations` methods run on several control threads at once, `DataPlane` methods on several data
  threads at once. The kernel orders little: it holds the inode's lock over most changes through *this* mount
  (not over reads, nor over parallel direct writes), and never orders RELEASE or FORGET against anything.
- *Names* are bytes, 1 to 255 of them, without NUL or '/'. Sizes and offsets are bytes, times nanoseconds
  since the epoch (UTC, may be negative), timeouts seconds.
- *Node ids*: a nodeid is the on-disk inode number. The root is `ROOT_ID` (1) always. 0 is not a nodeid.
- *Generations* are 32 bits wide in the kernel (`inode.i_generation`) though 64 in the protocol: a larger
  value would make the kernel take every look-up for another file. (nodeid, generation) never names two files:
  NFS handles live on that.
- *Look-up counts*: each `Entry` handed to the kernel (lookup, create, mkdir, mknod, symlink, link,
  readdirplus except for "." and "..") counts one look-up of its nodeid; `forget` gives them back. An unmount
  forgets all without a call.
- *Permissions* are checked by the kernel (default_permissions) before a call arrives. Modes of create, mkdir
  and mknod arrive with the umask taken off. Set-group-id directories are the file system's business.
- *Privileges* (FUSE_HANDLE_KILLPRIV_V2, when `Negotiated.killpriv_v2`): the file system clears set-user-id
  and set-group-id where a call says so (`SetAttr.kill_suidgid`, `open(kill_suidgid=)`, `create`,
  `DataPlane.kill_suidgid`) and at each change of owner, and removes "security.capability" at every write,
  truncation and change of owner. One that cannot do the latter refuses that attribute with EOPNOTSUPP.
- *Appends*: the kernel computes the place of an O_APPEND write from a size that may be a second old. So
  O_APPEND writes come to `DataPlane.append`, which alone decides the place.
- *Synchronous writes* (O_SYNC, O_DSYNC, RWF_DSYNC): the session calls `Operations.fsync` before it answers,
  because the kernel sends none after a direct write (after a buffered one it sends its own as well).
- *Locks* (flock, POSIX, OFD) are not offered: the kernel keeps them itself, within this mount only.
- An INTERRUPT from the kernel is accepted and has no effect: a call that runs is answered when it returns. A
  file system that must wait for another host therefore bounds its waits and raises EBUSY or EAGAIN.

What the kernel caches is decided per open file by `OpenReply.flags`, see `cache_policy`.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from vmfs.fuse.records import (
    NAME_MAX_BYTES,
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
)

__all__ = [
    "BUFFER_SLACK_BYTES",
    "FALLOC_FL_KEEP_SIZE",
    "FALLOC_FL_PUNCH_HOLE",
    "FALLOC_FL_ZERO_RANGE",
    "FOPEN_CACHE_DIR",
    "FOPEN_DIRECT_IO",
    "FOPEN_KEEP_CACHE",
    "FOPEN_NOFLUSH",
    "FOPEN_NONSEEKABLE",
    "FOPEN_PARALLEL_DIRECT_WRITES",
    "GENERATION_LIMIT",
    "NAME_MAX_BYTES",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "ROOT_ID",
    "SEEK_DATA",
    "SEEK_HOLE",
    "Attr",
    "AttrReply",
    "Context",
    "CopyRange",
    "DataPlane",
    "DirEntry",
    "Entry",
    "Ioctl",
    "IoctlReply",
    "Negotiated",
    "OpenReply",
    "Operations",
    "SetAttr",
    "Statfs",
    "WouldBlock",
    "cache_policy",
]

ROOT_ID = 1
"""nodeid of the mount's root directory."""

GENERATION_LIMIT = 1 << 32
"""Generations are below this (see the module's docstring)."""

BUFFER_SLACK_BYTES = 64 * 1024
"""Room behind the largest request in every data buffer, so that an unaligned read can be read wider in
place."""

FOPEN_DIRECT_IO = 1 << 0
"""Reads and writes of this open file bypass the page cache."""
FOPEN_KEEP_CACHE = 1 << 1
"""Pages cached for this inode before this open stay. Never for a file that another host may write."""
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
"""The kernel may cache this directory's listing."""
FOPEN_NOFLUSH = 1 << 5
"""close(2) sends no FLUSH."""
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
"""Direct writes that do not extend the file run at the same time, under a shared inode lock."""

RENAME_NOREPLACE = 1 << 0
RENAME_EXCHANGE = 1 << 1
RENAME_WHITEOUT = 1 << 2

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
"""The only fallocate bits that the kernel's FUSE lets through: 0, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE."""

SEEK_DATA = 3
SEEK_HOLE = 4
"""The two `whence` values of `Operations.lseek`; the kernel answers the others itself."""


def cache_policy(open_flags: int) -> int:
    """`OpenReply.flags` for a file opened with `open_flags` (open(2)'s) on a volume that other hosts write
    too.

    O_DIRECT openers (a hypervisor with cache=none) bypass the page cache and write in parallel. All others
    are cached close-to-open: their pages are dropped at the next open, as KEEP_CACHE is not given.

    Both kinds at once on one inode, through one mount, as seen on Linux 6.18 (tests/fuse/test_caching.py): a
    direct write drops the cached pages of its range, so a buffered reader sees it at once; a buffered write goes
    through at once (there is no write-back cache), so a direct reader sees it. The price: while a cached opener
    is there, even a reader, the kernel lets one direct write at a time through. Who reads a running machine's
    disk opens it with O_DIRECT, too. (Writes that extend the file are one at a time always.)
    """
    if open_flags & os.O_DIRECT:
        return FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES
    return 0


class WouldBlock(Exception):
    """Raised by `DataPlane.read` and `write`: this one must wait for the control plane, do not wait here.

    The session repeats the call on a control thread as `read_slow` or `write_slow`, so that a few writes that
    wait for space (another host's answer takes seconds) do not hold the threads that serve everybody's I/O.
    Raise it before anything was changed, and make a new one each time: one that is kept keeps the frames, and with
    them the memory, of wherever it was raised.
    """


class DataPlane(Protocol):
    """Reads and writes of open files, called on data threads in the hot path.

    `buf` is page-aligned, and at least `BUFFER_SLACK_BYTES` longer than the largest request; all of it is
    scratch for `read`, which may read wider and move. It belongs to the caller again on return: keep no
    reference. `size` is at least 1 and at most `Negotiated.max_write_bytes` (reads too). Offsets and sizes
    are not aligned unless the caller happened to align them: direct I/O of any alignment arrives as is.
    """

    def read(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """Fill buf[:n] from `offset`, return n <= size; n < size means the end of the file, never "try
        again".

        Raises OSError; WouldBlock.
        """

    def write(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """Write buf[:size] at `offset`, extending the file where needed; return the bytes written (> 0).

        A dirty page of a shared mapping arrives here too, possibly with another writer's `fh` of the same
        inode.
        Raises OSError; WouldBlock.
        """

    def read_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As `read`, on a control thread after it raised WouldBlock; may wait."""

    def write_slow(self, fh: int, buf: memoryview, offset: int, size: int) -> int:
        """As `write`, on a control thread after it raised WouldBlock, or for a synchronous write; may
        wait."""

    def append(self, fh: int, buf: memoryview, size: int, unique: int = 0) -> int:
        """Write all of buf[:size] at the file's present end, atomically against other appends; may wait.

        Returns the offset at which the bytes lie now; -1 when the request `unique` was done by a process before this
        one. Raises OSError.
        """

    def kill_suidgid(self, fh: int) -> None:
        """Clear set-user-id and set-group-id (the latter only with group execute) before a write that
        follows.

        Called before *each* write of a caller without CAP_FSETID, hence of every unprivileged hypervisor:
        must cost a look-up when there is nothing to clear. Raises OSError; WouldBlock (then it is called
        again before `write_slow`).
        """


class Operations(Protocol):
    """The control plane: everything but READ and WRITE. Called on control threads, several at once."""

    def init(self, negotiated: Negotiated) -> None:
        """Called once, before any other call, when the kernel has been answered."""

    def destroy(self) -> None:
        """Called once, after the last call, when the mount is gone. Open handles count as released."""

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Entry:
        """Find a name. With export support also "." and ".." of *any* nodeid ever handed out, from NFS
        handles: ESTALE or ENOENT when that inode is no more. Raises OSError(ENOENT)."""

    def forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        """Give back look-ups: (nodeid, count) each. Must not raise."""

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> AttrReply: ...

    def setattr(self, ctx: Context, nodeid: int, fh: int | None, change: SetAttr) -> AttrReply:
        """Change attributes; a new size truncates or extends. `fh` is given for ftruncate(2) and the like."""

    def readlink(self, ctx: Context, nodeid: int) -> bytes: ...

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Entry: ...

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Entry: ...

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Entry: ...

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None: ...

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None: ...

    def rename(self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        """Rename; `flags` are RENAME_*. EINVAL for one that is not supported."""

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> Entry: ...

    def open(self, ctx: Context, nodeid: int, flags: int, kill_suidgid: bool) -> OpenReply:
        """Open a file. `flags` are open(2)'s; O_TRUNC among them truncates (only when `atomic_o_trunc`)."""

    def create(
        self, ctx: Context, parent: int, name: bytes, mode: int, flags: int, kill_suidgid: bool
    ) -> tuple[Entry, OpenReply]:
        """Create and open. The name may exist by now (another host): EEXIST with O_EXCL, else open that
        file."""

    def flush(self, ctx: Context, nodeid: int, fh: int) -> None:
        """A close(2) of one descriptor of `fh`; its error is close's. May come many times for an `fh`, or
        never."""

    def release(self, nodeid: int, fh: int, flags: int) -> None:
        """The last descriptor and mapping of `fh` are gone. Nobody waits for it, nobody sees its error."""

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None: ...

    def opendir(self, ctx: Context, nodeid: int, flags: int) -> OpenReply: ...

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """Entries behind cookie `offset` (0: from the start), "." and ".." included.

        As many are taken as the kernel's buffer holds, and an iterator is closed then: be lazy.
        """

    def readdirplus(self, ctx: Context, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        """As `readdir`, with `DirEntry.entry`. An entry that was taken but did not fit is given to
        `forget`."""

    def releasedir(self, nodeid: int, fh: int) -> None: ...

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None: ...

    def statfs(self, ctx: Context, nodeid: int) -> Statfs: ...

    def setxattr(self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int) -> None:
        """Set; `flags` are os.XATTR_CREATE or os.XATTR_REPLACE. POSIX ACLs never arrive here (see
        negotiate.py)."""

    def getxattr(self, ctx: Context, nodeid: int, name: bytes) -> bytes:
        """The value. Raises OSError(ENODATA). The session answers size probes and ERANGE."""

    def listxattr(self, ctx: Context, nodeid: int) -> Sequence[bytes]: ...

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None: ...

    def fallocate(self, ctx: Context, nodeid: int, fh: int, mode: int, offset: int, length: int) -> None: ...

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE; ENXIO when there is none behind `offset`."""

    def copy_file_range(self, ctx: Context, copy: CopyRange) -> int:
        """Copy, return the bytes copied (0 at the source's end). EXDEV or EOPNOTSUPP: the kernel copies
        itself."""

    def ioctl(self, ctx: Context, nodeid: int, fh: int, request: Ioctl) -> IoctlReply:
        """Raises OSError(ENOTTY) for a command that is not known."""
