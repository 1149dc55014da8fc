"""Judging a candidate as a step over files: its record, the champion's, the walk-forward, and all evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layer3 import champion, trials
from layer3.agent.bars import Bars, load_bars
from layer3.agent.policy import Policy
from layer3.agent.policy_file import load_policy
from layer3.backtest.engine import SECTIONS, evaluate
from layer3.backtest.evidence import Effort, Progress, Subject, gather
from layer3.backtest.overfitting import overfitting_if_any
from layer3.backtest.record import Evaluation, Evidence, Overfitting, WalkForward
from layer3.backtest.walk_forward import FoldSet, Stitched, describe, joined, load_folds, stitch
from layer3.errors import ContractError, DataError, EvaluationError, PolicyError, ReleaseError
from layer3.sizing.config import parse_chain_config
from layer3.walk_forward import record_folds
from layer3.workflow import splits_of

__all__ = ["judge_policy"]


def judge_policy(
    candles_path: Path,
    features_path: Path,
    folder: Path,
    *,
    walks: Sequence[Path],
    sizing: str,
    store: str,
    seed: int,
    effort: Effort | None = None,
    now: datetime | None = None,
    on_progress: Progress = lambda *_: None,
) -> Evaluation:
    """Walk the test part with the policy in ``folder`` and with what it must beat, and gather all evidence.

    What cannot be computed is no error: ``evidence.problems`` says why, and the gate fails what it cannot see.

    Parameters
    ----------
    candles_path, features_path : what ingest wrote, under ``sizing``
    walks : what :func:`layer3.walk_forward.train_folds` wrote, all groups of it
    store : folder or ``gs://`` address whose champion is the one to beat and whose ledger says what was tried;
        the seeds' stitched records are written into it, at the time ``now``
    seed : of every random draw

    Raises
    ------
    EvaluationError : the policy was trained on the test part, or does not say what it was trained on
    DataError, PolicyError, ContractError : a file of the candidate's is not what it should be
    SourceError : the store does not answer
    """
    effort = effort or Effort()
    bars, info = load_bars(features_path)
    window, policy, chain = splits_of(bars).test, load_policy(folder), parse_chain_config(sizing, "sizing")
    rival, objection = _rival(store, info, bars, window)
    record = evaluate(bars, window, policy, info, champion=rival)
    refusal = policy.manifest.get("refusal")
    if refusal:
        return replace(record, evidence=Evidence(problems=dict.fromkeys(SECTIONS, f"nothing was trained: {refusal}")))
    if record.evidence.problems:
        return record
    problems = {} if objection is None else {"champion": objection}
    walked = _walked(bars, info, walks, store, now or datetime.now(UTC), problems)
    tried = _tried(store, info, problems)
    walk_forward = None
    if walked and tried:
        walk_forward = _described(bars, *walked, *tried, seed, effort, problems)
    count, spread = tried or (1, None)
    chosen = _chosen(store, info, bars, problems)
    evidence = gather(
        Subject(pd.read_parquet(candles_path), info["symbol"], bars, window, policy, chain),
        record.tracks,
        trials=count,
        trials_variance=spread,
        walk_forward=walk_forward,
        champion=rival.model_id if rival else None,
        seed=seed,
        effort=effort,
        problems=problems,
        on_progress=on_progress,
    )
    return replace(record, evidence=replace(evidence, overfitting=chosen))


def _rival(store: str, info: Mapping[str, Any], bars: Bars, window: range) -> tuple[Policy | None, str | None]:
    """The champion of ``store`` where it can be walked over ``bars[window]``; else, if there is one, why not."""
    try:
        policy = champion.load(store)
    except (PolicyError, ContractError, ReleaseError) as error:
        return None, f"the champion cannot be compared with: {error}"
    if policy is None:
        return None, None
    objection = champion.objection(policy, info, bars.interval_seconds, bars.timestamp[window.start])
    return (policy, None) if objection is None else (None, objection)


def _walked(
    bars: Bars,
    info: Mapping[str, Any],
    walks: Sequence[Path],
    store: str,
    now: datetime,
    problems: dict[str, str],
) -> tuple[FoldSet, Stitched] | None:
    """The stitched walk-forward, its seeds' Sharpe ratios written into the ledger; ``None`` with a problem told."""
    try:
        whole = joined([load_folds(path) for path in walks])
        if whole.training["data_sha256"] != info["data_sha256"]:
            raise EvaluationError("the folds were trained on other data: train them again")
        stitched = stitch(bars, whole)
    except (EvaluationError, PolicyError) as error:
        problems["walk_forward"] = str(error)
        return None
    # Of a seed's record over all test pieces, so the same for each of its folds.
    scores = {trials.STITCHED_SHARPE: [*stitched.sharpes] * len(whole.folds)}
    record_folds(store, info, whole, scores, now)
    return whole, stitched


def _tried(store: str, info: Mapping[str, Any], problems: dict[str, str]) -> tuple[int, float | None] | None:
    """How many trials there were on these data, and how far apart they came out; ``None`` with a problem told."""
    try:
        count = trials.count(store, info["data_sha256"])
        if not count:
            raise DataError(f"{store} holds no record of what was tried on these data: train again, or restore trials/")
        return count, trials.sharpe_variance(store, info["data_sha256"])
    except DataError as error:
        problems["trust"] = str(error)
        problems.setdefault("walk_forward", str(error))
        return None


def _chosen(store: str, info: Mapping[str, Any], bars: Bars, problems: dict[str, str]) -> Overfitting | None:
    """How often the best of all that was tried, where settings are chosen, is none in the other half of it."""
    decisions = len(splits_of(bars).validation) - 2
    try:
        returns = trials.validation_returns(store, trials.Data.of(info), decisions)
    except DataError as error:
        problems["overfitting"] = str(error)
        return None
    return overfitting_if_any(returns.astype(np.float64))


def _described(
    bars: Bars,
    whole: FoldSet,
    stitched: Stitched,
    count: int,
    spread: float | None,
    seed: int,
    effort: Effort,
    problems: dict[str, str],
) -> WalkForward | None:
    try:
        return describe(
            bars, whole, stitched, trials=count, trials_variance=spread, seed=seed, resamples=effort.resamples
        )
    except EvaluationError as error:
        problems["walk_forward"] = str(error)
        return None
