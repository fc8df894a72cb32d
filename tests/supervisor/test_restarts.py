"""How soon a dead process is replaced, and when not any more."""

from __future__ import annotations

from vmfs.supervisor.restarts import AT_ONCE, ENDS_MAX, FAILED_MAX, PAUSE_MAX_SECONDS, WINDOW_SECONDS, Restarts


def test_the_first_are_replaced_at_once_and_later_ones_more_slowly() -> None:
    restarts = Restarts()
    pauses = [restarts.note_end(float(n), served=True) for n in range(ENDS_MAX)]
    assert pauses[:AT_ONCE] == [0.0] * AT_ONCE
    later = [p for p in pauses[AT_ONCE:] if p is not None]
    assert len(later) == ENDS_MAX - AT_ONCE
    assert later == sorted(later)
    assert 0 < later[0] < later[-1] <= PAUSE_MAX_SECONDS


def test_too_many_within_the_window_are_the_end() -> None:
    restarts = Restarts()
    ends = [restarts.note_end(n * WINDOW_SECONDS / (ENDS_MAX + 1), served=True) for n in range(ENDS_MAX + 1)]
    assert None not in ends[:ENDS_MAX]
    assert ends[ENDS_MAX] is None


def test_a_process_that_dies_now_and_then_is_replaced_for_ever_and_at_once() -> None:
    restarts = Restarts()
    assert {restarts.note_end(n * WINDOW_SECONDS / AT_ONCE * 1.1, served=True) for n in range(200)} == {0.0}


def test_processes_that_never_serve_are_given_up_however_slowly_they_die() -> None:
    restarts = Restarts()
    ends = [restarts.note_end(n * 2 * WINDOW_SECONDS, served=False) for n in range(FAILED_MAX)]
    assert ends[-1] is None
    assert None not in ends[:-1]


def test_one_that_served_makes_up_for_those_that_did_not() -> None:
    restarts = Restarts()
    for n in range(FAILED_MAX - 1):
        assert restarts.note_end(n * 2 * WINDOW_SECONDS, served=False) is not None
    at = FAILED_MAX * 2 * WINDOW_SECONDS
    assert restarts.note_end(at, served=True) == 0.0
    assert restarts.note_end(at + 2 * WINDOW_SECONDS, served=False) == 0.0
