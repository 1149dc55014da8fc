"""What the state shows of the market: returns and volatility of the close, strictly causal.

Row *t* depends on closes up to *t* only. Where a look-back is longer than what there is, the
oldest close there is stands in, so that a short buffer gives a shorter return, never a constant 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layer3 import contract

__all__ = ["MarketFeatures", "bars_of", "daily_volatility", "market_features", "returns"]

_HOUR: Final = 3_600
_DAY: Final = 86_400
#: Numbers per block of windows, so that a day of minutes over years does not fill the memory.
_BLOCK: Final = 2**20


class MarketFeatures(NamedTuple):
    """Arguments of :func:`layer3.contract.build_state`, each float64 of shape (n,)."""

    return_1h: NDArray[np.float64]
    return_4h: NDArray[np.float64]
    volatility: NDArray[np.float64]


def market_features(close: ArrayLike, interval_seconds: int) -> MarketFeatures:
    """All three features of a series of closes, shape (n,), one every ``interval_seconds``."""
    return MarketFeatures(
        return_1h=returns(close, bars_of(1, interval_seconds)),
        return_4h=returns(close, bars_of(4, interval_seconds)),
        volatility=daily_volatility(close, interval_seconds),
    )


def bars_of(hours: float, interval_seconds: int) -> int:
    """How many bars make up a time span: the nearest whole number, at least 1."""
    return max(1, round(hours * _HOUR / interval_seconds))


def returns(close: ArrayLike, bars: int) -> NDArray[np.float64]:
    """Return of the close over the last ``bars`` bars, as a fraction, shape (n,).

    ``close[t] / close[t - bars] - 1``; before row ``bars`` the return since the first close
    (0.0 at row 0). ``bars`` is at least 1.
    """
    prices = np.asarray(close, dtype=np.float64)
    if bars < 1:
        raise ValueError(f"bars is {bars}, expected at least 1")
    before = np.maximum(np.arange(len(prices)) - bars, 0)
    return prices / prices[before] - 1.0


def daily_volatility(close: ArrayLike, interval_seconds: int) -> NDArray[np.float64]:
    """Standard deviation of the log return, scaled to a day, as a fraction, shape (n,).

    Over the last ``contract.VOLATILITY_WINDOW`` hours (at least two returns), with n - 1 in the
    denominator, times the square root of bars per day. From two returns on (row 2) the window
    grows until it is full. Rows 0 and 1 know no spread yet and hold 0.0: start at row 2.
    """
    prices = np.asarray(close, dtype=np.float64)
    n = len(prices)
    window = max(2, bars_of(contract.VOLATILITY_WINDOW, interval_seconds))
    spread = np.zeros(n)
    changes = np.diff(np.log(prices))
    for row in range(2, min(window, n)):
        spread[row] = np.std(changes[:row], ddof=1)
    if n > window:
        windows = np.lib.stride_tricks.sliding_window_view(changes, window)
        rows = max(1, _BLOCK // window)
        for start in range(0, len(windows), rows):
            block = windows[start : start + rows]
            spread[window + start : window + start + len(block)] = np.std(block, axis=1, ddof=1)
    return spread * float(np.sqrt(_DAY / interval_seconds))
