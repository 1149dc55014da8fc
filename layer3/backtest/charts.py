"""The reports' charts of lines, as inline SVG: the same numbers give the same bytes.

Text inside a scaled-down SVG shrinks with it, so a wide chart is drawn twice, for a page and for a
phone, and the style sheet shows one of the two. Matplotlib is imported when a chart is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from layer3.backtest.drawing import (
    AXIS,
    INK,
    Floats,
    Layout,
    Series,
    Style,
    draw_line,
    drawing,
    label_ends,
    make_axes,
    scale,
    thin,
    time_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Band",
    "Layout",
    "Series",
    "Style",
    "average",
    "average_span",
    "bands_chart",
    "lines_chart",
    "steps_chart",
    "thin",
]

#: Points that an averaged line is drawn with; below twice that, every value is drawn as it is.
AVERAGE_POINTS: Final = 96
#: For words beside lines too pale to be read in their own colour.
_BESIDE: Final = "#4f6f99"
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Band:
    """A range to shade: ``x`` in days since 1970 (UTC), ``low`` and ``high`` of the same length."""

    x: Floats
    low: Floats
    high: Floats
    color: str


def average_span(bars: int, interval_seconds: float) -> int:
    """Bars behind one point of an averaged line: whole days where bars are shorter; 1 for a short record."""
    if bars <= 2 * AVERAGE_POINTS:
        return 1
    span = -(-bars // AVERAGE_POINTS)
    day = round(_DAY / interval_seconds)
    return -(-span // day) * day if span > day > 1 else span


def average(y: Floats, span: int) -> Floats:
    """Means of consecutive groups of ``span`` values; the last group may be shorter."""
    starts = np.arange(0, len(y), span)
    return np.asarray(np.add.reduceat(y, starts) / np.diff([*starts, len(y)]))


def lines_chart(
    series: Sequence[Series],
    layout: Layout,
    *,
    name: str,
    title: str,
    number: str = "{:,.0f}",
    log: bool = False,
    fill: bool = False,
    limit: tuple[float, str] | None = None,
    band: Band | None = None,
    cuts: Sequence[float] = (),
    unit: str = "",
    description: str = "",
) -> str:
    """Draw lines over time, each labelled at its right end.

    ``fill`` shades between the first line and zero; ``limit`` is a height to mark and the words
    for it; ``cuts`` are days to mark by thin verticals; ``unit`` stands above the vertical axis;
    ``name`` must be unique on the page. The first of ``series`` is drawn on top.
    """
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = make_axes(figure, layout, unit)
        marked = [np.array([limit[0]])] if limit else []
        ranges = [band.low, band.high] if band else []
        heights = np.concatenate([*(s.y for s in series), *marked, *ranges])
        scale(axes, layout, heights, number, log=log)
        time_axis(axes, layout, series[0].x)
        for cut in cuts:
            axes.axvline(cut, color=AXIS, lw=0.5, dashes=(1, 3), zorder=1)
        if band:
            x = np.r_[band.x, band.x[::-1]]
            axes.fill(x, np.r_[band.high, band.low[::-1]], color=band.color, alpha=0.13, lw=0, zorder=1.5)
        for order, line in enumerate(reversed(series)):
            x, y = thin(line.x, line.y, layout.columns)
            if fill and line is series[0]:
                axes.fill(np.r_[x, x[::-1]], np.r_[y, np.zeros(len(y))], color=line.style.color, alpha=0.12, lw=0)
            draw_line(axes, x, y, line.style, zorder=3 + order)
        if limit:
            axes.axhline(limit[0], color=INK, lw=0.8, dashes=(1.5, 2.5), clip_on=False)
        label_ends(axes, layout, [*series, *_marked(series[0], limit)], log=log, unlined=1 if limit else 0)
        return save(figure, name, layout, title, description)


def bands_chart(
    series: Sequence[Series],
    layout: Layout,
    *,
    name: str,
    title: str,
    span: int,
    end: float,
    bounds: tuple[float, float],
    number: str,
    reference: tuple[float, str] | None = None,
    unit: str = "",
    description: str = "",
) -> str:
    """Draw quantities that jump from bar to bar: averages over ``span`` bars as lines, and the first's range shaded.

    The shade covers lowest to highest value of every pixel column. With ``span`` 1 nothing is shaded
    and every value is a step that lasts until the next, the last one until ``end``. ``bounds`` are
    the heights that must be visible.
    """
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = make_axes(figure, layout, unit)
        scale(axes, layout, np.array(bounds), number)
        time_axis(axes, layout, np.array([series[0].x[0], end]))
        if reference:
            axes.axhline(reference[0], color=AXIS, lw=0.8, zorder=1.5, clip_on=False)
        lines = []
        for order, line in enumerate(reversed(series)):
            if span > 1 and line is series[0]:
                _shade(axes, line, layout.columns)
            x, y = (average(line.x, span), average(line.y, span)) if span > 1 else (line.x, line.y)
            smooth = Series(line.label, np.append(x, end), np.append(y, y[-1]), line.style)
            draw_line(axes, smooth.x, smooth.y, line.style, zorder=3 + order, steps=span == 1)
            lines.append(smooth)
        ends = [*reversed(lines), *_marked(series[0], reference)]
        label_ends(axes, layout, ends, unlined=1 if reference else 0)
        return save(figure, name, layout, title, description)


def steps_chart(
    lines: Sequence[Series],
    main: Series,
    layout: Layout,
    *,
    name: str,
    title: str,
    columns: int,
    spread: Floats | None = None,
    bounds: Sequence[float] = (),
    limit: tuple[float, str] | None = None,
) -> str:
    """Draw quantities against the steps of a training: all ``lines`` thin and in one style, ``main`` on top of them.

    A line keeps the lowest and the highest point of each of ``columns`` columns. ``spread`` (of
    ``main``'s length) is shaded on both sides of ``main``; ``bounds`` are heights that must be visible,
    ``limit`` a height to mark and the words for it. An empty label is not written.
    """
    thinned = [thin(line.x, line.y, columns) for line in lines]
    with drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = make_axes(figure, layout)
        heights = [y for _, y in thinned] + [main.y, np.array([*bounds, *([limit[0]] if limit else [])])]
        scale(axes, layout, np.concatenate(heights), "{:g}")
        _steps_axis(axes, max(float(line.x[-1]) for line in (*lines, main)))
        if limit:
            axes.axhline(limit[0], color=INK, lw=0.8, dashes=(1.5, 2.5), zorder=1.5, clip_on=False)
        # One path for all: hundreds of them would cost more for their styles than for their points.
        gap = np.array([np.nan])
        x, y = (np.concatenate([part for pair in thinned for part in (pair[axis], gap)]) for axis in (0, 1))
        draw_line(axes, x, y, lines[0].style, zorder=3)
        kept = np.searchsorted(main.x, thin(main.x, main.y, layout.columns)[0])
        x, y = main.x[kept], main.y[kept]
        if spread is not None:
            low, high = y - spread[kept], y + spread[kept]
            axes.fill(np.r_[x, x[::-1]], np.r_[high, low[::-1]], color=main.style.color, alpha=0.14, lw=0, zorder=2)
        draw_line(axes, x, y, main.style, zorder=4)
        beside = Style(_BESIDE, lines[0].style.dash, lines[0].style.width)
        written = [line for line in (main, *(replace(line, style=beside) for line in lines)) if line.label]
        label_ends(axes, layout, [*written, *_marked(main, limit)], unlined=1 if limit else 0)
        return save(figure, name, layout, title, "")


def _marked(line: Series, height: tuple[float, str] | None) -> list[Series]:
    """A marked height as a series to label, none where nothing is marked."""
    return [Series(height[1], line.x[-1:], np.array([height[0]]), Style(INK))] if height else []


def _shade(axes: Axes, line: Series, columns: int) -> None:
    edges = np.unique(np.linspace(0, len(line.x), min(columns, len(line.x)) + 1).astype(int))[:-1]
    low, high = np.minimum.reduceat(line.y, edges), np.maximum.reduceat(line.y, edges)
    x = line.x[edges]
    axes.fill(np.r_[x, x[::-1]], np.r_[high, low[::-1]], color=line.style.color, alpha=0.16, lw=0, clip_on=False)


def _steps_axis(axes: Axes, end: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0.0, end)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: _short(steps)))
    axes.axhline(axes.get_ylim()[0], color=AXIS, lw=0.8, clip_on=False)


def _short(steps: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if steps >= size:
            return f"{steps / size:g}{unit}"
    return f"{steps:g}"
