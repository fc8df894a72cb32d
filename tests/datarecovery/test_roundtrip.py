"""What is backed up comes back bit for bit, and costs what it should."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from datarecovery.backup import back_up
from datarecovery.errors import PointNotFoundError, SourceError, TargetExistsError, UsageError
from datarecovery.restore import restore
from datarecovery.store.store import Store
from datarecovery.verify import verify
from tests.datarecovery.disks import CHUNK, patch, write_disk
from thin import disk as thin_disk


@pytest.mark.parametrize(
    ("chunks", "tail"), [(0, 0), (0, 1), (1, 0), (255, 513), (256, 0), (257, 4096), (700, 65535)]
)
def test_disks_of_all_shapes_come_back(store: Store, tmp_path: Path, chunks: int, tail: int) -> None:
    data = write_disk(tmp_path / "a.raw", chunks, chunks, tail)
    point = back_up(store, "vm", [tmp_path / "a.raw"])
    made = restore(store, point, tmp_path / "out")
    assert (tmp_path / "out" / "a.raw").read_bytes() == data
    assert made[0].size == len(data)
    assert os.listdir(tmp_path / "out") == ["a.raw"]
    assert verify(store).clean


def test_zeros_cost_nothing_and_restores_are_sparse(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    with open(path, "wb") as file:
        file.write(bytes(40 * CHUNK))  # zeros that were written
        file.truncate(16384 * CHUNK)
    point = back_up(store, "vm", [path])
    assert point.figures.stored == 0
    assert point.figures.changed == 0
    restore(store, point, tmp_path / "out")
    status = (tmp_path / "out" / "a.raw").stat()
    assert (status.st_size, status.st_blocks) == (16384 * CHUNK, 0)


def test_unchanged_backup_stores_nothing_and_edits_store_themselves(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    data = write_disk(path, 1, 600, 100)
    first = back_up(store, "vm", [path])
    second = back_up(store, "vm", [path])
    assert second.figures.stored == 0
    assert second.figures.changed == 0
    assert second.disks[0].root == first.disks[0].root
    edits = [(5 * CHUNK + 10, os.urandom(20)), (300 * CHUNK, os.urandom(2 * CHUNK)), (7 * CHUNK, bytes(CHUNK))]
    edited = patch(path, data, edits)
    third = back_up(store, "vm", [path])
    assert third.figures.changed in (3 * CHUNK, 4 * CHUNK)  # chunk 7 may have been zeros before
    assert 2 * CHUNK < third.figures.stored < 4 * CHUNK + 4 * 8192 + 10 * 64
    for number, (point, content) in enumerate([(first, data), (second, data), (third, edited)]):
        restore(store, point, tmp_path / str(number))
        assert (tmp_path / str(number) / "a.raw").read_bytes() == content


def test_grown_and_shrunk_disks(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    content = write_disk(path, 2, 300, 7)
    for number, size in enumerate([300 * CHUNK + 7, 700 * CHUNK, 256 * CHUNK, 10, 520 * CHUNK + 1]):
        os.truncate(path, size)
        content = content[:size].ljust(size, b"\0")
        restore(store, back_up(store, "vm", [path]), tmp_path / str(number))
        assert (tmp_path / str(number) / "a.raw").read_bytes() == content


def test_equal_chunks_are_stored_once_over_all_vms(store: Store, tmp_path: Path) -> None:
    data = write_disk(tmp_path / "a.raw", 3, 500)
    (tmp_path / "b.raw").write_bytes(data)
    first = back_up(store, "one", [tmp_path / "a.raw"])
    second = back_up(store, "two", [tmp_path / "b.raw"])
    assert first.figures.stored > 100 * CHUNK
    assert second.figures.stored == 0
    assert second.figures.deduplicated == second.figures.changed > 0


def test_vmdk_comes_back_with_its_descriptor(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "vm"
    source.mkdir()
    thin_disk.create(source / "web.vmdk", 3 << 20)
    data = patch(source / "web-flat.vmdk", bytes(3 << 20), [(70000, b"guest")])
    point = back_up(store, "web", [source / "web.vmdk"])
    restore(store, point, tmp_path / "out")
    assert (tmp_path / "out" / "web-flat.vmdk").read_bytes() == data
    assert (tmp_path / "out" / "web.vmdk").read_text() == (source / "web.vmdk").read_text()
    assert sorted(os.listdir(tmp_path / "out")) == ["web-flat.vmdk", "web.vmdk"]
    assert thin_disk.resolve_flat(tmp_path / "out" / "web.vmdk")[1] == 3 << 20


def test_disks_of_one_name_get_folders(store: Store, tmp_path: Path) -> None:
    contents = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        contents.append(write_disk(tmp_path / str(number) / "vm.raw", number, 20))
    paths = [tmp_path / "1" / "vm.raw", tmp_path / "2" / "vm.raw"]
    back_up(store, "vm", paths)
    point = back_up(store, "vm", paths)
    assert point.figures.changed == 0
    restore(store, point, tmp_path / "out")
    assert (tmp_path / "out" / "vm.raw").read_bytes() == contents[0]
    assert (tmp_path / "out" / "disk2" / "vm.raw").read_bytes() == contents[1]


def test_block_device(store: Store, tmp_path: Path) -> None:
    data = write_disk(tmp_path / "backing", 4, 64)
    device = subprocess.check_output(["losetup", "-f", "--show", tmp_path / "backing"], text=True).strip()
    try:
        point = back_up(store, "vm", [Path(device)])
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    restore(store, point, tmp_path / "out")
    assert (tmp_path / "out" / Path(device).name).read_bytes() == data


def test_points_are_found_by_prefix_and_latest(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    write_disk(path, 5, 3)
    points = [back_up(store, "vm", [path]) for _ in range(17)]  # two must begin with the same digit
    other = back_up(store, "vm2", [path])
    assert store.points.resolve("vm@latest") == points[-1]
    assert store.points.resolve("vm2@latest") == other
    assert store.points.resolve(points[3].id) == points[3]
    assert store.points.resolve(points[3].id[:12]) == points[3]
    for wrong in ("", "zz", "vm3@latest", "@latest"):
        with pytest.raises(PointNotFoundError):
            store.points.resolve(wrong)
    firsts = [point.id[0] for point in points]
    twice = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(PointNotFoundError, match="more digits"):
        store.points.resolve(twice)
    assert [point.sequence for point in points] == list(range(1, 18))


def test_restore_never_overwrites(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    write_disk(path, 6, 10)
    point = back_up(store, "vm", [path])
    before = path.read_bytes()
    with pytest.raises(TargetExistsError, match=r"a\.raw exists"):
        restore(store, point, tmp_path)
    assert path.read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(TargetExistsError):
        restore(store, point, tmp_path / "file")


def test_bad_sources_leave_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bad.vmdk").write_text("not a descriptor")
    for wrong in (tmp_path / "none", tmp_path, tmp_path / "fifo", tmp_path / "bad.vmdk"):
        with pytest.raises(SourceError):
            back_up(store, "vm", [wrong])
    write_disk(tmp_path / "a.raw", 7, 3)
    for vm in ("", "a@b", " a", "a\nb", "x" * 300):
        with pytest.raises(UsageError):
            back_up(store, vm, [tmp_path / "a.raw"])
    with pytest.raises(UsageError, match="twice"):
        back_up(store, "vm", [tmp_path / "a.raw", tmp_path / "." / "a.raw"])
    assert store.points.all() == []
    assert os.listdir(store.root / "tmp") == []
    assert [name for name in os.listdir(store.root / "sessions") if name.endswith(".session")] == []
