"""What to do, by rules that were there before the data: the first of the table below that holds.

| rule | recommendation |
|---|---|
| a guardrail broke, or stopped the policy's arm | disable |
| an arm has fewer units with an outcome than were asked for, all or those that compare | continue |
| the split is not the intended one (p < 0.001), of assigned units or of those with an outcome | continue |
| both sizes were the same in every decision | no difference |
| all returns are equal, or they cover less than a day | continue |
| the interval of the difference lies above 0, the Sharpe ratio is not lower | deploy |
| the interval lies below 0, the Sharpe ratio is not higher | disable |
| the whole interval matters to nobody (within the smallest effect) | no difference |
| the planned days are over | no difference |
| otherwise | continue |

Return and Sharpe ratio must not speak against each other: a policy that only holds more earns more in a
good month, and it is the ratio that tells. The interval is the always-valid one, so the table may be asked
every day; the Sharpe ratio can only hold a recommendation back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from layer3.ab.planner import POWER

__all__ = ["LEAST_RATIO_P", "Action", "Facts", "Recommendation", "recommend"]

Action = Literal["deploy", "disable", "continue", "no_difference"]
#: Below this probability a split is taken as broken; small, because it is asked every day.
LEAST_RATIO_P: Final = 0.001
#: Days that nobody will wait for.
_LONG: Final = 3_650.0

_HEADLINES: Final[dict[Action, str]] = {
    "deploy": "Deploy the policy to 100 %",
    "disable": "Disable the policy",
    "continue": "Continue",
    "no_difference": "No difference",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. ``estimate``, ``low`` and ``high`` are the difference of mean return (policy less Kelly)
    per year and its always-valid interval, ``sharpe`` the difference of the annualised Sharpe ratios; ``None``
    where they cannot be computed. ``units`` with an outcome in each arm (Kelly, policy), ``compared`` those of them
    that were assigned under shares at which both arms have some."""

    broken: str | None
    units: tuple[int, int]
    compared: tuple[int, int]
    least_units: int
    ratio_p: float | None
    known_ratio_p: float | None
    identical: bool
    estimate: float | None
    low: float | None
    high: float | None
    sharpe: float | None
    smallest_effect: float
    days: float
    planned_days: float
    #: Days until the smallest effect that matters, and one like the present estimate, would be found.
    days_for_smallest: float | None
    days_for_estimate: float | None
    #: Days until each arm has the units that it needs, at the rate so far.
    days_for_units: float | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``action``, its words, why in a sentence or two, and what it takes to know more ("" where nothing does)."""

    action: Action
    headline: str
    reason: str
    more: str


def recommend(facts: Facts) -> Recommendation:
    """Go through the module's table from the top."""
    action, reason = _early(facts) or _judged(facts)
    return Recommendation(action, _HEADLINES[action], reason, _more(facts) if action == "continue" else "")


def _early(facts: Facts) -> tuple[Action, str] | None:
    """What holds before any difference is looked at."""
    if facts.broken is not None:
        return "disable", f"A guardrail stopped it: {facts.broken}."
    kelly, policy = facts.units
    if min(facts.units) < facts.least_units:
        return "continue", (
            f"{policy:,} unit{'s' * (policy != 1)} of the policy's arm and {kelly:,} of Kelly's have an outcome; "
            f"nothing is concluded below {facts.least_units:,} in each."
        )
    if facts.ratio_p is not None and facts.ratio_p < LEAST_RATIO_P:
        return "continue", (
            f"The split is not the intended one (p = {facts.ratio_p:.1g}): the arms were not assigned as the design "
            "says, so no difference between them means anything. Repair that and begin anew."
        )
    if facts.known_ratio_p is not None and facts.known_ratio_p < LEAST_RATIO_P:
        return "continue", (
            f"Outcomes are missing from one arm more than from the other (p = {facts.known_ratio_p:.1g}): "
            "what is known is not what happened. Record the missing outcomes first."
        )
    if min(facts.compared) < facts.least_units:
        return "continue", (
            f"{facts.compared[1]:,} units of the policy's arm and {facts.compared[0]:,} of Kelly's were assigned under "
            f"shares at which both have ten; nothing is concluded below {facts.least_units:,} in each."
        )
    if facts.identical:
        return "no_difference", "Both sizes were the same in every decision: there is nothing to compare."
    return None


def _judged(facts: Facts) -> tuple[Action, str]:
    """What the difference and its always-valid interval say."""
    low, high, sharpe = facts.low, facts.high, facts.sharpe
    if facts.estimate is None or low is None or high is None:
        return "continue", "All returns are equal, or they cover less than a day: no difference can be tested."
    told = f"{_percent(facts.estimate)} a year (always-valid interval {_percent(low)} to {_percent(high)})"
    ratio = "" if sharpe is None else f", the Sharpe ratio by {sharpe:+.2f}".replace("-", "−")
    differs = f"The policy's mean return differs by {told}{ratio}."
    if low > 0.0 and sharpe is not None and sharpe >= 0.0:
        return "deploy", f"{differs} It earns more, and not by risking more."
    if high < 0.0 and sharpe is not None and sharpe <= 0.0:
        return "disable", f"{differs} It earns less, and not by risking less."
    reach = f"±{facts.smallest_effect:.1%} a year"
    if -facts.smallest_effect <= low and high <= facts.smallest_effect:
        return "no_difference", f"{differs} All of the interval lies within {reach}, which is what does not matter."
    aside = ""
    if low > 0.0:
        aside = " It earns more only by holding more: per unit of risk it does not earn more."
    elif high < 0.0:
        aside = " It earns less because it holds less: per unit of risk it does not earn less."
    if facts.days >= facts.planned_days:
        over = f"The planned {facts.planned_days:g} days are over and no difference worth acting on was shown."
        return "no_difference", f"{differs}{aside} {over} One as large as the interval's ends is not ruled out."
    return "continue", differs + (aside or " Neither sign is shown.")


def _more(facts: Facts) -> str:
    """What it takes to know more, in days."""
    if min(facts.units) < facts.least_units and facts.days_for_units is not None:
        return f"At the rate so far each arm has as many in {_more_days(facts.days_for_units)}."
    if facts.days_for_smallest is None and facts.days_for_estimate is None:
        return "How long it will take cannot be said yet."
    parts = []
    if facts.days_for_smallest is not None:
        parts.append(
            f"a true difference of {facts.smallest_effect:.1%} a year is found in {_more_days(facts.days_for_smallest)}"
        )
    if facts.days_for_estimate is not None:
        parts.append(f"one as large as the present estimate in {_more_days(facts.days_for_estimate)}")
    left = max(facts.planned_days - facts.days, 0.0)
    ahead = f"The plan has {_days(left)} left." if left else "The planned days are over."
    return f"With {POWER:.0%} probability, {', '.join(parts)}. {ahead}"


def _more_days(days: float) -> str:
    return "more than ten years" if days > _LONG else f"{_days(days)} more"


def _days(days: float) -> str:
    whole = max(math.ceil(days), 1)
    return f"{whole:,} day{'s' * (whole != 1)}"


def _percent(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")
