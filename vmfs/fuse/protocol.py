"""Opcodes, flags and limits of the FUSE protocol, major version 7 (include/uapi/linux/fuse.h).

Only what this adapter speaks or must recognise is named; every other opcode is answered ENOSYS, on which the
kernel falls back or stops asking.
"""

from enum import IntEnum, IntFlag

MAJOR = 7
MINOR = 45
"""The newest minor version whose layouts were checked (Linux 6.18)."""
MINOR_MIN = 31
"""The oldest minor version accepted (Linux 5.4): the layouts used have not changed since; the rest is by
flag."""

PAGE_BYTES = 4096
"""The kernel's page on x86-64 and on arm64 as distributed; alignment of every payload."""

MAX_WRITE_BYTES = 1 << 20
"""Largest request asked for: FUSE_MAX_MAX_PAGES (256) pages, the kernel's limit up to 6.12 and its default
since."""
MAX_WRITE_WITHOUT_MAX_PAGES_BYTES = 32 * PAGE_BYTES
"""Largest request without FUSE_MAX_PAGES: FUSE_DEFAULT_MAX_PAGES_PER_REQ."""

IN_HEADER_BYTES = 40
READ_IN_BYTES = 40
WRITE_IN_BYTES = 40
OUT_HEADER_BYTES = 16
WRITE_OUT_BYTES = 8
DATA_HEADER_BYTES = IN_HEADER_BYTES + WRITE_IN_BYTES
"""fuse_in_header and fuse_write_in (fuse_read_in is as long): what stands before a WRITE's payload."""

MAX_BACKGROUND = 128
"""Asynchronous requests (direct I/O, read-ahead) that the kernel may have under way; its own default, 12,
would halve the throughput of a queue depth of 32."""
CONGESTION_THRESHOLD = 96
"""Where the kernel begins to call the mount congested: three quarters, as its own default has it."""


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


def opcode_name(number: int) -> str:
    """The opcode's name for logs, or its number."""
    try:
        return Opcode(number).name
    except ValueError:
        return f"opcode {number}"


class InitFlag(IntFlag):
    """FUSE_* flags of INIT; bits 32 to 63 travel in `flags2` (needs INIT_EXT)."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    HAS_RESEND = 1 << 39


class SetattrValid(IntFlag):
    """FATTR_*: which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


GETATTR_FH = 1 << 0
FSYNC_FDATASYNC = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
IOCTL_32BIT = 1 << 3
IOCTL_DIR = 1 << 4

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_RESEND = 7

UNIQUE_RESEND = 1 << 63
"""In a request's unique: the kernel sends it again, because its first reader has died. The answer carries it too."""
