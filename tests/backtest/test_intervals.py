"""Student's interval and the expected maximum against scipy and against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layer3.backtest.intervals import expected_maximum, student_quantile, t_interval


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_quantile_is_scipys(freedom: int, level: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf(0.5 + level / 2, freedom), rel=1e-8)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
def test_the_interval_is_scipys(values: list[float]) -> None:
    interval = t_interval(values)
    assert interval is not None
    error = stats.sem(values)
    assert interval.standard_error == pytest.approx(error, abs=1e-9)
    reach = stats.t.ppf(0.95, len(values) - 1) * error
    assert (interval.low, interval.high) == pytest.approx(
        (np.mean(values) - reach, np.mean(values) + reach), rel=1e-7, abs=1e-9
    )
    assert interval.n == len(values)
    assert interval.low <= interval.mean <= interval.high


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    drawn = np.random.default_rng(1).normal(0.3, 2.0, (4_000, 5))
    held = [interval.low <= 0.3 <= interval.high for row in drawn if (interval := t_interval(row.tolist()))]
    assert np.mean(held) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, None], [1.0, 2.0, None], [None, None]])
def test_one_seed_or_a_missing_value_has_no_interval(values: list[float | None]) -> None:
    assert t_interval(values) is None


@pytest.mark.parametrize(("level", "freedom"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_a_level_that_cannot_be_is_refused(level: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_quantile(level, freedom)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0.0), (2, 1 / np.sqrt(np.pi)), (3, 1.5 / np.sqrt(np.pi)), (20, 1.867475), (1_000, 3.241436)]
)
def test_the_expected_maximum(n: int, expected: float) -> None:
    assert expected_maximum(n) == pytest.approx(expected, abs=1e-5)


def test_the_expected_maximum_by_counting() -> None:
    drawn = np.random.default_rng(2).standard_normal((20_000, 7)).max(axis=1)
    assert expected_maximum(7) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(len(drawn)))


def test_the_largest_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        expected_maximum(0)
