"""Tests that are valid at one look: Welch's t, the paired t, Wilson's interval, and the sample-ratio check.

Student's distribution is needed here at degrees of freedom that are no whole numbers, so its tail is
taken from the incomplete beta function; quantiles are those of
:func:`layer3.backtest.intervals.student_quantile` at the next whole number below, which errs wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.intervals import student_quantile
from layer3.backtest.significance import NO_SPREAD

__all__ = ["Comparison", "mean_test", "sample_ratio_p", "student_p", "welch", "wilson"]

Floats = NDArray[np.float64]

#: With more degrees of freedom Student's quantile is taken at this many, a thousandth too wide.
_MOST_FREEDOM: Final = 1_000
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A mean or a difference of two, its two-sided interval at ``level``, and a t test of 0."""

    estimate: float
    low: float
    high: float
    level: float
    t: float
    freedom: float
    p: float


def welch(first: Floats, second: Floats, level: float) -> Comparison | None:
    """Mean of ``first`` (n,) less that of ``second`` (m,), of unequal variances (Welch 1947; Satterthwaite 1946).

    ``None`` below two values on a side, or where neither has any spread.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    parts = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    if math.sqrt(sum(parts)) <= NO_SPREAD:
        return None
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return _judged(float(first.mean() - second.mean()), math.sqrt(sum(parts)), freedom, level)


def mean_test(values: Floats, level: float) -> Comparison | None:
    """Mean of ``values`` (n,) against 0 by Student's t: of differences, the paired test.

    It takes the values as independent. ``None`` below two, or without spread.
    """
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error <= NO_SPREAD:
        return None
    return _judged(float(values.mean()), error, len(values) - 1.0, level)


def student_p(t: float, freedom: float) -> float:
    """Probability of a value of Student's distribution at least as far from 0 as ``t``; ``freedom`` any number above 0.

    ``I_x(freedom / 2, 1 / 2)`` at x = freedom / (freedom + t^2) (Abramowitz & Stegun 1964, 26.5.27).
    """
    if not freedom > 0.0 or not math.isfinite(t):
        raise ValueError(f"t {t} with {freedom} degrees of freedom: expected a finite t and more than 0")
    square = t * t
    return _incomplete_beta(0.5 * freedom, 0.5, freedom / (freedom + square), square / (freedom + square))


def wilson(successes: int, n: int, level: float) -> tuple[float, float] | None:
    """Interval of a share of ``successes`` among ``n`` (Wilson 1927); ``None`` for none."""
    if n == 0:
        return None
    z = _NORMAL.inv_cdf(0.5 + 0.5 * level)
    share, weight = successes / n, z * z / n
    middle = (share + 0.5 * weight) / (1.0 + weight)
    reach = z * math.sqrt(share * (1.0 - share) / n + 0.25 * weight / n) / (1.0 + weight)
    # At 0 and n successes the ends are exact, but for rounding.
    return (max(middle - reach, 0.0) if successes else 0.0), (min(middle + reach, 1.0) if successes < n else 1.0)


def sample_ratio_p(policy: NDArray[np.bool_], shares: Floats) -> float | None:
    """Probability of a split at least as far from the intended one, if assignment works.

    Pearson's chi-square with one degree of freedom, of units (n,) that got the policy against the
    ``shares`` (n,) that each was assigned under (for one share that of Fabijan et al. 2019, "Diagnosing
    sample ratio mismatch"). ``None`` where no unit could have gone either way.
    """
    variance = float((shares * (1.0 - shares)).sum())
    if variance <= 0.0:
        return None
    square = float(policy.sum() - shares.sum()) ** 2 / variance
    return math.erfc(math.sqrt(0.5 * square))


def _judged(estimate: float, error: float, freedom: float, level: float) -> Comparison:
    reach = student_quantile(level, max(1, min(int(freedom), _MOST_FREEDOM))) * error
    t = estimate / error
    return Comparison(estimate, estimate - reach, estimate + reach, level, t, freedom, student_p(t, freedom))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function at ``x``, with ``rest`` = 1 - x given apart for its digits."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    front = math.exp(logarithm)
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction DLMF 8.17.22, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"the incomplete beta function at {a}, {b}, {x} did not converge")
