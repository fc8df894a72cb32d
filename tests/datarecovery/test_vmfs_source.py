"""Disks on a volume with clones: what is read, what stays behind, and every reason for a full read."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datarecovery.backup import World, back_up
from datarecovery.errors import SourceError
from datarecovery.restore import restore
from datarecovery.source import Rung
from datarecovery.sources.plain import OpenFile
from datarecovery.sources.vmfs_clone import CloneMount
from datarecovery.store.manifest import Manifest
from datarecovery.store.store import Store
from tests.datarecovery.disks import CHUNK, make_store, patch, write_disk
from tests.datarecovery.volumes import VOLUMES, FakeVolumeError, MountFor, clones_in

Volume = tuple[Path, MountFor]


@pytest.fixture(params=sorted(VOLUMES))
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    with VOLUMES[request.param](tmp_path) as found:
        yield found


def content(store: Store, point: Manifest, into: Path) -> bytes:
    restore(store, point, into)
    return (into / point.disks[0].name).read_bytes()


def test_second_backup_reads_only_what_changed(store: Store, volume: Volume, tmp_path: Path) -> None:
    folder, mount_for = volume
    world = World(mount_for=mount_for)
    disk = folder / "vm-flat.vmdk"
    data = write_disk(disk, 1, 900)
    first = back_up(store, "vm", [disk], world)
    assert (first.disks[0].rung, first.disks[0].reason) == (Rung.FULL_READ, "first backup of this VM")
    assert first.disks[0].point_in_time
    assert len(clones_in(folder)) == 1
    edited = patch(disk, data, [(3 * CHUNK + 5, b"x" * 10), (500 * CHUNK - 1, b"yy"), (800 * CHUNK, bytes(CHUNK))])
    second = back_up(store, "vm", [disk], world)
    assert second.disks[0].rung == Rung.VMFS_DIFF
    assert second.figures.read <= 4 * CHUNK
    assert second.previous == first.id
    assert [name[-16:] for name in clones_in(folder)] == [second.id]
    third = back_up(store, "vm", [disk], world)
    assert (third.figures.read, third.figures.stored) == (0, 0)
    assert content(store, first, tmp_path / "1") == data
    assert content(store, second, tmp_path / "2") == edited
    assert content(store, third, tmp_path / "3") == edited


def test_random_edits_growth_and_shrinking(store: Store, volume: Volume, tmp_path: Path) -> None:
    folder, mount_for = volume
    chance = random.Random(11)
    disk = folder / "a.raw"
    data = write_disk(disk, 2, 300, 1000)
    for number in range(12):
        point = back_up(store, "vm", [disk], World(mount_for=mount_for))
        assert content(store, point, tmp_path / str(number)) == data
        assert (point.disks[0].rung == Rung.VMFS_DIFF) == (number > 0)
        edits = [(chance.randrange(len(data)), chance.randbytes(50)) for _ in range(chance.randrange(4))]
        size = chance.choice([len(data), len(data), len(data) + chance.randrange(CHUNK * 90), 256 * CHUNK])
        data = patch(disk, data, edits)
        size = max(size, 100)
        os.truncate(disk, size)
        data = data[:size].ljust(size, b"\0")


def test_all_clones_are_taken_before_anything_is_read(
    store: Store, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mount_for = volume
    events: list[str] = []
    lock = threading.Lock()
    for name in ("a", "b", "c"):
        write_disk(folder / name, 1, 3)

    def noted(path: Path) -> CloneMount:
        events.append(f"clone {path.name}")
        return mount_for(path)

    original = OpenFile.read_into

    def read_into(self: OpenFile, offset: int, buffer: memoryview) -> None:
        with lock:
            events.append("read")
        original(self, offset, buffer)

    monkeypatch.setattr(OpenFile, "read_into", read_into)
    back_up(store, "vm", [folder / n for n in "abc"], World(mount_for=noted))
    assert events[:3] == ["clone a", "clone b", "clone c"]
    assert "read" in events[3:]


def test_reasons_for_a_full_read(store: Store, volume: Volume, tmp_path: Path) -> None:
    folder, mount_for = volume
    world = World(mount_for=mount_for)
    disk = folder / "a.raw"
    data = write_disk(disk, 3, 100)

    def again(reason: str, number: int) -> None:
        point = back_up(store, "vm", [disk], world)
        assert point.disks[0].rung == Rung.FULL_READ
        assert reason in point.disks[0].reason
        assert (point.figures.changed > 0) == (number == 1)
        assert content(store, point, tmp_path / str(number)) == data
        assert [name[-16:] for name in clones_in(folder)] == [point.id]

    again("first backup", 1)
    (folder / clones_in(folder)[0]).unlink()
    again("is not there", 2)
    clone = folder / clones_in(folder)[0]
    clone.unlink()
    clone.write_bytes(data)
    again("not the one that was made", 3)
    (folder / clones_in(folder)[0]).write_bytes(b"shorter")
    again("not the one that was made", 4)
    (folder / "new").write_bytes(data)
    os.replace(folder / "new", disk)  # another file of the same name and content
    again("cannot be compared", 5)
    assert back_up(store, "vm", [disk], world).disks[0].rung == Rung.VMFS_DIFF


def test_new_disk_does_not_break_the_chain_of_the_others(store: Store, volume: Volume) -> None:
    folder, mount_for = volume
    write_disk(folder / "a.raw", 4, 50)
    write_disk(folder / "b.raw", 5, 50)
    world = World(mount_for=mount_for)
    back_up(store, "vm", [folder / "a.raw"], world)
    point = back_up(store, "vm", [folder / "b.raw", folder / "a.raw"], world)
    assert [disk.rung for disk in point.disks] == [Rung.FULL_READ, Rung.VMFS_DIFF]
    assert "not in the last restore point" in point.disks[0].reason


def test_clone_refused_means_a_full_read_that_says_so(store: Store, volume: Volume) -> None:
    folder, _ = volume

    class Refusing:
        def clone(self, src: Path, dst: Path) -> None:
            raise FakeVolumeError("volume is full")

        def diff(self, old: Path, new: Path) -> list[tuple[int, int]]:
            raise AssertionError("nothing to compare")

    write_disk(folder / "a.raw", 6, 5)
    point = back_up(store, "vm", [folder / "a.raw"], World(mount_for=lambda path: Refusing()))
    assert point.disks[0].rung == Rung.FULL_READ
    assert "volume is full" in point.disks[0].reason
    assert not point.disks[0].point_in_time


def test_failed_backup_removes_its_clone_and_keeps_the_baseline(
    store: Store, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mount_for = volume
    world = World(mount_for=mount_for)
    disk = folder / "a.raw"
    data = write_disk(disk, 7, 50)
    first = back_up(store, "vm", [disk], world)
    patch(disk, data, [(0, b"new")])

    def failing(self: OpenFile, offset: int, buffer: memoryview) -> None:
        raise SourceError("disk cannot be read at byte 0: a fault")

    with monkeypatch.context() as patched:
        patched.setattr(OpenFile, "read_into", failing)
        with pytest.raises(SourceError):
            back_up(store, "vm", [disk], world)
    assert [name[-16:] for name in clones_in(folder)] == [first.id]
    assert [one.id for one in store.points.all()] == [first.id]
    assert back_up(store, "vm", [disk], world).disks[0].rung == Rung.VMFS_DIFF


def test_leftover_clones_go_but_those_of_others_stay(store: Store, volume: Volume, tmp_path: Path) -> None:
    folder, mount_for = volume
    world = World(mount_for=mount_for)
    disk = folder / "a.raw"
    write_disk(disk, 8, 10)
    first = back_up(store, "vm", [disk], world)
    other = back_up(store, "other vm", [disk], world)
    elsewhere = back_up(make_store(tmp_path / "store2"), "vm", [disk], world)
    left = folder / f".a.raw.backup-{store.config.store.hex}-{'0' * 16}"  # as after a crash
    left.write_bytes(b"left")
    last = back_up(store, "vm", [disk], world)
    assert {name[-16:] for name in clones_in(folder)} == {last.id, other.id, elsewhere.id}
    assert first.id != last.id


def test_manifest_cannot_choose_what_is_compared_or_removed(store: Store, volume: Volume, tmp_path: Path) -> None:
    folder, mount_for = volume
    disk = folder / "a.raw"
    write_disk(disk, 9, 10)
    precious = folder / "precious"
    precious.write_text("x")
    world = World(mount_for=mount_for)
    first = back_up(store, "vm", [disk], world)
    from datarecovery.store.manifest import encode

    for name in ("precious", "../x", f".precious.backup-{store.config.store.hex}-{'1' * 16}", 5):
        entry = replace(first.disks[0], baseline={"kind": "vmfs-clone", "name": name})
        forged = replace(first, disks=(entry,), sequence=first.sequence + 1)
        store.points.path_of("vm", first.id).write_bytes(encode(forged))
        point = back_up(store, "vm", [disk], world)
        assert point.disks[0].rung == Rung.FULL_READ
        assert precious.read_text() == "x"
        store.points.path_of("vm", point.id).unlink()
