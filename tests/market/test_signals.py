"""Signals: the file's columns are followed, the baseline is causal, persistent and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from layer3.market.candles import CANDLE_COLUMNS, check
from layer3.market.signal_columns import CASCADE_COLUMNS
from layer3.market.signals import (
    BASELINE,
    CANONICAL_COLUMNS,
    FROM_FILE,
    WARM_UP_HOURS,
    derived_columns,
    with_signals,
)
from layer3.types import Action, Regime

REAL = Path(__file__).parents[3] / "shared" / "data"
UNSAID = ("funding_rate", "oi_change_pct", "onchain_whale_pressure", "exchange_netflow_zscore", "sentiment_score")


def market(rows: int = 4_000, *, seconds: int = 3600, seed: int = 0, drift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sigma = 0.006 * np.exp(np.repeat(rng.normal(0, 0.5, rows // 200 + 1), 200)[:rows])
    close = 100.0 * np.exp(np.cumsum(rng.normal(drift, 1, rows) * sigma))
    opened = np.concatenate([[100.0], close[:-1]])
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq=f"{seconds}s", tz="UTC"),
            "open": opened,
            "high": np.maximum(opened, close),
            "low": np.minimum(opened, close),
            "close": close,
            "volume": rng.lognormal(3, 1, rows),
        }
    )
    return check(frame, "test", min_rows=2)[0]


def sides(frame: pd.DataFrame) -> pd.Series:
    return frame["signal_action"].map(lambda action: Action(action).side)


def test_baseline_gives_every_canonical_column() -> None:
    signals = with_signals(market())
    frame = signals.frame
    assert signals.source == BASELINE
    assert list(frame.columns) == [*CANDLE_COLUMNS, *CANONICAL_COLUMNS]
    assert set(frame["signal_action"]) <= {str(action) for action in Action}
    assert set(frame["regime"]) <= {str(regime) for regime in Regime}
    for name in ("signal_confidence", "signal_risk_score"):
        assert frame[name].between(0, 1).all()
    assert frame["expected_return"].dropna().between(0, 0.10).all()
    assert frame["predicted_volatility"].iloc[30:].gt(0).all()
    assert frame["volume_ratio"].iloc[30:].ge(0).all()
    assert frame[list(UNSAID)].isna().all(axis=None)
    numeric = [name for name in CANONICAL_COLUMNS if name not in ("signal_action", "regime")]
    assert (frame[numeric].dtypes == np.float64).all()


def test_what_comes_out_passes_the_checks_again() -> None:
    frame = with_signals(market()).frame
    again, report = check(frame, "test", min_rows=2)
    assert set(report.signal_columns) == set(CANONICAL_COLUMNS)
    pd.testing.assert_frame_equal(again[list(CANONICAL_COLUMNS)], frame[list(CANONICAL_COLUMNS)])


@pytest.mark.parametrize("seconds", [900, 3600, 14_400, 86_400])
@pytest.mark.parametrize("kept", [2, 100, 337, 1_111, 2_500])
def test_baseline_is_causal(seconds: int, kept: int) -> None:
    frame = market(3_000, seconds=seconds)
    whole = with_signals(frame).frame.iloc[:kept]
    truncated = with_signals(frame.iloc[:kept]).frame
    pd.testing.assert_frame_equal(whole, truncated, check_exact=True)


def test_the_future_cannot_change_the_past() -> None:
    frame = market(3_000)
    other = frame.copy()
    other.loc[1_500:, ["open", "high", "low", "close"]] *= 3.0
    other.loc[1_500:, "volume"] *= 10.0
    pd.testing.assert_frame_equal(
        with_signals(frame).frame.iloc[:1_500], with_signals(other).frame.iloc[:1_500], check_exact=True
    )


def test_hold_with_confidence_zero_before_there_is_history() -> None:
    frame = with_signals(market()).frame
    early = frame.iloc[:WARM_UP_HOURS]
    assert set(early["signal_action"]) == {"hold"}
    assert (early["signal_confidence"] == 0).all()
    assert early["expected_return"].isna().all()
    assert (frame["signal_confidence"].iloc[WARM_UP_HOURS:] >= 0.5).all()


def test_baseline_takes_both_sides_and_does_not_flip_each_hour() -> None:
    frame = with_signals(market(12_000, seed=4)).frame
    side = sides(frame)
    assert set(side) == {-1, 0, 1}
    changes = int((side.diff().fillna(0) != 0).sum())
    assert changes < len(frame) / 50
    held = frame[side != 0]
    assert held["signal_confidence"].gt(0.5).all()
    assert held["signal_confidence"].nunique() > 100


def test_baseline_takes_the_side_of_a_trend_and_waits_for_a_pull_back() -> None:
    up, down = with_signals(market(drift=0.15)).frame, with_signals(market(drift=-0.15)).frame
    for frame, side in ((up, 1), (down, -1)):
        late = sides(frame).iloc[1_000:]
        assert (late == side).any()
        assert not (late == -side).any()
        entered = np.flatnonzero((sides(frame) == side) & (sides(frame).shift() != side))
        mean = np.log(frame["close"]).rolling(48).mean()
        assert ((np.log(frame["close"]) - mean).iloc[entered] * side < 0.0).all()
    assert {"trending_up"} < set(up["regime"])
    assert {"trending_down"} < set(down["regime"])
    assert "strong_buy" in set(up["signal_action"])
    assert "strong_sell" in set(down["signal_action"])


def test_crisis_can_be_reached() -> None:
    frame = market(3_000, seed=2)
    crash = frame.copy()
    rng = np.random.default_rng(0)
    factor = np.exp(np.cumsum(np.r_[np.zeros(2_000), rng.normal(-0.01, 0.03, 36), np.zeros(964)]))
    crash[["open", "high", "low", "close"]] = crash[["open", "high", "low", "close"]].mul(factor, axis=0)
    regime = with_signals(crash).frame["regime"]
    assert "crisis" in set(regime.iloc[2_000:2_060])
    assert "crisis" not in set(with_signals(frame).frame["regime"].iloc[2_000:2_060])
    assert with_signals(crash).frame["signal_risk_score"].iloc[2_036] > 0.95


def test_risk_score_is_the_rank_of_volatility() -> None:
    frame = with_signals(market(2_000)).frame
    past = frame["predicted_volatility"].iloc[24:1_500]
    slow = float((past <= past.iloc[-1]).mean())
    assert frame["signal_risk_score"].iloc[1_499] == pytest.approx(slow, abs=1e-12)


def test_still_market_holds() -> None:
    frame = market(1_000)
    frame[["open", "high", "low", "close"]] = 100.0
    frame["volume"] = 0.0
    out = with_signals(frame).frame
    assert set(out["signal_action"]) == {"hold"}
    assert set(out["regime"]) == {"ranging"}
    assert out["volume_ratio"].isna().all()


def test_columns_of_the_file_are_followed() -> None:
    frame = market(500).assign(
        signal_action="sell", signal_confidence=0.8, signal_tier=3.0, regime="crisis", funding_rate=0.002
    )
    signals = with_signals(frame)
    assert signals.source == FROM_FILE
    out = signals.frame
    assert set(out["signal_action"]) == {"sell"}
    assert set(out["signal_confidence"]) == {0.8}
    assert set(out["signal_risk_score"]) == {0.5}
    assert set(out["regime"]) == {"crisis"}
    assert set(out["funding_rate"]) == {0.002}
    for name in ("expected_return", "predicted_volatility", "sentiment_score"):
        assert out[name].isna().all()
    assert list(out.columns) == [*CANDLE_COLUMNS, *CANONICAL_COLUMNS]


@pytest.mark.parametrize(("tier", "risk"), [(1, 0.1), (2, 0.3), (3, 0.5), (4, 0.8)])
def test_tier_becomes_the_middle_of_its_risk(tier: int, risk: float) -> None:
    frame = market(100).assign(signal_action="buy", signal_confidence=0.8, signal_tier=float(tier))
    assert set(with_signals(frame).frame["signal_risk_score"]) == {risk}
    stated = frame.assign(signal_risk_score=0.33)
    assert set(with_signals(stated).frame["signal_risk_score"]) == {0.33}


def test_expected_return_of_zero_stays_zero() -> None:
    frame = market(100).assign(signal_action="buy", signal_confidence=0.8, expected_return=0.0)
    assert set(with_signals(frame).frame["expected_return"]) == {0.0}


def test_other_columns_are_followed_beside_the_baseline() -> None:
    plain = with_signals(market(600)).frame
    signals = with_signals(market(600).assign(sentiment_score=0.7, volume_ratio=2.0))
    assert signals.source == BASELINE
    assert set(signals.frame["sentiment_score"]) == {0.7}
    assert set(signals.frame["volume_ratio"]) == {2.0}
    pd.testing.assert_series_equal(signals.frame["signal_action"], plain["signal_action"])
    assert set(CASCADE_COLUMNS) <= set(signals.frame.columns)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"signal_action": "buy"},
        {"signal_action": "buy", "signal_confidence": 0.8},
        {"signal_action": "buy", "signal_confidence": 0.8, "signal_tier": 2.0, "regime": "crisis", "volume_ratio": 1.0},
        {"signal_tier": 2.0, "expected_return": 0.1, "funding_rate": 0.001},
    ],
)
def test_derived_columns_are_those_that_other_prices_change(given: dict[str, object]) -> None:
    one, other = (market(3_000, seed=seed).assign(**given) for seed in (0, 1))
    a, b = (with_signals(frame).frame for frame in (one, other))
    assert derived_columns(one) == {name for name in CANONICAL_COLUMNS if not a[name].equals(b[name])}


@pytest.mark.parametrize("pair", ["BTC", "ETH", "SOL"])
def test_baseline_on_real_candles(pair: str) -> None:
    path = REAL / f"{pair}-USDT_1h.csv.gz"
    if not path.exists():
        pytest.skip(f"the shared market data are not on this machine: {path}")
    out = with_signals(check(pd.read_csv(path), path.name)[0]).frame
    share = sides(out).value_counts(normalize=True)
    assert share.reindex([-1, 0, 1]).gt(0.05).all()
    assert set(out["regime"]) == {str(regime) for regime in Regime}
    assert (sides(out).diff().fillna(0) != 0).sum() < 365 * 2
