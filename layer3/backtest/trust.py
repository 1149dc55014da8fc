"""How far a record can be trusted, and how it differs from another on the same bars: what the report shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.bootstrap import (
    LEVEL,
    RESAMPLES,
    drawdown_interval,
    sharpe_difference_interval,
    sharpe_interval,
)
from layer3.backtest.metrics import periods_per_year, volatility
from layer3.backtest.record import Difference, Interval, Trust
from layer3.backtest.significance import (
    NO_SPREAD,
    deflated_sharpe,
    expected_maximum_sharpe,
    finite,
    minimum_track_record,
    probabilistic_sharpe,
    sharpe_ratio,
    sharpe_standard_error,
)
from layer3.errors import EvaluationError

__all__ = ["difference", "trust"]

Floats = NDArray[np.float64]
_UNKNOWN = Interval(None, None, None, LEVEL)


def trust(
    equity: Floats,
    interval_seconds: float,
    *,
    trials: int,
    trials_variance: float | None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Trust:
    """What the Sharpe ratio of equity (n + 1,) is worth, the best of ``trials``.

    ``trials_variance``: of the trials' annualised Sharpe ratios; ``None`` where it is not known (see
    :func:`~layer3.backtest.significance.deflated_sharpe`). Of an account that was lost (equity at or below
    0 at any bar) no ratio is known.

    Raises
    ------
    EvaluationError : equity that is not finite, no trial, a negative variance
    """
    returns, periods = _returns(equity), periods_per_year(interval_seconds)
    bars = len(equity) - 1
    variance = None if trials_variance is None else trials_variance / periods
    best = expected_maximum_sharpe(trials, 1.0 / max(bars - 1, 1) if variance is None else variance)
    if returns is None:
        nothing = (None, None, None, None)
        return Trust(*nothing, trials, best * math.sqrt(periods), bars / periods, None, _UNKNOWN, _UNKNOWN)
    needed = minimum_track_record(returns)
    # Two streams of one seed: neither interval depends on how much chance the other used.
    first, second = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2))
    return Trust(
        sharpe=_annual(sharpe_ratio(returns), periods),
        standard_error=_annual(sharpe_standard_error(returns), periods),
        probabilistic=probabilistic_sharpe(returns),
        deflated=deflated_sharpe(returns, trials, variance),
        trials=trials,
        trials_sharpe=best * math.sqrt(periods),
        years=bars / periods,
        years_needed=None if needed is None else needed / periods,
        sharpe_interval=_annual_interval(sharpe_interval(returns, first, resamples=resamples), periods),
        drawdown_interval=drawdown_interval(returns, second, resamples=resamples),
    )


def difference(
    equity: Floats,
    other: Floats,
    interval_seconds: float,
    *,
    against: str,
    seed: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """The annualised Sharpe ratio of equity (n + 1,) less that of ``other``, the track called ``against``.

    A track that never holds anything has the ratio 0 as ``other``; as the one judged it has none. Of an
    account that was lost nothing is known.

    Raises
    ------
    EvaluationError : equity that is not finite, or two records of different lengths
    """
    if len(equity) != len(other):
        raise EvaluationError(
            f"{len(equity) - 1} bars against {len(other) - 1} of {against}: walk both over the same bars"
        )
    mine, theirs, periods = _returns(equity), _returns(other), periods_per_year(interval_seconds)
    if mine is None or theirs is None:
        return Difference(against, _UNKNOWN, None)
    interval = sharpe_difference_interval(mine, theirs, np.random.default_rng(seed), resamples=resamples)
    risk, base = volatility(mine, periods), volatility(theirs, periods)
    share = None if risk is None or base is None or base <= NO_SPREAD else risk / base
    return Difference(against, _annual_interval(interval, periods), share)


def _returns(equity: Floats) -> Floats | None:
    """Simple returns (n,) per bar of equity (n + 1,); ``None`` where the account was lost."""
    values = finite(equity, "equity")
    return None if len(values) == 0 or np.any(values <= 0.0) else values[1:] / values[:-1] - 1.0


def _annual(value: float | None, periods: float) -> float | None:
    return None if value is None else value * math.sqrt(periods)


def _annual_interval(interval: Interval, periods: float) -> Interval:
    bounds = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (_annual(value, periods) for value in bounds)
    return replace(interval, estimate=estimate, low=low, high=high)
