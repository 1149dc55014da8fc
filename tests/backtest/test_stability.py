"""A record cut in pieces, against pandas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.agent.bars import Bars, prepare
from layer3.backtest.engine import run
from layer3.backtest.record import Slice, Track
from layer3.backtest.stability import find_stability
from layer3.errors import EvaluationError
from layer3.market.signals import with_signals
from layer3.market.simulator import MarketSpec, simulate
from tests.agent.worlds import make_bars

WINDOW = range(300, 2_300)


@pytest.fixture(scope="module")
def market() -> tuple[pd.DataFrame, Bars, Track]:
    candles = simulate(MarketSpec(bars=2_500))
    bars, _ = prepare(candles, "SYNTH-USD", 3_600)
    return candles, bars, run(bars, WINDOW, {"x": lambda state, _: 0.5 + float(state[0])})["x"]


def expected(returns: pd.Series) -> tuple[float, float]:
    return returns.mean() / returns.std() * math.sqrt(8_760), float((1.0 + returns).prod() - 1.0)


@pytest.mark.parametrize("own_columns", [True, False])
def test_every_slice_is_what_pandas_groups(market: tuple[pd.DataFrame, Bars, Track], own_columns: bool) -> None:
    candles, bars, track = market
    if not own_columns:
        candles = candles[["timestamp", "open", "high", "low", "close", "volume"]]
    got = find_stability(candles, bars, WINDOW, track)
    table = pd.DataFrame({"r": track.equity[1:] / track.equity[:-1] - 1.0, "side": np.sign(track.exposure)})
    frame = with_signals(candles).frame.iloc[300:2_298].reset_index(drop=True)
    table["regime"] = frame["regime"] if not own_columns else candles["regime"].to_numpy()[300:2_298]
    table["month"] = frame["timestamp"].dt.strftime("%Y-%m")
    table["direction"] = table["side"].map({1.0: "long", -1.0: "short", 0.0: "flat"})
    for name, slices in (("regime", got.regimes), ("month", got.months), ("direction", got.directions)):
        groups = dict(iter(table.groupby(name)["r"]))
        assert {piece.label for piece in slices} == set(groups)
        assert sum(piece.bars for piece in slices) == 1_998
        for piece in slices:
            sharpe, total = expected(groups[piece.label])
            assert piece.bars == len(groups[piece.label])
            assert piece.total_return == pytest.approx(total, rel=1e-9, abs=1e-12)
            if piece.sharpe is None:
                assert groups[piece.label].std() < 1e-12
            else:
                assert piece.sharpe == pytest.approx(sharpe, rel=1e-9)
    assert [piece.label for piece in got.months] == ["2022-01", "2022-02", "2022-03", "2022-04"]
    assert len(got.regimes) >= 4


def test_the_months_compound_to_the_whole(market: tuple[pd.DataFrame, Bars, Track]) -> None:
    candles, bars, track = market
    got = find_stability(candles, bars, WINDOW, track)
    for slices in (got.months, got.regimes, got.directions):
        whole = math.prod(1.0 + piece.total_return for piece in slices)
        assert whole == pytest.approx(track.equity[-1] / track.equity[0], rel=1e-9)


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_the_best_bars_are_cut_off(bars: int, seed: int) -> None:
    returns = np.random.default_rng(seed).standard_normal(bars) * 0.01
    track = made(returns)
    got = find_stability(plain(bars + 2), make_bars(bars + 2), range(bars + 2), track).trimmed
    left = np.sort(returns)[: bars - math.ceil(bars / 100)]
    assert got.bars == len(left)
    assert got.total_return == pytest.approx(np.prod(1.0 + left) - 1.0, abs=1e-9)


def plain(n: int) -> pd.DataFrame:
    bars = make_bars(n)
    prices = dict.fromkeys(("open", "high", "low", "close"), bars.close)
    return pd.DataFrame({"timestamp": pd.to_datetime(bars.timestamp, utc=True), **prices, "volume": np.ones(n)})


def made(returns: np.ndarray) -> Track:
    n = len(returns)
    nothing = np.zeros(n)
    return Track(np.cumprod(np.r_[1.0, 1.0 + returns]), nothing, nothing, nothing, nothing, nothing, np.empty(0))


def test_a_record_of_one_good_day_is_nothing_without_it() -> None:
    returns = np.random.default_rng(1).normal(0.0, 1e-4, 1_000)
    returns[600:610] = 0.05
    got = find_stability(plain(1_002), make_bars(1_002), range(1_002), made(returns))
    assert np.prod(1.0 + returns) > 1.5
    assert abs(got.trimmed.total_return) < 0.02
    assert got.directions == (
        Slice("flat", 1_000, pytest.approx(expected(pd.Series(returns))[0]), pytest.approx(np.prod(1.0 + returns) - 1)),
    )


def test_a_flat_record_has_slices_without_a_ratio() -> None:
    got = find_stability(plain(102), make_bars(102), range(102), made(np.zeros(100)))
    assert got.trimmed == Slice("without the best 1 % of bars", 99, None, 0.0)
    assert got.regimes == (Slice("ranging", 100, None, 0.0),)


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "equity of policy is 0 after 50"), (-3.0, "-3"), (np.nan, "nan after 50")]
)
def test_a_lost_account_has_no_slices(value: float, said: str) -> None:
    track = made(np.zeros(100))
    equity = track.equity.copy()
    equity[50] = value
    with pytest.raises(EvaluationError, match=said):
        find_stability(plain(102), make_bars(102), range(102), dataclasses.replace(track, equity=equity))
