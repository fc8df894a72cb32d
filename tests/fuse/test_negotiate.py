"""INIT: each capability by itself, on its own and at a real kernel."""

import mmap
import os
import struct
from pathlib import Path

import pytest

from tests.fuse.ramfs import RamFs
from tests.fuse.served import Serve
from vmfs.fuse.errors import Malformed, ProtocolTooOld
from vmfs.fuse.negotiate import WANTED, InitRequest, agree, encode_init, parse_init
from vmfs.fuse.protocol import MAX_WRITE_BYTES, InitFlag

ALL = (1 << 64) - 1
FIELDS = {
    InitFlag.ASYNC_READ: "async_read",
    InitFlag.ATOMIC_O_TRUNC: "atomic_o_trunc",
    InitFlag.EXPORT_SUPPORT: "export_support",
    InitFlag.BIG_WRITES: "big_writes",
    InitFlag.AUTO_INVAL_DATA: "auto_inval_data",
    InitFlag.DO_READDIRPLUS: "readdirplus",
    InitFlag.READDIRPLUS_AUTO: "readdirplus_auto",
    InitFlag.ASYNC_DIO: "async_dio",
    InitFlag.PARALLEL_DIROPS: "parallel_dirops",
    InitFlag.ABORT_ERROR: "abort_error",
    InitFlag.MAX_PAGES: "max_pages",
    InitFlag.CACHE_SYMLINKS: "cache_symlinks",
    InitFlag.HANDLE_KILLPRIV_V2: "killpriv_v2",
    InitFlag.SETXATTR_EXT: "setxattr_ext",
    InitFlag.INIT_EXT: "init_ext",
    InitFlag.DIRECT_IO_ALLOW_MMAP: "direct_io_allow_mmap",
    InitFlag.HAS_RESEND: "resend",
}
GOES_WITH = {
    InitFlag.DO_READDIRPLUS: InitFlag.READDIRPLUS_AUTO,
    InitFlag.INIT_EXT: InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.HAS_RESEND,
}


def test_all_wanted_flags_are_reported() -> None:
    assert sum(FIELDS) == WANTED


def test_only_what_is_wanted_is_taken() -> None:
    agreed = agree(InitRequest(7, 45, 131072, ALL))
    assert agreed.flags == WANTED
    out = struct.unpack("<IIIIHHIIHHI28x", encode_init(agreed))
    assert len(encode_init(agreed)) == 64
    assert out[:4] == (7, 45, 131072, WANTED & 0xFFFFFFFF)
    assert out[6] == MAX_WRITE_BYTES
    assert out[8] == 256
    assert out[10] == WANTED >> 32


@pytest.mark.parametrize("flag", FIELDS)
def test_one_flag_missing_takes_only_itself_away(flag: InitFlag) -> None:
    agreed = agree(InitRequest(7, 45, 0, ALL), mask=flag)
    gone = flag | GOES_WITH.get(flag, 0)
    assert agreed.flags == WANTED & ~gone
    for other, field in FIELDS.items():
        assert getattr(agreed, field) is not bool(other & gone)


def test_shared_mappings_of_direct_files_need_linux_6_9() -> None:
    assert not agree(InitRequest(7, 39, 0, ALL)).direct_io_allow_mmap
    assert agree(InitRequest(7, 40, 0, ALL)).direct_io_allow_mmap


def test_linux_6_1_is_spoken_to_in_its_own_version() -> None:
    agreed = agree(InitRequest(7, 37, 131072, ALL))
    assert (agreed.minor, agreed.kernel_minor) == (37, 37)


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 30)])
def test_older_protocols_are_refused(major: int, minor: int) -> None:
    with pytest.raises(ProtocolTooOld, match=rf"FUSE {major}.{minor}.*7.31"):
        agree(InitRequest(major, minor, 0, ALL))


def test_flags2_only_with_init_ext() -> None:
    header = bytes(40)
    assert parse_init(header + struct.pack("<IIII", 7, 31, 4096, 1)).flags == 1
    long = struct.pack("<IIIII", 7, 45, 4096, 1 << 30, 1 << 4)
    assert parse_init(header + long).flags == 1 << 30 | 1 << 36
    with pytest.raises(Malformed):
        parse_init(header + long[:-4])


def exercise(root: Path, fs: RamFs) -> None:
    """What must work with and without any capability."""
    body = os.urandom(3 << 20)
    path = root / "dir" / "file"
    path.parent.mkdir()
    path.write_bytes(body)
    assert path.read_bytes() == body
    path.write_bytes(body[:100])
    assert path.read_bytes() == body[:100]
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, 1 << 20)
        page[:] = body[: 1 << 20]
        assert os.pwrite(direct, page, 1 << 20) == 1 << 20
        page[:] = bytes(1 << 20)
        assert os.preadv(direct, [page], 1 << 20) == 1 << 20
        assert page[:] == body[: 1 << 20]
    finally:
        os.close(direct)
    os.symlink("file", root / "dir" / "link")
    assert os.readlink(root / "dir" / "link") == "file"
    os.setxattr(path, "user.a", b"b")
    assert os.getxattr(path, "user.a") == b"b"
    for number in range(50):
        (root / "dir" / f"n{number}").touch()
    with os.scandir(root / "dir") as entries:
        assert sum(entry.stat(follow_symlinks=False).st_nlink for entry in entries) == 52
    os.rename(path, root / "dir" / "other")
    assert (root / "dir" / "other").stat().st_size == 2 << 20


@pytest.mark.parametrize("flag", [InitFlag(0), *FIELDS, InitFlag(int(WANTED))])
def test_every_fall_back_at_a_real_kernel(flag: InitFlag, serve: Serve) -> None:
    ram = serve(mask=int(flag))
    assert ram.negotiated.flags & flag == 0
    exercise(ram.path, ram.fs)
    largest = max(ram.fs.sizes)
    assert largest == (1 << 20 if ram.negotiated.max_pages else 1 << 17)
    assert ("open-trunc" in ram.fs.calls) == ram.negotiated.atomic_o_trunc
    assert ("readdirplus" in ram.fs.calls) == ram.negotiated.readdirplus
