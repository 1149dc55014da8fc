"""What the chain adds and what the policy adds: each taken away, or put in its place what knows nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import numpy as np

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.backtest.engine import Decide, run
from layer3.backtest.metrics import max_drawdown, summarise
from layer3.backtest.record import Attribution, Track
from layer3.errors import EvaluationError

__all__ = ["attribute", "without_chain"]

_Multiplier = Literal["policy", "constant 1", "constant mean", "random", "off"]
_CHAINS: Final[tuple[Literal["on", "off"], ...]] = ("on", "off")


def attribute(
    bars: Bars, window: range, decide: Decide, track: Track, environment: EnvironmentConfig | None = None, seed: int = 0
) -> tuple[Attribution, ...]:
    """Ten rows: the chain on and off, under five kinds of multiplier, all on the same bars and at the same costs.

    ``track`` is what ``decide`` came to on ``bars[window]`` with the chain; "constant mean" is its mean
    multiplier where the chain holds something, so that the policy and it differ in timing alone;
    "random" is uniform in [0, 2], drawn anew at each decision, the same draws with and without the
    chain. Without the chain the base is :func:`without_chain`'s, and the policy, which sees its
    account, decides anew.

    Raises
    ------
    EvaluationError : the chain holds nothing in the window, or a number was not finite
    """
    at = slice(window.start, window.stop - 2)
    held = bars.direction[at] * bars.base_fraction[at] != 0.0
    if not held.any():
        raise EvaluationError(
            f"the sizing chain takes no position in bars {window.start:,} to {window.stop:,}: there is nothing to "
            "attribute; supply more data, or other settings of the chain"
        )
    mean = float(track.multiplier[held].mean())
    draws = np.random.default_rng(seed).uniform(contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH, len(held))
    strategies: dict[_Multiplier, Decide] = {
        "policy": decide,
        "constant 1": lambda *_: 1.0,
        "constant mean": lambda *_: mean,
        "random": lambda _, t: float(draws[t]),
        "off": lambda *_: 0.0,
    }
    rows = []
    for chain in _CHAINS:
        history = bars if chain == "on" else without_chain(bars, window)
        tracks = run(history, window, {str(name): strategy for name, strategy in strategies.items()}, environment)
        rows += [_row(chain, name, tracks[name], bars.interval_seconds) for name in strategies]
    return tuple(rows)


def without_chain(bars: Bars, window: range) -> Bars:
    """``bars`` on which the signal's side alone is followed, at one size: the chain's mean base fraction where it
    holds something in the window.

    So what the chain decides (when to hold how much, and when nothing) is gone and the mean size is not. The
    full cap instead would confuse timing with leverage, and clip every multiplier above 1.
    """
    at = slice(window.start, window.stop - 2)
    held = bars.direction[at] * bars.base_fraction[at] != 0.0
    size = float(bars.base_fraction[at][held].mean())
    return replace(bars, direction=bars.signal_side, base_fraction=np.full(len(bars), size))


def _row(chain: Literal["on", "off"], multiplier: _Multiplier, track: Track, interval_seconds: int) -> Attribution:
    ratio = summarise(track, interval_seconds)["sharpe"]
    total = float(track.equity[-1] / track.equity[0] - 1.0)
    return Attribution(chain, multiplier, ratio, total, max_drawdown(track.equity))
