"""How sure one may be of a mean over few seeds, and how good the best of many looks by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import Final

import numpy as np

__all__ = ["LEVEL", "Interval", "expected_maximum", "student_quantile", "t_interval"]

#: Probability that an interval holds the mean over all seeds that there could be.
LEVEL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` seeds, its standard error, and the bounds of its interval; all in the unit of the values."""

    mean: float
    low: float
    high: float
    standard_error: float
    n: int


def t_interval(values: Sequence[float | None], level: float = LEVEL) -> Interval | None:
    """Student's interval of the mean of ``values`` (n,), one per seed.

    It takes the seeds' values as independent and roughly normal. ``None`` below two values, or where
    one is missing: a mean of those that are there would be of the lucky ones.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(known) < len(values):
        return None
    mean, error = fmean(known), stdev(known) / math.sqrt(len(known))
    reach = student_quantile(level, len(known) - 1) * error
    return Interval(mean, mean - reach, mean + reach, error, len(known))


@cache
def student_quantile(level: float, freedom: int) -> float:
    """t for which ``level`` of Student's distribution with ``freedom`` degrees lies within +- t."""
    if not 0.0 < level < 1.0 or freedom < 1:
        raise ValueError(f"level {level} and {freedom} degrees of freedom: expected a level in (0, 1) and at least 1")
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2.0
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return 0.5 * (low + high)


def _within(t: float, freedom: int) -> float:
    """Probability of +- t, by the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    series = math.sin(angle) * total
    return 2.0 / math.pi * (angle + series) if odd else series


@cache
def expected_maximum(n: int) -> float:
    """Mean of the largest of ``n`` independent standard normal numbers.

    The integral of ``1 - F^n`` over the positive numbers less that of ``F^n`` over the negative, by
    the trapezoidal rule.
    """
    if n < 1:
        raise ValueError(f"the largest of {n} numbers: expected at least 1")
    normal, step = NormalDist(), 0.01
    x = np.arange(-1_000, 1_001) * step
    below = np.array([normal.cdf(value) for value in x]) ** n
    return float(step * (np.sum(x >= 0.0) - 0.5 - below.sum()))
