"""What the evaluation's benchmark measures of our own, each in a process of its own."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from bench.calibration.candidates import CHAIN, INTERVAL, SYMBOL, Candidate, candidates, first, record_of
from bench.calibration.markets import YEAR, Design
from layer3.agent.population import Settings
from layer3.agent.ppo import PPOConfig
from layer3.backtest.evidence import Effort, Subject, gather
from layer3.backtest.gate import judge
from layer3.backtest.paths import permutation_test

__all__ = ["Evaluated", "Permuted", "evaluated", "permuted"]

#: One policy of the pipeline's own size, where the pipeline serves a mean of several; how long it learned has no part
#: in how long it takes to judge.
_TRAINING: Final = Settings(PPOConfig(steps=60_000))


@dataclass(frozen=True)
class Evaluated:
    """Seconds of the walk, of each section of the evidence, and of the verdict; problems; the most memory held."""

    seconds: dict[str, float]
    problems: dict[str, str]
    peak_bytes: int


@dataclass(frozen=True)
class Permuted:
    """``seconds`` of so many ``paths`` of ``bars`` bars each, and the most memory held."""

    seconds: float
    paths: int
    bars: int
    peak_bytes: int


def _candidate(years: float, signals: Literal["own", "baseline"]) -> Candidate:
    design = Design("planted", edge=0.05) if signals == "own" else Design("GARCH", signals)
    return candidates(design, (1,), training_years=2.0, record_years=years, code_version="bench", settings=_TRAINING)[0]


def evaluated(years: float, effort: Effort, signals: Literal["own", "baseline"] = "own") -> Evaluated:
    """Walk, evidence and verdict of one candidate on a record of so many ``years``, without a walk-forward."""
    candidate = _candidate(years, signals)
    clock = time.perf_counter
    began = [("walk", clock())]
    record = first(record_of(candidate), round(years * YEAR))
    window = range(candidate.start, candidate.start + len(record.timestamps) + 2)
    subject = Subject(candidate.market.frame, SYMBOL, candidate.bars, window, candidate.policy, CHAIN)
    evidence = gather(
        subject,
        record.tracks,
        trials=1,
        trials_variance=None,
        walk_forward=None,
        champion=None,
        seed=1,
        effort=effort,
        on_progress=lambda section, *_: began.append((section, clock())),
    )
    began.append(("verdict", clock()))
    judge(record)
    ends = [at for _, at in began[1:]] + [clock()]
    seconds = {name: end - at for (name, at), end in zip(began, ends, strict=True)}
    return Evaluated(seconds, dict(evidence.problems), _peak())


def permuted(paths: int, years: float, signals: Literal["own", "baseline"]) -> Permuted:
    """Permutations of single bars through signals, chain and policy."""
    candidate = _candidate(years, signals)
    window = range(candidate.start, candidate.start + round(years * YEAR))
    started = time.perf_counter()
    found: Any = permutation_test(
        candidate.market.frame,
        SYMBOL,
        INTERVAL,
        CHAIN,
        window,
        candidate.policy,
        kind="bars",
        real=1.0,
        seed=1,
        paths=paths,
    )
    return Permuted(time.perf_counter() - started, len(found.values), len(window), _peak())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
