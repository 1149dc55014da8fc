"""All evidence about one candidate, section by section; what cannot be computed is told, never left out silently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.attribution import attribute
from layer3.backtest.bootstrap import equity_band
from layer3.backtest.costs import check_track, cost_evidence
from layer3.backtest.degeneracy import find_degeneracy
from layer3.backtest.leak import find_leaks
from layer3.backtest.limits import PERMUTATIONS
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.paths import permutation_test
from layer3.backtest.record import (
    BUY_AND_HOLD,
    CHAMPION,
    FLAT,
    KELLY_ONLY,
    POLICY,
    Difference,
    Evidence,
    Leak,
    Permutation,
    Superiority,
    Track,
    WalkForward,
)
from layer3.backtest.stability import bar_returns, find_stability
from layer3.backtest.superiority import superiority
from layer3.backtest.trust import difference, trust
from layer3.errors import EvaluationError, HimariError
from layer3.sizing.config import ChainConfig

__all__ = ["Effort", "Progress", "Subject", "gather"]

_T = TypeVar("_T")
#: Called before each section with its name, how many are done, and how many there are.
Progress = Callable[[str, int, int], None]
_BENCHMARKS: Final = (KELLY_ONLY, BUY_AND_HOLD, FLAT)
_KINDS: Final[tuple[Literal["bars", "blocks"], ...]] = ("bars", "blocks")


@dataclass(frozen=True)
class Subject:
    """What is judged, and on what.

    ``bars`` were made of ``candles`` (what ingest wrote) under ``chain``; the tracks walked ``bars[window]`` under
    ``environment``.

    Raises
    ------
    EvaluationError : ``candles`` are not the rows that ``bars`` were made of
    """

    candles: pd.DataFrame
    symbol: str
    bars: Bars
    window: range
    policy: Policy
    chain: ChainConfig = field(default_factory=ChainConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)

    def __post_init__(self) -> None:
        times = self.candles["timestamp"].dt.as_unit("ns").astype("int64").to_numpy()
        if not np.array_equal(times, self.bars.timestamp):
            raise EvaluationError(
                f"{len(self.candles):,} candles and {len(self.bars):,} bars of {self.symbol} are not of the same "
                "times: give the candles that the bars were made of"
            )


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is computed: permuted paths of each kind, bootstrap resamples, places at which data are cut off."""

    permutations: int = PERMUTATIONS
    resamples: int = 1_000
    cuts: int = 3


def gather(
    subject: Subject,
    tracks: Mapping[str, Track],
    *,
    trials: int,
    trials_variance: float | None,
    walk_forward: WalkForward | None,
    champion: str | None,
    seed: int,
    effort: Effort | None = None,
    problems: Mapping[str, str] | None = None,
    on_progress: Progress = lambda *_: None,
) -> Evidence:
    """Compute every section of the evidence about ``subject``; the same arguments give the same evidence.

    Parameters
    ----------
    tracks : over ``subject.bars[subject.window]``, by the names of :mod:`layer3.backtest.record`; POLICY, and those
        of its benchmarks and the champion that there are
    trials, trials_variance : see :func:`layer3.backtest.trust.trust`
    walk_forward, champion : go into the evidence as they are
    problems : of sections that are known to be impossible; they are not tried

    A section that cannot be computed is ``None`` or empty, and ``problems`` says why; of a section in parts
    (differences, permutations) those that can be are there. A record that holds a number that is not
    finite is evidence of nothing: no section is tried.

    Raises
    ------
    EvaluationError : the policy's track is missing or is not one over the window
    """
    effort, told = effort or Effort(), dict(problems or {})
    decisions = len(subject.window) - 2
    if POLICY not in tracks or len(tracks[POLICY].exposure) != decisions:
        raise EvaluationError(
            f"the window holds {decisions:,} decisions, the tracks ({', '.join(tracks)}) hold no policy's that are as "
            "many: give those of this window"
        )
    policy, bars, window, environment = subject.policy, subject.bars, subject.window, subject.environment
    interval, track = bars.interval_seconds, tracks[POLICY]

    def decide(state: NDArray[np.float32], _: int) -> float:
        return float(policy.act(state)[0])

    makers: dict[str, Callable[[], Any]] = {
        "trust": lambda: trust(
            track.equity,
            interval,
            trials=trials,
            trials_variance=trials_variance,
            seed=seed,
            resamples=effort.resamples,
        ),
        "differences": lambda: _differences(tracks, interval, seed, effort.resamples, told),
        "superiority": lambda: _superiority(tracks, seed, effort.resamples),
        "bootstrap_band": lambda: equity_band(
            bars.timestamp[window.start + 1 : window.stop - 1],
            track.equity,
            seed=seed,
            resamples=effort.resamples,
        ),
        "costs": lambda: cost_evidence(bars, window, decide, track, environment),
        "attribution": lambda: attribute(bars, window, decide, track, environment, seed),
        "degeneracy": lambda: find_degeneracy(bars, window, policy, track, environment),
        "stability": lambda: find_stability(subject.candles, bars, window, track),
        "leak": lambda: _leak(subject, effort.cuts),
        "permutations": lambda: _permutations(subject, track, seed, effort.permutations, told),
    }
    try:
        check_track(track)
    except EvaluationError as error:
        told = dict.fromkeys(makers, str(error)) | told
    found: dict[str, Any] = {}
    for done, (section, make) in enumerate(makers.items()):
        on_progress(section, done, len(makers))
        if section not in told:
            value = _attempt(make, section, told)
            if value is not None:
                found[section] = value
    return Evidence(**found, walk_forward=walk_forward, champion=champion, problems=told)


def _attempt(make: Callable[[], _T], section: str, problems: dict[str, str], part: str = "") -> _T | None:
    """What ``make`` gives, or ``None`` and a sentence in ``problems`` where it refuses; other errors are bugs."""
    try:
        return make()
    except HimariError as error:
        sentences = [problems[section]] if section in problems else []
        problems[section] = "; ".join([*sentences, f"{part}: {error}" if part else str(error)])
        return None


def _differences(
    tracks: Mapping[str, Track], interval: int, seed: int, resamples: int, problems: dict[str, str]
) -> tuple[Difference, ...]:
    equity = tracks[POLICY].equity
    made = []
    for name in (*_BENCHMARKS, CHAMPION):
        if name in tracks:
            compare = partial(
                difference, equity, tracks[name].equity, interval, against=name, seed=seed, resamples=resamples
            )
            got = _attempt(compare, "differences", problems, name)
            made += [] if got is None else [got]
    return tuple(made)


def _superiority(tracks: Mapping[str, Track], seed: int, resamples: int) -> Superiority:
    benchmarks = {name: bar_returns(tracks[name], name) for name in _BENCHMARKS if name in tracks}
    return superiority(bar_returns(tracks[POLICY], POLICY), benchmarks, seed=seed, resamples=resamples)


def _leak(subject: Subject, cuts: int) -> Leak:
    return find_leaks(
        subject.candles,
        subject.symbol,
        subject.bars.interval_seconds,
        subject.chain,
        subject.bars,
        subject.window,
        subject.policy,
        cuts=cuts,
        environment=subject.environment,
    )


def _permutations(
    subject: Subject, track: Track, seed: int, paths: int, problems: dict[str, str]
) -> tuple[Permutation, ...]:
    interval = subject.bars.interval_seconds
    real = sharpe(bar_returns(track, POLICY), periods_per_year(interval))
    if real is None:
        raise EvaluationError("the record has no Sharpe ratio: there is nothing to compare permutations with")
    made = []
    for kind in _KINDS:
        test = partial(
            permutation_test,
            subject.candles,
            subject.symbol,
            interval,
            subject.chain,
            subject.window,
            subject.policy,
            kind=kind,
            real=real,
            seed=seed,
            paths=paths,
            environment=subject.environment,
        )
        got = _attempt(test, "permutations", problems, kind)
        made += [] if got is None else [got]
    return tuple(made)
