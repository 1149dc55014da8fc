"""How every chart of a report is drawn: sizes, axes, lines, labels, and the way from matplotlib to an SVG element.

The same numbers give the same bytes. Matplotlib is imported when a chart is drawn.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "AXIS",
    "DATED",
    "INK",
    "Floats",
    "Layout",
    "Series",
    "Style",
    "draw_line",
    "drawing",
    "label_ends",
    "make_axes",
    "scale",
    "spread_apart",
    "thin",
    "time_axis",
    "write",
]

Floats = NDArray[np.float64]

INK: Final = "#3d444d"
AXIS: Final = "#9aa1a9"
#: Days below which an axis of time says at its end which day, month or year it is in.
DATED: Final = 300.0
_RULE: Final = "#dfe3e8"


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


@contextmanager
def drawing() -> Iterator[tuple[Callable[[Layout], Figure], Callable[[Figure, str, Layout, str, str], str]]]:
    """Matplotlib under our settings only: nothing of a user's matplotlibrc reaches the bytes.

    Gives a maker of empty figures, and a writer that turns (figure, name that is unique on the page, its
    layout, title, description or "") into an SVG element.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    ours = {"svg.fonttype": "none", "svg.hashsalt": "himari", "font.size": 11.0, "axes.unicode_minus": True}

    def make_figure(layout: Layout) -> Figure:
        return Figure(figsize=(layout.width / 72, layout.height / 72), dpi=72, frameon=False)

    def save(figure: Figure, name: str, layout: Layout, title: str, description: str) -> str:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        return _inline(buffer.getvalue(), f"{name}-{layout.name}", layout, title, description)

    with matplotlib.style.context(["default", ours]):
        yield make_figure, save


def make_axes(figure: Figure, layout: Layout, unit: str = "") -> Axes:
    """The plotting area, with ``unit`` above its vertical axis (which needs a top of 22)."""
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
    axes.tick_params(length=0, colors=INK, pad=6)
    if unit:
        height = layout.height - layout.top - layout.bottom
        write(axes, -layout.left / layout.columns, 1 + 10 / height, unit)
    return axes


def write(axes: Axes, x: float, y: float, text: str, *, color: str = INK, align: str = "left", **more: Any) -> None:
    """Write ``text``, as it is, at (x, y) as shares of the plotting area; the height is the middle of its line."""
    axes.text(
        x, y, text, color=color, ha=align, va="center_baseline", transform=axes.transAxes, parse_math=False, **more
    )


def scale(axes: Axes, layout: Layout, heights: Floats, number: str, *, log: bool = False) -> None:
    """Set the vertical axis to hold ``heights`` (finite; above 0 where ``log``), its numbers written as ``number``."""
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


def time_axis(axes: Axes, layout: Layout, x: Floats) -> None:
    """Set the horizontal axis to the dates from the first to the last of ``x``, days since 1970 (UTC)."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    # With 5 ticks or more, a minimum of 2 leaves no length of time without a fitting interval.
    locator = AutoDateLocator(tz=UTC, minticks=2, maxticks=layout.ticks)  # type: ignore[no-untyped-call]
    axes.xaxis_date(tz=UTC)
    axes.set_xlim(x[0], x[-1])
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC, show_offset=x[-1] - x[0] < DATED)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.axhline(axes.get_ylim()[0], color=AXIS, lw=0.8, clip_on=False)


def draw_line(axes: Axes, x: Floats, y: Floats, style: Style, *, zorder: float, steps: bool = False) -> None:
    """Draw one line; with ``steps`` each value lasts until the next."""
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


def label_ends(axes: Axes, layout: Layout, series: Sequence[Series], *, log: bool = False, unlined: int = 0) -> None:
    """Write each label beside the end of its line, pushed apart where ends meet, with a lead to its line."""
    gap, height = 13.0, float(layout.height - layout.top - layout.bottom)
    low, high = (np.log10(v) if log else v for v in axes.get_ylim())
    ends = [((np.log10(s.y[-1]) if log else s.y[-1]) - low) / (high - low) * height for s in series]
    places = spread_apart(ends, gap, height)
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
        color = line.style.color if index < len(series) - unlined else INK
        write(axes, (width + 23) / width, place / height, line.label, color=color)


def spread_apart(ends: Sequence[float], gap: float, height: float) -> list[float]:
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


def _inline(svg: str, prefix: str, layout: Layout, title: str, description: str) -> str:
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
    spoken = f'<title id="{prefix}-title">{html.escape(title)}</title>'
    read = f"{prefix}-title"
    if description:
        spoken += f'<desc id="{prefix}-desc">{html.escape(description)}</desc>'
        read += f" {prefix}-desc"
    return (
        f'<svg class="chart {layout.name}" viewBox="0 0 {layout.width} {layout.height}" role="img" '
        f'aria-labelledby="{read}">{spoken}{body.strip()}</svg>'
    )


def _shorten(attribute: str) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), attribute)
    return re.sub(r"\s*\n\s*|(?<=[MLz]) ", "", re.sub(r'\s+"$', '"', text))
