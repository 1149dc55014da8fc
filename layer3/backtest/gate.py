"""The gate: a model ships only if every criterion holds; one that cannot be computed fails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from layer3.backtest.record import KELLY_ONLY, POLICY, Criterion, Evaluation, Verdict
from layer3.errors import ConfigurationError

__all__ = ["Limits", "judge"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate must reach on the held-out period."""

    sharpe: float = 1.0
    """Least annualised Sharpe ratio."""
    probabilistic_sharpe: float = 0.95
    """Least probability that the true Sharpe ratio is above 0."""
    max_drawdown: float = 0.20
    """Largest fall from a peak, as a fraction."""
    trades: int = 30
    """Fewest closed round trips."""
    versus_kelly: float = 0.0
    """Least annualised Sharpe ratio over that of multiplier 1.0 on the same bars."""
    multiplier_sd: float = 0.02
    """Least standard deviation of the multiplier where the chain holds anything."""

    def __post_init__(self) -> None:
        # 20 for "20 %" would wave every drawdown through.
        for name, low, high in (
            ("sharpe", -100.0, 100.0),
            ("probabilistic_sharpe", 0.0, 1.0),
            ("max_drawdown", 0.0, 1.0),
            ("trades", 0, 1_000_000),
            ("versus_kelly", -100.0, 100.0),
            ("multiplier_sd", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(f"gate: {name} = {value}, expected a number in [{low:g}, {high:g}]")


def judge(evaluation: Evaluation, limits: Limits | None = None) -> Verdict:
    """Ask every criterion, whatever the others say; pass only if all hold."""
    limits = limits or Limits()
    policy, kelly = evaluation.metrics[POLICY], evaluation.metrics[KELLY_ONLY]
    own, base = policy["sharpe"], kelly["sharpe"]
    # A Kelly track without a ratio held nothing, or lost everything: as good as cash at best, whose ratio is 0.
    difference = None if own is None else own - (base or 0.0)
    criteria = (
        _criterion("sharpe", own, ">=", limits.sharpe, "Annualised Sharpe ratio {v:.2f}, at least {x:.2f} asked."),
        _criterion(
            "probabilistic_sharpe",
            policy["probabilistic_sharpe"],
            ">=",
            limits.probabilistic_sharpe,
            "Probability {p} that the true Sharpe ratio is above 0, at least {x:.1%} asked.",
        ),
        _criterion(
            "max_drawdown",
            policy["max_drawdown"],
            "<=",
            limits.max_drawdown,
            "Largest fall from a peak {v:.1%}, at most {x:.1%} allowed.",
        ),
        _criterion(
            "trades", policy["trades"], ">=", limits.trades, "{v:.0f} closed round trips, at least {x:.0f} asked."
        ),
        _criterion(
            "versus_kelly",
            difference,
            ">=",
            limits.versus_kelly,
            "Sharpe ratio {v:+.2f} against Kelly only on the same bars, at least {x:+.2f} asked.",
        ),
        _criterion(
            "not_constant",
            policy["multiplier_sd"],
            ">=",
            limits.multiplier_sd,
            "The multiplier's standard deviation is {v:.3f}, at least {x:.3f} asked of a policy that decides anything.",
        ),
    )
    return Verdict(all(criterion.passed for criterion in criteria), criteria)


def _criterion(
    name: str, value: float | None, comparison: Literal[">=", "<="], limit: float, sentence: str
) -> Criterion:
    if value is None or not math.isfinite(value):
        return Criterion(name, None, comparison, limit, False, "Could not be computed on this record, so it fails.")
    passed = value >= limit if comparison == ">=" else value <= limit
    # No estimate from a finite record is a certainty, so none is printed as 100.0 %.
    probability = f"{value:.1%}" if value <= 0.999 else "above 99.9%"
    return Criterion(name, value, comparison, limit, passed, sentence.format(v=value, x=limit, p=probability))
