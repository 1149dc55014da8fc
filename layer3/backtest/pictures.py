"""The pictures of a tear sheet, from one evaluation: each with what it shows in a sentence, and what it is.

Where the evidence lacks what a picture needs, its sentences from ``Evidence.problems`` stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from layer3.backtest import tables
from layer3.backtest.charts import Band, Series, Style, average_span, bands_chart, lines_chart
from layer3.backtest.drawing import DATED, Floats, Layout
from layer3.backtest.record import BUY_AND_HOLD, CHAMPION, FLAT, KELLY_ONLY, POLICY, Evaluation, Verdict
from layer3.backtest.tables import format_number, name_of
from layer3.contract import MULTIPLIER_HIGH, MULTIPLIER_LOW

__all__ = [
    "HALF_LINES",
    "STYLES",
    "Picture",
    "Record",
    "conduct",
    "drawdown",
    "duration",
    "equity",
    "markup",
    "ordered",
    "short_name",
]

#: Highest over lowest equity from which a logarithmic scale tells more than a linear one.
LOG_FROM: Final = 4.0
#: A chart of lines in half of a page, with room for labels at the right.
HALF_LINES: Final = Layout("half", 380, 190, 44, 92, 5, top=26)
STYLES: Final = {
    POLICY: Style("#0b4a8f", "-", 1.9),
    KELLY_ONLY: Style("#c4500f", (0, (5, 1.6)), 1.3),
    CHAMPION: Style("#7b3f9e", (0, (6, 2, 1, 2)), 1.3),
    BUY_AND_HOLD: Style("#6e757e", "-", 1.0),
    FLAT: Style("#30363d", (0, (1, 2)), 1.1),
}
_OTHER: Final = Style("#1a7a6c", (0, (3, 1)), 1.1)
_ABOUT: Final = {
    KELLY_ONLY: "Kelly only: the sizing chain alone, multiplier 1.",
    CHAMPION: "Champion: the policy that serves now.",
    BUY_AND_HOLD: "Buy and hold: all capital in the asset.",
    FLAT: "Flat: no position.",
}
_LONGEST: Final = 14
#: Multiple of the deepest fall up to which its limit is drawn.
_NEAR: Final = 3.0


@dataclass(frozen=True, slots=True)
class Picture:
    """``finding``: what it shows; ``note``: what it is and how to read it; ``charts``: drawings of the same, of which
    the style sheet shows one; ``missing``: why it or a part of it is not there."""

    title: str
    note: str
    finding: str = ""
    charts: tuple[Any, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """An evaluation as it is drawn: ``days`` (n,) of execution and ``marks`` (n + 1,) of equity, since 1970 (UTC)."""

    evaluation: Evaluation
    tracks: tuple[str, ...]
    days: Floats
    marks: Floats
    interval_seconds: float

    @classmethod
    def of(cls, evaluation: Evaluation, interval_ns: int) -> Record:
        """Decision t is executed one bar after ``timestamps[t]`` opens; equity is marked at those moments."""
        days = (evaluation.timestamps + interval_ns) / 86_400e9
        marks = np.append(days, days[-1] + interval_ns / 86_400e9)
        return cls(evaluation, tuple(ordered(evaluation)), days, marks, interval_ns / 1e9)

    @property
    def bottom(self) -> int:
        """Room below an axis of time: a short record's has its date on a line of its own."""
        return 38 if self.marks[-1] - self.marks[0] < DATED else 24

    @property
    def log(self) -> bool:
        """Whether equity spans so much that it is drawn on a logarithmic scale."""
        band = self.band
        ends = [*((float(t.equity.min()), float(t.equity.max())) for t in self.evaluation.tracks.values())]
        ends += [(float(band.low.min()), float(band.high.max()))] if band else []
        lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
        return bool(lowest > 0 and highest / lowest >= LOG_FROM)

    @property
    def band(self) -> Band | None:
        """The bootstrap's range of the policy's equity in currency, from the start of the record on."""
        if self.evaluation.evidence.bootstrap_band is None:
            return None
        days, low, high = (np.asarray(row, dtype=np.float64) for row in self.evaluation.evidence.bootstrap_band)
        start = self.evaluation.tracks[POLICY].equity[0]
        # Quantiles are read at the ends of their days, the last of which the record may not reach.
        x = np.r_[self.marks[0], np.clip(days + 1.0, self.marks[0], self.marks[-1])]
        return Band(x, np.r_[start, start * low], np.r_[start, start * high], STYLES[POLICY].color)


def ordered(evaluation: Evaluation) -> list[str]:
    """The names of the tracks as a reader sees them: the known ones first."""
    known = [name for name in tables.STRATEGIES if name in evaluation.tracks]
    return known + [name for name in evaluation.tracks if name not in tables.STRATEGIES]


def equity(record: Record) -> Picture:
    """Equity of every track, with the bootstrap's band around the policy's."""
    evaluation, band = record.evaluation, record.band
    paths = {name: evaluation.tracks[name].equity for name in record.tracks}
    gains = {name: _gain(path) for name, path in paths.items()}
    highest = max(float(path.max()) for path in paths.values())
    against = [f"{name_of(name)} {gain}" for name, gain in gains.items() if name not in (POLICY, FLAT)]
    finding = f"Policy {gains[POLICY]}" + (f"; {', '.join(against)}." if against else ".")
    note = "Costs included, marked at each bar's execution price." + (" Logarithmic scale." if record.log else "")
    if band:
        start = paths[POLICY][0]
        low, high = (
            format_number(float(edge[-1] / start - 1.0), "percent", signed=True) for edge in (band.low, band.high)
        )
        finding += f" 90% of the policy's records resampled by bootstrap end between {low} and {high}."
        note += " Shaded: where 90% of the resampled records lie, which is how much of it may be luck."
    note = " ".join([note, *(text for name, text in _ABOUT.items() if name in paths)])
    charts = []
    for layout in (
        Layout("wide", 760, 320, 58, 150, 8, 26, record.bottom),
        Layout("narrow", 360, 260, 46, 92, 5, 26, record.bottom),
    ):
        wide = layout.name == "wide"
        lines = [
            Series(f"{short_name(name)} {gains[name]}" if wide else short_name(name), record.marks, path, _style(name))
            for name, path in paths.items()
        ]
        charts.append(
            lines_chart(
                lines,
                layout,
                name="equity",
                title="Equity over time",
                number="{:,.0f}" if highest >= 1000 else "{:,.4g}",
                log=record.log,
                band=band,
                unit="equity, in the account's currency",
                description=finding,
            )
        )
    missing = () if band else tables.why_missing(evaluation.evidence, "bootstrap_band")
    return Picture("Equity", note, finding, markup(charts), missing)


def drawdown(record: Record, verdict: Verdict) -> Picture:
    """How far every track was below its highest value so far."""
    evaluation = record.evaluation
    limit = next((c.limit for c in verdict.criteria if c.name == "max_drawdown"), None)
    allowed = format_number(abs(limit), "percent") if limit is not None else ""
    falls = {name: _fall(evaluation.tracks[name].equity) for name in record.tracks if name != FLAT}
    deepest = format_number(-float(falls[POLICY].min()), "percent")
    trust = evaluation.evidence.trust
    finding = f"Largest fall {deepest}" + (f", at most {allowed} allowed." if allowed else ".")
    if trust and trust.drawdown_interval.low is not None:
        level = format_number(trust.drawdown_interval.level, "percent", digits=0)
        fallen = tables.interval_text(trust.drawdown_interval, "percent")
        finding += f" {level} of the records resampled by bootstrap fall by {fallen}."
    # A limit far below every line would press them into one.
    near = limit is not None and abs(limit) <= _NEAR * -min(float(fall.min()) for fall in falls.values())
    charts = [
        lines_chart(
            [Series(short_name(name), record.marks, fall, _style(name)) for name, fall in falls.items()],
            layout,
            name="drawdown",
            title="Drawdown over time",
            number="{:.0%}" if min(float(fall.min()) for fall in falls.values()) < -0.04 else "{:.1%}",
            fill=True,
            limit=(-abs(limit), f"limit {allowed}") if limit is not None and near else None,
            unit="below the highest equity so far",
            description=finding,
        )
        for layout in (
            Layout("wide", 760, 210, 58, 150, 8, 26, record.bottom),
            Layout("narrow", 360, 190, 46, 92, 5, 26, record.bottom),
        )
    ]
    return Picture("Drawdown", "Equity below its highest value so far, in percent of it.", finding, markup(charts))


def conduct(record: Record) -> list[Picture]:
    """What the policy did: its multiplier and the exposure that came of it."""
    evaluation, span = record.evaluation, average_span(len(record.days), record.interval_seconds)
    words = f"Line: {duration(span * record.interval_seconds)} average; shaded: lowest to highest." if span > 1 else ""
    policy = evaluation.tracks[POLICY]
    found = evaluation.evidence.degeneracy
    held = [name for name in (POLICY, KELLY_ONLY) if name in evaluation.tracks]
    reach = float(max(np.abs(evaluation.tracks[name].exposure).max() for name in held)) or 0.1
    low = -reach if any(evaluation.tracks[name].exposure.min() < 0 for name in held) else 0.0
    average = f"Mean {policy.multiplier.mean():.2f}×, standard deviation {policy.multiplier.std():.2f}."
    if found and found.mean is not None and found.spread is not None:
        average = f"Where the chain holds something: mean {found.mean:.2f}×, standard deviation {found.spread:.2f}."
    mean = format_number(float(np.abs(policy.exposure).mean()), "percent")
    sides = (f"{side} {np.mean(policy.exposure * sign > 0):.0%}" for side, sign in (("long", 1), ("short", -1)))
    held_text = f"{mean} of equity on average; {', '.join(sides)} of bars."
    half = replace(HALF_LINES, bottom=record.bottom)
    multiplier = bands_chart(
        [Series("Policy", record.days, policy.multiplier, STYLES[POLICY])],
        half,
        name="multiplier",
        title="Multiplier over time",
        span=span,
        end=float(record.marks[-1]),
        bounds=(MULTIPLIER_LOW, MULTIPLIER_HIGH),
        number="{:.1f}×",
        reference=(1.0, "Kelly only"),
        unit="multiple of the base size",
        description=average,
    )
    exposure = bands_chart(
        [Series(name_of(name), record.days, evaluation.tracks[name].exposure, STYLES[name]) for name in held],
        half,
        name="exposure",
        title="Exposure over time",
        span=span,
        end=float(record.marks[-1]),
        bounds=(low, reach),
        number="{:.0%}" if reach > 0.04 else "{:.1%}",
        unit="share of equity, short below 0",
        description=held_text,
    )
    about = "What the policy multiplies the base size by; 1 is Kelly only."
    return [
        Picture("Multiplier", f"{about} {words}".strip(), average, markup([multiplier])),
        Picture("Exposure", f"Share of equity held. {words}".strip(), held_text, markup([exposure])),
    ]


def duration(seconds: float) -> str:
    """A length of time as an adjective: "8-day"."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            return f"{seconds / size:g}-{unit}" if seconds % size == 0 else f"{seconds / size:.1f}-{unit}"
    return f"{seconds:g}-second"


def _gain(path: Floats) -> str:
    return format_number(float(path[-1] / path[0] - 1.0) if path[0] else None, "percent", signed=True)


def _fall(path: Floats) -> Floats:
    peak = np.maximum.accumulate(path)
    return np.asarray(np.divide(path, peak, out=np.ones_like(path), where=peak > 0) - 1.0)


def _style(name: str) -> Style:
    return STYLES.get(name, _OTHER)


def short_name(name: str) -> str:
    """A track's name cut to the room beside a chart."""
    text = name_of(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def markup(charts: Sequence[str]) -> tuple[Any, ...]:
    """Charts as what a template writes as it is."""
    from markupsafe import Markup

    # Our own drawings: what comes from data in them is numbers, and names that matplotlib and html.escape escaped.
    return tuple(Markup(svg) for svg in charts)
