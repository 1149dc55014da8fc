"""An analysis as rows of words, the same for a terminal and for a page. Returns per unit are in basis points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from layer3.ab.analysis import Analysis, ArmResult
from layer3.ab.assignment import Arm, Design
from layer3.ab.recommend import LEAST_RATIO_P
from layer3.ab.statistics import Comparison
from layer3.backtest.record import Interval
from layer3.backtest.tables import MISSING, format_number

__all__ = ["BP", "NAMES", "Difference", "about", "arm_rows", "check_rows", "difference_rows", "moment", "said"]

#: Basis points in 1.
BP: Final = 10_000.0
NAMES: Final = {Arm.POLICY: "Policy", Arm.KELLY: "Kelly only"}
_UNITS: Final = {"signal": "signal", "symbol_day": "symbol and UTC day", "strategy": "strategy"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One way to look at the difference: its value, its interval, its p value, and how it may be used."""

    label: str
    value: str
    interval: str
    p: str
    use: str


def said(share: float) -> str:
    """A share of the design as it was said: 0.995 is "99.5%", not a rounded "100%"."""
    return f"{100.0 * share:g}%"


def moment(ns: int) -> str:
    """UTC nanoseconds as "2026-01-01 00:00"."""
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, tz=UTC):%Y-%m-%d %H:%M}"


def about(analysis: Analysis) -> list[str]:
    """What the experiment is, in short phrases."""
    design = analysis.design
    return [
        f"{moment(analysis.started_ns)} to {moment(analysis.until_ns)} UTC",
        f"day {analysis.days:.1f} of {design.planned_days:g}",
        f"assigned by {_UNITS[design.unit]}",
        _ramp(design),
    ]


def arm_rows(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Measures of the arms: (name, one (value, interval or "") for each of ``NAMES``)."""
    arms = [analysis.arms[arm] for arm in NAMES]
    level = said(analysis.design.level)

    def row(label: str, cell: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
        return label, list(cell)

    return [
        row("Decisions", [(f"{arm.decisions:,}", f"{arm.outcomes:,} with an outcome") for arm in arms]),
        row("Units with an outcome", [(f"{arm.units:,}", "") for arm in arms]),
        row("Total return", [(_percent(arm.total), "") for arm in arms]),
        row(f"Mean return per unit, bp, {level}", [_comparison(arm.mean) for arm in arms]),
        row(f"Sharpe ratio, annual, {level}", [_interval(arm.sharpe) for arm in arms]),
        row(f"Maximum drawdown, {level}", [_drawdown(arm) for arm in arms]),
        row(f"Win rate, {level}", [_wins(arm) for arm in arms]),
        row("Mean duration", [(_duration(arm.duration_s), "") for arm in arms]),
    ]


def difference_rows(analysis: Analysis) -> list[Difference]:
    """The policy's arm less Kelly's, by each test."""
    look = analysis.looks[-1] if analysis.looks else None
    rows = []
    if look is None:
        rows.append(Difference("Always valid, adjusted", MISSING, "", MISSING, "any day"))
    else:
        ends = f"{_bp(look.low)} to {_bp(look.high)}"
        rows.append(Difference("Always valid, adjusted", _bp(look.difference), ends, _p(look.p), "any day"))
    for label, found in (("Welch's t", analysis.welch), ("Paired t, both sizes", analysis.paired)):
        value, ends = _comparison(found)
        rows.append(Difference(label, value, ends, _p(found.p) if found else MISSING, "one look"))
    value, ends = _interval(analysis.sharpe_difference, signed=True)
    rows.append(Difference("Sharpe, annual, both sizes", value, ends, "", "one look"))
    return rows


def check_rows(analysis: Analysis) -> list[tuple[str, str]]:
    """Whether the numbers may be believed, and what was left out: (name, sentence)."""
    design = analysis.design
    rows = [
        ("Split", _split(analysis)),
        ("Noise removed", _removed(analysis)),
        (
            "Guardrails",
            f"The policy's arm may fall by {design.max_drawdown:.1%} from its peak and lose {design.daily_loss:.1%} on "
            "a UTC day. " + _guard(analysis),
        ),
        ("Left out", _left_out(analysis)),
    ]
    return rows + [("Mind", warning) for warning in analysis.warnings]


def _ramp(design: Design) -> str:
    if len(design.ramp) == 1:
        return f"{said(design.ramp[0][1])} get the policy"
    return ", ".join(f"{said(share)} from day {day:g}" for day, share in design.ramp) + " get the policy"


def _split(analysis: Analysis) -> str:
    if not any(arm.decisions for arm in analysis.arms.values()):
        return "No unit has been assigned yet."
    p = analysis.ratio_p
    if p is None:
        return "Every unit had to go to one arm: there is nothing to check."
    verdict = "not the intended one" if p < LEAST_RATIO_P else "as intended"
    return f"It is {verdict}: chi-square {_p_words(p)}, broken below {LEAST_RATIO_P}."


def _removed(analysis: Analysis) -> str:
    if analysis.removed is None or analysis.removed_by_size is None:
        return "Nothing varies yet."
    return (
        f"{analysis.removed:.1%} of the variance, by the base size and what it would have earned; the base size alone "
        f"{analysis.removed_by_size:.1%}. It takes the price as not moved by the size."
    )


def _guard(analysis: Analysis) -> str:
    if analysis.stop:
        return f"STOPPED at {moment(analysis.stop.stopped_ns)} UTC: {analysis.stop.reason}."
    breach = analysis.arms[Arm.POLICY].breach
    return f"BROKEN at {moment(breach.at_ns)} UTC: it {breach.words}." if breach else "Neither happened."


def _left_out(analysis: Analysis) -> str:
    if not analysis.left_out:
        return "Nothing."
    return ", ".join(f"{why}: {count:,}" for why, count in analysis.left_out.items()) + " (decisions)."


def _comparison(found: Comparison | None) -> tuple[str, str]:
    return (_bp(found.estimate), f"{_bp(found.low)} to {_bp(found.high)}") if found else (MISSING, "")


def _interval(interval: Interval, *, signed: bool = True) -> tuple[str, str]:
    if interval.low is None or interval.high is None:
        return format_number(interval.estimate, "ratio", signed=signed), ""
    ends = (format_number(end, "ratio", signed=signed) for end in (interval.low, interval.high))
    return format_number(interval.estimate, "ratio", signed=signed), " to ".join(ends)


def _drawdown(arm: ArmResult) -> tuple[str, str]:
    interval = arm.drawdown
    value = format_number(interval.estimate, "percent", digits=2)
    if interval.low is None or interval.high is None:
        return value, ""
    return value, " to ".join(format_number(end, "percent", digits=2) for end in (interval.low, interval.high))


def _wins(arm: ArmResult) -> tuple[str, str]:
    if arm.win_interval is None:
        return MISSING, ""
    ends = (format_number(end, "percent") for end in arm.win_interval)
    return f"{format_number(arm.win_rate, 'percent')}", " to ".join(ends)


def _bp(value: float) -> str:
    return format_number(value * BP, "ratio", signed=True)


def _percent(value: float) -> str:
    return format_number(value, "percent", signed=True, digits=2)


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _p_words(p: float) -> str:
    return f"p {_p(p)}" if p < 0.0001 else f"p = {_p(p)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
