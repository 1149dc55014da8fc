"""Plans: the textbook's at one look, and enough for the sequential test by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import NormalIndPower

from layer3.ab.assignment import Design
from layer3.ab.planner import POWER, days_more, information_scale, plan
from layer3.ab.sequential import boundary
from layer3.errors import ConfigurationError


@given(effect=st.floats(0.01, 1.0), share=st.floats(0.05, 0.95))
def test_one_look_takes_as_many_units_as_statsmodels_says(effect: float, share: float) -> None:
    found = plan(effect, 1.0, 100.0, Design("x", ramp=((0.0, share),)))
    ratio = share / (1.0 - share)
    first = NormalIndPower().solve_power(effect, alpha=0.05, power=POWER, ratio=ratio)
    assert found.fixed_units == pytest.approx(first * (1.0 + ratio), rel=2e-3, abs=1.0)
    assert found.fixed_days == pytest.approx(found.fixed_units / 100.0, abs=0.02)


@given(effect=st.floats(0.01, 0.5), more=st.floats(1.1, 3.0))
def test_looking_costs_and_larger_effects_need_less(effect: float, more: float) -> None:
    design = Design("x")
    small, large = plan(effect, 1.0, 50.0, design), plan(effect * more, 1.0, 50.0, design)
    assert small.fixed_units < small.units
    assert large.units < small.units
    assert small.units < 4 * small.fixed_units


def test_the_planned_units_give_the_power_that_was_asked_for() -> None:
    effect, design = 0.2, Design("x", expected_units=1_000)
    found = plan(effect, 1.0, 100.0, design)
    rng = np.random.default_rng(5)
    half = found.units // 2
    arms = rng.standard_normal((1_000, 2, half), dtype=np.float32)
    gap = np.cumsum(arms[:, 1] - arms[:, 0], axis=1) / np.arange(1, half + 1) + effect
    effective = np.arange(1, half + 1) / 2.0
    reach = boundary(information_scale(design) * effective, design.level) / np.sqrt(effective)
    crossed = np.abs(gap) > reach
    assert np.mean(crossed[:, -1]) == pytest.approx(POWER, abs=0.05)
    assert np.mean(crossed.any(axis=1)) >= POWER


def test_a_ramp_takes_longer() -> None:
    slow = Design("x", ramp=((0.0, 0.05), (7.0, 0.5)))
    found, plain = plan(0.1, 1.0, 100.0, slow), plan(0.1, 1.0, 100.0, Design("x"))
    assert found.days is not None
    assert plain.days is not None
    # A week at 5 % tells what 7 * 0.0475 / 0.25 days at 50 % do.
    assert found.days == pytest.approx(plain.days + 7.0 - 7.0 * 0.0475 / 0.25, abs=1e-3)


def test_an_experiment_that_gives_all_to_one_arm_never_ends() -> None:
    found = plan(0.1, 1.0, 100.0, Design("x", ramp=((0.0, 1.0),)))
    assert (found.days, found.fixed_days) == (None, None)


def test_what_is_there_already_is_not_waited_for() -> None:
    design = Design("x")
    found = plan(0.1, 1.0, 100.0, design)
    assert found.days is not None
    done = 0.4 * found.days
    left = days_more(0.1, 1.0, 100.0, design, effective=done * 100.0 * 0.25, elapsed=done)
    assert left == pytest.approx(found.days - done, rel=1e-6)
    assert days_more(0.1, 1.0, 100.0, design, effective=1e9, elapsed=3.0) == 0.0
    assert days_more(1e-6, 1.0, 1.0, design, effective=0.0, elapsed=3.0) == math.inf


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["effect", "noise", "units_per_day"])
def test_a_plan_for_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=name):
        plan(**{"effect": 0.1, "noise": 1.0, "units_per_day": 10.0, name: value}, design=Design("x"))
