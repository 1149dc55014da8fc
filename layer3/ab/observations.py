"""An experiment's rows as arrays: what may be compared, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3.ab.assignment import Arm
from layer3.ab.records import Row
from layer3.types import FALLBACK_KELLY

__all__ = ["Observations", "Units", "observe", "units_at"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: How far P&L and size x return may lie apart, as a share of the size.
_TOLERANCE: Final = 0.005


@dataclass(frozen=True)
class Observations:
    """Decisions (n,) that were assigned by the hash and whose outcome is known, in the order of decision.

    ``unit`` number of the unit; ``earned`` P&L over the portfolio's value; ``at_kelly`` and ``at_policy`` what either
    size would have earned, the realised return times |size|; ``base`` |Kelly's size|; all fractions of the
    portfolio's value. Times are UTC nanoseconds.

    Per unit (m,): ``policy`` whether it got the policy, ``share`` under which it was assigned. ``left_out``
    counts decisions by why; ``mismatched`` those whose P&L is not size times return; ``identical`` says that both
    sizes were the same in all.
    """

    unit: Ints
    earned: Floats
    at_kelly: Floats
    at_policy: Floats
    base: Floats
    held: Flags
    fallback: Flags
    duration_s: Floats
    decided_ns: Ints
    closed_ns: Ints
    known_ns: Ints
    policy: Flags
    share: Floats
    decisions: Mapping[Arm, int]
    left_out: Mapping[str, int]
    mismatched: int
    identical: bool


@dataclass(frozen=True)
class Units:
    """Sums over each unit with an outcome (k,), in the order of their first decision; see :class:`Observations`."""

    policy: Flags
    share: Floats
    earned: Floats
    at_kelly: Floats
    at_policy: Floats
    base: Floats


def observe(rows: Sequence[Row]) -> Observations:
    """Sort out what may be compared."""
    left_out: Counter[str] = Counter()
    assigned = []
    for row in rows:
        decision = row.decision
        if decision.how != "assigned":
            left_out[decision.how] += 1
        elif decision.kelly_usd == 0.0 and decision.policy_usd == 0.0:
            left_out["both sizes zero"] += 1
        else:
            assigned.append(row)
    first: dict[str, Row] = {}
    for row in assigned:
        first.setdefault(row.decision.unit, row)
    numbers = {unit: number for number, unit in enumerate(first)}
    known = [(row, row.outcome) for row in assigned if row.outcome is not None]
    left_out["no outcome yet"] = len(assigned) - len(known)
    values = np.array([row.decision.portfolio_value for row, _ in known], dtype=np.float64)
    returns = np.array([outcome.realised_return for _, outcome in known], dtype=np.float64)
    pnl = np.array([outcome.pnl_usd for _, outcome in known], dtype=np.float64)
    size, kelly, policy = (
        np.abs(np.array([getattr(row.decision, name) for row, _ in known], dtype=np.float64))
        for name in ("size_usd", "kelly_usd", "policy_usd")
    )
    return Observations(
        unit=np.array([numbers[row.decision.unit] for row, _ in known], dtype=np.int64),
        earned=pnl / values,
        at_kelly=kelly * returns / values,
        at_policy=policy * returns / values,
        base=kelly / values,
        held=size > 0.0,
        fallback=np.array([row.decision.source == FALLBACK_KELLY for row, _ in known], dtype=np.bool_),
        duration_s=np.array([outcome.duration_s for _, outcome in known], dtype=np.float64),
        decided_ns=np.array([row.decision.decided_ns for row, _ in known], dtype=np.int64),
        closed_ns=np.array([row.closed_ns for row, _ in known], dtype=np.int64),
        known_ns=np.array([row.known_ns for row, _ in known], dtype=np.int64),
        policy=np.array([row.decision.arm is Arm.POLICY for row in first.values()], dtype=np.bool_),
        share=np.array([row.share for row in first.values()], dtype=np.float64),
        decisions=Counter(row.decision.arm for row in assigned),
        left_out={why: count for why, count in left_out.items() if count},
        mismatched=int(np.count_nonzero(np.abs(pnl - size * returns) > _TOLERANCE * size + 0.01)),
        identical=bool(known) and bool((kelly == policy).all()),
    )


def units_at(seen: Observations, until_ns: int) -> Units:
    """What was known of each unit at ``until_ns``."""
    known = seen.known_ns <= until_ns
    unit, m = seen.unit[known], len(seen.policy)
    there = np.bincount(unit, minlength=m) > 0
    sums = [
        np.bincount(unit, column[known], m)[there].astype(np.float64)
        for column in (seen.earned, seen.at_kelly, seen.at_policy, seen.base)
    ]
    return Units(seen.policy[there], seen.share[there], *sums)
