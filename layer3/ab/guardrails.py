"""What stops a harmful arm before any test would: a fall from a peak, or a loss on one day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from layer3.ab.assignment import DAY_NS, Design

__all__ = ["Breach", "find_breach"]


@dataclass(frozen=True, slots=True)
class Breach:
    """A guardrail that gave way: which, its value and limit as positive fractions, and when (UTC nanoseconds)."""

    kind: Literal["max_drawdown", "daily_loss"]
    value: float
    limit: float
    at_ns: int

    @property
    def words(self) -> str:
        """The breach in a sentence."""
        what = "fell from its peak by" if self.kind == "max_drawdown" else "lost on one day"
        return f"{what} {self.value:.2%} of the portfolio, at most {self.limit:.2%} is allowed"


def find_breach(closed_ns: NDArray[np.int64], returns: NDArray[np.float64], design: Design) -> Breach | None:
    """The first moment at which an arm's trades broke a guardrail; ``None`` where they never did.

    ``closed_ns`` (n,) UTC nanoseconds in any order, ``returns`` (n,) of the portfolio. The fall is that of
    the arm's own trades, compounded; the day's loss their sum since midnight UTC.
    """
    if not len(returns):
        return None
    order = np.argsort(closed_ns, kind="stable")
    at, gained = closed_ns[order], returns[order]
    equity = np.concatenate(([1.0], np.cumprod(1.0 + np.maximum(gained, -1.0))))
    falls = 1.0 - equity[1:] / np.maximum.accumulate(equity)[1:]
    day = at // DAY_NS
    total = np.cumsum(gained)
    # What had been gained when the day began.
    first = np.searchsorted(day, day)
    losses = np.where(first > 0, total[first - 1], 0.0) - total
    guarded: tuple[tuple[Literal["max_drawdown", "daily_loss"], NDArray[np.float64], float], ...] = (
        ("max_drawdown", falls, design.max_drawdown),
        ("daily_loss", losses, design.daily_loss),
    )
    # By place, not by time: several trades may close at one moment.
    found = {
        index: Breach(kind, float(values[index]), limit, int(at[index]))
        for kind, values, limit in reversed(guarded)
        if values[index := int(np.argmax(values > limit))] > limit
    }
    return found[min(found)] if found else None
