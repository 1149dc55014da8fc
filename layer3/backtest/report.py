"""The tear sheet and the written verdict of one evaluation.

The tear sheet is one HTML file: no script, no external resource, the same bytes for the same input,
and below 300 kB for years of hourly bars. ``jinja2`` and ``matplotlib`` are imported when called.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layer3.backtest import tables
from layer3.backtest.charts import Layout, Series, Style, average_span, bands_chart, lines_chart
from layer3.backtest.record import BUY_AND_HOLD, FLAT, KELLY_ONLY, POLICY, Evaluation, Verdict
from layer3.contract import MULTIPLIER_HIGH, MULTIPLIER_LOW
from layer3.errors import EvaluationError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_tear_sheet", "render_verdict_markdown", "template_environment"]

#: Highest over lowest equity from which a logarithmic scale tells more than a linear one.
LOG_FROM: Final = 4.0

_STYLES: Final = {
    POLICY: Style("#0b4a8f", "-", 1.9),
    KELLY_ONLY: Style("#c4500f", (0, (5, 1.6)), 1.3),
    BUY_AND_HOLD: Style("#6e757e", "-", 1.0),
    FLAT: Style("#30363d", (0, (1, 2)), 1.1),
}
_OTHER_STYLE: Final = Style("#6a3d9a", (0, (6, 2, 1, 2)), 1.1)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def render_tear_sheet(evaluation: Evaluation, verdict: Verdict) -> str:
    """Render the whole evaluation as one self-contained HTML page.

    Raises
    ------
    EvaluationError : the record has no policy track, no bars, arrays that do not fit together,
        or equity that is not finite
    """
    _check(evaluation)
    interval_ns = _interval_ns(evaluation)
    tracks = [*(t for t in tables.STRATEGIES if t in evaluation.tracks)]
    tracks += [t for t in evaluation.tracks if t not in tables.STRATEGIES]
    criteria = tables.criterion_rows(verdict.criteria)
    context = tables.context_rows(evaluation.context)
    known = dict(reversed(context))
    span = average_span(len(evaluation.timestamps), interval_ns / 1e9)
    return (
        template_environment()
        .get_template("tear_sheet.html.j2")
        .render(
            symbol=str(evaluation.context.get("symbol") or "unnamed market"),
            synthetic=bool(evaluation.context.get("synthetic")),
            passed=verdict.passed,
            criteria=criteria,
            failed=[row["label"] for row in criteria if not row["passed"]],
            headline=_headline(evaluation),
            charts=_charts(evaluation, verdict, tracks, interval_ns, span),
            average=_duration(span * interval_ns / 1e9) if span > 1 else None,
            months=_MONTHS,
            years=_month_table(evaluation, interval_ns),
            strategies=[_name(track) for track in tracks],
            groups=tables.metric_groups(evaluation.metrics, tracks),
            log=_log_scale(evaluation),
            context=context,
            about=[
                known[label] for label in ("Held-out test", "Bar interval", "Data") if known[label] != tables.MISSING
            ],
        )
    )


def render_verdict_markdown(evaluation: Evaluation, verdict: Verdict) -> str:
    """Render the verdict as a short Markdown text with one table; nothing in it is taken as markup."""
    context = dict(reversed(tables.context_rows(evaluation.context)))
    rows = tables.criterion_rows(verdict.criteria)
    failed = sum(not row["passed"] for row in rows)
    lines = [f"# {'PASSED' if verdict.passed else 'REJECTED'}: {_outcome(verdict.passed, len(rows), failed)}", ""]
    if evaluation.context.get("synthetic"):
        lines += ["**SYNTHETIC DATA.** A simulated market: these numbers say nothing about a real one.", ""]
    lines += ["| criterion | value | limit | result | |", "|---|---:|---:|---|---|"]
    lines += [
        f"| {_markdown(row['label'])} | {row['value']} | {row['comparison']} {row['limit']} "
        f"| {'pass' if row['passed'] else '**FAIL**'} | {_markdown(row['sentence'])} |"
        for row in rows
    ]
    lines.append("")
    for label in ("Market", "Data", "Held-out test", "Model", "Seed", "Data sha256"):
        lines.append(f"- {label}: {_markdown(context[label])}")
    return "\n".join(lines) + "\n"


@cache
def template_environment(*folders: Path) -> Environment:
    """Templates of this package and of ``folders``, all autoescaped; an unknown name in one is an error.

    They share ``base.html.j2`` (page, style) and ``macros.html.j2`` (the table of criteria).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["outcome"] = _outcome
    return environment


def _outcome(passed: bool, criteria: int, failed: int) -> str:
    if passed:
        return f"all {criteria} criteria hold" if criteria > 1 else "the criterion holds"
    if not failed:
        return "not released, although no criterion failed"
    return f"{failed} of {criteria} criteria failed" if criteria > 1 else "the criterion failed"


def _markdown(text: str) -> str:
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*\[\]|#~])", r"\\\1", html.escape(one_line, quote=False))


def _check(evaluation: Evaluation) -> None:
    bars = len(evaluation.timestamps)
    if not bars:
        raise EvaluationError("a tear sheet needs at least one bar, the record has none")
    if POLICY not in evaluation.tracks:
        raise EvaluationError(f"a tear sheet needs the track {POLICY!r}, the record has {sorted(evaluation.tracks)}")
    for name, track in evaluation.tracks.items():
        lengths = (len(track.equity) - 1, len(track.exposure), len(track.multiplier))
        if lengths != (bars, bars, bars):
            raise EvaluationError(f"track {name!r} has {lengths} equity steps, exposures, multipliers for {bars} bars")
        if not all(np.isfinite(a).all() for a in (track.equity, track.exposure, track.multiplier)):
            raise EvaluationError(f"track {name!r} has equity, exposure or multiplier that is not finite")


def _interval_ns(evaluation: Evaluation) -> int:
    seconds = evaluation.context.get("interval_seconds")
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise EvaluationError(f"the evaluation's interval_seconds is {seconds!r}, expected the length of a bar")
    return round(seconds * 1e9)


def _name(track: str) -> str:
    return tables.STRATEGIES.get(track, track.replace("_", " ").capitalize())


def _headline(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """The few numbers that a reader looks for first: (name, policy's value, Kelly only's)."""
    rows = []
    for key in ("total_return", "sharpe", "max_drawdown", "probabilistic_sharpe", "trades"):
        about = tables.quantity(key)
        policy, kelly = (
            tables.format_number(evaluation.metrics.get(track, {}).get(key), about.kind, signed=key == "total_return")
            for track in (POLICY, KELLY_ONLY)
        )
        rows.append((about.label, policy, kelly))
    return rows


def _charts(
    evaluation: Evaluation, verdict: Verdict, tracks: Sequence[str], interval_ns: int, span: int
) -> dict[str, list[str]]:
    from markupsafe import Markup

    # Decision t is executed one bar after timestamps[t] opens; equity is marked at those moments.
    days = (evaluation.timestamps + interval_ns) / 86_400e9
    marks = np.append(days, days[-1] + interval_ns / 86_400e9)
    shown = {track: evaluation.tracks[track] for track in tracks}
    money = "{:,.0f}" if max(track.equity.max() for track in shown.values()) >= 1000 else "{:,.4g}"
    log = _log_scale(evaluation)
    limit = next((c.limit for c in verdict.criteria if tables.quantity(c.name).label == "Maximum drawdown"), None)
    marked = (-abs(limit), f"limit {tables.format_number(abs(limit), 'percent')}") if limit is not None else None
    held = [track for track in tracks if track in (POLICY, KELLY_ONLY)]
    reach = float(max(np.abs(shown[track].exposure).max() for track in held)) or 0.1
    low = -reach if any(shown[track].exposure.min() < 0 for track in held) else 0.0
    charts: dict[str, list[str]] = {"equity": [], "drawdown": [], "multiplier": [], "exposure": []}
    for wide in (True, False):
        name, width, left, right, ticks = ("wide", 760, 58, 150, 8) if wide else ("narrow", 360, 46, 92, 5)

        def layout(wide_height: int, narrow_height: int, w: Any = (wide, name, width, left, right, ticks)) -> Layout:
            return Layout(w[1], w[2], wide_height if w[0] else narrow_height, *w[3:])

        curves, falls = [], []
        for track in tracks:
            style, path = _STYLES.get(track, _OTHER_STYLE), shown[track].equity
            gain = tables.format_number(path[-1] / path[0] - 1.0 if path[0] else None, "percent", signed=True)
            peak = np.maximum.accumulate(path)
            fall = np.divide(path, peak, out=np.ones_like(path), where=peak > 0) - 1.0
            curves.append(Series(f"{_name(track)} {gain}" if wide else _name(track), marks, path, style))
            falls.append(Series(_name(track), marks, fall, style))
        charts["equity"].append(
            lines_chart(curves, layout(310, 250), name="equity", title="Equity over time", number=money, log=log)
        )
        charts["drawdown"].append(
            lines_chart(
                [s for track, s in zip(tracks, falls, strict=True) if track != FLAT],
                layout(190, 170),
                name="drawdown",
                title="Drawdown over time",
                number="{:.0%}" if min(s.y.min() for s in falls) < -0.04 else "{:.1%}",
                fill=True,
                limit=marked,
            )
        )
        charts["multiplier"].append(
            bands_chart(
                [Series("Policy", days, shown[POLICY].multiplier, _STYLES[POLICY])],
                layout(160, 150),
                name="multiplier",
                title="Multiplier over time",
                span=span,
                end=float(marks[-1]),
                bounds=(MULTIPLIER_LOW, MULTIPLIER_HIGH),
                number="{:.1f}×",
                reference=(1.0, "Kelly only"),
            )
        )
        charts["exposure"].append(
            bands_chart(
                [Series(_name(track), days, shown[track].exposure, _STYLES[track]) for track in held],
                layout(170, 150),
                name="exposure",
                title="Exposure over time",
                span=span,
                end=float(marks[-1]),
                bounds=(low, reach),
                number="{:.0%}" if reach > 0.04 else "{:.1%}",
            )
        )
    # Our own drawings: no text in them comes from data except numbers and the names of tracks, escaped by matplotlib.
    return {name: [Markup(svg) for svg in drawn] for name, drawn in charts.items()}


def _log_scale(evaluation: Evaluation) -> bool:
    lowest = min(track.equity.min() for track in evaluation.tracks.values())
    highest = max(track.equity.max() for track in evaluation.tracks.values())
    return bool(lowest > 0 and highest / lowest >= LOG_FROM)


def _month_table(evaluation: Evaluation, interval_ns: int) -> list[dict[str, Any]]:
    """One entry per year: the year, twelve cells (``None`` where the record has nothing), and its total."""
    months, years = tables.monthly_returns(evaluation.timestamps, evaluation.tracks[POLICY].equity, interval_ns)
    strongest = max((abs(month.value) for month in months if month.value is not None), default=0.0) or 1.0
    cells = {month.key: _cell(month, strongest) for month in months}
    return [
        {
            "year": year.key,
            "months": [cells.get(f"{year.key}-{number:02}") for number in range(1, 13)],
            "total": _cell(year, None),
        }
        for year in years
    ]


def _cell(period: tables.Period, strongest: float | None) -> dict[str, Any]:
    shade = ""
    if strongest and period.value:
        shade = ("up" if period.value > 0 else "down") + str(min(3, 1 + int(3 * abs(period.value) / strongest)))
    return {
        "text": tables.format_number(period.value, "percent", signed=True).removesuffix("%"),
        "partial": period.partial,
        "shade": shade,
    }


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            return f"{seconds / size:g}-{unit}" if seconds % size == 0 else f"{seconds / size:.1f}-{unit}"
    return f"{seconds:g}-second"
