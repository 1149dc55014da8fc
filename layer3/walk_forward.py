"""The walk-forward's training as a step over files: some of its folds, all their seeds together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer3 import storage, trials
from layer3.agent.bars import Bars, load_bars
from layer3.backtest.folds import EMBARGO_HOURS, FoldRange, Kind, plan
from layer3.backtest.walk_forward import FoldSet, save_folds
from layer3.errors import ConfigurationError, EvaluationError, NothingToLearnError
from layer3.market.features import bars_of
from layer3.market.splits import PURGE_HOURS
from layer3.version import source_sha256
from layer3.workflow import MAX_MEMBERS, checkpoint_address

if TYPE_CHECKING:
    from layer3.agent.population import Report, Settings

__all__ = ["folds_of", "record_folds", "train_folds"]


def folds_of(bars: Bars, folds: int, kind: Kind) -> tuple[FoldRange, ...]:
    """The ``folds`` folds of a history, a week purged and a day of embargo before each test piece."""
    hours = (PURGE_HOURS, EMBARGO_HOURS)
    purge, embargo = (bars_of(span, bars.interval_seconds) for span in hours)
    return plan(len(bars), folds=folds, kind=kind, purge=purge, embargo=embargo)


def train_folds(
    features_path: Path,
    path: Path,
    *,
    group: Sequence[int],
    folds: int,
    kind: Kind,
    seeds: Sequence[int],
    steps: int,
    store: str,
    device: str = "cpu",
    now: datetime | None = None,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> FoldSet:
    """Train the folds numbered ``group`` of a walk-forward of ``folds`` with every seed, and write them to ``path``.

    What cannot be trained (too short a history, a constant price, a chain that holds nothing) is no error here:
    the file says why, and so will the verdict.

    Parameters
    ----------
    group : may be empty, where no walk-forward is asked for
    steps : environment steps of each policy
    store : folder or ``gs://`` address of ``checkpoints/`` and ``trials/``, as :func:`layer3.workflow.fit`

    Raises
    ------
    TrainingError : the training did not end (a full disk, a lost worker, numbers that are not finite), which says
        nothing of the data: run again, it goes on from its checkpoint
    """
    if not 1 <= len(seeds) <= MAX_MEMBERS:
        raise ConfigurationError(f"fold_seeds is {len(seeds)}, expected 1 to {MAX_MEMBERS}")
    bars, info = load_bars(features_path)
    made = FoldSet(kind, {}, tuple(seeds), (), ())
    if group:
        try:
            made = _trained(bars, info, group, folds, kind, seeds, steps, store, device, on_progress)
        except (EvaluationError, NothingToLearnError) as error:
            made = FoldSet(kind, {}, tuple(seeds), (), (), f"no walk-forward: {error}")
        else:
            record_folds(store, info, made, {}, now or datetime.now(UTC))
    save_folds(path, made)
    return made


def _trained(
    bars: Bars,
    info: Mapping[str, Any],
    group: Sequence[int],
    folds: int,
    kind: Kind,
    seeds: Sequence[int],
    steps: int,
    store: str,
    device: str,
    on_progress: Callable[[Report], None],
) -> FoldSet:
    # Only training needs torch, whose import takes longer than most of the other steps run.
    from layer3.agent.population import Settings, train
    from layer3.agent.ppo import PPOConfig

    chosen = tuple(fold for fold in folds_of(bars, folds, kind) if fold.number in set(group))
    settings: Settings = Settings(PPOConfig(steps=steps))
    windows = [fold.train for fold in chosen]
    spans = [[window.start, window.stop] for window in windows]
    checkpoint = checkpoint_address(store, info, [spans, list(seeds), asdict(settings), device])
    trained = train(
        bars,
        seeds=seeds,
        folds=windows,
        settings=[settings],
        device=device,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    count = len(seeds)
    tensors = tuple(
        tuple(policy.tensors for policy in trained[place * count : (place + 1) * count]) for place in range(len(chosen))
    )
    storage.remove(checkpoint)
    training = {"data_sha256": info["data_sha256"], "settings": asdict(settings)}
    return FoldSet(kind, training, tuple(seeds), chosen, tensors)


def record_folds(
    store: str, info: Mapping[str, Any], made: FoldSet, scores: Mapping[str, Sequence[float | None]], now: datetime
) -> None:
    """Write down in the ledger of trials that the folds of ``made`` were trained, each with every seed."""
    trials.record(
        store,
        kind="walk_forward",
        data=trials.Data.of(info),
        seeds=list(made.seeds),
        folds=[{info["data_sha256"]: [fold.train]} for fold in made.folds],
        settings=[made.training["settings"]],
        scores=scores,
        code_version=source_sha256()[:12],
        now=now,
    )
