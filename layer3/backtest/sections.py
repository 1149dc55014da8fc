"""The tables of a tear sheet's evidence: every number with its name and, in plain words, what it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from layer3.backtest.proofs import break_even_words
from layer3.backtest.record import Degeneracy, Evidence, Fold, Interval, Leak, Overfitting, Slice, Trust
from layer3.backtest.tables import (
    difference_words,
    format_number,
    interval_text,
    name_of,
    told,
    why_missing,
)

__all__ = ["Row", "Section", "detail_sections"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: its name, what that is in plain words (or ""), one text per column; ``group`` above it."""

    label: str
    note: str
    texts: tuple[str, ...]
    group: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its heading; ``missing`` says why a part, or all of it, is not there."""

    title: str
    note: str
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    findings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    whole: bool = False
    """Takes the whole width."""
    cells: bool = False
    """Many short rows, several beside each other."""


def detail_sections(evidence: Evidence) -> list[Section]:
    """Every section of the evidence as a table, in the order in which a sceptic asks."""
    makers = (_trust, _differences, _choice, _costs, _other_costs, _leak, _degeneracy, _stability, _months, _folds)
    return [make(evidence) for make in makers]


#: Of one trust: name, what it is in plain words, how it is written.
_TRUST: Final[tuple[tuple[str, str, Callable[[Trust], str]], ...]] = (
    ("Sharpe ratio", "mean return over its spread, per year; cash is 0", lambda t: format_number(t.sharpe, "ratio")),
    (
        "Standard error",
        "how far off this estimate typically is, fat tails and autocorrelation allowed for",
        lambda t: format_number(t.standard_error, "ratio"),
    ),
    (
        "{level} interval",
        "where the true ratio lies, by stationary bootstrap",
        lambda t: interval_text(t.sharpe_interval, "ratio"),
    ),
    (
        "Probabilistic Sharpe ratio",
        "probability that the true ratio is above 0",
        lambda t: format_number(t.probabilistic, "probability"),
    ),
    ("Trials", "policies ever tried on this data: the best of many looks good by luck", lambda t: f"{t.trials:,}"),
    (
        "Luck alone would show",
        "the ratio expected of the best of so many trials without an edge",
        lambda t: format_number(t.trials_sharpe, "ratio"),
    ),
    (
        "Deflated Sharpe ratio",
        "probability that the true ratio is above what luck alone would show",
        lambda t: format_number(t.deflated, "probability"),
    ),
    ("Track record", "length of the record", lambda t: _length(t.years)),
    ("Minimum track record", "length at which this ratio is told from 0 at 95%", lambda t: _needed(t)),
    (
        "Maximum drawdown, {level} interval",
        "the largest fall that such returns bring in another order, by stationary bootstrap",
        lambda t: interval_text(t.drawdown_interval, "percent"),
    ),
)


def _trust(evidence: Evidence) -> Section:
    walk = evidence.walk_forward
    both = (("Held-out", evidence.trust), ("Walk-forward", walk.trust if walk else None))
    known = [(name, trust) for name, trust in both if trust]
    level = format_number(known[0][1].sharpe_interval.level, "percent", digits=0) if known else ""
    rows = tuple(
        Row(label.format(level=level), note, tuple(text(trust) for _, trust in known)) for label, note, text in _TRUST
    )
    missing = () if evidence.trust else why_missing(evidence, "trust")
    missing += () if walk else tuple(f"Walk-forward: {text}" for text in why_missing(evidence, "walk_forward"))
    note = "How far the Sharpe ratio can be trusted. All ratios are annualised."
    finding = (_verdict_on_length(evidence.trust),) if evidence.trust else ()
    return Section("Trust", note, ("", *(name for name, _ in known)), rows if known else (), finding, missing)


def _length(years: float) -> str:
    return f"{12.0 * years:.1f} months" if years < 2.0 else f"{years:.1f} years"


def _needed(trust: Trust) -> str:
    return "no length would do" if trust.years_needed is None else _length(trust.years_needed)


def _verdict_on_length(trust: Trust) -> str:
    if trust.years_needed is None:
        return "No length of record would do: the ratio is not above 0, or it could not be computed."
    months = math.ceil(12.0 * (trust.years_needed - trust.years) - 1e-9)
    if months <= 0:
        return "The record is long enough for its Sharpe ratio to be told from 0 at 95%."
    more = f"{months:,} more month{'' if months == 1 else 's'}"
    return f"This record would need {more} for its Sharpe ratio to prove anything."


def _differences(evidence: Evidence) -> Section:
    def row(label: str, interval: Interval, volatility: float | None, words: str) -> Row:
        estimate = format_number(interval.estimate, "ratio", signed=True)
        ends = interval_text(interval, "ratio", signed=True)
        return Row(label, words, (estimate, ends, format_number(volatility, "ratio")))

    rows = [
        row(name_of(d.against), d.sharpe, d.volatility, f"the policy is {difference_words(d)} it")
        for d in evidence.differences
    ]
    walk = evidence.walk_forward
    if walk and walk.versus_kelly:
        other = walk.versus_kelly
        rows.append(
            row(
                "Walk-forward: Kelly only",
                other.sharpe,
                other.volatility,
                f"the procedure is {difference_words(other)} it",
            )
        )
    note = (
        "Annualised Sharpe ratio of the policy less that of another on the same bars, by paired stationary bootstrap, "
        "which keeps what both share. Volatility: the policy's over the other's; below 1 it takes less risk."
    )
    if evidence.champion:
        note += f" The champion, what serves now, is {evidence.champion}."
    missing = told(evidence, "differences") if evidence.differences else why_missing(evidence, "differences")
    level = format_number(evidence.differences[0].sharpe.level, "percent", digits=0) if evidence.differences else ""
    columns = ("Against", "Difference", f"{level} interval".strip(), "Volatility")
    return Section("Differences", note, columns, tuple(rows), missing=missing + told(evidence, "champion"))


def _choice(evidence: Evidence) -> Section:
    rows: list[Row] = []
    missing: tuple[str, ...] = ()
    found = evidence.superiority
    if found:
        names = ", ".join(name_of(name) for name in found.benchmarks)
        p = tuple(format_number(value, "probability") for value in (found.consistent, found.lower, found.upper))
        note = (
            'p value of Hansen\'s test of "it earns no more than the best of them"; in brackets its lower and upper '
            "bound. Money alone, whatever the risk"
        )
        rows.append(Row(f"Superiority to {names}", note, (f"{p[0]} ({p[1]} to {p[2]})",)))
    else:
        missing += tuple(f"Superiority: {text}" for text in why_missing(evidence, "superiority"))
    walk = evidence.walk_forward
    if evidence.overfitting:
        rows.append(_overfitting("what was tried", "on the validation part", evidence.overfitting))
    else:
        few = "it takes two sets tried on these data that differ, with their returns on record: try more than one."
        missing += tuple(f"Overfitting: {text}" for text in told(evidence, "overfitting") or (few,))
    if walk and walk.overfitting:
        rows.append(_overfitting("the walk-forward's seeds", "of its stitched record", walk.overfitting))
    elif walk:
        missing += ("Overfitting of seeds: it takes two of the walk-forward that differ, over enough bars.",)
    about = "Whether the lead is luck, and whether what is best in one part of the data is best in another."
    return Section("Luck of the choice", about, ("", ""), tuple(rows), missing=missing)


def _overfitting(what: str, where: str, found: Overfitting) -> Row:
    note = (
        f"share of {found.blocks}-block splits {where} in which the best of {found.sets} sets in one half is not above "
        "the middle in the other; 0.5 is pure luck"
    )
    return Row(f"Probability of backtest overfitting, {what}", note, (format_number(found.probability, "probability"),))


def _costs(evidence: Evidence) -> Section:
    found = evidence.costs
    if not found:
        return Section("Costs told apart", "", missing=why_missing(evidence, "costs"))

    def row(label: str, note: str, value: float) -> Row:
        return Row(label, note, (format_number(value, "percent", signed=True, digits=2),))

    rows = [
        row("Gross", "what the positions earned", found.gross),
        row("Commission", "paid to the exchange", -found.commission),
        row("Slippage", "filled worse than the price", -found.slippage),
        row("Funding", "paid for holding; received where positive", -found.funding),
        row("Net", "what is left", found.net),
    ]
    note = "Where the money went, in percent of the starting capital."
    return Section("Costs told apart", note, ("", ""), tuple(rows), missing=told(evidence, "costs"))


def _other_costs(evidence: Evidence) -> Section:
    found = evidence.costs
    if not found:
        return Section("At other costs", "", missing=why_missing(evidence, "costs"))
    rows = (
        Row(
            f"{line.multiple:g}× all costs",
            "",
            (format_number(line.total_return, "percent", signed=True), format_number(line.sharpe, "ratio")),
        )
        for line in found.lines
    )
    columns = ("", "Total return", "Sharpe ratio")
    note = "The record walked again with commission, slippage and funding multiplied."
    return Section("At other costs", note, columns, tuple(rows), (break_even_words(found),))


def _leak(evidence: Evidence) -> Section:
    found: Leak | None = evidence.leak
    note = "Everything computed again on data that end earlier: what differs has used the future."
    if not found:
        return Section("Leaks of the future", note, missing=why_missing(evidence, "leak"))
    same = "Nothing differs." if not found.differs else f"Different, so it used the future: {', '.join(found.differs)}."
    rows = (
        Row("Compared", ", ".join(found.compared), (f"{len(found.compared):,}",)),
        Row("Places cut off", f"after bar {', '.join(f'{cut:,}' for cut in found.cuts)}", (f"{len(found.cuts):,}",)),
        Row("Not identical", "", (f"{len(found.differs):,}",)),
    )
    return Section("Leaks of the future", note, ("", ""), rows, (same,), told(evidence, "leak"))


def _degeneracy(evidence: Evidence) -> Section:
    found: Degeneracy | None = evidence.degeneracy
    note = "Whether the policy decides anything, where the chain holds something. Multipliers lie in [0, 2]."
    if not found:
        return Section("Degeneracy", note, missing=why_missing(evidence, "degeneracy"))
    rows = (
        Row("Decisions", "bars at which the chain holds something", (f"{found.decisions:,}",)),
        Row("Mean multiplier", "", (format_number(found.mean, "ratio"),)),
        Row("Spread", "standard deviation of the multiplier; 0 is a constant", (format_number(found.spread, "ratio"),)),
        Row("At the lower bound", "share of decisions within 0.02 of 0", (format_number(found.at_low, "percent"),)),
        Row("At the upper bound", "share of decisions within 0.02 of 2", (format_number(found.at_high, "percent"),)),
        Row("Members", "policies whose mean acts, one per seed", (f"{found.members:,}",)),
        Row(
            "Agreement",
            "mean correlation of the members' multipliers; 1 is one policy several times, 0 is none learned the same",
            (format_number(found.agreement, "ratio"),),
        ),
    )
    findings = found.findings or ("Nothing found: its decisions vary and are its own.",)
    return Section("Degeneracy", note, ("", ""), rows, findings, told(evidence, "degeneracy"))


def _stability(evidence: Evidence) -> Section:
    found = evidence.stability
    note = "The record cut in several ways: an edge that lives in one place only is fragile."
    if not found:
        return Section("Stability", note, missing=why_missing(evidence, "stability"))
    rows: list[Row] = []
    for words, slices in (("By regime", found.regimes), ("By direction held", found.directions)):
        rows += [Row(words, "", (), group=True), *_slices(slices)] if slices else []
    rows += [Row("By luck", "", (), group=True), *_slices((found.trimmed,))]
    columns = ("", "Bars", "Total return", "Sharpe ratio")
    return Section("Stability", note, columns, tuple(rows), missing=told(evidence, "stability"))


def _months(evidence: Evidence) -> Section:
    found = evidence.stability
    if not found:
        return Section("Sharpe ratio by month", "", missing=why_missing(evidence, "stability"))
    rows = tuple(
        Row(s.label, "", (format_number(s.total_return, "percent", signed=True), format_number(s.sharpe, "ratio")))
        for s in found.months
    )
    note = "Per calendar month (UTC) of the decision: total return, then the annualised Sharpe ratio of its bars."
    return Section("Sharpe ratio by month", note, ("Month", "Return", "Sharpe"), rows, whole=True, cells=True)


def _slices(slices: Iterable[Slice]) -> list[Row]:
    return [
        Row(
            f"{s.label[:1].upper()}{s.label[1:]}".replace("_", " "),
            "",
            (
                f"{s.bars:,}",
                format_number(s.total_return, "percent", signed=True),
                format_number(s.sharpe, "ratio"),
            ),
        )
        for s in slices
    ]


def _folds(evidence: Evidence) -> Section:
    found = evidence.walk_forward
    note = "Annualised Sharpe ratio of each seed's policy on the test bars of each fold."
    if not found:
        return Section("Folds of the walk-forward", note, missing=why_missing(evidence, "walk_forward"))
    rows = [
        Row(
            f"Fold {fold.number}",
            f"tested {fold.test_start[:10]} to {fold.test_end[:10]}, "
            f"trained {fold.train_start[:10]} to {fold.train_end[:10]}",
            _ratios(fold),
        )
        for fold in found.folds
    ]
    whole = tuple(format_number(ratio, "ratio") for ratio in found.seed_sharpes)
    rows += [Row("All folds, stitched", "each seed's own record", whole)] if whole else []
    columns = ("", *(f"Seed {seed}" for seed in found.seeds))
    missing = told(evidence, "walk_forward")
    return Section("Folds of the walk-forward", note, columns, tuple(rows), missing=missing, whole=True)


def _ratios(fold: Fold) -> tuple[str, ...]:
    return tuple(format_number(ratio, "ratio") for ratio in fold.sharpes)
