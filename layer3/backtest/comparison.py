"""One page that compares settings, or what was trained on what: every number with its interval over seeds.

It is one HTML file: no script, no external resource, the same bytes for the same input. Nothing on it
is called best: what is shown is how far the seeds agree, and how much was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from layer3.backtest.intervals import LEVEL, Interval, t_interval
from layer3.backtest.report import template_environment
from layer3.backtest.tables import MISSING, Kind, format_number
from layer3.errors import EvaluationError

__all__ = ["MEASURES", "Comparison", "Group", "Measure", "Reference", "Row", "in_words", "render_comparison"]

#: Share of the chart's width that stays free on each side, so that no mark is cut.
_MARGIN: Final = 0.04
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that was measured: its key in the values, what it is called, and how it is written.

    A value is multiplied by ``scale`` before anyone sees it. What is not ``signed`` is never below 0.
    """

    key: str
    label: str
    unit: str
    kind: Kind
    scale: float = 1.0
    signed: bool = True


#: What :func:`layer3.backtest.holdout.walk` measures; the first is drawn.
MEASURES: Final = (
    Measure("reward", "Reward", "% of equity per 1,000 bars, above Kelly before costs", "ratio", 1_000.0),
    Measure("sharpe", "Sharpe ratio", "annualised", "ratio"),
    Measure("total_return", "Total return", "whole period", "percent"),
    Measure("max_drawdown", "Max. drawdown", "below the peak", "percent", signed=False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What is compared: its name, the details below it, and each measure's values, one per seed."""

    label: str
    detail: str
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Reference:
    """What involves no training and hence no seeds: a line in the chart."""

    label: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that were measured on the same bars, so that they may be compared."""

    title: str
    note: str
    rows: Sequence[Row]
    references: Sequence[Reference]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything on the page; ``notes`` are what a reader must know before the numbers, ``trials`` how many
    different trainings the ledger holds for each data set, by its name."""

    title: str
    about: Sequence[str]
    synthetic: bool
    notes: Sequence[str]
    groups: Sequence[Group]
    trials: Mapping[str, int]
    context: Sequence[tuple[str, str]]


def in_words(measure: Measure, values: Sequence[float | None]) -> tuple[str, str]:
    """The mean of a measure's values and its interval, as a reader sees them; "n/a" where there is none."""
    interval = t_interval(values)
    if interval is None:
        return MISSING, ""
    lowest = interval.low if measure.signed else max(interval.low, 0.0)
    low, mean, high = (_written(measure, value) for value in (lowest, interval.mean, interval.high))
    return mean, f"{low} to {high}"


def render_comparison(comparison: Comparison) -> str:
    """Render the page.

    Raises
    ------
    EvaluationError : there is nothing to compare, or a value is not finite
    """
    _check(comparison)
    return (
        template_environment()
        .get_template("comparison.html.j2")
        .render(
            page=comparison,
            measures=MEASURES,
            groups=[_group(group) for group in comparison.groups],
            level=format_number(LEVEL, "percent", digits=0),
            seeds=sorted({len(values) for values in _series(comparison)}),
            context=[*_tried(comparison.trials), *comparison.context],
        )
    )


def _tried(trials: Mapping[str, int]) -> list[tuple[str, str]]:
    said = "different trainings on these data are on record in this store; that is what the next must stand up to."
    return [(name, f"{number:,} {said}") for name, number in trials.items()]


def _series(comparison: Comparison) -> list[Sequence[float | None]]:
    return [values for group in comparison.groups for row in group.rows for values in row.values.values()]


def _check(comparison: Comparison) -> None:
    if not comparison.groups or not all(group.rows for group in comparison.groups):
        raise EvaluationError("a comparison needs at least one row in every group: nothing was scored")
    known = [value for values in _series(comparison) for value in values if value is not None]
    known += [
        v for group in comparison.groups for ref in group.references for v in ref.values.values() if v is not None
    ]
    if not all(map(math.isfinite, known)):
        raise EvaluationError("a comparison holds a score that is not finite: give None where there is none")


def _written(measure: Measure, value: float | None) -> str:
    return format_number(None if value is None else measure.scale * value, measure.kind, signed=measure.signed)


def _group(group: Group) -> dict[str, Any]:
    """The group as the template draws it: rows with texts and marks, marks in percent of the chart's width."""
    drawn = MEASURES[0]
    intervals = [t_interval(row.values[drawn.key]) for row in group.rows]
    lines = [
        (reference.label, value) for reference in group.references if (value := reference.values[drawn.key]) is not None
    ]
    seen = [value for row in group.rows for value in row.values[drawn.key] if value is not None]
    seen += [bound for interval in intervals if interval for bound in (interval.low, interval.high)]
    seen += [value for _, value in lines]
    scale = _Scale.around([drawn.scale * value for value in seen])
    at = scale.percent
    return {
        "title": group.title,
        "note": group.note,
        "ticks": [(at(tick), scale.text(tick)) for tick in scale.ticks],
        "lines": [{"x": at(drawn.scale * value), "label": label} for label, value in lines],
        "rows": [
            {
                "label": row.label,
                "detail": row.detail,
                "cells": [in_words(measure, row.values[measure.key]) for measure in MEASURES],
                "interval": _marks(interval, drawn, scale),
                "seeds": [at(drawn.scale * value) for value in row.values[drawn.key] if value is not None],
            }
            for row, interval in zip(group.rows, intervals, strict=True)
        ],
        "references": [
            {"label": item.label, "cells": [_written(measure, item.values[measure.key]) for measure in MEASURES]}
            for item in group.references
        ],
    }


def _marks(interval: Interval | None, measure: Measure, scale: _Scale) -> dict[str, str] | None:
    if interval is None:
        return None
    places = {"low": interval.low, "mean": interval.mean, "high": interval.high}
    return {name: scale.percent(measure.scale * value) for name, value in places.items()}


@dataclass(frozen=True, slots=True)
class _Scale:
    """The chart's axis: the numbers at its two ends, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float]) -> _Scale:
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        # One value alone, or equal ones, still have a place on an axis.
        spread = high - low or max(abs(high), 1.0)
        low, high = low - _MARGIN * spread, high + _MARGIN * spread
        rough = (high - low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough)
        first, last = math.ceil(low / step), math.floor(high / step)
        return cls(low, high, tuple(number * step for number in range(first, last + 1)))

    def percent(self, value: float) -> str:
        """Where ``value`` lies, as SVG takes it."""
        return f"{100.0 * (value - self.low) / (self.high - self.low):.2f}%"

    def text(self, tick: float) -> str:
        """A tick's number, with the decimals that tell it from its neighbours."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else max(abs(tick), 1.0)
        decimals = next(d for d in range(13) if abs(round(step, d) - step) < 1e-6 * step or d == 12)
        return format_number(tick, "number", signed=True, digits=decimals)
