"""What the report says of a record is what the statistics say, annualised; of what is not known it says nothing."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer3.backtest import metrics, significance
from layer3.backtest.record import Difference, Interval
from layer3.backtest.trust import difference, trust
from layer3.errors import EvaluationError

Floats = NDArray[np.float64]
HOUR, PERIODS = 3_600, 8_760
UNKNOWN = Interval(None, None, None)


def equity(seed: int, n: int = 2_000, drift: float = 0.04, scale: float = 0.005) -> Floats:
    returns = scale * (drift + np.random.default_rng(seed).standard_t(5, n))
    return 100_000.0 * np.concatenate(([1.0], np.cumprod(1.0 + returns)))


@given(seed=st.integers(0, 1_000), trials=st.integers(1, 200), spread=st.one_of(st.none(), st.floats(0.0, 4.0)))
@settings(max_examples=20)
def test_every_number_is_the_statistic_of_its_name(seed: int, trials: int, spread: float | None) -> None:
    track = equity(seed)
    returns = track[1:] / track[:-1] - 1.0
    got = trust(track, HOUR, trials=trials, trials_variance=spread, seed=seed, resamples=100)
    assert got.sharpe == pytest.approx(metrics.sharpe(returns, PERIODS), rel=1e-12)
    error = significance.sharpe_standard_error(returns)
    assert error is not None
    assert got.standard_error == pytest.approx(error * math.sqrt(PERIODS), rel=1e-12)
    assert got.probabilistic == significance.probabilistic_sharpe(returns)
    assert got.trials == trials
    per_bar = None if spread is None else spread / PERIODS
    assert got.deflated == significance.deflated_sharpe(returns, trials, per_bar)
    assert got.trials_sharpe is not None
    z = significance.expected_maximum_sharpe(trials, 1.0)
    assert got.trials_sharpe == pytest.approx(z * math.sqrt(PERIODS / 1_999 if spread is None else spread), abs=1e-12)
    assert got.years == pytest.approx(2_000 / PERIODS)
    bars = significance.minimum_track_record(returns)
    assert got.years_needed == (None if bars is None else pytest.approx(bars / PERIODS))
    assert got.sharpe_interval.estimate == pytest.approx(got.sharpe)
    assert got.sharpe_interval.low is not None
    assert got.sharpe_interval.high is not None
    assert got.sharpe_interval.low < got.sharpe_interval.estimate < got.sharpe_interval.high
    assert got.drawdown_interval.estimate == pytest.approx(metrics.max_drawdown(track))
    assert got.drawdown_interval.low is not None
    assert got.drawdown_interval.high is not None
    assert 0.0 < got.drawdown_interval.low < got.drawdown_interval.high < 1.0


def test_the_interval_and_the_probability_agree() -> None:
    """A 90 % interval above 0 never goes with a probability below 95 %."""
    both = []
    for seed in range(60):
        got = trust(equity(seed, 800), HOUR, trials=1, trials_variance=None, seed=0, resamples=200)
        assert got.probabilistic is not None
        assert got.sharpe_interval.low is not None
        assert got.deflated == got.probabilistic
        assert got.sharpe_interval.low <= 0.0 or got.probabilistic >= 0.95
        assert got.years_needed is None or (got.years_needed <= got.years) == (got.probabilistic >= 0.95)
        both.append(got.sharpe_interval.low > 0.0)
    assert 0 < sum(both) < 60


def test_years_do_not_depend_on_the_bar() -> None:
    hours, days = (trust(equity(0, 500), each, trials=3, trials_variance=None, seed=0) for each in (HOUR, 24 * HOUR))
    assert hours.sharpe is not None
    assert days.sharpe == pytest.approx(hours.sharpe / math.sqrt(24))
    assert hours.trials_sharpe is not None
    assert days.trials_sharpe == pytest.approx(hours.trials_sharpe / math.sqrt(24))
    assert days.years == pytest.approx(24 * hours.years)
    assert (days.probabilistic, days.deflated) == pytest.approx((hours.probabilistic, hours.deflated))


def test_a_seed_gives_the_same_record() -> None:
    one, same, other = (trust(equity(0), HOUR, trials=5, trials_variance=None, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.sharpe_interval != other.sharpe_interval
    assert one.drawdown_interval != other.drawdown_interval
    assert (one.probabilistic, one.deflated) == (other.probabilistic, other.deflated)


def test_a_difference_is_of_annual_ratios_on_the_same_bars() -> None:
    mine, theirs = equity(0, drift=0.1), equity(1, drift=0.0, scale=0.01)
    got = difference(mine, theirs, HOUR, against="kelly_only", seed=0)
    ratios = [metrics.sharpe(each[1:] / each[:-1] - 1.0, PERIODS) for each in (mine, theirs)]
    assert None not in ratios
    assert got.against == "kelly_only"
    assert got.sharpe.estimate == pytest.approx(ratios[0] - ratios[1])
    assert got.volatility == pytest.approx(0.5, rel=0.1)
    assert got.sharpe.low is not None
    assert got.sharpe.high is not None
    swapped = difference(theirs, mine, HOUR, against="policy", seed=0)
    assert (swapped.sharpe.low, swapped.sharpe.high) == pytest.approx((-got.sharpe.high, -got.sharpe.low))


def test_cash_has_ratio_0_and_no_volatility() -> None:
    got = difference(equity(0), np.full(2_001, 5.0), HOUR, against="flat", seed=0)
    assert got.volatility is None
    assert got.sharpe.estimate == pytest.approx(trust(equity(0), HOUR, trials=1, trials_variance=None, seed=0).sharpe)
    assert difference(np.full(2_001, 5.0), equity(0), HOUR, against="x", seed=0) == Difference("x", UNKNOWN, 0.0)


@pytest.mark.parametrize("end", [0.0, -3_000.0])
def test_of_a_lost_account_nothing_is_known(end: float) -> None:
    lost = equity(0)
    lost[1_000:] = end
    got = trust(lost, HOUR, trials=4, trials_variance=1.0, seed=0)
    assert (got.sharpe, got.standard_error, got.probabilistic, got.deflated, got.years_needed) == (None,) * 5
    assert (got.sharpe_interval, got.drawdown_interval) == (UNKNOWN, UNKNOWN)
    assert got.trials_sharpe == pytest.approx(1.0294, abs=1e-3)
    assert got.years == pytest.approx(2_000 / PERIODS)
    for pair in ((lost, equity(1)), (equity(1), lost)):
        assert difference(*pair, HOUR, against="x", seed=0) == Difference("x", UNKNOWN, None)


def test_a_flat_record_has_no_ratio_and_no_fall() -> None:
    got = trust(np.full(600, 1e5), HOUR, trials=2, trials_variance=None, seed=0)
    assert (got.sharpe, got.standard_error, got.probabilistic, got.deflated, got.years_needed) == (None,) * 5
    assert got.sharpe_interval == UNKNOWN
    assert got.drawdown_interval == Interval(0.0, 0.0, 0.0)


@given(
    values=st.lists(st.one_of(st.floats(0.01, 1e6), st.floats(-10.0, 0.0)), max_size=40),
    trials=st.integers(1, 9),
    spread=st.one_of(st.none(), st.floats(0.0, 9.0)),
)
def test_any_finite_record_gives_numbers_that_an_artifact_can_hold(
    values: list[float], trials: int, spread: float | None
) -> None:
    track = np.array(values)
    got = trust(track, HOUR, trials=trials, trials_variance=spread, seed=0, resamples=20)
    json.dumps(asdict(got), allow_nan=False)
    json.dumps(asdict(difference(track, track[::-1], HOUR, against="x", seed=0, resamples=20)), allow_nan=False)


def test_what_is_no_record_is_refused() -> None:
    broken = equity(0)
    broken[70] = np.nan
    with pytest.raises(EvaluationError, match="equity: nan at bar 70"):
        trust(broken, HOUR, trials=1, trials_variance=None, seed=0)
    with pytest.raises(EvaluationError, match="at bar 70"):
        difference(equity(0), broken, HOUR, against="x", seed=0)
    with pytest.raises(EvaluationError, match="2000 bars against 1999 of champion"):
        difference(equity(0), equity(0)[:-1], HOUR, against="champion", seed=0)
    with pytest.raises(EvaluationError, match="0 trials"):
        trust(equity(0), HOUR, trials=0, trials_variance=None, seed=0)
    with pytest.raises(EvaluationError, match="not below 0"):
        trust(equity(0), HOUR, trials=2, trials_variance=-1.0, seed=0)
