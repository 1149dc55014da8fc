"""No market's training part overlaps in time what another is judged on, whenever their histories begin."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from layer3 import workflow
from layer3.agent.bars import Bars
from layer3.errors import DataError
from layer3.experiments.calendar import common_calendar
from layer3.experiments.market import Market
from layer3.market.splits import PURGE_HOURS
from tests.agent.worlds import HOUR_NS, START, make_bars

WEEK_NS = PURGE_HOURS * HOUR_NS


def market(name: str, n: int, begins: int = 0, interval: int = HOUR_NS, **columns: Any) -> Market:
    """``n`` bars from ``begins`` hours after the worlds' start."""
    times = START + begins * HOUR_NS + interval * np.arange(n, dtype=np.int64)
    return Market(make_bars(n, seed=len(name), timestamp=times, **columns), {"symbol": name})


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(5_000, 9_000)), min_size=2, max_size=4))
def test_whatever_is_judged_lies_a_week_after_everything_that_was_trained_on(periods: list[tuple[int, int]]) -> None:
    markets = [market(f"M{number}", n, begins) for number, (begins, n) in enumerate(periods)]
    start = max(begins for begins, _ in periods)
    end = min(begins + n for begins, n in periods)
    assume(end - start >= 4_500)
    calendar = common_calendar(markets)
    trained = [bars.timestamp[calendar.splits.train.stop - 1] for bars in calendar.bars]
    validated = [
        bars.timestamp[list(calendar.splits.validation)[:: len(calendar.splits.validation) - 1]]
        for bars in calendar.bars
    ]
    judged = [bars.timestamp[calendar.splits.test.start] for bars in calendar.bars]
    assert min(first for first, _ in validated) - max(trained) > WEEK_NS
    assert min(judged) - max(last for _, last in validated) > WEEK_NS
    for own, bars, offset in zip(markets, calendar.bars, calendar.offsets, strict=True):
        assert len(bars) == end - start
        for field in fields(Bars):
            expected = getattr(own.bars, field.name)[offset : offset + len(bars)]
            np.testing.assert_array_equal(getattr(bars, field.name), expected)


def test_splitting_by_row_number_would_have_leaked() -> None:
    """What the rule is against: the same rows of histories that begin on different days."""
    early, late = market("EARLY", 9_000), market("LATE", 9_000, begins=3_000)
    by_rows = workflow.splits_of(early.bars)
    assert late.bars.timestamp[by_rows.train.stop - 1] > early.bars.timestamp[by_rows.validation.start]
    calendar = common_calendar([early, late])
    assert calendar.offsets == (3_000, 0)
    for trained in calendar.bars:
        for judged in calendar.bars:
            last = trained.timestamp[calendar.splits.train.stop - 1]
            assert last + WEEK_NS < judged.timestamp[calendar.splits.validation.start]


@pytest.mark.parametrize(
    ("markets", "message"),
    [
        (
            [market("A", 6_000), market("B", 2_000, interval=4 * HOUR_NS)],
            r"A has bars of 3,600 seconds, B of 14,400: give all markets in bars of one length",
        ),
        (
            [market("A", 6_000), market("B", 6_000, begins=6_001)],
            r"B begins 2023-09-08 01:00 UTC, after A has ended 2023-09-07 23:00: the markets have no common period",
        ),
        ([market("A", 6_000), market("B", 6_000, begins=5_000)], r"the common period of A, B: 1,000 bars give"),
        (
            [
                market("A", 6_000),
                Market(make_bars(6_000, timestamp=START + 60 * 10**9 + HOUR_NS * np.arange(6_000)), {"symbol": "B"}),
            ],
            r"B and A have bars at different times between .* give all markets in bars that open together",
        ),
    ],
)
def test_markets_that_do_not_fit_together_are_refused(markets: list[Market], message: str) -> None:
    with pytest.raises(DataError, match=message):
        common_calendar(markets)
