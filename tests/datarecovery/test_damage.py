"""Damage of every kind is found by verify, which names who suffers, and is never restored."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datarecovery.backup import back_up
from datarecovery.errors import DamagedError, DataRecoveryError, StoreUnusableError
from datarecovery.restore import restore
from datarecovery.store import pack
from datarecovery.store.manifest import Manifest
from datarecovery.store.store import Store
from datarecovery.verify import verify
from tests.datarecovery.disks import CHUNK, patch, write_disk

Two = tuple[Store, Manifest, Manifest, bytes]


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Two:
    """Two restore points; the second has one chunk of its own, at the disk's start."""
    data = write_disk(tmp_path / "a.raw", 1, 300)
    first = back_up(store, "vm", [tmp_path / "a.raw"])
    patch(tmp_path / "a.raw", data, [(0, os.urandom(CHUNK))])
    second = back_up(store, "vm", [tmp_path / "a.raw"])
    return store, first, second, data


def packs_of(store: Store) -> list[Path]:
    return sorted((store.root / "packs").rglob("*.pack"))


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def reopened(store: Store) -> Store:
    return Store.open(store.root)


def test_damaged_chunk_is_named_and_refused(two: Two, tmp_path: Path) -> None:
    store, first, second, data = two
    flip(packs_of(store)[1], 64 + 64 + 1000)  # in the chunk that only the second has
    report = verify(reopened(store))
    assert set(report.damaged_points) == {second.id}
    assert [one.points for one in report.findings] == [{second.id}]
    with pytest.raises(DamagedError, match=r"a\.raw cannot be restored: .*checksum"):
        restore(store, second, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    restore(store, first, tmp_path / "first")
    assert (tmp_path / "first" / "a.raw").read_bytes() == data
    assert verify(store, quick=True).clean  # a quick look does not read chunks, and says so


@pytest.mark.parametrize("quick", [True, False])
def test_missing_and_truncated_packs(two: Two, quick: bool) -> None:
    store, first, second, _ = two
    path = packs_of(store)[1]
    kept = path.read_bytes()
    for size in (0, 10, 64, 200, 64 + 64 + CHUNK - 1, len(kept) - 1):
        os.truncate(path, size)
        report = verify(reopened(store), quick)
        assert not report.clean
        assert {point for one in report.findings for point in one.points} == {second.id}
        path.write_bytes(kept)
    assert verify(reopened(store), quick).clean
    path.unlink()
    assert set(verify(reopened(store), quick).damaged_points) == {second.id}
    path.write_bytes(kept)
    packs_of(store)[0].unlink()
    assert set(verify(reopened(store), quick).damaged_points) == {first.id, second.id}


def test_damaged_manifest(two: Two, tmp_path: Path) -> None:
    store, first, second, _ = two
    path = store.points.path_of("vm", second.id)
    kept = path.read_bytes()
    for damaged in (b"", kept[:50], kept[:-1], kept + b"x", kept.replace(b'"vm":"vm"', b'"vm":"wm"')):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=second.id):
            store.points.resolve("vm@latest")
        report = verify(reopened(store))
        assert report.damaged_points.keys() == {second.id}
        told: list[str] = []
        assert [one.id for one in store.points.all(told)] == [first.id]
        assert len(told) == 1
    path.write_bytes(kept)
    other = store.points.path_of("vm", "0" * 16)
    shutil.copy(path, other)  # one restore point passed off as another
    with pytest.raises(DamagedError, match="another place"):
        store.points.resolve("0" * 16)
    other.unlink()
    # A damaged latest point stops no backup: the one before it serves.
    path.write_bytes(b"")
    third = back_up(store, "vm", [tmp_path / "a.raw"])
    assert third.previous == first.id
    restore(store, third, tmp_path / "out")
    assert (tmp_path / "out" / "a.raw").read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_damaged_index_is_found_and_rebuilt(two: Two, tmp_path: Path) -> None:
    store, _, second, _ = two
    folder = store.root / "index"

    def damage_page(path: Path) -> None:
        flip(path, 4096 + 300)

    def damage_head(path: Path) -> None:
        flip(path, 20)

    def damage_padding(path: Path) -> None:
        flip(path, 4000)

    def cut(path: Path) -> None:
        os.truncate(path, 4096)

    harms: list[Callable[[Path], None]] = [damage_page, damage_head, damage_padding, cut, Path.unlink]
    for number, harm in enumerate(harms):
        harm(min(folder.glob("*.seg")))
        report = verify(reopened(store))
        assert any(one.kind == "index" for one in report.findings), harm
        assert second.id in report.damaged_points
        with pytest.raises(DamagedError, match="reindex"):
            restore(reopened(store), second, tmp_path / f"bad{number}")
        entries, problems = reopened(store).reindex()
        assert entries > 100
        assert problems == []
        assert verify(reopened(store)).clean
        restore(reopened(store), second, tmp_path / f"good{number}")


def test_damaged_footer_is_found_and_nothing_is_lost(two: Two, tmp_path: Path) -> None:
    store, first, second, data = two
    path = packs_of(store)[0]
    flip(path, path.stat().st_size - 50)
    report = verify(reopened(store))
    assert [one.harmless for one in report.findings] == [True]
    assert report.findings[0].points == {first.id, second.id}
    assert report.damaged_points == {}
    shutil.rmtree(store.root / "index")
    (store.root / "index").mkdir()
    _, problems = reopened(store).reindex()
    assert len(problems) == 1
    restore(reopened(store), first, tmp_path / "out")
    assert (tmp_path / "out" / "a.raw").read_bytes() == data


def test_damaged_configuration(two: Two) -> None:
    store = two[0]
    path = store.root / "store"
    kept = path.read_bytes()
    for offset in range(0, len(kept), 7):
        flip(path, offset)
        with pytest.raises(DataRecoveryError):
            Store.open(store.root)
        path.write_bytes(kept)
    os.truncate(path, 30)
    with pytest.raises(StoreUnusableError, match="put back a copy"):
        Store.open(store.root)


def test_every_flipped_bit_is_found_and_never_restored_silently(two: Two, tmp_path: Path) -> None:
    store, first, second, data = two
    chance = random.Random(7)
    latest = (tmp_path / "a.raw").read_bytes()
    files = [*packs_of(store), *(store.root / "points").rglob("*.point"), *(store.root / "index").glob("*.seg")]
    for number in range(40):
        path = chance.choice(files)
        offset = chance.randrange(path.stat().st_size)
        flip(path, offset)
        assert not verify(reopened(store)).clean, (path, offset)
        for point, content in ((first, data), (second, latest)):
            target = tmp_path / f"{number}-{point.id}"
            try:
                again = reopened(store)
                restore(again, again.points.resolve(point.id), target)
            except DamagedError:
                assert not target.exists()
            else:
                assert (target / "a.raw").read_bytes() == content
                shutil.rmtree(target)
        flip(path, offset)
    assert verify(reopened(store)).clean


def test_backup_upon_a_damaged_point_reads_everything(two: Two, tmp_path: Path) -> None:
    store, _, second, _ = two
    place = store.reader().locate(second.disks[0].root)
    flip(pack.path_of(store.root / "packs", place.pack), place.offset + 70)
    third = back_up(reopened(store), "vm", [tmp_path / "a.raw"])
    assert "cannot be built upon" in third.disks[0].reason
