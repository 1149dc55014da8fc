"""Why several policies are served as one: how much the verdict on a policy hangs on the seed it was trained from.

On two synthetic markets of ``make run-local``'s kind policies are trained from many seeds. Each alone, and means of
disjoint groups of them, walk the test part: the gain in annualised Sharpe ratio over the chain alone (multiplier 1),
and whether the gate's criterion versus_kelly takes it. Another rounding of training's arithmetic is another draw too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.defaults import market
from bench.page import table, title
from layer3.agent.bars import Bars
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Settings, Trained, train
from layer3.agent.ppo import PPOConfig
from layer3.backtest.engine import asking, run
from layer3.backtest.record import KELLY_ONLY
from layer3.backtest.trust import difference

Floats = NDArray[np.float64]
MARKETS: Final = {"default": 1, "seed=2": 2}
SIZES: Final = (1, 2, 3, 4, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge and print; about five minutes on two cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=48, help="policies trained on each market (48)")
    parser.add_argument("--steps", type=int, default=PPOConfig().steps, help="environment steps of each (%(default)s)")
    given = parser.parse_args(arguments)
    rows = []
    for name, seed in MARKETS.items():
        bars, parts, _ = market(seed)
        settings = Settings(PPOConfig(steps=given.steps))
        trained = train(bars, seeds=range(1, given.seeds + 1), folds=[parts.train], settings=[settings])
        for size in SIZES:
            gains, lows = judged(bars, parts.test, groups(trained, size))
            if len(gains) > 1:
                known = gains[np.isfinite(gains)]
                spread = known.std(ddof=1) if len(known) > 1 else np.nan
                figures = [f"{figure:+.2f}" for figure in (known.mean() if len(known) else np.nan, spread, gains.min())]
                rows.append((name, size, *figures, f"{int((lows > 0.0).sum())} of {len(gains)}"))
    title("Gain over Kelly only on the test part, annualised Sharpe ratio, by the number of policies served as one")
    table(("SYNTHETIC market", "members", "mean", "deviation", "worst", "shown better than Kelly only"), rows)
    return 0


def groups(trained: Sequence[Trained], size: int) -> list[Policy]:
    """Means of ``size`` policies each, nobody in two of them."""
    firsts = range(0, len(trained) - size + 1, size)
    return [Policy(stack([one.tensors for one in trained[first : first + size]]), {}) for first in firsts]


def judged(bars: Bars, window: range, policies: Sequence[Policy]) -> tuple[Floats, Floats]:
    """Each policy's Sharpe ratio less that of multiplier 1 on the same bars, and the lower ends of the 90 % intervals;
    -inf where a policy holds nothing or lost everything."""
    strategies = {str(number): asking(policy) for number, policy in enumerate(policies)}
    tracks = run(bars, window, strategies | {KELLY_ONLY: lambda *_: 1.0})
    kelly = tracks.pop(KELLY_ONLY).equity
    found = [
        difference(track.equity, kelly, bars.interval_seconds, against=KELLY_ONLY, seed=1).sharpe
        for track in tracks.values()
    ]
    known = [
        (-np.inf, -np.inf) if one.estimate is None or one.low is None else (one.estimate, one.low) for one in found
    ]
    gains, lows = np.array(known).reshape(-1, 2).T
    return gains, lows


if __name__ == "__main__":
    raise SystemExit(main())
