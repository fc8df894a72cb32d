"""One control request: decode it, call `Operations`, encode the reply.

Knows nothing of threads and of the device: bytes of a request in, bytes of a reply out (None where the
protocol wants no reply), so that all of it is tested without a mount.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from vmfs.errors import VmfsError
from vmfs.events import Event, event, event_of
from vmfs.fuse import layouts as lay
from vmfs.fuse.contract import (
    NAME_MAX_BYTES,
    Context,
    CopyRange,
    Ioctl,
    Negotiated,
    Operations,
    SetAttr,
)
from vmfs.fuse.errors import Malformed
from vmfs.fuse.layouts import IN_HEADER, OUT_HEADER, Body
from vmfs.fuse.listing import pack_listing
from vmfs.fuse.protocol import (
    FSYNC_FDATASYNC,
    GETATTR_FH,
    IN_HEADER_BYTES,
    IOCTL_32BIT,
    IOCTL_DIR,
    OPEN_KILL_SUIDGID,
    UNIQUE_RESEND,
    Opcode,
    SetattrValid,
    opcode_name,
)

log = logging.getLogger("vmfs.fuse")

POSIX_ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
COPY_LENGTH_MAX_BYTES = 0xFFFFF000
"""The older COPY_FILE_RANGE answers in 32 bits; more than this is cut, as write(2) cuts."""

Handler = Callable[[Context, int, Body], bytes]


def error_reply(unique: int, number: int) -> bytes:
    """The reply that fails a request with an errno."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def errno_of(error: Exception, what: str) -> int:
    """The errno that a failed call becomes; a bug is logged with its traceback, a damaged volume with its
    words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, VmfsError):
        if error.errno == errno.EIO or isinstance(error, Malformed):
            log.error("%s failed: %s", what, error, extra=event_of(error))
            return errno.EIO
        full = event(Event.NO_SPACE) if error.errno == errno.ENOSPC else None
        log.info("%s refused: %s", what, error, extra=full)
        return error.errno
    log.error("%s failed by a bug: %r", what, error, exc_info=error)
    return errno.EIO


def _name(body: Body) -> bytes:
    name = body.string()
    if len(name) > NAME_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    if not name or b"/" in name:
        raise Malformed("name", repr(name))
    return name


class Dispatcher:
    """Answers control requests of one mount; stateless but for what was negotiated, hence safe on all
    threads."""

    def __init__(self, operations: Operations, negotiated: Negotiated) -> None:
        self._ops = operations
        self._setxattr_in = lay.SETXATTR_IN_EXT if negotiated.setxattr_ext else lay.SETXATTR_IN
        self._max_reply_bytes = negotiated.max_write_bytes
        self._handlers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: lambda ctx, nodeid, body: self._ops.readlink(ctx, nodeid),
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.STATFS: lambda ctx, nodeid, body: lay.encode_statfs(self._ops.statfs(ctx, nodeid)),
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
            Opcode.IOCTL: self._ioctl,
            # Sent at the unmount of block-device mounts only; `destroy` comes from the session's own end.
            Opcode.DESTROY: lambda ctx, nodeid, body: b"",
            # READ and WRITE come here only when their bytes made no sense to the hot path.
            Opcode.READ: self._misfit,
            Opcode.WRITE: self._misfit,
        }
        self._silent: dict[int, Callable[[int, Body], None]] = {
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.INTERRUPT: lambda nodeid, body: None,
            Opcode.NOTIFY_REPLY: lambda nodeid, body: None,
        }

    def handle(self, request: bytes) -> bytes | None:
        """Answer one whole request; never raises. None: the protocol wants no reply."""
        if len(request) < IN_HEADER_BYTES:
            log.error("%s", Malformed("header", f"{len(request)} bytes"))
            return None
        length, opcode, unique, nodeid, uid, gid, pid, _, _ = IN_HEADER.unpack_from(request)
        body = Body(request, opcode_name(opcode))
        silent = self._silent.get(opcode)
        if silent is not None:
            try:
                silent(nodeid, body)
            except Exception as error:
                errno_of(error, opcode_name(opcode))
            return None
        handler = self._handlers.get(opcode)
        if handler is None:
            return error_reply(unique, errno.ENOSYS)
        try:
            if length != len(request):
                raise Malformed(opcode_name(opcode), f"{len(request)} bytes read, {length} announced")
            payload = handler(Context(uid, gid, pid, unique=unique & ~UNIQUE_RESEND), nodeid, body)
        except Exception as error:
            return error_reply(unique, errno_of(error, opcode_name(opcode)))
        return OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique) + payload

    # -- names -------------------------------------------------------------------------------------

    def _lookup(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        return lay.encode_entry(self._ops.lookup(ctx, nodeid, _name(body)))

    def _forget(self, nodeid: int, body: Body) -> None:
        (count,) = body.take(lay.FORGET_IN)
        self._ops.forget([(nodeid, count)])

    def _batch_forget(self, nodeid: int, body: Body) -> None:
        (count,) = body.take(lay.BATCH_FORGET_IN)
        forgets = []
        for _ in range(count):
            node, lookups = body.take(lay.FORGET_ONE)
            forgets.append((node, lookups))
        self._ops.forget(forgets)

    def _symlink(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        name = _name(body)
        return lay.encode_entry(self._ops.symlink(ctx, nodeid, name, body.string()))

    def _mknod(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        mode, rdev, umask, _ = body.take(lay.MKNOD_IN)
        ctx = Context(ctx.uid, ctx.gid, ctx.pid, umask, ctx.unique)
        return lay.encode_entry(self._ops.mknod(ctx, nodeid, _name(body), mode, rdev))

    def _mkdir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        mode, umask = body.take(lay.MKDIR_IN)
        ctx = Context(ctx.uid, ctx.gid, ctx.pid, umask, ctx.unique)
        return lay.encode_entry(self._ops.mkdir(ctx, nodeid, _name(body), mode))

    def _unlink(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        self._ops.unlink(ctx, nodeid, _name(body))
        return b""

    def _rmdir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        self._ops.rmdir(ctx, nodeid, _name(body))
        return b""

    def _rename(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (newparent,) = body.take(lay.RENAME_IN)
        name = _name(body)
        self._ops.rename(ctx, nodeid, name, newparent, _name(body), 0)
        return b""

    def _rename2(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        newparent, flags = body.take(lay.RENAME2_IN)
        name = _name(body)
        self._ops.rename(ctx, nodeid, name, newparent, _name(body), flags)
        return b""

    def _link(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (old,) = body.take(lay.LINK_IN)
        return lay.encode_entry(self._ops.link(ctx, old, nodeid, _name(body)))

    # -- attributes --------------------------------------------------------------------------------

    def _getattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        flags, fh = body.take(lay.GETATTR_IN)
        reply = self._ops.getattr(ctx, nodeid, fh if flags & GETATTR_FH else None)
        return lay.encode_attr_reply(reply)

    def _setattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (valid, fh, size, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, uid, gid) = body.take(
            lay.SETATTR_IN
        )
        v = SetattrValid

        def time(flag: int, now: int, seconds: int, ns: int) -> int | None:
            return lay.to_ns(seconds, ns) if valid & flag and not valid & now else None

        change = SetAttr(
            mode=mode if valid & v.MODE else None,
            uid=uid if valid & v.UID else None,
            gid=gid if valid & v.GID else None,
            size=size if valid & v.SIZE else None,
            atime_ns=time(v.ATIME, v.ATIME_NOW, atime, atime_ns),
            mtime_ns=time(v.MTIME, v.MTIME_NOW, mtime, mtime_ns),
            ctime_ns=time(v.CTIME, 0, ctime, ctime_ns),
            atime_now=bool(valid & v.ATIME_NOW),
            mtime_now=bool(valid & v.MTIME_NOW),
            kill_suidgid=bool(valid & v.KILL_SUIDGID),
        )
        reply = self._ops.setattr(ctx, nodeid, fh if valid & v.FH else None, change)
        return lay.encode_attr_reply(reply)

    def _setxattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        size, flags, *_ = body.take(self._setxattr_in)
        name = self._xattr_name(body)
        self._ops.setxattr(ctx, nodeid, name, body.raw(size), flags)
        return b""

    def _getxattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (size,) = body.take(lay.GETXATTR_IN)
        return self._sized(size, self._ops.getxattr(ctx, nodeid, self._xattr_name(body)))

    def _listxattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (size,) = body.take(lay.GETXATTR_IN)
        return self._sized(size, b"".join(name + b"\0" for name in self._ops.listxattr(ctx, nodeid)))

    def _removexattr(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        self._ops.removexattr(ctx, nodeid, self._xattr_name(body))
        return b""

    @staticmethod
    def _xattr_name(body: Body) -> bytes:
        name = body.string()
        if name in POSIX_ACL_NAMES:
            raise OSError(errno.EOPNOTSUPP, "POSIX ACLs are not supported")
        return name

    @staticmethod
    def _sized(size: int, value: bytes) -> bytes:
        """A value, or its size to a probe of size 0. Raises OSError(ERANGE) when it does not fit."""
        if size == 0:
            return lay.GETXATTR_OUT.pack(len(value))
        if len(value) > size:
            raise OSError(errno.ERANGE, "value larger than the buffer")
        return value

    # -- open files --------------------------------------------------------------------------------

    def _open(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        flags, how = body.take(lay.OPEN_IN)
        return lay.encode_open(self._ops.open(ctx, nodeid, flags, bool(how & OPEN_KILL_SUIDGID)))

    def _create(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        flags, mode, umask, how = body.take(lay.CREATE_IN)
        ctx = Context(ctx.uid, ctx.gid, ctx.pid, umask, ctx.unique)
        name = _name(body)
        entry, opened = self._ops.create(ctx, nodeid, name, mode, flags, bool(how & OPEN_KILL_SUIDGID))
        return lay.encode_entry(entry) + lay.encode_open(opened)

    def _flush(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        (fh,) = body.take(lay.FLUSH_IN)
        self._ops.flush(ctx, nodeid, fh)
        return b""

    def _release(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, flags, _ = body.take(lay.RELEASE_IN)
        self._ops.release(nodeid, fh, flags)
        return b""

    def _fsync(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, flags = body.take(lay.FSYNC_IN)
        self._ops.fsync(ctx, nodeid, fh, bool(flags & FSYNC_FDATASYNC))
        return b""

    def _fallocate(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, offset, length, mode = body.take(lay.FALLOCATE_IN)
        self._ops.fallocate(ctx, nodeid, fh, mode, offset, length)
        return b""

    def _lseek(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, offset, whence = body.take(lay.LSEEK_IN)
        return lay.LSEEK_OUT.pack(self._ops.lseek(ctx, nodeid, fh, offset, whence))

    def _copy(self, ctx: Context, nodeid: int, body: Body, limit: int) -> int:
        fh_in, offset_in, nodeid_out, fh_out, offset_out, length, _ = body.take(lay.COPY_FILE_RANGE_IN)
        copy = CopyRange(nodeid, fh_in, offset_in, nodeid_out, fh_out, offset_out, min(length, limit))
        return self._ops.copy_file_range(ctx, copy)

    def _copy_file_range(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        return lay.WRITE_OUT.pack(self._copy(ctx, nodeid, body, COPY_LENGTH_MAX_BYTES))

    def _copy_file_range_64(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        return lay.COPY_FILE_RANGE_OUT.pack(self._copy(ctx, nodeid, body, (1 << 63) - 1))

    def _ioctl(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, flags, cmd, arg, in_size, out_size = body.take(lay.IOCTL_IN)
        data = body.raw(in_size)
        request = Ioctl(cmd, arg, data, out_size, bool(flags & IOCTL_DIR), bool(flags & IOCTL_32BIT))
        reply = self._ops.ioctl(ctx, nodeid, fh, request)
        if len(reply.data) > out_size:
            raise ValueError(f"ioctl {cmd:#x}: {len(reply.data)} bytes for a buffer of {out_size}")
        return lay.IOCTL_OUT.pack(reply.result, 0, 0, 0) + reply.data

    # -- directories -------------------------------------------------------------------------------

    def _opendir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        flags, _ = body.take(lay.OPEN_IN)
        return lay.encode_open(self._ops.opendir(ctx, nodeid, flags))

    def _readdir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, offset, size = body.take(lay.READ_IN)
        listing, _ = pack_listing(
            self._ops.readdir(ctx, nodeid, fh, offset), min(size, self._max_reply_bytes), lay.encode_dirent
        )
        return listing

    def _readdirplus(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, offset, size = body.take(lay.READ_IN)
        listing, left_over = pack_listing(
            self._ops.readdirplus(ctx, nodeid, fh, offset), min(size, self._max_reply_bytes), lay.encode_direntplus
        )
        if left_over is not None and left_over.entry is not None:
            self._ops.forget([(left_over.entry.nodeid, 1)])
        return listing

    def _releasedir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, _, _ = body.take(lay.RELEASE_IN)
        self._ops.releasedir(nodeid, fh)
        return b""

    def _fsyncdir(self, ctx: Context, nodeid: int, body: Body) -> bytes:
        fh, flags = body.take(lay.FSYNC_IN)
        self._ops.fsyncdir(ctx, nodeid, fh, bool(flags & FSYNC_FDATASYNC))
        return b""

    # -- the rest ----------------------------------------------------------------------------------

    @staticmethod
    def _misfit(ctx: Context, nodeid: int, body: Body) -> bytes:
        raise Malformed("READ or WRITE", "its sizes do not agree")
