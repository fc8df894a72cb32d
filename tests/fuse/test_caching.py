"""What the kernel does with cached and direct openers, appends, synchronous writes and mappings.

These tests are the evidence for what `vmfs.fuse.contract` says about the kernel.
"""

import mmap
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.fuse.ramfs import RamFs
from tests.fuse.served import Serve, Served
from tests.fuse.test_files import python

PAGE = 4096


def test_a_direct_write_is_seen_by_a_cached_reader_and_the_other_way(ram: Served) -> None:
    with open(ram / "f", "wb") as f:
        f.write(b"old!" * 4096)
    cached = os.open(ram / "f", os.O_RDWR)
    direct = os.open(ram / "f", os.O_RDWR | os.O_DIRECT)
    assert os.pread(cached, 4, PAGE) == b"old!"
    os.pwrite(direct, b"new!" * 1024, PAGE)
    assert os.pread(cached, 4, PAGE) == b"new!"
    os.pwrite(cached, b"buffered", PAGE)
    assert os.pread(direct, 8, PAGE) == b"buffered", "a buffered write goes through at once"
    os.close(cached)
    os.close(direct)


def test_reopening_drops_the_cache(serve: Serve) -> None:
    """Close-to-open: what another host wrote is seen by the next open, whatever the timeouts."""
    ram = serve(RamFs(timeout_s=3600))
    with open(ram / "f", "wb") as f:
        f.write(b"a" * PAGE)
    ino = os.stat(ram / "f").st_ino
    with open(ram / "f", "rb") as reader:
        assert reader.read(1) == b"a"
        ram.fs.nodes[ino].pages[0][:] = b"b" * PAGE
        with open(ram / "f", "rb") as again:
            assert again.read(1) == b"b"


def test_a_larger_file_is_noticed_within_the_timeout(serve: Serve) -> None:
    ram = serve(RamFs(timeout_s=0.05))
    with open(ram / "f", "wb") as f:
        f.write(b"a" * PAGE)
    fd = os.open(ram / "f", os.O_RDONLY)
    assert os.read(fd, 2 * PAGE) == b"a" * PAGE
    node = ram.fs.nodes[os.fstat(fd).st_ino]
    node.pages[0][:] = b"c" * PAGE
    node.pages[1] = bytearray(b"d" * PAGE)
    node.size = 2 * PAGE
    node.touch()
    time.sleep(0.1)
    assert os.pread(fd, 2 * PAGE, 0) == b"c" * PAGE + b"d" * PAGE, "AUTO_INVAL_DATA"
    os.close(fd)


@pytest.mark.parametrize("direct", [0, os.O_DIRECT])
def test_appends_go_to_the_real_end(serve: Serve, direct: int) -> None:
    """The kernel believes an old size; the bytes must not land on another host's."""
    ram = serve(RamFs(timeout_s=3600))
    with open(ram / "log", "wb") as f:
        f.write(b"1" * 10)
    assert os.stat(ram / "log").st_size == 10
    node = ram.fs.nodes[os.stat(ram / "log").st_ino]
    node.pages[0][10:20] = b"2" * 10
    node.size = 20
    fd = os.open(ram / "log", os.O_WRONLY | os.O_APPEND | direct)
    os.write(fd, b"3" * 10)
    os.write(fd, b"4" * 10)
    os.close(fd)
    want = b"1" * 10 + b"2" * 10 + b"3" * 10 + b"4" * 10
    assert bytes(node.pages[0][: node.size]) == want
    end = time.monotonic() + 5
    while os.stat(ram / "log").st_size != 40 and time.monotonic() < end:
        time.sleep(0.01)
    with open(ram / "log", "rb") as f:
        assert f.read() == want


@pytest.mark.parametrize("direct", [0, os.O_DIRECT])
@pytest.mark.parametrize(("flag", "call"), [(os.O_SYNC, "fsync"), (os.O_DSYNC, "fdatasync")])
def test_synchronous_writes_are_synced_before_they_return(ram: Served, direct: int, flag: int, call: str) -> None:
    fd = os.open(ram / "s", os.O_CREAT | os.O_RDWR | flag | direct)
    os.ftruncate(fd, PAGE)
    ram.fs.calls.clear()
    os.pwrite(fd, b"x" * PAGE, 0)
    order = [c for c in ram.fs.calls if c in ("write", call)]
    assert order[:2] == ["write", call]
    os.close(fd)


def test_dsync_for_one_write(ram: Served) -> None:
    fd = os.open(ram / "s", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    os.pwritev(fd, [b"x" * PAGE], 0, os.RWF_DSYNC)
    assert "fdatasync" in ram.fs.calls
    ram.fs.calls.clear()
    os.pwritev(fd, [b"x" * PAGE], 0)
    assert "fdatasync" not in ram.fs.calls
    os.close(fd)


def test_mappings_shared_between_processes(ram: Served) -> None:
    with open(ram / "m", "wb") as f:
        f.write(b"." * 3 * PAGE)
    code = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | int(sys.argv[2]))
m = mmap.mmap(fd, 0, mmap.MAP_SHARED)
if sys.argv[3] == "write":
    m[4096:4100] = b"page"
    m.flush()
print(bytes(m[4096:4100]).decode())
"""
    assert python(code, ram / "m", "0", "write") == "page\n"
    assert python(code, ram / "m", "0", "read") == "page\n"
    with open(ram / "m", "rb") as f:
        assert f.read()[4094:4102] == b"..page.."
    assert ram.negotiated.direct_io_allow_mmap or ram.negotiated.kernel_minor < 40
    if ram.negotiated.direct_io_allow_mmap:
        assert python(code, ram / "m", str(os.O_DIRECT), "write") == "page\n"


def test_direct_writes_run_alone_while_a_mapping_is_there_but_are_right(ram: Served) -> None:
    with open(ram / "x", "wb") as f:
        f.write(bytes(64 * PAGE))
    mapper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import mmap,os,sys\nm=mmap.mmap(os.open(sys.argv[1],os.O_RDONLY),0,prot=mmap.PROT_READ)\n"
            "m[0]; print('mapped',flush=True); sys.stdin.read(); print(m[5*4096], m[63*4096])",
            ram / "x",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert mapper.stdin is not None
    assert mapper.stdout is not None
    assert mapper.stdout.readline() == "mapped\n"
    fd = os.open(ram / "x", os.O_RDWR | os.O_DIRECT)

    def writer(at: int) -> None:
        buf = mmap.mmap(-1, PAGE)
        for block in range(at, 64, 2):
            buf[:] = bytes([block]) * PAGE
            os.pwrite(fd, buf, block * PAGE)

    threads = [threading.Thread(target=writer, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    os.close(fd)
    assert mapper.communicate(timeout=20)[0] == "5 63\n"
