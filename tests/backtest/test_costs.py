"""Costs told apart against the slow ledger, and what is left when they change against walks of their own."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.costs import MULTIPLES, cost_evidence, fixed_exposure_return
from layer3.backtest.engine import Decide, run
from layer3.backtest.metrics import summarise
from layer3.errors import EvaluationError
from layer3.ledger import Costs
from tests.agent.worlds import make_bars, make_tensors, trend
from tests.layer3.slow_ledger import ZERO, SlowLedger

WINDOW = range(40, 340)


class SplitLedger(SlowLedger):
    """Tells what of each order went where."""

    def __init__(self, capital: float, commission: float, slippage: float) -> None:
        super().__init__(capital, commission, slippage)
        self.split = {"commission": ZERO, "slippage": ZERO, "funding": ZERO, "gross": ZERO}

    def _order(self, units: Decimal, price: Decimal) -> None:
        fill = price * (1 + self.slippage) if units > 0 else price * (1 - self.slippage)
        self.split["slippage"] += abs(units) * abs(fill - price)
        self.split["commission"] += abs(units) * fill * self.commission
        super()._order(units, price)

    def hold(self, now: float, later: float, rate: float) -> None:
        paid = self.units * Decimal(now) * Decimal(rate)
        self.cash -= paid
        self.split["funding"] += paid
        self.split["gross"] += self.units * (Decimal(later) - Decimal(now))


def funded(n: int = 400, seed: int = 1) -> Bars:
    return make_bars(n, seed, funding_rate=0.002 * np.random.default_rng(seed).standard_normal(n) + 0.001)


def policy(seed: int = 1) -> Decide:
    network = Policy(make_tensors(seed), {})
    return lambda state, _: float(network.act(state)[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_part_equals_the_slow_ledger(seed: int) -> None:
    bars, config = funded(seed=seed), EnvironmentConfig(costs=Costs(0.004, 0.002), capital=5_000.0)
    decide = policy(seed)
    track = run(bars, WINDOW, {"x": decide}, config)["x"]
    slow = SplitLedger(5_000.0, 0.004, 0.002)
    for t, bar in enumerate(range(WINDOW.start, WINDOW.stop - 2)):
        slow.rebalance(float(track.exposure[t]), bars.open[bar + 1])
        slow.hold(bars.open[bar + 1], bars.open[bar + 2], bars.funding_rate[bar + 1] / 8.0)
    costs = cost_evidence(bars, WINDOW, decide, track, config)
    for name, paid in slow.split.items():
        assert getattr(costs, name) == pytest.approx(float(paid / 5_000), rel=1e-8), name
        assert paid != 0
    assert costs.net == pytest.approx(float(slow.equity(bars.open[WINDOW.stop - 1]) / 5_000 - 1), rel=1e-8)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.02), st.floats(0.0, 0.02))
@settings(max_examples=20)
def test_what_was_earned_is_what_is_left_and_what_was_paid(seed: int, commission: float, slippage: float) -> None:
    bars, config = funded(60, seed), EnvironmentConfig(costs=Costs(commission, slippage))
    track = run(bars, range(60), {"x": policy()}, config)["x"]
    costs = cost_evidence(bars, range(60), policy(), track, config)
    assert costs.gross == pytest.approx(costs.net + costs.commission + costs.slippage + costs.funding, abs=1e-15)
    assert costs.net == track.equity[-1] / track.equity[0] - 1.0
    assert costs.commission + costs.slippage == pytest.approx(track.cost.sum() / track.equity[0], rel=1e-12)
    assert min(costs.commission, costs.slippage) >= -1e-15
    if commission == 0.0:
        assert costs.commission == pytest.approx(0.0, abs=1e-12)


def test_each_line_is_a_walk_under_those_costs() -> None:
    bars, decide = funded(), policy()
    track = run(bars, WINDOW, {"x": decide})["x"]
    lines = cost_evidence(bars, WINDOW, decide, track).lines
    assert [line.multiple for line in lines] == list(MULTIPLES) == [0.5, 1.0, 2.0, 4.0]
    for line in lines:
        dearer = dataclasses.replace(bars, funding_rate=line.multiple * bars.funding_rate)
        config = EnvironmentConfig(costs=Costs(0.001 * line.multiple, 0.0005 * line.multiple))
        alone = run(dearer, WINDOW, {"x": decide}, config)["x"]
        figures = summarise(alone, bars.interval_seconds)
        assert (line.sharpe, line.total_return) == (figures["sharpe"], figures["total_return"])
        if line.multiple != 1.0:
            assert not np.array_equal(alone.multiplier, track.multiplier), "the policy sees its account"
    assert lines[0].total_return > lines[1].total_return > lines[2].total_return > lines[3].total_return


def test_lines_go_beyond_what_a_single_account_may_be_charged() -> None:
    bars, config = make_bars(100), EnvironmentConfig(costs=Costs(0.09, 0.05))
    track = run(bars, range(100), {"x": policy()}, config)["x"]
    lines = cost_evidence(bars, range(100), policy(), track, config).lines
    assert lines[3].multiple == 4.0
    assert lines[3].total_return is not None
    assert lines[3].total_return < lines[1].total_return


@pytest.mark.parametrize("multiple", [0.0, 0.5, 1.0, 3.0])
def test_fixed_exposures_come_to_what_the_ledger_makes_of_them(multiple: float) -> None:
    bars, config = funded(seed=5), EnvironmentConfig(costs=Costs(0.004, 0.002))
    exposure = run(bars, WINDOW, {"x": policy()}, config)["x"].exposure
    base = np.abs(exposure)
    fixed = dataclasses.replace(
        bars,
        base_fraction=np.concatenate((np.zeros(40), base, np.zeros(62))),
        direction=np.concatenate((np.zeros(40), np.sign(exposure), np.zeros(62))).astype(np.int8),
        funding_rate=multiple * bars.funding_rate,
    )
    dear = EnvironmentConfig(costs=Costs(0.004 * multiple, 0.002 * multiple))
    track = run(fixed, WINDOW, {"x": lambda *_: 1.0}, dear)["x"]
    np.testing.assert_array_equal(track.exposure, exposure)
    expected = track.equity[-1] / track.equity[0] - 1.0
    assert fixed_exposure_return(bars, WINDOW, exposure, config.costs, multiple) == pytest.approx(expected, rel=1e-9)


def test_at_break_even_nothing_is_left() -> None:
    rng = np.random.default_rng(3)
    steps = 0.004 * np.sign(np.sin(np.arange(400) / 5.0)) + 0.002 * rng.standard_normal(400)
    side = np.sign(np.sin((np.arange(400) + 1.5) / 5.0)).astype(np.int8)
    bars = trend(100.0 * np.exp(np.cumsum(steps)), direction=side, funding_rate=np.full(400, 0.0005))
    track = run(bars, WINDOW, {"x": lambda *_: 1.0})["x"]
    costs = cost_evidence(bars, WINDOW, lambda *_: 1.0, track)
    assert costs.break_even is not None
    assert costs.break_even > 2.0
    dearer = dataclasses.replace(bars, funding_rate=costs.break_even * bars.funding_rate)
    config = EnvironmentConfig(costs=Costs(0.001 * costs.break_even, 0.0005 * costs.break_even))
    left = run(dearer, WINDOW, {"x": lambda *_: 1.0}, config)["x"]
    assert left.equity[-1] / left.equity[0] - 1.0 == pytest.approx(0.0, abs=1e-12)


def test_no_break_even_where_nothing_was_gained_or_costs_do_not_bite() -> None:
    falling = trend(100.0 * 0.999 ** np.arange(400))
    rising = trend(100.0 * 1.002 ** np.arange(400))
    for bars in (falling, rising, make_bars(400, direction=np.zeros(400, dtype=np.int8))):
        track = run(bars, WINDOW, {"x": lambda *_: 1.0})["x"]
        free = EnvironmentConfig(costs=Costs(0.0, 0.0))
        assert cost_evidence(bars, WINDOW, lambda *_: 1.0, track, free).break_even is None


def test_a_lost_account_is_told_without_a_ratio() -> None:
    prices = np.full(400, 100.0)
    prices[200:] = 1_000.0
    bars = trend(prices, direction=np.full(400, -1, dtype=np.int8), base_fraction=np.full(400, 0.5))
    track = run(bars, WINDOW, {"x": lambda *_: 1.0})["x"]
    costs = cost_evidence(bars, WINDOW, lambda *_: 1.0, track)
    assert costs.net < -1.0
    assert costs.break_even is None
    assert [line.sharpe for line in costs.lines] == [None] * 4
    assert all(line.total_return is not None and line.total_return < -1.0 for line in costs.lines)
    assert fixed_exposure_return(bars, WINDOW, track.exposure, Costs()) == -1.0


def test_a_multiple_at_which_a_sale_brings_nothing_leaves_nothing() -> None:
    bars = make_bars(60)
    exposure = run(bars, range(60), {"x": lambda *_: 1.0})["x"].exposure
    assert fixed_exposure_return(bars, range(60), exposure, Costs(0.09, 0.09), 100.0) == -1.0


@pytest.mark.parametrize("column", ["equity", "turnover", "funding", "exposure"])
def test_numbers_that_are_not_finite_are_refused(column: str) -> None:
    bars = make_bars(100)
    track = run(bars, range(100), {"x": policy()})["x"]
    values = getattr(track, column).copy()
    values[-1] = np.nan
    with pytest.raises(EvaluationError, match=rf"the policy's {column} is nan at decision \d+: check the data"):
        cost_evidence(bars, range(100), policy(), dataclasses.replace(track, **{column: values}))


def test_a_policy_that_answers_nonsense_under_other_costs_is_named() -> None:
    bars = make_bars(100)
    track = run(bars, range(100), {"x": policy()})["x"]
    with pytest.raises(EvaluationError, match=r"at 0.5 times the costs .* at bar 7"):
        cost_evidence(bars, range(100), lambda _, t: np.nan if t == 7 else 1.0, track)
