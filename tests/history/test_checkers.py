"""The checkers find what they are for: histories that are right pass, and each planted fault is told."""

from __future__ import annotations

import random
from errno import EEXIST, ENOENT

import pytest

from tests.history.disks import nothing_lost, one_writer
from tests.history.names import SOON_S, Group
from tests.history.records import Life, NameOp, Reading, Sync, Tenure, Write
from tests.history.sectors import PAGE_BYTES, SECTOR_BYTES, WrongBytes, pages, values

ONE: Life = ("esx1", 1)
TWO: Life = ("esx2", 1)
PAGES = 4


def _writing(life: Life, at: float, found: list[int], *stamps: int, synced: bool = True) -> Tenure:
    """A host writes page 0 once a second, and syncs."""
    events: list[Write | Sync] = [Write(0, 1, stamp, at + n, at + n + 0.5) for n, stamp in enumerate(stamps, 1)]
    if synced:
        events.append(Sync(at + len(stamps) + 0.6, at + len(stamps) + 0.7))
    return Tenure(life, 0, at, list(found), at + 0.5, events)


def _page(stamp: int) -> list[int]:
    return [stamp, 0, 0, 0]


def _problems(tenures: list[Tenure], *readings: Reading) -> list[str]:
    return [*one_writer(tenures), *nothing_lost(tenures, readings, PAGES)]


def _reading(at: float, stamp: int) -> Reading:
    return Reading(("esx3", 1), 0, at, at + 0.1, list(_page(stamp)))


def test_a_right_history_of_a_file_passes() -> None:
    first, second = _writing(ONE, 0, _page(0), 1, 2), _writing(TWO, 10, _page(2), 3)
    seen = ((0.5, 0), (1.2, 0), (1.2, 1), (2.8, 2), (11.2, 2), (12, 3))
    readings = [_reading(at, stamp) for at, stamp in seen]
    assert _problems([second, first], *readings) == []


def test_what_was_never_synced_may_be_lost_with_its_host() -> None:
    first = _writing(ONE, 0, _page(0), 1, synced=False)
    assert _problems([first, _writing(TWO, 10, _page(0))], _reading(12, 0)) == []
    assert _problems([first, _writing(TWO, 10, _page(1))], _reading(12, 1)) == []
    lost = _problems([first, _writing(TWO, 10, _page(0))], _reading(12, 1))
    assert len(lost) == 1, "the next writer has seen that it did not land: later it may not"


def test_a_lost_write_is_found() -> None:
    (problem,) = _problems([_writing(ONE, 0, _page(0), 1, 2), _writing(TWO, 10, _page(1), 3)])
    assert "found 1, not 2" in problem
    (problem,) = _problems([_writing(ONE, 0, _page(0), 1), _writing(TWO, 10, _page(0))])
    assert "found 0, not 1" in problem


def test_a_late_write_is_found() -> None:
    """The first host was stopped in its second write; the other took the file and wrote; then that write landed."""
    first = _writing(ONE, 0, _page(0), 1)
    first.events.append(Write(0, 1, 2, 4.0))
    second, third = _writing(TWO, 10, _page(1), 3), _writing(ONE, 20, _page(2))
    (problem,) = _problems([first, second, third])
    assert "found 2, not 3" in problem


def test_two_writers_at_once_are_found() -> None:
    first, second = _writing(ONE, 0, _page(0), 1, 2, 3), _writing(TWO, 2.5, _page(2))
    assert any("esx1" in p and "had it open" in p for p in one_writer([first, second]))
    assert list(one_writer([first, _writing(TWO, 10, _page(3))])) == []


def test_a_reading_that_is_too_old_is_found() -> None:
    tenures = [_writing(ONE, 0, _page(0), 1, 2)]
    assert _problems(tenures, _reading(2.65, 1)) == []
    (problem,) = _problems(tenures, _reading(2.75, 1))
    assert "esx3" in problem


def test_a_torn_page_is_one_of_both() -> None:
    first = _writing(ONE, 0, _page(0), 1)
    first.events.append(Write(0, 1, 2, 4.0))
    torn = Tenure(TWO, 0, 10, [(1, 1, 1, 1, 2, 2, 2, 2), 0, 0, 0], 10.5)
    assert _problems([first, torn]) == []
    torn.found = [(1, 1, 1, 1, 7, 7, 7, 7), 0, 0, 0]
    assert len(_problems([first, torn])) == 1


def test_bytes_of_another_place_are_found() -> None:
    content = pages(7, 1, 2, 99)
    assert values(7, bytes(PAGE_BYTES) + content) == [0, 99, 99]
    with pytest.raises(WrongBytes, match="it holds sector 8 of file 7"):
        values(6, bytes(PAGE_BYTES) + content)
    with pytest.raises(WrongBytes, match="it holds sector 8 of file 7"):
        values(7, content)
    bad = bytearray(content)
    bad[SECTOR_BYTES - 1] ^= 1
    with pytest.raises(WrongBytes, match="is of no write"):
        values(7, bytes(PAGE_BYTES) + bytes(bad))
    mixed = pages(7, 0, 1, 5)[:SECTOR_BYTES] + pages(7, 0, 1, 6)[SECTOR_BYTES:]
    assert values(7, mixed) == [(5, 6, 6, 6, 6, 6, 6, 6)]


def _op(kind: str, name: str, began: float, ended: float, result: int | None = 0, **more: str) -> NameOp:
    return NameOp(ONE, kind, name, began, ended, result, **more)


def _told(*ops: NameOp, over: float = 100.0) -> list[str]:
    return list(Group(list(ops), {ONE: over}).problems())


MADE = _op("make", "x", 0, 1, token="t1")


def test_a_right_history_of_names_passes() -> None:
    assert _told(
        MADE, _op("make", "x", 0.5, 2, EEXIST, token="t2"), _op("rename", "x", 3, 4, other="y"),
        _op("remove", "x", 3.5, 6, ENOENT), _op("read", "y", 3.2, 3.3, token="t1"), _op("read", "x", 5, 6, ENOENT),
        _op("remove", "y", 6, 7), _op("make", "y", 6.5, 8, token="t3"),
    ) == []  # fmt: skip


@pytest.mark.parametrize("twice", [_op("make", "x", 2, 3, token="t2"), _op("remove", "y", 2, 3)])
def test_a_name_that_is_made_or_removed_twice_is_found(twice: NameOp) -> None:
    (problem,) = _told(MADE, twice)
    assert "no order of operations explains" in problem


def test_a_rename_that_leaves_both_names_is_found() -> None:
    renamed = _op("rename", "x", 2, 3, other="y")
    assert len(_told(MADE, renamed, _op("remove", "y", 4, 5), _op("remove", "x", 6, 7))) == 1
    assert len(_told(MADE, renamed, _op("make", "y", 4, 5, token="t2"))) == 1


def test_an_operation_of_a_dead_host_has_happened_or_not_until_it_is_recovered() -> None:
    removed = _op("remove", "x", 2, 3, None)
    assert _told(MADE, removed, _op("remove", "x", 30, 31), over=20) == []
    assert _told(MADE, removed, _op("make", "x", 30, 31, token="t2"), over=20) == []
    again = _op("make", "x", 50, 51, token="t3")
    assert len(_told(MADE, removed, _op("read", "x", 40, 41, token="t1"), again, over=20)) == 0
    assert len(_told(MADE, removed, _op("remove", "x", 30, 31), _op("remove", "x", 40, 41), over=20)) == 1


def test_what_comes_back_after_it_was_gone_is_found() -> None:
    removed = _op("remove", "x", 2, 3)
    soon, late = 3 + SOON_S - 1, 3 + SOON_S + 1
    assert _told(MADE, removed, _op("read", "x", soon, soon + 0.1, token="t1")) == []
    assert len(_told(MADE, removed, _op("read", "x", late, late + 0.1, token="t1"))) == 1
    assert len(_told(MADE, _op("read", "x", late, late + 0.1, ENOENT))) == 1


def test_a_long_random_history_is_judged() -> None:
    """Operations one after the other, called earlier and answered later than they happened; one lie is found."""
    rng = random.Random(5)
    names: dict[str, str] = {}
    ops = []
    for step in range(400):
        name, other = rng.sample(["w", "x", "y", "z"], 2)
        began, ended = step - 2 * rng.random(), step + 0.1 + 2 * rng.random()
        if name not in names:
            names[name] = f"t{step}"
            ops.append(_op("make", name, began, ended, token=names[name]))
        elif rng.random() < 0.5:
            del names[name]
            ops.append(_op("remove", name, began, ended))
        else:
            names[other] = names.pop(name)
            ops.append(_op("rename", name, began, ended, other=other))
    assert _told(*ops) == []
    lie = next(op for op in ops[200:] if op.kind == "make")
    lie.result = EEXIST
    assert len(_told(*ops)) == 1
