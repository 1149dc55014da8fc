from __future__ import annotations

import io

import pytest
from rich.console import Console

from layer3.live.table import DecisionTable
from layer3.live.tally import Tally
from tests.live.desk import NOON, Desk, signal_of


@pytest.mark.parametrize("width", [80, 150])
def test_a_long_name_leaves_room_for_the_numbers_and_is_no_markup(width: int) -> None:
    desk, tally = Desk(), Tally()
    console = Console(file=io.StringIO(), width=width, color_system=None)
    table = DecisionTable(console, tally, lambda: None)
    for symbol in ("S" * 100, "[/red]"):
        decision = desk.size(signal_of(symbol=symbol, strategy_id="[bold]" + "x" * 90, timestamp_ns=NOON))
        tally.add(decision)
        table.add(decision)
    console.print(table.render())
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count(f"{decision.position_size_usd:+,.0f}") == 2
    assert "[/red]" in shown
    assert "S" * 21 not in shown
