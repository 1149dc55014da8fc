"""What a track is worth: each number a pure function of returns or equity.

Returns are simple returns per bar; annual figures use the bars' own length: crypto trades
365 days of 24 hours, so hourly bars have 8,760 periods a year. A figure that is not defined
(no spread, no trades, no losses) is ``None``, never NaN and never infinite.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.record import Track
from layer3.backtest.significance import NO_SPREAD, probabilistic_sharpe

__all__ = [
    "annual_return",
    "calmar",
    "max_drawdown",
    "periods_per_year",
    "sharpe",
    "sortino",
    "summarise",
    "volatility",
]

Floats = NDArray[np.float64]

_YEAR_SECONDS = 365 * 86_400


def periods_per_year(interval_seconds: float) -> float:
    """Bars in a year of 365 days."""
    return _YEAR_SECONDS / interval_seconds


def volatility(returns: Floats, periods: float) -> float | None:
    """Annualised standard deviation (n - 1) of returns (n,), as a fraction; ``None`` below two returns."""
    return float(returns.std(ddof=1)) * math.sqrt(periods) if len(returns) > 1 else None


def sharpe(returns: Floats, periods: float) -> float | None:
    """Annualised Sharpe ratio (Sharpe 1994) of returns (n,) over cash at 0 %."""
    spread = volatility(returns, periods)
    if spread is None or spread <= NO_SPREAD:
        return None
    return float(returns.mean()) * periods / spread


def sortino(returns: Floats, periods: float) -> float | None:
    """Annualised Sortino ratio: mean over the root mean square of the returns below 0."""
    if len(returns) < 2:
        return None
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    return float(returns.mean()) / downside * math.sqrt(periods) if downside > NO_SPREAD else None


def max_drawdown(equity: Floats) -> float:
    """Largest fall from a peak of equity (n,), as a positive fraction of the peak."""
    peaks = np.maximum.accumulate(equity)
    return float(np.max(1.0 - equity / peaks))


def annual_return(equity: Floats, periods: float) -> float | None:
    """Compound annual growth of equity (n + 1,) as a fraction; ``None`` where equity was lost."""
    if len(equity) < 2 or equity[-1] <= 0.0:
        return None
    growth = math.log(equity[-1] / equity[0]) * periods / (len(equity) - 1)
    # A few hours of luck, compounded to a year, leave the range of floats: that is not a figure.
    return math.expm1(growth) if growth < 50.0 else None


def calmar(equity: Floats, periods: float) -> float | None:
    """Compound annual return over the maximum drawdown."""
    growth, fall = annual_return(equity, periods), max_drawdown(equity)
    return growth / fall if growth is not None and fall > NO_SPREAD else None


def summarise(track: Track, interval_seconds: float) -> dict[str, float | None]:
    """Every figure of one track, by name; units as the functions above say.

    ``turnover`` is per year, in multiples of equity; ``costs_paid`` in currency; ``win_rate`` the
    share of closed round trips that gained after costs; ``mean_exposure`` the mean |exposure|.
    Where equity was lost (at or below 0 at any bar), what is a ratio to it is ``None``: a loss on
    negative equity would count as a gain.
    """
    periods = periods_per_year(interval_seconds)
    lost = bool(np.any(track.equity <= 0.0))
    returns = np.empty(0) if lost else track.equity[1:] / track.equity[:-1] - 1.0
    years = len(track.exposure) / periods
    return {
        "total_return": float(track.equity[-1] / track.equity[0] - 1.0),
        "annual_return": None if lost else annual_return(track.equity, periods),
        "sharpe": sharpe(returns, periods),
        "probabilistic_sharpe": probabilistic_sharpe(returns),
        "sortino": sortino(returns, periods),
        "calmar": None if lost else calmar(track.equity, periods),
        "max_drawdown": max_drawdown(track.equity),
        "volatility": volatility(returns, periods),
        "turnover": None if lost or not years else float(track.turnover.sum() / years),
        "costs_paid": float(track.cost.sum()),
        "trades": float(len(track.trades)),
        "win_rate": float(np.mean(track.trades > 0.0)) if len(track.trades) else None,
        "mean_exposure": float(np.mean(np.abs(track.exposure))) if years else None,
    }
