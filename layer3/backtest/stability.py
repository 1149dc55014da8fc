"""Where a record comes from: cut by regime, by month, by direction, and without its best moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.agent.bars import Bars
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.record import POLICY, Slice, Stability, Track
from layer3.errors import EvaluationError
from layer3.market.signals import with_signals
from layer3.types import Regime

__all__ = ["bar_returns", "find_stability"]

#: Share of bars, the best ones, that a sound record can do without.
_BEST: Final = 0.01
_DIRECTIONS: Final = {"long": 1.0, "short": -1.0, "flat": 0.0}


def find_stability(candles: pd.DataFrame, bars: Bars, window: range, track: Track) -> Stability:
    """Cut ``track``, which walked ``bars[window]``, in several ways; slices without a bar are left out.

    A bar belongs to the regime and the calendar month (UTC) of its decision, and to the direction
    that was held because of it. The regime is the one that the chain saw: layer 2's where
    ``candles``, the rows behind ``bars``, carry it, else the baseline's. A slice's Sharpe ratio is of
    its own bars, annualised as if there were no others; its return compounds them.

    Raises
    ------
    EvaluationError : equity was lost or is not finite, so that bars have no returns
    """
    returns = bar_returns(track)
    periods = periods_per_year(bars.interval_seconds)
    at = slice(window.start, window.stop - 2)
    regimes = with_signals(candles).frame["regime"].to_numpy()[at]
    months = bars.timestamp[at].view("datetime64[ns]").astype("datetime64[M]").astype(str)
    side = np.sign(track.exposure)

    def cut(groups: Iterable[tuple[str, NDArray[np.bool_]]]) -> tuple[Slice, ...]:
        return tuple(_slice(label, returns[rows], periods) for label, rows in groups if rows.any())

    best = np.argsort(returns, kind="stable")[len(returns) - math.ceil(_BEST * len(returns)) :]
    return Stability(
        regimes=cut((str(regime), regimes == str(regime)) for regime in Regime),
        months=cut((str(month), months == month) for month in np.unique(months)),
        directions=cut((name, side == sign) for name, sign in _DIRECTIONS.items()),
        trimmed=_slice("without the best 1 % of bars", np.delete(returns, best), periods),
    )


def bar_returns(track: Track, name: str = POLICY) -> NDArray[np.float64]:
    """Simple returns (n,) of the bars of a track; refuses with its ``name`` one that was lost or is not finite.

    Raises
    ------
    EvaluationError : equity is not above 0, or no number; a loss on negative equity would count as a gain
    """
    sound = np.isfinite(track.equity) & (track.equity > 0.0)
    if not sound.all():
        end = int(np.argmin(sound))
        raise EvaluationError(f"equity of {name} is {track.equity[end]:g} after {end:,} decisions: returns end there")
    return np.asarray(track.equity[1:] / track.equity[:-1] - 1.0)


def _slice(label: str, returns: NDArray[np.float64], periods: float) -> Slice:
    return Slice(label, len(returns), sharpe(returns, periods), float(np.prod(1.0 + returns) - 1.0))
