"""How sure one may be of a Sharpe ratio."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["probabilistic_sharpe"]


def probabilistic_sharpe(returns: NDArray[np.float64], benchmark: float = 0.0) -> float | None:
    """Probability that the true Sharpe ratio exceeds ``benchmark``, given returns (n,).

    Both ratios are per bar. With SR the observed ratio, g3 skewness and g4 kurtosis,

        PSR = Phi((SR - benchmark) sqrt(n - 1) / sqrt(1 - g3 SR + (g4 - 1) / 4 SR^2))

    (Bailey and Lopez de Prado 2012, "The Sharpe ratio efficient frontier", eq. 3). ``None`` below
    three returns, without spread, or where the estimated variance of SR is not positive.
    """
    n = len(returns)
    if n < 3:
        return None
    centred = returns - returns.mean()
    spread = float(centred.std())
    if spread <= 1e-15:
        return None
    ratio = float(returns.mean()) / float(returns.std(ddof=1))
    skewness = float(np.mean(centred**3)) / spread**3
    kurtosis = float(np.mean(centred**4)) / spread**4
    variance = 1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2
    if variance <= 0.0:
        return None
    z = (ratio - benchmark) * math.sqrt(n - 1) / math.sqrt(variance)
    return 0.5 * math.erfc(-z / math.sqrt(2.0))
