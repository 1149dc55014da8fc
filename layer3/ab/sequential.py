"""A test that may be looked at every day: the mixture sequential probability ratio test.

Under no difference the likelihood ratio of a normal mixture of effects against none is a martingale with mean
1, so that the chance that it *ever* exceeds 1 / alpha is at most alpha (Ville 1939; Robbins 1970, "Statistical
methods related to the law of the iterated logarithm"). Its inverse is an always-valid p value, and the effects
that it does not reject are an interval that holds the truth at all looks at once (Johari, Koomen, Pekelis and
Walsh 2022, "Always valid inference").

For an estimate with error variance V, of an effect that is N(0, tau^2) under the mixture, all of it depends on
z = estimate / sqrt(V) and k = tau^2 / V, the *information* in units of the mixture:
Lambda = (1 + k)^(-1/2) exp(z^2 k / (2 (1 + k))). tau is a fixed multiple of the standard deviation of one unit, which
is settled before the first one; that the deviation itself is estimated makes it valid for many units, not for
few (Waudby-Smith et al. 2024, "Time-uniform central limit theory and asymptotic confidence sequences").

Every function takes numbers or arrays and gives arrays of their common shape.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["always_valid_p", "boundary", "mixture_scale"]

Floats = NDArray[np.float64]


def mixture_scale(level: float, units: float) -> float:
    """Square of tau over the standard deviation of a unit, for an interval that is narrowest after ``units``.

    ``(-2 ln alpha + ln(1 - 2 ln alpha)) / units`` (Waudby-Smith et al. 2024, appendix B.2), with ``units`` the
    effective number of :class:`~layer3.ab.adjustment.Adjusted`.
    """
    doubled = -2.0 * math.log(1.0 - level)
    return (doubled + math.log1p(doubled)) / units


def boundary(information: Any, level: float) -> Floats:
    """How many standard errors the interval reaches on each side, at ``information`` k above 0.

    ``sqrt((1 + k) / k (ln(1 + k) - 2 ln alpha))``: the z at which Lambda is 1 / alpha.
    """
    k = np.asarray(information, dtype=np.float64)
    return np.asarray(np.sqrt((1.0 + k) / k * (np.log1p(k) - 2.0 * math.log(1.0 - level))))


def always_valid_p(z: Any, information: Any) -> Floats:
    """min(1, 1 / Lambda): under no difference it is never, at any look, below alpha with more than that probability."""
    z, k = np.asarray(z, dtype=np.float64), np.asarray(information, dtype=np.float64)
    return np.asarray(np.exp(np.minimum(0.0, 0.5 * np.log1p(k) - 0.5 * z * z * k / (1.0 + k))))
