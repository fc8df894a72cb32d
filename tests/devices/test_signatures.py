"""What a device holds is recognised, on real file systems made by their own tools."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.devices.conftest import DEVICE_BYTES, LoopMaker
from tests.luns.lun import Lun
from vmfs.devices import open_device
from vmfs.devices.ram import RamDevice
from vmfs.devices.signatures import identify
from vmfs.errors import CannotIdentify


def _identify(path: Path | str) -> str | None:
    device = open_device(str(path))
    try:
        return identify(device)
    finally:
        device.close()


def test_an_empty_device_holds_nothing(image: Path, attach_loop: LoopMaker) -> None:
    assert _identify(image) is None
    assert _identify(attach_loop(image, "--direct-io=on", "--sector-size", "4096")) is None
    image.write_bytes(os.urandom(1 << 20))
    assert _identify(image) is None


def test_a_tiny_device_is_no_error(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.write_bytes(bytes(512))
    assert _identify(tiny) is None
    tiny.write_bytes(b"")
    assert _identify(tiny) is None


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["mkfs.ext4", "-q", "-L", "photos"], "ext4 file system named photos"),
        (["mkswap"], "swap area"),
    ],
)
def test_by_their_own_tools(image: Path, attach_loop: LoopMaker, command: list[str], says: str) -> None:
    subprocess.run([*command, str(image)], check=True, capture_output=True, timeout=30)
    assert _identify(image) == says
    assert _identify(attach_loop(image, "--direct-io=on")) == says


def test_on_a_lun_without_a_descriptor(lun: Lun, tmp_path: Path) -> None:
    assert _identify(lun.url) is None
    made = tmp_path / "made.img"
    with made.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "photos", str(made)], check=True, capture_output=True, timeout=30)
    device = open_device(lun.url)
    device.write(0, made.read_bytes()[: 1 << 20])
    device.close()
    assert _identify(lun.url) == "ext4 file system named photos"


@pytest.mark.parametrize(
    ("at", "magic", "says"),
    [
        (512 + 24, b"LVM2 001", "LVM2_member member of a RAID or LVM set"),
        (0, b"LUKS\xba\xbe\0\x01", "crypto_LUKS encrypted volume"),
        (0, b"XFSB", None),  # a magic without the rest of a superblock is no file system
        (65536, b"AZKVMFS\0", "Azekura VMFS volume"),
        (68 << 10, b"AZKVMFS\0", "Azekura VMFS volume"),
        (DEVICE_BYTES - 65536, b"AZKVMFS\0", "Azekura VMFS volume"),
        (1 << 20, b"\x0d\xd0\x01\xc0", "VMware VMFS extent"),
        (2 << 20, b"\x5e\xf1\xab\x2f", "VMware VMFS volume"),
        (2 << 20, b"\x5f\xf1\xab\x2f", "VMware VMFS volume"),
    ],
)
def test_by_signature(image: Path, at: int, magic: bytes, says: str | None) -> None:
    with image.open("r+b") as file:
        if magic == b"LVM2 001":
            file.write(bytes(512) + b"LABELONE" + (1).to_bytes(8, "little"))
            label = _lvm_label()
            file.seek(512)
            file.write(label)
        else:
            file.seek(at)
            file.write(magic)
    assert _identify(image) == says


def _lvm_label() -> bytes:
    """A physical volume's label sector (LVM2's label.h): its CRC has LVM's own seed, 0xf597a6cf."""
    body = (32).to_bytes(4, "little") + b"LVM2 001" + b"A" * 32 + DEVICE_BYTES.to_bytes(8, "little")
    body = body.ljust(512 - 20, b"\0")
    crc = 0xF597A6CF
    for byte in body:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return b"LABELONE" + (1).to_bytes(8, "little") + crc.to_bytes(4, "little") + body


def test_partition_table(image: Path) -> None:
    entry = bytes([0, 0xFE, 0xFF, 0xFF, 0x83, 0xFE, 0xFF, 0xFF, 0, 8, 0, 0, 0, 0x20, 0, 0])
    with image.open("r+b") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    assert _identify(image) == "dos partition table"


def test_in_memory_only_vmfs_is_looked_for() -> None:
    device = RamDevice(DEVICE_BYTES, logical_block_bytes=4096)
    assert identify(device) is None
    device.write(65536, b"AZKVMFS\0".ljust(4096, b"\0"))
    assert identify(device) == "Azekura VMFS volume"


def test_a_machine_without_blkid_says_so(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotIdentify, match="install util-linux"):
        _identify(image)
