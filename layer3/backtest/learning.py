"""The page of training curves: health in words, then what every policy went through, then where it ended.

One HTML file like the tear sheet: no script, no external resource, the same bytes for the same
input, below 500 kB. ``jinja2`` and ``matplotlib`` are imported when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from layer3.agent import health
from layer3.agent.log import duration
from layer3.backtest import tables
from layer3.backtest.charts import Layout, Series, Style, average, steps_chart
from layer3.backtest.report import template_environment
from layer3.contract import MULTIPLIER_HIGH, MULTIPLIER_LOW
from layer3.errors import EvaluationError

if TYPE_CHECKING:
    from layer3.agent.ppo import Progress

__all__ = ["MOST_POLICIES", "TrainingContext", "render_curves", "render_untrained"]

Floats = NDArray[np.float64]

#: Policies on one page; with more, neither the lines nor the bytes stay readable.
MOST_POLICIES: Final = 256
#: Points of all lines of one chart together, which keeps the page within its budget.
_POINTS: Final = 3_000
#: Lines up to which each has its name at its end.
_NAMED: Final = 6
#: Below it, explained variance says no more than that the critic is wrong, and would flatten the rest of the chart.
_EXPLAINED_SHOWN: Final = -1.0

#: Room in front of and for each letter of a label beside a chart.
_LEAD, _LETTER = 25, 6.8
_MAIN: Final = Style("#0b4a8f", "-", 1.8)
_THIN: Final = Style("#8fabd0", "-", 0.8)


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What was trained: on which data, from which seeds, where, and how.

    ``model_id`` is what came of it, empty where nothing did; ``settings`` are shown as they are,
    mappings in it one row each.
    """

    symbol: str
    source: str
    synthetic: bool
    seeds: tuple[int, ...]
    device: str
    model_id: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Picture:
    """One chart: a figure of ``Progress``, title, sentence below it, heights that must be visible, limit of health."""

    figure: str
    title: str
    note: str
    bounds: tuple[float, ...] = ()
    limit: float | None = None


_PICTURES: Final = (
    _Picture("reward", "Reward", "Mean per step, in percent of equity."),
    _Picture("sharpe", "Sharpe ratio", "Annualised, of the windows of each update, while exploring."),
    _Picture(
        "multiplier_mean",
        "Action spread",
        "Multipliers tried: mean, shaded one standard deviation around it.",
        (MULTIPLIER_LOW, MULTIPLIER_HIGH),
    ),
    _Picture(
        "entropy",
        "Entropy",
        "Of the action's distribution, in nats; 0.69 is any multiplier alike.",
        (0.0,),
        health.ENTROPY_LOW,
    ),
    _Picture("kl", "KL divergence", "How far each update moved the policy.", (0.0,), health.KL_HIGH),
    _Picture("clip_fraction", "Clip fraction", "Share of samples beyond the clip range.", (0.0,), health.CLIP_HIGH),
    _Picture("explained_variance", "Explained variance", "Of the returns, by the critic; 1 is all of it.", (0.0,)),
    _Picture("gradient", "Gradient", "Norm of the actor's gradient before it is cut.", (0.0,)),
)


def render_untrained(context: TrainingContext, refusal: str) -> str:
    """The page in the curves' place where nothing was trained, because of ``refusal``."""
    page = template_environment().get_template("untrained.html.j2")
    return page.render(symbol=context.symbol, synthetic=context.synthetic, source=context.source, refusal=refusal)


def render_curves(context: TrainingContext, curves: Mapping[str, Sequence[Progress]]) -> str:
    """Render the training of one or several policies, {name: curves}, as one self-contained HTML page.

    Raises
    ------
    EvaluationError : there is no policy, or more than ``MOST_POLICIES``; one has no curves, or a
        number in them is not finite
    """
    _check(curves)
    found = {name: health.warnings_of(policy) for name, policy in curves.items()}
    steps = sorted({policy[-1].steps for policy in curves.values()})
    seconds = max(policy[-1].seconds for policy in curves.values())
    trained = f"{steps[0]:,} steps" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"
    each = f"{len(curves)} policies, {trained} each" if len(curves) > 1 else trained
    return (
        template_environment()
        .get_template("learning.html.j2")
        .render(
            symbol=context.symbol,
            synthetic=context.synthetic,
            about=[context.source, each, f"{duration(seconds)} on {context.device}"],
            policies=len(curves),
            warnings=health.summary(found),
            sick=sum(bool(warnings) for warnings in found.values()),
            judged=min(map(len, curves.values())) >= health.TREND_UPDATES,
            span=_span(max(map(len, curves.values()))),
            pictures=[(p.title, _note(p, curves), svg) for p, svg in zip(_PICTURES, _charts(curves), strict=True)],
            columns=["Reward", "Sharpe", "Multiplier", "Entropy", "KL", "Clipped", "Explained", "Gradient"],
            rows=_rows(curves),
            context=[
                ("Market", tables.plain(context.symbol)),
                ("Data", tables.plain(context.source)),
                ("Seeds", tables.plain(context.seeds)),
                ("Steps", each),
                ("Device", tables.plain(context.device)),
                ("Model", tables.plain(context.model_id)),
                *((_words(name), tables.plain(value)) for name, value in context.settings.items()),
            ],
        )
    )


def _check(curves: Mapping[str, Sequence[Progress]]) -> None:
    if not 1 <= len(curves) <= MOST_POLICIES:
        raise EvaluationError(
            f"a page shows the curves of 1 to {MOST_POLICIES} policies, got {len(curves)}: "
            "make one page per setting or fold"
        )
    for name, policy in curves.items():
        if not policy:
            raise EvaluationError(f"{name} has no curves: it was not trained for a single update")
        for picture in (*_PICTURES, _Picture("multiplier_sd", "", "")):
            values = _values(policy, picture.figure)
            if not np.isfinite(values).all():
                at = int(np.flatnonzero(~np.isfinite(values))[0])
                raise EvaluationError(f"{name}: {picture.figure} is {values[at]} after {policy[at].steps:,} steps")


def _values(policy: Sequence[Progress], figure: str) -> Floats:
    return np.array([getattr(progress, figure) for progress in policy], dtype=np.float64)


def _span(updates: int) -> int:
    """Updates behind one point of the bold line of a single policy."""
    return max(1, updates // 30)


def _note(picture: _Picture, curves: Mapping[str, Sequence[Progress]]) -> str:
    lowest = min(_values(policy, picture.figure).min() for policy in curves.values())
    cut = picture.figure == "explained_variance" and lowest < _EXPLAINED_SHOWN
    return f"{picture.note} Below {_EXPLAINED_SHOWN:g} drawn at {_EXPLAINED_SHOWN:g}." if cut else picture.note


def _charts(curves: Mapping[str, Sequence[Progress]]) -> list[Any]:
    from markupsafe import Markup

    names = [_fitting(name) if 1 < len(curves) <= _NAMED else "" for name in curves]
    main = "median" if len(curves) > 1 else ""
    limits = [_crossed(picture, curves) for picture in _PICTURES]
    longest = max(len(label) for label in (*names, main, *(limit[1] for limit in limits if limit)))
    layout = Layout("curve", 400, 190, 52, round(_LEAD + _LETTER * longest) if longest else 14, 4)
    drawn = []
    for picture, limit in zip(_PICTURES, limits, strict=True):
        shown = [_shown(policy, picture.figure) for policy in curves.values()]
        spread = None
        if picture.figure == "multiplier_mean":
            _, spread = _emphasised([_shown(policy, "multiplier_sd") for policy in curves.values()])
        svg = steps_chart(
            [Series(name, *line, _THIN) for name, line in zip(names, shown, strict=True)],
            Series(main, *_emphasised(shown), _MAIN),
            layout,
            name=picture.figure,
            title=f"{picture.title} over the steps of training",
            columns=max(2, min(layout.columns, _POINTS // (2 * len(curves)))),
            spread=spread,
            bounds=picture.bounds,
            limit=limit,
        )
        # Our own drawing: the names of policies are the only text in it from outside, escaped by matplotlib.
        drawn.append(Markup(svg))
    return drawn


def _crossed(picture: _Picture, curves: Mapping[str, Sequence[Progress]]) -> tuple[float, str] | None:
    """The limit of health where some policy was on its wrong side, and the words for it."""
    if picture.limit is None:
        return None
    seen = np.concatenate([picture.bounds, *(_values(policy, picture.figure) for policy in curves.values())])
    if not seen.min() < picture.limit < seen.max():
        return None
    return picture.limit, f"limit {tables.format_number(picture.limit, 'number')}"


def _shown(policy: Sequence[Progress], figure: str) -> tuple[Floats, Floats]:
    steps, values = _values(policy, "steps"), _values(policy, figure)
    return steps, np.maximum(values, _EXPLAINED_SHOWN) if figure == "explained_variance" else values


def _emphasised(lines: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The median over several lines wherever one has a point; of a single line its average."""
    if len(lines) == 1:
        ((x, y),) = lines
        return average(x, _span(len(x))), average(y, _span(len(x)))
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    heights = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in lines])
    return grid, np.nanmedian(heights, axis=0)


def _fitting(name: str) -> str:
    """A name cut to the room beside a chart."""
    return name if len(name) <= 11 else f"{name[:10]}…"


def _rows(curves: Mapping[str, Sequence[Progress]]) -> list[tuple[str, list[str]]]:
    """The last update of every policy as (name, texts), their median first where there are several."""
    last = {name: {p.figure: _values(policy[-1:], p.figure)[0] for p in _PICTURES} for name, policy in curves.items()}
    for name, policy in curves.items():
        last[name]["multiplier_sd"] = policy[-1].multiplier_sd
    if len(curves) > 1:
        figures = next(iter(last.values()))
        last = {"Median": {f: np.median([row[f] for row in last.values()]) for f in figures}, **last}
    return [(name, _texts(row)) for name, row in last.items()]


def _texts(row: Mapping[str, float]) -> list[str]:
    number = tables.format_number
    return [
        number(row["reward"], "number", signed=True, digits=4),
        number(row["sharpe"], "ratio", signed=True),
        f"{number(row['multiplier_mean'], 'ratio')} ± {number(row['multiplier_sd'], 'ratio')}",
        number(row["entropy"], "ratio"),
        number(row["kl"], "number", digits=4),
        number(row["clip_fraction"], "percent"),
        number(row["explained_variance"], "ratio"),
        number(row["gradient"], "number", digits=3),
    ]


def _words(name: str) -> str:
    return name.upper() if len(name) <= 3 else name.replace("_", " ").capitalize()
