"""The latest decisions as a table in a terminal, with what came of all of them above it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from layer3.types import PositionSizingDecision

__all__ = ["DecisionTable"]

_ROWS: Final = 12
_LATENCIES: Final = 1_000
_COLUMNS: Final = ("UTC", "symbol", "strategy", "action", "size $", "equity", "x", "risk", "ms", "from", "why")
_NUMBERS: Final = ("size $", "equity", "x", "risk", "ms")
#: Below so many columns of the terminal these are left out, so that no number is cut.
_WIDE: Final = 130
_WIDE_ONLY: Final = ("strategy", "x", "ms", "from")


class DecisionTable:
    """Show each decision with :meth:`add`; a context manager that draws while it is open.

    ``breaker`` says the breaker's state, ``None`` where there is none.
    """

    def __init__(self, console: Console, breaker: Callable[[], str | None]) -> None:
        self._breaker, self._console = breaker, console
        self._rows: deque[PositionSizingDecision] = deque(maxlen=_ROWS)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._sources: Counter[str] = Counter()
        self._decisions = self._refused = self._rejected = 0
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self.render)

    def add(self, decision: PositionSizingDecision) -> None:
        """Take in one decision."""
        self._decisions += 1
        self._refused += decision.refusal is not None
        self._sources[decision.multiplier_source] += 1
        self._latencies.append(decision.latency_ms)
        self._rows.append(decision)

    def reject(self) -> None:
        """Take in a message that was no signal."""
        self._rejected += 1

    def __enter__(self) -> DecisionTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """The table now."""
        return Group(Text(self._summary(), style="bold"), self._table())

    def _summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        ordered = sorted(self._latencies)
        parts = [
            f"{self._decisions:,} decisions ({self._decisions / seconds:,.1f}/s)",
            f"{self._refused:,} refused",
            f"{self._rejected:,} no signals",
            *(f"{source} {count:,}" for source, count in sorted(self._sources.items())),
        ]
        if ordered:
            half, most = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
            parts.append(f"p50 {half:.2f} ms  p99 {most:.2f} ms")
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
                table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=True)
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
