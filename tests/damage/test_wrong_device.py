"""What is no volume, or none that this host may mount: refused with its name and what it is, and left as it was."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.damage.scene import CopiedDatastore, Scene, opened
from tests.vmfs.datastore import vmfsctl
from vmfs.devices.contract import LockMethod
from vmfs.ondisk.header import seal_checksum
from vmfs.ondisk.superblock import Superblock

MIB = 1 << 20


def refused(spec: object, folder: Path, *says: str) -> None:
    """`vmfsctl mount` refuses it, names it, says what it found, and leaves no mount and no traceback."""
    done = vmfsctl("mount", spec, folder, "--log-file", folder / "log", check=False)
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert done.returncode in (1, 2), (done.stdout, done.stderr)
    assert str(spec) in done.stderr
    for text in says:
        assert text in done.stderr
    assert "Traceback" not in done.stderr + log
    assert "internal error" not in done.stderr
    assert f" {folder} " not in Path("/proc/mounts").read_text()


def test_what_is_no_disk(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path, "directory")
    refused("/dev/null", tmp_path)
    refused(tmp_path / "missing", tmp_path)
    refused("/dev/zero", tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(64 * MIB)
    yield path
    path.unlink()


def with_bytes(image: Path, at: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(data)


def make_ext4(image: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)


MAKERS: dict[str, Callable[[Path], None]] = {
    "nothing known": lambda image: None,
    "ext4": make_ext4,
    "LVM": lambda image: with_bytes(image, 512, b"LABELONE" + bytes(16) + b"LVM2 001"),
    "VMware": lambda image: with_bytes(image, 1 * MIB, (0xC001D00D).to_bytes(4, "little")),
    "dos": lambda image: with_bytes(image, 446, bytes([0, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 8, 0, 0])
                                    + bytes(48) + b"\x55\xaa"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_what_others_have_made(tmp_path: Path, image: Path, kind: str) -> None:
    MAKERS[kind](image)
    before = image.read_bytes()
    refused(image, tmp_path, kind, "no Azekura VMFS volume")
    assert image.read_bytes() == before


def reseal(datastore: CopiedDatastore, change: Callable[[Superblock], Superblock], version: int = 1) -> None:
    """Write every superblock copy anew, changed, with a checksum that is right."""
    with opened(datastore.lun) as volume:
        changed = change(volume.superblock)
    for offset in changed.copy_offsets(0):
        block = bytearray(changed.pack(0, offset))
        block[64:68] = version.to_bytes(4, "little")
        with_bytes(datastore.lun, offset, bytes(seal_checksum(block)))


@pytest.mark.parametrize(
    ("change", "version", "says"),
    [
        (lambda sb: sb, 2, "format version 2"),
        (lambda sb: dataclasses.replace(sb, incompat=1 << 40), 1, "unknown incompatible features 0x10000000000"),
        (lambda sb: dataclasses.replace(sb, ro_compat=1), 1, "can be read only"),
        (lambda sb: dataclasses.replace(sb, lock_method=LockMethod.OFD_HOST), 1, "locks by OFD_HOST"),
        (lambda sb: dataclasses.replace(sb, lock_method=77), 1, "locks by method 77"),
    ],
)
def test_what_this_host_does_not_know(
    tmp_path: Path, scene: Scene, change: Callable[[Superblock], Superblock], version: int, says: str
) -> None:
    datastore = CopiedDatastore(tmp_path, scene)
    reseal(datastore, change, version)
    before = datastore.lun.read_bytes()
    refused(datastore.lun, tmp_path, says)
    assert datastore.lun.read_bytes() == before
    datastore.close()


def test_one_extent_of_two(tmp_path: Path, scene: Scene) -> None:
    datastore = CopiedDatastore(tmp_path, scene)
    reseal(datastore, lambda sb: dataclasses.replace(
        sb, extents=(*sb.extents, dataclasses.replace(sb.extents[0], uuid=uuid4()))
    ))  # fmt: skip
    done = vmfsctl("mount", datastore.lun, tmp_path, "--log-file", tmp_path / "log", check=False)
    assert done.returncode == 1
    assert "extent 1" in done.stderr
    assert "is not there" in done.stderr
    datastore.close()


def test_a_volume_twice_and_an_extent_of_another(tmp_path: Path, scene: Scene) -> None:
    datastore = CopiedDatastore(tmp_path, scene)
    other = tmp_path / "other.img"
    vmfsctl("format", "--name", "other", "--create-size", "64M", "--max-hosts", "2", other)
    for second, says in ((datastore.lun, "is the same extent"), (other, "belongs to volume")):
        done = vmfsctl("mount", datastore.lun, second, tmp_path, "--log-file", tmp_path / "log", check=False)
        assert done.returncode in (1, 2)
        assert says in done.stderr
    datastore.close()
    other.unlink()


def test_larger_sectors_than_the_volumes(tmp_path: Path, scene: Scene) -> None:
    """A volume made for sectors of 512 bytes on a disk that has 4096: its locks could not be written alone."""
    datastore = CopiedDatastore(tmp_path, scene)
    made = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", "--direct-io=on", str(datastore.lun)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    loop = made.stdout.strip()
    try:
        refused(loop, tmp_path, "sectors of 4096 bytes", "formatted for sectors of 512")
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
        datastore.close()
