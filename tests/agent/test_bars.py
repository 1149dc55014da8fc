"""Bars: causal in every column, and back from their file as they were, or refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layer3.agent.bars import Bars, load_bars, prepare, save_bars
from layer3.errors import DataError
from layer3.market import candles
from layer3.market.simulator import MarketSpec, simulate
from tests.agent.worlds import START, make_bars

NAMES = [field.name for field in fields(Bars)]


@pytest.fixture(scope="module", params=["with signals", "bare candles"])
def market(request: pytest.FixtureRequest) -> pd.DataFrame:
    frame = simulate(MarketSpec(bars=2_500, seed=5))
    if request.param == "bare candles":
        frame = frame[list(candles.CANDLE_COLUMNS)]
    return candles.check(frame, "simulated")[0]


@pytest.mark.parametrize("k", [30, 400, 1_111, 2_499])
def test_bars_of_a_truncated_history_are_the_truncated_bars(market: pd.DataFrame, k: int) -> None:
    whole, source = prepare(market, "SYNTH-USD", 3_600)
    part, same_source = prepare(market.iloc[:k], "SYNTH-USD", 3_600)
    assert source == same_source
    assert len(part) == k
    for name in NAMES:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:k], err_msg=name)


def test_a_changed_future_changes_no_past(market: pd.DataFrame) -> None:
    altered = market.copy()
    altered.loc[1_500:, ["open", "high", "low", "close"]] *= 3.0
    one, other = (prepare(frame, "SYNTH-USD", 3_600)[0] for frame in (market, altered))
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name)[:1_500], getattr(other, name)[:1_500], err_msg=name)
    assert not np.array_equal(one.close, other.close)


def test_bars_are_what_the_frame_says(market: pd.DataFrame) -> None:
    bars, _ = prepare(market, "SYNTH-USD", 3_600)
    assert bars.interval_seconds == 3_600
    assert bars.timestamp.dtype == np.int64
    np.testing.assert_array_equal(bars.timestamp, market["timestamp"].dt.as_unit("ns").astype("int64"))
    np.testing.assert_array_equal(bars.open, market["open"])
    np.testing.assert_array_equal(bars.close, market["close"])
    np.testing.assert_allclose(bars.return_1h[1:], market["close"].pct_change().to_numpy()[1:], rtol=1e-9, atol=1e-15)
    assert ((bars.base_fraction >= 0.0) & (bars.base_fraction <= 0.5)).all()
    assert bars.base_fraction.any()
    assert (bars.base_fraction[bars.direction == 0] == 0.0).all()
    assert set(np.unique(bars.tier)) <= {1, 2, 3, 4}
    for name in NAMES:
        assert np.isfinite(getattr(bars, name).astype(float)).all(), name


def test_a_microsecond_index_means_the_same_nanoseconds(market: pd.DataFrame) -> None:
    coarse = market.head(50).assign(timestamp=market["timestamp"].head(50).dt.as_unit("us"))
    np.testing.assert_array_equal(
        prepare(coarse, "SYNTH-USD", 3_600)[0].timestamp, prepare(market.head(50), "SYNTH-USD", 3_600)[0].timestamp
    )


def test_bars_come_back_from_their_file(tmp_path: Path) -> None:
    bars, info = make_bars(100), {"symbol": "SYNTH-USD", "synthetic": True, "rows": 100}
    save_bars(tmp_path / "bars.parquet", bars, info)
    loaded, told = load_bars(tmp_path / "bars.parquet")
    assert told == info
    assert loaded.timestamp[0] == START
    for name in NAMES:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(bars, name))
        assert getattr(loaded, name).dtype == getattr(bars, name).dtype


def test_the_same_bars_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_bars(tmp_path / name, make_bars(100), {"b": 1, "a": 2} if name == "one" else {"a": 2, "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_cannot_be_written_as_plain_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_bars(tmp_path / "bars.parquet", make_bars(10), {"rows": float("nan")})


@pytest.mark.parametrize("name", ["open", "close", "confidence", "base_fraction", "cascade_risk", "volatility"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_row_and_column(tmp_path: Path, name: str, value: float) -> None:
    bars = make_bars(20)
    spoilt = getattr(bars, name).copy()
    spoilt[6] = value
    change: dict[str, Any] = {name: spoilt}
    save_bars(tmp_path / "bars.parquet", replace(bars, **change), {})
    with pytest.raises(DataError, match=f"row 7, column {name}: {value} is not finite"):
        load_bars(tmp_path / "bars.parquet")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"open": [1.0]}).to_parquet(tmp_path / "candles.parquet")
    (tmp_path / "text.parquet").write_text("open,close\n1,2\n")
    with pytest.raises(DataError, match="does not hold prepared bars"):
        load_bars(tmp_path / "candles.parquet")
    for name in ("text.parquet", "missing.parquet"):
        with pytest.raises(DataError, match="is not a Parquet file of prepared bars"):
            load_bars(tmp_path / name)
