"""Price paths that might have been: the same bars in another order.

A bar is taken as a whole: the gap from the close before it, its open to close, its high and low
relative to its open, and its volume stay together, only the order is drawn. Every such path has the real
one's returns, begins at the same price and ends (but for rounding) at the same one; what it has lost is
whatever followed from what came before. Of single bars (White 2000, "A reality check for data snooping",
calls for a null of no predictability; Masters 2018, "Permutation and randomization tests for trading
system development", for whole bars) nothing follows any more; of blocks of bars, what happens within a
block, such as swings of volatility, is kept.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.errors import EvaluationError

__all__ = ["permuted", "random_order", "rebuilt"]

_PRICES = ("open", "high", "low", "close")


def permuted(candles: pd.DataFrame, window: range, *, block: int, rng: np.random.Generator) -> pd.DataFrame:
    """Checked candles with the bars of ``window`` in a :func:`random_order` of blocks; see :func:`rebuilt`."""
    return rebuilt(candles, window, random_order(len(window), block, rng))


def random_order(n: int, block: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Which of n bars comes where, (n,): contiguous blocks of ``block`` bars in random order.

    The blocks do not overlap. Where the first of them ends is drawn as well, 1 to ``block`` bars after the
    start, so that no bar is always the last of its block; the first and the last one may be shorter.
    """
    if block == 1:
        return rng.permutation(n)
    bounds = np.arange(int(rng.integers(1, block + 1)), n, block)
    starts, stops = np.append(0, bounds), np.append(bounds, n)
    return np.concatenate([np.arange(starts[k], stops[k]) for k in rng.permutation(len(starts))])


def rebuilt(candles: pd.DataFrame, window: range, order: NDArray[np.intp]) -> pd.DataFrame:
    """Checked candles whose bars ``window`` are those of ``window`` in this ``order``, a permutation of 0 to n - 1.

    Timestamps, every other column and all rows outside of ``window`` stay as they are. Where no bar comes
    before the window, the path starts at its first open, and its first bar counts as one without a gap.

    Raises
    ------
    EvaluationError : a price of the path would not be a finite number above 0
    """
    rows = slice(window.start, window.stop)
    opens, high, low, close = (candles[name].to_numpy(np.float64)[rows] for name in _PRICES)
    before = float(candles["close"].iloc[window.start - 1] if window.start else opens[0])
    gap = np.log(opens / np.append(before, close[:-1]))[order]
    body = np.log(close / opens)[order]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        new_close = before * np.exp(np.cumsum(gap + body))
        new_open = np.append(before, new_close[:-1]) * np.exp(gap)
        # What is equal but for rounding must not leave the bar.
        new_high = np.maximum(new_open * (high / opens)[order], np.maximum(new_open, new_close))
        new_low = np.minimum(new_open * (low / opens)[order], np.minimum(new_open, new_close))
    if not (np.isfinite(new_high).all() and (new_low > 0.0).all()):
        raise EvaluationError(
            f"the bars {window.start:,} to {window.stop:,} in another order give prices beyond what a float holds: "
            "their returns are no market's; check the data"
        )
    volume = candles["volume"].to_numpy(np.float64)[rows][order]
    out = candles.copy()
    for name, values in zip((*_PRICES, "volume"), (new_open, new_high, new_low, new_close, volume), strict=True):
        whole = candles[name].to_numpy(np.float64).copy()
        whole[rows] = values
        out[name] = whole
    return out
