from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.sizing.config import RegimeConfig
from layer3.sizing.regime import RegimeHysteresis, describe
from layer3.types import Regime

UP, DOWN, RANGE, HIGH, CRISIS = (
    Regime.TRENDING_UP, Regime.TRENDING_DOWN, Regime.RANGING, Regime.HIGH_VOLATILITY, Regime.CRISIS
)  # fmt: skip
FACTORS = {UP: 1.2, DOWN: 0.8, RANGE: 1.0, HIGH: 0.6, CRISIS: 0.2}


def multipliers(*regimes: Regime) -> list[float]:
    hysteresis = RegimeHysteresis(RegimeConfig())
    return [hysteresis.observe(regime) for regime in regimes]


@pytest.mark.parametrize(("regime", "factor"), FACTORS.items())
def test_first_regime_holds_at_once(regime: Regime, factor: float) -> None:
    assert multipliers(regime) == [factor]


def test_old_bug_waiting_three_bars_to_believe_a_crisis() -> None:
    assert multipliers(UP, UP, CRISIS) == [1.2, 1.2, 0.2]


def test_three_bars_to_relax() -> None:
    assert multipliers(CRISIS, RANGE, RANGE, RANGE, RANGE) == [0.2, 0.2, 0.2, 1.0, 1.0]


def test_a_relapse_starts_the_count_again() -> None:
    assert multipliers(CRISIS, UP, UP, CRISIS, UP, UP, UP) == [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 1.2]


def test_flickering_calm_ends_a_crisis_at_its_most_restrictive() -> None:
    assert multipliers(CRISIS, UP, HIGH, RANGE) == [0.2, 0.2, 0.2, 0.6]


@given(st.lists(st.sampled_from(list(Regime)), min_size=1, max_size=40))
def test_tightening_never_waits_and_relaxing_always_does(regimes: list[Regime]) -> None:
    hysteresis = RegimeHysteresis(RegimeConfig())
    previous = None
    for i, regime in enumerate(regimes):
        factor = hysteresis.observe(regime)
        assert factor <= FACTORS[regime] or previous is None
        if previous is not None and factor > previous:
            last = [FACTORS[r] for r in regimes[i - 2 : i + 1]]
            assert factor == min(last) > previous
        previous = factor


def test_one_confirmation_means_none() -> None:
    hysteresis = RegimeHysteresis(RegimeConfig(confirmations=1))
    assert [hysteresis.observe(r) for r in (CRISIS, UP)] == [0.2, 1.2]


def test_reasons() -> None:
    config = RegimeConfig()
    assert describe(config, UP, UP, 0) == "trending_up"
    assert describe(config, UP, CRISIS, 2) == "crisis still; trending_up is calmer, seen 2 of 3 bars"
    assert describe(config, UP, HIGH, 0) == "high_volatility; the signal says trending_up"
