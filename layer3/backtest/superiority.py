"""Whether the policy earns more than every benchmark, or only seems to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.bootstrap import RESAMPLES, resampled_means, working_length
from layer3.backtest.record import Superiority
from layer3.backtest.significance import finite
from layer3.errors import EvaluationError

__all__ = ["superiority"]

Floats = NDArray[np.float64]


def superiority(
    returns: Floats,
    benchmarks: Mapping[str, Floats],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Superiority:
    """Test of "the mean return of ``returns`` (n,) is not above that of the best of ``benchmarks``".

    Hansen (2005), "A test for superior predictive ability", asks whether any of several models beats one
    benchmark. Here one model has to beat several benchmarks, so the test is taken against each
    of them, with the policy as the only model, and the largest p value holds for all: whoever is not
    better than the best is not better than some one (intersection-union test, Berger 1982). All
    tests resample the same bars by the stationary bootstrap.

    The three p values differ in how a policy that is worse than the benchmark is centred under the null:
    never as worse (``upper``), as worse where its mean is below -sqrt(2 log log n) of its standard errors
    (``consistent``), always (``lower``). p = (1 + number of resamples not below the real mean) / (1 + resamples):
    never 0, and 1 against a benchmark with the same returns.

    What is compared is money, not money for the risk taken: a policy that earns as much at less risk
    does not pass; the differences of Sharpe ratios are for that.

    Raises
    ------
    EvaluationError : no benchmark, returns that are not finite or not of one length, fewer than 20 bars
    """
    values = finite(returns, "the policy's returns")
    n = len(values)
    if not benchmarks or n < 20:
        raise EvaluationError(
            f"{n} bars against {len(benchmarks)} benchmarks: expected at least 20 bars and 1 benchmark"
        )
    columns = []
    for name, other in benchmarks.items():
        if len(finite(other, f"the returns of {name}")) != n:
            raise EvaluationError(f"{name} has {len(other)} returns, the policy {n}: expected the same bars")
        columns.append(values - other)
    excess = np.stack(columns, axis=1)
    mean = excess.mean(axis=0)
    resampled = resampled_means(excess, np.random.default_rng(seed), resamples, working_length(*columns))
    bound = -math.sqrt(2.0 * math.log(math.log(n))) * resampled.std(axis=0)
    centres = (np.maximum(mean, 0.0), np.where(mean >= bound, mean, 0.0), mean)
    lower, consistent, upper = (
        float((1 + np.sum(resampled - centre >= mean, axis=0)).max()) / (1 + resamples) for centre in centres
    )
    return Superiority(tuple(benchmarks), lower, consistent, upper)
