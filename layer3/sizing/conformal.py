"""Conformal scaling: hold less the worse the recent one-day forecasts were.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2021): of n
absolute residuals, the ``ceil((n + 1) * coverage)``-th smallest covers the next one with
probability at least ``coverage`` if they are exchangeable. Residuals are
``|realised - predicted|`` of **one-day returns, as fractions**, so q = 0.05 is 5 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

from layer3.sizing.config import ConformalConfig

__all__ = ["ConformalWindow", "describe"]


class ConformalWindow:
    """The latest residuals, kept in order of time and in order of size.

    ``scale`` in (0, 1] is ``1 / (1 + q)``, and 1.0 before ``min_residuals`` are known;
    ``quantile`` is q, or ``None`` before that; ``nulls`` and ``nans`` count what was refused: a forecast
    or a result that was missing, and one that was not finite.
    """

    __slots__ = ("_by_size", "_by_time", "_config", "nans", "nulls", "quantile", "scale")

    def __init__(self, config: ConformalConfig) -> None:
        self._config = config
        self._by_time: deque[float] = deque()
        self._by_size: list[float] = []
        self.quantile: float | None = None
        self.scale = 1.0
        self.nulls = self.nans = 0

    def __len__(self) -> int:
        return len(self._by_size)

    @property
    def rejected(self) -> int:
        """Residuals that were no number."""
        return self.nulls + self.nans

    def record(self, predicted: float | None, realised: float | None) -> bool:
        """Learn from one forecast of a one-day return, in O(log window) comparisons.

        A ``None`` is counted in ``nulls``, a number that is not finite in ``nans``; the answer is False.
        """
        if predicted is None or realised is None:
            self.nulls += 1
            return False
        residual = abs(realised - predicted)
        if not math.isfinite(residual):
            self.nans += 1
            return False
        self._keep(residual)
        self._measure()
        return True

    def _keep(self, residual: float) -> None:
        ordered = self._by_size
        if len(ordered) == self._config.window:
            del ordered[bisect_left(ordered, self._by_time.popleft())]
        self._by_time.append(residual)
        insort(ordered, residual)

    def _measure(self) -> None:
        n, config = len(self._by_size), self._config
        if n >= config.min_residuals:
            # 1e-9: (n + 1) * coverage must not be pushed over a whole number by rounding.
            self.quantile = self._by_size[math.ceil((n + 1) * config.coverage - 1e-9) - 1]
            self.scale = 1.0 / (1.0 + self.quantile)

    def to_json(self) -> dict[str, Any]:
        """The residuals in the order of time, as plain data."""
        return {"residuals": list(self._by_time), "nulls": self.nulls, "nans": self.nans}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take up what :meth:`to_json` gave, the latest ``window`` of them.

        Raises
        ------
        KeyError, TypeError, ValueError : ``data`` is not such a thing
        """
        residuals = [float(residual) for residual in data["residuals"]]
        if not all(0.0 <= residual < math.inf for residual in residuals):
            raise ValueError("a residual is not a finite number from 0")
        for residual in residuals[-self._config.window :]:
            self._keep(residual)
        self._measure()
        self.nulls, self.nans = int(data["nulls"]), int(data["nans"])


def describe(config: ConformalConfig, count: int, quantile: float | None) -> str:
    """The scale in words, for a decision's reason."""
    if quantile is None:
        return f"{count} residuals known, {config.min_residuals} needed: no scaling yet"
    return f"{config.coverage:.0%} of {count} one-day forecasts erred by at most {quantile:.4f}"
