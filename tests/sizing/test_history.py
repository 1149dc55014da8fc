from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layer3 import contract
from layer3.errors import ConfigurationError, DataError
from layer3.sizing import history
from layer3.sizing.chain import SizingChain
from layer3.sizing.config import ChainConfig
from layer3.sizing.history import SignalHistory, replay
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal

HOUR = 3600.0


def make_frame(n: int = 400, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    spells = np.repeat(rng.choice([a.value for a in Action], n), rng.integers(1, 12, n))[:n]

    def sometimes(values: np.ndarray) -> np.ndarray:
        return np.where(rng.random(n) < 0.2, np.nan, values)

    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=n, freq="h", tz="UTC").as_unit("ns"),
            "open": close * np.exp(rng.normal(0, 0.002, n)),
            "close": close,
            "signal_action": spells,
            "signal_confidence": rng.uniform(0, 1, n),
            "signal_risk_score": rng.uniform(0, 1, n),
            "regime": rng.choice([r.value for r in Regime], n),
            "expected_return": sometimes(rng.uniform(0, 0.2, n)),
            "predicted_volatility": sometimes(rng.uniform(0.01, 0.06, n)),
            "sentiment_score": sometimes(rng.uniform(0, 1, n)),
            "funding_rate": sometimes(rng.normal(0, 0.002, n)),
            "oi_change_pct": sometimes(rng.normal(0, 0.05, n)),
            "volume_ratio": sometimes(rng.lognormal(0, 0.7, n)),
            "onchain_whale_pressure": sometimes(rng.uniform(0, 1, n)),
            "exchange_netflow_zscore": sometimes(rng.normal(0, 1, n)),
            "liquidation_volume_24h": sometimes(rng.uniform(0, 1e9, n)),
        }
    )


class Recorder(SizingChain):
    """A chain that notes what it was taught before each assessment."""

    latest: Recorder

    def __init__(self, config: ChainConfig | None = None) -> None:
        super().__init__(config)
        Recorder.latest = self
        self.bar = 0
        self.trades: list[tuple[int, float]] = []
        self.errors: list[tuple[int, float, float]] = []

    def record_trade(self, trade_return: float | None) -> bool:
        assert trade_return is not None
        self.trades.append((self.bar, trade_return))
        return super().record_trade(trade_return)

    def record_residual(self, predicted: float | None, realised: float | None) -> bool:
        assert predicted is not None
        assert realised is not None
        self.errors.append((self.bar, predicted, realised))
        return super().record_residual(predicted, realised)

    def assess(self, signal: TacticalSignal, cascade: CascadeIndicators) -> Any:
        self.bar += 1
        return super().assess(signal, cascade)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(history, "SizingChain", Recorder)
    return Recorder


def assert_equal(a: SignalHistory, b: SignalHistory) -> None:
    for field in dataclasses.fields(SignalHistory):
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("k", [1, 23, 24, 25, 26, 137, 399])
def test_causal_a_truncated_history_is_the_head_of_the_whole(k: int) -> None:
    frame = make_frame()
    whole = replay(frame, "BTC-USDT", HOUR)
    head = SignalHistory(**{f.name: getattr(whole, f.name)[:k] for f in dataclasses.fields(SignalHistory)})
    assert_equal(replay(frame.iloc[:k], "BTC-USDT", HOUR), head)


def test_the_future_does_not_reach_the_past() -> None:
    frame, k = make_frame(), 200
    changed = frame.copy()
    rows = np.arange(len(frame)) >= k
    changed.loc[rows, ["open", "close"]] *= 7.0
    changed.loc[rows, "signal_action"] = "sell"
    a, b = replay(frame, "B", HOUR), replay(changed, "B", HOUR)
    np.testing.assert_array_equal(a.base_fraction[:k], b.base_fraction[:k])
    assert not np.array_equal(a.base_fraction, b.base_fraction)


def test_paper_trades_equal_a_plain_ledger(recorded: type[Recorder]) -> None:
    frame = make_frame()
    result = replay(frame, "B", HOUR, round_trip_cost=0.003)
    side, opens, n = result.side.tolist(), frame["open"].tolist(), len(frame)
    expected = []
    start = 0
    while start < n:
        end = start
        while end + 1 < n and side[end + 1] == side[start]:
            end += 1
        entry_bar, exit_bar = start + 1, end + 2  # seen at the close, done at the next open
        if side[start] != 0 and exit_bar < n:
            expected.append((exit_bar, side[start] * (opens[exit_bar] / opens[entry_bar] - 1.0) - 0.003))
        start = end + 1
    assert len(expected) > 15
    np.testing.assert_allclose(recorded.latest.trades, expected, rtol=1e-12)


def test_residuals_compare_the_past_day_with_what_was_said_a_day_ago(recorded: type[Recorder]) -> None:
    frame = make_frame()
    replay(frame, "B", HOUR)
    errors = recorded.latest.errors
    assert [bar for bar, *_ in errors] == list(range(24, len(frame)))
    close = frame["close"].to_numpy()
    np.testing.assert_allclose([realised for *_, realised in errors], close[24:] / close[:-24] - 1)
    hoped = frame["expected_return"].fillna(0.05).to_numpy()  # the prior mean where the signal is silent
    side = np.array([Action(a).side for a in frame["signal_action"]])
    np.testing.assert_allclose([predicted for _, predicted, _ in errors], (hoped * side / 30)[:-24])


@pytest.mark.parametrize(("interval", "bars"), [(86_400.0, 1), (14_400.0, 6), (900.0, 96)])
def test_a_day_is_counted_in_the_candles_own_interval(recorded: type[Recorder], interval: float, bars: int) -> None:
    replay(make_frame(120), "B", interval)
    assert recorded.latest.errors[0][0] == bars


def test_it_is_the_production_chain_bar_by_bar() -> None:
    frame = make_frame(24)  # before the first residual
    frame["signal_action"] = "buy"  # and without a closed trade
    result, chain = replay(frame, "B", HOUR), SizingChain()
    for t, row in enumerate(frame.itertuples(index=False)):
        optional = {
            name: None if np.isnan(value) else float(value)
            for name, value in row._asdict().items()
            if isinstance(value, float)
        }
        feeds = {f.name: optional[f.name] for f in dataclasses.fields(CascadeIndicators)}
        signal = TacticalSignal(
            "x", "B", Action(row.signal_action), row.signal_confidence, row.signal_risk_score, Regime(row.regime), 1,
            optional["expected_return"], optional["predicted_volatility"], None, optional["sentiment_score"],
        )  # fmt: skip
        assessment = chain.assess(signal, CascadeIndicators(**feeds))
        assert result.base_fraction[t] == assessment.base_fraction
        assert result.cascade_risk[t] == assessment.cascade_risk


def test_shapes_types_and_ranges() -> None:
    frame = make_frame()
    result = replay(frame, "B", HOUR)
    assert len(result) == len(frame)
    assert (result.side.dtype, result.signal_side.dtype, result.tier.dtype) == (np.int8, np.int8, np.int8)
    assert result.base_fraction.dtype == result.cascade_risk.dtype == result.confidence.dtype == np.float64
    np.testing.assert_array_equal(result.tier, contract.tier_of(frame["signal_risk_score"]))
    np.testing.assert_array_equal(result.side, result.signal_side)
    assert ((result.base_fraction >= 0) & (result.base_fraction <= 0.5)).all()
    assert (result.base_fraction[result.side == 0] == 0).all()
    assert (result.base_fraction > 0).any()
    assert (np.diff(result.cascade_risk) != 0).any()


def test_with_shorts_off_a_sell_has_no_side_and_no_paper_trade(recorded: type[Recorder]) -> None:
    frame = make_frame()
    frame["signal_action"] = np.where(frame["signal_action"].str.contains("buy"), "sell", frame["signal_action"])
    result = replay(frame, "B", HOUR, ChainConfig(allow_shorts=False))
    assert not result.side.any()
    assert (result.signal_side == -1).any()
    assert recorded.latest.trades == []


def test_a_bar_that_cannot_be_used_is_sized_to_zero() -> None:
    frame = make_frame()
    frame.loc[50, "predicted_volatility"] = np.inf
    result = replay(frame, "B", HOUR)
    assert (result.side[50], result.base_fraction[50]) == (0, 0.0)


def test_no_rows_is_no_history() -> None:
    assert len(replay(make_frame(5).iloc[:0], "B", HOUR)) == 0


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("open", 0.0, "expected a finite number above 0"),
        ("close", np.nan, "expected a finite number above 0"),
        ("signal_confidence", np.nan, r"expected a number in \[0, 1\]"),
        ("signal_risk_score", 1.2, r"expected a number in \[0, 1\]"),
        ("signal_action", "long", "expected one of strong_buy, buy"),
        ("regime", "bull", "expected one of trending_up"),
    ],
)
def test_refusals_name_row_column_and_value(column: str, value: Any, says: str) -> None:
    frame = make_frame(30)
    frame.loc[7, column] = value
    with pytest.raises(DataError, match=rf"row 7, column {column} is .*{says}"):
        replay(frame, "B", HOUR)


def test_a_missing_column_and_a_naive_timestamp_are_refused() -> None:
    frame = make_frame(30)
    with pytest.raises(DataError, match="columns missing from the signal history: regime, funding_rate"):
        replay(frame.drop(columns=["funding_rate", "regime"]), "B", HOUR)
    with pytest.raises(DataError, match=r"column timestamp is datetime64\[ns\], expected"):
        replay(frame.assign(timestamp=frame["timestamp"].dt.tz_localize(None)), "B", HOUR)


@pytest.mark.parametrize(("interval", "cost"), [(0.0, 0.0), (90_000.0, 0.0), (3600.0, -0.1), (3600.0, 1.0)])
def test_arguments_out_of_range(interval: float, cost: float) -> None:
    with pytest.raises(ConfigurationError, match="it must be a number in"):
        replay(make_frame(5), "B", interval, round_trip_cost=cost)
