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
from typing import Any, Final

import numpy as np

from layer3 import contract
from layer3.errors import ConfigurationError

__all__ = ["Costs", "Fill", "Ledger"]

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

    notional: Any
    cost: Any
    closed: Any
    trade_return: Any


class Ledger:
    """n accounts that trade one asset each.

    Attributes, each (n,) float64: ``cash``, ``units`` (signed), ``entry`` (average fill price of the
    open position, 0 when flat), ``win_rate`` (share of winners among the last closed round trips).
    A round trip runs from the fill that leaves flat (or flips) to the fill that ends that side;
    its return is measured on the equity at its start and carries its own costs.

    ``xp`` is the module whose arrays are used, numpy or torch, on ``device``: the same lines run
    in both, in float64, and give the same bits. With torch nothing waits for the device.
    """

    def __init__(self, n: int, capital: float, costs: Costs, xp: Any = np, device: Any = None) -> None:
        if not capital > 0.0:
            raise ConfigurationError(f"capital is {capital}, expected a positive amount")
        self._xp = xp
        self._costs = costs
        self._capital = float(capital)

        def full(value: float) -> Any:
            return xp.full((n,), value, dtype=xp.float64, device=device)

        self.cash = full(self._capital)
        self.units = full(0.0)
        self.entry = full(0.0)
        self.win_rate = full(contract.NEUTRAL_WIN_RATE)
        self._trade_start = full(self._capital)
        # The last trades as bits, the newest lowest, and how many there were.
        self._wins = xp.zeros((n,), dtype=xp.int64, device=device)
        self._trades = xp.zeros((n,), dtype=xp.int64, device=device)
        counts = [row.bit_count() for row in range(2**contract.WIN_RATE_TRADES)]
        self._winners = xp.asarray(counts, dtype=xp.float64, device=device)

    #: What an account remembers; all of it, so that a run can be put down and taken up again.
    FIELDS: Final = ("cash", "units", "entry", "win_rate", "_trade_start", "_wins", "_trades")

    def reset(self, fresh: Any) -> None:
        """Give the accounts where ``fresh`` (n,) is true a new start: the initial capital, flat, no trades."""
        where = self._xp.where
        self.cash = where(fresh, self._capital, self.cash)
        self.units = where(fresh, 0.0, self.units)
        self.entry = where(fresh, 0.0, self.entry)
        self.win_rate = where(fresh, contract.NEUTRAL_WIN_RATE, self.win_rate)
        self._wins = where(fresh, 0, self._wins)
        self._trades = where(fresh, 0, self._trades)

    def equity(self, price: Any) -> Any:
        """Cash plus position, (n,), marked at ``price``."""
        return self.cash + self.units * price

    def exposure(self, price: Any) -> Any:
        """Signed fraction of equity held, (n,), marked at ``price``; huge, its sign kept, where equity is used up."""
        return self.units * price / self._xp.clip(self.equity(price), _DUST * self._capital, None)

    def unrealised(self, price: Any) -> Any:
        """Gain of the open position since its average entry, as a fraction, (n,); 0 when flat."""
        held = self.units != 0.0
        moved = self._xp.where(held, price / self._xp.where(held, self.entry, 1.0), 1.0) - 1.0
        return self._xp.sign(self.units) * moved

    def rebalance(self, target: Any, price: Any) -> Fill:
        """Trade every account to ``target`` exposure at ``price``, both (n,) or scalar.

        An account whose equity is used up can only be closed: its target is taken as 0.
        """
        xp = self._xp
        where, size_of, sign = xp.where, xp.abs, xp.sign
        before = self.equity(price)
        target = xp.asarray(target)
        # A target of dust is no position: rounding would choose its side.
        target = where((before > 0.0) & ~(size_of(target) <= _DUST), target, 0.0)
        held = self.units * price
        gap = target * before - held
        gap = where(size_of(gap) <= _DUST * size_of(before), 0.0, gap)
        direction = sign(gap)
        slipped = direction * self._costs.slippage
        rate = self._costs.slippage + self._costs.commission * (1.0 + slipped)
        closing = target == 0.0
        notional = where(closing, size_of(held), size_of(gap) / (1.0 + direction * target * rate))
        cost = rate * notional
        fill_price = price * (1.0 + slipped)
        delta = where(closing, -self.units, direction * notional / price)
        units = self.units + delta

        old_side, new_side = sign(self.units), sign(units)
        changed = new_side != old_side
        closed = changed & (old_side != 0.0)
        after_close = before - rate * where(closed, size_of(held), 0.0)
        trade_return = where(closed, after_close / self._trade_start - 1.0, 0.0)

        size, old_size = size_of(units), size_of(self.units)
        grows = ~changed & (size > old_size)
        blended = (old_size * self.entry + size_of(delta) * fill_price) / where(size > 0.0, size, 1.0)
        self.entry = where(changed, fill_price, where(grows, blended, self.entry)) * (new_side != 0.0)
        self._trade_start = where(changed, after_close, self._trade_start)
        self.cash = self.cash - delta * price - cost
        self.units = units
        # On a GPU the question itself would cost more than remembering.
        if xp is not np or closed.any():
            self._remember(closed, trade_return > 0.0)
        return Fill(notional, cost, closed, trade_return)

    def _remember(self, closed: Any, won: Any) -> None:
        where, last = self._xp.where, contract.WIN_RATE_TRADES
        # Times one: an integer beside integers in either module.
        self._wins = where(closed, ((self._wins << 1) | (won * 1)) & (2**last - 1), self._wins)
        self._trades = self._trades + closed * 1
        rate = self._winners[self._wins] / self._xp.clip(self._trades, 1, last)
        self.win_rate = where(closed, rate, self.win_rate)
