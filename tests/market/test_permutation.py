"""Permuted bars: whole bars in another order, nothing else; and paths that are still candles."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from layer3.errors import EvaluationError
from layer3.market.candles import check
from layer3.market.permutation import permuted, random_order, rebuilt
from layer3.market.simulator import MarketSpec, simulate

PRICES = ["open", "high", "low", "close"]


def market(n: int, seed: int = 1, sigma: float = 0.01) -> pd.DataFrame:
    """Candles with gaps between them, and bars without any move or volume."""
    rng = np.random.default_rng(seed)
    moves = sigma * rng.standard_normal((n, 2)) * (rng.random((n, 1)) < 0.9)
    after = np.exp(np.cumsum(moves.ravel())).reshape(n, 2)
    opens, close = 100.0 * after[:, 0], 100.0 * after[:, 1]
    reach = sigma * np.abs(rng.standard_normal((n, 2))) * (rng.random((n, 2)) < 0.8)
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=n, freq="h", tz="UTC"),
            "open": opens,
            "high": np.maximum(opens, close) * np.exp(reach[:, 0]),
            "low": np.minimum(opens, close) * np.exp(-reach[:, 1]),
            "close": close,
            "volume": rng.lognormal(3, 1, n) * (rng.random(n) < 0.95),
            "funding_rate": rng.normal(0, 1e-4, n),
        }
    )
    return check(frame, "test", min_rows=2)[0]


def bars_of_path(frame: pd.DataFrame, window: range, first: float) -> NDArray[np.float64]:
    """Every bar of the window as (gap, body, high, low, volume), relative, one row a bar, in the order of size.

    ``first``: the price before the first bar of all, whose gap is not known and counts as none.
    """
    before = frame["close"].shift(1).fillna(first)
    rows = np.column_stack(
        [
            np.log(frame["open"] / before),
            np.log(frame["close"] / frame["open"]),
            np.log(frame["high"] / frame["open"]),
            np.log(frame["low"] / frame["open"]),
            frame["volume"],
        ]
    )[window.start : window.stop]
    return rows[np.lexsort(rows.round(9).T)]


@given(n=st.integers(1, 400), block=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_an_order_is_a_permutation_of_contiguous_blocks(n: int, block: int, seed: int) -> None:
    order = random_order(n, block, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(n))
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    runs = [len(run) for run in np.split(order, breaks)]
    assert len(runs) <= (n - 1) // block + 2
    # Two blocks may meet again, but no run is shorter than a block but the first and the last piece.
    assert sum(run < block for run in runs) <= 2
    np.testing.assert_array_equal(order, random_order(n, block, np.random.default_rng(seed)))


def test_every_order_of_single_bars_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    seen = Counter(tuple(random_order(4, 1, rng).tolist()) for _ in range(4_800))
    assert set(seen) == set(itertools.permutations(range(4)))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_a_block_may_begin_at_any_bar() -> None:
    rng = np.random.default_rng(0)
    begins = np.zeros(100)
    for _ in range(4_000):
        order = random_order(100, 10, rng)
        begins[order[1:][np.diff(order) != 1]] += 1
    inner = begins[1:]  # the first bar begins a block every time
    assert stats.chisquare(inner).pvalue > 1e-4


@given(
    n=st.integers(2, 80),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    block=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_only_the_order_of_the_windows_bars_changes(n: int, cut: tuple[float, float], block: int, seed: int) -> None:
    frame = market(n, seed)
    start = int(min(cut) * (n - 1))
    window = range(start, max(start + 1, int(max(cut) * n)))
    kept = frame.copy()
    path = permuted(frame, window, block=block, rng=np.random.default_rng(seed))
    pd.testing.assert_frame_equal(frame, kept)
    inside = np.zeros(n, dtype=bool)
    inside[window.start : window.stop] = True
    pd.testing.assert_frame_equal(path[~inside], frame[~inside])
    pd.testing.assert_frame_equal(path[["timestamp", "funding_rate"]], frame[["timestamp", "funding_rate"]])
    again, _ = check(path, "path", min_rows=2)  # the rules of every candle file
    pd.testing.assert_frame_equal(again, path)
    first = frame["open"].iloc[0]
    np.testing.assert_allclose(bars_of_path(path, window, first), bars_of_path(frame, window, first), atol=1e-8)
    assert path["close"].iloc[window.stop - 1] == pytest.approx(frame["close"].iloc[window.stop - 1], rel=1e-11)


def test_the_loop_over_bars_is_the_oracle() -> None:
    frame, window = market(300, 3), range(40, 290)
    order = random_order(250, 7, np.random.default_rng(5))
    path = rebuilt(frame, window, order)
    price = frame["close"].iloc[39]
    for t, k in enumerate(order):
        bar, before = frame.iloc[40 + k], frame["close"].iloc[39 + k]
        opened = price * bar["open"] / before
        expected = [opened, opened * bar["high"] / bar["open"], opened * bar["low"] / bar["open"]]
        price = opened * bar["close"] / bar["open"]
        np.testing.assert_allclose(path.iloc[40 + t][PRICES].to_numpy(float), [*expected, price], rtol=1e-11)
        assert path["volume"].iloc[40 + t] == bar["volume"]


@pytest.mark.parametrize("start", [0, 17])
def test_the_real_order_gives_the_real_path(start: int) -> None:
    frame = market(200)
    path = rebuilt(frame, range(start, 200), np.arange(200 - start))
    np.testing.assert_allclose(path[PRICES], frame[PRICES], rtol=1e-12)
    pd.testing.assert_series_equal(path["volume"], frame["volume"])


def test_what_follows_from_what_came_before_is_gone() -> None:
    frame = simulate(MarketSpec(bars=8_000, seed=4))
    spread = np.abs(np.diff(np.log(frame["close"])))
    assert np.corrcoef(spread[1:], spread[:-1])[0, 1] > 0.15  # volatility comes in swings
    by_bars, by_days = (
        np.abs(np.diff(np.log(permuted(frame, range(8_000), block=block, rng=np.random.default_rng(1))["close"])))
        for block in (1, 24)
    )
    assert abs(np.corrcoef(by_bars[1:], by_bars[:-1])[0, 1]) < 0.05
    assert np.corrcoef(by_days[1:], by_days[:-1])[0, 1] > 0.15  # within a day they are kept
    lags = range(60, 140)
    later = [np.mean([np.corrcoef(s[lag:], s[:-lag])[0, 1] for lag in lags]) for s in (spread, by_days)]
    assert later[0] > 0.05 > 0.02 > abs(later[1])  # over some days they are not


def test_a_path_beyond_what_a_float_holds_is_refused() -> None:
    rng = np.random.default_rng(1)
    # The way there and back again cancel out; in random order they need not.
    close = np.exp(np.where(np.arange(4_000) // 2 % 2, 300.0, -300.0))
    frame = pd.DataFrame({"open": close, "high": close, "low": close, "close": close, "volume": 1.0})
    with pytest.raises(EvaluationError, match="bars 10 to 4,000 in another order give prices beyond what a float"):
        permuted(frame, range(10, 4_000), block=1, rng=rng)
