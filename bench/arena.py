"""The market that trainers meet, and what their policies earn on the part of it that none has seen."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.alone import Run
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment
from layer3.ledger import Costs
from tests.agent.worlds import in_random_order, planted

__all__ = ["ENVIRONMENT", "TRAINED_ON", "Market", "constant", "market", "references", "rewards", "run_of"]

Floats = NDArray[np.float64]
#: Multipliers (n,) for states (n, 16).
Act = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]

TRAINED_ON = range(40_000)
HELD_OUT = range(40_000, 80_000)
#: Trading costs almost five times the default, so that trying things out is dear: there the trainers part.
ENVIRONMENT = EnvironmentConfig(costs=Costs(commission=0.005, slippage=0.002))


@dataclass(frozen=True)
class Market:
    """Bars, and per bar the multiplier of the rule that knows the regime."""

    bars: Bars
    rule: Floats


@cache
def market(name: str) -> Market:
    """``planted``; ``shuffled``: its returns in random order; ``no edge``: a regime that means nothing."""
    bars, rule = planted(HELD_OUT.stop, edge=0.0 if name == "no edge" else 1.0)
    return Market(in_random_order(bars) if name == "shuffled" else bars, rule)


def constant(multiplier: float) -> Act:
    """Whoever always says the same."""
    return lambda states: np.full(len(states), multiplier)


def rewards(where: Market, policies: Sequence[Act]) -> Floats:
    """Reward per step without the baseline, in percent of equity, (1 + policies, windows, steps): the rule's first.

    Every account walks the held-out bars in episodes side by side, under the deterministic answers.
    """
    bars, steps = where.bars, ENVIRONMENT.episode_steps
    first = np.arange(HELD_OUT.start, HELD_OUT.stop - steps - 1, steps)
    accounts = 1 + len(policies)
    environment = TradingEnvironment(bars, accounts * len(first), ENVIRONMENT)
    starts = np.tile(first, accounts)
    states = environment.reset(starts)
    earned = np.empty((accounts, len(first), steps))
    for t in range(steps):
        at = first + t
        seen = states.reshape(accounts, len(first), -1)
        multipliers = [where.rule[at], *(act(own) for act, own in zip(policies, seen[1:], strict=True))]
        step = environment.step(np.concatenate(multipliers), starts)
        states = step.states
        baseline = bars.direction[at] * bars.base_fraction[at] * (bars.open[at + 2] / bars.open[at + 1] - 1.0)
        earned[:, :, t] = step.reward.reshape(accounts, -1) + 100.0 * baseline
    return earned


def references(name: str) -> dict[str, float]:
    """Scores of those who learn nothing."""
    rng = np.random.default_rng(0)
    others: dict[str, Act] = {
        "multiplier 1": constant(1.0),
        "random multipliers": lambda states: rng.uniform(0.0, 2.0, len(states)),
    }
    scores = rewards(market(name), list(others.values())).mean(axis=(1, 2)).tolist()
    return dict(zip(["rule that knows the regime", *others], scores, strict=True))


def run_of(name: str, policies: Sequence[Act], steps: int, seconds: float) -> Run:
    """What a training came to: ``policies`` trained on market ``name`` for ``steps`` each in ``seconds`` together."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    windows = rewards(market(name), [constant(1.0), *policies]).mean(axis=2)
    rule, _, *scores = windows.mean(axis=1).tolist()
    ahead = windows[2:].mean(axis=0) - windows[1]
    return Run(
        seconds=seconds,
        steps=steps,
        shares=tuple(score / rule for score in scores),
        scores=tuple(scores),
        excess=float(ahead.mean()),
        noise=float(ahead.std(ddof=1) / np.sqrt(len(ahead))),
        peak_bytes=peak,
    )
