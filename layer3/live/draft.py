"""The first step of a decision: check what came in, learn from it, and assess the signal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.errors import DataError
from layer3.live import risk
from layer3.live.configuration import Layer3Config
from layer3.live.inputs import Checked, Inputs, check
from layer3.live.memory import Book, Memory, SymbolMemory, TradeMemory, outcome
from layer3.live.prices import PriceBuffer
from layer3.sizing.chain import Assessment, SizingChain
from layer3.types import TacticalSignal

__all__ = ["Assessed", "Draft", "Refusal", "begin", "book_name"]

#: A word of :mod:`layer3.live.risk` and a sentence.
Refusal = tuple[str, str]


class Assessed(NamedTuple):
    """A signal that could be judged. ``state`` (16,) is what the policy sees; ``stop`` makes the size zero whatever
    the policy says, so that it need not be asked."""

    checked: Checked
    assessment: Assessment
    state: NDArray[np.float32]
    stop: Refusal | None


#: What the first step ends in.
Draft = Assessed | Refusal


def begin(memory: Memory, inputs: Inputs, config: Layer3Config, killed: str | None) -> Draft:
    """Judge one signal by ``memory``, which learns from it; ``killed`` is why the kill switch is on, if it is.

    Closed trades, price and position teach whatever becomes of the signal, as far as they can be used.
    """
    try:
        checked = check(inputs, config.market.seen_trades, config.risk.min_feeds)
    except DataError as error:
        return risk.BAD_INPUT, str(error)
    symbol = _symbol(memory, checked.signal, config)
    if symbol is None:
        return risk.TOO_MANY, f"{config.market.max_symbols} positions are kept apart already (market.max_symbols)"
    problem, stop = _learn(memory, inputs.now_ns, checked, symbol, config)
    if problem is None:
        bar = symbol.prices.bar_of(checked.signal.timestamp_ns)
        assessment = symbol.chain.assess(checked.signal, checked.cascade, new_bar=bar > symbol.bar)
        if assessment.problem is None:
            symbol.bar = max(bar, symbol.bar)
            if killed is not None:
                stop = risk.KILL_SWITCH, f"the kill switch is on: {killed}"
            return Assessed(checked, assessment, _state(memory, checked, symbol, assessment, config), stop)
        problem = risk.BAD_INPUT, assessment.problem
    name = book_name(checked.signal)
    memory.books[name] = memory.books[name]._replace(target=0.0)
    return problem


def book_name(signal: TacticalSignal) -> str:
    """The name of the position that a signal is about, in ``Memory.books``."""
    return f"{signal.strategy_id}\t{signal.symbol}"


def _symbol(memory: Memory, signal: TacticalSignal, config: Layer3Config) -> SymbolMemory | None:
    """What is remembered of the signal's symbol, made if need be; ``None`` where there is no room."""
    symbols, books, most, name = memory.symbols, memory.books, config.market.max_symbols, book_name(signal)
    if name not in books:
        if len(books) >= most:
            return None
        books[name] = Book()
    symbol = symbols.get(signal.symbol)
    if symbol is None:
        prices = PriceBuffer(config.market.bar_seconds)
        symbol = symbols[signal.symbol] = SymbolMemory(SizingChain(config.chain), prices, TradeMemory())
    return symbol


def _learn(
    memory: Memory, now_ns: int, checked: Checked, symbol: SymbolMemory, config: Layer3Config
) -> tuple[Refusal | None, Refusal | None]:
    """Take in trades, price and position: a refusal if signal or price are not of now, a stop if the day is over."""
    limits, account, name = config.risk, memory.account, book_name(checked.signal)
    signal_ns, price_ns = checked.signal.timestamp_ns, checked.price_ns
    late = risk.age_problem("signal", signal_ns, now_ns, limits.stale_signal_s, limits.max_future_s)
    problem = (
        None
        if price_ns is None
        else risk.age_problem("price", price_ns, now_ns, limits.stale_price_s, limits.max_future_s)
    )
    # A price that does not say of when is of now, and what now is another clock has to confirm.
    agreed = late is None or (price_ns is not None and problem is None)
    account.begin(now_ns, agreed)
    for trade in symbol.trades.new(checked.trades, config.market.seen_trades):
        symbol.chain.record_trade(outcome(trade))
        pnl = trade.pnl_usd
        if pnl is None:
            pnl = min(outcome(trade), 0.0) * config.chain.max_exposure * config.portfolio_value
        account.add_trade(pnl, trade.closed_at_ns)
    if problem is None:
        if agreed:
            symbol.prices.add(now_ns if price_ns is None else price_ns, checked.price)
        book = memory.books[name] = memory.books[name].told(checked.position_usd, checked.price, checked.entry_price)
        account.mark(name, book.unrealised_usd(checked.price))
        problem = late
    if not account.check(limits.max_daily_loss * config.portfolio_value):
        return problem, None
    why = f"the day's loss reached {limits.max_daily_loss:.2%} of the portfolio: no size until the next UTC day"
    return problem, (risk.DAILY_LOSS, why)


def _state(
    memory: Memory, checked: Checked, symbol: SymbolMemory, assessment: Assessment, config: Layer3Config
) -> NDArray[np.float32]:
    """What the policy sees: of the market what the price buffer knows, else what the signal says, else the default."""
    signal = checked.signal
    seen = symbol.prices.features(checked.price)
    volatility = seen.volatility
    if volatility is None:
        volatility = signal.predicted_volatility
    if volatility is None:
        volatility = config.chain.kelly.default_daily_volatility
    return contract.build_state(
        confidence=signal.confidence,
        side=signal.action.side,
        tier=int(contract.tier_of(signal.risk_score)),
        exposure=checked.position_usd / config.portfolio_value,
        unrealised_pnl=memory.books[book_name(signal)].unrealised_return(checked.price),
        return_1h=seen.return_1h,
        return_4h=seen.return_4h,
        volatility=volatility,
        win_rate=symbol.trades.win_rate,
        cascade_risk=assessment.cascade_risk,
    )
