"""The ledger: equal to a plain slow one after any sequence of exposures, and exact in every identity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.errors import ConfigurationError
from layer3.ledger import Costs, Ledger
from tests.layer3.slow_ledger import SlowLedger

TARGETS = st.one_of(st.floats(-0.5, 0.5), st.sampled_from([-0.5, 0.0, 0.25, 0.5]))
#: An hour may halve the price or raise it by 60 %: at half exposure equity stays positive.
MOVES = st.floats(0.5, 1.6)
PATHS = st.lists(st.tuples(TARGETS, MOVES), min_size=1, max_size=25)
COSTS = st.builds(Costs, commission=st.floats(0.0, 0.05), slippage=st.floats(0.0, 0.05))
PRICES = st.floats(1e-4, 1e6)


def close(value: object, expected: object, tolerance: float = 1e-9, floor: float = 0.0) -> bool:
    return math.isclose(float(value), float(expected), rel_tol=tolerance, abs_tol=floor)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(path=PATHS, costs=COSTS, price=PRICES)
def test_any_sequence_of_exposures_equals_the_slow_ledger(
    path: list[tuple[float, float]], costs: Costs, price: float
) -> None:
    ledger, slow = Ledger(1, 100_000.0, costs), SlowLedger(100_000.0, costs.commission, costs.slippage)
    paid = traded = 0.0
    returns: list[float] = []
    for target, move in path:
        fill = ledger.rebalance(np.array([target]), price)
        slow.rebalance(target, price)
        paid += float(fill.cost[0])
        traded += float(fill.notional[0])
        returns += fill.trade_return[fill.closed].tolist()
        assert close(ledger.equity(price)[0], slow.equity(price))
        price *= move
        assert close(ledger.equity(price)[0], slow.equity(price))
        assert close(ledger.exposure(price)[0], slow.exposure(price), floor=1e-11)
        assert close(ledger.unrealised(price)[0], slow.unrealised(price), floor=1e-9)
        assert float(ledger.win_rate[0]) == slow.win_rate
    assert close(paid, slow.paid, floor=1e-4)
    assert close(traded, slow.traded, floor=1e-4)
    np.testing.assert_allclose(returns, [float(r) for r in slow.closed], rtol=1e-9, atol=1e-9)


@given(path=PATHS, costs=COSTS)
def test_the_target_is_met_exactly_after_costs_and_the_cap_holds(path: list[tuple[float, float]], costs: Costs) -> None:
    ledger, price = Ledger(1, 1_000.0, costs), 100.0
    for target, move in path:
        ledger.rebalance(np.array([target]), price)
        held = float(ledger.exposure(price)[0])
        assert abs(held - target) <= 3e-12
        assert abs(held) <= 0.5 + 1e-12
        price *= move


@given(path=PATHS, costs=COSTS, again=st.integers(1, 3))
def test_an_unchanged_target_trades_nothing(path: list[tuple[float, float]], costs: Costs, again: int) -> None:
    ledger, price = Ledger(1, 1_000.0, costs), 100.0
    for target, move in path:
        ledger.rebalance(np.array([target]), price)
        cash, units = ledger.cash.copy(), ledger.units.copy()
        for _ in range(again):
            fill = ledger.rebalance(np.array([target]), price)
            assert (fill.notional[0], fill.cost[0], bool(fill.closed[0])) == (0.0, 0.0, False)
        assert ledger.cash == cash
        assert ledger.units == units
        price *= move


@given(path=PATHS, costs=COSTS)
def test_the_change_of_equity_is_the_positions_gain_less_costs(path: list[tuple[float, float]], costs: Costs) -> None:
    ledger, price = Ledger(1, 1_000.0, costs), 100.0
    for target, move in path:
        before = ledger.equity(price)[0]
        fill = ledger.rebalance(np.array([target]), price)
        assert close(before - ledger.equity(price)[0], fill.cost[0], 1e-6, floor=1e-9)
        rate = costs.slippage + costs.commission * (1 + costs.slippage)
        assert 0.0 <= fill.cost[0] <= rate * fill.notional[0] * (1 + 1e-12)
        moved = ledger.units[0] * price * (move - 1.0)
        assert close(ledger.equity(price * move)[0], ledger.equity(price)[0] + moved)
        price *= move


@given(path=PATHS, costs=COSTS)
def test_closed_trades_compound_to_equity(path: list[tuple[float, float]], costs: Costs) -> None:
    ledger, price, growth = Ledger(1, 1_000.0, costs), 100.0, 1.0
    for target, move in [*path, (0.0, 1.0)]:
        fill = ledger.rebalance(np.array([target]), price)
        growth *= 1.0 + float(fill.trade_return[0])
        price *= move
    assert ledger.units[0] == 0.0
    assert close(ledger.equity(price)[0], 1_000.0 * growth)


def test_many_accounts_are_many_single_accounts() -> None:
    rng = np.random.default_rng(5)
    n, steps, costs = 7, 200, Costs()
    targets = np.where(rng.random((steps, n)) < 0.2, 0.0, rng.uniform(-0.5, 0.5, (steps, n)))
    prices = 100.0 * np.exp(np.cumsum(0.02 * rng.standard_normal((steps, n)), axis=0))
    together = Ledger(n, 1e5, costs)
    alone = [Ledger(1, 1e5, costs) for _ in range(n)]
    for target, price in zip(targets, prices, strict=True):
        fill = together.rebalance(target, price)
        for i, one in enumerate(alone):
            single = one.rebalance(target[i : i + 1], price[i : i + 1])
            for name in ("notional", "cost", "closed", "trade_return"):
                assert getattr(fill, name)[i] == getattr(single, name)[0]
            for name in ("cash", "units", "entry", "win_rate"):
                assert getattr(together, name)[i] == getattr(one, name)[0]


def test_a_flip_is_a_close_and_an_open() -> None:
    ledger = Ledger(1, 1_000.0, Costs(commission=0.01, slippage=0.0))
    ledger.rebalance(0.5, 100.0)
    fill = ledger.rebalance(-0.5, 110.0)
    assert fill.closed.tolist() == [True]
    # Bought 500 / 1.005 at 100, worth 10 % more; both ways pay 1 %.
    notional = 500.0 / 1.005
    after_close = 1_000.0 - 0.01 * notional + 0.1 * notional - 0.01 * 1.1 * notional
    assert fill.trade_return[0] == pytest.approx(after_close / 1_000.0 - 1.0, rel=1e-12)
    assert ledger.entry[0] == 110.0
    assert ledger.exposure(110.0)[0] == pytest.approx(-0.5, rel=1e-12)
    back = ledger.rebalance(0.0, 110.0)
    equity = ledger.equity(110.0)[0]
    assert back.trade_return[0] == pytest.approx(equity / after_close - 1.0, rel=1e-12)
    assert back.trade_return[0] < 0.0


def test_a_smaller_position_of_the_same_side_closes_no_trade_and_keeps_its_entry() -> None:
    ledger = Ledger(1, 1_000.0, Costs(0.0, 0.0))
    ledger.rebalance(0.4, 100.0)
    ledger.rebalance(0.5, 110.0)  # 440 of 1,040 are held: another 80 at 110
    blended = ledger.entry[0]
    assert blended == pytest.approx(480.0 / (4.0 + 80.0 / 110.0), rel=1e-12)
    fill = ledger.rebalance(0.1, 130.0)
    assert not fill.closed[0]
    assert ledger.entry[0] == blended
    assert ledger.unrealised(130.0)[0] == pytest.approx(130.0 / blended - 1.0, rel=1e-12)


@pytest.mark.parametrize(("side", "gain"), [(1, 0.1), (-1, -0.1)])
def test_the_unrealised_gain_counts_from_the_fill(side: int, gain: float) -> None:
    ledger = Ledger(1, 1_000.0, Costs(commission=0.001, slippage=0.01))
    assert ledger.unrealised(100.0)[0] == 0.0
    ledger.rebalance(side * 0.3, 100.0)
    assert ledger.entry[0] == pytest.approx(100.0 * (1 + side * 0.01))
    assert ledger.unrealised(110.0 * (1 + side * 0.01))[0] == pytest.approx(gain)


def test_the_win_rate_is_of_the_last_ten_closed_trades() -> None:
    ledger, outcomes = Ledger(1, 1e6, Costs(0.0, 0.0)), [True] * 3 + [False] * 4 + [True] * 9
    assert ledger.win_rate[0] == 0.5
    for count, won in enumerate(outcomes, start=1):
        ledger.rebalance(0.1, 100.0)
        ledger.rebalance(0.0, 101.0 if won else 99.0)
        recent = outcomes[max(0, count - 10) : count]
        assert ledger.win_rate[0] == sum(recent) / len(recent)


def test_a_trade_that_gains_less_than_its_costs_is_no_win() -> None:
    ledger = Ledger(1, 1e6, Costs())
    ledger.rebalance(0.1, 100.0)
    ledger.rebalance(0.0, 100.1)
    assert ledger.win_rate[0] == 0.0


def test_a_target_of_dust_is_no_position() -> None:
    ledger = Ledger(2, 1_000.0, Costs())
    ledger.rebalance(np.array([0.3, -0.3]), 77.7)
    fill = ledger.rebalance(np.array([1e-300, -5e-324]), 81.3)
    assert fill.closed.all()
    assert (ledger.units == 0.0).all()


def test_an_account_that_lost_everything_can_only_be_closed() -> None:
    ledger = Ledger(1, 1_000.0, Costs(0.0, 0.0))
    ledger.rebalance(-0.5, 100.0)
    assert ledger.equity(400.0)[0] < 0.0
    fill = ledger.rebalance(0.5, 400.0)
    assert fill.closed[0]
    assert ledger.units[0] == 0.0
    assert ledger.rebalance(0.5, 400.0).notional[0] == 0.0


def test_a_reset_forgets_one_account_only() -> None:
    ledger = Ledger(2, 1_000.0, Costs())
    ledger.rebalance(0.5, 100.0)
    ledger.rebalance(0.0, 120.0)
    ledger.rebalance(0.2, 120.0)
    kept = (ledger.cash[1], ledger.units[1], ledger.entry[1])
    ledger.reset(np.array([True, False]))
    assert (ledger.cash[0], ledger.units[0], ledger.entry[0], ledger.win_rate[0]) == (1_000.0, 0.0, 0.0, 0.5)
    assert (ledger.cash[1], ledger.units[1], ledger.entry[1]) == kept
    assert ledger.win_rate[1] == 1.0
    ledger.rebalance(np.array([0.5, 0.0]), 100.0)
    ledger.rebalance(np.array([0.0, 0.0]), 90.0)
    assert ledger.win_rate[0] == 0.0


@pytest.mark.parametrize("name", ["commission", "slippage"])
@pytest.mark.parametrize("value", [-1e-9, 0.1, 1.0, math.nan, math.inf])
def test_costs_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        Costs(**{name: value})


@pytest.mark.parametrize("capital", [0.0, -1.0, math.nan])
def test_capital_must_be_positive(capital: float) -> None:
    with pytest.raises(ConfigurationError, match="capital is "):
        Ledger(1, capital, Costs())
