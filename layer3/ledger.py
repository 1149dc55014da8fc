"""Exact accounting of many accounts at once: what an exposure costs and what it earns.

Environment and backtest both trade through this ledger, so that training and judging cannot
disagree about money. An account holds cash and units of one asset. Targets are signed fractions
of equity *after* the trade's own costs, so that a target at the cap ends exactly at the cap.

A trade of notional N at price P fills at ``P (1 + s slippage)``, ``s`` its direction, and pays
``commission`` on the filled notional; against the mid price it costs ``N k_s`` with
``k_s = slippage + commission (1 + s slippage)``. For a target exposure x of an account with
equity E and units u, ``x (E - k_s N) = u P + s N`` gives ``N = |x E - u P| / (1 + s x k_s)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.errors import ConfigurationError

__all__ = ["Costs", "Fill", "Ledger"]

Floats = NDArray[np.float64]

#: Relative size below which a target and what is held are the same, so that rounding never trades.
_DUST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Costs:
    """Trading costs as fractions of the traded notional: ``commission`` 0.1 %, ``slippage`` 5 bps."""

    commission: float = 0.001
    slippage: float = 0.0005

    def __post_init__(self) -> None:
        for name in ("commission", "slippage"):
            value = getattr(self, name)
            if not 0.0 <= value < 0.1:
                raise ConfigurationError(f"{name} is {value}, expected a fraction in [0, 0.1), for example 0.001")


@dataclass(frozen=True, slots=True)
class Fill:
    """What one rebalancing did, each (n,): traded notional at mid price, cost paid, trades closed and their return."""

    notional: Floats
    cost: Floats
    closed: NDArray[np.bool_]
    trade_return: Floats


class Ledger:
    """n accounts that trade one asset each.

    Attributes, each (n,): ``cash``, ``units`` (signed), ``entry`` (average fill price of the open
    position, 0 when flat), ``win_rate`` (share of winners among the last closed round trips).
    A round trip runs from the fill that leaves flat (or flips) to the fill that ends that side;
    its return is measured on the equity at its start and carries its own costs.
    """

    def __init__(self, n: int, capital: float, costs: Costs) -> None:
        if not capital > 0.0:
            raise ConfigurationError(f"capital is {capital}, expected a positive amount")
        self._costs = costs
        self._capital = float(capital)
        self.cash = np.full(n, self._capital)
        self.units = np.zeros(n)
        self.entry = np.zeros(n)
        self.win_rate = np.full(n, contract.NEUTRAL_WIN_RATE)
        self._trade_start = np.full(n, self._capital)
        self._wins = np.zeros((n, contract.WIN_RATE_TRADES))
        self._trades = np.zeros(n, dtype=np.int64)

    def reset(self, rows: NDArray[np.intp]) -> None:
        """Give the accounts ``rows`` a fresh start: the initial capital, flat, no trades."""
        self.cash[rows] = self._capital
        self.units[rows] = 0.0
        self.entry[rows] = 0.0
        self.win_rate[rows] = contract.NEUTRAL_WIN_RATE
        self._wins[rows] = 0.0
        self._trades[rows] = 0

    def equity(self, price: Floats | float) -> Floats:
        """Cash plus position, (n,), marked at ``price``."""
        return np.asarray(self.cash + self.units * price)

    def exposure(self, price: Floats | float) -> Floats:
        """Signed fraction of equity held, (n,), marked at ``price``."""
        return np.asarray(self.units * price / self.equity(price))

    def unrealised(self, price: Floats | float) -> Floats:
        """Gain of the open position since its average entry, as a fraction, (n,); 0 when flat."""
        held = self.units != 0.0
        moved = np.divide(price, self.entry, out=np.ones_like(self.entry), where=held) - 1.0
        return np.asarray(np.sign(self.units) * moved)

    def rebalance(self, target: Floats | float, price: Floats | float) -> Fill:
        """Trade every account to ``target`` exposure at ``price``, both (n,) or scalar.

        An account whose equity is used up can only be closed: its target is taken as 0.
        """
        before = self.equity(price)
        # A target of dust is no position: rounding would choose its side.
        target = np.where((before > 0.0) & ~(np.abs(target) <= _DUST), target, 0.0)
        held = self.units * price
        gap = target * before - held
        gap = np.where(np.abs(gap) <= _DUST * np.abs(before), 0.0, gap)
        direction = np.sign(gap)
        slipped = direction * self._costs.slippage
        rate = self._costs.slippage + self._costs.commission * (1.0 + slipped)
        closing = target == 0.0
        notional = np.where(closing, np.abs(held), np.abs(gap) / (1.0 + direction * target * rate))
        cost = rate * notional
        fill_price = price * (1.0 + slipped)
        delta = np.where(closing, -self.units, direction * notional / price)
        units = self.units + delta

        old_side, new_side = np.sign(self.units), np.sign(units)
        changed = new_side != old_side
        closed = changed & (old_side != 0.0)
        after_close = before - rate * np.where(closed, np.abs(held), 0.0)
        trade_return = np.where(closed, after_close / self._trade_start - 1.0, 0.0)

        grows = ~changed & (np.abs(units) > np.abs(self.units))
        size = np.abs(units)
        blended = (np.abs(self.units) * self.entry + np.abs(delta) * fill_price) / np.where(size > 0.0, size, 1.0)
        self.entry = np.where(changed, fill_price, np.where(grows, blended, self.entry)) * (new_side != 0.0)
        self._trade_start = np.where(changed, after_close, self._trade_start)
        self.cash = self.cash - delta * price - cost
        self.units = units
        rows = np.flatnonzero(closed)
        if rows.size:
            self._remember(rows, trade_return[rows] > 0.0)
        return Fill(notional, cost, closed, trade_return)

    def _remember(self, rows: NDArray[np.intp], won: NDArray[np.bool_]) -> None:
        self._wins[rows, self._trades[rows] % contract.WIN_RATE_TRADES] = won
        self._trades[rows] += 1
        self.win_rate[rows] = self._wins[rows].sum(axis=1) / np.minimum(self._trades[rows], contract.WIN_RATE_TRADES)
