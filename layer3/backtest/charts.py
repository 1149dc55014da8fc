"""The reports' charts as inline SVG: the same numbers give the same bytes.

Text inside a scaled-down SVG shrinks with it, so a wide chart is drawn twice, for a page and for a
phone, and the style sheet shows one of the two. Matplotlib is imported when a chart is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Layout", "Series", "Style", "average", "average_span", "bands_chart", "lines_chart", "steps_chart", "thin"]

Floats = NDArray[np.float64]

#: Points that an averaged line is drawn with; below twice that, every value is drawn as it is.
AVERAGE_POINTS: Final = 96
_INK: Final = "#3d444d"
_RULE: Final = "#dfe3e8"
#: For words beside lines too pale to be read in their own colour.
_BESIDE: Final = "#4f6f99"
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Style:
    """How one strategy is drawn: told apart by dash and weight as well as by colour."""

    color: str
    dash: Any = "-"
    width: float = 1.2


@dataclass(frozen=True, slots=True)
class Series:
    """One line: ``x`` in days since 1970 (UTC), or in steps of a training, ``y`` of the same length, and the words
    at its right end."""

    label: str
    x: Floats
    y: Floats
    style: Style


@dataclass(frozen=True, slots=True)
class Layout:
    """Size of a drawing in SVG units; one unit is one pixel at the width it is made for."""

    name: str
    width: int
    height: int
    left: int
    right: int
    ticks: int
    top: int = 10
    bottom: int = 24

    @property
    def columns(self) -> int:
        """Pixel columns of the plotting area."""
        return self.width - self.left - self.right


def thin(x: Floats, y: Floats, columns: int) -> tuple[Floats, Floats]:
    """Keep the lowest and the highest point of each of ``columns`` columns, and both ends.

    A line drawn through what is left covers the same pixels as the line through everything.
    ``x`` ascends. A series of at most two points per column comes back as it is.
    """
    if len(x) <= 2 * columns:
        return x, y
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], columns + 1)[1:-1])
    kept = {0, len(x) - 1}
    for start, stop in zip([0, *edges], [*edges, len(x)], strict=True):
        if stop > start:
            kept |= {int(start + y[start:stop].argmin()), int(start + y[start:stop].argmax())}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


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
) -> str:
    """Draw lines over time, each labelled at its right end.

    ``fill`` shades between the first line and zero; ``limit`` is a height to mark and the words
    for it; ``name`` must be unique on the page. The first of ``series`` is drawn on top.
    """
    with _drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = _axes(figure, layout)
        heights = np.concatenate([s.y for s in series] + ([np.array([limit[0]])] if limit else []))
        _scale(axes, layout, heights, number, log=log)
        _time_axis(axes, layout, series[0].x)
        for order, line in enumerate(reversed(series)):
            x, y = thin(line.x, line.y, layout.columns)
            if fill and line is series[0]:
                axes.fill(np.r_[x, x[::-1]], np.r_[y, np.zeros(len(y))], color=line.style.color, alpha=0.12, lw=0)
            _line(axes, x, y, line.style, zorder=3 + order)
        if limit:
            axes.axhline(limit[0], color=_INK, lw=0.8, dashes=(1.5, 2.5), clip_on=False)
        _label_ends(axes, layout, [*series, *_marked(series[0], limit)], log=log, unlined=1 if limit else 0)
        return save(figure, f"{name}-{layout.name}", layout, title)


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
) -> str:
    """Draw quantities that jump from bar to bar: averages over ``span`` bars as lines, and the first's range shaded.

    The shade covers lowest to highest value of every pixel column. With ``span`` 1 nothing is shaded
    and every value is a step that lasts until the next, the last one until ``end``. ``bounds`` are
    the heights that must be visible.
    """
    with _drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = _axes(figure, layout)
        _scale(axes, layout, np.array(bounds), number)
        _time_axis(axes, layout, np.array([series[0].x[0], end]))
        if reference:
            axes.axhline(reference[0], color="#9aa1a9", lw=0.8, zorder=1.5, clip_on=False)
        lines = []
        for order, line in enumerate(reversed(series)):
            if span > 1 and line is series[0]:
                _shade(axes, line, layout.columns)
            x, y = (average(line.x, span), average(line.y, span)) if span > 1 else (line.x, line.y)
            smooth = Series(line.label, np.append(x, end), np.append(y, y[-1]), line.style)
            _line(axes, smooth.x, smooth.y, line.style, zorder=3 + order, steps=span == 1)
            lines.append(smooth)
        ends = [*reversed(lines), *_marked(series[0], reference)]
        _label_ends(axes, layout, ends, unlined=1 if reference else 0)
        return save(figure, f"{name}-{layout.name}", layout, title)


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
    with _drawing() as (make_figure, save):
        figure = make_figure(layout)
        axes = _axes(figure, layout)
        heights = [y for _, y in thinned] + [main.y, np.array([*bounds, *([limit[0]] if limit else [])])]
        _scale(axes, layout, np.concatenate(heights), "{:g}")
        _steps_axis(axes, max(float(line.x[-1]) for line in (*lines, main)))
        if limit:
            axes.axhline(limit[0], color=_INK, lw=0.8, dashes=(1.5, 2.5), zorder=1.5, clip_on=False)
        # One path for all: hundreds of them would cost more for their styles than for their points.
        gap = np.array([np.nan])
        x, y = (np.concatenate([part for pair in thinned for part in (pair[axis], gap)]) for axis in (0, 1))
        _line(axes, x, y, lines[0].style, zorder=3)
        kept = np.searchsorted(main.x, thin(main.x, main.y, layout.columns)[0])
        x, y = main.x[kept], main.y[kept]
        if spread is not None:
            low, high = y - spread[kept], y + spread[kept]
            axes.fill(np.r_[x, x[::-1]], np.r_[high, low[::-1]], color=main.style.color, alpha=0.14, lw=0, zorder=2)
        _line(axes, x, y, main.style, zorder=4)
        beside = Style(_BESIDE, lines[0].style.dash, lines[0].style.width)
        written = [line for line in (main, *(replace(line, style=beside) for line in lines)) if line.label]
        _label_ends(axes, layout, [*written, *_marked(main, limit)], unlined=1 if limit else 0)
        return save(figure, f"{name}-{layout.name}", layout, title)


def _marked(line: Series, height: tuple[float, str] | None) -> list[Series]:
    """A marked height as a series to label, none where nothing is marked."""
    return [Series(height[1], line.x[-1:], np.array([height[0]]), Style(_INK))] if height else []


def _shade(axes: Axes, line: Series, columns: int) -> None:
    edges = np.unique(np.linspace(0, len(line.x), min(columns, len(line.x)) + 1).astype(int))[:-1]
    low, high = np.minimum.reduceat(line.y, edges), np.maximum.reduceat(line.y, edges)
    x = line.x[edges]
    axes.fill(np.r_[x, x[::-1]], np.r_[high, low[::-1]], color=line.style.color, alpha=0.16, lw=0, clip_on=False)


def _line(axes: Axes, x: Floats, y: Floats, style: Style, *, zorder: float, steps: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=style.color,
        linestyle=style.dash,
        linewidth=style.width,
        zorder=zorder,
        # A line needs two points to be seen.
        marker="o" if len(x) == 1 else "",
        markersize=4.0,
        drawstyle="steps-post" if steps else "default",
        clip_on=False,
        solid_capstyle="butt",
    )


def _axes(figure: Figure, layout: Layout) -> Axes:
    axes = figure.add_axes(
        (
            layout.left / layout.width,
            layout.bottom / layout.height,
            layout.columns / layout.width,
            (layout.height - layout.top - layout.bottom) / layout.height,
        )
    )
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, pad=6)
    return axes


def _scale(axes: Axes, layout: Layout, heights: Floats, number: str, *, log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = float(heights.min()), float(heights.max())
    if log:
        axes.set_yscale("log")
        decades = np.log10(high / low)
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 10 ** (0.04 * decades), high * 10 ** (0.04 * decades))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5 if layout.height > 200 else 4, steps=[1, 2, 2.5, 5, 10]))
        padding = 0.04 * (high - low) or 0.01 * max(abs(high), 1.0)
        axes.set_ylim(low - padding, high + padding)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number.format(value).replace("-", "−")))


def _time_axis(axes: Axes, layout: Layout, x: Floats) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    # With 5 ticks or more, a minimum of 2 leaves no length of time without a fitting interval.
    locator = AutoDateLocator(tz=UTC, minticks=2, maxticks=layout.ticks)  # type: ignore[no-untyped-call]
    axes.xaxis_date(tz=UTC)
    axes.set_xlim(x[0], x[-1])
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC, show_offset=x[-1] - x[0] < 300)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.axhline(axes.get_ylim()[0], color="#9aa1a9", lw=0.8, clip_on=False)


def _steps_axis(axes: Axes, end: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0.0, end)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: _short(steps)))
    axes.axhline(axes.get_ylim()[0], color="#9aa1a9", lw=0.8, clip_on=False)


def _short(steps: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if steps >= size:
            return f"{steps / size:g}{unit}"
    return f"{steps:g}"


def _label_ends(axes: Axes, layout: Layout, series: Sequence[Series], *, log: bool = False, unlined: int = 0) -> None:
    """Write each label beside the end of its line, pushed apart where ends meet, with a lead to its line."""
    gap, height = 13.0, float(layout.height - layout.top - layout.bottom)
    low, high = (np.log10(v) if log else v for v in axes.get_ylim())
    ends = [((np.log10(s.y[-1]) if log else s.y[-1]) - low) / (high - low) * height for s in series]
    places = _spread(ends, gap, height)
    for index, (line, end, place) in enumerate(zip(series, ends, places, strict=True)):
        width = float(layout.columns)
        if index < len(series) - unlined:
            lead = np.array([[width + 2, end], [width + 7, end], [width + 13, place], [width + 19, place]])
            axes.plot(
                lead[:, 0] / width,
                lead[:, 1] / height,
                transform=axes.transAxes,
                color=line.style.color,
                linewidth=min(line.style.width, 1.2),
                clip_on=False,
            )
        axes.text(
            (width + 23) / width,
            place / height,
            line.label,
            color=line.style.color if index < len(series) - unlined else _INK,
            va="center_baseline",
            transform=axes.transAxes,
            parse_math=False,
        )


def _spread(ends: Sequence[float], gap: float, height: float) -> list[float]:
    """Heights at least ``gap`` apart, in the order of ``ends`` and as near to them as one pass each way gets."""
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    places = [float(e) for e in ends]
    for below, above in pairwise(order):
        places[above] = max(places[above], places[below] + gap)
    ceiling = max(height, gap * (len(ends) - 1))
    for index in reversed(order):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


@contextmanager
def _drawing() -> Iterator[tuple[Callable[[Layout], Figure], Callable[[Figure, str, Layout, str], str]]]:
    """Matplotlib under our settings only: nothing of a user's matplotlibrc reaches the bytes."""
    import matplotlib.style
    from matplotlib.figure import Figure

    ours = {"svg.fonttype": "none", "svg.hashsalt": "himari", "font.size": 11.0, "axes.unicode_minus": True}

    def make_figure(layout: Layout) -> Figure:
        return Figure(figsize=(layout.width / 72, layout.height / 72), dpi=72, frameon=False)

    def save(figure: Figure, prefix: str, layout: Layout, title: str) -> str:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        return _inline(buffer.getvalue(), prefix, layout, title)

    with matplotlib.style.context(["default", ours]):
        yield make_figure, save


def _inline(svg: str, prefix: str, layout: Layout, title: str) -> str:
    """Cut a stand-alone SVG file down to an element for an HTML page.

    Its style rule (which would apply to the whole page), metadata and fonts go, ids that nothing
    refers to go, the others get ``prefix``, and coordinates keep one decimal.
    """
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r" transform=\"rotate\(-0 [^\"]*\"| font-family: [^;\"]*;?| text-anchor: start;?", "", body)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", body)
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: _shorten(m[0]), body)
    body = re.sub(r"<defs>\s*</defs>", "", re.sub(r">\s+<", "><", body))
    return (
        f'<svg class="chart {layout.name}" viewBox="0 0 {layout.width} {layout.height}" role="img" '
        f'aria-label="{title}">{body.strip()}</svg>'
    )


def _shorten(attribute: str) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), attribute)
    return re.sub(r"\s*\n\s*|(?<=[MLz]) ", "", re.sub(r'\s+"$', '"', text))
