"""The latest prices of one symbol, one for each bar, and what the state shows of them.

The same definitions as :mod:`layer3.market.features`, which training uses, with the present price as the
present bar's close; on prices that come once a bar the numbers are the same. A live feed may also skip bars:
the last price before stands in for a missing one, and a change over k bars counts as one of 1/sqrt(k) its size.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from layer3 import contract
from layer3.market.features import bars_of

__all__ = ["PriceBuffer", "PriceFeatures"]

_NS: Final = 1_000_000_000
_DAY: Final = 86_400.0


class PriceFeatures(NamedTuple):
    """Returns as fractions; ``volatility`` sd of the daily return, ``None`` before two changes are known."""

    return_1h: float
    return_4h: float
    volatility: float | None


class PriceBuffer:
    """Holds exactly the bars that the longest look-back needs: ``contract.VOLATILITY_WINDOW`` hours and one more."""

    def __init__(self, bar_seconds: int) -> None:
        self._bar_seconds = bar_seconds
        self._one, self._four = bars_of(1, bar_seconds), bars_of(4, bar_seconds)
        self._window = max(2, bars_of(contract.VOLATILITY_WINDOW, bar_seconds))
        self._bars: list[int] = []
        self._prices: list[float] = []
        # Of each bar but the oldest, from the one before it; that of the present bar comes with the next.
        self._changes: list[float] = []
        # Of the changes between the bars before the present one: count, mean, sum of squared distances.
        self._closed = (0, 0.0, 0.0)

    def bar_of(self, time_ns: int) -> int:
        """The number of the bar that a time (UTC nanoseconds) falls into."""
        return time_ns // (self._bar_seconds * _NS)

    def add(self, time_ns: int, price: float) -> None:
        """Take in a price above 0; one of a bar that is past teaches nothing."""
        bar = self.bar_of(time_ns)
        bars, prices = self._bars, self._prices
        if bars and bar <= bars[-1]:
            if bar == bars[-1]:
                prices[-1] = price
            return
        if len(bars) > 1:
            self._changes.append(self._change(len(bars) - 1))
        bars.append(bar)
        prices.append(price)
        # Kept: the latest price that is as old as the longest look-back, and what is younger.
        oldest = bisect_right(bars, bar - max(self._window, self._four)) - 1
        if oldest > 0:
            del bars[:oldest], prices[:oldest], self._changes[:oldest]
        self._closed = self._measured()

    def features(self, price: float) -> PriceFeatures:
        """What the state shows at the present ``price``, after it was added."""
        volatility = self._volatility()
        return PriceFeatures(price / self._before(self._one) - 1.0, price / self._before(self._four) - 1.0, volatility)

    def _before(self, bars: int) -> float:
        """The price ``bars`` bars ago; before there were so many, the oldest."""
        return self._prices[max(0, bisect_right(self._bars, self._bars[-1] - bars) - 1)]

    def _change(self, i: int) -> float:
        return math.log(self._prices[i] / self._prices[i - 1]) / math.sqrt(self._bars[i] - self._bars[i - 1])

    def _measured(self) -> tuple[int, float, float]:
        first = max(1, bisect_right(self._bars, self._bars[-1] - self._window))
        changes = np.array(self._changes[first - 1 :])
        if not changes.size:
            return 0, 0.0, 0.0
        mean = float(changes.mean())
        return changes.size, mean, float(np.square(changes - mean).sum())

    def _volatility(self) -> float | None:
        n, mean, squares = self._closed
        if n < 1 or len(self._bars) < 2:
            return None
        away = self._change(len(self._bars) - 1) - mean
        # One more observation (Welford 1962, Technometrics 4, 419-420): n / (n - 1) with n counting it.
        variance = (squares + away * away * n / (n + 1)) / n
        return math.sqrt(variance * (_DAY / self._bar_seconds))

    def to_json(self) -> dict[str, Any]:
        """Bars and prices as plain data."""
        return {"bar_seconds": self._bar_seconds, "bars": list(self._bars), "prices": list(self._prices)}

    @classmethod
    def restored(cls, bar_seconds: int, data: Mapping[str, Any]) -> PriceBuffer:
        """A buffer that goes on where :meth:`to_json` was taken; an empty one where bars have another length now.

        Raises
        ------
        KeyError, TypeError, ValueError : ``data`` is not such a thing
        """
        buffer = cls(bar_seconds)
        bars, prices = [int(bar) for bar in data["bars"]], [float(price) for price in data["prices"]]
        rising = all(a < b for a, b in itertools.pairwise(bars))
        if len(bars) != len(prices) or not rising or not all(0.0 < price < math.inf for price in prices):
            raise ValueError("bars must rise and every price be a finite number above 0")
        if bars and data["bar_seconds"] == bar_seconds:
            buffer._bars, buffer._prices = bars, prices
            buffer._changes = [buffer._change(i) for i in range(1, len(bars) - 1)]
            buffer._closed = buffer._measured()
        return buffer
