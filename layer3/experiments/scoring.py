"""One point of the search space: trained on the training part, scored on the validation part, per seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np

from layer3 import trials, workflow
from layer3.agent.bars import Bars
from layer3.agent.search import to_settings
from layer3.backtest.comparison import MEASURES, Reference
from layer3.backtest.holdout import REFERENCES, decider, walk, walk_in_full
from layer3.version import source_sha256

__all__ = ["OBJECTIVE", "Result", "Scores", "note", "references", "train_and_score"]

#: What a search maximises: the mean over seeds of what PPO itself maximises, on bars that it never saw.
OBJECTIVE: Final = "reward"

#: Each measure's values on the validation part, one per seed.
Scores = dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Result:
    """What one setting came to on the validation part: its scores, and the returns per bar (bars, seeds)."""

    scores: Scores
    returns: trials.Returns


def train_and_score(
    bars: Bars,
    values: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    steps: int,
    device: str = "cpu",
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """Train one policy per seed, together, and score each on the validation part; the test part is not looked at.

    ``values`` is a point of :data:`layer3.agent.search.SPACE`; ``on_progress`` hears the environment
    steps done so far, of all seeds together. Every policy is scored with the default environment.

    Raises
    ------
    TrainingError, ConfigurationError : as :func:`layer3.agent.population.train`
    EvaluationError : a policy lost everything on the validation part
    """
    # Whoever only reads scores need not wait for torch.
    from layer3.agent.population import train

    splits = workflow.splits_of(bars)
    trained = train(
        bars,
        seeds=seeds,
        folds=[splits.train],
        settings=[to_settings(values, steps)],
        device=device,
        workers=workers,
        on_progress=lambda report: on_progress(report.steps),
    )
    figures, returns = walk_in_full(bars, splits.validation, [decider(policy.tensors) for policy in trained])
    scores: Scores = {measure.key: [row[measure.key] for row in figures] for measure in MEASURES}
    return Result(scores, returns.astype(np.float32))


def references(bars: Bars) -> list[Reference]:
    """What the sizing chain alone, and no position at all, come to on the validation part."""
    figures = walk(bars, workflow.splits_of(bars).validation, list(REFERENCES.values()))
    return [Reference(label, row) for label, row in zip(REFERENCES, figures, strict=True)]


def note(
    store: str,
    data: trials.Data,
    bars: Bars,
    values: Mapping[str, Any],
    result: Result | None,
    *,
    seeds: Sequence[int],
    steps: int,
    now: datetime,
) -> str:
    """Write into the ledger of trials that this point was tried, and what it came to; the record's address."""
    return trials.record(
        store,
        kind="tune",
        data=data,
        seeds=seeds,
        folds=[{data.sha256: [workflow.splits_of(bars).train]}],
        settings=[asdict(to_settings(values, steps))],
        scores={f"validation_{name}": series for name, series in result.scores.items()} if result else {},
        code_version=source_sha256()[:12],
        now=now,
        returns=result.returns if result else None,
    )
