"""A ledger in plain decimals, order by order: slow, obvious, and written apart from the real one."""

from __future__ import annotations

from collections import deque
from decimal import Decimal, localcontext

ZERO = Decimal(0)
#: A target this close to what is held asks for no trade.
SAME = Decimal("1e-12")


class SlowLedger:
    """One account. Orders fill at the slipped price and pay commission on what was filled."""

    def __init__(self, capital: float, commission: float, slippage: float) -> None:
        self.cash = Decimal(capital)
        self.units = ZERO
        self.commission = Decimal(commission)
        self.slippage = Decimal(slippage)
        self.paid = ZERO
        self.traded = ZERO
        self.closed: list[Decimal] = []
        self.last = deque[bool](maxlen=10)
        self.started = ZERO
        self.fills: list[tuple[Decimal, Decimal]] = []

    def equity(self, price: float) -> Decimal:
        return self.cash + self.units * Decimal(price)

    def exposure(self, price: float) -> Decimal:
        return self.units * Decimal(price) / self.equity(price)

    def unrealised(self, price: float) -> Decimal:
        """Gain per unit of the average fill price of what built the position."""
        if not self.units:
            return ZERO
        bought = sum(units for units, _ in self.fills)
        average = sum(units * fill for units, fill in self.fills) / bought
        gain = Decimal(price) / average - 1
        return gain if self.units > 0 else -gain

    @property
    def win_rate(self) -> float:
        return sum(self.last) / len(self.last) if self.last else 0.5

    def rebalance(self, wanted: float, at: float) -> None:
        with localcontext() as context:
            context.prec = 34
            target, price = Decimal(wanted), Decimal(at)
            if self.equity(at) <= 0 or abs(target) <= SAME:
                target = ZERO
            gap = target * self.equity(at) - self.units * price
            if target and abs(gap) <= SAME * self.equity(at):
                return
            if self.units and (not target or (target > 0) != (self.units > 0)):
                self._order(-self.units, price)
                self.closed.append(self.equity(at) / self.started - 1)
                self.last.append(self.closed[-1] > 0)
                self.fills = []
            if not target:
                return
            if not self.units:
                self.started = self.equity(at)
            self._order(self._search(target, price), price)

    def _order(self, units: Decimal, price: Decimal) -> None:
        fill = price * (1 + self.slippage) if units > 0 else price * (1 - self.slippage)
        before = self.cash + self.units * price
        held = abs(self.units)
        if abs(self.units + units) > held:
            self.fills.append((abs(units), fill))
        elif held:  # sold at average cost: every fill shrinks alike
            left = abs(self.units + units) / held
            self.fills = [(size * left, paid) for size, paid in self.fills]
        self.cash, self.units = self._after(units, price)
        self.paid += before - (self.cash + self.units * price)
        self.traded += abs(units) * price

    def _after(self, units: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
        fill = price * (1 + self.slippage) if units > 0 else price * (1 - self.slippage)
        return self.cash - units * fill - abs(units) * fill * self.commission, self.units + units

    def _search(self, target: Decimal, price: Decimal) -> Decimal:
        """Units to order so that the target holds after costs, by bisection."""
        reach = 2 * (self.cash + self.units * price) / price
        low, high = -reach - abs(self.units), reach + abs(self.units)
        for _ in range(90):
            middle = (low + high) / 2
            cash, units = self._after(middle, price)
            if units * price > target * (cash + units * price):
                high = middle
            else:
                low = middle
        return (low + high) / 2
