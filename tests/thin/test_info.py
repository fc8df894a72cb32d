"""Looking at disks, and finding the raw bytes of one, when the descriptor or its files are not to be trusted."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from thin import disk
from thin.descriptor import DiskKind
from thin.errors import (
    DescriptorInvalid,
    FileOperationFailed,
    FlatExtentUnusable,
    NameInvalid,
    ThinError,
)

MIB = 1 << 20


@pytest.fixture
def made(tmp_path: Path) -> Path:
    disk.create(tmp_path / "a.vmdk", 2 * MIB)
    return tmp_path / "a.vmdk"


def test_a_healthy_disk_has_no_problems(made: Path) -> None:
    found = disk.info(made)
    assert (found.descriptor_path, found.flat_path) == (made, made.with_name("a-flat.vmdk"))
    assert (found.adapter, found.hardware_version, found.problems) == ("lsilogic", "7", ())
    assert found.to_dict()["cid"] == f"{found.cid:08x}"
    assert disk.info(found.flat_path) == found


def test_the_allocated_bytes_are_the_written_ones(made: Path) -> None:
    with made.with_name("a-flat.vmdk").open("r+b") as file:
        file.seek(MIB)
        file.write(b"x" * 65536)
        os.fsync(file.fileno())
    assert disk.info(made).allocated_bytes == 65536


def test_a_truncated_flat_extent_is_reported_and_not_backed_up(made: Path) -> None:
    os.truncate(made.with_name("a-flat.vmdk"), MIB)
    assert any("data is lost" in problem for problem in disk.info(made).problems)
    with pytest.raises(FlatExtentUnusable, match="data is lost"):
        disk.resolve_flat(made)


def test_a_missing_flat_extent_is_reported(made: Path) -> None:
    made.with_name("a-flat.vmdk").unlink()
    found = disk.info(made)
    assert found.flat_size_bytes is None
    assert any("missing" in problem for problem in found.problems)
    with pytest.raises(FlatExtentUnusable, match="missing"):
        disk.resolve_flat(made)


def test_a_thick_disk_with_holes_is_reported(made: Path) -> None:
    made.write_text(made.read_text().replace('ddb.thinProvisioned = "1"\n', ""))
    found = disk.info(made)
    assert found.kind is DiskKind.LAZY_ZEROED
    assert any("thick disk has only 0 of" in problem for problem in found.problems)


def replace_flat(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(flat: Path) -> object:
        flat.unlink()
        return make(flat)

    return replace


@pytest.mark.parametrize(
    "make",
    [lambda flat: flat.symlink_to("/etc/hostname"), os.mkfifo, Path.mkdir, lambda flat: flat.symlink_to("/dev/zero")],
    ids=["link out of the directory", "FIFO", "directory", "link to a device"],
)
def test_a_flat_extent_that_is_no_regular_file_is_never_opened(made: Path, make: Callable[[Path], object]) -> None:
    replace_flat(make)(made.with_name("a-flat.vmdk"))
    operations: list[Callable[[], object]] = [
        lambda: disk.info(made),
        lambda: disk.resolve_flat(made),
        lambda: disk.extend(made, 4 * MIB),
    ]
    for operation in operations:
        with pytest.raises(FlatExtentUnusable):
            operation()


def test_a_descriptor_that_names_itself(made: Path) -> None:
    made.write_text(made.read_text().replace("a-flat.vmdk", "a.vmdk"))
    with pytest.raises(FlatExtentUnusable, match="names itself"):
        disk.info(made)


def test_a_descriptor_that_is_no_small_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    os.mkfifo(path)
    with pytest.raises(DescriptorInvalid, match="not a regular file"):
        disk.info(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DescriptorInvalid, match="not a regular file"):
        disk.info(path)
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(1 << 40)  # never read whole
    with pytest.raises(DescriptorInvalid, match="more than"):
        disk.info(path)


def test_a_path_that_is_not_there_or_not_a_path(tmp_path: Path) -> None:
    for path in (tmp_path / "a.vmdk", tmp_path / "a.img", tmp_path / "no" / "a.vmdk"):
        with pytest.raises(FileOperationFailed, match="No such file"):
            disk.info(path)
        with pytest.raises(FileOperationFailed, match="No such file"):
            disk.resolve_flat(path)
    for text in ("", "a\0b"):
        with pytest.raises(NameInvalid):
            disk.info(text)
    with pytest.raises(FlatExtentUnusable, match="neither a regular file nor a block device"):
        disk.info(tmp_path)


def test_the_raw_bytes_are_found_from_descriptor_flat_and_raw_file(made: Path, tmp_path: Path) -> None:
    flat = made.with_name("a-flat.vmdk")
    assert disk.resolve_flat(made) == (flat, 2 * MIB)
    assert disk.resolve_flat(flat) == (flat, 2 * MIB)
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(12345))
    assert disk.resolve_flat(raw) == (raw, 12345)
    found = disk.info(raw)
    assert (found.descriptor_path, found.kind, found.virtual_size_bytes) == (None, None, 12345)


def test_after_a_cut_short_extend_the_hypervisor_s_size_is_backed_up(made: Path) -> None:
    os.truncate(made.with_name("a-flat.vmdk"), 3 * MIB)
    assert disk.resolve_flat(made)[1] == 3 * MIB


def test_a_guest_cannot_pass_its_disk_off_as_a_descriptor(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-flat.vmdk"
    other.write_bytes(b"another VM's secret".ljust(4096, b"\0"))
    evil = made.read_text().replace("a-flat.vmdk", other.name).encode()
    raw = tmp_path / "disk.img"
    for written_by_guest in (raw, made.with_name("a-flat.vmdk")):
        written_by_guest.write_bytes(evil)
        assert disk.resolve_flat(written_by_guest) == (written_by_guest, len(evil))


def test_a_block_device_is_a_raw_disk(tmp_path: Path) -> None:
    image = tmp_path / "lun.img"
    image.write_bytes(bytes(MIB))
    attached = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        assert disk.resolve_flat(attached) == (Path(attached), MIB)
        assert disk.info(attached).virtual_size_bytes == MIB
    finally:
        subprocess.run(["losetup", "--detach", attached], check=True)


def test_every_error_has_an_exit_code_and_an_errno() -> None:
    classes = list(ThinError.__subclasses__())
    for error in classes:
        classes.extend(error.__subclasses__())
        assert error.exit_code in (1, 2)
        assert error.errno > 0
    assert len(classes) > 10
