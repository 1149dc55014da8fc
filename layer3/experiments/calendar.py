"""Several markets on one calendar, so that no policy is trained on hours that another market is judged on.

Crypto markets move together: a policy that was trained on one market's March knows something of
every market's March. So the parts are cut at the same moments for all, never at the same row numbers
of histories that begin on different days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from layer3 import workflow
from layer3.agent.bars import Bars
from layer3.errors import DataError
from layer3.experiments.market import Market, moment
from layer3.market.splits import Splits

__all__ = ["Calendar", "common_calendar"]


@dataclass(frozen=True)
class Calendar:
    """Each market's bars of the common period, equally many and bar by bar at the same times, and where each
    market's own rows begin. ``splits`` holds for all of them."""

    bars: tuple[Bars, ...]
    offsets: tuple[int, ...]
    splits: Splits


def common_calendar(markets: Sequence[Market]) -> Calendar:
    """Cut every market to the period that all have, and split it by time as a run's data are.

    Raises
    ------
    DataError : bars of different lengths, bars that open at different minutes, no common period, or one
        too short to split
    """
    first = markets[0]
    for market in markets:
        if market.bars.interval_seconds != first.bars.interval_seconds:
            raise DataError(
                f"{first.symbol} has bars of {first.bars.interval_seconds:,} seconds, {market.symbol} of "
                f"{market.bars.interval_seconds:,}: give all markets in bars of one length"
            )
    latest = max(markets, key=lambda market: int(market.bars.timestamp[0]))
    earliest = min(markets, key=lambda market: int(market.bars.timestamp[-1]))
    start, end = latest.bars.timestamp[0], earliest.bars.timestamp[-1]
    if start > end:
        raise DataError(
            f"{latest.symbol} begins {moment(latest.bars, 0)} UTC, after {earliest.symbol} has ended "
            f"{moment(earliest.bars, -1)}: the markets have no common period; give data that overlap"
        )
    rows = [range(*np.searchsorted(market.bars.timestamp, (start, end + 1))) for market in markets]
    bars = tuple(_cut(market.bars, own) for market, own in zip(markets, rows, strict=True))
    for market, own in zip(markets, bars, strict=True):
        if not np.array_equal(own.timestamp, bars[0].timestamp):
            raise DataError(
                f"{market.symbol} and {first.symbol} have bars at different times between {moment(latest.bars, 0)} and "
                f"{moment(earliest.bars, -1)} UTC: give all markets in bars that open together"
            )
    try:
        splits = workflow.splits_of(bars[0])
    except DataError as error:
        names = ", ".join(market.symbol for market in markets)
        raise DataError(f"the common period of {names}: {error}") from error
    return Calendar(bars, tuple(own.start for own in rows), splits)


def _cut(bars: Bars, rows: range) -> Bars:
    return Bars(**{field.name: getattr(bars, field.name)[rows.start : rows.stop] for field in fields(Bars)})
