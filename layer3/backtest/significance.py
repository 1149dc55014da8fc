"""How sure one may be of a Sharpe ratio: its standard error, and what becomes of it after many trials.

Every ratio here is per bar. What is not defined (too few bars, no spread) is ``None``; a return that is
not finite is a caller's bug and refused.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.intervals import expected_maximum
from layer3.errors import EvaluationError

__all__ = [
    "NO_SPREAD",
    "deflated_sharpe",
    "expected_maximum_sharpe",
    "finite",
    "influence",
    "long_run_variance",
    "minimum_track_record",
    "probabilistic_sharpe",
    "sharpe_ratio",
    "sharpe_standard_error",
]

Floats = NDArray[np.float64]

#: Spreads of returns below this are rounding, not risk.
NO_SPREAD: Final = 1e-12
_NORMAL: Final = NormalDist()


def finite(returns: Floats, name: str = "returns") -> Floats:
    """``returns`` (n,) as float64; raises EvaluationError that names the first bar whose value is not finite."""
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1:
        raise EvaluationError(f"{name} have the shape {values.shape}: expected one number per bar")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise EvaluationError(
            f"{name}: {values[bad[0]]} at bar {bad[0]} ({bad.size} of {values.size} bars are not finite): "
            "repair the track that they come from"
        )
    return values


def sharpe_ratio(returns: Floats) -> float | None:
    """Mean over standard deviation (n - 1) of returns (n,); ``None`` below three returns or without spread."""
    values = finite(returns)
    if len(values) < 3:
        return None
    spread = float(values.std(ddof=1))
    return float(values.mean()) / spread if spread > NO_SPREAD else None


def influence(returns: Floats) -> Floats | None:
    """What each bar adds to the error of the Sharpe ratio SR: ``z - SR / 2 (z^2 - 1)`` of standardised returns z.

    The delta method: the ratio's error is the mean of these (n,) numbers up to terms of higher order (Lo 2002,
    appendix; Ledoit and Wolf 2008, section 3.1). ``None`` where the ratio is.
    """
    ratio = sharpe_ratio(returns)
    if ratio is None:
        return None
    centred = returns - returns.mean()
    z = centred / centred.std()
    return np.asarray(z - 0.5 * ratio * (z * z - 1.0))


def long_run_variance(values: Floats) -> float:
    """n times the variance of the mean of autocorrelated ``values`` (n,) of mean 0; never below their mean square.

    Newey and West's estimator (1987) with sqrt(n) lags after prewhitening by an autoregression of
    order 1 (Andrews and Monahan 1992, their bound of 0.97). So many lags because what a held position
    adds is weak and lasts for days: with the n^(2/9) that are usual it is overlooked. The mean square
    is the variance without autocorrelation; a negative one is not taken as a reason to be surer.
    """
    n = len(values)
    square = float(values @ values)
    if n < 3 or square <= 0.0:
        return square / max(n, 1)
    slope = min(max(float(values[1:] @ values[:-1]) / square, -0.97), 0.97)
    rest = values[1:] - slope * values[:-1]
    lags = math.isqrt(n)
    covariances = [float(rest[lag:] @ rest[: len(rest) - lag]) / len(rest) for lag in range(lags + 1)]
    weights = [1.0] + [2.0 * (1.0 - lag / (lags + 1)) for lag in range(1, lags + 1)]
    whole = sum(w * c for w, c in zip(weights, covariances, strict=True)) / (1.0 - slope) ** 2
    return max(whole, square / n)


def sharpe_standard_error(returns: Floats) -> float | None:
    """Standard error of the Sharpe ratio of returns (n,) that need be neither normal nor independent.

    ``sqrt(V / (n - 1))`` with V the long-run variance of the influences (Lo 2002; Opdyke 2007). Without
    autocorrelation V is 1 - g3 SR + (g4 - 1) / 4 SR^2, with g3 skewness and g4 kurtosis, the
    variance of Mertens (2002) that Bailey and Lopez de Prado use. V is never taken below that, nor below 1,
    its value at a ratio of 0: the skewness that would lower it is estimated from the very bar whose luck
    made the ratio. ``None`` below three returns or without spread.
    """
    influences = influence(returns)
    if influences is None:
        return None
    return math.sqrt(max(long_run_variance(influences), 1.0) / (len(influences) - 1))


def probabilistic_sharpe(returns: Floats, benchmark: float = 0.0) -> float | None:
    """Probability that the true Sharpe ratio exceeds ``benchmark``, given returns (n,).

    ``PSR = Phi((SR - benchmark) / error)`` (Bailey and Lopez de Prado 2012, "The Sharpe ratio efficient
    frontier", eq. 3), with the standard error of :func:`sharpe_standard_error` in place of theirs, which
    takes the bars as independent. ``None`` below three returns or without spread.
    """
    ratio, error = sharpe_ratio(returns), sharpe_standard_error(returns)
    if ratio is None or error is None:
        return None
    return _NORMAL.cdf((ratio - benchmark) / error)


def expected_maximum_sharpe(trials: int, variance: float) -> float:
    """Expected best ratio of ``trials`` independent ones whose true ratio is 0 and whose estimates have ``variance``.

    Bailey and Lopez de Prado (2014), "The deflated Sharpe ratio", eq. 1, approximate the expected
    maximum of normal numbers by extreme value theory; here it is integrated, which also holds for few
    trials: theirs is 8 % too low for two, and infinite for one.
    """
    if trials < 1 or not 0.0 <= variance < math.inf:
        raise EvaluationError(
            f"{trials} trials whose Sharpe ratios have the variance {variance}: expected at least 1 and not below 0"
        )
    return math.sqrt(variance) * expected_maximum(trials)


def deflated_sharpe(returns: Floats, trials: int, trials_variance: float | None) -> float | None:
    """Probability that the true ratio of returns (n,), the best of ``trials``, exceeds what luck would have shown.

    The probabilistic ratio against :func:`expected_maximum_sharpe` (Bailey and Lopez de Prado 2014, eq. 2).
    ``trials_variance``: among the trials' ratios per bar. ``None``: not known; then that of an estimate of
    a ratio of 0 from this record, 1 / (n - 1), as if every trial had been an independent one.
    """
    unknown = 1.0 / max(len(returns) - 1, 1)
    best = expected_maximum_sharpe(trials, unknown if trials_variance is None else trials_variance)
    return probabilistic_sharpe(returns, best)


def minimum_track_record(returns: Floats, benchmark: float = 0.0, level: float = 0.95) -> float | None:
    """Bars after which a ratio like that of returns (n,) would exceed ``benchmark`` with probability ``level``.

    ``1 + V (z / (SR - benchmark))^2`` (Bailey and Lopez de Prado 2012, eq. 11) with V as in
    :func:`sharpe_standard_error`: n reaches it exactly where the probabilistic ratio reaches ``level``.
    ``None`` where the ratio is not above ``benchmark`` (no record would do) or not defined.
    """
    if not 0.5 < level < 1.0:
        raise EvaluationError(f"level {level}: expected a probability above 0.5 and below 1")
    ratio, error = sharpe_ratio(returns), sharpe_standard_error(returns)
    if ratio is None or error is None or ratio <= benchmark:
        return None
    bars = 1.0 + (len(returns) - 1) * (error * _NORMAL.inv_cdf(level) / (ratio - benchmark)) ** 2
    return bars if math.isfinite(bars) else None
