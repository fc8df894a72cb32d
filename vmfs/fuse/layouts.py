"""The structs of linux/fuse.h that pass for control requests: bounds-checked decoding, and encoding of
replies.

All little-endian (the protocol is in the host's order; big-endian hosts are not supported). A request is

      0  u32 len  u32 opcode  u64 unique  u64 nodeid  u32 uid  u32 gid  u32 pid  u16 extlen  u16 padding
     40  the opcode's struct, then names (each ended by NUL) or data

and a reply u32 len, i32 error (0 or -errno), u64 unique, then the opcode's struct. Each layout below names
the struct it decodes or encodes. `Body` raises `Malformed` instead of reading beyond the request.
"""

from struct import Struct

from vmfs.fuse.contract import GENERATION_LIMIT, Attr, AttrReply, DirEntry, Entry, OpenReply, Statfs
from vmfs.fuse.errors import Malformed
from vmfs.fuse.protocol import IN_HEADER_BYTES

IN_HEADER = Struct("<IIQQIIIHH")
OUT_HEADER = Struct("<IiQ")

INIT_IN = Struct("<IIII")
INIT_IN_FLAGS2 = Struct("<I")
INIT_OUT = Struct("<IIIIHHIIHHI28x")

FORGET_IN = Struct("<Q")
BATCH_FORGET_IN = Struct("<I4x")
FORGET_ONE = Struct("<QQ")
GETATTR_IN = Struct("<I4xQ")
SETATTR_IN = Struct("<I4xQQ8xQQQIIII4xII4x")
MKNOD_IN = Struct("<IIII")
MKDIR_IN = Struct("<II")
RENAME_IN = Struct("<Q")
RENAME2_IN = Struct("<QI4x")
LINK_IN = Struct("<Q")
OPEN_IN = Struct("<II")
CREATE_IN = Struct("<IIII")
RELEASE_IN = Struct("<QII8x")
FLUSH_IN = Struct("<Q16x")
READ_IN = Struct("<QQI20x")
FSYNC_IN = Struct("<QI4x")
SETXATTR_IN = Struct("<II")
SETXATTR_IN_EXT = Struct("<IIII")
GETXATTR_IN = Struct("<I4x")
GETXATTR_OUT = Struct("<I4x")
FALLOCATE_IN = Struct("<QQQI4x")
LSEEK_IN = Struct("<QQI4x")
LSEEK_OUT = Struct("<Q")
COPY_FILE_RANGE_IN = Struct("<QQQQQQQ")
COPY_FILE_RANGE_OUT = Struct("<Q")
IOCTL_IN = Struct("<QIIQII")
IOCTL_OUT = Struct("<iIII")
WRITE_OUT = Struct("<I4x")
NOTIFY_INVAL_INODE_OUT = Struct("<Qqq")
NOTIFY_INVAL_ENTRY_OUT = Struct("<QII")

ATTR = Struct("<QQQQQQIIIIIIIIII")
ATTR_OUT = Struct("<QI4x")
ENTRY_OUT = Struct("<QQQQII")
OPEN_OUT = Struct("<QI4x")
STATFS_OUT = Struct("<QQQQQIII28x")
DIRENT = Struct("<QQII")

_NS_PER_S = 1_000_000_000
_U64 = (1 << 64) - 1
_EMPTY_ENTRY = bytes(ENTRY_OUT.size + ATTR.size)


class Body:
    """What follows a request's header, taken piece by piece from the front."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = IN_HEADER_BYTES
        self._what = what

    def take(self, layout: Struct) -> tuple[int, ...]:
        """The next struct. Raises Malformed when the request ends within it."""
        at = self._at
        if len(self._data) - at < layout.size:
            raise Malformed(self._what, f"{len(self._data)} bytes are too short for {layout.size} at {at}")
        self._at = at + layout.size
        return layout.unpack_from(self._data, at)

    def string(self) -> bytes:
        """The next bytes up to a NUL, which is taken too. Raises Malformed when there is none."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise Malformed(self._what, "a name without its NUL")
        value = self._data[self._at : end]
        self._at = end + 1
        return value

    def raw(self, size: int) -> bytes:
        """The next `size` bytes. Raises Malformed when there are fewer."""
        if size > len(self._data) - self._at:
            raise Malformed(self._what, f"{size} bytes of data announced, {len(self._data) - self._at} sent")
        value = self._data[self._at : self._at + size]
        self._at += size
        return value


def to_ns(seconds: int, nanoseconds: int) -> int:
    """The kernel's (u64, u32) time, whose seconds are signed in truth, as nanoseconds since the epoch."""
    if seconds >> 63:
        seconds -= 1 << 64
    return seconds * _NS_PER_S + nanoseconds


def _timeout(seconds: float) -> tuple[int, int]:
    ns = max(0, round(seconds * _NS_PER_S))
    return divmod(ns, _NS_PER_S)


def encode_attr(attr: Attr) -> bytes:
    """struct fuse_attr, 88 bytes."""
    atime, atime_ns = divmod(attr.atime_ns, _NS_PER_S)
    mtime, mtime_ns = divmod(attr.mtime_ns, _NS_PER_S)
    ctime, ctime_ns = divmod(attr.ctime_ns, _NS_PER_S)
    return ATTR.pack(
        attr.ino,
        attr.size,
        attr.blocks,
        atime & _U64,
        mtime & _U64,
        ctime & _U64,
        atime_ns,
        mtime_ns,
        ctime_ns,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.rdev,
        attr.blksize,
        0,
    )


def encode_attr_reply(reply: AttrReply) -> bytes:
    """struct fuse_attr_out, 104 bytes."""
    seconds, ns = _timeout(reply.timeout_s)
    return ATTR_OUT.pack(seconds, ns) + encode_attr(reply.attr)


def encode_entry(entry: Entry) -> bytes:
    """struct fuse_entry_out, 128 bytes. Raises ValueError for what the kernel would misread."""
    if not 0 < entry.nodeid <= _U64 or not 0 <= entry.generation < GENERATION_LIMIT:
        raise ValueError(f"nodeid {entry.nodeid} generation {entry.generation} cannot be given to the kernel")
    entry_s, entry_ns = _timeout(entry.entry_timeout_s)
    attr_s, attr_ns = _timeout(entry.attr_timeout_s)
    head = ENTRY_OUT.pack(entry.nodeid, entry.generation, entry_s, attr_s, entry_ns, attr_ns)
    return head + encode_attr(entry.attr)


def encode_open(reply: OpenReply) -> bytes:
    """struct fuse_open_out, 16 bytes."""
    return OPEN_OUT.pack(reply.fh, reply.flags)


def encode_statfs(s: Statfs) -> bytes:
    """struct fuse_statfs_out, 80 bytes."""
    return STATFS_OUT.pack(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize)


def encode_dirent(entry: DirEntry) -> bytes:
    """struct fuse_dirent with its name, padded to 8 bytes."""
    record = DIRENT.pack(entry.ino, entry.offset, len(entry.name), entry.mode >> 12 & 15) + entry.name
    return record + bytes(-len(record) % 8)


def encode_direntplus(entry: DirEntry) -> bytes:
    """struct fuse_direntplus; without an `Entry` its nodeid is 0, which the kernel takes as "not looked
    up"."""
    head = encode_entry(entry.entry) if entry.entry is not None else _EMPTY_ENTRY
    return head + encode_dirent(entry)
