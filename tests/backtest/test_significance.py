"""The probabilistic Sharpe ratio: the published formula, and a probability that means what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from layer3.backtest.significance import probabilistic_sharpe


def published(returns: np.ndarray, benchmark: float) -> float:
    ratio = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    error = math.sqrt((1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2) / (len(returns) - 1))
    return float(stats.norm.cdf((ratio - benchmark) / error))


@given(seed=st.integers(0, 10_000), n=st.integers(3, 500), df=st.sampled_from([3, 5, 30]), drift=st.floats(-0.5, 0.5))
@pytest.mark.parametrize("benchmark", [0.0, 0.1, -0.05])
def test_it_equals_the_formula_written_with_scipy(benchmark: float, seed: int, n: int, df: int, drift: float) -> None:
    returns = 0.01 * (drift + np.random.default_rng(seed).standard_t(df, n))
    got = probabilistic_sharpe(returns, benchmark)
    assume(got is not None)
    assert got == pytest.approx(published(returns, benchmark), abs=1e-10)


def test_a_normal_sample_by_hand() -> None:
    # Bailey and Lopez de Prado: with g3 = 0, g4 = 3 the error is sqrt((1 + SR^2 / 2) / (n - 1)).
    quantiles = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    returns = 0.02 + quantiles / quantiles.std()
    expected = stats.norm.cdf(0.02 / math.sqrt((1.0 + 0.0002) / 9_999))
    assert probabilistic_sharpe(returns) == pytest.approx(expected, abs=2e-4)


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


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_without_any_edge_it_is_uniform(scale: float) -> None:
    samples = scale * np.random.default_rng(5).standard_normal((3_000, 250))
    values = [probabilistic_sharpe(row) for row in samples]
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) > 0.95) == pytest.approx(0.05, abs=0.012)


def test_it_does_not_depend_on_the_scale_and_mirrors() -> None:
    returns = np.random.default_rng(1).standard_normal(300) + 0.05
    one = probabilistic_sharpe(returns)
    assert one == pytest.approx(probabilistic_sharpe(1e-3 * returns), abs=1e-12)
    mirrored = probabilistic_sharpe(-returns)
    assert mirrored is not None
    assert one == pytest.approx(1.0 - mirrored, abs=1e-12)


@pytest.mark.parametrize("returns", [[], [0.1], [0.1, 0.2], [0.0] * 10, [0.01] * 10])
def test_it_is_none_where_it_is_not_defined(returns: list[float]) -> None:
    assert probabilistic_sharpe(np.array(returns, dtype=np.float64)) is None
