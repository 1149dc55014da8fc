"""The report as one HTML file with pictures: no script, no external resource, the same bytes for the same store."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from layer3.ab.analysis import Analysis
from layer3.ab.assignment import DAY_NS, Arm
from layer3.ab.wording import BP, NAMES, about, arm_rows, check_rows, difference_rows, said
from layer3.backtest.charts import Band, lines_chart
from layer3.backtest.drawing import Layout, Series
from layer3.backtest.pictures import STYLES, Picture, markup
from layer3.backtest.record import BUY_AND_HOLD, KELLY_ONLY, POLICY
from layer3.backtest.report import template_environment

__all__ = ["render_page"]

_LAYOUTS: Final = (Layout("wide", 760, 260, 58, 150, 8, top=26), Layout("narrow", 360, 230, 46, 92, 5, top=26))
_TRACKS: Final = {Arm.POLICY: POLICY, Arm.KELLY: KELLY_ONLY}
#: The band is cut where it is so many times as wide as at the last look: the first looks know nothing.
_WIDEST: Final = 4.0
#: Where a p value's line ends below.
_LEAST_P: Final = 1e-6


def render_page(analysis: Analysis) -> str:
    """Render the page."""
    return (
        template_environment(Path(__file__).parent)
        .get_template("experiment.html.j2")
        .render(
            name=analysis.design.name,
            about=about(analysis),
            told=analysis.recommendation,
            good={"deploy": "yes", "disable": "no"}.get(analysis.recommendation.action, ""),
            level=said(analysis.design.level),
            arms=list(NAMES.values()),
            arm_rows=arm_rows(analysis),
            differences=difference_rows(analysis),
            checks=check_rows(analysis),
            pictures=[_difference(analysis), _growth(analysis), _chances(analysis)],
        )
    )


def _difference(analysis: Analysis) -> Picture:
    title = "The difference, day by day"
    note = "Policy less Kelly only, adjusted for the base size. Shaded: where it may lie, on all days at once."
    looks = analysis.looks
    if len(looks) < 2:
        return Picture(title, note, missing=(_too_few(analysis),))
    days = np.array([look.at_ns / DAY_NS for look in looks])
    estimate, low, high = (
        BP * np.array([getattr(look, name) for look in looks]) for name in ("difference", "low", "high")
    )
    last = looks[-1]
    reach = _WIDEST * BP * (last.high - last.low) / 2.0
    middle = BP * last.difference
    top, bottom = max(middle + reach, reach), min(middle - reach, -reach)
    if low.min() < bottom or high.max() > top:
        note += " It is cut off where it leaves the picture."
    shade = Band(days, np.clip(low, bottom, top), np.clip(high, bottom, top), STYLES[POLICY].color)
    side = "all of it above 0" if last.low > 0.0 else "all of it below 0" if last.high < 0.0 else "0 lies within"
    finding = f"On the last day {BP * last.low:+.2f} to {BP * last.high:+.2f} bp per unit: {side}."
    charts = [
        lines_chart(
            [Series("estimate", days, np.clip(estimate, bottom, top), STYLES[POLICY])],
            layout,
            name="difference",
            title=title,
            number="{:.1f}",
            limit=(0.0, "no difference"),
            band=shade,
            unit="basis points per unit",
            description=finding,
        )
        for layout in _LAYOUTS
    ]
    return Picture(title, note, finding.replace("-", "−"), markup(charts))


def _growth(analysis: Analysis) -> Picture:
    title = "All decisions at either size"
    note = "Each closed trade's return times both sizes, whichever was held; compounded, by the time of the close."
    days, *grown = analysis.curves
    if len(days) < 2 or days[0] == days[-1]:
        return Picture(title, note, missing=("Fewer than two trades have closed.",))
    gains = {arm: 100.0 * (line - 1.0) for arm, line in zip(_TRACKS, grown, strict=True)}
    finding = ", ".join(f"{NAMES[arm]} {line[-1]:+.1f}%" for arm, line in gains.items()) + "."
    charts = [
        lines_chart(
            [Series(NAMES[arm], days, line, STYLES[_TRACKS[arm]]) for arm, line in gains.items()],
            layout,
            name="growth",
            title=title,
            number="{:.3g}%",
            unit="gain since the start",
            description=finding,
        )
        for layout in _LAYOUTS
    ]
    return Picture(title, note, finding.replace("-", "−"), markup(charts))


def _chances(analysis: Analysis) -> Picture:
    title = "Why not the usual p value"
    note = (
        "Probability of as much or more without any difference. The always-valid one may be looked at every day; the "
        "usual one of Welch's t goes below its limit some day far more often than its limit says."
    )
    looks = [look for look in analysis.looks if look.naive_p is not None]
    if len(looks) < 2:
        return Picture(title, note, missing=(_too_few(analysis),))
    limit = 1.0 - analysis.design.level
    days = np.array([look.at_ns / DAY_NS for look in looks])
    valid = np.maximum([look.p for look in looks], _LEAST_P)
    naive = np.maximum([look.naive_p for look in looks if look.naive_p is not None], _LEAST_P)
    below = int(np.count_nonzero(naive < limit))
    often = f"below {limit:.2g} on {below} of {len(looks)} days"
    finding = f"Always valid, least so far: {_chance(looks[-1].p)}. Welch's was {often}."
    charts = [
        lines_chart(
            [
                Series("always valid", days, valid, STYLES[POLICY]),
                Series("Welch's t", days, naive, STYLES[BUY_AND_HOLD]),
            ],
            layout,
            name="chances",
            title=title,
            number="{:.3g}",
            log=True,
            limit=(limit, f"limit {limit:.2g}"),
            unit="p value, logarithmic",
            description=finding,
        )
        for layout in _LAYOUTS
    ]
    return Picture(title, note, finding, markup(charts))


def _chance(p: float) -> str:
    return "below 0.0001" if p < 0.0001 else f"{p:.2g}"


def _too_few(analysis: Analysis) -> str:
    return (
        f"There is nothing to draw before two days on which each arm has {analysis.design.least_units:,} units "
        "with an outcome."
    )
