from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from layer3.errors import DataError
from layer3.live.inputs import Inputs, check, number_or_nan, plain_json, position_worth, shown
from layer3.types import CascadeIndicators, ClosedTrade
from tests.layer3.test_engine_properties import Nasty, anything, broken_feeds, broken_signals
from tests.live.desk import CALM, NOON, signal_of


def inputs_of(**changes: Any) -> Inputs:
    return Inputs(NOON, signal_of(), CALM, 100.0, 0.0, None, (), None)._replace(**changes)


def test_good_inputs_come_out_as_they_are() -> None:
    inputs = inputs_of(entry_price=90.0, current_position_usd=-5.0, price_timestamp_ns=NOON)
    got = check(inputs, 10, 1)
    assert got.signal is inputs.signal
    assert got.cascade is inputs.cascade
    assert (got.price, got.position_usd, got.entry_price, got.trades, got.price_ns) == (100.0, -5.0, 90.0, (), NOON)


def test_numbers_become_plain_floats() -> None:
    signal = signal_of(confidence=np.float32(0.5), risk_score=0, timestamp_ns=np.int64(NOON + 1))
    got = check(inputs_of(signal=signal, cascade=CascadeIndicators(0, np.float64(-0.1)), entry_price=0), 10, 1)
    assert (got.signal.confidence, got.signal.risk_score, got.signal.timestamp_ns) == (0.5, 0.0, NOON + 1)
    kinds = {type(x) for x in (got.signal.confidence, got.signal.risk_score, *[got.cascade.funding_rate])}
    assert kinds == {float}
    assert type(got.signal.timestamp_ns) is int
    assert got.entry_price is None  # 0 says that there is none


def test_the_ways_to_tell_a_trade() -> None:
    given_trades = [
        ClosedTrade(0.1, 5.0, NOON, "a"),
        {"trade_return": 0.1, "pnl_usd": 5.0, "closed_at_ns": NOON, "trade_id": "a", "fee": 3},
        {"return": 0.1, "pnl": 5, "timestamp_ns": NOON, "id": "a"},
        {"realized_return": np.float64(0.1), "realized_pnl": 5.0, "timestamp_ns": NOON, "id": "a"},
    ]
    assert set(check(inputs_of(recent_trades=given_trades), 10, 1).trades) == {ClosedTrade(0.1, 5.0, NOON, "a")}
    plain = check(inputs_of(recent_trades=(0.1, {"pnl": -1.0, "id": 7})), 10, 1).trades
    assert plain == (ClosedTrade(0.1), ClosedTrade(None, -1.0, None, "7"))
    assert check(inputs_of(recent_trades=None), 10, 1).trades == ()


def test_how_many_feeds_are_needed() -> None:
    some = CascadeIndicators(0.0, None, 1.0)
    assert check(inputs_of(cascade=some), 10, 2).cascade is some
    with pytest.raises(DataError, match="2 of 6 cascade feeds are there, at least 3 are needed"):
        check(inputs_of(cascade=some), 10, 3)
    assert check(inputs_of(cascade=CascadeIndicators()), 10, 0)


@pytest.mark.parametrize(
    ("usd", "quantity", "worth"),
    [(500.0, 0.0, 500.0), (0.0, 5.0, 500.0), (0, -5, -500.0), (700.0, 5.0, 700.0), (0.0, 0, 0.0)],
)
def test_a_position_in_dollars_or_units(usd: float, quantity: float, worth: float) -> None:
    assert position_worth(usd, quantity, 100.0) == worth


def test_what_is_shown_of_a_value() -> None:
    assert [shown(x) for x in (None, 1.5, "a" * 100, 10**400, [], True)] == [
        "None", "1.5", "'" + "a" * 56 + "...", "a whole number of 1329 bits", "of type list", "True",
    ]  # fmt: skip
    assert shown(Nasty()) == "of type Nasty"


def test_numbers_or_nan() -> None:
    assert (number_or_nan(1), number_or_nan(np.float32(0.5)), number_or_nan(None)) == (1.0, 0.5, None)
    assert all(math.isnan(number_or_nan(bad) or 0.0) for bad in ("1", Nasty(), True, 10**400))


def test_endless_and_vast_things_are_told_by_their_type() -> None:
    endless: list[Any] = []
    endless.append(endless)
    told = plain_json(inputs_of(recent_trades=endless, entry_price=[0] * 1_000_001))
    json.dumps(told, allow_nan=False)
    assert told["entry_price"] == "of type list"


@given(broken_signals | anything, broken_feeds | anything, anything, anything)
def test_whatever_it_is_it_can_be_told_as_json(signal: Any, cascade: Any, price: Any, trades: Any) -> None:
    told = plain_json(inputs_of(signal=signal, cascade=cascade, current_price=price, recent_trades=trades))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
