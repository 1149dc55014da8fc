"""What a search found, in words, in a terminal's table and on a page: always with intervals, never one best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from layer3 import workflow
from layer3.agent.search import SPACE, Values
from layer3.backtest.comparison import MEASURES, Comparison, Group, Reference, Row, in_words
from layer3.backtest.intervals import LEVEL, expected_maximum, t_interval
from layer3.backtest.tables import format_number
from layer3.errors import TrainingError
from layer3.experiments.market import Market, moment
from layer3.experiments.scoring import OBJECTIVE, Scores
from layer3.version import source_sha256

__all__ = [
    "SHOWN",
    "SHOWN_IN_TERMINAL",
    "TABLE_UNITS",
    "Scored",
    "comparison_of",
    "in_order",
    "rows_of",
    "scored_of",
    "selection_note",
    "terminal_table",
    "validation_period",
]

#: Most settings that a page shows; the defaults are always among them.
SHOWN: Final = 30
#: Most settings that a terminal's table shows.
SHOWN_IN_TERMINAL: Final = 6
#: What the tables' numbers are.
TABLE_UNITS: Final = f"{MEASURES[0].label} in {MEASURES[0].unit}; means over seeds with their {LEVEL:.0%} intervals"
_NAMES: Final = {"target_kl": "target KL", "gae_lambda": "GAE lambda"}


@dataclass(frozen=True, slots=True)
class Scored:
    """One setting that was trained: its name, its values, its scores."""

    label: str
    values: Values
    defaults: bool
    scores: Scores


def scored_of(results: Sequence[Mapping[str, Any]]) -> list[Scored]:
    """What has a score among a pipeline's ``results``: values, scores and refusal of each, the defaults first.

    Raises
    ------
    TrainingError : the defaults have none
    """
    if results[0]["refusal"]:
        raise TrainingError(f"the default settings cannot be trained here: {results[0]['refusal']}")
    return [
        Scored(f"Trial {number}" if number else "Defaults", dict(result["values"]), number == 0, dict(result["scores"]))
        for number, result in enumerate(results)
        if not result["refusal"]
    ]


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


def validation_period(market: Market) -> str:
    """The validation part's first and last bar, for readers."""
    part = workflow.splits_of(market.bars).validation
    return f"{moment(market.bars, part.start)} to {moment(market.bars, part.stop - 1)} UTC"


def comparison_of(
    market: Market,
    scored: Sequence[Scored],
    measured: Sequence[Reference],
    *,
    seeds: int,
    steps: int,
    trials: int,
    refused: int,
    name: str,
) -> Comparison:
    """The page of a search called ``name`` on the validation part of ``market``.

    ``measured`` are the references, ``trials`` what the ledger has counted, ``refused`` settings that
    could not be trained.
    """
    shown = in_order(scored, SHOWN)
    notes = [
        "Scored on the validation part alone; the test part was not looked at, and nothing was released.",
        selection_note(scored),
        "The reward is what training maximises, with the default risk aversion for every setting.",
    ]
    if refused:
        notes.append(f"{refused} more settings could not be trained and have no score.")
    some = f"; the first {len(shown)} of {len(scored)}" if len(shown) < len(scored) else ""
    rows = rows_of(shown)
    return Comparison(
        title=f"Search on {market.symbol}",
        about=[f"validation part, {validation_period(market)}", f"{steps:,} steps", f"{seeds} seeds"],
        synthetic=market.synthetic,
        notes=notes,
        groups=[Group("Settings", f"By mean reward{some}.", rows, measured)],
        trials={market.symbol: trials},
        context=[
            ("Data", str(market.info["source"])),
            ("Data sha256", market.data.sha256),
            ("Tactical signals", str(market.info["signals"])),
            ("Code version", source_sha256()[:12]),
            ("Search", name),
        ],
    )


def rows_of(scored: Sequence[Scored]) -> list[Row]:
    """Settings as rows of a comparison."""
    return [Row(one.label, _described(one.values), one.scores) for one in scored]


def terminal_table(rows: Sequence[Row], measured: Sequence[Reference]) -> str:
    """Rows with the first three measures, each with its interval, and the references."""
    shown = MEASURES[:3]
    cells = [["", *(measure.label for measure in shown)]]
    cells += [[row.label, *(_cell(*in_words(m, row.values[m.key])) for m in shown)] for row in rows]
    # What has no seeds is its own mean.
    cells += [[item.label, *(in_words(m, [item.values[m.key]] * 2)[0] for m in shown)] for item in measured]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(mean: str, reach: str) -> str:
    return f"{mean} ({reach})" if reach else mean


def _mean(scores: Mapping[str, Sequence[float | None]]) -> float:
    return fmean(value for value in scores[OBJECTIVE] if value is not None)


def _described(values: Values) -> str:
    parts = []
    # A pipeline brings them in an order of its own, and whole numbers as floats.
    for entry in SPACE:
        field, value = entry.name.split(".")[1], entry.read(values[entry.name])
        parts.append(f"{_NAMES.get(field, field.replace('_', ' '))} {f'{value:,}' if value >= 100 else f'{value:.3g}'}")
    return ", ".join(parts)
