from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.live.prices import PriceBuffer
from layer3.market.features import market_features

SECOND = 10**9


@pytest.mark.parametrize("bar_seconds", [60, 900, 3_600, 14_400, 86_400])
def test_on_regular_bars_it_is_what_training_sees(bar_seconds: int) -> None:
    rng = np.random.default_rng(bar_seconds)
    n = 48 * 3_600 // bar_seconds + 40
    closes = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, n)))
    expected = market_features(closes, bar_seconds)
    buffer = PriceBuffer(bar_seconds)
    for t, close in enumerate(closes.tolist()):
        buffer.add(t * bar_seconds * SECOND + 5, close * 1.01)  # earlier within the bar
        buffer.add((t + 1) * bar_seconds * SECOND - 1, close)
        got = buffer.features(close)
        assert got.return_1h == pytest.approx(expected.return_1h[t], rel=1e-12, abs=1e-15)
        assert got.return_4h == pytest.approx(expected.return_4h[t], rel=1e-12, abs=1e-15)
        if t < 2:
            assert got.volatility is None
        else:
            assert got.volatility == pytest.approx(expected.volatility[t], rel=1e-9)
    assert len(buffer.to_json()["bars"]) <= max(n - 39, 6)


def test_a_missing_bar_is_the_one_before_it() -> None:
    buffer = PriceBuffer(3_600)
    for hour, price in ((0, 100.0), (1, 110.0), (5, 121.0)):
        buffer.add(hour * 3_600 * SECOND, price)
    got = buffer.features(121.0)
    assert got.return_1h == pytest.approx(0.1)  # from the price of hour 1, the last known at hour 4
    assert got.return_4h == pytest.approx(0.1)
    change = math.log(1.1)
    assert got.volatility == pytest.approx(np.std([change, change / 2.0], ddof=1) * math.sqrt(24.0))


def test_a_bar_that_is_past_teaches_nothing() -> None:
    buffer = PriceBuffer(3_600)
    buffer.add(7_200 * SECOND, 100.0)
    before = buffer.to_json()
    buffer.add(3_600 * SECOND, 50.0)
    assert buffer.to_json() == before


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(1.0, 1e6)), min_size=1, max_size=80), st.data())
def test_it_is_bounded_finite_and_survives_a_restart(ticks: list[tuple[int, float]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ticks)))
    whole, again = PriceBuffer(900), PriceBuffer(900)
    for i, (bar, price) in enumerate(ticks):
        if i == cut:
            again = PriceBuffer.restored(900, json.loads(json.dumps(again.to_json())))
        for buffer in (whole, again):
            buffer.add(bar * 900 * SECOND, price)
        got = whole.features(price)
        assert got == again.features(price)
        assert all(value is None or math.isfinite(value) for value in got)
        bars = whole.to_json()["bars"]
        assert len(bars) <= 194
        assert bars[-1] - bars[1 if len(bars) > 1 else 0] <= 192


def test_what_cannot_be_restored() -> None:
    good = {"bar_seconds": 60, "bars": [1, 2], "prices": [1.0, 2.0]}
    assert PriceBuffer.restored(60, good).to_json() == good
    assert PriceBuffer.restored(3_600, good).to_json()["bars"] == []
    for bad in ({"bars": [2, 1]}, {"prices": [1.0]}, {"prices": [0.0, 1.0]}, {"prices": [math.nan, 1.0]}):
        with pytest.raises(ValueError, match="must rise"):
            PriceBuffer.restored(60, good | bad)
