"""INIT: agree with the kernel on each capability by itself.

What is asked for, each only when the kernel offers it:

- MAX_PAGES: requests up to 1 MiB; without it 128 KiB.
- ASYNC_READ, ASYNC_DIO: read-ahead, and the parts of one large direct request, run at the same time.
- BIG_WRITES: writes above 4 KiB (the kernel does it unasked since 4.20).
- PARALLEL_DIROPS: look-ups and listings of one directory at the same time.
- DO_READDIRPLUS, READDIRPLUS_AUTO: listings bring the attributes along when the caller seems to want them.
- EXPORT_SUPPORT: NFS file handles; look-ups of "." and ".." find an inode by its number alone.
- ATOMIC_O_TRUNC: an O_TRUNC open is one call, so that it is locked and cut in one step. Without it the kernel
  sends OPEN without O_TRUNC, then SETATTR.
- AUTO_INVAL_DATA: pages go when size or mtime are seen to have changed: another host has written.
- HANDLE_KILLPRIV_V2: the file system clears set-user-id itself when told to. Without it the kernel asks for
  "security.capability" before every buffered write. (The older HANDLE_KILLPRIV is not asked for: with it the
  file system would have to clear on every write, whoever writes.)
- CACHE_SYMLINKS: the target of a symlink's inode never changes.
- ABORT_ERROR: an aborted connection reads ECONNABORTED, an unmounted one ENODEV.
- SETXATTR_EXT: the longer fuse_setxattr_in.
- INIT_EXT: flags above bit 31.
- DIRECT_IO_ALLOW_MMAP: shared mappings of files opened with FOPEN_DIRECT_IO; asked for from 7.40 on, because
  Linux 6.6 to 6.8 (7.39) give up FOPEN_PARALLEL_DIRECT_WRITES for it.
- HAS_RESEND: nothing is changed by it. The kernel says so that it can send requests again when the process that read
  them has died (Linux 6.9), and only then another process takes the session over.

What is never asked for, and why: WRITEBACK_CACHE (two hosts' caches are not coherent), POSIX_LOCKS and
FLOCK_LOCKS (locks between hosts are the volume's; within the mount the kernel's own do), NO_OPEN_SUPPORT and
NO_OPENDIR_SUPPORT (an open takes the volume's lock), POSIX_ACL (the volume has none; get and set of
"system.posix_acl_*" is answered EOPNOTSUPP, so that nobody stores an ACL that nobody enforces), DONT_MASK
(the kernel applies the umask), EXPLICIT_INVAL_DATA (opposes AUTO_INVAL_DATA), splice, DAX, submounts,
passthrough (refuses block devices), io_uring (no help from Python).

`mask` clears flags from the kernel's offer, so that each fall-back can be tried on any kernel.
"""

from dataclasses import dataclass

from vmfs.fuse.contract import Negotiated
from vmfs.fuse.errors import Malformed, ProtocolTooOld
from vmfs.fuse.layouts import INIT_IN, INIT_IN_FLAGS2, INIT_OUT, Body
from vmfs.fuse.protocol import (
    CONGESTION_THRESHOLD,
    MAJOR,
    MAX_BACKGROUND,
    MAX_WRITE_BYTES,
    MAX_WRITE_WITHOUT_MAX_PAGES_BYTES,
    MINOR,
    MINOR_MIN,
    PAGE_BYTES,
    InitFlag,
)

WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
    | InitFlag.DIRECT_IO_ALLOW_MMAP
    | InitFlag.HAS_RESEND
)

MINOR_WITH_SOUND_ALLOW_MMAP = 40
"""Linux 6.9, see DIRECT_IO_ALLOW_MMAP above."""

TIME_GRANULARITY_NS = 1


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The kernel's INIT: its version and what it offers."""

    major: int
    minor: int
    max_readahead_bytes: int
    flags: int


def parse_init(data: bytes) -> InitRequest:
    """Decode a whole INIT request (header included). Raises Malformed."""
    body = Body(data, "INIT")
    major, minor, readahead, flags = body.take(INIT_IN)
    if flags & InitFlag.INIT_EXT:
        (flags2,) = body.take(INIT_IN_FLAGS2)
        flags |= flags2 << 32
    return InitRequest(major, minor, readahead, flags)


def agree(request: InitRequest, mask: int = 0) -> Negotiated:
    """Choose among what the kernel offers, less the flags in `mask`.

    Raises ProtocolTooOld, and Malformed for a newer major version (the caller answers that one before).
    """
    if request.major < MAJOR or (request.major == MAJOR and request.minor < MINOR_MIN):
        raise ProtocolTooOld(f"{request.major}.{request.minor}", f"{MAJOR}.{MINOR_MIN}")
    if request.major > MAJOR:
        raise Malformed("INIT", f"major version {request.major} was not settled")
    flags = request.flags & WANTED & ~mask
    if not flags & InitFlag.INIT_EXT:
        flags &= (1 << 32) - 1
    if request.minor < MINOR_WITH_SOUND_ALLOW_MMAP:
        flags &= ~InitFlag.DIRECT_IO_ALLOW_MMAP
    if not flags & InitFlag.DO_READDIRPLUS:
        flags &= ~InitFlag.READDIRPLUS_AUTO
    max_pages = bool(flags & InitFlag.MAX_PAGES)
    return Negotiated(
        major=MAJOR,
        minor=min(MINOR, request.minor),
        kernel_minor=request.minor,
        max_write_bytes=MAX_WRITE_BYTES if max_pages else MAX_WRITE_WITHOUT_MAX_PAGES_BYTES,
        max_readahead_bytes=request.max_readahead_bytes,
        flags=int(flags),
        async_read=bool(flags & InitFlag.ASYNC_READ),
        atomic_o_trunc=bool(flags & InitFlag.ATOMIC_O_TRUNC),
        export_support=bool(flags & InitFlag.EXPORT_SUPPORT),
        big_writes=bool(flags & InitFlag.BIG_WRITES),
        auto_inval_data=bool(flags & InitFlag.AUTO_INVAL_DATA),
        readdirplus=bool(flags & InitFlag.DO_READDIRPLUS),
        readdirplus_auto=bool(flags & InitFlag.READDIRPLUS_AUTO),
        async_dio=bool(flags & InitFlag.ASYNC_DIO),
        parallel_dirops=bool(flags & InitFlag.PARALLEL_DIROPS),
        max_pages=max_pages,
        killpriv_v2=bool(flags & InitFlag.HANDLE_KILLPRIV_V2),
        abort_error=bool(flags & InitFlag.ABORT_ERROR),
        cache_symlinks=bool(flags & InitFlag.CACHE_SYMLINKS),
        setxattr_ext=bool(flags & InitFlag.SETXATTR_EXT),
        init_ext=bool(flags & InitFlag.INIT_EXT),
        direct_io_allow_mmap=bool(flags & InitFlag.DIRECT_IO_ALLOW_MMAP),
        resend=bool(flags & InitFlag.HAS_RESEND),
    )


def encode_init(agreed: Negotiated) -> bytes:
    """struct fuse_init_out, 64 bytes (without the reply's header)."""
    return INIT_OUT.pack(
        agreed.major,
        agreed.minor,
        agreed.max_readahead_bytes,
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        agreed.max_write_bytes,
        TIME_GRANULARITY_NS,
        agreed.max_write_bytes // PAGE_BYTES if agreed.max_pages else 0,
        0,
        agreed.flags >> 32,
    )


def encode_older_major() -> bytes:
    """The answer to a kernel of a newer major version: ours, on which it sends a new INIT."""
    return INIT_OUT.pack(MAJOR, MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0)
