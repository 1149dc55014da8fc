from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.live.inputs import Inputs, plain_json, read_back
from layer3.live.messages import MessageError, arguments, decoded
from layer3.types import Action, CascadeIndicators, ClosedTrade, Regime, TacticalSignal

SIGNAL = {
    "strategy_id": "momentum", "symbol": "BTC-USDT", "action": "buy", "confidence": 0.8, "risk_score": 0.2,
    "regime": "trending_up", "timestamp_ns": 1_767_258_000_000_000_000,
}  # fmt: skip
MESSAGE = {"signal": SIGNAL, "current_price": 87_000.0}


def read(document: object) -> dict[str, Any]:
    return arguments(decoded(json.dumps(document).encode()))


def test_a_message_becomes_the_engines_arguments() -> None:
    whole = MESSAGE | {"cascade": {"funding_rate": 0.0004}, "recent_trades": [{"trade_return": 0.01}, -0.02]}
    found = read(whole | {"current_position_usd": 5.0, "entry_price": None, "price_timestamp_ns": 1})
    assert found == {
        "signal": TacticalSignal(**(SIGNAL | {"action": Action.BUY, "regime": Regime.TRENDING_UP})),  # type: ignore[arg-type]
        "cascade": CascadeIndicators(funding_rate=0.0004),
        "current_price": 87_000.0,
        "current_position_usd": 5.0,
        "entry_price": None,
        "recent_trades": [{"trade_return": 0.01}, -0.02],
        "price_timestamp_ns": 1,
    }
    assert type(found["signal"].action) is Action
    assert read(MESSAGE)["cascade"] == CascadeIndicators()


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        (b"", "", "not JSON"),
        (b"{", "", "not JSON"),
        (b"\xff{}", "", "not UTF-8"),
        (b"[" * 100_000, "", "not JSON"),
        (b"9" * 5_000, "", "not JSON"),
        (b"[1]", "", r"it is \[1\], expected an object"),
        (b'{"a": {"b": 1, "b": 2}}', "b", "given twice"),
        (b'{"current_price": 1}', "signal", "missing"),
        (b'{"signal": {}}', "current_price", "missing"),
        (b'{"signal": {}, "current_price": 1}', "signal.strategy_id", "missing"),
        (b'{"signal": {}, "curent_price": 1}', "curent_price", "did you mean 'current_price'"),
    ],
)
def test_what_has_another_shape_is_named(text: bytes, field: str, says: str) -> None:
    with pytest.raises(MessageError, match=says) as caught:
        arguments(decoded(text))
    assert caught.value.field == field


def test_a_misspelt_field_is_no_default() -> None:
    with pytest.raises(MessageError, match="did you mean 'sentiment_score'") as caught:
        read(MESSAGE | {"signal": SIGNAL | {"sentiment_scor": 0.4}})
    assert caught.value.field == "signal.sentiment_scor"
    with pytest.raises(MessageError, match=r"cascade\.funding: no such field"):
        read(MESSAGE | {"cascade": {"funding": 0.1}})


@pytest.mark.parametrize("name", ["confidence", "action", "regime", "timestamp_ns", "symbol"])
@pytest.mark.parametrize("value", [None, "x", [], {}, True, 1e400, -5])
def test_a_value_that_cannot_be_used_is_left_for_the_engine_to_refuse(name: str, value: object) -> None:
    found = getattr(read(MESSAGE | {"signal": SIGNAL | {name: value}})["signal"], name)
    assert found == value
    assert type(found) is type(value)


numbers = st.none() | st.floats() | st.integers(-(10**20), 10**20)
texts = st.text(max_size=5) | st.sampled_from(
    ["nan", "-inf", "buy", "crisis", "of type dict", "text", "text nan", "text text ", "a whole number of 1329 bits"]
)
signals = st.builds(
    TacticalSignal,
    strategy_id=texts,
    symbol=texts,
    action=st.sampled_from(Action) | texts,
    confidence=st.floats() | texts,
    risk_score=st.floats(),
    regime=st.sampled_from(Regime) | texts,
    timestamp_ns=st.integers(0, 2**63),
    expected_return=numbers,
    predicted_volatility=numbers,
)
trades = st.builds(ClosedTrade, trade_return=st.floats(), pnl_usd=numbers, trade_id=st.none() | texts)


@given(signals, st.builds(CascadeIndicators, funding_rate=numbers), numbers, st.lists(trades | st.floats(), max_size=3))
def test_what_the_log_holds_comes_back(signal: Any, cascade: Any, price: Any, closed: list[Any]) -> None:
    inputs = Inputs(1, signal, cascade, price, 0.0, None, closed, None)
    written = json.loads(json.dumps(plain_json(inputs), allow_nan=False))
    del written["now_ns"]
    back = read_back(arguments(written))
    again = plain_json(Inputs(1, **{name: back[name] for name in Inputs._fields[1:]}))
    assert again == plain_json(inputs)
