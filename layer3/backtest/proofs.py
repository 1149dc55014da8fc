"""The pictures of a tear sheet that show evidence: shuffled prices, costs, differences, attribution, walk-forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from layer3.backtest.charts import Series, lines_chart
from layer3.backtest.drawing import Floats
from layer3.backtest.figures import (
    Bar,
    Panel,
    Whisker,
    bars_chart,
    costs_chart,
    folds_chart,
    histogram_chart,
    intervals_chart,
)
from layer3.backtest.pictures import HALF_LINES, STYLES, Picture, markup, short_name
from layer3.backtest.record import KELLY_ONLY, POLICY, Costs, Difference, Evidence, Permutation, WalkForward
from layer3.backtest.tables import difference_words, format_number, name_of, told, why_missing

__all__ = ["attribution", "costs", "differences", "permutations", "walk_forward"]

_RATIO = "Sharpe ratio, annualised"
_CHAINS = {"on": "Chain on: the sizing chain's base size", "off": "Chain off: the signal's side at one size"}
_MULTIPLIERS = {
    "policy": "policy",
    "constant 1": "always 1",
    "constant mean": "always its mean",
    "random": "random",
    "off": "nothing held",
}
_KINDS = {"bars": "Single bars shuffled", "blocks": "Blocks shuffled"}


def permutations(evidence: Evidence) -> list[Picture]:
    """The histogram of each kind of permutation; one that is missing says why."""
    made = {kind: next((p for p in evidence.permutations if p.kind == kind and p.values), None) for kind in _KINDS}
    missing = why_missing(evidence, "permutations")
    return [
        _permutation(found) if found else Picture(_KINDS[kind], "", missing=missing) for kind, found in made.items()
    ]


def _permutation(found: Permutation) -> Picture:
    values = np.asarray(found.values)
    reached, paths = int((values >= found.real).sum()), len(values)
    p = format_number(found.p, "probability")
    real, middle, high = (
        format_number(float(v), "ratio") for v in (found.real, np.median(values), np.quantile(values, 0.95))
    )
    finding = f"{reached:,} of {paths:,} shuffled paths did at least as well as the real one ({real}): p = {p}."
    signals = "signals computed anew on it" if found.signals == "recomputed" else "signals kept at their bars"
    spread = f"Median {middle}, 95% of paths below {high}. Orange: paths that did as well."
    if found.kind == "bars":
        note = (
            f"The price path rebuilt from its bars in random order, {signals}, the same chain and policy run on it. "
            f"Shuffling destroys what can be known beforehand: an edge that survives it is an artefact. {spread}"
        )
    else:
        note = (
            f"The price path rebuilt from blocks of {found.block_bars} bars in random order, {signals}: what hangs "
            f"together within a block stays, so this is the harder test. {spread}"
        )
    svg = histogram_chart(
        values,
        found.real,
        (f"real {real}", f"p = {p}"),
        name=f"permutation-{found.kind}",
        title=f"{_KINDS[found.kind]}: Sharpe ratios of shuffled price paths, and the real one",
        description=finding,
        unit=_RATIO,
    )
    return Picture(_KINDS[found.kind], note, finding, markup([svg]))


def differences(evidence: Evidence) -> Picture:
    """The policy against each benchmark, as intervals of the difference."""
    rows = evidence.differences
    note = (
        "Sharpe ratio of the policy less that of the other on the same bars, by paired bootstrap. Better (blue, "
        "filled) where the whole interval is above 0; not told apart (orange, open) where it holds 0."
    )
    if not rows:
        return Picture("Against the benchmarks", "", missing=why_missing(evidence, "differences"))
    finding, missing = _ranking(rows), told(evidence, "differences")
    if all(row.sharpe.low is None for row in rows):
        return Picture("Against the benchmarks", note, finding, missing=(*missing, "None of them has an interval."))
    whiskers = [
        Whisker(
            short_name(row.against),
            row.sharpe.low,
            row.sharpe.estimate,
            row.sharpe.high,
            format_number(row.sharpe.estimate, "ratio", signed=True),
        )
        for row in rows
    ]
    level = format_number(rows[0].sharpe.level, "percent", digits=0)
    svg = intervals_chart(
        whiskers,
        name="differences",
        title="Difference of the policy's Sharpe ratio to each benchmark",
        description=finding,
        unit=f"difference of annualised Sharpe ratios, {level} interval",
    )
    return Picture("Against the benchmarks", note, finding, markup([svg]), missing)


def _ranking(rows: Sequence[Difference]) -> str:
    """What the intervals say, in one sentence."""
    words: dict[str, list[str]] = {}
    for row in rows:
        words.setdefault(difference_words(row), []).append(name_of(row.against))
    text = "; ".join(f"{verdict} {_listed(names)}" for verdict, names in words.items())
    return f"{text[:1].upper()}{text[1:]}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def costs(evidence: Evidence) -> Picture:
    """Sharpe ratio and return against the multiple of all costs."""
    found = evidence.costs
    if found is None or not found.lines:
        return Picture("What costs do to it", "", missing=why_missing(evidence, "costs"))
    finding = f"Net {format_number(found.net, 'percent', signed=True)} at the costs assumed. {break_even_words(found)}"
    lines = sorted(found.lines, key=lambda line: line.multiple)
    totals = [line.total_return for line in lines]
    note = "The record walked again with every cost (commission, slippage, funding) multiplied; 1× is what is assumed."
    if all(value is None for line in lines for value in (line.sharpe, line.total_return)):
        return Picture("What costs do to it", note, finding, missing=("At none of the costs is there a result.",))
    fine = max((abs(total) for total in totals if total is not None), default=1.0) < 0.1
    svg = costs_chart(
        np.array([line.multiple for line in lines]),
        (
            Panel(_RATIO, [line.sharpe for line in lines], "{:.2f}"),
            Panel("total return", totals, "{:.1%}" if fine else "{:.0%}"),
        ),
        found.break_even,
        name="costs",
        title="Sharpe ratio and total return against the multiple of all costs",
        description=finding,
    )
    return Picture("What costs do to it", note, finding, markup([svg]))


def break_even_words(found: Costs) -> str:
    """Where costs eat all of it, in a sentence."""
    if found.break_even is not None:
        return f"Nothing is left at {found.break_even:.3g} times these costs."
    if found.gross <= 0.0:
        return "It loses before any cost, so no multiple breaks even."
    return "No multiple of these costs up to 100 eats all of it."


def attribution(evidence: Evidence) -> Picture:
    """What the chain adds and what the policy adds, as bars."""
    rows = evidence.attribution
    if not rows:
        return Picture("What the policy adds", "", missing=why_missing(evidence, "attribution"))
    groups = []
    for chain, words in _CHAINS.items():
        bars = [
            Bar(
                _MULTIPLIERS[row.multiplier],
                row.sharpe,
                f"{format_number(row.sharpe, 'ratio')} ({format_number(row.total_return, 'percent', signed=True)})",
                (row.chain, row.multiplier) == ("on", "policy"),
            )
            for row in rows
            if row.chain == chain
        ]
        if bars:
            groups.append((words, bars))
    ratios = {row.multiplier: format_number(row.sharpe, "ratio") for row in rows if row.chain == "on"}
    said = [f"{_MULTIPLIERS[kind]}: {ratio}" for kind, ratio in ratios.items() if kind != "off"]
    finding = f"With the chain on the Sharpe ratio is, by multiplier, {', '.join(said)}." if said else ""
    svg = bars_chart(
        groups,
        name="attribution",
        title="Sharpe ratio with chain on and off, by what multiplies",
        description=finding,
        unit=_RATIO,
    )
    note = (
        "The same bars with something else in the policy's place: 1 (Kelly only), the policy's own mean, a random "
        "number, or nothing held. What the policy adds is its bar less the others'. In brackets: total return."
    )
    return Picture("What the policy adds", note, finding, markup([svg]))


def walk_forward(evidence: Evidence) -> list[Picture]:
    """The stitched record of the procedure, and how each fold and seed came out."""
    found = evidence.walk_forward
    if found is None:
        return [Picture("Walk-forward", "", missing=why_missing(evidence, "walk_forward"))]
    return [_stitched(found), _folds(found)]


def _stitched(found: WalkForward) -> Picture:
    own = f"{format_number(found.trust.sharpe, 'ratio')} ± {format_number(found.trust.standard_error, 'ratio')}"
    finding = f"{format_number(found.total_return, 'percent', signed=True)} in all, Sharpe ratio {own}"
    finding += f", largest fall {format_number(found.max_drawdown, 'percent')}."
    if found.versus_kelly:
        finding += f" It is {difference_words(found.versus_kelly)} Kelly only on the same bars."
    trained = "the months before it" if found.kind == "rolling" else "all that came before it"
    note = (
        f"A policy trained per fold on {trained} and tested on what followed, the mean of {len(found.seeds)} seeds "
        "acting; the pieces joined into one account. It judges the procedure that made this policy. Dotted verticals: "
        "folds."
    )
    lines = [
        Series(name_of(name), *_path(found.days, path), STYLES[name])
        for name, path in ((POLICY, found.equity), (KELLY_ONLY, found.kelly_equity))
        if path
    ]
    if not lines:
        return Picture("Stitched record", note, finding)
    svg = lines_chart(
        lines,
        replace(HALF_LINES, height=250),
        name="walk-forward",
        title="Stitched equity of the walk-forward, and Kelly only",
        number="{:.3g}×",
        cuts=[_day(fold.test_start) for fold in found.folds[1:]],
        unit="equity, multiple of the start",
        description=finding,
    )
    return Picture("Stitched record", note, finding, markup([svg]))


def _folds(found: WalkForward) -> Picture:
    means = [np.mean(known) for fold in found.folds if (known := [s for s in fold.sharpes if s is not None])]
    finding = f"{sum(mean > 0 for mean in means)} of {len(found.folds)} folds above 0 on average."
    if any(ratio is not None for ratio in found.seed_sharpes):
        finding += " Seeds over all folds: " + ", ".join(format_number(s, "ratio") for s in found.seed_sharpes) + "."
    note = "A dot per seed, a stroke at their mean. One fold is too short to prove anything; look at the spread."
    if not means:
        return Picture("Every fold and seed", note, finding, missing=("No fold has a Sharpe ratio.",))
    svg = folds_chart(
        [fold.sharpes for fold in found.folds],
        name="folds",
        title="Sharpe ratio of every fold and seed",
        description=finding,
        unit=_RATIO,
    )
    return Picture("Every fold and seed", note, finding, markup([svg]))


def _path(days: Sequence[int], values: Sequence[float]) -> tuple[Floats, Floats]:
    """From the start, which is 1, through the values at the ends of the days."""
    return np.r_[float(days[0]), np.asarray(days) + 1.0], np.r_[1.0, np.asarray(values)]


def _day(moment: str) -> float:
    return float(np.datetime64(moment[:19], "s").astype(np.int64)) / 86_400.0
