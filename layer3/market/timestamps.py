"""Timestamps as they come in files, turned into UTC nanoseconds; what is ambiguous is refused.

Read as they stand: dates and times with an offset. Read as UTC: dates and times without one.
Epochs may be seconds, milliseconds, microseconds or nanoseconds, as numbers or as text; the unit
is inferred from the magnitude, and all rows must agree on it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.errors import DataError

__all__ = ["to_nanoseconds"]

#: An epoch of at least this magnitude is in this unit; all four thresholds are the year 1973.
_UNITS: Final = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_THRESHOLDS: Final = np.array([1e8, 1e11, 1e14, 1e17])
_NANOSECONDS: Final = np.array([10**9, 10**6, 10**3, 1], dtype=np.int64)
#: 2200-01-01; nanoseconds end in 2262.
_LATEST: Final = 7_258_118_400 * 10**9
_FORMS: Final = "an ISO 8601 date and time, or an epoch in s, ms, µs or ns"

_EPOCH: Final = r"\s*[+-]?\d+(?:\.0*)?\s*"
_OFFSET: Final = r".*\d[Tt ]\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)"


def to_nanoseconds(values: pd.Series, origin: str, column: str) -> tuple[NDArray[np.int64], str]:
    """UTC nanoseconds since 1970 of a column of timestamps, and how they were read.

    Parameters
    ----------
    values : shape (n,): datetimes, integers, whole floats, or text
    origin, column : what to call the file and the column in a refusal

    Returns
    -------
    int64 array of shape (n,), and a phrase such as ``"epoch milliseconds"``.

    Raises
    ------
    DataError : a row is empty, cannot be read, is out of range (1973 to 2200 for an epoch, up to
        2200 otherwise), or is written in another form than the first row.
    """
    values = values.reset_index(drop=True)
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return _from_datetimes(values, values, origin, column), "dates with an offset"
    if pd.api.types.is_datetime64_dtype(values.dtype):
        return _from_datetimes(values.dt.tz_localize("UTC"), values, origin, column), "dates without offset, as UTC"
    if pd.api.types.is_bool_dtype(values.dtype):
        raise _refusal(values, 0, origin, column, f"is no timestamp; write {_FORMS}")
    if pd.api.types.is_numeric_dtype(values.dtype):
        return _from_epochs(values, values, origin, column)
    return _from_text(values, origin, column)


def _from_text(values: pd.Series, origin: str, column: str) -> tuple[NDArray[np.int64], str]:
    missing = values.isna()
    if missing.any():
        raise _refusal(values, int(np.argmax(missing)), origin, column, f"is empty; write {_FORMS}")
    text = values.astype("str").str.strip()
    epoch = text.str.fullmatch(_EPOCH).to_numpy(dtype=bool)
    if epoch.all():
        # Through Python's integers: a float64 would round nanoseconds.
        digits = text.str.replace(r"\.0*$", "", regex=True)
        wide = digits.str.len().to_numpy() > 19
        if wide.any():
            raise _refusal(values, int(np.argmax(wide)), origin, column, f"is too large for an epoch; write {_FORMS}")
        numbers = pd.Series([int(item) for item in digits], dtype=object)
        return _from_epochs(pd.to_numeric(numbers), values, origin, column)
    if epoch.any():
        odd = int(np.argmax(epoch != epoch[0]))
        raise _refusal(values, odd, origin, column, "mixes epochs with dates; write every row in one form")
    text = text.str.replace(r"\s*UTC$", "Z", regex=True)
    parsed = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
    instants = _from_datetimes(parsed, values, origin, column)
    offset = text.str.fullmatch(_OFFSET).to_numpy(dtype=bool)
    if offset.all():
        return instants, "ISO 8601 with an offset"
    if offset.any():
        odd = int(np.argmax(offset != offset[0]))
        remedy = "mixes times with and without an offset from UTC; write every row in one form"
        raise _refusal(values, odd, origin, column, remedy)
    return instants, "ISO 8601 without offset, as UTC"


def _from_epochs(numbers: pd.Series, values: pd.Series, origin: str, column: str) -> tuple[NDArray[np.int64], str]:
    missing = numbers.isna().to_numpy(dtype=bool)
    if missing.any():
        raise _refusal(values, int(np.argmax(missing)), origin, column, f"is empty; write {_FORMS}")
    rough = numbers.to_numpy(dtype=np.float64)
    if not pd.api.types.is_integer_dtype(numbers.dtype):
        with np.errstate(invalid="ignore"):
            odd = ~np.isfinite(rough) | (rough != np.floor(rough))
        if odd.any():
            raise _refusal(values, int(np.argmax(odd)), origin, column, f"is no whole number; write {_FORMS}")
    unit = np.searchsorted(_THRESHOLDS, rough, side="right") - 1
    small = unit < 0
    if small.any():
        remedy = f"is too small for an epoch (it would lie before 1973); write {_FORMS}"
        raise _refusal(values, int(np.argmax(small)), origin, column, remedy)
    mixed = unit != unit[0] if len(unit) else small
    if mixed.any():
        row = int(np.argmax(mixed))
        remedy = f"looks like {_UNITS[unit[row]]}, the rows before it like {_UNITS[unit[0]]}; use one unit in the file"
        raise _refusal(values, row, origin, column, remedy)
    if not len(unit):
        return np.empty(0, dtype=np.int64), "epoch"
    scale = _NANOSECONDS[unit[0]]
    late = rough * float(scale) >= _LATEST
    if late.any():
        remedy = f"lies after the year 2200 when read as {_UNITS[unit[0]]}; write {_FORMS}"
        raise _refusal(values, int(np.argmax(late)), origin, column, remedy)
    return numbers.to_numpy(dtype=np.int64) * scale, f"epoch {_UNITS[unit[0]]}"


def _from_datetimes(parsed: pd.Series, values: pd.Series, origin: str, column: str) -> NDArray[np.int64]:
    missing = parsed.isna().to_numpy(dtype=bool)
    if missing.any():
        raise _refusal(values, int(np.argmax(missing)), origin, column, f"cannot be read as a time; write {_FORMS}")
    years = parsed.dt.year.to_numpy()
    odd = (years < 1900) | (years >= 2200)
    if odd.any():
        raise _refusal(values, int(np.argmax(odd)), origin, column, "lies outside the years 1900 to 2199")
    instants: NDArray[np.datetime64] = parsed.dt.tz_convert("UTC").dt.as_unit("ns").to_numpy(dtype="datetime64[ns]")
    return instants.astype(np.int64)


def _refusal(values: pd.Series, row: int, origin: str, column: str, remedy: str) -> DataError:
    value = values.iloc[row]
    shown = "" if pd.isna(value) else value.item() if isinstance(value, np.generic) else value
    return DataError(f"{origin}, row {row + 1}, column {column!r}: {shown!r} {remedy}")
