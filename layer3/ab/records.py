"""One decision of an experiment, its outcome, and what makes either unusable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Final

from layer3.ab.assignment import Arm
from layer3.errors import DataError
from layer3.types import How

__all__ = ["Decision", "Outcome", "Row", "Stop", "check_decision", "check_outcome"]

#: A return beyond this is a percentage given as a fraction.
_LARGEST_RETURN: Final = 10.0


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision: both sizes in signed dollars on the same side, and whose is held.

    ``portfolio_value`` in dollars, above 0; ``source`` says who gave the multiplier (``fallback_kelly`` in
    the policy's arm is a policy that did not answer); ``decided_ns`` UTC nanoseconds.
    """

    id: str
    experiment: str
    unit: str
    arm: Arm
    how: How
    symbol: str
    strategy: str
    kelly_usd: float
    policy_usd: float
    portfolio_value: float
    source: str
    decided_ns: int

    @property
    def size_usd(self) -> float:
        """What is held."""
        return self.policy_usd if self.arm is Arm.POLICY else self.kelly_usd

    @property
    def counterfactual_usd(self) -> float:
        """What the other arm would have held."""
        return self.kelly_usd if self.arm is Arm.POLICY else self.policy_usd


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a decision.

    ``pnl_usd`` realised after costs. ``realised_return`` after costs per dollar held, of *following the
    signal*: a short that gained 3 % says +0.03, and one that was sized at zero says what it would have
    been. ``duration_s`` from decision to close.
    """

    decision_id: str
    pnl_usd: float
    realised_return: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A decision, the share that its unit was assigned under, and its outcome, ``None`` as long as there is none."""

    decision: Decision
    share: float | None
    outcome: Outcome | None
    #: When the outcome was written, UTC nanoseconds; 0 as long as there is none.
    known_ns: int

    @property
    def closed_ns(self) -> int:
        """When the trade closed, UTC nanoseconds; when it was decided as long as it has no outcome."""
        seconds = self.outcome.duration_s if self.outcome else 0.0
        return self.decision.decided_ns + round(seconds * 1e9)


@dataclass(frozen=True, slots=True)
class Stop:
    """The policy's arm was stopped: when (UTC nanoseconds) and why."""

    reason: str
    stopped_ns: int


def check_decision(decision: Decision) -> None:
    """Raise DataError unless every value of a decision can be used."""
    what = f"decision {decision.id!r}"
    for name in ("id", "experiment", "unit", "symbol", "strategy", "source"):
        _text(what, name, getattr(decision, name))
    for name in ("kelly_usd", "policy_usd", "portfolio_value"):
        _finite(what, name, getattr(decision, name))
    when = decision.decided_ns
    if not isinstance(when, Integral) or isinstance(when, bool) or not 0 <= when < 2**63:
        raise DataError(f"{what}: decided_ns is {when!r}, expected UTC nanoseconds as a whole number")
    if decision.portfolio_value <= 0.0:
        raise DataError(f"{what}: portfolio_value is {decision.portfolio_value}, expected dollars above 0")
    if decision.kelly_usd * decision.policy_usd < 0.0:
        raise DataError(
            f"{what}: kelly_usd {decision.kelly_usd} and policy_usd {decision.policy_usd} lie on different sides of "
            "the market: a multiplier scales the base size and cannot turn it"
        )


def check_outcome(outcome: Outcome) -> None:
    """Raise DataError unless every value of an outcome can be used."""
    what = f"the outcome of decision {outcome.decision_id!r}"
    _text(what, "decision_id", outcome.decision_id)
    for name in ("pnl_usd", "realised_return", "duration_s"):
        _finite(what, name, getattr(outcome, name))
    if abs(outcome.realised_return) > _LARGEST_RETURN:
        raise DataError(
            f"{what}: realised_return is {outcome.realised_return}, expected a fraction within "
            f"+-{_LARGEST_RETURN:g}; 3 % is 0.03"
        )
    if outcome.duration_s < 0.0:
        raise DataError(f"{what}: duration_s is {outcome.duration_s}, expected seconds from 0")


def _text(what: str, name: str, value: object) -> None:
    # Half of a surrogate pair is a text of Python that no file can hold.
    if not isinstance(value, str) or not value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{what}: {name} is {value!r}, expected a text that is not empty")


def _finite(what: str, name: str, value: object) -> None:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return
    raise DataError(f"{what}: {name} is {value!r}, expected a finite number: record what is known, when it is known")
