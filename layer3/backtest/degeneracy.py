"""Whether a policy decides anything: what it answers, how often at a bound, and whether its members agree."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.engine import run
from layer3.backtest.record import POLICY, Degeneracy, Track

__all__ = ["find_degeneracy", "member_multipliers"]

Floats = NDArray[np.float32]

#: Multipliers this close to a bound are at it.
_BOUND: Final = 0.02
#: A standard deviation below this is a constant's.
_CONSTANT: Final = 0.02
#: Share of decisions at one bound above which the policy is that bound.
_NEARLY_ALL: Final = 0.95
#: A mean correlation below this is that of policies which learned nothing. Measured: networks with random weights
#: -0.19 to 0.05 (one of 12 above), three members trained for 100,000 steps 0.24, for 400,000 steps 0.41.
_DISAGREE: Final = 0.05
#: Multipliers are float32: members that never differ by more than this are one.
_SAME: Final = 1e-6


def find_degeneracy(
    bars: Bars, window: range, policy: Policy, track: Track, environment: EnvironmentConfig | None = None
) -> Degeneracy:
    """Look at the decisions of ``track``, which is what ``policy`` came to on ``bars[window]``.

    Only bars where the chain holds something count: elsewhere a multiplier decides nothing. At both
    bounds in turn a policy does decide, so only nearly all decisions at one of them are a finding.
    """
    at = slice(window.start, window.stop - 2)
    held = bars.direction[at] * bars.base_fraction[at] != 0.0
    chosen = track.multiplier[held]
    n = len(chosen)
    if not n:
        finding = f"The chain holds nothing at any of {len(held):,} decisions, so the policy decided nothing."
        return Degeneracy(0, None, None, None, None, policy.members, None, (finding,))
    low = float(np.mean(chosen <= contract.MULTIPLIER_LOW + _BOUND))
    high = float(np.mean(chosen >= contract.MULTIPLIER_HIGH - _BOUND))
    spread = float(chosen.std())
    findings = []
    if spread < _CONSTANT:
        findings.append(
            f"The multiplier hardly varies: mean {chosen.mean():.3f}, standard deviation {spread:.4f} over {n:,} "
            "decisions. A constant does the same."
        )
    for share, bound in ((low, contract.MULTIPLIER_LOW), (high, contract.MULTIPLIER_HIGH)):
        if share > _NEARLY_ALL:
            findings.append(f"{share:.1%} of {n:,} decisions are at the bound {bound:g}.")
    agreement = None
    if policy.members > 1:
        # Of float32 numbers that are all the same the deviation is not 0, computed in float32.
        apart = member_multipliers(bars, window, policy, environment)[:, held].astype(np.float64)
        agreement = _agreement(apart)
        findings += _member_findings(apart, agreement)
    return Degeneracy(n, float(chosen.mean()), spread, low, high, policy.members, agreement, tuple(findings))


def member_multipliers(
    bars: Bars, window: range, policy: Policy, environment: EnvironmentConfig | None = None
) -> Floats:
    """What each member would have answered, (K, w - 2), to the states that the whole policy met on its way."""
    seen = []

    def ask(state: Floats, _: int) -> float:
        seen.append(state)
        return float(policy.act(state)[0])

    run(bars, window, {POLICY: ask}, environment)
    return policy.multipliers(np.array(seen))


def _agreement(apart: NDArray[np.float64]) -> float | None:
    """Mean correlation over the pairs of ``apart`` (K, n) that both vary; ``None`` where no two do."""
    varying = apart[apart.std(axis=1) > _SAME]
    if len(varying) < 2:
        return None
    return float(np.corrcoef(varying)[np.triu_indices(len(varying), 1)].mean())


def _member_findings(apart: NDArray[np.float64], agreement: float | None) -> list[str]:
    members = len(apart)
    findings = []
    twins = [
        (first, second)
        for first in range(members)
        for second in range(first + 1, members)
        if np.abs(apart[first] - apart[second]).max() <= _SAME
    ]
    if len(twins) == members * (members - 1) // 2:
        findings.append(f"All {members} members give the same answers: one policy {members} times, not an ensemble.")
    elif twins:
        named = ", ".join(f"{first} and {second}" for first, second in twins)
        findings.append(f"Of {members} members these give the same answers: {named}.")
    constant = int(np.sum(apart.std(axis=1) <= _CONSTANT))
    if 0 < constant < members:
        findings.append(f"{constant} of {members} members hardly vary.")
    if agreement is not None and agreement < _DISAGREE:
        findings.append(
            f"The members disagree: the mean correlation of their multipliers is {agreement:.2f}. What their mean "
            "decides, none of them learned."
        )
    return findings
