"""What is learned on some markets, judged on each: which policies, on which hours, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from layer3 import trials
from layer3.backtest.comparison import MEASURES, Comparison, Group, Reference, Row
from layer3.backtest.holdout import REFERENCES, Decide, Figures, walk
from layer3.backtest.intervals import LEVEL
from layer3.errors import EvaluationError
from layer3.experiments.calendar import Calendar
from layer3.experiments.market import Market, moment
from layer3.version import source_sha256

if TYPE_CHECKING:
    from layer3.agent.population import Settings

__all__ = ["Experiment", "Fold", "comparison_of", "folds_of", "note", "references_of", "rows_of"]

_PARTS: Final = ("validation", "test")
#: Which markets a policy was trained on.
Fold = frozenset[int]


@dataclass(frozen=True)
class Experiment:
    """Markets on one calendar, and the folds of them that policies are trained on."""

    markets: tuple[Market, ...]
    calendar: Calendar
    folds: tuple[Fold, ...]

    def names(self, fold: Fold) -> str:
        """The markets of a fold."""
        return ", ".join(self.markets[number].symbol for number in sorted(fold))

    def judged_on(self, number: int) -> list[tuple[Fold, str]]:
        """The folds whose policies are judged on market ``number``, each with what that shows."""
        everything = self.folds[0]
        return [
            (everything, "All markets together"),
            (everything - {number}, f"Never saw {self.markets[number].symbol}"),
            (frozenset({number}), "This market alone"),
        ]

    def windows(self, fold: Fold) -> list[range]:
        """The training part of each of the fold's markets, in rows of all markets' bars one after another."""
        part, bars = self.calendar.splits.train, len(self.calendar.bars[0])
        return [range(number * bars + part.start, number * bars + part.stop) for number in sorted(fold)]

    def own_rows(self, fold: Fold) -> dict[str, list[range]]:
        """The same by the sha256 of each market's own data, for the ledger."""
        part, offsets = self.calendar.splits.train, self.calendar.offsets
        return {
            self.markets[n].data.sha256: [range(offsets[n] + part.start, offsets[n] + part.stop)] for n in sorted(fold)
        }


def folds_of(markets: int) -> tuple[Fold, ...]:
    """All markets, then all but each, then each alone; with two markets the last are the same, and come once."""
    everything = frozenset(range(markets))
    others = [everything - {number} for number in range(markets)]
    alone = [frozenset({number}) for number in range(markets)]
    return tuple(dict.fromkeys([everything, *others, *alone]))


def _walk(experiment: Experiment, number: int, part: str, deciders: Sequence[Decide]) -> list[Figures]:
    try:
        return walk(experiment.calendar.bars[number], getattr(experiment.calendar.splits, part), deciders)
    except EvaluationError as error:
        raise EvaluationError(f"{experiment.markets[number].symbol}, {part} part: {error}") from error


def references_of(experiment: Experiment, number: int) -> dict[str, list[Reference]]:
    """What the sizing chain alone, and no position, come to on market ``number``, by part."""
    return {
        part: [
            Reference(label, row)
            for label, row in zip(REFERENCES, _walk(experiment, number, part, list(REFERENCES.values())), strict=True)
        ]
        for part in _PARTS
    }


def rows_of(experiment: Experiment, number: int, deciders: Mapping[Fold, Sequence[Decide]]) -> dict[str, list[Row]]:
    """What each fold's policies come to on market ``number``, by part."""
    judged = experiment.judged_on(number)
    everyone = [decide for fold, _ in judged for decide in deciders[fold]]
    rows: dict[str, list[Row]] = {part: [] for part in _PARTS}
    for part in _PARTS:
        figures = iter(_walk(experiment, number, part, everyone))
        for fold, what in judged:
            own = [next(figures) for _ in deciders[fold]]
            values = {measure.key: [figure[measure.key] for figure in own] for measure in MEASURES}
            rows[part].append(Row(what, f"trained on {experiment.names(fold)}", values))
    return rows


def note(
    experiment: Experiment,
    number: int,
    rows: Mapping[str, Sequence[Row]],
    *,
    store: str,
    seeds: Sequence[int],
    settings: Settings,
    now: datetime,
) -> None:
    """Write into the ledger what was judged on market ``number``."""
    trials.record(
        store,
        kind="assets",
        data=experiment.markets[number].data,
        seeds=seeds,
        folds=[experiment.own_rows(fold) for fold, _ in experiment.judged_on(number)],
        settings=[asdict(settings)],
        scores={
            f"{part}_{measure.key}": [value for row in rows[part] for value in row.values[measure.key]]
            for part in _PARTS
            for measure in MEASURES
        },
        code_version=source_sha256()[:12],
        now=now,
    )


def comparison_of(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Sequence[Row]]],
    references: Sequence[Mapping[str, Sequence[Reference]]],
    *,
    seeds: int,
    steps: int,
    tried: Mapping[str, int],
) -> Comparison:
    """The page: one group for each market and part."""
    splits, bars = experiment.calendar.splits, experiment.calendar.bars[0]
    times = {
        part: f"{moment(bars, getattr(splits, part).start)} to {moment(bars, getattr(splits, part).stop - 1)} UTC"
        for part in ("train", *_PARTS)
    }
    groups = [
        Group(f"{market.symbol}, {part} part", times[part], rows[number][part], references[number][part])
        for number, market in enumerate(experiment.markets)
        for part in _PARTS
    ]
    intervals = sum(len(group.rows) for group in groups)
    symbols = ", ".join(market.symbol for market in experiment.markets)
    return Comparison(
        title="Learned on some markets, judged on each",
        about=[symbols, f"trained on {times['train']}", f"{steps:,} steps", f"{seeds} seeds"],
        synthetic=any(market.synthetic for market in experiment.markets),
        notes=[
            "All markets are cut at the same moments, with a week left out between the parts: nobody was trained on "
            "hours on which another market is judged.",
            "The test part was looked at, and nothing was chosen by it or released. Whoever chooses by this page "
            "counts the trainings below.",
            f"Of the {intervals} intervals of each measure about {(1.0 - LEVEL) * intervals:.0f} miss their aim.",
        ],
        groups=groups,
        trials=tried,
        context=[
            *((f"Data, {market.symbol}", str(market.info["source"])) for market in experiment.markets),
            *((f"Sha256, {market.symbol}", market.data.sha256) for market in experiment.markets),
            ("Code version", source_sha256()[:12]),
        ],
    )
