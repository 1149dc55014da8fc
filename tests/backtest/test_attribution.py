"""What is attributed to chain and policy, against walks of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.attribution import attribute, without_chain
from layer3.backtest.engine import Decide, run
from layer3.backtest.metrics import summarise
from layer3.backtest.record import Attribution
from layer3.errors import EvaluationError
from layer3.ledger import Costs
from tests.agent.worlds import make_bars, make_tensors, planted, trend

WINDOW = range(30, 430)
FREE = EnvironmentConfig(costs=Costs(0.0, 0.0))


def policy() -> Decide:
    network = Policy(make_tensors(), {})
    return lambda state, _: float(network.act(state)[0])


def test_every_row_is_a_walk_of_its_own() -> None:
    bars, decide = make_bars(500), policy()
    track = run(bars, WINDOW, {"x": decide})["x"]
    rows = attribute(bars, WINDOW, decide, track, seed=4)
    names = ["policy", "constant 1", "constant mean", "random", "off"]
    assert [(row.chain, row.multiplier) for row in rows] == [(c, m) for c in ("on", "off") for m in names]
    at = slice(30, 428)
    held = bars.direction[at] != 0
    mean = float(track.multiplier[held].mean())
    draws = np.random.default_rng(4).uniform(0.0, 2.0, 398)
    strategies: dict[str, Decide] = {
        "policy": decide,
        "constant 1": lambda *_: 1.0,
        "constant mean": lambda *_: mean,
        "random": lambda _, t: float(draws[t]),
        "off": lambda *_: 0.0,
    }
    size = bars.base_fraction[at][held].mean()
    plain = dataclasses.replace(bars, direction=bars.signal_side, base_fraction=np.full(500, size))
    for row in rows:
        history = bars if row.chain == "on" else plain
        figures = summarise(run(history, WINDOW, {"x": strategies[row.multiplier]})["x"], 3_600)
        expected = (figures["sharpe"], figures["total_return"], figures["max_drawdown"])
        assert (row.sharpe, row.total_return, row.max_drawdown) == expected
    assert len({row.total_return for row in rows}) == 9, "all differ, but the two that are off"


def test_off_holds_nothing() -> None:
    bars = make_bars(500)
    track = run(bars, WINDOW, {"x": policy()})["x"]
    off = [row for row in attribute(bars, WINDOW, policy(), track) if row.multiplier == "off"]
    assert off == [Attribution(chain, "off", None, 0.0, 0.0) for chain in ("on", "off")]


def test_the_seed_moves_only_what_is_random() -> None:
    bars = make_bars(500)
    track = run(bars, WINDOW, {"x": policy()})["x"]
    one, same, other = (attribute(bars, WINDOW, policy(), track, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, True, True, False, True] * 2


def test_skill_of_the_policy_is_told_from_size() -> None:
    bars, best = planted(3_000)
    wise: Decide = lambda _, t: float(best[t])  # noqa: E731
    track = run(bars, range(3_000), {"x": wise}, FREE)["x"]
    rows = {(row.chain, row.multiplier): row for row in attribute(bars, range(3_000), wise, track, FREE)}
    own, constant = rows["on", "policy"].sharpe, rows["on", "constant mean"].sharpe
    assert own is not None
    assert constant is not None
    assert own > constant + 3.0
    # This chain always holds the same: taking it away takes nothing.
    assert rows["off", "policy"] == dataclasses.replace(rows["on", "policy"], chain="off")


def test_skill_of_the_chain_is_told_from_size() -> None:
    rng = np.random.default_rng(1)
    moves = 0.01 * rng.standard_normal(2_000)
    # It holds much where the price will rise from the next open on, and little where it will not.
    sizes = np.where(np.roll(moves, -2) > 0.0, 0.4, 0.05)
    bars = trend(100.0 * np.exp(np.cumsum(moves)), base_fraction=sizes)
    track = run(bars, range(2_000), {"x": lambda *_: 1.0}, FREE)["x"]
    rows = {(r.chain, r.multiplier): r for r in attribute(bars, range(2_000), lambda *_: 1.0, track, FREE)}
    with_it, without = rows["on", "constant 1"].sharpe, rows["off", "constant 1"].sharpe
    assert with_it is not None
    assert without is not None
    assert with_it > without + 10.0


def test_without_the_chain_the_signals_side_is_held_at_the_mean_size_of_the_window() -> None:
    side = np.resize([1, -1, 0], 100).astype(np.int8)
    longs = np.maximum(side, 0).astype(np.int8)
    sizes = np.linspace(0.1, 0.4, 100)
    sizes[:10] = sizes[48:] = 9.0
    bars = make_bars(100, signal_side=side, direction=longs, base_fraction=sizes)
    plain = without_chain(bars, range(10, 50))
    np.testing.assert_array_equal(plain.direction, side)
    assert set(plain.base_fraction) == {sizes[10:48][longs[10:48] == 1].mean()}
    np.testing.assert_array_equal(plain.close, bars.close)


def test_a_chain_that_holds_nothing_has_nothing_to_attribute() -> None:
    bars = make_bars(100, direction=np.zeros(100, dtype=np.int8))
    track = run(bars, range(100), {"x": policy()})["x"]
    with pytest.raises(EvaluationError, match="takes no position in bars 0 to 100"):
        attribute(bars, range(100), policy(), track)


def test_a_lost_account_has_no_ratio_and_a_price_that_is_no_number_is_refused() -> None:
    prices = np.full(100, 100.0)
    prices[50:] = 1_000.0
    short = np.full(100, -1, dtype=np.int8)
    bars = trend(prices, direction=short, signal_side=short, base_fraction=np.full(100, 0.5))
    track = run(bars, range(100), {"x": lambda *_: 1.0})["x"]
    rows = attribute(bars, range(100), lambda *_: 1.0, track)
    assert rows[1].sharpe is None
    assert rows[1].total_return < -1.0
    prices = prices.copy()
    prices[20] = np.nan
    with pytest.raises(EvaluationError, match="the equity of policy is not finite at bar 20"):
        attribute(dataclasses.replace(bars, open=prices), range(100), lambda *_: 1.0, track)
