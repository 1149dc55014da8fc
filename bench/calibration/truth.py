"""What a policy really earns on a planted market: known, because the drift of every bar is.

The mean return of a bar, given all that came before it, is the exposure held times the bar's planted drift,
less the costs paid. Summed over a long record that is the true mean without the shocks' luck; the deviation
is the record's own. Their ratio is the true Sharpe ratio, to about one percent where the ratio of the
returns themselves would need centuries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.calibration.candidates import INTERVAL, Candidate
from layer3.backtest.engine import run
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.record import KELLY_ONLY, POLICY, Track

__all__ = ["ORACLE", "Truth", "true_ratios"]

ORACLE = "oracle"


@dataclass(frozen=True, slots=True)
class Truth:
    """Of one strategy on one market, annualised: its true Sharpe ratio, the true mean of its returns after costs, and
    the ratio that the returns themselves show."""

    sharpe: float
    mean: float
    shown: float


def true_ratios(candidate: Candidate) -> dict[str, Truth]:
    """The candidate, Kelly only and the oracle over the candidate's whole record."""
    window = range(candidate.start, len(candidate.bars))
    oracle = candidate.market.oracle[window.start :]
    strategies = {
        POLICY: lambda state, _: float(candidate.policy.act(state)[0]),
        KELLY_ONLY: lambda *_: 1.0,
        ORACLE: lambda _, t: float(oracle[t]),
    }
    # Decided at the close of bar t, held from the open of t + 1 to that of t + 2: over the return of bar t + 1.
    drift = candidate.market.drift[window.start + 1 : window.stop - 1]
    return {name: _truth(track, drift) for name, track in run(candidate.bars, window, strategies).items()}


def _truth(track: Track, drift: NDArray[np.float64]) -> Truth:
    periods = periods_per_year(INTERVAL)
    returns = track.equity[1:] / track.equity[:-1] - 1.0
    mean = float(np.mean(track.exposure * drift - track.cost / track.equity[:-1]))
    spread = float(returns.std(ddof=1))
    return Truth(mean / spread * math.sqrt(periods), mean * periods, sharpe(returns, periods) or 0.0)
