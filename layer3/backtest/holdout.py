"""What policies earn on bars that they were not trained on, many policies in one walk.

The walk is the training environment's own, one episode from the window's first bar to its last, so
that ``reward`` is exactly what training maximises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment
from layer3.agent.policy import Policy, stack
from layer3.backtest.metrics import max_drawdown, periods_per_year, sharpe
from layer3.errors import EvaluationError

__all__ = ["REFERENCES", "Decide", "Figures", "decider", "walk", "walk_in_full"]

#: Multiplier for one state (16,).
Decide = Callable[[NDArray[np.float32]], float]
#: ``reward`` per bar in percent of equity; ``sharpe`` annualised, ``None`` without spread; ``total_return`` and
#: ``max_drawdown`` as fractions.
Figures = dict[str, float | None]

#: What decides nothing: the sizing chain alone, and no position at all.
REFERENCES: Final[Mapping[str, Decide]] = {"Kelly only": lambda _: 1.0, "Flat": lambda _: 0.0}


def decider(tensors: Mapping[str, ArrayLike]) -> Decide:
    """The deterministic answers of one trained policy, as it would be served."""
    policy = Policy(stack([tensors]), {})
    return lambda state: float(policy.act(state)[0])


def walk(
    bars: Bars, window: range, deciders: Sequence[Decide], config: EnvironmentConfig | None = None
) -> list[Figures]:
    """What :func:`walk_in_full` says each decider came to."""
    return walk_in_full(bars, window, deciders, config)[0]


def walk_in_full(
    bars: Bars, window: range, deciders: Sequence[Decide], config: EnvironmentConfig | None = None
) -> tuple[list[Figures], NDArray[np.float64]]:
    """Walk ``bars[window]`` with one account per decider; what each came to, and its returns per bar (bars, n).

    ``config`` is the yardstick: give the same one wherever rewards are compared, whatever the
    policies were trained with. A window of w bars holds w - 2 decisions.

    Raises
    ------
    EvaluationError : the window holds no decision, the sizing chain takes no position in it, or an
        account was ruined: nothing is comparable then
    """
    n, steps = len(deciders), len(window) - 2
    if steps < 1:
        raise EvaluationError(f"{len(window)} bars hold no decision: at least 3 are needed")
    at = slice(window.start, window.stop - 2)
    if not np.any(bars.direction[at] * bars.base_fraction[at]):
        raise EvaluationError(
            f"the sizing chain takes no position in bars {window.start:,} to {window.stop:,}, so that every policy "
            "would score the same: supply more data, or other settings of the chain"
        )
    config = replace(config or EnvironmentConfig(), episode_steps=steps + 1)
    environment = TradingEnvironment(bars, n, config)
    starts = np.full(n, window.start)
    reward, growth = np.empty((steps, n)), np.empty((steps, n))
    states = environment.reset(starts)
    for t in range(steps):
        multiplier = np.array([decide(state) for decide, state in zip(deciders, states, strict=True)])
        step = environment.step(multiplier, starts)
        if step.terminated.any():
            raise EvaluationError(
                f"account {int(np.argmax(step.terminated))} of {n} lost all its equity at bar {window.start + t}: "
                "there is nothing to compare; check the prices there"
            )
        reward[t], growth[t], states = step.reward, step.growth, step.states
    periods = periods_per_year(bars.interval_seconds)
    equity = np.exp(np.concatenate((np.zeros((1, n)), growth.cumsum(axis=0))))
    returns = np.expm1(growth)
    figures: list[Figures] = [
        {
            "reward": float(reward[:, i].mean()),
            "sharpe": sharpe(returns[:, i], periods),
            "total_return": float(equity[-1, i] - 1.0),
            "max_drawdown": max_drawdown(equity[:, i]),
        }
        for i in range(n)
    ]
    return figures, returns
