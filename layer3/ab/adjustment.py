"""The difference between two arms, with what the base size explains taken out (CUPED: Deng, Xu, Kohavi, Walker 2013).

A unit's return y depends mostly on what the market did and on how large the base size was, neither of which
the arms can differ in but by chance. With x those two, y - theta x has the same difference between the arms and
less noise, whatever theta is; theta is the regression of y on x within arms.

Units that were assigned under different shares (a ramp) are compared within each share only, and the differences put
together in proportion to their information: a mean over all would compare the weeks, not the arms. All
is computed from counts, sums and products, so that thousands of looks are one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Adjusted", "Moments", "adjusted_difference", "moments"]

Floats = NDArray[np.float64]

#: Units of each arm below which a share's units are left out.
_LEAST: Final = 10
#: A covariate that varies by less than this share of its size is constant.
_CONSTANT: Final = 1e-12
#: A variance below this share of what it is left of is rounding.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the values (y, then covariates) of units: ``count`` (..., shares, 2), ``total`` (..., shares, 2, c) their
    sums, ``product`` (..., shares, 2, c, c) the sums of their products; of the two arms 0 is Kelly, 1 the policy."""

    count: Floats
    total: Floats
    product: Floats


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Each (...): mean of the policy's arm less that of Kelly's, its error ``variance``, the ``effective`` number of
    units behind it (the sum of n1 n0 / (n1 + n0) over the shares: n / 4 for n units in equal halves), and the
    ``units`` of each arm (..., 2) that were used. Where too few were, or nothing varies, the difference is NaN and
    the variance 0."""

    difference: Floats
    variance: Floats
    effective: Floats
    units: Floats

    @property
    def noise(self) -> Floats:
        """Variance of an estimate from one effective unit."""
        return self.variance * self.effective


def moments(values: Floats, policy: NDArray[np.bool_], stratum: NDArray[np.int64], strata: int) -> Moments:
    """Moments of units (n,): ``values`` (n, c), which arm, and the number of the share in [0, ``strata``)."""
    columns = values.shape[1]
    cell = stratum * 2 + policy
    count = np.bincount(cell, minlength=2 * strata).astype(np.float64)
    total = np.stack([np.bincount(cell, column, 2 * strata) for column in values.T], axis=-1)
    products = (values[:, :, None] * values[:, None, :]).reshape(len(values), columns * columns)
    product = np.stack([np.bincount(cell, column, 2 * strata) for column in products.T], axis=-1)
    return Moments(
        count.reshape(strata, 2),
        total.reshape(strata, 2, columns).astype(np.float64),
        product.reshape(strata, 2, columns, columns).astype(np.float64),
    )


def adjusted_difference(given: Moments) -> Adjusted:
    """The difference between the arms with its error, from moments with any leading axes.

    Within each share the arms' variances may differ; shares get the weights n1 n0 / (n1 + n0).
    """
    used = (given.count.min(axis=-1) >= _LEAST)[..., None]
    count = np.where(used, given.count, 0.0)
    safe = np.maximum(count, 1.0)
    mean = np.where(used[..., None], given.total / safe[..., None], 0.0)
    spread = np.where(used[..., None, None], given.product, 0.0) - count[..., None, None] * (
        mean[..., :, None] * mean[..., None, :]
    )
    pooled = spread.sum(axis=(-4, -3))
    freedom = np.maximum(count - 1.0, 0.0)
    slope = _slopes(pooled, given.product.sum(axis=(-4, -3)))
    # y - theta x, as a combination of the columns.
    mix = np.concatenate((np.ones((*slope.shape[:-1], 1)), -slope), axis=-1)
    squares = np.maximum(np.einsum("...i,...saij,...j->...sa", mix, spread, mix), 0.0)
    gaps = np.einsum("...i,...si->...s", mix, mean[..., 1, :] - mean[..., 0, :])
    weight = count.prod(axis=-1) / np.maximum(count.sum(axis=-1), 1.0)
    effective = weight.sum(axis=-1)
    part = weight / np.where(effective > 0.0, effective, 1.0)[..., None]
    errors = (squares / np.maximum(freedom, 1.0) / safe).sum(axis=-1)
    variance = (part**2 * errors).sum(axis=-1)
    # Below this all that is left is rounding, and a test of it would find anything.
    raw, left = pooled[..., 0, 0], squares.sum(axis=(-2, -1))
    known = (raw > _ROUNDING * given.product[..., 0, 0].sum(axis=(-2, -1))) & (left > _ROUNDING * raw)
    return Adjusted(
        np.where(known, (part * gaps).sum(axis=-1), np.nan),
        np.where(known, variance, 0.0),
        effective,
        count.sum(axis=-2),
    )


def _slopes(pooled: Floats, size: Floats) -> Floats:
    """Least squares of column 0 on the others from centred products (..., c, c); 0 for covariates that are constant."""
    inner, outer = pooled[..., 1:, 1:], pooled[..., 1:, 0]
    own = np.diagonal(inner, axis1=-2, axis2=-1)
    varies = own > _CONSTANT * np.diagonal(size[..., 1:, 1:], axis1=-2, axis2=-1)
    scale = np.where(varies, np.sqrt(np.maximum(own, 0.0)), np.inf)
    correlation = inner / scale[..., :, None] / scale[..., None, :]
    inverse = np.linalg.pinv(correlation, rcond=1e-9, hermitian=True)
    return np.asarray(np.einsum("...ij,...j->...i", inverse, outer / scale) / scale)
