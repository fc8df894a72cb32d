"""QEMU, which nobody here wrote, opens what we write, and we what it writes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from thin import disk
from thin.descriptor import CreateType, DiskKind
from thin.errors import Unsupported

MIB = 1 << 20

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (package qemu-utils) is missing")


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def qemu_io(path: Path, image_format: str, command: str) -> None:
    subprocess.run(["qemu-io", "-f", image_format, "-c", command, str(path)], check=True, capture_output=True)


def image_info(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qemu_img("info", "--output=json", str(path)))
    return found


@pytest.mark.parametrize("create_type", CreateType)
@pytest.mark.parametrize("kind", DiskKind)
def test_qemu_reads_the_descriptor(tmp_path: Path, create_type: CreateType, kind: DiskKind) -> None:
    path = tmp_path / "a disk.vmdk"
    made = disk.create(path, 3 * MIB + 512, kind, create_type)
    found = image_info(path)
    assert (found["format"], found["virtual-size"]) == ("vmdk", 3 * MIB + 512)
    specific = found["format-specific"]["data"]
    assert (specific["cid"], specific["parent-cid"]) == (made.cid, 0xFFFFFFFF)
    assert specific["create-type"] == create_type.value
    assert image_info(disk.extend(path, 7 * MIB).descriptor_path or path)["virtual-size"] == 7 * MIB


@pytest.mark.parametrize("create_type", CreateType)
def test_data_written_to_the_raw_flat_extent_is_read_through_the_descriptor(
    tmp_path: Path, create_type: CreateType
) -> None:
    path = tmp_path / "a.vmdk"
    made = disk.create(path, 4 * MIB, create_type=create_type)
    qemu_io(made.flat_path, "raw", "write -P 0x5a 1M 64k")
    qemu_io(path, "vmdk", "read -P 0x5a 1M 64k")
    qemu_io(path, "vmdk", "read -P 0 0 1M")
    runs = json.loads(qemu_img("map", "--output=json", "-f", "raw", str(made.flat_path)))
    assert [(run["start"], run["length"]) for run in runs if run["data"]] == [(MIB, 65536)]
    assert "Images are identical" in qemu_img("compare", "-f", "vmdk", "-F", "raw", str(path), str(made.flat_path))


def test_we_read_what_qemu_makes(tmp_path: Path) -> None:
    path = tmp_path / "q.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat,adapter_type=ide", str(path), "64M")
    found = disk.info(path)
    assert (found.create_type, found.virtual_size_bytes, found.adapter) == (CreateType.MONOLITHIC_FLAT, 64 * MIB, "ide")
    assert disk.resolve_flat(path) == (tmp_path / "q-flat.vmdk", 64 * MIB)
    disk.extend(path, 96 * MIB)
    assert image_info(path)["virtual-size"] == 96 * MIB
    qemu_io(path, "vmdk", "write -P 7 95M 1M")
    qemu_io(tmp_path / "q-flat.vmdk", "raw", "read -P 7 95M 1M")


def test_other_kinds_that_qemu_makes_are_refused_by_name(tmp_path: Path) -> None:
    for kind in ("monolithicSparse", "streamOptimized", "twoGbMaxExtentFlat"):
        path = tmp_path / f"{kind}.vmdk"
        qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={kind}", str(path), "8M")
        with pytest.raises(Unsupported, match="createType vmfs, createType monolithicFlat"):
            disk.info(path)
