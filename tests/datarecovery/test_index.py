"""The index through publishing, merging, crashes between the two, and rebuilding; the sources through one contract."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from datarecovery.errors import DamagedIndexError
from datarecovery.store.index import Index
from datarecovery.store.pack import Location
from datarecovery.store.store import Store


def ids(first: int, count: int) -> list[tuple[bytes, Location]]:
    return [(hashlib.sha256(b"%d" % n).digest(), Location(n, 64, 100)) for n in range(first, first + count)]


def segments(store: Store) -> list[str]:
    return sorted(name for name in os.listdir(store.root / "index") if name.endswith(".seg"))


def test_segments_merge_and_stay_few(store: Store) -> None:
    total = 0
    for number in range(120):
        count = 1 + number * 7 % 50
        store.index.publish(ids(total, count), f"owner{number}")
        total += count
        assert len(segments(store)) <= 5
    fresh = Index(store.root, store.config.store)
    fresh.refresh()
    assert fresh.count() == total
    assert all(fresh.find(one) == place for one, place in ids(0, total))
    assert all(fresh.find(one) is None for one, _ in ids(total, 50))
    assert os.listdir(store.root / "tmp") == []


def test_crash_between_merge_and_removal_is_seen_through(store: Store) -> None:
    store.index.publish(ids(0, 100), "a")
    store.index.publish(ids(100, 10), "b")
    kept = [(name, (store.root / "index" / name).read_bytes()) for name in segments(store)]
    assert len(kept) == 2
    store.index.publish(ids(110, 30), "c")
    assert len(segments(store)) == 1
    for name, data in kept:
        (store.root / "index" / name).write_bytes(data)
    fresh = Index(store.root, store.config.store)
    fresh.refresh()
    assert fresh.count() == 140
    fresh.publish(ids(140, 1), "d")
    assert len(segments(store)) == 2  # what was superseded is gone


def test_lost_segment_is_noticed(store: Store) -> None:
    store.index.publish(ids(0, 1000), "a")
    store.index.publish(ids(1000, 10), "b")
    (store.root / "index" / segments(store)[0]).unlink()
    with pytest.raises(DamagedIndexError, match="is missing"):
        Index(store.root, store.config.store).refresh()


def test_segment_under_another_name_is_noticed(store: Store) -> None:
    store.index.publish(ids(0, 10), "a")
    name = segments(store)[0]
    shutil.move(store.root / "index" / name, store.root / "index" / name.replace("1.seg", "2.seg"))
    with pytest.raises(DamagedIndexError, match="another segment"):
        Index(store.root, store.config.store).refresh()


def test_readers_keep_on_while_others_merge(store: Store, tmp_path: Path) -> None:
    store.index.publish(ids(0, 50), "a")
    reader = Index(store.root, store.config.store)
    reader.refresh()
    store.index.publish(ids(50, 50), "b")
    assert len(segments(store)) == 1
    assert all(reader.find(one) == place for one, place in ids(0, 50))
    assert reader.find(ids(70, 1)[0][0]) is None
    reader.refresh()
    assert reader.find(ids(70, 1)[0][0]) == Location(70, 64, 100)
