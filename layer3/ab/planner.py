"""How many units and days an experiment needs before it can say something."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from layer3.ab.assignment import Design
from layer3.ab.sequential import boundary, mixture_scale
from layer3.errors import ConfigurationError

__all__ = ["POWER", "Plan", "days_more", "information_scale", "plan"]

#: Probability with which a true difference of the stated size is to be found.
POWER: Final = 0.8
_NORMAL: Final = NormalDist()
_LONGEST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class Plan:
    """Units (both arms) and days until a difference is found with the probability ``POWER``.

    ``fixed_*`` for one look at the end, ``*`` for looks on every day, which is the price of looking.
    ``days`` are ``None`` where a hundred years would not do.
    """

    fixed_units: int
    fixed_days: float | None
    units: int
    days: float | None


def information_scale(design: Design) -> float:
    """tau^2 over the variance of a unit, per effective unit, for :mod:`layer3.ab.sequential`."""
    share = design.ramp[-1][1]
    # An experiment whose share ends at 0 or 1 learns on the way there.
    halves = share * (1.0 - share) or 0.25
    return mixture_scale(design.level, design.expected_units * halves)


def plan(effect: float, noise: float, units_per_day: float, design: Design) -> Plan:
    """What it takes to find a difference ``effect`` of means, for units with the standard deviation ``noise``.

    One look: ``(z_level + z_power)^2 noise^2 / effect^2`` effective units, of which n units under a share s
    are n s (1 - s) (Kohavi, Tang and Xu 2020, chapter 17, for equal halves 16 noise^2 / effect^2 in each at
    95 and 80 %). Every day: as many as put the effect ``z_power`` standard errors beyond the always-valid
    boundary; that the boundary may be crossed earlier is not counted, so it errs long.
    ``units_per_day`` with an outcome; ``design``'s ramp is followed from its first day.

    Raises
    ------
    ConfigurationError : an effect, a noise or a number of units that is not above 0
    """
    for name, value in (("effect", effect), ("noise", noise), ("units_per_day", units_per_day)):
        if not 0.0 < value < math.inf:
            raise ConfigurationError(f"a plan with {name} {value}: it must be a finite number above 0")
    fixed = (_NORMAL.inv_cdf(0.5 + 0.5 * design.level) + _NORMAL.inv_cdf(POWER)) ** 2 * (noise / effect) ** 2
    every = _effective(effect, noise, design)
    fixed_days, days = (_days(units, units_per_day, design) for units in (fixed, every))
    share = design.ramp[-1][1]
    halves = share * (1.0 - share) or 0.25
    return Plan(
        math.ceil(fixed / halves if fixed_days is None else fixed_days * units_per_day),
        fixed_days,
        math.ceil(every / halves if days is None else days * units_per_day),
        days,
    )


def days_more(
    effect: float, noise: float, units_per_day: float, design: Design, *, effective: float, elapsed: float
) -> float:
    """Days from now until a difference ``effect`` would be found by looks on every day, with the probability ``POWER``.

    ``effective`` units are there already after ``elapsed`` days; infinite where a hundred years would not do, and 0
    where as many are there as it takes.
    """
    left = _effective(effect, noise, design) - effective
    days = _days(left, units_per_day, design, elapsed) if left > 0.0 else elapsed
    return math.inf if days is None else days - elapsed


def _effective(effect: float, noise: float, design: Design) -> float:
    """Effective units that put ``effect`` the power's quantile of standard errors beyond the always-valid boundary."""
    power, scale = _NORMAL.inv_cdf(POWER), information_scale(design)

    def enough(effective: float) -> bool:
        reached = math.sqrt(effective) * effect / noise
        return reached >= float(boundary(scale * effective, design.level)) + power

    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2.0 * high
    while high - low > 1e-6 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _days(effective: float, units_per_day: float, design: Design, since: float = 0.0) -> float | None:
    """The day on which the ramp has given so many effective units from day ``since`` on."""
    left = effective
    ends = [*(day for day, _ in design.ramp[1:]), since + _LONGEST_DAYS]
    for (begin, share), end in zip(design.ramp, ends, strict=True):
        start = max(begin, since)
        rate, days = units_per_day * share * (1.0 - share), end - start
        if days <= 0.0:
            continue
        if rate > 0.0 and left <= rate * days:
            return start + left / rate
        left -= rate * days
    return None
