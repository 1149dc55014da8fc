"""The honest pipeline passes; every leak that is put into it on purpose is found, and named where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike, NDArray

from layer3 import contract
from layer3.agent import bars as pipeline
from layer3.agent.bars import Bars, prepare
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest import leak
from layer3.backtest.leak import find_leaks
from layer3.backtest.record import Leak
from layer3.errors import EvaluationError
from layer3.ledger import Costs
from layer3.market.features import MarketFeatures, market_features
from layer3.market.signals import CANONICAL_COLUMNS, Signals, with_signals
from layer3.market.simulator import MarketSpec, simulate
from layer3.sizing.config import ChainConfig
from layer3.sizing.history import SignalHistory
from tests.agent.worlds import make_tensors

WINDOW = range(1_200, 2_000)
CUTS = (1_400, 1_600, 1_800)
POLICY = Policy(make_tensors(), {})


@pytest.fixture(scope="module")
def candles() -> pd.DataFrame:
    return simulate(MarketSpec(bars=2_000))


@pytest.fixture(scope="module")
def plain(candles: pd.DataFrame) -> pd.DataFrame:
    """Without layer 2's columns: the baseline's signals."""
    return candles[["timestamp", "open", "high", "low", "close", "volume"]]


def found(candles: pd.DataFrame, bars: Bars | None = None, policy: Policy = POLICY, **options: Any) -> Leak:
    if bars is None:
        # Through the module, where a test may have put something else.
        bars, _ = pipeline.prepare(candles, "SYNTH-USD", 3_600)
    return find_leaks(candles, "SYNTH-USD", 3_600, None, bars, WINDOW, policy, **options)


def names(leaks: Leak) -> set[str]:
    return {sentence.rpartition(" at bar ")[0] for sentence in leaks.differs}


def test_the_honest_pipeline_passes(candles: pd.DataFrame, plain: pd.DataFrame) -> None:
    for frame in (candles, plain):
        leaks = found(frame)
        assert leaks.differs == ()
        assert leaks.cuts == CUTS
        states = ("market's part of the state", "state", "decision")
        columns = tuple(field.name for field in dataclasses.fields(Bars))
        assert leaks.compared == (*(f"signals' {name}" for name in CANONICAL_COLUMNS), *columns, *states)


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("cuts", [1, 7])
def test_it_passes_wherever_it_is_cut(cuts: int, seed: int) -> None:
    leaks = found(simulate(MarketSpec(bars=2_000, edge=0.0, seed=seed)), cuts=cuts)
    assert len(leaks.cuts) == cuts
    assert leaks.differs == ()


@pytest.mark.parametrize("minutes", [5, 15, 240, 1_440])
def test_it_passes_at_any_interval(plain: pd.DataFrame, minutes: int) -> None:
    times = pd.date_range("2020-01-01", periods=2_000, freq=f"{minutes}min", tz="UTC", unit="ns")
    frame = plain.assign(timestamp=times)
    bars, _ = prepare(frame, "SYNTH-USD", 60 * minutes)
    leaks = find_leaks(frame, "SYNTH-USD", 60 * minutes, None, bars, WINDOW, POLICY)
    assert bars.interval_seconds == 60 * minutes
    assert leaks.differs == ()


def test_an_ensemble_other_costs_and_another_chain_pass_too(candles: pd.DataFrame) -> None:
    chain = ChainConfig()
    chain = dataclasses.replace(chain, kelly=dataclasses.replace(chain.kelly, prior_mean_return=0.02))
    bars, _ = prepare(candles, "SYNTH-USD", 3_600, chain)
    policy = Policy(make_tensors(members=3), {})
    dear = EnvironmentConfig(costs=Costs(0.004, 0.002), capital=1_000.0)
    leaks = find_leaks(candles, "SYNTH-USD", 3_600, chain, bars, WINDOW, policy, environment=dear)
    assert leaks.differs == ()
    # Bars of another chain are not those that are judged.
    other = find_leaks(candles, "SYNTH-USD", 3_600, None, bars, WINDOW, policy, environment=dear)
    assert "base_fraction" in names(other)


def leaking(**made: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[..., MarketFeatures]:
    """Features, some of them made of the closes by functions that see all of them."""

    def features(close: ArrayLike, interval_seconds: int) -> MarketFeatures:
        prices = np.asarray(close, dtype=np.float64)
        return market_features(prices, interval_seconds)._replace(**{name: f(prices) for name, f in made.items()})

    return features


def centred(close: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = pd.Series(close).rolling(5, center=True, min_periods=1).mean().to_numpy()
    return np.asarray(close / mean - 1.0)


def standardised(close: NDArray[np.float64]) -> NDArray[np.float64]:
    returns = market_features(close, 3_600).return_1h
    return np.asarray((returns - returns.mean()) / returns.std() * 0.05)


def peeking(close: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.append(close[1:] / close[:-1] - 1.0, 0.0)


@pytest.mark.parametrize(
    ("column", "leak_of", "bar"),
    [
        ("return_4h", centred, 1_398),
        ("return_1h", standardised, 0),
        ("return_1h", peeking, 1_399),
        ("volatility", lambda close: np.full(len(close), close.std() / close.mean()), 0),
    ],
)
def test_a_feature_that_sees_the_future_is_named(
    plain: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, column: str, leak_of: Any, bar: int
) -> None:
    monkeypatch.setattr(pipeline, "market_features", leaking(**{column: leak_of}))
    leaks = found(plain)
    assert f"{column} at bar {bar:,}" in leaks.differs
    assert names(leaks) >= {column, "market's part of the state"}
    assert not names(leaks) & {"close", "base_fraction", "signals' regime"}
    if bar == 0:
        assert {"state at bar 1,200", "decision at bar 1,200"} <= set(leaks.differs)


def test_a_signal_that_peeks_one_bar_is_named(plain: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def peek(frame: pd.DataFrame) -> Signals:
        signals = with_signals(frame)
        ahead = frame["close"].shift(-1) > frame["close"]
        changed = signals.frame.assign(
            signal_action=np.where(ahead, "buy", "sell"), signal_confidence=frame["close"].shift(-1).rank(pct=True)
        )
        return Signals(changed.assign(signal_confidence=changed["signal_confidence"].fillna(0.5)), signals.source)

    for module in (pipeline, leak):
        monkeypatch.setattr(module, "with_signals", peek)
    assert {"signals' signal_action", "signals' signal_confidence", "confidence"} <= names(found(plain))
    # The signals that the bars were made of are enough.
    monkeypatch.setattr(leak, "with_signals", with_signals)
    assert "confidence" in names(found(plain))


def test_a_chain_that_sees_how_its_trades_end_is_named(candles: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.replay_at_once

    def clairvoyant(frame: pd.DataFrame, *arguments: Any) -> SignalHistory:
        history = honest(frame, *arguments)
        ahead = np.append(np.sign(np.diff(frame["close"].to_numpy())), 0.0)
        return dataclasses.replace(history, base_fraction=np.where(history.side * ahead > 0.0, 0.5, 0.01))

    monkeypatch.setattr(pipeline, "replay_at_once", clairvoyant)
    leaks = found(candles)
    assert names(leaks) == {"base_fraction"}
    assert leaks.differs[0] in {f"base_fraction at bar {cut - 1:,}" for cut in CUTS}


def test_a_state_that_is_scaled_by_the_whole_history_is_named(
    plain: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = contract.build_state

    def scaled(**columns: Any) -> NDArray[np.float32]:
        rank = pd.Series(np.asarray(columns["volatility"])).rank(pct=True).to_numpy()
        return honest(**{**columns, "volatility": 0.1 * rank})

    monkeypatch.setattr(contract, "build_state", scaled)
    leaks = found(plain)
    assert names(leaks) == {"market's part of the state", "state", "decision"}
    assert "state at bar 1,200" in leaks.differs


@pytest.mark.parametrize("column", [field.name for field in dataclasses.fields(Bars)])
def test_one_number_of_another_program_is_named(candles: pd.DataFrame, column: str) -> None:
    bars, _ = prepare(candles, "SYNTH-USD", 3_600)
    values = getattr(bars, column).copy()
    values[1_234] += 1 if values.dtype.kind == "i" else 1e-12 * max(abs(values[1_234]), 1.0)
    leaks = found(candles, dataclasses.replace(bars, **{column: values}))
    assert f"{column} at bar 1,234" in leaks.differs
    # What is computed from it may differ too, and nothing else.
    states = {"market's part of the state", "state", "decision"}
    assert names(leaks) <= {column, *states}
    late = getattr(bars, column).copy()
    late[1_900] += 1
    assert found(candles, dataclasses.replace(bars, **{column: late})).differs == (), "no cut is behind it"


def test_a_column_cut_short_ends_where_it_ends(candles: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(frame: pd.DataFrame) -> Signals:
        return Signals(with_signals(frame).frame.iloc[: len(frame) - (len(frame) < 2_000)], "short")

    monkeypatch.setattr(leak, "with_signals", short)
    assert f"signals' regime at bar {CUTS[0] - 1:,}" in found(candles).differs


def test_a_window_that_cannot_be_cut_is_refused(candles: pd.DataFrame) -> None:
    bars, _ = prepare(candles, "SYNTH-USD", 3_600)
    for window, cuts in ((range(100, 111), 3), (WINDOW, 0)):
        with pytest.raises(EvaluationError, match=f"{len(window)} bars cannot be cut at {cuts} places"):
            find_leaks(candles, "SYNTH-USD", 3_600, None, bars, window, POLICY, cuts=cuts)
