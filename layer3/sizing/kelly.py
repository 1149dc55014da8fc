"""Bayesian Kelly: which fraction of equity a signal deserves.

The Kelly criterion (Kelly 1956; for continuous returns Thorp 2006, "The Kelly criterion in
blackjack, sports betting and the stock market") holds ``edge / variance`` of equity. Here, with
everything over **one horizon** of 30 days::

    edge     = 0.7 * confidence * expected_return + 0.3 * prior_mean
    variance = daily_volatility^2 * 30 + (weight of the prior * prior_sd)^2
    fraction = min(p * edge / variance * 0.25, 0.5) * (1 - 0.5 * risk_score)

``p`` is the posterior mean of the probability that a trade wins: Beta(10, 10), updated by closed
trades. The second term of the variance is the law of total variance: the prior mean is itself
uncertain by ``prior_sd``, so not knowing costs size. Where a signal gives no expected return, the
prior mean stands in for it (and so has the weight ``0.7 * confidence + 0.3``); an expected return
of 0.0 is 0.0. Below p = 0.45 or an edge of 0.02 the size is zero.

Where it varies (p = 0.5, risk score 0; the tests compute this table again):

    ==========  ===============  =====  =====  =====  =====  =====
    confidence  expected return    2 %    3 %    4 %    6 %    8 %   daily volatility
    ==========  ===============  =====  =====  =====  =====  =====
          0.50             0.00  0.000  0.000  0.000  0.000  0.000
          0.50        not given  0.328  0.148  0.084  0.037  0.021
          0.50             0.03  0.264  0.118  0.066  0.029  0.017
          0.50             0.06  0.372  0.166  0.094  0.042  0.023
          0.70        not given  0.393  0.179  0.102  0.045  0.026
          0.70             0.03  0.307  0.137  0.077  0.034  0.019
          0.70             0.06  0.459  0.205  0.115  0.051  0.029
          0.90        not given  0.455  0.209  0.119  0.053  0.030
          0.90             0.03  0.351  0.156  0.088  0.039  0.022
          0.90             0.06  0.500  0.244  0.137  0.061  0.034
          0.90             0.12  0.500  0.418  0.236  0.105  0.059
    ==========  ===============  =====  =====  =====  =====  =====
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from layer3.sizing.config import KellyConfig

__all__ = ["KellyEstimate", "KellyPosterior", "describe", "estimate"]


class KellyPosterior:
    """Beta posterior of the probability that a trade wins, and the count of what taught it."""

    __slots__ = ("_config", "alpha", "beta", "rejected")

    def __init__(self, config: KellyConfig) -> None:
        self._config = config
        self.alpha = config.prior_alpha
        self.beta = config.prior_beta
        self.rejected = 0

    def record(self, trade_return: float | None) -> bool:
        """Learn from one closed trade: its return after costs, as a fraction; a win is > 0.

        A return that is ``None`` or not finite teaches nothing: it is counted in ``rejected``
        and the answer is False.
        """
        if trade_return is None or not math.isfinite(trade_return):
            self.rejected += 1
            return False
        if trade_return > 0.0:
            self.alpha += 1.0
        else:
            self.beta += 1.0
        return True

    @property
    def mean(self) -> float:
        """Posterior mean alpha / (alpha + beta), in (0, 1)."""
        return self.alpha / (self.alpha + self.beta)

    def to_json(self) -> dict[str, Any]:
        """What was learnt, as plain data, beside the prior that it was learnt on."""
        prior = {"prior_alpha": self._config.prior_alpha, "prior_beta": self._config.prior_beta}
        return {"alpha": self.alpha, "beta": self.beta, "rejected": self.rejected, **prior}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take up what :meth:`to_json` gave; under another prior the same trades count on top of that one.

        Raises
        ------
        KeyError, TypeError, ValueError : ``data`` is not such a thing
        """
        alpha, beta, *before = (float(data[name]) for name in ("alpha", "beta", "prior_alpha", "prior_beta"))
        now = [self._config.prior_alpha, self._config.prior_beta]
        if not (math.isfinite(alpha + beta) and alpha >= before[0] > 0.0 and beta >= before[1] > 0.0):
            raise ValueError(f"Beta({alpha}, {beta}) does not come of the prior Beta({before[0]}, {before[1]})")
        # As it is where the prior is the same: a subtraction could round.
        self.alpha = alpha if before[0] == now[0] else alpha - before[0] + now[0]
        self.beta = beta if before[1] == now[1] else beta - before[1] + now[1]
        self.rejected = int(data["rejected"])


class KellyEstimate(NamedTuple):
    """What Kelly made of a signal; ``fraction`` in [0, max_fraction], edge and variance over the horizon."""

    fraction: float
    win_probability: float
    edge: float
    variance: float
    uncapped: float
    risk_factor: float
    return_given: bool
    volatility_given: bool


def estimate(
    config: KellyConfig,
    win_probability: float,
    confidence: float,
    risk_score: float,
    expected_return: float | None,
    daily_volatility: float | None,
) -> KellyEstimate:
    """Size one signal by the formulas above; all numbers are finite (the chain checks them).

    ``expected_return`` is the return of following the signal over the horizon, ``None`` if
    unknown; ``daily_volatility`` the sd of the daily return, ``None`` for the configured default,
    and never believed to be below ``min_daily_volatility``.
    """
    signal_weight = config.signal_weight * confidence
    prior_weight = 1.0 - config.signal_weight
    edge = prior_weight * config.prior_mean_return
    if expected_return is None:
        edge += signal_weight * config.prior_mean_return
        prior_weight += signal_weight
    else:
        edge += signal_weight * expected_return
    volatility = config.default_daily_volatility if daily_volatility is None else daily_volatility
    volatility = max(volatility, config.min_daily_volatility)
    variance = volatility * volatility * (config.horizon_hours / 24.0) + (prior_weight * config.prior_sd_return) ** 2
    uncapped = fraction = 0.0
    risk_factor = 1.0 - config.risk_weight * risk_score
    if win_probability >= config.min_win_probability and edge >= config.min_edge:
        uncapped = max(win_probability * edge / variance * config.kelly_share, 0.0)
        fraction = min(uncapped, config.max_fraction) * risk_factor
    return KellyEstimate(
        fraction,
        win_probability,
        edge,
        variance,
        uncapped,
        risk_factor,
        expected_return is not None,
        daily_volatility is not None,
    )


def describe(config: KellyConfig, result: KellyEstimate) -> str:
    """The estimate in words, for a decision's reason."""
    p, edge = result.win_probability, result.edge
    if p < config.min_win_probability:
        text = f"win probability {p:.3f} is below {config.min_win_probability:g}: no size"
    elif edge < config.min_edge:
        text = f"edge {edge:.4f} is below {config.min_edge:g}: no size"
    else:
        text = f"p {p:.3f} x edge {edge:.4f} / variance {result.variance:.4f} x {config.kelly_share:g}"
        if result.uncapped > config.max_fraction:
            text += f" = {result.uncapped:.3f}, capped at {config.max_fraction:g}"
        text += f"; risk score x {result.risk_factor:.3f}"
    if not result.return_given:
        text += f"; no expected return given, prior mean {config.prior_mean_return:g} used"
    if not result.volatility_given:
        text += f"; no volatility given, default {config.default_daily_volatility:g} a day used"
    return text
