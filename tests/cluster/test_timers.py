from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.cluster.timers import Timers
from vmfs.errors import TimersRefused


def test_the_default_lease_has_the_documented_timers() -> None:
    t = Timers.from_lease(16_000_000)
    seconds = [x / 1e6 for x in (t.interval_us, t.lease_us, t.margin_us, t.break_us, t.validity_us, t.quarantine_us)]
    assert seconds == [3, 16, 2, 20, 5, 6]
    assert t.flight_slack_us == 5_660_000  # A1: P + F < 5.66 s


@given(st.integers(1_000_000, 3_600_000_000))
def test_every_allowed_lease_keeps_the_inequalities(lease_us: int) -> None:
    t = Timers.from_lease(lease_us)
    assert t.break_us * 0.99 > (t.lease_us - t.margin_us) * 1.01
    assert t.quarantine_us * 0.99 > t.validity_us * 1.01
    assert t.validity_us <= t.lease_us - t.margin_us
    assert t.flight_slack_us > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lease_us": 999_999}, "1 s"),
        ({"lease_us": 3_600_000_001}, "1 h"),
        ({"interval_us": 7_000_001}, "repeat a lost one"),
        ({"interval_us": 0}, "greater than 0"),
        ({"margin_us": 16_000_000}, "leaves nothing"),
        ({"break_us": 14_200_000}, "break time"),
        ({"quarantine_us": 5_100_000}, "quarantine"),
        ({"validity_us": 14_500_000, "quarantine_us": 20_000_000}, "validity"),
        ({"drift_ppm": 100_001}, "drift"),
    ],
)
def test_timers_that_are_not_safe_are_refused(change: dict[str, int], says: str) -> None:
    good = Timers.from_lease(16_000_000)
    with pytest.raises(TimersRefused, match=says) as caught:
        replace(good, **change)
    assert caught.value.exit_code == 2


def test_a_fraction_of_a_second_is_an_interval() -> None:
    assert Timers.from_lease(1_000_000, interval_us=437_500).interval_us == 437_500
    with pytest.raises(TimersRefused):
        Timers.from_lease(1_000_000, interval_us=437_501)


def test_what_the_lun_ends_allows_an_earlier_break() -> None:
    """A2: 15.5 of 16 s."""
    t = Timers.from_lease(16_000_000, fenced=True)
    assert t.break_us == 15_500_000
    assert t.break_us * 0.99 > (t.lease_us - t.margin_us) * 1.01


@given(st.integers(1_000_000, 3_600_000_000))
def test_every_allowed_lease_keeps_a2(lease_us: int) -> None:
    t = Timers.from_lease(lease_us, fenced=True)
    assert t.break_us * 0.99 > (t.lease_us - t.margin_us) * 1.01
    assert t.break_us < Timers.from_lease(lease_us).break_us


@given(st.integers(1_000_000, 3_600_000_000), st.integers(0, 200_000_000))
def test_the_break_time_grows_with_what_may_be_in_flight(lease_us: int, in_flight_us: int) -> None:
    """A1."""
    t = Timers.from_lease(lease_us, in_flight_us=in_flight_us)
    assert t.break_us * 99 > (t.lease_us - t.margin_us) * 101 + in_flight_us * 100
    t.check_in_flight(in_flight_us, "lun")
    with pytest.raises(TimersRefused):
        t.check_in_flight(t.in_flight_max_us + 1, "lun")


@pytest.mark.parametrize(("in_flight_s", "break_s"), [(0, 20), (5, 20), (30, 44.7), (120, 135.6)])
def test_a_kernel_initiators_flight_costs_minutes(in_flight_s: int, break_s: float) -> None:
    assert Timers.from_lease(16_000_000, in_flight_us=in_flight_s * 1_000_000).break_s == pytest.approx(break_s, 0.01)


def test_a_flight_that_is_too_long_is_refused_with_the_numbers() -> None:
    t = Timers.from_lease(16_000_000)
    t.check_in_flight(5_500_000, "sdb")
    with pytest.raises(TimersRefused, match=r"sdb .* 30 s.* 20 s allows 5\.56 s.* 44\..* --in-flight 30"):
        t.check_in_flight(30_000_000, "sdb")


def test_a_watchdog_ends_the_machine_before_a_breaker_may_act() -> None:
    t = Timers.from_lease(16_000_000)
    w = t.watchdog_timeout_us(0)
    assert w == 2_000_000
    assert t.break_us * 99 > (t.lease_us - t.margin_us) * 101 + 2 * w * 101
    assert Timers.from_lease(60_000_000).watchdog_timeout_us(5_000_000) == 8_000_000
    for too_short in (Timers.from_lease(1_000_000), Timers.from_lease(16_000_000, fenced=True)):
        with pytest.raises(TimersRefused, match="whole seconds"):
            too_short.watchdog_timeout_us(0)
