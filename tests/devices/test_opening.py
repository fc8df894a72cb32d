"""What open_device refuses, and what a device says when the storage below it misbehaves."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.conftest import DEVICE_BYTES, LoopMaker
from vmfs.devices import open_device, syscalls
from vmfs.devices.file import FileDevice
from vmfs.errors import DeviceError, DeviceNotUsable


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("iscsi://127.0.0.1:1/iqn.2020-01.example:lun/0", "cannot log in.*is the portal reachable"),
        ("rbd://pool/image", "rbd:// are not known"),
        ("/nowhere/at/all", "no such file"),
        ("", "no such file"),
        ("/etc", "is a directory"),
        ("/dev/null", "is a character device"),
        ("with\0nul", "is no path"),
        ("x" * 5000, "cannot be opened"),
    ],
)
def test_bad_specs(spec: str, says: str) -> None:
    with pytest.raises(DeviceNotUsable, match=says) as caught:
        open_device(spec)
    assert caught.value.exit_code == 2


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DeviceNotUsable, match="FIFO"):
        open_device(str(tmp_path / "fifo"))


def test_permission_denied(image: Path) -> None:
    # Modules are imported before the rights are dropped: this tree may not be readable to others.
    code = (
        "import os, sys, vmfs.devices; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from vmfs.devices import open_device\n"
        "from vmfs.errors import DeviceNotUsable\n"
        "try: open_device(sys.argv[1])\n"
        "except DeviceNotUsable as error: print(error)\n"
    )
    image.parent.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", code, str(image)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "permission denied: run as root" in done.stdout


@pytest.mark.parametrize("sector_bytes", [0, 256, 1024, 8192, -512])
def test_sectors_that_no_disk_has(image: Path, sector_bytes: int) -> None:
    with pytest.raises(DeviceNotUsable, match=f"sectors of {sector_bytes} bytes"):
        open_device(str(image), sector_bytes=sector_bytes)


def test_sectors_smaller_than_the_disks(image: Path, attach_loop: LoopMaker) -> None:
    node = attach_loop(image, "--sector-size", "4096", "--direct-io=on")
    with pytest.raises(DeviceNotUsable, match="it takes 4096"):
        open_device(node, sector_bytes=512)


def test_alignment_is_tried_where_statx_does_not_say(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = FileDevice.open(str(image))
    monkeypatch.setattr(syscalls, "direct_alignment", lambda fd: None)
    tried = FileDevice.open(str(image))
    assert tried.logical_block_bytes == said.logical_block_bytes == 512
    said.close()
    tried.close()


@pytest.mark.parametrize("alignment", [(0, 0), (512, 65536)])
def test_files_without_usable_direct_io(
    image: Path, monkeypatch: pytest.MonkeyPatch, alignment: tuple[int, int]
) -> None:
    monkeypatch.setattr(syscalls, "direct_alignment", lambda fd: syscalls.DirectAlignment(*alignment))
    with pytest.raises(DeviceNotUsable, match=r"direct I/O|larger than the format"):
        FileDevice.open(str(image))
    assert not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, image)]


def _leads_to(fd: str, image: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(image)
    except OSError:
        return False


def test_a_file_that_ends_within_a_sector_is_rounded_down(image: Path) -> None:
    os.truncate(image, DEVICE_BYTES + 100)
    device = open_device(str(image), sector_bytes=4096)
    assert device.size_bytes == DEVICE_BYTES
    os.truncate(image, DEVICE_BYTES + 9000)
    assert device.refresh_size() == DEVICE_BYTES + 8192
    device.close()


def test_a_truncated_file_is_an_error_not_zeros(image: Path) -> None:
    device = open_device(str(image), sector_bytes=512)
    os.truncate(image, 4096 + 100)
    with pytest.raises(DeviceError, match=r"lun\.img: read of 4096 bytes at byte 4096 failed.*truncated"):
        device.read(0, 8192)
    device.close()


@pytest.fixture
def small_files(image: Path) -> Iterator[None]:
    """Nothing may be written behind the middle of the image: the kernel cuts writes short, and refuses the rest."""
    assert image.exists()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DEVICE_BYTES // 2 + 4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_short_write_is_finished_or_an_error(image: Path) -> None:
    device = open_device(str(image))
    half = DEVICE_BYTES // 2
    with pytest.raises(DeviceError, match=rf"write of 4096 bytes at byte {half + 4096} failed: File too large"):
        device.write(half, b"x" * 8192)
    assert device.read(half, 8192) == b"x" * 4096 + bytes(4096)
    device.close()


def test_a_full_file_system_below_is_an_error(tmp_path: Path, attach_loop: LoopMaker) -> None:
    fs_image, where = tmp_path / "fs.img", tmp_path / "mnt"
    fs_image.touch()
    os.truncate(fs_image, 4 << 20)
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(fs_image)], check=True, timeout=30)
    subprocess.run(["mount", attach_loop(fs_image), str(where)], check=True, timeout=30)
    try:
        lun = where / "lun.img"
        lun.touch()
        os.truncate(lun, 16 << 20)
        device = open_device(str(lun))
        with pytest.raises(DeviceError, match="No space left"):
            device.write(0, b"x" * (16 << 20))
        device.close()
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=30)


def _linux_release() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(each for each in minor if each.isdigit()))


def test_tmpfs_works_or_is_refused_clearly(tmp_path: Path) -> None:
    """Linux 6.6 and later take O_DIRECT on tmpfs, earlier ones do not."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], check=True, timeout=10)
    try:
        path = tmp_path / "lun.img"
        path.write_bytes(bytes(1 << 20))
        if _linux_release() < (6, 6):
            with pytest.raises(DeviceNotUsable, match="direct I/O"):
                open_device(str(path))
        else:
            device = open_device(str(path))
            assert device.compare_and_write(0, bytes(4096), b"x" * 4096)
            device.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=10)
