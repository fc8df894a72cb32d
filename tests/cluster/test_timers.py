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
