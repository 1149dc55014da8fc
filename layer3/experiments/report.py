"""What a search found, in words, in a terminal's table and on a page: always with intervals, never one best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from layer3.agent.search import Values
from layer3.backtest.comparison import MEASURES, Comparison, Group, Reference, Row, in_words
from layer3.backtest.intervals import LEVEL, expected_maximum, t_interval
from layer3.backtest.tables import format_number
from layer3.experiments.scoring import OBJECTIVE, Scores

__all__ = ["SHOWN", "Scored", "comparison_of", "in_order", "selection_note", "terminal_table"]

#: Most settings that a page shows; the defaults are always among them.
SHOWN: Final = 30
_TERMINAL: Final = 6
_NAMES: Final = {"target_kl": "target KL", "gae_lambda": "GAE lambda"}


@dataclass(frozen=True, slots=True)
class Scored:
    """One setting that was trained: its name, its values, its scores."""

    label: str
    values: Values
    defaults: bool
    scores: Scores


def in_order(scored: Sequence[Scored], most: int) -> list[Scored]:
    """At most ``most`` of them, highest mean first, the defaults among them wherever they stand."""
    ordered = sorted(scored, key=lambda one: -_mean(one.scores))
    kept = ordered[:most]
    if not any(one.defaults for one in kept):
        kept[most - 1 :] = [one for one in ordered if one.defaults][:1]
    return kept


def selection_note(scored: Sequence[Scored]) -> str:
    """How much of the first setting's lead luck alone would give it."""
    measure = MEASURES[0]
    intervals = [interval for one in scored if (interval := t_interval(one.scores[OBJECTIVE]))]
    if len(intervals) < 2:
        return "One setting alone: there is nothing that it could be better than."
    error = math.sqrt(fmean(interval.standard_error**2 for interval in intervals))
    luck = expected_maximum(len(intervals))
    means = [interval.mean for interval in intervals]
    lead, by_luck = (
        format_number(measure.scale * value, measure.kind) for value in (max(means) - fmean(means), luck * error)
    )
    return (
        f"The first of {len(intervals)} looks better than it is: were all equally good, the luckiest would still stand "
        f"{luck:.2f} standard errors, here {by_luck} % of equity per 1,000 bars, above the mean of all by its seeds "
        f"alone. The first stands {lead} above it. All were scored on the same bars, whose own luck comes on top."
    )


def comparison_of(
    scored: Sequence[Scored],
    references: Sequence[Reference],
    *,
    symbol: str,
    synthetic: bool,
    about: Sequence[str],
    trials: int,
    refused: int,
    context: Sequence[tuple[str, str]],
) -> Comparison:
    """The page of a search on the validation part of ``symbol``."""
    shown = in_order(scored, SHOWN)
    notes = [
        "Scored on the validation part alone; the test part was not looked at, and nothing was released.",
        selection_note(scored),
        "The reward is what training maximises, with the default risk aversion for every setting.",
    ]
    if refused:
        notes.append(f"{refused} more settings could not be trained and have no score.")
    ordered = (
        "By mean reward" + (f"; the first {len(shown)} of {len(scored)}" if len(shown) < len(scored) else "") + "."
    )
    rows = [Row(one.label, _described(one.values), one.scores) for one in shown]
    return Comparison(
        title=f"Search on {symbol}",
        about=about,
        synthetic=synthetic,
        notes=notes,
        groups=[Group("Settings", ordered, rows, references)],
        trials={symbol: trials},
        context=context,
    )


def terminal_table(scored: Sequence[Scored], references: Sequence[Reference]) -> str:
    """The first few settings and the defaults, each measure with its interval, and the references."""
    shown = MEASURES[:3]
    rows = [["", *(measure.label for measure in shown)]]
    rows += [
        [one.label, *(_cell(*in_words(measure, one.scores[measure.key])) for measure in shown)]
        for one in in_order(scored, _TERMINAL)
    ]
    rows += [[item.label, *(in_words(m, [item.values[m.key]] * 2)[0] for m in shown)] for item in references]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    unit = f"{MEASURES[0].unit}; means over seeds with their {format_number(LEVEL, 'percent', digits=0)} intervals"
    return "\n".join([f"Reward in {unit}", "", *(f"  {line}" for line in lines)])


def _cell(mean: str, reach: str) -> str:
    return f"{mean} ({reach})" if reach else mean


def _mean(scores: Mapping[str, Sequence[float | None]]) -> float:
    return fmean(value for value in scores[OBJECTIVE] if value is not None)


def _described(values: Values) -> str:
    parts = []
    for name, value in values.items():
        field = name.split(".")[1]
        parts.append(f"{_NAMES.get(field, field.replace('_', ' '))} {f'{value:,}' if value >= 100 else f'{value:.3g}'}")
    return ", ".join(parts)
