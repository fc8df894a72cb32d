"""mount(2) and umount2(2): what is mounted, and clear errors for what cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.served import Serve
from vmfs.fuse.errors import (
    FuseError,
    FuseMissing,
    MountPointInUse,
    MountPointMissing,
    MountPointNotADirectory,
    MountPointStale,
    NotMounted,
    NotRoot,
)
from vmfs.fuse.mount import MountOptions, list_mounts, mount, mounted_at, raise_read_ahead, unmount


def test_how_a_mount_appears(serve: Serve) -> None:
    ram = serve(options=MountOptions(read_only=True, no_exec=True))
    present = mounted_at(str(ram.path))
    assert present is not None
    assert (present.fstype, present.source) == ("fuse.vmfs", "vmfs:ram")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {ram.path} " in line)
    options = set(line.split()[3].split(","))
    wanted = {"ro", "nosuid", "nodev", "noexec", "allow_other", "default_permissions", "max_read=1048576"}
    assert wanted <= options


def test_a_mount_point_may_hold_files(serve: Serve, tmp_path: Path) -> None:
    ram = serve()
    assert os.listdir(ram.path) == []
    ram.end()
    (ram.path / "hidden").touch()
    fs_again = serve()
    assert os.listdir(fs_again.path) == []


@pytest.mark.parametrize(
    ("make", "error", "advice"),
    [
        (lambda p: p / "missing", MountPointMissing, "mkdir -p"),
        (lambda p: p / "file", MountPointNotADirectory, "not a directory"),
        (lambda p: p / "file/below", MountPointNotADirectory, "not a directory"),
    ],
)
def test_bad_mount_points(tmp_path: Path, make, error: type[FuseError], advice: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    before, fds = list_mounts(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=advice) as caught:
        mount(str(make(tmp_path)), "ram")
    assert caught.value.exit_code == 2
    assert (list_mounts(), len(os.listdir("/proc/self/fd"))) == (before, fds)


def test_twice_at_one_place(serve: Serve) -> None:
    ram = serve()
    with pytest.raises(MountPointInUse, match="vmfs:ram is mounted"):
        mount(str(ram.path), "other")


def test_read_ahead_fills_whole_requests(serve: Serve) -> None:
    ram = serve()
    assert raise_read_ahead(str(ram.path))
    Path(ram / "f").write_bytes(bytes(8 << 20))
    ram.fs.sizes.clear()
    with open(ram / "f", "rb", buffering=0) as f:
        while f.read(1 << 17):
            pass
    assert max(ram.fs.sizes) == 1 << 20
    with pytest.raises(NotMounted):
        raise_read_ahead("/nowhere")


def test_no_fuse_device(tmp_path: Path) -> None:
    with pytest.raises(FuseMissing, match="modprobe fuse"):
        mount(str(tmp_path), "ram", device=str(tmp_path / "fuse"))


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(NotMounted):
        unmount(str(tmp_path))
    with pytest.raises(NotMounted):
        unmount(str(tmp_path / "missing"))


def test_through_a_symlink(serve: Serve, tmp_path: Path) -> None:
    ram = serve()
    os.symlink(ram.path, tmp_path / "link")
    unmount(str(tmp_path / "link"))
    assert mounted_at(str(ram.path)) is None


def test_a_dead_process_leaves_a_mount_that_is_named_and_cleared(tmp_path: Path) -> None:
    code = """
import os, sys
from tests.fuse.ramfs import RamFs
from vmfs.fuse.mount import mount
from vmfs.fuse.session import Session
fs = RamFs()
Session(mount(sys.argv[1], "dead"), fs, fs).start()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=20)
    try:
        with pytest.raises(MountPointStale, match="umount"):
            mount(str(tmp_path), "new")
    finally:
        unmount(str(tmp_path))
    assert mounted_at(str(tmp_path)) is None


def test_without_root(tmp_path: Path) -> None:
    code = """
import os, sys
from vmfs.fuse import mount as m
from vmfs.fuse.errors import NotRoot
os.setuid(65534)
for call in (lambda: m.mount(sys.argv[1], "x"), lambda: m.unmount(sys.argv[1])):
    try: call()
    except NotRoot as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.count("needs root") == 2
    assert NotRoot("mounting").exit_code == 2
