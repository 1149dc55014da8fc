"""The adjusted difference: a regression's, by another library; and nothing that the arms cannot differ in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.api import OLS

from layer3.ab.adjustment import adjusted_difference, moments


def world(seed: int, n: int = 400, strata: int = 1, effect: float = 0.0):
    rng = np.random.default_rng(seed)
    stratum = rng.integers(0, strata, n)
    policy = rng.random(n) < 0.3 + 0.4 * stratum / max(strata - 1, 1)
    base = rng.uniform(0.0, 0.3, n)
    market = base * 0.01 * rng.standard_t(5, n)
    y = market * (1.0 + 0.3 * rng.standard_normal(n)) + effect * policy + 0.002 * stratum
    return np.stack((y, base, market), axis=1), policy, stratum


@given(seed=st.integers(0, 9_999), n=st.integers(80, 600))
def test_the_slopes_are_those_of_a_regression_with_a_mean_for_each_arm(seed: int, n: int) -> None:
    values, policy, stratum = world(seed, n)
    found = adjusted_difference(moments(values, policy, stratum, 1))
    fit = OLS(values[:, 0], np.column_stack((policy, ~policy, values[:, 1:]))).fit()
    assert float(found.difference) == pytest.approx(fit.params[0] - fit.params[1], rel=1e-6, abs=1e-12)
    # Arm by arm the variance of what is left, as Welch's.
    rest = values[:, 0] - values[:, 1:] @ fit.params[2:]
    expected = sum(rest[side].var(ddof=1) / side.sum() for side in (policy, ~policy))
    assert float(found.variance) == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 9_999))
def test_shares_are_compared_within_themselves(seed: int) -> None:
    values, policy, stratum = world(seed, 900, strata=3, effect=0.001)
    found = adjusted_difference(moments(values[:, :1], policy, stratum, 3))
    total = weights = variance = 0.0
    for number in range(3):
        one, other = (values[(stratum == number) & side, 0] for side in (policy, ~policy))
        weight = len(one) * len(other) / (len(one) + len(other))
        total += weight * (one.mean() - other.mean())
        variance += weight**2 * (one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
        weights += weight
    assert float(found.difference) == pytest.approx(total / weights, rel=1e-9)
    assert float(found.variance) == pytest.approx(variance / weights**2, rel=1e-9)
    assert float(found.effective) == pytest.approx(weights)
    # What differs between the weeks of a ramp is no difference between the arms.
    assert abs(float(found.difference) - 0.001) < 6.0 * math.sqrt(float(found.variance))


def test_leading_axes_are_many_looks_in_one_call() -> None:
    values, policy, stratum = world(1, 300)
    whole, part = (moments(values[:n], policy[:n], stratum[:n], 1) for n in (300, 150))
    both = adjusted_difference(
        type(whole)(*(np.stack((getattr(part, f), getattr(whole, f))) for f in ("count", "total", "product")))
    )
    for index, one in enumerate((part, whole)):
        alone = adjusted_difference(one)
        for name in ("difference", "variance", "effective", "noise"):
            assert getattr(both, name)[index] == pytest.approx(float(getattr(alone, name)), rel=1e-12)


def test_the_adjustment_removes_what_it_explains_and_keeps_the_difference() -> None:
    errors, shares = [], []
    for seed in range(300):
        values, policy, stratum = world(seed, 500, effect=0.0005)
        found = adjusted_difference(moments(values, policy, stratum, 1))
        errors.append((float(found.difference) - 0.0005) / math.sqrt(float(found.variance)))
        plain = adjusted_difference(moments(values[:, :1], policy, stratum, 1))
        shares.append(1.0 - float(found.variance) / float(plain.variance))
    assert abs(np.mean(errors)) < 4.0 / math.sqrt(300)
    assert np.std(errors) == pytest.approx(1.0, abs=0.15)
    assert 0.8 < np.mean(shares) < 0.99


@pytest.mark.parametrize("column", [1, 2])
def test_a_constant_covariate_explains_nothing(column: int) -> None:
    values, policy, stratum = world(2)
    kept = 3 - column
    values[:, column] = 0.25
    found, alone = (adjusted_difference(moments(v, policy, stratum, 1)) for v in (values, values[:, [0, kept]]))
    assert float(found.difference) == pytest.approx(float(alone.difference), rel=1e-6)
    assert float(found.variance) == pytest.approx(float(alone.variance), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda values, policy: (np.full_like(values, 0.01), policy),
        lambda values, policy: (np.zeros_like(values), policy),
        lambda values, policy: (values[:, [2, 1, 2]], policy),
        lambda values, policy: (values, np.zeros_like(policy)),
        lambda values, policy: (values[:15], policy[:15]),
        lambda values, policy: (values[:0], policy[:0]),
    ],
    ids=["equal", "zero", "what the base size earned", "one arm", "few", "none"],
)
def test_where_nothing_can_be_tested_there_is_no_number(change) -> None:
    values, policy = change(*world(3)[:2])
    found = adjusted_difference(moments(values, policy, np.zeros(len(values), dtype=np.int64), 1))
    assert math.isnan(float(found.difference))
    assert float(found.variance) == 0.0


def test_a_share_with_few_of_one_arm_is_left_out() -> None:
    values, policy, _ = world(4, 400)
    stratum = np.zeros(400, dtype=np.int64)
    stratum[np.flatnonzero(policy)[:9]] = 1
    stratum[np.flatnonzero(~policy)[:50]] = 1
    found = adjusted_difference(moments(values, policy, stratum, 2))
    assert found.units.tolist() == [np.sum(~policy) - 50, np.sum(policy) - 9]
