"""What an experiment shows, as plain data: each arm, the difference between them, and whether it may be believed.

Returns are fractions of the portfolio's value at the decision. Annual figures take the units' own rate: as many
a year of 365 days as there were between the first decision and the last close. What is per year is
"if every unit had gone to this arm", so that arms of different shares compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3.ab.adjustment import Adjusted, adjusted_difference, moments
from layer3.ab.assignment import DAY_NS, Arm, Design
from layer3.ab.guardrails import Breach, find_breach
from layer3.ab.observations import Observations, Units, observe, units_at
from layer3.ab.planner import days_more, information_scale
from layer3.ab.recommend import Facts, Recommendation, recommend
from layer3.ab.records import Stop
from layer3.ab.sequential import always_valid_p, boundary
from layer3.ab.statistics import Comparison, mean_test, sample_ratio_p, welch, wilson
from layer3.ab.store import Store
from layer3.backtest.bootstrap import drawdown_interval, sharpe_difference_interval, sharpe_interval
from layer3.backtest.record import Interval

__all__ = ["Analysis", "ArmResult", "Look", "analyse"]

Floats = NDArray[np.float64]

_YEAR_DAYS: Final = 365.0
#: The bootstrap's seed: the same store gives the same report.
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm. ``total`` and ``mean`` return, the latter per unit; ``sharpe`` annualised; ``drawdown`` of its own
    trades, compounded, as a positive fraction; ``win_rate`` the share of ``trades`` (sizes that were not 0) that
    gained after costs, with its interval; ``fallbacks`` decisions whose multiplier no policy gave. ``None`` is
    what cannot be computed."""

    decisions: int
    outcomes: int
    units: int
    total: float
    mean: Comparison | None
    sharpe: Interval
    drawdown: Interval
    trades: int
    win_rate: float | None
    win_interval: tuple[float, float] | None
    duration_s: float | None
    fallbacks: int
    breach: Breach | None


@dataclass(frozen=True, slots=True)
class Look:
    """What was known at ``at_ns``: the adjusted difference per unit with its always-valid interval, the always-valid p
    value (least so far), and the usual p of Welch's t, which must not be looked at more than once."""

    at_ns: int
    units: tuple[int, int]
    difference: float
    low: float
    high: float
    p: float
    naive_p: float | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that a report tells. Differences are the policy's arm less Kelly's, per unit.

    ``paired`` is the mean of (policy's size - Kelly's size) x return over all units; ``sharpe_difference``
    annualised, of the same units at both sizes. ``removed``: share of the variance that base size and its return
    take out, ``removed_by_size``: the base size alone. ``curves``: days since 1970 (UTC) of the closes and the
    growth of the portfolio at either size.
    """

    design: Design
    started_ns: int
    until_ns: int
    arms: Mapping[Arm, ArmResult]
    left_out: Mapping[str, int]
    units_per_year: float | None
    ratio_p: float | None
    known_ratio_p: float | None
    welch: Comparison | None
    paired: Comparison | None
    sharpe_difference: Interval
    looks: tuple[Look, ...]
    removed: float | None
    removed_by_size: float | None
    stop: Stop | None
    warnings: tuple[str, ...]
    curves: tuple[Floats, Floats, Floats]
    recommendation: Recommendation

    @property
    def days(self) -> float:
        """Days from the start to the last thing that was recorded."""
        return (self.until_ns - self.started_ns) / DAY_NS


def analyse(store: Store, name: str) -> Analysis:
    """Judge the experiment ``name`` by what ``store`` knows now.

    Raises
    ------
    DataError : the store knows no such experiment
    """
    text, started_ns = store.experiment(name)
    design, rows, stop = Design.from_text(text), store.rows(name), store.stopped(name)
    seen = observe(rows)
    until_ns = max([started_ns, *(max(row.known_ns, row.decision.decided_ns) for row in rows)])
    units = units_at(seen, until_ns)
    per_year = _units_per_year(seen, len(units.policy))
    arms = {arm: _arm(arm, seen, units, per_year, design) for arm in Arm}
    looks = _looks(seen, design, until_ns)
    found, by_size, plain = (_difference(units, covariates) for covariates in (2, 1, 0))
    ratios = sharpe_difference_interval(
        units.at_policy, units.at_kelly, np.random.default_rng(_SEED), level=design.level
    )
    ratio_p, known_ratio_p = sample_ratio_p(seen.policy, seen.share), sample_ratio_p(units.policy, units.share)
    sharpe_difference = _scaled(ratios, None if per_year is None else math.sqrt(per_year))
    days = (until_ns - started_ns) / DAY_NS
    per = None if not looks else per_year
    facts = Facts(
        broken=_broken(stop, arms),
        units=(arms[Arm.KELLY].units, arms[Arm.POLICY].units),
        compared=(int(found.units[0]), int(found.units[1])),
        least_units=design.least_units,
        ratio_p=ratio_p,
        known_ratio_p=known_ratio_p,
        identical=seen.identical,
        estimate=looks[-1].difference * per if per else None,
        low=looks[-1].low * per if per else None,
        high=looks[-1].high * per if per else None,
        sharpe=sharpe_difference.estimate,
        smallest_effect=design.smallest_effect,
        days=days,
        planned_days=design.planned_days,
        days_for_smallest=_days_more(design.smallest_effect / per, found, per, design, days) if per else None,
        days_for_estimate=_days_more(looks[-1].difference, found, per, design, days) if per else None,
        days_for_units=_days_for_units(arms, design, days),
    )
    return Analysis(
        design=design,
        started_ns=started_ns,
        until_ns=until_ns,
        arms=arms,
        left_out=seen.left_out,
        units_per_year=per_year,
        ratio_p=ratio_p,
        known_ratio_p=known_ratio_p,
        welch=welch(units.earned[units.policy], units.earned[~units.policy], design.level),
        paired=mean_test(units.at_policy - units.at_kelly, design.level),
        sharpe_difference=sharpe_difference,
        looks=looks,
        removed=_removed(found, plain),
        removed_by_size=_removed(by_size, plain),
        stop=stop,
        warnings=_warnings(seen, units, found, arms),
        curves=_curves(seen),
        recommendation=recommend(facts),
    )


def _units_per_year(seen: Observations, units: int) -> float | None:
    """Units a year of 365 days at the rate of the record; ``None`` where it spans less than a day."""
    if not len(seen.decided_ns):
        return None
    days = float(seen.closed_ns.max() - seen.decided_ns.min()) / DAY_NS
    # A few hours, stretched to a year, would be a figure of nothing.
    return units / days * _YEAR_DAYS if days >= 1.0 else None


def _arm(arm: Arm, seen: Observations, units: Units, per_year: float | None, design: Design) -> ArmResult:
    mine = seen.policy[seen.unit] == (arm is Arm.POLICY)
    returns = units.earned[units.policy == (arm is Arm.POLICY)]
    order = np.argsort(seen.closed_ns[mine], kind="stable")
    gains, closed = seen.earned[mine][order], seen.closed_ns[mine][order]
    trades, won = int(seen.held[mine].sum()), int((seen.earned[mine & seen.held] > 0.0).sum())
    rng = np.random.default_rng(_SEED)
    ratio = sharpe_interval(returns, rng, level=design.level)
    lost = bool(len(gains)) and float(gains.min()) <= -1.0
    return ArmResult(
        decisions=seen.decisions.get(arm, 0),
        outcomes=int(mine.sum()),
        units=len(returns),
        total=float(gains.sum()),
        mean=mean_test(returns, design.level),
        sharpe=_scaled(ratio, None if per_year is None else math.sqrt(per_year)),
        drawdown=Interval(1.0, None, None, design.level) if lost else drawdown_interval(gains, rng, level=design.level),
        trades=trades,
        win_rate=won / trades if trades else None,
        win_interval=wilson(won, trades, design.level),
        duration_s=float(seen.duration_s[mine].mean()) if mine.any() else None,
        fallbacks=int(seen.fallback[mine].sum()) if arm is Arm.POLICY else 0,
        breach=find_breach(closed, gains, design),
    )


def _difference(units: Units, covariates: int = 2) -> Adjusted:
    """The difference in what the arms earned, adjusted by the base size and, as the second, by what it would have."""
    columns = np.stack((units.earned, units.base, units.at_kelly), axis=1)[:, : 1 + covariates]
    shares, stratum = np.unique(units.share, return_inverse=True)
    # Shifted to where nothing cancels; no number below depends on it.
    centred = columns - (columns.mean(axis=0) if len(columns) else 0.0)
    return adjusted_difference(moments(centred, units.policy, stratum, max(len(shares), 1)))


def _looks(seen: Observations, design: Design, until_ns: int) -> tuple[Look, ...]:
    """What was known at the end of each UTC day, and at last."""
    if not len(seen.known_ns):
        return ()
    first, last = int(seen.known_ns.min()) // DAY_NS, until_ns // DAY_NS
    ends = [*((day + 1) * DAY_NS - 1 for day in range(first, last)), until_ns]
    looks: list[Look] = []
    for end in ends:
        units = units_at(seen, end)
        found = _difference(units)
        if min(found.units) < design.least_units or not float(found.variance) > 0.0 or math.isnan(found.difference):
            continue
        information = information_scale(design) * found.effective
        error, estimate = math.sqrt(float(found.variance)), float(found.difference)
        reach = float(boundary(information, design.level)) * error
        p = float(always_valid_p(estimate / error, information))
        naive = welch(units.earned[units.policy], units.earned[~units.policy], design.level)
        looks.append(
            Look(
                at_ns=end,
                units=(int(found.units[0]), int(found.units[1])),
                difference=estimate,
                low=estimate - reach,
                high=estimate + reach,
                p=min(p, looks[-1].p) if looks else p,
                naive_p=naive.p if naive else None,
            )
        )
    return tuple(looks)


def _broken(stop: Stop | None, arms: Mapping[Arm, ArmResult]) -> str | None:
    breach = arms[Arm.POLICY].breach
    return stop.reason if stop else f"the policy's arm {breach.words}" if breach else None


def _days_more(effect: float, found: Adjusted, per_year: float, design: Design, days: float) -> float | None:
    """Days until a difference ``effect`` per unit would be found, at the noise and the rate so far; ``None`` for 0."""
    if effect == 0.0:
        return None
    return days_more(
        abs(effect),
        math.sqrt(float(found.noise)),
        per_year / _YEAR_DAYS,
        design,
        effective=float(found.effective),
        elapsed=days,
    )


def _days_for_units(arms: Mapping[Arm, ArmResult], design: Design, days: float) -> float | None:
    """Days until the smaller arm has the units that it needs, at its rate so far; ``None`` where it has none."""
    fewest = min(arm.units for arm in arms.values())
    return max(design.least_units - fewest, 0) * days / fewest if fewest else None


def _removed(found: Adjusted, plain: Adjusted) -> float | None:
    if not (float(found.variance) > 0.0 and float(plain.variance) > 0.0):
        return None
    return max(1.0 - float(found.variance) / float(plain.variance), 0.0)


def _scaled(interval: Interval, factor: float | None) -> Interval:
    """An interval of a ratio per unit as one per year; nothing where the year is not known."""
    if factor is None:
        return Interval(None, None, None, interval.level)
    estimate, low, high = (None if v is None else v * factor for v in (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.level)


def _curves(seen: Observations) -> tuple[Floats, Floats, Floats]:
    order = np.argsort(seen.closed_ns, kind="stable")
    policy, kelly = (np.cumprod(1.0 + np.maximum(v[order], -1.0)) for v in (seen.at_policy, seen.at_kelly))
    return np.asarray(seen.closed_ns[order] / DAY_NS), np.asarray(policy), np.asarray(kelly)


def _warnings(seen: Observations, units: Units, found: Adjusted, arms: Mapping[Arm, ArmResult]) -> tuple[str, ...]:
    warnings = []
    if seen.mismatched:
        warnings.append(
            f"In {seen.mismatched:,} outcomes the P&L is not the size times the return, give or take 0.5 %: the arms "
            "are judged by the P&L, the counterfactuals by the return. Partial fills do this, and so does a return "
            "with the wrong sign or in percent."
        )
    fallbacks, known = arms[Arm.POLICY].fallbacks, arms[Arm.POLICY].outcomes
    if fallbacks:
        warnings.append(
            f"In {fallbacks:,} of the policy's {known:,} decisions no policy answered and Kelly's size was held: they "
            "stay in its arm, where they hide a part of what it does."
        )
    used = int(found.units.sum())
    if 0 < used < len(units.policy):
        warnings.append(
            f"{len(units.policy) - used:,} units were assigned under shares that gave one arm fewer than ten: they "
            "compare with nothing and are left out of the difference."
        )
    breach = arms[Arm.KELLY].breach
    if breach:
        warnings.append(f"Kelly's arm broke a guardrail too: it {breach.words}.")
    return tuple(warnings)
