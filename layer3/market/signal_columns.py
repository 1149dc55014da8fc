"""The columns of layer 2's signal that a candle file may carry, their ranges, and their checks.

A row whose ``signal_action`` is empty has no signal: it becomes HOLD with confidence 0, and is
counted. Everything else that is empty where a signal needs it, or out of its range, is refused.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.errors import DataError
from layer3.types import Action, Regime

__all__ = ["CASCADE_COLUMNS", "SIGNAL_COLUMNS", "TIER_RISK", "check_signals", "describe", "to_floats", "without_signal"]

#: What warns of a cascade, as in :class:`layer3.types.CascadeIndicators`; NaN where the feed is missing.
CASCADE_COLUMNS: Final[tuple[str, ...]] = (
    "funding_rate",
    "oi_change_pct",
    "volume_ratio",
    "onchain_whale_pressure",
    "exchange_netflow_zscore",
    "liquidation_volume_24h",
)
#: Every optional column that is kept; all others are dropped.
SIGNAL_COLUMNS: Final[tuple[str, ...]] = (
    "signal_action",
    "signal_confidence",
    "signal_risk_score",
    "signal_tier",
    "regime",
    "expected_return",
    "predicted_volatility",
    *CASCADE_COLUMNS,
    "sentiment_score",
)
#: The risk score in the middle of tiers T1..T4.
TIER_RISK: Final = np.array([0.1, 0.3, 0.5, 0.8])


class _Range(NamedTuple):
    low: float
    high: float
    means: str


_RANGES: Final = {
    "signal_confidence": _Range(0.0, 1.0, "a number in [0, 1]"),
    "signal_risk_score": _Range(0.0, 1.0, "a number in [0, 1]"),
    "signal_tier": _Range(1.0, 4.0, "one of 1, 2, 3, 4 or T1, T2, T3, T4"),
    "expected_return": _Range(-1.0, 10.0, "a fraction in [-1, 10] over the next 30 days; 0.03 is 3 %"),
    "predicted_volatility": _Range(1e-9, 2.0, "a fraction in (0, 2], the daily standard deviation; 0.03 is 3 %"),
    "funding_rate": _Range(-1.0, 1.0, "a fraction in [-1, 1] per 8 hours; 0.0001 is 0.01 %"),
    "oi_change_pct": _Range(-1.0, 100.0, "a fraction in [-1, 100]; -0.3 is a fall of 30 %"),
    "volume_ratio": _Range(0.0, 1e9, "a number of at least 0"),
    "onchain_whale_pressure": _Range(0.0, 1.0, "a number in [0, 1]"),
    "exchange_netflow_zscore": _Range(-1e6, 1e6, "a finite number of standard deviations"),
    "liquidation_volume_24h": _Range(0.0, 1e15, "dollars, at least 0"),
    "sentiment_score": _Range(0.0, 1.0, "a number in [0, 1], 0.5 is neutral"),
}
_CHOICES: Final = {
    "signal_action": tuple(str(action) for action in Action),
    "regime": tuple(str(regime) for regime in Regime),
}
#: Empty only where the row has no signal.
_NEEDED: Final = ("signal_confidence", "signal_risk_score", "signal_tier", "regime")


def describe(origin: str, times: NDArray[np.int64], row: int, column: str, value: object) -> str:
    """Where a value stands: file, data row (from 1) and its time, column, and the value itself."""
    when = pd.Timestamp(int(times[row]), unit="ns", tz="UTC").isoformat()
    shown = value.item() if isinstance(value, np.generic) else value
    return f"{origin}, row {row + 1} ({when}), column {column!r}: {shown!r}"


def to_floats(raw: pd.Series) -> NDArray[np.float64]:
    """Numbers of a column as float64, shape (n,); NaN where a value is empty or is no number."""
    if pd.api.types.is_bool_dtype(raw.dtype) or pd.api.types.is_datetime64_any_dtype(raw.dtype):
        return np.full(len(raw), np.nan)
    if raw.dtype == object:
        # Through text: objects may be anything, and of them only what reads as a number counts.
        raw = raw.astype("str").where(raw.notna())
    numbers = pd.to_numeric(raw, errors="coerce").astype("Float64")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def check_signals(columns: dict[str, pd.Series], times: NDArray[np.int64], origin: str) -> tuple[pd.DataFrame, int]:
    """Check the signal columns of a file and bring them to their canonical form.

    Parameters
    ----------
    columns : the file's own columns by canonical name, each of shape (n,); any of SIGNAL_COLUMNS
    times : UTC nanoseconds, shape (n,), for the messages
    origin : what to call the file in a refusal

    Returns
    -------
    The checked columns (``signal_action`` and ``regime`` as text, all others float64), and how
    many rows have no signal.

    Raises
    ------
    DataError : a value is out of its range, unknown, or missing where the row has a signal, or
        only one of ``signal_action`` and ``signal_confidence`` is there.
    """
    pair = [name for name in ("signal_action", "signal_confidence") if name in columns]
    if len(pair) == 1:
        other = "signal_confidence" if pair == ["signal_action"] else "signal_action"
        raise DataError(f"{origin}: has a column {pair[0]!r} but no {other!r}; a signal needs both, add or remove one")
    checked: dict[str, pd.Series] = {}
    for name in SIGNAL_COLUMNS:
        if name in columns:
            raw = columns[name].reset_index(drop=True)
            checked[name] = _choice(name, raw, times, origin) if name in _CHOICES else _number(name, raw, times, origin)
    silent = np.zeros(len(times), dtype=bool)
    if pair:
        silent = checked["signal_action"].isna().to_numpy(dtype=bool)
    for name in _NEEDED:
        if name in checked:
            lost = checked[name].isna().to_numpy(dtype=bool) & ~silent
            if lost.any():
                where = describe(origin, times, int(np.argmax(lost)), name, "")
                raise DataError(f"{where} is empty although the row needs it; expected {_expected(name)}")
    frame = pd.DataFrame(checked, index=pd.RangeIndex(len(times)))
    return without_signal(frame, silent), int(silent.sum())


def without_signal(frame: pd.DataFrame, rows: NDArray[np.bool_]) -> pd.DataFrame:
    """Rows that have no signal: HOLD with confidence 0, nothing said of return, feeds unknown.

    Regime and risk are states of the market, so the last known ones hold on (before any: ranging,
    and risk 0.5, tier 3). ``rows`` is a mask of shape (n,).
    """
    if not rows.any():
        return frame
    frame = frame.copy()
    gone = pd.Series(rows, index=frame.index)
    neutral: dict[str, str | float] = {"signal_action": str(Action.HOLD), "signal_confidence": 0.0}
    held: dict[str, str | float] = {"regime": str(Regime.RANGING), "signal_risk_score": 0.5, "signal_tier": 3.0}
    for name in SIGNAL_COLUMNS:
        if name not in frame.columns:
            continue
        if name in neutral:
            frame[name] = frame[name].mask(gone, neutral[name])
        elif name in held:
            frame[name] = frame[name].mask(gone).ffill().fillna(held[name])
        else:
            frame[name] = frame[name].mask(gone)
    return frame


def _choice(name: str, raw: pd.Series, times: NDArray[np.int64], origin: str) -> pd.Series:
    text = raw.astype("str").str.strip().str.lower().str.replace(r"[\s-]+", "_", regex=True)
    text = text.mask(text.isin(["", "nan", "none", "null", "<na>"]).to_numpy(dtype=bool))
    wrong = (text.notna() & ~text.isin(_CHOICES[name])).to_numpy(dtype=bool)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{describe(origin, times, row, name, raw.iloc[row])} is unknown; expected {_expected(name)}")
    return text


def _number(name: str, raw: pd.Series, times: NDArray[np.int64], origin: str) -> pd.Series:
    text = raw
    if pd.api.types.is_bool_dtype(raw.dtype):
        raise DataError(f"{describe(origin, times, 0, name, raw.iloc[0])} is no number; expected {_expected(name)}")
    if not pd.api.types.is_numeric_dtype(raw.dtype):
        text = raw.astype("str").str.strip()
        text = text.mask(text.str.lower().isin(["", "nan", "none", "null", "<na>"]).to_numpy(dtype=bool))
        if name == "signal_tier":
            text = text.str.replace(r"^[Tt]", "", regex=True)
    numbers = to_floats(text)
    low, high, _ = _RANGES[name]
    given = text.notna().to_numpy(dtype=bool)
    with np.errstate(invalid="ignore"):
        wrong = given & ~((numbers >= low) & (numbers <= high))
        if name == "signal_tier":
            wrong |= given & (numbers != np.floor(numbers))
    if wrong.any():
        row = int(np.argmax(wrong))
        where = describe(origin, times, row, name, raw.iloc[row])
        raise DataError(f"{where} is out of range; expected {_expected(name)}")
    return pd.Series(numbers)


def _expected(name: str) -> str:
    return _RANGES[name].means if name in _RANGES else "one of " + ", ".join(_CHOICES[name])
