"""The records that pass between the protocol adapter and the file system: frozen, no behaviour.

Names are bytes; sizes and offsets bytes; times nanoseconds since the epoch (UTC, may be negative); timeouts seconds.
"""

from dataclasses import dataclass

NAME_MAX_BYTES = 255
"""Longest name; the kernel itself would allow 1024 (FUSE_NAME_MAX), every tool expects 255."""


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks. uid and gid are the caller's file-system ids; pid is 0 for one outside the mount's
    namespace."""

    uid: int
    gid: int
    pid: int
    umask: int = 0
    unique: int = 0
    """The kernel's number of the request; the same when it is sent again. 0: not from the kernel."""


@dataclass(frozen=True, slots=True)
class Attr:
    """An inode's attributes. `blocks` counts 512-byte units really allocated, `blksize` is the best I/O
    size."""

    ino: int
    mode: int
    """File type and permissions (stat.S_IF* | 0o7777)."""
    size: int = 0
    blocks: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    blksize: int = 4096


@dataclass(frozen=True, slots=True)
class AttrReply:
    """Attributes, and for how long the kernel may believe them."""

    attr: Attr
    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's inode. `entry_timeout_s`: how long the name may be believed, `attr_timeout_s`: the
    attributes."""

    nodeid: int
    generation: int
    attr: Attr
    entry_timeout_s: float = 0.0
    attr_timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenReply:
    """An open file or directory. `fh` is any 64-bit number that the file system chose; `flags` are
    FOPEN_*."""

    fh: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class SetAttr:
    """What a SETATTR changes: only what is not None (and not False)."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_now: bool = False
    """Set atime to the file system's own clock (then `atime_ns` is None)."""
    mtime_now: bool = False
    kill_suidgid: bool = False
    """Clear set-user-id, and set-group-id where the group may execute (a truncation by one without
    CAP_FSETID)."""


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One directory entry. `offset` is the cookie at which reading goes on *behind* this entry (1 to
    2**63-1)."""

    ino: int
    offset: int
    mode: int
    """File type (stat.S_IF*); other bits are ignored."""
    name: bytes
    entry: Entry | None = None
    """Only from `readdirplus`; None there means that the kernel looks the name up itself when it needs it."""


@dataclass(frozen=True, slots=True)
class Statfs:
    """Space and inodes, in units of `frsize` bytes; `bavail` is what an unprivileged user may still use."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int = 4096
    frsize: int = 4096
    namelen: int = NAME_MAX_BYTES


@dataclass(frozen=True, slots=True)
class CopyRange:
    """A COPY_FILE_RANGE: `length` bytes between two open files of this mount, which may be the same."""

    nodeid_in: int
    fh_in: int
    offset_in: int
    nodeid_out: int
    fh_out: int
    offset_out: int
    length: int


@dataclass(frozen=True, slots=True)
class Ioctl:
    """A well-formed ioctl: the kernel has copied `data` in and takes at most `out_size` bytes back."""

    cmd: int
    arg: int
    data: bytes
    out_size: int
    is_dir: bool
    is_32bit: bool


@dataclass(frozen=True, slots=True)
class IoctlReply:
    """`result` is ioctl(2)'s return value, `data` what is copied back (at most `Ioctl.out_size` bytes)."""

    result: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What this mount's kernel and this adapter agreed on at INIT; each flag stands for itself."""

    major: int
    minor: int
    kernel_minor: int
    max_write_bytes: int
    """Largest WRITE; 1 MiB with FUSE_MAX_PAGES, else 128 KiB."""
    max_readahead_bytes: int
    flags: int
    """All agreed FUSE_* INIT flags, flags2 in bits 32 to 63."""
    async_read: bool
    atomic_o_trunc: bool
    export_support: bool
    big_writes: bool
    auto_inval_data: bool
    readdirplus: bool
    readdirplus_auto: bool
    async_dio: bool
    parallel_dirops: bool
    max_pages: bool
    killpriv_v2: bool
    abort_error: bool
    cache_symlinks: bool
    setxattr_ext: bool
    init_ext: bool
    direct_io_allow_mmap: bool
    resend: bool
