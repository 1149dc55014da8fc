"""The latest decisions as a table in a terminal, with what came of all of them above it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from layer3.live.tally import Tally
from layer3.types import PositionSizingDecision

__all__ = ["DecisionTable"]

_ROWS: Final = 12
_COLUMNS: Final = ("UTC", "symbol", "strategy", "action", "size $", "equity", "x", "risk", "ms", "from", "why")
_NUMBERS: Final = ("size $", "equity", "x", "risk", "ms")
#: Below so many columns of the terminal these are left out, so that no number is cut.
_WIDE: Final = 130
_WIDE_ONLY: Final = ("strategy", "x", "ms", "from")
#: Columns of the terminal that a name may take, so that it leaves room for the numbers.
_LONGEST: Final = 20


class DecisionTable:
    """Show each decision with :meth:`add`; a context manager that draws while it is open.

    ``tally`` counts them, ``breaker`` says the breaker's state, ``None`` where there is none.
    """

    def __init__(self, console: Console, tally: Tally, breaker: Callable[[], str | None]) -> None:
        self._tally, self._breaker, self._console = tally, breaker, console
        self._rows: deque[PositionSizingDecision] = deque(maxlen=_ROWS)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self.render)

    def add(self, decision: PositionSizingDecision) -> None:
        """Take in one decision."""
        self._rows.append(decision)

    def __enter__(self) -> DecisionTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """The table now."""
        return Group(Text(self._summary(), style="bold"), self._table())

    def _summary(self) -> str:
        tally = self._tally
        parts = [
            f"{tally.decisions:,} decisions ({tally.decisions / tally.seconds:,.1f}/s)",
            f"{tally.refused:,} refused",
            f"{tally.rejected:,} no signals",
            *(f"{source} {count:,}" for source, count in sorted(tally.sources.items())),
            *(f"{arm} {count:,}" for arm, count in sorted(tally.arms.items())),
        ]
        latency = tally.latency_ms(0.5, 0.99)
        if latency:
            parts.append("p50 {:.2f} ms  p99 {:.2f} ms".format(*latency))
        breaker = self._breaker()
        if breaker is not None:
            parts.append(f"breaker {breaker}")
        return "  ".join(parts)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        shown = [name for name in _COLUMNS if self._console.width >= _WIDE or name not in _WIDE_ONLY]
        for name in shown:
            if name == "why":
                table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis")
            else:
                justify: JustifyMethod = "right" if name in _NUMBERS else "left"
                table.add_column(name, justify=justify, no_wrap=True, max_width=_LONGEST)
        for decision in self._rows:
            cells = dict(zip(_COLUMNS, _cells(decision), strict=True))
            style = "yellow" if decision.refusal is not None else None
            table.add_row(*(cells[name] for name in shown), style=style)
        return table


def _cells(decision: PositionSizingDecision) -> list[Text]:
    when = datetime.fromtimestamp(max(decision.timestamp_ns, 0) // 1_000_000_000, UTC)
    cells = [
        f"{when:%H:%M:%S}",
        decision.symbol,
        decision.strategy_id,
        decision.action.value,
        f"{decision.position_size_usd:+,.0f}",
        f"{decision.exposure:+.2%}",
        f"{decision.multiplier:.2f}",
        f"{decision.cascade_risk:.2f}",
        f"{decision.latency_ms:.2f}",
        decision.multiplier_source,
        decision.refusal or decision.reason,
    ]
    return [Text(cell) for cell in cells]  # names from outside are no markup
