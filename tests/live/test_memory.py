from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from layer3.live.memory import Book, TradeMemory
from layer3.types import ClosedTrade


def test_a_trade_counts_once_by_its_name_or_content() -> None:
    memory = TradeMemory()
    named, same = ClosedTrade(0.1, 1.0, 5, "a"), ClosedTrade(-0.1, 2.0, 6, "a")
    plain = ClosedTrade(0.1, 1.0, 5)
    assert memory.new([named, same, plain, plain], 100) == [named, plain, plain]
    assert memory.new([plain, plain, named], 100) == []
    assert memory.new([plain, plain, plain], 100) == [plain]


def test_a_window_that_moves_on_shows_each_trade_once() -> None:
    trades = [ClosedTrade(0.01 * (-1) ** i, 1.0, i) for i in range(100)]
    memory = TradeMemory()
    seen = [trade for end in range(1, 101) for trade in memory.new(trades[max(0, end - 10) : end], 20)]
    assert seen == trades
    assert len(memory.to_json()["seen"]) == 20


def test_the_win_rate_is_that_of_the_last_ten() -> None:
    memory = TradeMemory()
    assert memory.win_rate == 0.5
    memory.new([ClosedTrade(-0.1, None, i) for i in range(30)], 100)
    assert memory.win_rate == 0.0
    memory.new([ClosedTrade(None, 5.0, 100 + i) for i in range(4)], 100)
    assert memory.win_rate == 0.4


trades = st.lists(st.builds(ClosedTrade, st.floats(-1, 1), st.none(), st.integers(0, 3), st.none() | st.just("a")))


@given(st.lists(trades, max_size=8), st.data())
def test_trades_survive_a_restart(calls: list[list[ClosedTrade]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(calls)))
    whole, again = TradeMemory(), TradeMemory()
    for i, call in enumerate(calls):
        if i == cut:
            again = TradeMemory.restored(json.loads(json.dumps(again.to_json())))
        assert whole.new(call, 5) == again.new(call, 5)
        assert whole.win_rate == again.win_rate


def test_a_book_knows_its_entry() -> None:
    book = Book().told(1_000.0, 100.0, None)
    assert book == Book(1_000.0, 0.0, 100.0)  # the first price at which it was seen
    assert book.told(1_100.0, 110.0, None).unrealised_return(110.0) == 110.0 / 100.0 - 1.0
    assert book.told(1_100.0, 110.0, None).unrealised_usd(110.0) == 1_100.0 * (1.0 - 100.0 / 110.0)
    assert book.told(-500.0, 120.0, None).entry == 120.0  # another side begins anew
    assert book.told(1_000.0, 110.0, 105.0).entry == 105.0
    short = Book().told(-900.0, 90.0, 100.0)
    assert short.unrealised_usd(90.0) == -900.0 * (1.0 - 100.0 / 90.0) > 0.0
    assert short.unrealised_return(90.0) == 1.0 - 0.9
    assert Book().unrealised_return(5.0) == Book().unrealised_usd(5.0) == 0.0
    assert book.told(0.0, 100.0, 90.0) == Book()


def test_an_order_counts_filled_or_not() -> None:
    assert Book(-300.0, 200.0, 1.0).gross == 300.0
    assert Book(100.0, -200.0, 1.0).gross == 200.0
