"""The gate's verdict on one record, and that of a plain "Sharpe ratio of at least 1" beside it.

The verdict is a conjunction, so it is settled as soon as one criterion fails. The evidence is gathered in
stages, the dear ones last, and no further once the answer is no: the same verdict as with all of it, for a
fraction of the time. Sections that the gate asks nothing of are not gathered. Everything else is the real
evaluation and the real gate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from bench.calibration.candidates import CHAIN, SYMBOL, Candidate, first, record_of
from bench.calibration.markets import YEAR
from layer3.backtest.engine import MIN_DECISIONS
from layer3.backtest.evidence import Effort, Subject, gather
from layer3.backtest.gate import GateConfig, WalkForwardLimits, judge
from layer3.backtest.record import KELLY_ONLY, POLICY, Evaluation, Evidence

__all__ = ["EFFORT", "GATE", "PLAIN_SHARPE", "STAGES", "Outcome", "outcomes"]

#: The default limits. A walk-forward would need 18 policies more for each market: not asked for here.
GATE: Final = GateConfig(walk_forward=WalkForwardLimits(required=False))
#: The fewest permuted paths that the gate takes, of each kind: as rarely wrong as with more, and half the time.
EFFORT: Final = Effort(permutations=GATE.permutation_paths)
PLAIN_SHARPE: Final = 1.0

#: Sections of the evidence, and the criteria that they settle, from cheap to dear. The first stage needs none.
STAGES: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    ((), ("sharpe", "max_drawdown", "trades")),
    (("trust",), ("probabilistic_sharpe", "deflated_sharpe", "track_record")),
    (("differences", "degeneracy"), ("versus_kelly", "versus_champion", "not_degenerate", "degeneracy_findings")),
    (("permutations",), ("permutation_p",)),
    (("leak",), ("no_leak",)),
)
_SECTIONS: Final = {entry.name for entry in fields(Evidence)} - {"walk_forward", "champion", "problems"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record of ``years``: ``failed`` names the criteria of the stage that settled it, ``sharpe``
    and ``kelly_sharpe`` are annualised."""

    years: float
    released: bool
    plain: bool
    failed: tuple[str, ...]
    sharpe: float | None
    kelly_sharpe: float | None
    trades: float
    permutation_p: float | None


def outcomes(candidate: Candidate, years: tuple[float, ...], seed: int) -> list[Outcome]:
    """The verdicts on the first so many ``years`` of the candidate's record, for each of ``years``."""
    whole = record_of(candidate)
    return [_outcome(candidate, first(whole, round(length * YEAR)), length, seed) for length in years]


def _outcome(candidate: Candidate, record: Evaluation, years: float, seed: int) -> Outcome:
    decisions = len(record.timestamps)
    if decisions < MIN_DECISIONS:
        raise ValueError(f"{years} years hold {decisions} decisions: the evaluation needs {MIN_DECISIONS}")
    subject = Subject(
        candles=candidate.market.frame,
        symbol=SYMBOL,
        bars=candidate.bars,
        window=range(candidate.start, candidate.start + decisions + 2),
        policy=candidate.policy,
        chain=CHAIN,
    )
    evidence, failed = Evidence(), ()
    for sections, names in STAGES:
        if sections:
            evidence = _merged(evidence, _gathered(subject, record, sections, seed), sections)
        verdict = judge(replace(record, evidence=evidence), GATE)
        failed = tuple(
            criterion.name for criterion in verdict.criteria if criterion.name in names and not criterion.passed
        )
        if failed:
            break
    ratio = record.metrics[POLICY]["sharpe"]
    p = max((made.p for made in evidence.permutations), default=None)
    return Outcome(
        years=years,
        released=verdict.passed,
        plain=ratio is not None and ratio >= PLAIN_SHARPE,
        failed=failed,
        sharpe=ratio,
        kelly_sharpe=record.metrics[KELLY_ONLY]["sharpe"],
        trades=float(record.metrics[POLICY]["trades"] or 0.0),
        permutation_p=p,
    )


def _gathered(subject: Subject, record: Evaluation, sections: tuple[str, ...], seed: int) -> Evidence:
    """Evidence with only these sections tried; each comes out as it does among all."""
    return gather(
        subject,
        record.tracks,
        trials=1,
        trials_variance=None,
        walk_forward=None,
        champion=None,
        seed=seed,
        effort=EFFORT,
        problems=dict.fromkeys(_SECTIONS - set(sections), "not gathered"),
    )


def _merged(so_far: Evidence, more: Evidence, sections: tuple[str, ...]) -> Evidence:
    problems = {name: why for name, why in more.problems.items() if name in sections}
    found = {name: getattr(more, name) for name in sections}
    return replace(so_far, **found, problems={**so_far.problems, **problems})
