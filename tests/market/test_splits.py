"""Splits by time: in order, disjoint, with a gap, or refused with the number it takes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.errors import DataError
from layer3.market.splits import PURGE_HOURS, Splits, split


@pytest.mark.parametrize(
    ("bars", "purge", "expected"),
    [
        (10_336, 168, Splits(range(6_000), range(6_168, 7_668), range(7_836, 10_336))),
        (10_000, 0, Splits(range(6_000), range(6_000, 7_500), range(7_500, 10_000))),
        (35_040, 168, Splits(range(20_822), range(20_990, 26_195), range(26_363, 35_040))),
    ],
)
def test_expected_ranges(bars: int, purge: int, expected: Splits) -> None:
    assert split(bars, purge=purge) == expected


@given(bars=st.integers(0, 60_000), purge=st.integers(0, 500))
def test_parts_are_ordered_with_a_gap_and_reach_the_last_bar(bars: int, purge: int) -> None:
    try:
        parts = split(bars, purge=purge)
    except DataError as error:
        asked = re.search(r"supply at least ([\d,]+) bars", str(error))
        assert asked
        needed = int(asked[1].replace(",", ""))
        assert needed > bars
        assert min(map(len, _all(split(needed, purge=purge)))) >= 550
        with pytest.raises(DataError):
            split(needed - 1, purge=purge)
        return
    train, validation, test = _all(parts)
    assert train.start == 0
    assert validation.start - train.stop == purge
    assert test.start - validation.stop == purge
    assert test.stop == bars
    assert min(len(train), len(validation), len(test)) >= 550


def _all(parts: Splits) -> tuple[range, range, range]:
    return parts.train, parts.validation, parts.test


@given(bars=st.integers(4_005, 50_000), more=st.integers(1, 5_000))
def test_more_bars_never_shrink_the_training_part(bars: int, more: int) -> None:
    assert len(split(bars + more, purge=168).train) >= len(split(bars, purge=168).train)


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 0.0},
        {"train": 1.0},
        {"validation": 0.0},
        {"train": 0.9, "validation": 0.1},
        {"purge": -1},
    ],
)
def test_shares_that_leave_nothing_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="leave no test part"):
        split(10_000, **({"purge": 10} | shares))  # type: ignore[arg-type]


def test_the_gap_is_a_week() -> None:
    assert PURGE_HOURS == 7 * 24
