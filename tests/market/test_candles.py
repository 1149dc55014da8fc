"""Every rule of the schema: what is refused and how it is said, what is filled and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.errors import DataError
from layer3.market.candles import CANDLE_COLUMNS, MAX_GAP, CandleReport, check, duration, interval_of

ROWS = 60
ORIGIN = "btc.csv"


def candles(rows: int = ROWS, *, seconds: int = 3600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq=f"{seconds}s", tz="UTC", unit="ns"),
            "open": opened,
            "high": np.maximum(opened, close) * 1.001,
            "low": np.minimum(opened, close) * 0.999,
            "close": close,
            "volume": rng.uniform(1, 9, rows),
        }
    )


def with_signal(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        signal_action="buy", signal_confidence=0.7, signal_tier="T2", regime="ranging", funding_rate=0.0001
    )


def passes(frame: pd.DataFrame, **limits: int) -> tuple[pd.DataFrame, CandleReport]:
    return check(frame, ORIGIN, **{"min_rows": 10, **limits})


def refusal(frame: pd.DataFrame, **limits: int) -> str:
    with pytest.raises(DataError) as caught:
        passes(frame, **limits)
    return str(caught.value)


def cell(column: str, row: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of one cell; the row is counted from 1, as in messages."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[row - 1, column] = value
        return frame

    return change


def test_clean_frame_comes_out_on_the_schema() -> None:
    table, report = passes(candles())
    assert list(table.columns) == list(CANDLE_COLUMNS)
    assert str(table["timestamp"].dtype) == "datetime64[ns, UTC]"
    assert all(table[name].dtype == np.float64 for name in CANDLE_COLUMNS[1:])
    assert isinstance(table.index, pd.RangeIndex)
    assert (report.rows, report.interval_seconds, report.gaps, report.filled_rows) == (ROWS, 3600, 0, 0)
    assert (report.start, report.end) == ("2024-01-01T00:00:00+00:00", "2024-01-03T11:00:00+00:00")
    assert interval_of(table) == 3600
    again, _ = passes(table)
    pd.testing.assert_frame_equal(again, table)


def test_argument_is_left_as_it_was() -> None:
    frame = with_signal(candles()).drop(index=5).reset_index(drop=True)
    before = frame.copy(deep=True)
    passes(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_metadata_is_plain_finite_json() -> None:
    _, report = passes(with_signal(candles()).assign(note="x"))
    metadata = report.to_metadata()
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    assert metadata["ignored_columns"] == ["note"]
    assert metadata["signal_columns"] == ["signal_action", "signal_confidence", "signal_tier", "regime", "funding_rate"]


@pytest.mark.parametrize("seconds", [60, 300, 900, 3600, 14_400, 86_400])
def test_any_bar_length_from_a_minute_to_a_day(seconds: int) -> None:
    table, report = passes(candles(seconds=seconds))
    assert report.interval_seconds == interval_of(table) == seconds


BAD: list[tuple[str, Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    ("unsorted", lambda f: f.iloc[[0, 2, 1, *range(3, ROWS)]], r"row 3 \(2024-01-01T01:00.*earlier.*sort the file"),
    ("newest first", lambda f: f.iloc[::-1], r"row 2 .*newest first; sort the file"),
    ("duplicate", lambda f: f.iloc[[0, 1, 1, *range(2, ROWS)]], r"row 3 .*there twice, in rows 2 and 3"),
    (
        "off the grid",
        cell("timestamp", 4, pd.Timestamp("2024-01-01T03:07Z")),
        r"row 4 \(2024-01-01T03:07.*67 min after",
    ),
    ("large gap", lambda f: f.drop(index=range(20, 27)), r"row 21 \(2024-01-02T03:00.*gap of 7 bars of 1 h.*at most 6"),
    ("too few rows", lambda f: f.head(9), r"has 9 rows, at least 10"),
    ("one row", lambda f: f.head(1), r"has 1 rows"),
    ("no rows", lambda f: f.head(0), r"has 0 rows"),
    ("no price", cell("close", 7, None), r"row 7 \(2024-01-01T06:00:00\+00:00\), column 'close': '' is empty"),
    ("NaN", cell("high", 7, np.nan), r"row 7 .*column 'high'.*empty"),
    ("infinite", cell("high", 7, np.inf), r"row 7 .*column 'high': inf is not a finite number"),
    ("text", cell("open", 7, "12,5"), r"row 7 .*column 'open': '12,5' is not a finite number"),
    ("zero price", cell("low", 7, 0.0), r"row 7 .*column 'low': 0.0 is not above zero"),
    ("negative price", cell("open", 7, -1.0), r"row 7 .*column 'open': -1.0 is not above zero"),
    ("open below low", cell("open", 7, 1.0), r"row 7 .*column 'open': 1.0 is below the bar's low"),
    ("open above high", cell("open", 7, 1e6), r"row 7 .*column 'open'.*above the bar's high \(open 1000000.0"),
    ("close below low", cell("close", 7, 1.0), r"row 7 .*column 'close'.*below the bar's low"),
    ("close above high", cell("close", 7, 1e6), r"row 7 .*column 'close'.*above the bar's high"),
    ("low above high", cell("low", 7, 1e6), r"row 7 .*below the bar's low"),
    ("negative volume", cell("volume", 7, -0.5), r"row 7 .*column 'volume': -0.5 is below zero"),
    ("infinite volume", cell("volume", 7, np.inf), r"row 7 .*column 'volume': inf"),
    ("boolean prices", lambda f: f.assign(close=True), r"row 1 .*column 'close': .*True.* is not a finite number"),
    (
        "missing column",
        lambda f: f.drop(columns="low"),
        r"column 'low' is missing; the columns found are: timestamp, open",
    ),
    ("missing time", lambda f: f.drop(columns="timestamp"), r"column 'timestamp' is missing"),
    ("duplicate column", lambda f: f.assign(Close=1.0), r"column 'Close' is there twice"),
    ("duplicate label", lambda f: pd.concat([f, f["open"]], axis=1), r"column 'open' is there twice"),
    ("too short bars", lambda f: f.assign(timestamp=pd.date_range("2024", periods=ROWS, freq="30s")), r"30 s long"),
    ("too long bars", lambda f: f.assign(timestamp=pd.date_range("2024", periods=ROWS, freq="7D")), r"7 d long"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_candles_are_refused(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    said = refusal(change(candles()))
    assert said.startswith(f"{ORIGIN}")
    assert re.search(message, said), said


EPOCH = 1_704_067_200
BAD_TIMES: list[tuple[str, list[Any], str]] = [
    ("empty", [None], r"row 31, column 'timestamp': .* is empty"),
    ("not a date", ["yesterday"], r"row 31, .*'yesterday' cannot be read as a time; write an ISO 8601"),
    ("day first", ["31.12.2024 00:00"], r"row 31"),
    ("impossible date", ["2024-02-30T00:00:00Z"], r"row 31, .*'2024-02-30T00:00:00Z' cannot be read"),
    ("epoch among dates", [EPOCH], r"row 31, .*mixes epochs with dates"),
    ("no offset among offsets", ["2024-01-02T06:00:00"], r"row 31, .*mixes times with and without an offset"),
    ("far future", ["2500-01-01T00:00:00Z"], r"row 31, .*lies outside the years"),
]


@pytest.mark.parametrize(("value", "message"), [case[1:] for case in BAD_TIMES], ids=[case[0] for case in BAD_TIMES])
def test_bad_timestamps_are_refused(value: list[Any], message: str) -> None:
    frame = candles().astype({"timestamp": "str"}).astype({"timestamp": object})
    frame.loc[30, "timestamp"] = value[0]
    said = refusal(frame)
    assert re.search(message, said), said


BAD_EPOCHS: list[tuple[str, Any, str]] = [
    ("another unit", (EPOCH + 3600 * 30) * 1000, "row 31, .*looks like milliseconds, the rows before it like seconds"),
    ("row number", 30, "row 31, .*too small for an epoch"),
    ("negative", -EPOCH, "row 31, .*too small"),
    ("fraction", EPOCH + 0.5, "row 31, .*no whole number"),
    ("missing", np.nan, "row 31, .*is empty"),
    ("infinite", np.inf, "row 31"),
]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("value", "message"), [case[1:] for case in BAD_EPOCHS], ids=[case[0] for case in BAD_EPOCHS])
def test_bad_epochs_are_refused(value: Any, message: str, as_text: bool) -> None:
    epochs: list[Any] = [EPOCH + 3600 * row for row in range(ROWS)]
    epochs[30] = value
    column: Any = [str(item) for item in epochs] if as_text else epochs
    said = refusal(candles().assign(timestamp=column))
    assert "np." not in said
    assert re.search("row 31" if as_text else message, said), said


def test_times_that_are_no_times() -> None:
    assert "is no timestamp" in refusal(candles().assign(timestamp=True))
    assert "too large for an epoch" in refusal(candles().assign(timestamp="9" * 25))
    assert "after the year 2200" in refusal(candles().assign(timestamp=[9 * 10**18 + row for row in range(ROWS)]))


@pytest.mark.parametrize("name", ["Timestamp", "TIME", "date", "datetime", "open_time", "Open time", "unix"])
def test_aliases_of_the_time_column(name: str) -> None:
    table, report = passes(candles().rename(columns={"timestamp": name, "open": "Open", "volume": "VOLUME"}))
    assert report.timestamp_column == name
    pd.testing.assert_frame_equal(table, candles())


def test_time_in_the_index_and_preferred_alias() -> None:
    pd.testing.assert_frame_equal(passes(candles().set_index("timestamp"))[0], candles())
    epochs = candles().assign(timestamp=lambda frame: frame["timestamp"].astype("int64") // 10**6)
    pd.testing.assert_frame_equal(passes(epochs.set_index("timestamp"))[0], candles())
    both = candles().assign(date="not looked at")
    assert passes(both)[1].ignored_columns == ("date",)


@pytest.mark.parametrize(
    ("form", "convert"),
    [
        ("ISO 8601 with an offset", lambda t: t.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00")),
        ("ISO 8601 with an offset", lambda t: t.dt.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("ISO 8601 with an offset", lambda t: t.dt.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("ISO 8601 with an offset", lambda t: t.dt.tz_convert("America/New_York").astype("str")),
        ("ISO 8601 without offset, as UTC", lambda t: t.dt.strftime("%Y-%m-%d %H:%M:%S")),
        ("ISO 8601 without offset, as UTC", lambda t: t.dt.strftime(" %Y-%m-%dT%H:%M ")),
        ("dates without offset, as UTC", lambda t: t.dt.tz_localize(None).dt.as_unit("s")),
        ("dates with an offset", lambda t: t.dt.tz_convert("Asia/Tokyo").dt.as_unit("us")),
        ("epoch seconds", lambda t: t.astype("int64") // 10**9),
        ("epoch seconds", lambda t: (t.astype("int64") // 10**9).astype("float64")),
        ("epoch milliseconds", lambda t: t.astype("int64") // 10**6),
        ("epoch milliseconds", lambda t: (t.astype("int64") // 10**6).astype("str")),
        ("epoch seconds", lambda t: (t.astype("int64") // 10**9).astype("float64").astype("str")),
        ("epoch microseconds", lambda t: t.astype("int64") // 10**3),
        ("epoch nanoseconds", lambda t: t.astype("int64")),
        ("epoch nanoseconds", lambda t: t.astype("int64").astype("str")),
        ("epoch nanoseconds", lambda t: t.astype("int64").astype("Int64")),
    ],
)
def test_every_way_to_write_a_time(form: str, convert: Callable[[pd.Series], pd.Series]) -> None:
    frame = candles()
    table, report = passes(frame.assign(timestamp=convert(frame["timestamp"])))
    assert report.timestamp_form == form
    pd.testing.assert_frame_equal(table, frame)


def test_numbers_in_other_clothes() -> None:
    frame = candles()
    text = frame.assign(open=frame["open"].map(repr), volume=frame["volume"].map(Decimal))
    pd.testing.assert_frame_equal(passes(text.assign(close=frame["close"].astype("Float64")))[0], frame)


def test_small_gaps_are_filled_and_counted() -> None:
    frame = with_signal(candles(400)).assign(expected_return=0.02, sentiment_score=0.5, volume_ratio=1.0)
    table, report = passes(frame.drop(index=[10, 50, 51, 52]).reset_index(drop=True))
    assert (report.rows, report.gaps, report.filled_rows, report.largest_gap) == (400, 2, 4, 3)
    filled = table.iloc[[10, 50, 51, 52]]
    for name in ("open", "high", "low", "close"):
        assert filled[name].tolist() == frame["close"].iloc[[9, 49, 49, 49]].tolist()
    assert (filled["volume"] == 0).all()
    assert set(filled["signal_action"]) == {"hold"}
    assert (filled["signal_confidence"] == 0).all()
    assert (filled["signal_tier"] == 2).all()
    assert set(filled["regime"]) == {"ranging"}
    for name in ("funding_rate", "expected_return", "sentiment_score", "volume_ratio"):
        assert filled[name].isna().all()
    rest = [row for row in range(400) if row not in (10, 50, 51, 52)]
    pd.testing.assert_frame_equal(table.iloc[rest][list(CANDLE_COLUMNS)], frame.iloc[rest][list(CANDLE_COLUMNS)])
    assert (table["timestamp"].diff().dropna() == pd.Timedelta(hours=1)).all()


def test_longest_gap_that_is_filled() -> None:
    frame = candles(400)
    assert passes(frame.drop(index=range(50, 50 + MAX_GAP)))[1].largest_gap == MAX_GAP
    assert "gap of 7 bars" in refusal(frame.drop(index=range(50, 51 + MAX_GAP)))
    assert "gap of 1 bars" in refusal(frame.drop(index=50), max_gap=0)


def test_file_that_is_mostly_invented_is_refused() -> None:
    frame = candles(400)
    holes = [row for row in range(5, 395) if row % 10 == 0]
    assert "39 of its 400 bars of 1 h are missing, at most 5% may be" in refusal(frame.drop(index=holes))


BAD_SIGNALS: list[tuple[str, str, object, str]] = [
    (
        "action",
        "signal_action",
        "short",
        r"'short' is unknown; expected one of strong_buy, buy, hold, sell, strong_sell",
    ),
    ("confidence", "signal_confidence", 1.2, r"1.2 is out of range; expected a number in \[0, 1\]"),
    ("confidence in percent", "signal_confidence", 85, r"85 is out of range"),
    ("confidence text", "signal_confidence", "high", r"'high' is out of range; expected a number"),
    ("no confidence", "signal_confidence", None, r"empty although the row needs it"),
    ("infinite", "signal_confidence", np.inf, r"inf is out of range"),
    ("tier", "signal_tier", "T5", r"'T5' is out of range; expected one of 1, 2, 3, 4 or T1"),
    ("half a tier", "signal_tier", 1.5, r"1.5 is out of range"),
    ("no tier", "signal_tier", "", r"empty although"),
    ("regime", "regime", "bull", r"'bull' is unknown; expected one of trending_up"),
    ("no regime", "regime", None, r"empty although"),
    ("risk", "signal_risk_score", -0.1, r"-0.1 is out of range"),
    ("return in percent", "expected_return", 30, r"30 is out of range; expected a fraction"),
    ("volatility in percent", "predicted_volatility", 3.5, r"3.5 is out of range"),
    ("volatility zero", "predicted_volatility", 0.0, r"0.0 is out of range"),
    ("funding", "funding_rate", 5, r"5 is out of range"),
    ("open interest", "oi_change_pct", -30, r"-30 is out of range; expected a fraction"),
    ("volume ratio", "volume_ratio", -1, r"-1 is out of range"),
    ("whales", "onchain_whale_pressure", 2, r"2 is out of range"),
    ("netflow", "exchange_netflow_zscore", np.inf, r"inf is out of range"),
    ("liquidations", "liquidation_volume_24h", -5.0, r"-5.0 is out of range"),
    ("sentiment", "sentiment_score", -0.5, r"-0.5 is out of range"),
]


@pytest.mark.parametrize(
    ("column", "value", "message"), [case[1:] for case in BAD_SIGNALS], ids=[case[0] for case in BAD_SIGNALS]
)
def test_bad_signal_columns_are_refused(column: str, value: object, message: str) -> None:
    frame = with_signal(candles())
    if column not in frame:
        frame[column] = 0.5
    said = refusal(cell(column, 9, value)(frame))
    assert re.match(rf"btc\.csv, row 9 \(2024-01-01T08:00:00\+00:00\), column '{column}': ", said), said
    assert re.search(message, said), said


def test_a_signal_needs_action_and_confidence() -> None:
    assert "no 'signal_confidence'" in refusal(candles().assign(signal_action="buy"))
    assert "no 'signal_action'" in refusal(candles().assign(signal_confidence=0.5))
    assert "is no number" in refusal(candles().assign(signal_action="buy", signal_confidence=True))


def test_signal_columns_in_their_usual_spellings() -> None:
    frame = candles(10)
    frame["Signal_Action"] = ["BUY", "Strong Buy", "strong-sell", " hold ", "SELL"] * 2
    frame["signal_confidence"] = ["0.5"] * 10
    frame["signal_tier"] = ["T1", "t2", "3", 4, 1.0] * 2
    frame["regime"] = ["Trending Up", "RANGING", "crisis", "high-volatility", "trending_down"] * 2
    table, report = passes(frame)
    assert table["signal_action"].tolist()[:5] == ["buy", "strong_buy", "strong_sell", "hold", "sell"]
    assert table["signal_tier"].tolist()[:5] == [1, 2, 3, 4, 1]
    assert table["regime"].tolist()[:3] == ["trending_up", "ranging", "crisis"]
    assert report.rows_without_signal == 0


def test_rows_without_a_signal_hold_and_are_counted() -> None:
    frame = with_signal(candles()).astype({"signal_action": object, "regime": object})
    frame.loc[[0, 5, 6], ["signal_action", "signal_confidence", "signal_tier", "regime"]] = None
    frame.loc[4, "regime"] = "crisis"
    table, report = passes(frame)
    assert report.rows_without_signal == 3
    assert table["signal_action"].iloc[[0, 5, 6]].tolist() == ["hold"] * 3
    assert table["signal_confidence"].iloc[[0, 5, 6]].tolist() == [0.0] * 3
    assert table["regime"].iloc[[0, 5, 6]].tolist() == ["ranging", "crisis", "crisis"]
    assert table["signal_tier"].iloc[[0, 5]].tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(60, "1 min"), (90, "90 s"), (5400, "90 min"), (3600, "1 h"), (86400, "1 d"), (3600.001, "3600.001 s")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def damage(frame: pd.DataFrame, kind: str, where: int) -> pd.DataFrame:
    rng = np.random.default_rng(where)
    row = where % len(frame)
    if kind == "shuffle":
        return frame.iloc[rng.permutation(len(frame))]
    if kind == "duplicate":
        return pd.concat([frame.iloc[: row + 1], frame.iloc[row:]])
    if kind == "drop":
        return frame.drop(index=frame.index[row : row + 1 + where % 9])
    column = list(CANDLE_COLUMNS[1:])[where % 5]
    value = {"spike": 1e9, "nan": np.nan, "zero": 0.0, "negative": -1.0}[kind]
    changed = frame.copy()
    changed.iloc[row, list(changed.columns).index(column)] = value
    return changed


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["shuffle", "duplicate", "drop", "spike", "nan", "zero", "negative"]), st.integers(0, 10**6)
        ),
        max_size=3,
    )
)
def test_damaged_frames_are_refused_or_come_out_valid(damages: list[tuple[str, int]]) -> None:
    frame = candles(80)
    for kind, where in damages:
        frame = damage(frame, kind, where)
    try:
        table, report = passes(frame)
    except DataError:
        return
    assert (table["timestamp"].diff().dropna() == pd.Timedelta(hours=1)).all()
    prices = table[["open", "high", "low", "close"]].to_numpy()
    assert np.isfinite(prices).all()
    assert (prices > 0).all()
    assert (table["low"] <= table[["open", "close"]].min(axis=1)).all()
    assert (table["high"] >= table[["open", "close"]].max(axis=1)).all()
    assert (table["volume"] >= 0).all()
    assert report.rows == len(table) == len(frame) + report.filled_rows


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([None, 1, -3.5, "7", "x", "", True, b"1", 10**400, (1,), np.inf]), min_size=10, max_size=10
    )
)
def test_whatever_stands_in_a_column_is_refused_with_a_data_error(values: list[object]) -> None:
    for column in ("timestamp", "close", "signal_confidence", "regime"):
        frame = with_signal(candles(10)).astype(object)
        frame[column] = pd.Series(values, dtype=object)
        with pytest.raises(DataError, match=r"btc\.csv"):
            passes(frame)
