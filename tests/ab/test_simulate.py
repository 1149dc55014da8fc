"""What the whole promises, at the size of a test; ``python -m bench.ab`` has the 2,000 experiments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layer3.ab.assignment import Design
from layer3.ab.simulate import World, simulate

MONTH = World(decisions=24)
DESIGN = Design("x", expected_units=720)


RAMP = ((0.0, 0.1), (5.0, 0.3), (10.0, 0.5))


@pytest.mark.parametrize("drift", [0.0004, 0.003])
@pytest.mark.parametrize("ramp", [((0.0, 0.5),), ((0.0, 0.2),), RAMP], ids=["half", "a fifth", "ramp"])
def test_daily_looks_for_a_month_stop_wrongly_in_at_most_five_of_a_hundred(
    ramp: tuple[tuple[float, float], ...], drift: float
) -> None:
    rates = simulate(replace(MONTH, drift=drift), replace(DESIGN, ramp=ramp), 600, seed=1)
    assert rates.adjusted <= 0.05
    assert rates.plain <= 0.05
    assert rates.covered >= 0.95
    assert 0.92 < rates.covered_once < 0.975
    # What looking every day with the usual limit does.
    assert rates.naive > 0.15


def test_a_difference_is_found_and_sooner_for_the_variance_that_was_removed() -> None:
    rates = simulate(replace(MONTH, skill=0.3), DESIGN, 300, seed=2)
    assert rates.adjusted > 0.9
    assert rates.median_day is not None
    assert rates.median_day < 20
    assert rates.plain < 0.4
    assert rates.removed > 0.85
    assert rates.covered >= 0.95


def test_a_seed_gives_the_same_rates() -> None:
    small = World(decisions=8, days=10)
    assert simulate(small, DESIGN, 120, seed=5) == simulate(small, DESIGN, 120, seed=5)
    assert simulate(small, DESIGN, 120, seed=5) != simulate(small, DESIGN, 120, seed=6)
