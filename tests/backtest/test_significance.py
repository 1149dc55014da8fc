"""The Sharpe ratio's error: the published formulas where they hold, and probabilities that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter
from skfolio.measures import deflated_sharpe_ratio, expected_max_sharpe_ratio, probabilistic_sharpe_ratio
from statsmodels.stats.sandwich_covariance import S_hac_simple

from layer3.backtest import significance
from layer3.backtest.significance import (
    deflated_sharpe,
    expected_maximum_sharpe,
    influence,
    long_run_variance,
    minimum_track_record,
    probabilistic_sharpe,
    sharpe_ratio,
    sharpe_standard_error,
)
from layer3.errors import EvaluationError

Floats = NDArray[np.float64]


def sample(seed: int, n: int, df: int = 5, drift: float = 0.0) -> Floats:
    return 0.01 * (drift + np.random.default_rng(seed).standard_t(df, n))


SAMPLES = st.builds(
    sample, st.integers(0, 10_000), st.integers(3, 500), st.sampled_from([3, 5, 30]), st.floats(-0.5, 0.5)
)


def published_variance(returns: Floats) -> float:
    """Mertens 2002: 1 - g3 SR + (g4 - 1) / 4 SR^2, by scipy."""
    ratio = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    return float(1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2)


@given(returns=SAMPLES)
def test_the_influences_have_the_published_variance(returns: Floats) -> None:
    influences = influence(returns)
    assert influences is not None
    assert influences.mean() == pytest.approx(0.0, abs=1e-12)
    assert np.mean(influences**2) == pytest.approx(published_variance(returns), rel=1e-9)


@given(seed=st.integers(0, 10_000), n=st.integers(30, 600), slope=st.sampled_from([0.0, 0.3, 0.8]))
def test_the_long_run_variance_equals_that_of_statsmodels(seed: int, n: int, slope: float) -> None:
    values = lfilter([1.0], [1.0, -slope], sample(seed, n))
    values -= values.mean()
    rho = min(max(float(values[1:] @ values[:-1] / (values @ values)), -0.97), 0.97)
    rest = values[1:] - rho * values[:-1]
    whole = float(S_hac_simple(rest[:, None], nlags=math.isqrt(n))[0, 0]) / len(rest) / (1.0 - rho) ** 2
    assert long_run_variance(values) == pytest.approx(max(whole, float(np.mean(values**2))), rel=1e-9)


@given(returns=SAMPLES)
def test_it_is_never_surer_than_the_published_formula(returns: Floats) -> None:
    error = sharpe_standard_error(returns)
    assert error is not None
    assert error >= math.sqrt(max(published_variance(returns), 1.0) / (len(returns) - 1)) * (1.0 - 1e-9)


@pytest.mark.parametrize("df", [4, 30])
@pytest.mark.parametrize("drift", [0.0, 0.05, -0.1])
def test_independent_returns_have_the_probability_of_skfolio(df: int, drift: float) -> None:
    for seed in range(30):
        returns = sample(seed, 4_000, df, drift)
        assert probabilistic_sharpe(returns) == pytest.approx(probabilistic_sharpe_ratio(returns), abs=0.04)


def test_independence_costs_little() -> None:
    """The lags that are not needed, and the floor, make the error of independent returns 1 % larger on average."""
    excess = []
    for seed in range(60):
        returns = sample(seed, 8_760, drift=0.02)
        error = sharpe_standard_error(returns)
        assert error is not None
        excess.append(error / math.sqrt(published_variance(returns) / (len(returns) - 1)))
    assert 1.0 <= np.mean(excess) < 1.03


def test_a_normal_sample_by_hand() -> None:
    # Bailey and Lopez de Prado: with g3 = 0, g4 = 3 the error is sqrt((1 + SR^2 / 2) / (n - 1)).
    quantiles = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    returns = 0.02 + np.random.default_rng(4).permutation(quantiles / quantiles.std())
    expected = 0.02 / math.sqrt((1.0 + 0.0002) / 9_999)
    got = probabilistic_sharpe(returns)
    assert got is not None
    assert stats.norm.ppf(got) == pytest.approx(expected, rel=0.06)


def test_skew_and_fat_tails_lower_the_confidence() -> None:
    rng = np.random.default_rng(2)
    normal = rng.standard_normal(2_000)
    crash = normal.copy()
    crash[:4] -= 12.0
    samples = [0.04 + (values - values.mean()) / values.std() for values in (normal, crash)]
    even, skewed = (probabilistic_sharpe(values) for values in samples)
    assert even is not None
    assert skewed is not None
    assert 0.5 < skewed < even


def test_one_lucky_bar_is_no_proof() -> None:
    """The published formula takes one bar's luck as skewness, halves the error and is 98 % sure."""
    returns = np.full(5_000, 0.0)
    returns[2_500] = 0.5
    assert probabilistic_sharpe_ratio(returns) > 0.97
    got = probabilistic_sharpe(returns)
    assert got is not None
    assert got < 0.85


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_without_any_edge_it_is_uniform(scale: float) -> None:
    samples = scale * np.random.default_rng(5).standard_normal((3_000, 250))
    values = [probabilistic_sharpe(row) for row in samples]
    assert np.mean(np.array(values) > 0.95) == pytest.approx(0.045, abs=0.012)
    assert np.mean(np.array(values) > 0.5) == pytest.approx(0.5, abs=0.03)


def held(rng: np.random.Generator, n: int) -> Floats:
    """Half of the variance is news, half drifts on over 24 bars."""
    noise = rng.standard_normal((2, n + 24))
    return np.asarray((lfilter(np.ones(24) / math.sqrt(24.0), [1.0], noise[0]) + math.sqrt(24.0) * noise[1])[24:])


@pytest.mark.parametrize(
    ("kind", "limit", "fooled"),
    [("autoregressive", 0.08, 0.14), ("held", 0.09, 0.10)],
)
def test_autocorrelated_returns_without_edge_do_not_fool_it(kind: str, limit: float, fooled: float) -> None:
    rng = np.random.default_rng(8)
    passed, published = 0, 0
    for _ in range(400):
        noise = rng.standard_normal(2_000)
        returns = lfilter([1.0], [1.0, -0.5], noise) if kind == "autoregressive" else held(rng, 2_000)
        value = probabilistic_sharpe(returns)
        assert value is not None
        passed += value > 0.95
        published += probabilistic_sharpe_ratio(returns) > 0.95
    assert passed / 400 <= limit
    assert published / 400 >= fooled


@given(returns=SAMPLES, factor=st.sampled_from([1e-3, 7.0]))
def test_they_do_not_depend_on_the_scale(returns: Floats, factor: float) -> None:
    for function in (sharpe_ratio, sharpe_standard_error, probabilistic_sharpe, minimum_track_record):
        one, other = function(returns), function(factor * returns)
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, rel=1e-6), function.__name__


def test_it_mirrors() -> None:
    returns = np.random.default_rng(1).standard_normal(300) + 0.05
    one, mirrored = probabilistic_sharpe(returns), probabilistic_sharpe(-returns)
    assert one is not None
    assert mirrored is not None
    assert one == pytest.approx(1.0 - mirrored, abs=1e-12)


@given(seed=st.integers(0, 1_000), drift=st.floats(0.02, 0.3))
def test_a_longer_record_of_the_same_kind_is_surer(seed: int, drift: float) -> None:
    returns = sample(seed, 300, 30)
    returns += 0.01 * drift - returns.mean()
    values = [probabilistic_sharpe(np.tile(returns, k)) for k in (1, 4, 16)]
    assert None not in values
    assert values == sorted(values)


@pytest.mark.parametrize("trials", [3, 5, 20, 100, 1_000])
def test_the_best_of_many_is_about_that_of_skfolio(trials: int) -> None:
    assert expected_maximum_sharpe(trials, 0.04) == pytest.approx(expected_max_sharpe_ratio(trials, 0.2), rel=0.025)


@pytest.mark.parametrize("trials", [1, 2, 3, 10, 50])
def test_the_best_of_many_is_what_simulation_shows(trials: int) -> None:
    best = 0.3 * np.random.default_rng(3).standard_normal((40_000, trials)).max(axis=1)
    assert expected_maximum_sharpe(trials, 0.09) == pytest.approx(best.mean(), abs=0.006)


@pytest.mark.parametrize("trials", [3, 10, 200])
def test_the_deflated_probability_is_about_that_of_skfolio(trials: int) -> None:
    for seed in range(20):
        ratios = 0.02 * np.random.default_rng(seed).standard_normal(trials)
        returns = sample(100 + seed, 4_000, drift=0.08)
        got = deflated_sharpe(returns, trials, float(ratios.var(ddof=1)))
        assert got == pytest.approx(deflated_sharpe_ratio(returns, ratios), abs=0.06)


@given(returns=SAMPLES, variance=st.one_of(st.none(), st.floats(0.0, 0.1)), trials=st.integers(1, 500))
def test_more_trials_deflate_more(returns: Floats, variance: float | None, trials: int) -> None:
    plain = probabilistic_sharpe(returns)
    assert deflated_sharpe(returns, 1, variance) == plain
    values = [deflated_sharpe(returns, k, variance) for k in (1, trials, 2 * trials)]
    assert None not in values
    assert values == sorted(values, reverse=True)


def test_an_unknown_spread_of_the_trials_is_that_of_noise() -> None:
    returns = sample(1, 400, drift=0.1)
    assert deflated_sharpe(returns, 25, None) == deflated_sharpe(returns, 25, 1.0 / 399)


def test_the_best_of_twenty_without_edge_is_not_believed() -> None:
    rng = np.random.default_rng(6)
    believed = {"plain": 0, "deflated": 0}
    for _ in range(200):
        best = max(rng.standard_normal((20, 400)), key=lambda row: row.mean() / row.std())
        plain, deflated = probabilistic_sharpe(best), deflated_sharpe(best, 20, None)
        assert plain is not None
        assert deflated is not None
        believed["plain"] += plain > 0.95
        believed["deflated"] += deflated > 0.95
    assert believed["plain"] > 100
    assert believed["deflated"] <= 10


@given(returns=SAMPLES, benchmark=st.sampled_from([0.0, 0.03]))
def test_the_record_suffices_where_the_probability_does(returns: Floats, benchmark: float) -> None:
    ratio, bars = sharpe_ratio(returns), minimum_track_record(returns, benchmark)
    value = probabilistic_sharpe(returns, benchmark)
    assert ratio is not None
    assert value is not None
    assert (bars is None) == (ratio <= benchmark)
    assume(bars is not None and abs(value - 0.95) > 1e-9)
    assert bars is not None
    assert (len(returns) >= bars) == (value > 0.95)


def test_a_minimum_track_record_by_hand() -> None:
    """Bailey and Lopez de Prado 2012, eq. 11, for a normal sample of ratio 0.1: 1 + 1.005 (1.645 / 0.1)^2 = 273."""
    quantiles = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    returns = 0.1 + np.random.default_rng(0).permutation(quantiles / quantiles.std(ddof=1))
    assert minimum_track_record(returns) == pytest.approx(272.9, rel=0.1)
    assert minimum_track_record(returns, level=0.99) == pytest.approx(545.0, rel=0.1)
    assert minimum_track_record(-returns) is None


@pytest.mark.parametrize("returns", [[], [0.1], [0.1, 0.2], [0.0] * 10, [0.01] * 10])
def test_they_are_none_where_they_are_not_defined(returns: list[float]) -> None:
    values = np.array(returns, dtype=np.float64)
    for function in (sharpe_ratio, influence, sharpe_standard_error, probabilistic_sharpe, minimum_track_record):
        assert function(values) is None
    assert deflated_sharpe(values, 5, None) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_no_number_is_refused_by_bar(value: float) -> None:
    returns = sample(0, 50)
    returns[[17, 30]] = value
    for name in ("sharpe_ratio", "influence", "sharpe_standard_error", "probabilistic_sharpe", "minimum_track_record"):
        with pytest.raises(EvaluationError, match="at bar 17"):
            getattr(significance, name)(returns)
    with pytest.raises(EvaluationError, match="at bar 17"):
        deflated_sharpe(returns, 3, None)


def test_a_table_of_returns_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"shape \(5, 2\)"):
        sharpe_ratio(np.zeros((5, 2)))


@pytest.mark.parametrize(("trials", "variance"), [(0, 0.1), (3, -0.1), (3, math.nan), (3, math.inf)])
def test_trials_that_cannot_be_are_refused(trials: int, variance: float) -> None:
    with pytest.raises(EvaluationError, match="trials"):
        expected_maximum_sharpe(trials, variance)


@pytest.mark.parametrize("level", [0.5, 1.0, 95.0])
def test_a_level_that_is_no_level_is_refused(level: float) -> None:
    with pytest.raises(EvaluationError, match="level"):
        minimum_track_record(sample(0, 50), level=level)
