"""Making disks: what each kind takes from the file system, and that a failure leaves nothing behind."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thin import disk
from thin.descriptor import MAX_DISK_BYTES, CreateType, DiskKind, parse
from thin.errors import (
    AllocationUnsupported,
    DiskExists,
    FileOperationFailed,
    NameInvalid,
    NoSpace,
    SizeInvalid,
    ThinError,
    Unsupported,
)

MIB = 1 << 20


def content(volume: Path) -> set[str]:
    return {entry.name for entry in volume.iterdir()} - {"lost+found"}


@pytest.mark.parametrize("create_type", CreateType)
def test_a_thin_disk_takes_no_space(tmp_path: Path, create_type: CreateType) -> None:
    made = disk.create(tmp_path / "a.vmdk", 10 << 30, DiskKind.THIN, create_type)
    assert content(tmp_path) == {"a.vmdk", "a-flat.vmdk"}
    assert made.virtual_size_bytes == (tmp_path / "a-flat.vmdk").stat().st_size == 10 << 30
    assert made.allocated_bytes == 0
    assert made.kind is DiskKind.THIN
    assert made.create_type is create_type
    assert made.problems == ()


@pytest.mark.parametrize("kind", [DiskKind.LAZY_ZEROED, DiskKind.EAGER_ZEROED])
def test_a_thick_disk_has_its_space_and_reads_as_zeros(small_ext4: Path, kind: DiskKind) -> None:
    size = 5 * MIB + 512  # no multiple of anything but the sector
    made = disk.create(small_ext4 / "a.vmdk", size, kind)
    assert made.kind is kind
    assert made.allocated_bytes >= size
    assert made.problems == ()
    assert (small_ext4 / "a-flat.vmdk").read_bytes() == bytes(size)


def extent_flags(path: Path) -> str:
    return subprocess.run(["filefrag", "-v", str(path)], capture_output=True, text=True, check=True).stdout


def test_only_the_eager_disk_has_really_been_written(small_ext4: Path) -> None:
    disk.create(small_ext4 / "lazy.vmdk", 4 * MIB, DiskKind.LAZY_ZEROED)
    disk.create(small_ext4 / "eager.vmdk", 4 * MIB, DiskKind.EAGER_ZEROED)
    assert "unwritten" in extent_flags(small_ext4 / "lazy-flat.vmdk")
    assert "unwritten" not in extent_flags(small_ext4 / "eager-flat.vmdk")


def test_progress_of_an_eager_disk_ends_at_its_size(small_volume: Path) -> None:
    seen: list[tuple[int, int]] = []
    size = 3 * MIB + 1536
    disk.create(small_volume / "a.vmdk", size, DiskKind.EAGER_ZEROED, progress=lambda *now: seen.append(now))
    assert [total for _, total in seen] == [size] * len(seen)
    done = [now for now, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == size
    assert (small_volume / "a-flat.vmdk").read_bytes() == bytes(size)


@pytest.mark.parametrize("kind", [DiskKind.LAZY_ZEROED, DiskKind.EAGER_ZEROED])
def test_a_full_file_system_is_left_as_it_was(small_volume: Path, kind: DiskKind) -> None:
    if kind is DiskKind.LAZY_ZEROED and small_volume.name == "ext2":
        expected: type[ThinError] = AllocationUnsupported
    else:
        expected = NoSpace
    before = os.statvfs(small_volume).f_bfree
    with pytest.raises(expected):
        disk.create(small_volume / "a.vmdk", 64 * MIB, kind)
    assert content(small_volume) == set()
    assert os.statvfs(small_volume).f_bfree == before


def test_no_room_for_the_descriptor_leaves_nothing(small_tmpfs: Path) -> None:
    with (small_tmpfs / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small_tmpfs).f_bavail * os.statvfs(small_tmpfs).f_frsize)
    with pytest.raises(NoSpace) as caught:
        disk.create(small_tmpfs / "a.vmdk", 1 << 30)  # thin: it is the descriptor that does not fit
    assert caught.value.exit_code == 1
    assert content(small_tmpfs) == {"filler"}


def test_a_disk_larger_than_the_file_system_allows(small_ext2: Path) -> None:
    with pytest.raises(FileOperationFailed, match="allows no file of that size") as caught:
        disk.create(small_ext2 / "a.vmdk", MAX_DISK_BYTES)
    assert caught.value.errno == errno.EFBIG
    assert content(small_ext2) == set()


def test_what_the_progress_callback_raises_undoes_everything(tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done >= 2 * MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disk.create(tmp_path / "a.vmdk", 8 * MIB, DiskKind.EAGER_ZEROED, progress=cancel)
    assert content(tmp_path) == set()


def test_killed_in_the_middle_leaves_no_disk_and_is_never_overwritten(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from thin import disk\n"
        "die = lambda done, total: done < 2 << 20 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "disk.create(sys.argv[1], 8 << 20, disk.DiskKind.EAGER_ZEROED, progress=die)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.vmdk")]
    killed = subprocess.run(command, cwd=Path(disk.__file__).parents[1], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert content(tmp_path) == {"a-flat.vmdk"}
    with pytest.raises(DiskExists, match="left from a creation cut short"):
        disk.create(tmp_path / "a.vmdk", 8 * MIB)
    assert content(tmp_path) == {"a-flat.vmdk"}


@pytest.mark.parametrize("existing", ["a.vmdk", "a-flat.vmdk"])
@pytest.mark.parametrize("how", ["file", "dangling link"])
def test_never_overwrites(tmp_path: Path, existing: str, how: str) -> None:
    if how == "file":
        (tmp_path / existing).write_bytes(b"precious")
    else:
        (tmp_path / existing).symlink_to("elsewhere")
    with pytest.raises(DiskExists) as caught:
        disk.create(tmp_path / "a.vmdk", MIB)
    assert caught.value.exit_code == 2
    assert content(tmp_path) == {existing}
    if how == "file":
        assert (tmp_path / existing).read_bytes() == b"precious"


def test_another_s_descriptor_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def intrude(done: int, total: int) -> None:
        (tmp_path / "a.vmdk").write_text("another's")

    with pytest.raises(DiskExists):
        disk.create(tmp_path / "a.vmdk", MIB, DiskKind.EAGER_ZEROED, progress=intrude)
    assert content(tmp_path) == {"a.vmdk"}
    assert (tmp_path / "a.vmdk").read_text() == "another's"


@pytest.mark.parametrize(
    "name",
    ["a", "a.img", "a-flat.vmdk", ".vmdk", 'a".vmdk', "a\n.vmdk", "a\\b.vmdk", "n" * 246 + ".vmdk", "\udcff.vmdk",
     "a\0.vmdk"],
)  # fmt: skip
def test_refuses_a_name_that_a_descriptor_cannot_carry(tmp_path: Path, name: str) -> None:
    with pytest.raises(NameInvalid):
        disk.create(f"{tmp_path}/{name}", MIB)
    assert content(tmp_path) == set()


@pytest.mark.parametrize("name", ["ß ü 磁盘.vmdk", "-rf.vmdk", "a.b.VMDK", "n" * 245 + ".vmdk", "$(x) 'q' |22.vmdk"])
def test_takes_any_other_name(tmp_path: Path, name: str) -> None:
    made = disk.create(tmp_path / name, MIB)
    assert made.flat_path.name == name[:-5] + "-flat.vmdk"
    assert disk.info(tmp_path / name) == made


def test_refuses_bad_arguments_before_touching_anything(tmp_path: Path) -> None:
    for size in (0, -512, 1000, MAX_DISK_BYTES + 512):
        with pytest.raises(SizeInvalid):
            disk.create(tmp_path / "a.vmdk", size)
    with pytest.raises(Unsupported, match="floppy"):
        disk.create(tmp_path / "a.vmdk", MIB, adapter="floppy")
    assert content(tmp_path) == set()
    with pytest.raises(FileOperationFailed, match="No such file"):
        disk.create(tmp_path / "no" / "a.vmdk", MIB)


def test_identities_come_from_the_injected_randomness(tmp_path: Path) -> None:
    made = disk.create(tmp_path / "a.vmdk", MIB, random_bytes=lambda count: b"\xff" * count)
    assert made.cid == 0xFFFFFFFE  # ffffffff would mean "no parent"
    assert made.uuid == "60 00 c2 90 ff ff ff ff-ff ff ff ff ff ff ff ff"
    descriptor = parse((tmp_path / "a.vmdk").read_bytes(), "a")
    assert descriptor.entry("longContentID") == "ff" * 15 + "fe"


def test_a_disk_is_its_owner_s_alone(tmp_path: Path) -> None:
    disk.create(tmp_path / "a.vmdk", MIB)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]
