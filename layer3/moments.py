"""Moments as manifests write them, in numbers that can be compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["nanoseconds"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(text: str) -> int:
    """UTC nanoseconds since 1970 of an ISO 8601 date and time; without an offset it is UTC.

    Exact for the years 1 to 9999, most of which an int64 does not hold. numpy would take "" for a moment, one
    before every other, and let the year 9999 wrap around to the past.

    Raises
    ------
    ValueError, TypeError : it is no such text
    """
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1_000
