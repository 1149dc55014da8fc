"""The verdict in plain words, for a terminal: the outcome, what failed and what would change it, what held, on what."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from layer3.backtest.limits import GateConfig
from layer3.backtest.record import Criterion
from layer3.backtest.tables import MISSING, context_rows, criterion_rows, plain

__all__ = ["clean", "explain_verdict", "wrapped"]

#: What would change the answer of a criterion that was computed and failed.
_REMEDIES: Final[Mapping[str, str]] = {
    "sharpe": "a policy that earns more for the risk it takes; more of the same record only measures it better",
    "probabilistic_sharpe": "a longer record at this ratio, or a higher ratio",
    "deflated_sharpe": "a longer record at this ratio. What was tried stays counted: trying more raises the bar",
    "max_drawdown": "smaller sizes, in the policy or in the sizing chain",
    "trades": "a longer record, or a chain that trades more often",
    "permutation_p": "an edge that lies in the order of prices: what is earned on shuffled prices too was not foreseen",
    "versus_kelly": "a policy that adds to what the sizing chain does alone; a longer record narrows the interval",
    "kelly_margin": "a longer record, which narrows the interval, or a policy that earns more",
    "less_risk": "a policy that holds less when markets are wild, or the claim that it earns more (claim: return)",
    "versus_champion": "a candidate that is at least as good as what serves, on the same bars",
    "champion_margin": "a longer record, which narrows the interval, or a better candidate",
    "not_degenerate": "a policy that has learned to decide: longer training, another seed, other settings",
    "degeneracy_findings": "a policy that has learned to decide: longer training, another seed, other settings",
    "no_leak": "the place where the future gets in, repaired; until then no other number here means anything",
    "walk_forward": "a procedure that finds an edge in most periods, not one candidate that does",
}
_UNKNOWN: Final = "that cause removed, and a new run; what cannot be computed counts as failed"
#: What was judged, by the names of an evaluation's context.
_JUDGED: Final = (
    "symbol",
    "source",
    "period",
    "training_period",
    "interval_seconds",
    "model_id",
    "seed",
    "trials",
    "data_sha256",
    "code_version",
)


def explain_verdict(verdict: Mapping[str, Any], context: Mapping[str, Any], width: int = 88) -> str:
    """Say a verdict (as :meth:`layer3.backtest.record.Verdict.to_json` writes it) in words.

    ``context`` says what was judged, as :class:`layer3.backtest.record.Evaluation` holds it, and ``trials``;
    what it lacks is left out. No line is longer than ``width`` (at least 40) columns, and nothing in the
    texts moves the cursor.

    Raises
    ------
    ValueError : the verdict is not one; the message says where
    """
    criteria = [_criterion(item) for item in verdict["criteria"]]
    rows = criterion_rows(criteria)
    failed = [(one, row) for one, row in zip(criteria, rows, strict=True) if not one.passed]
    held = [row for row in rows if row["passed"]]
    lines = wrapped(_outcome(bool(verdict["passed"]), len(failed), len(rows), verdict.get("override")), width)
    if context.get("synthetic"):
        lines += ["", *wrapped("SYNTHETIC market: these numbers say nothing about a real one.", width)]
    if failed:
        lines += ["", "What failed"]
    for one, row in failed:
        lines += ["", *wrapped(f"{row['label']}: {row['value']}, asked {row['comparison']} {row['limit']}", width, 2)]
        lines += wrapped(row["sentence"], width, 4)
        remedy = _remedy(one)
        lines += wrapped(f"What would change it: {remedy}.", width, 4) if remedy else []
    if held:
        lines += ["", "What held", ""]
    for row in held:
        lines += wrapped(
            f"{row['label']}: {row['value']} {row['comparison']} {row['limit']}. {row['sentence']}", width, 2
        )
    lines += ["", *_judged(context, width), *_asked(verdict.get("limits"), width)]
    return "\n".join(lines).rstrip() + "\n"


def clean(text: str) -> str:
    """The text without anything that a terminal would obey, and without line ends."""
    return "".join(character if character.isprintable() else " " for character in text)


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """The text in lines of at most ``width`` columns, ``indent`` of them blank; lines after the first stand deeper."""
    margin = " " * indent
    deeper = margin + "  " * bool(indent)
    return textwrap.wrap(
        clean(text), max(width, 40), initial_indent=margin, subsequent_indent=deeper, break_on_hyphens=False
    )


def _criterion(item: Mapping[str, Any]) -> Criterion:
    if item["comparison"] not in (">=", "<="):
        raise ValueError(f"the verdict compares by {item['comparison']!r}, expected '>=' or '<='")
    try:
        value, limit = (None if item[name] is None else float(item[name]) for name in ("value", "limit"))
    except OverflowError as error:
        raise ValueError(f"value or limit of {item['name']!r} is beyond any number") from error
    if limit is None:
        raise ValueError(f"the criterion {item['name']!r} has no limit")
    return Criterion(item["name"], value, item["comparison"], limit, bool(item["passed"]), item["sentence"])


def _outcome(passed: bool, failed: int, criteria: int, override: Any) -> str:
    if not criteria:
        return f"{'PASSED' if passed else 'REJECTED'} without a single criterion: do not trust this record."
    share = f"{failed} of {criteria} criteria failed" if criteria > 1 else "the one criterion failed"
    if isinstance(override, Mapping) and passed:
        who, why = (plain(override.get(name)) for name in ("name", "reason"))
        return f"OVERRIDDEN: {share}, and {who} released it all the same. The reason given: {why}"
    if passed and failed:
        return f"PASSED, although {share} and nobody is named who overrode it: do not trust this record."
    if passed:
        return f"PASSED: all {criteria} criteria hold." if criteria > 1 else "PASSED: the criterion holds."
    return f"REJECTED: {share}." if failed else "REJECTED, although no criterion failed: do not trust this record."


def _remedy(criterion: Criterion) -> str:
    if criterion.value is None:
        return _UNKNOWN
    if criterion.name == "track_record":
        more = max(math.ceil(criterion.limit - criterion.value), 1)
        return f"{more:,} more {'month' if more == 1 else 'months'} of record at this ratio"
    return _REMEDIES.get(criterion.name, "")


def _judged(context: Mapping[str, Any], width: int) -> list[str]:
    known = {key: context[key] for key in _JUDGED if context.get(key) is not None}
    rows = [(label, text) for label, text in context_rows(known) if text != MISSING]
    if not rows:
        return []
    column = max(len(label) for label, _ in rows) + 2
    lines = [line for label, text in rows for line in _aligned(label, text, column, width)]
    return ["What was judged", "", *lines]


def _aligned(label: str, text: str, column: int, width: int) -> list[str]:
    lines = textwrap.wrap(clean(text), max(width, 40) - column - 2) or [""]
    return [f"  {clean(name):<{column}}{line}" for name, line in zip([label, *[""] * len(lines)], lines, strict=False)]


def _asked(limits: Any, width: int) -> list[str]:
    """The limits that are not the defaults: a reader must see where less was asked."""
    if not isinstance(limits, Mapping) or not limits:
        return []
    usual = dict(_flat(dataclasses.asdict(GateConfig())))
    other = [
        f"{name} {plain(value)} (default {plain(usual.get(name))})"
        for name, value in _flat(limits)
        if value != usual.get(name)
    ]
    if not other:
        return ["", *wrapped("Every limit is the default.", width)]
    return ["", *wrapped(f"Limits that are not the defaults: {', '.join(other)}.", width)]


def _flat(limits: Mapping[str, Any], outer: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in limits.items():
        if isinstance(value, Mapping):
            yield from _flat(value, [*outer, name])
        else:
            yield ".".join([*outer, name]), value
