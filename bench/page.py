"""How a benchmark's results are printed: titles, tables, and what was asked beside what is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Requirement", "at_least", "at_most", "table", "title"]


@dataclass(frozen=True)
class Requirement:
    """What was asked, what it is, and whether that will do."""

    name: str
    value: str
    asked: str
    met: bool


def at_least(name: str, value: float, limit: float, shape: str = "{:.2f}") -> Requirement:
    """``value`` must not be below ``limit``."""
    return Requirement(name, shape.format(value), f">= {shape.format(limit)}", value >= limit)


def at_most(name: str, value: float, limit: float, shape: str = "{:.2f}") -> Requirement:
    """``value`` must not be above ``limit``."""
    return Requirement(name, shape.format(value), f"<= {shape.format(limit)}", value <= limit)


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need to be, the first to the left."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for first, *others in cells:
        aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *aligned)).rstrip(), flush=True)
