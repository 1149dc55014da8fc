"""How often the best of several tried sets in one half of the record is below the middle in the other half."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.record import Overfitting
from layer3.backtest.significance import NO_SPREAD
from layer3.errors import EvaluationError

__all__ = ["MIN_BLOCK_BARS", "overfitting", "overfitting_if_any"]

Floats = NDArray[np.float64]

#: Fewest bars of one block: half a record of 16 blocks has 8 times as many to take a Sharpe ratio from.
MIN_BLOCK_BARS: Final = 5
#: Numbers that one array may hold at a time: 8 MB.
_CHUNK: Final = 1_000_000
_BLOCKS: Final = 16


def overfitting_if_any(returns: Floats) -> Overfitting | None:
    """:func:`overfitting`; ``None`` where there are not two sets that differ, or too few bars to tell."""
    bars, sets = returns.shape
    if sets < 2 or bars < _BLOCKS * MIN_BLOCK_BARS or float(np.ptp(returns, axis=1).max()) <= NO_SPREAD:
        return None
    return overfitting(returns)


def overfitting(returns: Floats, blocks: int = _BLOCKS) -> Overfitting:
    """Probability of backtest overfitting over the tried sets whose returns are the columns (bars, sets).

    Combinatorially symmetric cross-validation (Bailey, Borwein, Lopez de Prado and Zhu 2017, "The
    probability of backtest overfitting", section 3): the bars are cut into ``blocks`` of equal length; of
    each way to choose half of them (12,870 for 16), the set with the best Sharpe ratio there is ranked
    in the other half. The probability is the share in which the logit of its rank over sets + 1 is not
    above 0. Bars that fill no block are left out at the start; sets that are equal share a rank; a set
    without spread over a half has the ratio 0 there.

    Raises
    ------
    EvaluationError : fewer than two sets, all sets the same, an odd or too large number of blocks, blocks of
        fewer than ``MIN_BLOCK_BARS`` bars, or a return that is not finite
    """
    values = _usable(returns, blocks)
    bars, sets = values.shape
    size = bars // blocks
    values = values[bars - size * blocks :]
    mean = values.mean(axis=0)
    cut = (values - mean).reshape(blocks, size, sets)
    first, second = cut.sum(axis=1), (cut**2).sum(axis=1)
    chosen = _halves(blocks)
    half, step = size * blocks // 2, max(_CHUNK // sets, 1)
    bad = 0
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        inside = _ratios(part @ first, part @ second, half, mean)
        outside = _ratios((1.0 - part) @ first, (1.0 - part) @ second, half, mean)
        at = np.take_along_axis(outside, inside.argmax(axis=1)[:, None], axis=1)
        # The mean rank of equals: twice the rank is the number below, plus the number not above, plus 1.
        twice = (outside < at).sum(axis=1) + (outside <= at).sum(axis=1) + 1
        bad += int(np.sum(twice <= sets + 1))
    return Overfitting(sets, blocks, bad / len(chosen))


def _usable(returns: Floats, blocks: int) -> Floats:
    """``returns`` as float64 (bars, sets), or an error that says what is wrong with them."""
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise EvaluationError(
            f"returns have the shape {values.shape}: overfitting needs the bars of at least two tried sets as columns"
        )
    if blocks < 2 or blocks % 2 or blocks > 20:
        raise EvaluationError(f"{blocks} blocks: expected an even number from 2 to 20")
    if len(values) < blocks * MIN_BLOCK_BARS:
        raise EvaluationError(
            f"{len(values)} bars in {blocks} blocks: at least {blocks * MIN_BLOCK_BARS} bars are needed"
        )
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        bar, column = bad[0]
        raise EvaluationError(f"the return of set {column} at bar {bar} is {values[bar, column]}: repair its record")
    if float(np.ptp(values, axis=1).max()) <= NO_SPREAD:
        raise EvaluationError(
            f"all {values.shape[1]} sets have the same returns: there was nothing to choose among; try sets that differ"
        )
    return values


@cache
def _halves(blocks: int) -> Floats:
    """Every choice of half of the blocks as rows of 0 and 1 (choices, blocks)."""
    chosen = np.array(list(combinations(range(blocks), blocks // 2)))
    rows = np.zeros((len(chosen), blocks))
    np.put_along_axis(rows, chosen, 1.0, axis=1)
    rows.setflags(write=False)
    return rows


def _ratios(first: Floats, second: Floats, n: int, mean: Floats) -> Floats:
    """Sharpe ratios (choices, sets) of n bars from sums of returns less ``mean`` (sets,) and of their squares."""
    centre = first / n
    variance = (second - n * centre**2) / (n - 1)
    held = variance > NO_SPREAD**2
    return np.where(held, (centre + mean) / np.sqrt(np.where(held, variance, 1.0)), 0.0)
