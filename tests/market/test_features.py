"""Features are causal, equal to plain slow versions, and never a constant 0 for want of history."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer3 import contract
from layer3.market.features import bars_of, daily_volatility, market_features, returns

INTERVALS = [60, 900, 3600, 7200, 14_400, 86_400]


def closes(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.asarray(100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, n))))


@pytest.mark.parametrize(
    ("hours", "interval", "bars"),
    [
        (1, 3600, 1),
        (4, 3600, 4),
        (1, 60, 60),
        (4, 900, 16),
        (4, 7200, 2),
        (1, 14_400, 1),
        (4, 86_400, 1),
        (48, 86_400, 2),
    ],
)
def test_hours_in_bars(hours: int, interval: int, bars: int) -> None:
    assert bars_of(hours, interval) == bars


def test_returns_by_hand() -> None:
    close = np.array([100.0, 110.0, 99.0, 198.0])
    np.testing.assert_allclose(returns(close, 1), [0.0, 0.10, -0.10, 1.0], atol=1e-15)
    np.testing.assert_allclose(returns(close, 2), [0.0, 0.10, -0.01, 0.80], atol=1e-15)
    assert len(returns(np.empty(0), 4)) == 0
    with pytest.raises(ValueError, match="at least 1"):
        returns(close, 0)


@pytest.mark.parametrize("bars", [1, 4, 16, 240])
def test_returns_equal_pandas(bars: int) -> None:
    close = closes(500)
    slow = pd.Series(close).pct_change(bars).to_numpy()
    np.testing.assert_allclose(returns(close, bars)[bars:], slow[bars:], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("interval", INTERVALS)
def test_volatility_equals_pandas(interval: int) -> None:
    close = closes(6_000)
    window = max(2, bars_of(contract.VOLATILITY_WINDOW, interval))
    changes = np.log(pd.Series(close)).diff()
    slow = changes.rolling(window, min_periods=2).std() * math.sqrt(86_400 / interval)
    fast = daily_volatility(close, interval)
    np.testing.assert_allclose(fast[2:], slow[2:], rtol=1e-9)
    assert fast[:2].tolist() == [0.0, 0.0]


def test_volatility_is_the_daily_one_at_any_bar_length() -> None:
    minutes = 100.0 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.03 / math.sqrt(1440), 60 * 24 * 30)))
    for bars, interval in ((1, 60), (15, 900), (60, 3600)):
        assert np.mean(daily_volatility(minutes[::bars], interval)[-2000 // bars :]) == pytest.approx(0.03, rel=0.25)


def test_look_back_longer_than_the_buffer_is_no_constant_zero() -> None:
    """The old system's four-hour return looked back further than its buffer and was always 0."""
    short = closes(4, seed=1)
    features = market_features(short, 900)
    assert features.return_4h[-1] == short[-1] / short[0] - 1.0 != 0.0
    assert features.return_1h[-1] == short[-1] / short[0] - 1.0
    assert features.volatility[-1] > 0.0


def test_live_buffer_gives_what_history_gives() -> None:
    close = closes(2_000)
    whole = market_features(close, 3600)
    buffer = market_features(close[-49:], 3600)
    for name in whole._fields:
        assert getattr(buffer, name)[-1] == getattr(whole, name)[-1]


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from(INTERVALS))
def test_features_are_causal(seed: int, kept: int, interval: int) -> None:
    close = closes(400, seed)
    whole, truncated = market_features(close, interval), market_features(close[:kept], interval)
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(whole, name)[:kept], getattr(truncated, name))
        assert getattr(whole, name).dtype == np.float64
        assert np.isfinite(getattr(whole, name)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_the_shortest_series(n: int) -> None:
    for feature in market_features(closes(n), 3600):
        assert feature.shape == (n,)
        assert np.isfinite(feature).all()


def test_constant_price_has_no_volatility() -> None:
    close = np.concatenate([closes(100), np.full(100, 50.0)])
    assert daily_volatility(close, 3600)[-1] == 0.0
