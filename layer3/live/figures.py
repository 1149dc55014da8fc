"""What is known of one symbol, in a few numbers: for metrics and whoever looks."""

from __future__ import annotations

from typing import NamedTuple

from layer3.live.memory import SymbolMemory
from layer3.types import Regime

__all__ = ["SymbolFigures", "symbol_figures"]


class SymbolFigures(NamedTuple):
    """``win_rate`` in (0, 1) is the posterior mean, ``trades`` how many taught it; ``regime`` holds now and ``pending``
    calmer bars wait (``None`` and 0 before any); ``residual`` is the conformal quantile, a fraction, ``None`` before
    there are enough of the ``residuals``; ``nulls`` and ``nans`` count what was no residual.
    """

    win_rate: float
    trades: int
    regime: Regime | None
    pending: int
    residual: float | None
    residuals: int
    nulls: int
    nans: int


def symbol_figures(memory: SymbolMemory) -> SymbolFigures:
    """The figures of a symbol; the caller holds the lock that guards its memory."""
    chain = memory.chain
    posterior, window, prior = chain.posterior, chain.residuals, chain.config.kelly
    trades = round(posterior.alpha + posterior.beta - prior.prior_alpha - prior.prior_beta)
    return SymbolFigures(
        posterior.mean,
        trades,
        chain.regime.regime,
        chain.regime.pending,
        window.quantile,
        len(window),
        window.nulls,
        window.nans,
    )
