"""Tests for one look, against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from layer3.ab.statistics import mean_test, sample_ratio_p, student_p, welch, wilson


def sample(seed: int, n: int, shift: float = 0.0) -> NDArray[np.float64]:
    return 0.01 * (shift + np.random.default_rng(seed).standard_t(4, n))


@given(t=st.floats(-60.0, 60.0), freedom=st.floats(0.3, 5_000.0))
def test_students_tail_equals_that_of_scipy(t: float, freedom: float) -> None:
    assert student_p(t, freedom) == pytest.approx(2.0 * stats.t.sf(abs(t), freedom), rel=1e-8, abs=1e-300)


@given(seed=st.integers(0, 9_999), n=st.integers(2, 300), m=st.integers(2, 300), shift=st.floats(-1.0, 1.0))
def test_welch_equals_that_of_scipy(seed: int, n: int, m: int, shift: float) -> None:
    first, second = sample(seed, n, shift), sample(seed + 1, m) * 3.0
    found, theirs = welch(first, second, 0.9), stats.ttest_ind(first, second, equal_var=False)
    assert found is not None
    assert found.t == pytest.approx(theirs.statistic, rel=1e-9)
    assert found.freedom == pytest.approx(theirs.df, rel=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-7, abs=1e-300)
    # The quantile at whole degrees of freedom errs wide, and by little once there are some.
    low, high = theirs.confidence_interval(0.9)
    assert found.low <= low + 1e-12
    assert found.high >= high - 1e-12
    if found.freedom > 30.0:
        assert found.high - found.low == pytest.approx(high - low, rel=2e-3)


@given(seed=st.integers(0, 9_999), n=st.integers(2, 400), shift=st.floats(-1.0, 1.0))
def test_the_paired_test_equals_that_of_scipy(seed: int, n: int, shift: float) -> None:
    first, second = sample(seed, n, shift), sample(seed + 1, n)
    found, theirs = mean_test(first - second, 0.95), stats.ttest_rel(first, second)
    assert found is not None
    assert (found.t, found.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-7, abs=1e-300)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0], [0.5, 0.5, 0.5]])
def test_nothing_is_said_of_too_few_values_or_of_equal_ones(values: list[float]) -> None:
    assert mean_test(np.array(values), 0.95) is None
    assert welch(np.array(values), np.array(values), 0.95) is None


@given(n=st.integers(1, 5_000), share=st.floats(0.0, 1.0), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_interval_equals_that_of_statsmodels(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    found = wilson(successes, n, level)
    assert found == pytest.approx(proportion_confint(successes, n, 1.0 - level, "wilson"), abs=1e-12)


def test_no_trades_have_no_win_rate() -> None:
    assert wilson(0, 0, 0.95) is None


@given(n=st.integers(10, 3_000), got=st.floats(0.3, 0.7), share=st.floats(0.1, 0.9))
def test_the_split_is_judged_by_pearsons_chi_square(n: int, got: float, share: float) -> None:
    policy = np.arange(n) < got * n
    count = int(policy.sum())
    theirs = stats.chisquare([count, n - count], [n * share, n * (1.0 - share)]).pvalue
    assert sample_ratio_p(policy, np.full(n, share)) == pytest.approx(theirs, rel=1e-9, abs=1e-300)


def test_a_split_that_works_is_called_broken_as_often_as_its_p_value_says() -> None:
    rng = np.random.default_rng(3)
    shares = np.repeat([0.05, 0.2, 0.5], [300, 500, 700])
    found = np.array([sample_ratio_p(rng.random(1_500) < shares, shares) for _ in range(2_000)], dtype=np.float64)
    for level in (0.01, 0.05, 0.5):
        assert abs(np.mean(found < level) - level) < 4.0 * math.sqrt(level * (1.0 - level) / 2_000)


def test_a_split_with_no_choice_cannot_be_judged() -> None:
    assert sample_ratio_p(np.ones(5, dtype=bool), np.ones(5)) is None
