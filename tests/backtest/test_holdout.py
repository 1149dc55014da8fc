"""The walk over held-out bars against the environment's formula and the backtest's engine."""

from __future__ import annotations

import numpy as np
import pytest

from layer3.agent.environment import EnvironmentConfig
from layer3.backtest.engine import run
from layer3.backtest.holdout import REFERENCES, Decide, decider, walk
from layer3.backtest.metrics import summarise
from layer3.errors import EvaluationError
from tests.agent.worlds import make_bars, make_member, trend

WINDOW = range(40, 700)


def network(seed: int = 1) -> Decide:
    """A random policy."""
    return decider(make_member(seed))


def test_money_is_the_engines() -> None:
    """Another loop over the same ledger: what the gate would measure."""
    bars = make_bars(800)
    networks = [network(seed) for seed in (1, 2)]
    figures = walk(bars, WINDOW, [*networks, *REFERENCES.values()])
    strategies = {
        "a": lambda state, _: networks[0](state),
        "b": lambda state, _: networks[1](state),
        "kelly": lambda *_: 1.0,
        "flat": lambda *_: 0.0,
    }
    for got, track in zip(figures, run(bars, WINDOW, strategies).values(), strict=True):
        expected = summarise(track, bars.interval_seconds)
        for name in ("sharpe", "total_return", "max_drawdown"):
            assert (got[name] is None) == (expected[name] is None)
            assert (got[name] or 0.0) == pytest.approx(expected[name] or 0.0, rel=1e-9, abs=1e-12), name


def test_the_reward_is_the_formula() -> None:
    bars, config = make_bars(800, seed=3), EnvironmentConfig(risk_aversion=7.0, reward_window=4)
    (got,) = walk(bars, WINDOW, [lambda _: 1.5], config)
    track = run(bars, WINDOW, {"x": lambda *_: 1.5}, config)["x"]
    growth = np.log(track.equity[1:] / track.equity[:-1])
    at = np.arange(WINDOW.start, WINDOW.stop - 2)
    baseline = bars.direction[at] * bars.base_fraction[at] * (bars.open[at + 2] / bars.open[at + 1] - 1.0)
    squares = np.concatenate((np.zeros(3), growth**2))
    risk = np.array([squares[t : t + 4].sum() / 4 for t in range(len(growth))])
    assert got["reward"] == pytest.approx(np.mean(100.0 * (growth - baseline - 3.5 * risk)), rel=1e-9)


def test_who_else_walks_changes_nothing() -> None:
    bars = make_bars(800)
    together = walk(bars, WINDOW, [network(seed) for seed in (1, 2, 3)])
    alone = [walk(bars, WINDOW, [network(seed)])[0] for seed in (1, 2, 3)]
    assert together == alone
    assert len({figures["reward"] for figures in alone}) == 3


def test_nothing_outside_the_window_is_seen() -> None:
    bars = make_bars(800)
    far = {name: getattr(bars, name).copy() for name in ("open", "close", "base_fraction", "tier")}
    for values in far.values():
        values[: WINDOW.start] = values[0]
        values[WINDOW.stop :] = values[0]
    policy = network()
    other = make_bars(800, **far)
    assert walk(other, WINDOW, [policy]) == walk(bars, WINDOW, [policy])


def test_flat_earns_nothing_and_has_no_sharpe() -> None:
    bars = trend(100.0 * 1.001 ** np.arange(800))
    kelly, flat = walk(bars, WINDOW, list(REFERENCES.values()))
    assert flat == {"reward": pytest.approx(-0.01, rel=1e-6), "sharpe": None, "total_return": 0.0, "max_drawdown": 0.0}
    assert kelly["total_return"] > 0.05


def test_a_window_without_a_decision_is_refused() -> None:
    with pytest.raises(EvaluationError, match="2 bars hold no decision"):
        walk(make_bars(800), range(2), [lambda _: 1.0])


def test_a_ruined_account_is_not_compared() -> None:
    prices = np.full(800, 100.0)
    prices[500:] = 1_000.0
    bars = trend(prices, direction=np.full(800, -1, dtype=np.int8), base_fraction=np.full(800, 0.5))
    with pytest.raises(EvaluationError, match="account 1 of 2 lost all its equity at bar 498"):
        walk(bars, WINDOW, [lambda _: 0.0, lambda _: 1.0])


def test_a_window_in_which_the_chain_holds_nothing_is_refused() -> None:
    idle = make_bars(800, base_fraction=np.where(np.arange(800) < WINDOW.start, 0.3, 0.0))
    with pytest.raises(EvaluationError, match="takes no position in bars 40 to 700"):
        walk(idle, WINDOW, [lambda _: 1.0])
