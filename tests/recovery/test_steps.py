"""A recoverer dies at each of its writes in turn, and the recoverer of the recoverer too: the next one finishes."""

from __future__ import annotations

import random

import pytest

from tests.crash.seeds import replay, rounds
from tests.recovery.deaths import dead_volume, problems, recover_and_die, take_all_slots

# Whatever a host says that is dying, and its heirs of what it left.
pytestmark = pytest.mark.expected_log("")

_WRITES_MAX = 200  # a recovery of that little takes far fewer


@pytest.mark.parametrize("slots_left", [True, False], ids=["slots-left", "in-place"])
@rounds(1)
def test_whoever_dies_at_any_write_of_a_recovery_leaves_it_to_the_next(seed: int, slots_left: bool) -> None:
    """Every second write, by the seed: claim, begin, replay, the list copied, a lock inherited, the list emptied."""
    print(replay(seed))
    for last_write in range(1 + seed % 2, _WRITES_MAX, 2):
        rng = random.Random(f"{seed}/{last_write}")
        ram = dead_volume(rng) if slots_left else take_all_slots(dead_volume(rng), rng)
        died = recover_and_die(ram, rng, last_write)
        found = problems(ram, rng)
        assert not found, f"{replay(seed)}: died at write {last_write}: {found}"
        if not died:
            print(f"it takes fewer than {last_write} writes")
            return
    pytest.fail(f"a mount that takes more than {_WRITES_MAX} writes")


def _chain(seed: int) -> None:
    print(replay(seed))
    rng = random.Random(seed)
    ram = dead_volume(rng)
    died = [recover_and_die(ram, rng, rng.randint(3, 40)) for _ in range(rng.randint(2, 5))]
    found = problems(ram, rng)
    assert not found, f"{replay(seed)}: {died}: {found}"


@rounds(8)
def test_a_chain_of_recoverers_that_die(seed: int) -> None:
    _chain(seed)


@pytest.mark.soak
@rounds(500)
def test_many_a_chain_of_recoverers_that_die(seed: int) -> None:
    _chain(seed)
