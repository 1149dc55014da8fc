"""Candles: the schema, and the checks that every source must pass before anything uses it.

What is wrong is refused with file, row, column, value and remedy. One thing only is repaired:
short gaps are filled forward, and the report counts them. All functions are pure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.errors import DataError
from layer3.market.signal_columns import SIGNAL_COLUMNS, check_signals, describe, to_floats, without_signal
from layer3.market.timestamps import to_nanoseconds

__all__ = [
    "CANDLE_COLUMNS",
    "MAX_FILLED_SHARE",
    "MAX_GAP",
    "MIN_ROWS",
    "TIME_ALIASES",
    "CandleReport",
    "check",
    "duration",
    "interval_of",
]

CANDLE_COLUMNS: Final[tuple[str, ...]] = ("timestamp", "open", "high", "low", "close", "volume")
#: Names of the time column, the preferred first; matched without regard to case.
TIME_ALIASES: Final[tuple[str, ...]] = (
    "timestamp",
    "open_time",
    "opentime",
    "open time",
    "datetime",
    "time",
    "date",
    "unix",
)
#: Fewest bars of a source (12 weeks of hours): four 500-step episodes, below which nothing can be
#: learnt or judged. The split by time knows its shares and purge gaps, and may ask for more.
MIN_ROWS: Final = 2_000
#: Longest run of missing bars that is filled forward; a longer one is refused.
MAX_GAP: Final = 6
#: Largest share of filled bars: beyond it the file is more invention than record.
MAX_FILLED_SHARE: Final = 0.05

_PRICES: Final[tuple[str, ...]] = ("open", "high", "low", "close")
_SHORTEST_SECONDS: Final = 60
_LONGEST_SECONDS: Final = 86_400
_SECOND: Final = 10**9


@dataclass(frozen=True, slots=True)
class CandleReport:
    """What was found in a source, and what was done to it.

    ``rows`` counts the bars that came out, ``filled_rows`` those among them that were filled in,
    in ``gaps`` runs of which the longest had ``largest_gap`` bars. ``start`` and ``end`` are the
    opens of the first and the last bar, ISO 8601 in UTC. ``rows_without_signal`` counts the
    file's rows whose signal was empty and became HOLD.
    """

    origin: str
    rows: int
    interval_seconds: int
    start: str
    end: str
    gaps: int
    filled_rows: int
    largest_gap: int
    timestamp_column: str
    timestamp_form: str
    signal_columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    rows_without_signal: int

    def to_metadata(self) -> dict[str, Any]:
        """Plain JSON values: text, finite numbers and lists of text."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def check(
    frame: pd.DataFrame, origin: str, *, min_rows: int = MIN_ROWS, max_gap: int = MAX_GAP
) -> tuple[pd.DataFrame, CandleReport]:
    """Check raw candles and bring them to the schema.

    Parameters
    ----------
    frame : rows of a source as they were read: one time column (TIME_ALIASES), open, high, low,
        close, volume, and any of SIGNAL_COLUMNS; names in any case, other columns are ignored
    origin : what to call the source in messages
    min_rows : fewest rows, before anything is filled
    max_gap : longest run of missing bars that is filled forward

    Returns
    -------
    A frame with ``timestamp`` (datetime64[ns, UTC], a bar's open), float64 prices and volume, and
    the signal columns that were there, on a RangeIndex, one row per interval without a gap; and
    the report. The argument is left as it was.

    Raises
    ------
    DataError : the source breaks a rule; the message says where and what to do.
    """
    found = _columns(frame, origin)
    source = str(found["timestamp"].name)
    if len(frame) < max(min_rows, 2):
        raise DataError(
            f"{origin}: has {len(frame):,} rows, at least {max(min_rows, 2):,} are needed to train, validate and "
            "test; give a longer history"
        )
    times, form = to_nanoseconds(found["timestamp"], origin, source)
    step = _interval(times, origin, source, max_gap)
    candles = {name: _numbers(found[name], name, times, origin) for name in (*_PRICES, "volume")}
    _check_bars(candles, times, origin)
    given = {name: found[name] for name in SIGNAL_COLUMNS if name in found}
    signals, silent = check_signals(given, times, origin)
    table = pd.concat([pd.DataFrame(candles), signals], axis=1)

    missing = np.diff(times) // step - 1
    full = int((times[-1] - times[0]) // step) + 1
    filled = full - len(times)
    if filled > MAX_FILLED_SHARE * full:
        raise DataError(
            f"{origin}: {filled:,} of its {full:,} bars of {duration(step // _SECOND)} are missing, at most "
            f"{MAX_FILLED_SHARE:.0%} may be; get a complete history"
        )
    if filled:
        table = _fill(table, (times - times[0]) // step, full)
    instants = (times[0] + step * np.arange(full, dtype=np.int64)).view("datetime64[ns]")
    table.insert(0, "timestamp", pd.Series(instants).dt.tz_localize("UTC"))
    used = {str(series.name) for series in found.values()}
    report = CandleReport(
        origin=origin,
        rows=full,
        interval_seconds=int(step // _SECOND),
        start=table["timestamp"].iloc[0].isoformat(),
        end=table["timestamp"].iloc[-1].isoformat(),
        gaps=int(np.count_nonzero(missing)),
        filled_rows=filled,
        largest_gap=int(missing.max()),
        timestamp_column=source,
        timestamp_form=form,
        signal_columns=tuple(given),
        ignored_columns=tuple(str(name) for name in frame.columns if str(name) not in used),
        rows_without_signal=silent,
    )
    return table, report


def interval_of(frame: pd.DataFrame) -> int:
    """Seconds from one bar of a checked frame to the next."""
    first, second = frame["timestamp"].iloc[0], frame["timestamp"].iloc[1]
    return int((second - first).total_seconds())


def duration(seconds: float) -> str:
    """A time span in words a reader knows: ``"1 h"``, ``"15 min"``, ``"1 d"``, ``"90 s"``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:.15g} s"


def _columns(frame: pd.DataFrame, origin: str) -> dict[str, pd.Series]:
    """The columns in use by canonical name; each series keeps the file's own name."""
    if isinstance(frame.index, pd.DatetimeIndex) or str(frame.index.name).strip().lower() in TIME_ALIASES:
        frame = frame.reset_index(names=str(frame.index.name or "timestamp"))
    seen: dict[str, int] = {}
    for position, label in enumerate(frame.columns):
        key = str(label).strip().lower()
        if key in seen:
            raise DataError(f"{origin}: column {str(label)!r} is there twice; keep one of them")
        seen[key] = position
    names = {name: name for name in (*CANDLE_COLUMNS[1:], *SIGNAL_COLUMNS) if name in seen}
    alias = next((name for name in TIME_ALIASES if name in seen), None)
    if alias is not None:
        names["timestamp"] = alias
    lost = [name for name in CANDLE_COLUMNS if name not in names]
    if lost:
        header = ", ".join(str(label) for label in frame.columns) or "none"
        raise DataError(
            f"{origin}: column {lost[0]!r} is missing; the columns found are: {header}. A candle file has one header "
            f"line that names {', '.join(CANDLE_COLUMNS)} (for the time also: {', '.join(TIME_ALIASES[1:])}), "
            "separated by commas"
        )
    return {name: frame.iloc[:, seen[key]] for name, key in names.items()}


def _interval(times: NDArray[np.int64], origin: str, column: str, max_gap: int) -> int:
    """Nanoseconds of the one interval that the bars lie on."""
    steps = np.diff(times)

    def place(row: int) -> str:
        return describe(origin, times, row, column, pd.Timestamp(int(times[row]), unit="ns", tz="UTC").isoformat())

    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        if steps[row - 1] == 0:
            raise DataError(f"{place(row)} is there twice, in rows {row} and {row + 1}; keep one row per bar")
        order = "the file is newest first; " if (steps <= 0).all() else ""
        raise DataError(f"{place(row)} is earlier than the row before it; {order}sort the file by time, oldest first")
    sizes, counts = np.unique(steps, return_counts=True)
    step = int(sizes[np.argmax(counts)])
    seconds = step / _SECOND
    if not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
        raise DataError(
            f"{origin}: its bars are {duration(seconds)} long (column {column!r}), expected 1 min to 1 d; give candles "
            "of another interval"
        )
    if step % _SECOND:
        raise DataError(f"{origin}: its bars are {seconds} s long (column {column!r}), expected whole seconds")
    off = steps % step != 0
    if off.any():
        row = int(np.argmax(off)) + 1
        raise DataError(
            f"{place(row)} is {duration(float(steps[row - 1] / _SECOND))} after the row before it, but the bars are "
            f"{duration(seconds)} long; keep every bar on one interval"
        )
    wide = steps // step - 1 > max_gap
    if wide.any():
        row = int(np.argmax(wide)) + 1
        raise DataError(
            f"{place(row)} comes after a gap of {int(steps[row - 1] // step - 1):,} bars of {duration(seconds)}; gaps "
            f"of at most {max_gap} are filled. Add the missing rows, or cut the file at this row"
        )
    return step


def _numbers(raw: pd.Series, name: str, times: NDArray[np.int64], origin: str) -> NDArray[np.float64]:
    numbers = to_floats(raw)
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = raw.iloc[row]
        kind = "is empty" if pd.isna(value) or value == "" else "is not a finite number"
        where = describe(origin, times, row, name, "" if kind == "is empty" else value)
        raise DataError(f"{where} {kind}; correct the row, or remove it (a gap of at most {MAX_GAP} bars is filled)")
    return numbers


def _check_bars(candles: dict[str, NDArray[np.float64]], times: NDArray[np.int64], origin: str) -> None:
    rules: list[tuple[str, NDArray[np.bool_], str]] = [
        (name, candles[name] <= 0.0, "is not above zero; a price is positive") for name in _PRICES
    ]
    rules.append(("volume", candles["volume"] < 0.0, "is below zero; a volume is at least 0"))
    for name in ("open", "close"):
        rules.append((name, candles[name] < candles["low"], "is below the bar's low"))
        rules.append((name, candles[name] > candles["high"], "is above the bar's high"))
    for name, wrong, problem in rules:
        if wrong.any():
            row = int(np.argmax(wrong))
            bar = ", ".join(f"{price} {float(candles[price][row])!r}" for price in _PRICES)
            where = describe(origin, times, row, name, candles[name][row])
            raise DataError(f"{where} {problem} ({bar}); correct the row, or remove it")


def _fill(table: pd.DataFrame, slots: NDArray[np.int64], full: int) -> pd.DataFrame:
    """Put rows at ``slots`` of ``full`` bars; the others carry the last close with volume 0 and no signal."""
    wide = table.set_axis(pd.Index(slots)).reindex(pd.RangeIndex(full))
    filled = np.ones(full, dtype=bool)
    filled[slots] = False
    wide["close"] = wide["close"].ffill()
    for name in ("open", "high", "low"):
        wide[name] = wide[name].where(~filled, wide["close"])
    wide["volume"] = wide["volume"].where(~filled, 0.0)
    return without_signal(wide, filled)
