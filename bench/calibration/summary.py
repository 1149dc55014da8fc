"""The calibration's tables: shares with their intervals, beside what theory says of the record's length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final

from bench.calibration.candidates import CHAIN, TRAINING
from bench.calibration.judging import EFFORT, GATE, PLAIN_SHARPE
from bench.calibration.markets import KINDS, LEARNING_EDGE
from bench.calibration.plan import EDGES, Plan
from bench.calibration.truth import ORACLE
from bench.calibration.work import Line
from bench.page import Requirement, table, title
from layer3.backtest.record import KELLY_ONLY, POLICY

__all__ = ["Cell", "Level", "Share", "cells", "levels", "needed_years", "report", "wilson"]

_CONFIDENCE: Final = 0.95
_MOST_RELEASED: Final = 0.02
_LEAST_POWER: Final = 0.8
#: Round trips below which a market without an edge was refused for want of trades, whatever else.
_TRADED: Final = 30


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``n``, and the bounds that hold the true share with a probability of 95 %."""

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.n

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def wilson(count: int, n: int, level: float = _CONFIDENCE) -> Share:
    """Share and score interval (Wilson 1927, "Probable inference, the law of succession, ..."), JASA 22, 209."""
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no share")
    z, p = NormalDist().inv_cdf(0.5 + level / 2.0), count / n
    middle = (p + z * z / (2 * n)) / (1.0 + z * z / n)
    reach = z / (1.0 + z * z / n) * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    # At the ends the bound is the end itself, which rounding would miss.
    return Share(count, n, 0.0 if count == 0 else middle - reach, 1.0 if count == n else middle + reach)


def needed_years(sharpe: float, power: float) -> float:
    """Years after which a true ``sharpe`` shows a probabilistic Sharpe ratio of 95 % with probability ``power``.

    The minimum track record length (Bailey and Lopez de Prado 2012) of near-normal returns, with room for
    the estimate's own error: ((1.645 + z) / sharpe)^2.
    """
    normal = NormalDist()
    return ((normal.inv_cdf(GATE.probabilistic_sharpe) + normal.inv_cdf(power)) / sharpe) ** 2


@dataclass(frozen=True, slots=True)
class Level:
    """What a planted edge comes to: mean true Sharpe ratios over its markets, ``spread`` the policies' deviation,
    ``learned`` the share of the oracle's gain over Kelly only that policies have."""

    wanted: float
    policy: float
    spread: float
    shown: float
    kelly: float
    oracle: float
    learned: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Records of one length on markets of one true ratio: released by the gate, and by the plain threshold."""

    wanted: float
    years: float
    gate: Share
    plain: Share
    theory: float
    must: bool


def levels(lines: Sequence[Line]) -> list[Level]:
    """By wanted ratio; only those that were measured."""
    found = []
    for wanted in EDGES:
        truths = [line["answer"] for line in lines if line["aim"] == "truth" and line["level"] == wanted]
        if not truths:
            continue
        mean = {name: fmean(truth[name]["mean"] for truth in truths) for name in (POLICY, KELLY_ONLY, ORACLE)}
        ratio = {name: fmean(truth[name]["sharpe"] for truth in truths) for name in mean}
        own = [truth[POLICY]["sharpe"] for truth in truths]
        found.append(
            Level(
                wanted=wanted,
                policy=ratio[POLICY],
                spread=stdev(own) if len(own) > 1 else 0.0,
                shown=fmean(truth[POLICY]["shown"] for truth in truths),
                kelly=ratio[KELLY_ONLY],
                oracle=ratio[ORACLE],
                learned=(mean[POLICY] - mean[KELLY_ONLY]) / (mean[ORACLE] - mean[KELLY_ONLY]),
            )
        )
    return found


def cells(lines: Sequence[Line], truth: Sequence[Level]) -> list[Cell]:
    """The power curve, by wanted ratio and length; only what is there."""
    found = []
    for level in truth:
        answers = [line["answer"] for line in lines if line["aim"] == "verdict" and line["level"] == level.wanted]
        for years in sorted({outcome["years"] for answer in answers for outcome in answer}):
            mine = [outcome for answer in answers for outcome in answer if outcome["years"] == years]
            theory = NormalDist().cdf(level.policy * math.sqrt(years) - NormalDist().inv_cdf(GATE.probabilistic_sharpe))
            found.append(
                Cell(
                    wanted=level.wanted,
                    years=years,
                    gate=wilson(sum(outcome["released"] for outcome in mine), len(mine)),
                    plain=wilson(sum(outcome["plain"] for outcome in mine), len(mine)),
                    theory=theory,
                    must=years >= needed_years(level.policy, _LEAST_POWER),
                )
            )
    return found


def report(lines: Sequence[Line], plan: Plan, seconds: float, source: str) -> list[Requirement]:
    """Print everything; what was asked, and what it is."""
    _conditions(plan, source)
    truth = levels(lines)
    _truth(truth)
    null = _null(lines)
    power = _power(cells(lines, truth))
    asked = [*null, *power]
    title("What was asked")
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in asked])
    print(f"\nThe markets took {seconds / 60:.0f} minutes of one core together.")
    return asked


def _conditions(plan: Plan, source: str) -> None:
    title("What was done")
    ppo = TRAINING.ppo
    seeds = max(max(counts.values()) for counts in plan.planted.values())
    print(
        f"Each market's policy is trained on {plan.training_years:g} years before its record, a week purged between: "
        f"{ppo.steps:,} steps,\nhidden layers of {ppo.hidden}, everything else the pipeline's; {plan.together} markets "
        "in one call, each policy as it would be alone.\n"
        "The gate is the real one with its default limits, but for the walk-forward, which is not asked for, and 1\n"
        f"trial for each fresh market. The evidence is the real one with {EFFORT.permutations} permuted paths of each "
        f"kind and {EFFORT.resamples:,}\n"
        "resamples, gathered only as far as it takes: the verdict is a conjunction, so once a criterion has failed\n"
        "the dearer controls are not run, and the record counts as rejected. Evidence that the gate asks nothing\n"
        "of is not gathered.\n"
        f"The chain is the default but for min_win_probability {CHAIN.kelly.min_win_probability:g}, so that luck in "
        "its own trades does not stop it.\n"
        f"Plain: a Sharpe ratio of at least {PLAIN_SHARPE:g} on the same record, nothing else.\n"
        f"Seeds: 1 to {plan.markets} without an edge, of each kind and signals, 1 to {seeds} with one, "
        f"9001 to {9_000 + plan.truth} for the true ratios.\n"
        f"Permuted path: {source}.\nIntervals: Wilson, 95 %."
    )


def _truth(truth: Sequence[Level]) -> None:
    title("Planted edges: true Sharpe ratios, measured on the drift that was planted")
    rows = [
        (
            f"{level.wanted:g}",
            f"{EDGES[level.wanted]:g}",
            f"{level.oracle:.2f}",
            f"{level.policy:.2f} +- {level.spread:.2f}",
            f"{level.kelly:.2f}",
            f"{level.shown:.2f}",
            f"{level.learned:.0%}",
            f"{needed_years(level.policy, 0.5):.2f}",
            f"{needed_years(level.policy, _LEAST_POWER):.2f}",
        )
        for level in truth
    ]
    head = ("wanted", "edge", "oracle", "policy", "Kelly only", "policy, shown", "learned", "years 50%", "years 80%")
    table(head, rows)
    print(
        f"Edge: drift in standard deviations of an hour ({LEARNING_EDGE:g} where policies learn). +-: spread over the "
        "policies.\nShown: by the returns, luck included. Learned: share of the oracle's gain over Kelly only.\nYears: "
        "record after which theory gives a probabilistic Sharpe ratio of 95 % with a probability of 50 % and of 80 %."
    )


def _null(lines: Sequence[Line]) -> list[Requirement]:
    everything = [
        (line["design"], outcome)
        for line in lines
        if line["aim"] == "verdict" and line["level"] is None
        for outcome in line["answer"]
    ]
    title("No edge: share released")
    rows = []
    for name, what in [("all", "every kind together"), *KINDS.items()]:
        mine = [outcome for design, outcome in everything if name == "all" or design.startswith(f"{name}, ")]
        if mine:
            gate = wilson(sum(outcome["released"] for outcome in mine), len(mine))
            plain = wilson(sum(outcome["plain"] for outcome in mine), len(mine))
            traded = sum(outcome["trades"] >= _TRADED for outcome in mine)
            rows.append((f"{name}: {what}", len(mine), traded, gate, plain))
    table(("", "markets", f">= {_TRADED} trades", "gate", "plain"), rows)
    if not everything:
        return []
    reasons = Counter(name for _, outcome in everything for name in outcome["failed"])
    print(
        "\nRejected at the first stage that settles it by: " + ", ".join(f"{k} {v}" for k, v in reasons.most_common())
    )
    released = wilson(sum(outcome["released"] for _, outcome in everything), len(everything))
    return [
        Requirement("markets without an edge", str(len(everything)), ">= 400", len(everything) >= 400),
        Requirement("of them released", str(released), f"<= {_MOST_RELEASED:.0%}", released.value <= _MOST_RELEASED),
    ]


def _power(found: Sequence[Cell]) -> list[Requirement]:
    title("Planted edges: share released (power)")
    rows = [
        (
            f"{cell.wanted:g}",
            f"{cell.years:g}",
            cell.gate.n,
            cell.gate,
            cell.plain,
            f"{cell.theory:.0%}",
            ">= 80%" if cell.must else "",
        )
        for cell in found
    ]
    table(("true Sharpe", "years", "markets", "gate", "plain", "theory", "asked"), rows)
    print("Theory: probability that the probabilistic Sharpe ratio alone says yes, from the measured true ratio.")
    return [
        Requirement(
            f"power at Sharpe {cell.wanted:g}, {cell.years:g} years",
            str(cell.gate),
            f">= {_LEAST_POWER:.0%}",
            cell.gate.value >= _LEAST_POWER,
        )
        for cell in found
        if cell.must
    ]
