"""Which rounds are run. AZEKURA_SEED sets the first round's seed (the next ones follow), AZEKURA_ROUNDS how many."""

from __future__ import annotations

import os
import random

import pytest

_FIRST = int(os.environ.get("AZEKURA_SEED", random.SystemRandom().getrandbits(31)))


def rounds(count: int) -> pytest.MarkDecorator:
    """Run a test for that many seeds, as its argument `seed`; other ones in every run, unless the environment says."""
    number = int(os.environ.get("AZEKURA_ROUNDS", count))
    seeds = [pytest.param(_FIRST + i, id=f"round{i}") for i in range(number)]
    return pytest.mark.parametrize("seed", seeds)


def replay(seed: int) -> str:
    """How to run that round again."""
    return f"again with AZEKURA_SEED={seed} AZEKURA_ROUNDS=1"
