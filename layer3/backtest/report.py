"""The tear sheet and the written verdict of one evaluation.

The tear sheet is one HTML file: no script, no external resource, the same bytes for the same input,
and below 500 kB for four years of hourly bars. ``jinja2`` and ``matplotlib`` are imported when called.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layer3.backtest import pictures, proofs, tables
from layer3.backtest.record import KELLY_ONLY, POLICY, Evaluation, Verdict
from layer3.backtest.sections import detail_sections
from layer3.errors import EvaluationError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_tear_sheet", "render_verdict_markdown", "template_environment"]

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
    record = pictures.Record.of(evaluation, interval_ns)
    criteria = _failed_first(verdict)
    context = tables.context_rows(evaluation.context)
    known = dict(reversed(context))
    return (
        template_environment()
        .get_template("tear_sheet.html.j2")
        .render(
            symbol=str(evaluation.context.get("symbol") or "unnamed market"),
            synthetic=bool(evaluation.context.get("synthetic")),
            passed=verdict.passed,
            override=verdict.override,
            criteria=criteria,
            failed=[row["label"] for row in criteria if not row["passed"]],
            problems=tables.missing_sections(evaluation.evidence),
            headline=_headline(evaluation),
            pictures=_pictures(record, verdict),
            months=_MONTHS,
            years=_month_table(evaluation, interval_ns),
            sections=detail_sections(evaluation.evidence),
            strategies=[tables.name_of(track) for track in record.tracks],
            groups=tables.metric_groups(evaluation.metrics, record.tracks),
            limits=_limit_rows(verdict.limits),
            context=context,
            about=[
                known[label] for label in ("Held-out test", "Bar interval", "Data") if known[label] != tables.MISSING
            ],
        )
    )


def _pictures(record: pictures.Record, verdict: Verdict) -> dict[str, Any]:
    """Every picture by its place on the page; a list is drawn side by side."""
    evidence = record.evaluation.evidence
    return {
        "equity": pictures.equity(record),
        "permutations": proofs.permutations(evidence),
        "benchmarks": [proofs.differences(evidence), proofs.costs(evidence)],
        "drawdown": pictures.drawdown(record, verdict),
        "attribution": proofs.attribution(evidence),
        "conduct": pictures.conduct(record),
        "walk_forward": proofs.walk_forward(evidence),
    }


def _failed_first(verdict: Verdict) -> list[dict[str, Any]]:
    rows = tables.criterion_rows(verdict.criteria)
    return sorted(rows, key=lambda row: bool(row["passed"]))


def _limit_rows(limits: Mapping[str, Any], within: str = "") -> list[tuple[str, str]]:
    """What the gate asked, as (name, text); what is nested is named by its whole path."""
    rows: list[tuple[str, str]] = []
    for key, value in limits.items():
        name = f"{within}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _limit_rows(value, f"{name}: ")
        else:
            rows.append((name[:1].upper() + name[1:], _limit_text(value)))
    return rows


def _limit_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return tables.plain(value)


def render_verdict_markdown(evaluation: Evaluation, verdict: Verdict) -> str:
    """Render the verdict as a short Markdown text with one table; nothing in it is taken as markup."""
    context = dict(reversed(tables.context_rows(evaluation.context)))
    rows = _failed_first(verdict)
    failed = sum(not row["passed"] for row in rows)
    word = "OVERRIDDEN" if verdict.override and verdict.passed else "PASSED" if verdict.passed else "REJECTED"
    lines = [f"# {word}: {_outcome(verdict.passed, len(rows), failed)}", ""]
    if verdict.override:
        name, reason = _markdown(verdict.override.name), _markdown(verdict.override.reason)
        lines += [f"**OVERRIDE by {name}: {reason}**", ""]
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
    asked = _limit_rows(verdict.limits)
    if asked:
        lines += ["", "Asked:", "", *(f"- {_markdown(name)}: {_markdown(text)}" for name, text in asked)]
    problems = tables.missing_sections(evaluation.evidence)
    if problems:
        lines += ["", "Could not be computed:", "", *(f"- {_markdown(n)}: {_markdown(text)}" for n, text in problems)]
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
    if not criteria:
        return "released, although nothing was asked" if passed else "not released; nothing was asked"
    if passed and failed:
        return f"released against the evidence: {failed} of {criteria} criteria failed"
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
