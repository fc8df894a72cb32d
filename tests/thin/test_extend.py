"""Growing disks: in place, keeping their kind, never shrinking, and completed after being cut short."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thin import descriptor_file, disk
from thin.descriptor import MAX_DISK_BYTES, CreateType, DiskKind
from thin.errors import (
    AllocationUnsupported,
    DiskBusy,
    FlatExtentUnusable,
    NoSpace,
    NotADescriptor,
    ShrinkRefused,
    SizeInvalid,
    Unsupported,
)
from thin.size import parse_change

MIB = 1 << 20
ROOT = Path(disk.__file__).parents[1]


def write_guest_data(flat: Path, offset: int, data: bytes) -> None:
    with flat.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("kind", DiskKind)
def test_grows_in_place_and_keeps_its_kind(small_ext4: Path, kind: DiskKind) -> None:
    path, flat = small_ext4 / "a.vmdk", small_ext4 / "a-flat.vmdk"
    before = disk.create(path, 2 * MIB + 512, kind)
    write_guest_data(flat, 2 * MIB, b"x" * 512)
    inode = flat.stat().st_ino
    with flat.open("rb") as hypervisor:
        after = disk.extend(path, 5 * MIB + 1024)
        assert hypervisor.seek(0, os.SEEK_END) == 5 * MIB + 1024
    assert flat.stat().st_ino == inode
    assert after.virtual_size_bytes == after.flat_size_bytes == 5 * MIB + 1024
    assert (after.kind, after.cid, after.uuid, after.problems) == (kind, before.cid, before.uuid, ())
    assert (after.allocated_bytes >= 5 * MIB) == (kind is not DiskKind.THIN)
    assert flat.read_bytes() == bytes(2 * MIB) + b"x" * 512 + bytes(3 * MIB + 512)


def test_by_a_relative_size_or_to_the_same_one(tmp_path: Path) -> None:
    disk.create(tmp_path / "a.vmdk", 10 * MIB)
    assert disk.extend(tmp_path / "a.vmdk", parse_change("+5M")).virtual_size_bytes == 15 * MIB
    text = (tmp_path / "a.vmdk").stat()
    assert disk.extend(tmp_path / "a.vmdk", 15 * MIB).virtual_size_bytes == 15 * MIB
    assert (tmp_path / "a.vmdk").stat() == text  # nothing to do: nothing written
    assert disk.extend(tmp_path / "a-flat.vmdk", 16 * MIB).virtual_size_bytes == 16 * MIB


def test_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, 10 * MIB)
    before = path.read_bytes()
    with pytest.raises(ShrinkRefused):
        disk.extend(path, 9 * MIB)
    for size in (0, 10 * MIB + 1, MAX_DISK_BYTES + 512):
        with pytest.raises(SizeInvalid):
            disk.extend(path, size)
    assert path.read_bytes() == before
    assert (tmp_path / "a-flat.vmdk").stat().st_size == 10 * MIB


@pytest.mark.parametrize("kind", DiskKind)
def test_cut_short_before_the_descriptor_it_is_reported_and_mended(tmp_path: Path, kind: DiskKind) -> None:
    path, flat = tmp_path / "a.vmdk", tmp_path / "a-flat.vmdk"
    disk.create(path, 2 * MIB, kind)
    os.truncate(flat, 4 * MIB)
    write_guest_data(flat, 3 * MIB, b"guest")  # the hypervisor shows the flat file's size: this is a guest's
    found = disk.info(path)
    assert (found.virtual_size_bytes, found.flat_size_bytes) == (2 * MIB, 4 * MIB)
    assert any("flat extent larger than descriptor" in problem for problem in found.problems)
    with pytest.raises(ShrinkRefused, match="already"):
        disk.extend(path, 3 * MIB)
    mended = disk.extend(path, parse_change("+2M"))
    assert (mended.virtual_size_bytes, mended.flat_size_bytes, mended.problems) == (4 * MIB, 4 * MIB, ())
    assert (mended.allocated_bytes >= 4 * MIB) == (kind is not DiskKind.THIN)
    assert flat.read_bytes()[3 * MIB : 3 * MIB + 5] == b"guest"


KILLED = (  # after 2 MiB of zeros
    "import os, signal, sys\n"
    "from thin import disk\n"
    "die = lambda done, total: done < 2 << 20 or os.kill(os.getpid(), signal.SIGKILL)\n"
    "disk.extend(sys.argv[1], 8 << 20, die)\n"
)


def test_killed_while_zeroing_it_is_completed_by_the_next_run(tmp_path: Path) -> None:
    path, flat = tmp_path / "a.vmdk", tmp_path / "a-flat.vmdk"
    disk.create(path, MIB, DiskKind.EAGER_ZEROED)
    write_guest_data(flat, MIB - 5, b"guest")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert MIB < flat.stat().st_size < 8 * MIB  # the size has moved with what was zeroed, and no further
    assert any("larger than descriptor" in problem for problem in disk.info(path).problems)
    assert disk.extend(path, 8 * MIB).problems == ()
    assert flat.read_bytes() == bytes(MIB - 5) + b"guest" + bytes(7 * MIB)


def test_a_temporary_descriptor_left_by_a_crash_is_never_read_and_replaced(tmp_path: Path) -> None:
    disk.create(tmp_path / "a.vmdk", MIB)
    (tmp_path / ".a.vmdk.tmp").write_bytes(b"half a descr")
    assert disk.info(tmp_path / "a.vmdk").problems == ()
    assert disk.extend(tmp_path / "a.vmdk", 2 * MIB).virtual_size_bytes == 2 * MIB
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a-flat.vmdk", "a.vmdk"]


@pytest.mark.parametrize("kind", [DiskKind.LAZY_ZEROED, DiskKind.EAGER_ZEROED])
def test_out_of_space_leaves_the_disk_and_the_free_space_as_they_were(small_ext4: Path, kind: DiskKind) -> None:
    path = small_ext4 / "a.vmdk"
    before = disk.create(path, 2 * MIB, kind)
    free = os.statvfs(small_ext4).f_bfree
    with pytest.raises(NoSpace):
        disk.extend(path, 100 * MIB)
    after = disk.info(path)
    assert (after.virtual_size_bytes, after.flat_size_bytes, after.problems) == (2 * MIB, 2 * MIB, ())
    block = os.statvfs(small_ext4).f_frsize  # ext4 keeps a block of the extent tree that it has grown
    assert after.allocated_bytes <= before.allocated_bytes + block
    assert os.statvfs(small_ext4).f_bfree >= free - 1


def test_a_thick_disk_is_not_grown_where_space_cannot_be_reserved(small_ext2: Path) -> None:
    path = small_ext2 / "a.vmdk"
    disk.create(path, 2 * MIB, DiskKind.EAGER_ZEROED)
    assert disk.extend(path, 3 * MIB).allocated_bytes >= 3 * MIB
    lazy = path.read_text().replace('ddb.azekura.zeroed = "eager"\n', "")
    path.write_text(lazy)
    with pytest.raises(AllocationUnsupported):
        disk.extend(path, 4 * MIB)
    assert disk.info(path).flat_size_bytes == 3 * MIB


def test_owner_and_mode_of_the_descriptor_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, MIB)
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    disk.extend(path, 2 * MIB)
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 1234, 2345)


def test_through_a_symbolic_link_the_disk_itself_is_grown(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    disk.create(tmp_path / "store" / "a.vmdk", MIB)
    (tmp_path / "link.vmdk").symlink_to("store/a.vmdk")
    assert disk.extend(tmp_path / "link.vmdk", 2 * MIB).descriptor_path == tmp_path / "store" / "a.vmdk"
    assert (tmp_path / "link.vmdk").is_symlink()
    assert disk.info(tmp_path / "store" / "a.vmdk").virtual_size_bytes == 2 * MIB


def test_two_at_a_time_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, MIB)
    with descriptor_file.locked(path):
        with pytest.raises(DiskBusy):
            disk.extend(path, 2 * MIB)
    assert disk.info(path).flat_size_bytes == MIB
    assert disk.extend(path, 2 * MIB).flat_size_bytes == 2 * MIB


def test_refuses_what_cannot_be_grown_safely(tmp_path: Path) -> None:
    path, flat = tmp_path / "a.vmdk", tmp_path / "a-flat.vmdk"
    disk.create(path, 2 * MIB)
    text = path.read_text()
    path.write_text(text.replace("RW ", "RDONLY "))
    with pytest.raises(Unsupported, match="read-only"):
        disk.extend(path, 3 * MIB)
    path.write_text(text)
    os.truncate(flat, MIB)
    with pytest.raises(FlatExtentUnusable, match="data is lost"):
        disk.extend(path, 3 * MIB)
    flat.unlink()
    with pytest.raises(FlatExtentUnusable, match="missing"):
        disk.extend(path, 3 * MIB)
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with pytest.raises(NotADescriptor):
        disk.extend(tmp_path / "disk.img", 3 * MIB)
    assert path.read_text() == text


def test_a_plan_makes_the_same_checks_and_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    disk.create(path, 2 * MIB)
    plan = disk.plan_extend(path, parse_change("+1M"))
    assert (plan.old_size_bytes, plan.new_size_bytes, plan.needed) == (2 * MIB, 3 * MIB, True)
    assert not disk.plan_extend(path, 2 * MIB).needed
    with pytest.raises(ShrinkRefused):
        disk.plan_extend(path, MIB)
    assert disk.info(path).virtual_size_bytes == disk.info(path).flat_size_bytes == 2 * MIB


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(DiskKind),
    create_type=st.sampled_from(CreateType),
    steps=st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3000)), min_size=1, max_size=4),
)
def test_any_sequence_of_growth_and_cuts_keeps_the_guest_s_data(
    tmp_path: Path, kind: DiskKind, create_type: CreateType, steps: list[tuple[int, int]]
) -> None:
    path, flat = tmp_path / "a.vmdk", tmp_path / "a-flat.vmdk"
    for leftover in (path, flat):
        leftover.unlink(missing_ok=True)
    disk.create(path, 512, kind, create_type)
    model = bytearray(512)
    for number, (grow, cut) in enumerate(steps, 1):
        cut_to = len(model) + min(grow, cut) * 512
        os.truncate(flat, cut_to)  # as an extend that was cut short leaves it
        model.extend(bytes(cut_to - len(model)))
        model[-512:] = bytes([number]) * 512
        write_guest_data(flat, len(model) - 512, bytes([number]) * 512)
        size = len(model) + (grow - min(grow, cut)) * 512
        assert disk.extend(path, size).problems == ()
        model.extend(bytes(size - len(model)))
    assert flat.read_bytes() == model
