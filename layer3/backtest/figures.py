"""The reports' charts of evidence, as inline SVG: a histogram, costs, bars, intervals and folds.

Each is drawn once, for half of a page; on a phone it fills the width at nearly its own size. The same
numbers give the same bytes. Matplotlib is imported when a chart is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from layer3.backtest.drawing import AXIS, INK, Floats, Layout, drawing, make_axes, scale, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "HALF",
    "Bar",
    "Panel",
    "Whisker",
    "bars_chart",
    "costs_chart",
    "folds_chart",
    "histogram_chart",
    "intervals_chart",
]

#: Size of a chart in half of a page: its own pixels on a phone.
HALF: Final = Layout("half", 380, 250, 46, 12, 5, top=26, bottom=40)
#: Told apart without red and green, by lightness alone if it must be.
_MAIN: Final = "#0b4a8f"
_OTHER: Final = "#8fa9c9"
_ALERT: Final = "#c4500f"
_ROW: Final = 21
_BINS: Final = 32


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: the words before it, its length (``None``: could not be computed), the words behind it."""

    label: str
    value: float | None
    text: str
    main: bool = False


@dataclass(frozen=True, slots=True)
class Whisker:
    """One interval with its estimate, each ``None`` where it could not be computed; the words before and behind it."""

    label: str
    low: float | None
    estimate: float | None
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A quantity over several points (``None``: could not be computed), what it is, and how its numbers are written."""

    unit: str
    values: Sequence[float | None]
    number: str


def histogram_chart(
    values: Floats, real: float, label: Sequence[str], *, name: str, title: str, description: str, unit: str
) -> str:
    """Draw how ``values`` (n >= 1,) are spread, those at or above ``real`` apart from the rest, and ``real`` as a line.

    ``label``: the lines of words beside that line; ``unit``: what the values are, below the axis.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    room = 0.02 * (high - low) or 0.05 * max(1.0, abs(high))
    edges = np.linspace(low - room, high + room, min(_BINS, 6 + len(values) // 4) + 1)
    all_of_them, reached = (np.histogram(v, edges)[0] for v in (values, values[values >= real]))
    with drawing() as (make_figure, save):
        figure = make_figure(HALF)
        axes = make_axes(figure, HALF, "shuffled price paths")
        left, right = min(edges[0], real), max(edges[-1], real)
        margin = 0.05 * (right - left)
        # Room above the columns for the words.
        scale(axes, HALF, np.array([0.0, 1.3 * float(all_of_them.max())]), "{:,.0f}")
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlim(left - margin, right + margin)
        _columns(axes, edges, np.zeros(len(all_of_them)), all_of_them - reached, _OTHER)
        _columns(axes, edges, all_of_them - reached, reached, _ALERT)
        axes.axvline(real, color=_MAIN, lw=2.2, zorder=4)
        at = (real - left + margin) / (right - left + 2 * margin)
        for line, text in enumerate(label):
            side, align = (-0.02, "right") if at > 0.5 else (0.02, "left")
            bold = "normal" if line else "bold"
            write(axes, at + side, 0.95 - 0.08 * line, text, color=_MAIN, align=align, weight=bold)
        _number_axis(axes, unit)
        return save(figure, name, HALF, title, description)


def _columns(axes: Axes, edges: Floats, bottom: Floats, counts: Floats, color: str) -> None:
    """Columns of ``counts`` above ``bottom``, with a hair of paper between them."""
    width = float(edges[1] - edges[0])
    shown = counts > 0
    at = (edges[:-1] + width / 2)[shown]
    axes.bar(at, counts[shown], 0.9 * width, bottom[shown], color=color, lw=0, zorder=3)


def _number_axis(axes: Axes, unit: str) -> None:
    """Numbers along the bottom, and what they are below them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    _below(axes, unit)


def _below(axes: Axes, unit: str) -> None:
    axes.axhline(axes.get_ylim()[0], color=AXIS, lw=0.8, clip_on=False)
    axes.set_xlabel(unit, color=INK, labelpad=5, parse_math=False)


def costs_chart(
    multiples: Floats,
    panels: Sequence[Panel],
    break_even: float | None,
    *,
    name: str,
    title: str,
    description: str,
) -> str:
    """Draw quantities against the multiple of all costs (n >= 1, above 0), one panel below the other.

    ``break_even``: the multiple at which nothing is left, marked by a line where it is near enough to be drawn.
    """
    layout = replace(HALF, height=310)
    above = HALF.top + 8
    each = (layout.height - layout.bottom - above * len(panels)) // len(panels)
    near = break_even if break_even and multiples.min() / 4 <= break_even <= multiples.max() * 4 else None
    ends = [*multiples, near] if near else list(multiples)
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        for number, panel in enumerate(panels):
            top, last = above + number * (each + above), number == len(panels) - 1
            part = replace(layout, top=top, bottom=layout.height - top - each)
            axes = make_axes(figure, part, panel.unit)
            _curve(axes, part, multiples, panel)
            axes.set_xscale("log", base=2)
            axes.set_xlim(min(ends) / 1.25, max(ends) * 1.25)
            axes.set_xticks(multiples, [f"{multiple:g}×" if last else "" for multiple in multiples])
            axes.set_xticks([], minor=True)
            if near:
                axes.axvline(near, color=_ALERT, lw=1.4, dashes=(4, 2), zorder=3)
            if near and not number:
                at = float(axes.transAxes.inverted().transform(axes.transData.transform((near, 0.0)))[0])
                side, align = (-0.015, "right") if at > 0.5 else (0.015, "left")
                write(axes, at + side, 0.06, f"breaks even at {near:.3g}×", color=_ALERT, align=align)
        _below(figure.axes[-1], "multiple of all costs")
        return save(figure, name, layout, title, description)


def _curve(axes: Axes, layout: Layout, multiples: Floats, panel: Panel) -> None:
    """One panel's points, each with its number above it, and the height of nothing."""
    known = [(float(m), v) for m, v in zip(multiples, panel.values, strict=True) if v is not None]
    low, high = min([0.0, *(v for _, v in known)]), max([0.0, *(v for _, v in known)])
    room = (high - low) or 1.0
    scale(axes, replace(layout, height=0), np.array([low - 0.3 * room, high + 0.32 * room]), panel.number)
    axes.axhline(0.0, color=INK, lw=0.9, zorder=2)
    axes.plot([m for m, _ in known], [v for _, v in known], color=_MAIN, lw=1.8, marker="o", ms=4.5, zorder=4)
    for m, v in known:
        text = panel.number.format(v).replace("-", "−")
        above = 8 if v >= 0.0 else -15
        paper = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.5}
        axes.annotate(
            text,
            (m, v),
            (0, above),
            textcoords="offset points",
            ha="center",
            color=_MAIN,
            weight="bold",
            bbox=paper,
            zorder=5,
        )


def bars_chart(
    groups: Sequence[tuple[str, Sequence[Bar]]], *, name: str, title: str, description: str, unit: str
) -> str:
    """Draw groups of bars that lie, from 0 to the right or left, each group under its own words."""
    count = sum(len(bars) + 1 for _, bars in groups)
    layout = replace(HALF, left=104, right=112, top=4, height=_ROW * count + 4 + HALF.bottom)
    known = [bar.value for _, bars in groups for bar in bars if bar.value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = _rows(figure, layout, count, low, high if high > low else 1.0)
        row = 0
        for words, bars in groups:
            # On paper of its own: the lines behind it are not to be read through.
            paper = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.5}
            place = 1 - (row + 0.5) / count
            write(axes, -layout.left / layout.columns, place, words, weight="bold", bbox=paper, zorder=6)
            row += 1
            for bar in bars:
                color = _MAIN if bar.main else _OTHER
                if bar.value is not None:
                    axes.barh(row, bar.value, height=0.66, color=color, lw=0, zorder=3)
                bold = "bold" if bar.main else "normal"
                write(axes, -8 / layout.columns, 1 - (row + 0.5) / count, bar.label, align="right", weight=bold)
                write(axes, 1 + 8 / layout.columns, 1 - (row + 0.5) / count, bar.text, weight=bold)
                row += 1
        axes.axvline(0.0, color=INK, lw=0.9, zorder=4)
        _number_axis(axes, unit)
        return save(figure, name, layout, title, description)


def intervals_chart(whiskers: Sequence[Whisker], *, name: str, title: str, description: str, unit: str) -> str:
    """Draw intervals that lie, each with its estimate; one that holds 0 or lies below it is drawn open."""
    count = len(whiskers)
    layout = replace(HALF, left=104, right=56, top=8, height=38 * count + 8 + HALF.bottom)
    known = [v for w in whiskers for v in (w.low, w.estimate, w.high) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = _rows(figure, layout, count, low, high if high > low else 1.0)
        for row, whisker in enumerate(whiskers):
            above = whisker.low is not None and whisker.low > 0.0
            color = _MAIN if above else _ALERT
            write(axes, -10 / layout.columns, 1 - (row + 0.5) / count, whisker.label, align="right")
            write(axes, 1 + 10 / layout.columns, 1 - (row + 0.5) / count, whisker.text, color=color, weight="bold")
            if whisker.low is not None and whisker.high is not None:
                axes.plot([whisker.low, whisker.high], [row, row], color=color, lw=2.4, zorder=3, marker="|", ms=10)
            if whisker.estimate is not None:
                face = color if above else "#ffffff"
                axes.plot([whisker.estimate], [row], color=color, marker="o", ms=7, mfc=face, mew=1.8, zorder=4)
        axes.axvline(0.0, color=INK, lw=0.9, zorder=2)
        _number_axis(axes, unit)
        return save(figure, name, layout, title, description)


def folds_chart(folds: Sequence[Sequence[float | None]], *, name: str, title: str, description: str, unit: str) -> str:
    """Draw one column of dots per fold, a dot per seed (``None``: none), and a stroke at their mean."""
    points = [(n, v) for n, values in enumerate(folds, start=1) for v in values if v is not None]
    means = [(n, [v for v in values if v is not None]) for n, values in enumerate(folds, start=1)]
    with drawing() as (make_figure, save):
        figure = make_figure(HALF)
        axes = make_axes(figure, HALF, unit)
        scale(axes, HALF, np.array([0.0, *(v for _, v in points)]), "{:.3g}")
        axes.set_xlim(0.4, len(folds) + 0.6)
        axes.axhline(0.0, color=INK, lw=0.9, zorder=2)
        axes.plot([n for n, _ in points], [v for _, v in points], "o", color=_OTHER, ms=5.5, mew=0, zorder=3)
        for n, values in means:
            if values:
                mean = sum(values) / len(values)
                axes.plot([n - 0.34, n + 0.34], [mean, mean], color=_MAIN, lw=2.4, zorder=4, solid_capstyle="butt")
        step = max(1, -(-len(folds) // 10))
        axes.set_xticks(range(1, len(folds) + 1, step))
        _below(axes, "fold, in the order of time")
        return save(figure, name, HALF, title, description)


def _rows(figure: Figure, layout: Layout, count: int, low: float, high: float) -> Axes:
    """An area of ``count`` rows from the top, numbered from 0, over [low, high] and some room."""
    axes = make_axes(figure, layout)
    axes.grid(False)
    axes.grid(axis="x", color="#dfe3e8", linewidth=0.8)
    room = 0.04 * (high - low)
    axes.set_xlim(low - (room if low < 0.0 else 0.0), high + room)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_yticks([])
    return axes
