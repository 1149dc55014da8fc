"""Candidates as the pipeline makes them, many at once: trained before the record begins, judged on what follows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from bench.calibration.markets import YEAR, Design, Market, make
from layer3.agent.bars import Bars, concatenate, prepare
from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import save_policy
from layer3.agent.population import Settings, Trained, train
from layer3.agent.ppo import PPOConfig
from layer3.backtest.engine import evaluate
from layer3.backtest.metrics import summarise
from layer3.backtest.record import Evaluation, Track
from layer3.market.splits import PURGE_HOURS
from layer3.sizing.config import ChainConfig, KellyConfig

__all__ = ["CHAIN", "INTERVAL", "SYMBOL", "TRAINING", "Candidate", "candidates", "first", "record_of"]

SYMBOL: Final = "SYNTH-USD"
INTERVAL: Final = 3_600
#: A shorter training of a smaller network than the pipeline's; what it learns is printed beside the results.
TRAINING: Final = Settings(PPOConfig(steps=150_000, hidden=32))
#: The chain stops where its own trades win too seldom; where luck alone stops it, nobody learns anything of the gate.
CHAIN: Final = ChainConfig(kelly=KellyConfig(min_win_probability=0.4))


@dataclass(frozen=True)
class Candidate:
    """A policy and the market that it was trained on; ``start`` is the first bar of its record."""

    market: Market
    bars: Bars
    policy: Policy
    start: int


def candidates(
    design: Design,
    numbers: Sequence[int],
    *,
    training_years: float,
    record_years: float,
    code_version: str,
    path: pd.DataFrame | None = None,
    settings: Settings = TRAINING,
    seed: int | None = None,
) -> list[Candidate]:
    """A market and its policy for each of ``numbers``, trained in one call, each as it would be alone.

    ``numbers`` are the seeds of the markets; ``seed`` that of the training, the first of them by default. Between
    training and record lies the purge of the pipeline's split.
    """
    trained_on = round(training_years * YEAR)
    start = trained_on + PURGE_HOURS
    length = start + round(record_years * YEAR) + 2
    markets = [make(design, length, number, learning=trained_on, path=path) for number in numbers]
    bars = [prepare(market.frame, SYMBOL, INTERVAL, CHAIN)[0] for market in markets]
    folds = [range(k * length, k * length + trained_on) for k in range(len(bars))]
    seeds = [numbers[0] if seed is None else seed]
    members = train(concatenate(bars), seeds=seeds, folds=folds, settings=[settings], workers=1)
    return [
        Candidate(market, own, _saved(member, own, trained_on, code_version), start)
        for market, own, member in zip(markets, bars, members, strict=True)
    ]


def _saved(member: Trained, bars: Bars, trained_on: int, code_version: str) -> Policy:
    """The policy with a manifest, as whoever judges it wants to see."""
    first_bar, last_bar = (str(np.datetime64(int(bars.timestamp[at]), "ns"))[:19] for at in (0, trained_on - 1))
    details = {
        "symbol": SYMBOL,
        "synthetic": True,
        "data": {
            "source": "bench.calibration",
            "sha256": "",
            "start": f"{first_bar}+00:00",
            "end": f"{last_bar}+00:00",
            "interval_seconds": INTERVAL,
        },
        "seed": member.seed,
        "code_version": code_version,
        "training": asdict(member.settings.ppo),
        "environment": asdict(member.settings.environment),
        "metrics": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        return save_policy(Path(folder), stack([member.tensors]), details, member.states)


def record_of(candidate: Candidate) -> Evaluation:
    """The candidate's record from its start to the end of its market."""
    info = {"symbol": SYMBOL, "source": "bench.calibration", "synthetic": True, "data_sha256": ""}
    return evaluate(candidate.bars, range(candidate.start, len(candidate.bars)), candidate.policy, info)


def first(evaluation: Evaluation, decisions: int) -> Evaluation:
    """What the evaluation would have been, had the record ended after so many ``decisions``.

    An account's past does not depend on how long it goes on, so the shorter record is the head of the longer one.
    """
    tracks = {name: _first(track, decisions) for name, track in evaluation.tracks.items()}
    metrics = {
        name: {**evaluation.metrics[name], **summarise(track, evaluation.context["interval_seconds"])}
        for name, track in tracks.items()
    }
    return replace(evaluation, timestamps=evaluation.timestamps[:decisions], tracks=tracks, metrics=metrics)


def _first(track: Track, n: int) -> Track:
    side = np.sign(track.exposure)
    closings = np.flatnonzero((side[1:] != side[:-1]) & (side[:-1] != 0.0)) + 1
    if len(closings) != len(track.trades):
        raise ValueError(f"{len(track.trades)} round trips but {len(closings)} changes of side: the record is no walk")
    columns = {name: values[:n] for name, values in vars(track).items() if name not in ("equity", "trades")}
    trades = track.trades[: np.searchsorted(closings, n)]
    return Track(equity=track.equity[: n + 1], trades=trades, **columns)
