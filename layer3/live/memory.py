"""What the engine remembers: a chain, prices and trades of each symbol, a book of each position, the day's account.

Everything here is plain data to a snapshot and back, so that an engine that was stopped goes on as if it had
not been. Nothing here is thread-safe: the engine holds its lock around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from layer3 import contract
from layer3.live.prices import PriceBuffer
from layer3.live.risk import DayAccount
from layer3.sizing.chain import SizingChain
from layer3.sizing.config import ChainConfig
from layer3.types import ClosedTrade

__all__ = ["Book", "Memory", "SymbolMemory", "TradeMemory"]

_Key = tuple[Any, ...]


class TradeMemory:
    """Closed trades, each once, and the winners among the last ``contract.WIN_RATE_TRADES``.

    A trade with an id is known by it. One without is known by its content; of several with equal content as
    many count as one call has ever shown at once, so that a list that is handed over again teaches nothing new.
    """

    def __init__(self) -> None:
        self._seen: dict[_Key, int] = {}
        self._latest: deque[bool] = deque(maxlen=contract.WIN_RATE_TRADES)

    def new(self, trades: Sequence[ClosedTrade], most: int) -> list[ClosedTrade]:
        """Those of ``trades`` (oldest first) that were not known; they are from now on, the latest ``most`` of all."""
        found: list[ClosedTrade] = []
        shown: dict[_Key, int] = {}
        for trade in trades:
            if trade.trade_id is not None:
                key: _Key = (trade.trade_id,)
                shown[key] = 1
            else:
                key = (trade.closed_at_ns, trade.trade_return, trade.pnl_usd)
                shown[key] = shown.get(key, 0) + 1
            if shown[key] > self._seen.get(key, 0):
                self._seen[key] = shown[key]
                self._latest.append(outcome(trade) > 0.0)
                found.append(trade)
        while len(self._seen) > most:
            del self._seen[next(iter(self._seen))]
        return found

    @property
    def win_rate(self) -> float:
        """Share of winners among the last trades, in [0, 1]; ``contract.NEUTRAL_WIN_RATE`` before any."""
        return sum(self._latest) / len(self._latest) if self._latest else contract.NEUTRAL_WIN_RATE

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {"seen": [[list(key), count] for key, count in self._seen.items()], "latest": list(self._latest)}

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> TradeMemory:
        """Goes on where :meth:`to_json` was taken; KeyError, TypeError or ValueError where it cannot."""
        memory = cls()
        memory._seen = {tuple(key): int(count) for key, count in data["seen"]}
        memory._latest.extend(bool(won) for won in data["latest"])
        return memory


def outcome(trade: ClosedTrade) -> float:
    """What says whether a trade won: its return, or where that is not known its dollars."""
    value = trade.trade_return if trade.trade_return is not None else trade.pnl_usd
    return 0.0 if value is None else value


class SymbolMemory:
    """Of one symbol: the chain, the prices, the trades, and the last bar whose regime was counted."""

    __slots__ = ("bar", "chain", "prices", "trades")

    def __init__(self, chain: SizingChain, prices: PriceBuffer, trades: TradeMemory, bar: int = -1) -> None:
        self.chain = chain
        self.prices = prices
        self.trades = trades
        self.bar = bar

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        stages = {"chain": self.chain.to_json(), "prices": self.prices.to_json(), "trades": self.trades.to_json()}
        return {**stages, "bar": self.bar}

    @classmethod
    def restored(cls, config: ChainConfig, bar_seconds: int, data: Mapping[str, Any]) -> SymbolMemory:
        """Goes on where :meth:`to_json` was taken, under ``config``; KeyError, TypeError or ValueError if it cannot."""
        prices = data["prices"]
        return cls(
            SizingChain.restored(config, data["chain"]),
            PriceBuffer.restored(bar_seconds, prices),
            TradeMemory.restored(data["trades"]),
            # Bars of another length have other numbers.
            int(data["bar"]) if prices["bar_seconds"] == bar_seconds else -1,
        )


class Book(NamedTuple):
    """One strategy's position in one symbol, in dollars, signed: held when last told, and wanted since then.

    ``entry`` is its average entry price, 0.0 without a position.
    """

    held: float = 0.0
    target: float = 0.0
    entry: float = 0.0

    @property
    def gross(self) -> float:
        """Dollars that count for the leverage: an order that was given may be filled or not."""
        return max(abs(self.held), abs(self.target))

    def told(self, position_usd: float, price: float, entry_price: float | None) -> Book:
        """The book after a caller told its position; without an entry price it is that of the first sight."""
        if position_usd == 0.0:
            return Book(0.0, self.target, 0.0)
        same_side = self.entry > 0.0 and (position_usd > 0.0) == (self.held > 0.0)
        return Book(position_usd, self.target, entry_price or (self.entry if same_side else price))

    def unrealised_return(self, price: float) -> float:
        """Gain since entry as a fraction of the entry; 0.0 without a position."""
        if self.held == 0.0:
            return 0.0
        change = price / self.entry - 1.0
        return change if self.held > 0.0 else -change

    def unrealised_usd(self, price: float) -> float:
        """The same in dollars, ``held`` being the position's worth at ``price``."""
        return self.held * (1.0 - self.entry / price) if self.held else 0.0


class Memory:
    """Everything, by name."""

    def __init__(self) -> None:
        self.symbols: dict[str, SymbolMemory] = {}
        # By strategy and symbol, as "strategy\tsymbol": no printable name holds a tabulator.
        self.books: dict[str, Book] = {}
        self.account = DayAccount()

    def gross_of_others(self, name: str) -> float:
        """Dollars in all positions but the one called ``name``."""
        return sum(book.gross for other, book in self.books.items() if other != name)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "symbols": {name: symbol.to_json() for name, symbol in self.symbols.items()},
            "books": {name: list(book) for name, book in self.books.items()},
            "account": self.account.to_json(),
        }

    @classmethod
    def restored(cls, config: ChainConfig, bar_seconds: int, data: Mapping[str, Any]) -> Memory:
        """Goes on where :meth:`to_json` was taken, under ``config``; KeyError, TypeError or ValueError if it cannot."""
        memory = cls()
        for name, symbol in data["symbols"].items():
            memory.symbols[name] = SymbolMemory.restored(config, bar_seconds, symbol)
        for name, book in data["books"].items():
            memory.books[name] = Book(*(float(number) for number in book))
        memory.account = DayAccount.restored(data["account"])
        return memory
