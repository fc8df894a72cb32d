"""Requests as bytes, without a mount: layouts, bounds, errors."""

import errno
import logging
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.fuse.ramfs import RamFs
from vmfs.errors import VmfsError
from vmfs.fuse.contract import Attr, AttrReply, Context, DirEntry, Entry, Statfs
from vmfs.fuse.dispatch import Dispatcher
from vmfs.fuse.layouts import (
    encode_attr_reply,
    encode_direntplus,
    encode_entry,
    encode_statfs,
    to_ns,
)
from vmfs.fuse.listing import pack_listing
from vmfs.fuse.negotiate import WANTED, InitRequest, agree
from vmfs.fuse.protocol import MINOR, Opcode

CTX = Context(0, 0, 0)
Expect = Callable[[str], None]


@pytest.fixture
def fs() -> RamFs:
    return RamFs()


@pytest.fixture
def dispatcher(fs: RamFs) -> Dispatcher:
    return Dispatcher(fs, agree(InitRequest(7, MINOR, 131072, int(WANTED))))


def request(opcode: int, body: bytes, nodeid: int = 1, length: int | None = None, unique: int = 77) -> bytes:
    size = 40 + len(body) if length is None else length
    return struct.pack("<IIQQIIIHH", size, opcode, unique, nodeid, 1000, 1001, 4242, 0, 0) + body


def answer(reply: bytes | None) -> tuple[int, bytes]:
    """(errno, payload) of a reply whose header is checked."""
    assert reply is not None
    length, error, unique = struct.unpack_from("<IiQ", reply)
    assert (length, unique) == (len(reply), 77)
    assert error <= 0
    return -error, reply[16:]


def test_lookup_reply_is_an_entry_of_128_bytes(fs: RamFs, dispatcher: Dispatcher) -> None:
    made = fs.mknod(CTX, 1, b"disk", 0o100640, 0)
    error, payload = answer(dispatcher.handle(request(Opcode.LOOKUP, b"disk\0")))
    assert (error, len(payload)) == (0, 128)
    assert struct.unpack_from("<QQ", payload) == (made.nodeid, made.generation)
    assert struct.unpack_from("<I", payload, 40 + 60)[0] == 0o100640


def test_context_names_the_caller(fs: RamFs, dispatcher: Dispatcher) -> None:
    answer(dispatcher.handle(request(Opcode.MKNOD, struct.pack("<IIII", 0o100600, 0, 0o22, 0) + b"mine\0")))
    node = fs.nodes[fs.nodes[1].children[b"mine"]]
    assert (node.uid, node.gid) == (1000, 1001)


def test_setattr_takes_only_what_is_valid(fs: RamFs, dispatcher: Dispatcher) -> None:
    entry = fs.mknod(CTX, 1, b"f", 0o100600, 0)
    valid = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 8
    times = ((1 << 64) - 2, 7, 8, 250, 3, 4)
    body = struct.pack("<II3Q3Q4I4I", valid, 0, 9, 5000, 0, *times, 0o4755, 0, 5, 6, 0)
    assert len(body) == 88
    error, payload = answer(dispatcher.handle(request(Opcode.SETATTR, body, entry.nodeid)))
    node = fs.nodes[entry.nodeid]
    assert (error, len(payload)) == (0, 104)
    assert (node.mode, node.size, node.uid) == (0o104755, 0, 0)
    assert node.atime_ns == -2_000_000_000 + 250
    assert node.mtime_ns > 1_600_000_000_000_000_000, "MTIME_NOW is the file system's clock, not the field"


def test_times_before_1970_survive_both_ways() -> None:
    payload = encode_attr_reply(AttrReply(Attr(ino=5, mode=0o100644, mtime_ns=-1), 1.5))
    assert struct.unpack_from("<QI", payload) == (1, 500_000_000)
    seconds = struct.unpack_from("<Q", payload, 16 + 32)[0]
    nanoseconds = struct.unpack_from("<I", payload, 16 + 52)[0]
    assert to_ns(seconds, nanoseconds) == -1


@pytest.mark.parametrize("opcode", [op for op in Opcode if op not in (Opcode.DESTROY, Opcode.STATFS, Opcode.READLINK)])
def test_a_request_cut_short_is_an_error_never_a_traceback(
    opcode: Opcode, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture, expected_log: Expect
) -> None:
    expected_log("malformed FUSE request")
    reply = dispatcher.handle(request(opcode, b""))
    silent = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
    if opcode in silent:
        assert reply is None
    else:
        assert answer(reply)[0] in (errno.EIO, errno.ENOSYS)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.expected_log("malformed FUSE request")
@pytest.mark.parametrize(
    "bad",
    [
        request(Opcode.LOOKUP, b"no end"),
        request(Opcode.LOOKUP, b"\0"),
        request(Opcode.LOOKUP, b"a/b\0"),
        request(Opcode.LOOKUP, b"disk\0", length=4000),
        request(Opcode.RENAME2, struct.pack("<QII", 1, 0, 0) + b"only one\0"),
        request(Opcode.SETXATTR, struct.pack("<IIII", 4000, 0, 0, 0) + b"user.x\0short"),
        request(Opcode.IOCTL, struct.pack("<QIIQII", 1, 0, 1, 0, 1 << 31, 0)),
        request(Opcode.WRITE, struct.pack("<QQIIQII", 1, 0, 4096, 0, 0, 0, 0)),
    ],
)
def test_malformed_requests_get_eio_and_one_line(
    bad: bytes, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(dispatcher.handle(bad))[0] == errno.EIO
    assert len(caplog.records) == 1


@pytest.mark.expected_log("malformed FUSE request header")
def test_less_than_a_header_is_dropped(dispatcher: Dispatcher) -> None:
    assert dispatcher.handle(b"\0" * 39) is None


def test_batch_forget_that_lies_about_its_count(fs: RamFs, dispatcher: Dispatcher, expected_log: Expect) -> None:
    expected_log("malformed FUSE request BATCH_FORGET")
    fs.lookups[5] = 3
    body = struct.pack("<IIQQ", 1 << 30, 0, 5, 3)
    assert dispatcher.handle(request(Opcode.BATCH_FORGET, body)) is None
    assert fs.lookups[5] == 3, "nothing of a malformed request is carried out"


def test_forgets_are_passed_on(fs: RamFs, dispatcher: Dispatcher) -> None:
    fs.lookups.update({5: 3, 6: 1})
    assert dispatcher.handle(request(Opcode.FORGET, struct.pack("<Q", 2), nodeid=5)) is None
    assert dispatcher.handle(request(Opcode.BATCH_FORGET, struct.pack("<II4Q", 2, 0, 5, 1, 6, 1))) is None
    assert (fs.lookups[5], fs.lookups[6]) == (0, 0)


@pytest.mark.parametrize("opcode", [Opcode.POLL, Opcode.TMPFILE, Opcode.STATX, Opcode.GETLK, 999])
def test_what_is_not_spoken_is_enosys(opcode: int, dispatcher: Dispatcher) -> None:
    assert answer(dispatcher.handle(request(opcode, bytes(64)))) == (errno.ENOSYS, b"")


def test_names_above_255_bytes(dispatcher: Dispatcher) -> None:
    assert answer(dispatcher.handle(request(Opcode.LOOKUP, b"x" * 255 + b"\0")))[0] == errno.ENOENT
    assert answer(dispatcher.handle(request(Opcode.LOOKUP, b"x" * 256 + b"\0")))[0] == errno.ENAMETOOLONG


def test_errors_of_the_volume_keep_their_errno_and_damage_is_logged(
    fs: RamFs, dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture, expected_log: Expect
) -> None:
    class Damaged(VmfsError):
        errno = errno.EIO

    class Held(VmfsError):
        errno = errno.EBUSY

    caplog.set_level(logging.INFO, logger="vmfs.fuse")

    def raising(error: Exception) -> int:
        def hook() -> None:
            raise error

        fs.hooks["lookup"] = hook
        return answer(dispatcher.handle(request(Opcode.LOOKUP, b"x\0")))[0]

    assert raising(Held("locked by esx2")) == errno.EBUSY
    assert caplog.records[-1].levelno == logging.INFO
    expected_log("block 17 is damaged")
    assert raising(Damaged("block 17 is damaged")) == errno.EIO
    assert "LOOKUP failed: block 17" in caplog.records[-1].getMessage()
    assert caplog.records[-1].exc_info is None
    expected_log("LOOKUP failed by a bug")
    assert raising(KeyError("oops")) == errno.EIO
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize(("nodeid", "generation"), [(0, 1), (2, 1 << 32), (2, -1), (1 << 64, 1)])
def test_entries_that_the_kernel_would_misread_are_refused(nodeid: int, generation: int) -> None:
    with pytest.raises(ValueError, match="cannot be given"):
        encode_entry(Entry(nodeid, generation, Attr(ino=2, mode=0o100644)))


def test_listing_fills_the_buffer_and_closes_the_iterator() -> None:
    closed = []

    def entries() -> Iterator[DirEntry]:
        try:
            for index in range(1000):
                entry = Entry(2 + index, 1, Attr(ino=2 + index, mode=0o100644))
                yield DirEntry(2 + index, index + 1, 0o100644, b"n%04d" % index, entry)
        finally:
            closed.append(True)

    listing, left_over = pack_listing(entries(), 4096, encode_direntplus)
    record = 128 + 24 + 8
    assert len(listing) == 4096 // record * record
    assert left_over is not None
    assert left_over.offset == 4096 // record + 1
    assert closed == [True]


def test_statfs_layout() -> None:
    payload = encode_statfs(Statfs(blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=65536, frsize=4096))
    assert struct.unpack_from("<5Q3I", payload) == (1, 2, 3, 4, 5, 65536, 255, 4096)
    assert len(payload) == 80


def test_xattr_sizes(fs: RamFs, dispatcher: Dispatcher) -> None:
    fs.nodes[1].xattrs[b"user.k"] = b"12345"

    def get(size: int) -> tuple[int, bytes]:
        return answer(dispatcher.handle(request(Opcode.GETXATTR, struct.pack("<II", size, 0) + b"user.k\0")))

    assert get(0) == (0, struct.pack("<II", 5, 0))
    assert get(4) == (errno.ERANGE, b"")
    assert get(5) == (0, b"12345")
    acl = struct.pack("<IIII", 1, 0, 0, 0) + b"system.posix_acl_access\0x"
    assert answer(dispatcher.handle(request(Opcode.SETXATTR, acl)))[0] == errno.EOPNOTSUPP
