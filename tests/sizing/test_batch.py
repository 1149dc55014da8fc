"""The chain at once: bit for bit what the loop over the production chain gives, on anything that the loop takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer3.errors import ConfigurationError, DataError
from layer3.market.signals import with_signals
from layer3.market.simulator import MarketSpec, simulate
from layer3.sizing.batch import assess, join, replay_at_once, size
from layer3.sizing.config import (
    CascadeConfig,
    ChainConfig,
    ComponentConfig,
    ConformalConfig,
    KellyConfig,
    RegimeConfig,
    SentimentConfig,
)
from layer3.sizing.history import SignalHistory, replay
from layer3.types import Action, Regime

HOUR = 3_600.0
#: Column, range of values that are usual, values that are out of range or at its edge.
_FEEDS: dict[str, tuple[float, float, list[float]]] = {
    "expected_return": (-0.1, 0.4, [-1.0, 10.0, -1.5, 10.5, np.inf, -np.inf, 0.0]),
    "predicted_volatility": (0.001, 0.08, [0.0, 5.0, 5.1, -0.1, np.inf]),
    "sentiment_score": (0.0, 1.0, [0.0, 1.0, 0.4, 0.6, -0.1, 1.1]),
    "funding_rate": (-0.03, 0.03, [0.0, 0.0005, 0.003, 0.01, -0.02, 1e300, np.inf]),
    "oi_change_pct": (-0.8, 0.2, [-1.0, -1.01, 0.0, -0.1, -0.3, 1e308]),
    "volume_ratio": (0.0, 25.0, [0.0, 1.0, 5.0, 10.0, 1e308, -0.1, np.inf]),
    "onchain_whale_pressure": (0.0, 1.0, [0.0, 0.5, 0.7, 1.0, 1.01]),
    "exchange_netflow_zscore": (-5.0, 9.0, [0.0, 2.0, 4.0, -1e308, 1e308, np.inf]),
    "liquidation_volume_24h": (0.0, 7e9, [0.0, 2e8, 1e9, 3e9, -1.0, 1e308]),
}


def wild_frame(n: int, seed: int, *, missing: float, odd: float, spell: int, jump: float) -> pd.DataFrame:
    """n bars: ``missing`` of every optional number is NaN, ``odd`` of it at or beyond the end of its range."""
    rng = np.random.default_rng(seed)

    def spells(choices: list[str]) -> NDArray[Any]:
        return np.repeat(rng.choice(choices, n), rng.integers(1, spell + 1, n))[:n]

    close = 100.0 * np.exp(np.clip(np.cumsum(rng.normal(0.0, jump, n)), -300.0, 300.0))
    columns: dict[str, Any] = {
        # Also before 1970, which the chain takes for a clock that is wrong.
        "timestamp": pd.date_range("1969-12-31" if odd else "2024-01-01", periods=n, freq="h", tz="UTC").as_unit("ns"),
        "open": close * np.exp(rng.normal(0.0, jump / 5, n)),
        "close": close,
        "signal_action": spells(list(Action)),
        "signal_confidence": rng.choice([0.0, 1.0, *rng.uniform(0, 1, 5)], n),
        "signal_risk_score": rng.choice([0.0, 0.2, 0.4, 0.6, 1.0, *rng.uniform(0, 1, 5)], n),
        "regime": spells(list(Regime)),
    }
    for name, (low, high, edges) in _FEEDS.items():
        values = np.where(rng.random(n) < odd, rng.choice(edges, n), rng.uniform(low, high, n))
        columns[name] = np.where(rng.random(n) < missing, np.nan, values)
    return pd.DataFrame(columns)


def assert_equal(got: SignalHistory, expected: SignalHistory) -> None:
    for field in dataclasses.fields(SignalHistory):
        left, right = getattr(got, field.name), getattr(expected, field.name)
        assert left.dtype == right.dtype, field.name
        np.testing.assert_array_equal(left, right, err_msg=field.name)


@st.composite
def configs(draw: st.DrawFn) -> ChainConfig:
    def unit(low: float = 0.0, high: float = 1.0) -> float:
        return draw(st.floats(low, high))

    def sign() -> ComponentConfig:
        normal = unit(0.0, 0.3)
        trigger = normal + unit(0.01, 2.0)
        return ComponentConfig(normal, trigger, trigger + unit(0.01, 3.0), unit(0.01, 1.0))

    enough = draw(st.integers(1, 30))
    low = unit(0.0, 0.6)
    levels = sorted([unit(), unit(), unit(0.0, 0.99)])
    factor = unit()
    signs = ("funding", "open_interest", "volume", "whale", "netflow", "liquidation")
    return ChainConfig(
        allow_shorts=draw(st.booleans()),
        max_exposure=unit(0.01, 0.5),
        kelly=KellyConfig(
            prior_alpha=unit(0.1, 20.0),
            prior_beta=unit(0.1, 20.0),
            prior_mean_return=unit(-0.1, 0.2),
            prior_sd_return=unit(0.0, 0.1),
            signal_weight=unit(),
            min_win_probability=unit(0.0, 0.6),
            min_edge=unit(0.0, 0.05),
            kelly_share=unit(0.01, 1.0),
            max_fraction=unit(0.01, 0.5),
            horizon_hours=unit(1.0, 2_000.0),
            risk_weight=unit(),
        ),
        conformal=ConformalConfig(
            coverage=min(unit(0.05, 0.99), enough / (enough + 1)),
            window=enough + draw(st.integers(0, 200)),
            min_residuals=enough,
        ),
        sentiment=SentimentConfig(unit(0.0, 0.99), low, low + unit(0.0, 0.4)),
        regime=RegimeConfig(
            *(draw(st.sampled_from([0.0, 0.2, 0.6, 1.0, 1.2, 2.0])) for _ in Regime),
            confirmations=draw(st.integers(1, 8)),
        ),
        cascade=CascadeConfig(
            **{name: sign() for name in signs},
            saturation=unit(1.01, 5.0),
            reduce_50_above=min(levels),
            reduce_75_above=min(sorted(levels)[1], 0.99),
            exit_above=min(max(levels), 0.99),
            reduce_50_factor=factor,
            reduce_75_factor=factor * unit(),
        ),
    )


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 500),
    seed=st.integers(0, 2**32 - 1),
    missing=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    odd=st.sampled_from([0.0, 0.01, 0.3]),
    spell=st.sampled_from([1, 4, 40]),
    jump=st.sampled_from([0.0, 0.005, 0.05, 8.0]),
    interval=st.sampled_from([900.0, 3_600.0, 14_400.0, 50_000.0, 86_400.0]),
    cost=st.sampled_from([0.0, 0.003, 0.9]),
    config=st.one_of(st.just(ChainConfig()), st.just(ChainConfig(allow_shorts=False)), configs()),
)
def test_the_loop_over_the_chain_is_the_oracle(
    n: int,
    seed: int,
    missing: float,
    odd: float,
    spell: int,
    jump: float,
    interval: float,
    cost: float,
    config: ChainConfig,
) -> None:
    frame = wild_frame(n, seed, missing=missing, odd=odd, spell=spell, jump=jump)
    expected = replay(frame, "B", interval, config, round_trip_cost=cost)
    assert_equal(replay_at_once(frame, interval, config, round_trip_cost=cost), expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), start=st.integers(0, 400), window=st.integers(20, 300), odd=st.booleans())
def test_rows_from_anywhere_on_and_signals_assessed_in_pieces(seed: int, start: int, window: int, odd: bool) -> None:
    frame = wild_frame(401, seed, missing=0.3, odd=0.02 if odd else 0.0, spell=6, jump=0.02)
    config = ChainConfig(conformal=ConformalConfig(window=window))
    whole = replay(frame, "B", HOUR, config)
    opens, closes = frame["open"].to_numpy(), frame["close"].to_numpy()
    parts = join([assess(frame.iloc[:start], config), assess(frame.iloc[start:], config)])
    tail = SignalHistory(**{f.name: getattr(whole, f.name)[start:] for f in dataclasses.fields(SignalHistory)})
    assert_equal(size(parts, opens, closes, HOUR, config, start=start), tail)


@pytest.mark.parametrize("shorts", [True, False])
@pytest.mark.parametrize("file_signals", [True, False])
def test_years_of_a_market_that_looks_real(shorts: bool, file_signals: bool) -> None:
    frame = simulate(MarketSpec(bars=6_000, seed=5))
    if not file_signals:
        frame = frame[["timestamp", "open", "high", "low", "close", "volume"]]
    signals, config = with_signals(frame).frame, ChainConfig(allow_shorts=shorts)
    got = replay_at_once(signals, HOUR, config)
    assert_equal(got, replay(signals, "SYNTH-USD", HOUR, config))
    assert (got.base_fraction > 0.0).mean() > 0.01


def test_an_overflowing_price_teaches_nothing_in_either_way() -> None:
    frame = wild_frame(200, 1, missing=0.0, odd=0.0, spell=3, jump=0.01)
    frame.loc[60:, ["open", "close"]] = 1e-200
    frame.loc[120:, ["open", "close"]] = 1e200
    assert_equal(replay_at_once(frame, HOUR), replay(frame, "B", HOUR))


def test_what_cannot_be_replayed_is_refused_in_the_same_words() -> None:
    frame = wild_frame(50, 1, missing=0.0, odd=0.0, spell=3, jump=0.01)
    cases: list[tuple[pd.DataFrame, float, float]] = [
        (frame, 0.0, 0.0),
        (frame, HOUR, 1.0),
        (frame.assign(open=0.0), HOUR, 0.0),
        (frame.assign(signal_action="long"), HOUR, 0.0),
        (frame.drop(columns="regime"), HOUR, 0.0),
    ]
    for bad, interval, cost in cases:
        with pytest.raises((ConfigurationError, DataError)) as slow:
            replay(bad, "B", interval, round_trip_cost=cost)
        with pytest.raises(type(slow.value)) as fast:
            replay_at_once(bad, interval, round_trip_cost=cost)
        assert str(fast.value) == str(slow.value)
