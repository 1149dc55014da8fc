"""A walk-forward's policies as files, and their test pieces stitched into one record.

Each fold has a policy per seed; the mean of a fold's policies decides on its test bars. One account is
carried over all test pieces, so that what changing the policy costs is in the record.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from layer3 import storage
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy, stack
from layer3.backtest.engine import Decide, run
from layer3.backtest.folds import FoldRange, Kind
from layer3.backtest.metrics import max_drawdown, periods_per_year, sharpe
from layer3.backtest.overfitting import overfitting_if_any
from layer3.backtest.record import KELLY_ONLY, POLICY, Fold, Overfitting, Track, WalkForward
from layer3.backtest.trust import difference, trust
from layer3.errors import EvaluationError

__all__ = ["FoldSet", "Stitched", "describe", "joined", "load_folds", "save_folds", "stitch"]

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]

_DAY_NS: Final = 86_400_000_000_000
#: Most points of equity that are kept: four years of days.
_MAX_POINTS: Final = 1_500


@dataclass(frozen=True)
class FoldSet:
    """Some folds of a walk-forward, trained together.

    ``tensors[fold][seed]`` are a policy's as :func:`layer3.agent.policy.stack` takes them, in the order of
    ``folds`` and ``seeds``; ``training`` says of what (plain JSON): equal for all sets of one walk-forward.
    Where ``refusal`` says why nothing could be trained, there are none.
    """

    kind: Kind
    training: Mapping[str, Any]
    seeds: tuple[int, ...]
    folds: tuple[FoldRange, ...]
    tensors: tuple[tuple[Tensors, ...], ...]
    refusal: str = ""


def save_folds(path: Path, made: FoldSet) -> None:
    """Write ``made`` to one safetensors file; the same set gives the same bytes."""
    header = {
        "kind": made.kind,
        "training": dict(made.training),
        "seeds": list(made.seeds),
        "folds": [
            [fold.number, fold.train.start, fold.train.stop, fold.test.start, fold.test.stop] for fold in made.folds
        ],
        "refusal": made.refusal,
    }
    tensors = {
        f"{fold.number}/{seed}/{name}": np.ascontiguousarray(tensor)
        for fold, policies in zip(made.folds, made.tensors, strict=True)
        for seed, policy in zip(made.seeds, policies, strict=True)
        for name, tensor in policy.items()
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    storage.write_bytes(str(path), safetensors.numpy.save(tensors, metadata={"himari": text}))


def load_folds(path: Path) -> FoldSet:
    """Read what :func:`save_folds` wrote.

    Raises
    ------
    EvaluationError : the file is not there, damaged or of another kind
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["himari"])
        folds = tuple(FoldRange(number, range(*cut[:2]), range(*cut[2:])) for number, *cut in header["folds"])
        seeds = tuple(header["seeds"])
        policies = tuple(tuple(_policy(tensors, f"{fold.number}/{seed}/") for seed in seeds) for fold in folds)
        return FoldSet(header["kind"], header["training"], seeds, folds, policies, header["refusal"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{path} holds no folds of a walk-forward ({error!r}): train them again") from error


def _policy(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def joined(sets: Sequence[FoldSet]) -> FoldSet:
    """The whole walk-forward of sets that were trained apart, in order of time.

    Raises
    ------
    EvaluationError : nothing was asked for, one could not be trained, a fold is missing, or the sets are not
        parts of one walk-forward
    """
    refusals = [made.refusal for made in sets if made.refusal]
    if refusals:
        raise EvaluationError(refusals[0])
    pairs = sorted(
        (pair for made in sets for pair in zip(made.folds, made.tensors, strict=True)), key=lambda pair: pair[0].number
    )
    if not pairs:
        raise EvaluationError("no walk-forward was run (0 folds were asked for)")
    first = sets[0]
    if any((made.kind, made.training, made.seeds) != (first.kind, first.training, first.seeds) for made in sets):
        raise EvaluationError("the folds were trained with different data, settings or seeds: train them again")
    folds = tuple(fold for fold, _ in pairs)
    follows = all(later.test.start == fold.test.stop for fold, later in itertools.pairwise(folds))
    if [fold.number for fold in folds] != list(range(1, len(folds) + 1)) or not follows:
        raise EvaluationError(
            f"folds {', '.join(str(fold.number) for fold in folds)} do not follow each other: train them all again"
        )
    return FoldSet(first.kind, first.training, first.seeds, folds, tuple(policies for _, policies in pairs))


@dataclass(frozen=True)
class Stitched:
    """The walk over all test pieces: ``tracks`` POLICY and KELLY_ONLY, and one per seed in ``seeds``."""

    window: range
    tracks: Mapping[str, Track]
    seeds: tuple[Track, ...]
    sharpes: tuple[float | None, ...]
    """Annualised, of each seed's own record."""


def stitch(bars: Bars, whole: FoldSet, config: EnvironmentConfig | None = None) -> Stitched:
    """Walk from the first test bar to the last, each fold's policies deciding on its own test bars.

    Raises
    ------
    EvaluationError : the folds do not lie within ``bars``, or a number was not finite
    """
    window = range(whole.folds[0].test.start, whole.folds[-1].test.stop)
    if window.stop > len(bars):
        raise EvaluationError(f"the folds reach to bar {window.stop:,} of {len(bars):,}: they are of other data")
    turn = np.repeat(np.arange(len(whole.folds)), [len(fold.test) for fold in whole.folds])
    strategies = {POLICY: _in_turn([Policy(stack(policies), {}) for policies in whole.tensors], turn)}
    for place, seed in enumerate(whole.seeds):
        strategies[f"seed {seed}"] = _in_turn(
            [Policy(stack([policies[place]]), {}) for policies in whole.tensors], turn
        )
    strategies[KELLY_ONLY] = lambda *_: 1.0
    tracks = run(bars, window, strategies, config)
    seeds = tuple(tracks.pop(f"seed {seed}") for seed in whole.seeds)
    periods = periods_per_year(bars.interval_seconds)
    return Stitched(window, tracks, seeds, tuple(_sharpe(track.equity, periods) for track in seeds))


def _in_turn(policies: Sequence[Policy], turn: NDArray[np.intp]) -> Decide:
    return lambda state, t: float(policies[turn[t]].act(state)[0])


def describe(
    bars: Bars,
    whole: FoldSet,
    stitched: Stitched,
    *,
    trials: int,
    trials_variance: float | None,
    seed: int,
    resamples: int = 1_000,
) -> WalkForward:
    """What the stitched record comes to; ``trials`` and ``trials_variance`` as for :func:`layer3.backtest.trust.trust`.

    Raises
    ------
    EvaluationError : a track's equity is not finite
    """
    interval, window = bars.interval_seconds, stitched.window
    mean, kelly = stitched.tracks[POLICY].equity, stitched.tracks[KELLY_ONLY].equity
    periods = periods_per_year(interval)
    pieces = [slice(fold.test.start - window.start, fold.test.stop - window.start + 1) for fold in whole.folds]
    # The bars that earned: what is decided at one is traded at the next.
    days = bars.timestamp[window.start + 1 : window.stop - 1] // _DAY_NS
    at = np.flatnonzero(np.append(np.diff(days) != 0, True))
    at = at[::-1][:: -(-len(at) // _MAX_POINTS)][::-1]
    return WalkForward(
        kind=whole.kind,
        seeds=whole.seeds,
        folds=tuple(
            _fold(bars, fold, [_sharpe(track.equity[piece], periods) for track in stitched.seeds])
            for fold, piece in zip(whole.folds, pieces, strict=True)
        ),
        trust=trust(mean, interval, trials=trials, trials_variance=trials_variance, seed=seed, resamples=resamples),
        total_return=float(mean[-1] / mean[0] - 1.0),
        max_drawdown=max_drawdown(mean),
        versus_kelly=difference(mean, kelly, interval, against=KELLY_ONLY, seed=seed, resamples=resamples),
        overfitting=_overfitting(stitched.seeds),
        seed_sharpes=stitched.sharpes,
        days=tuple(days[at].tolist()),
        equity=tuple((mean[1:][at] / mean[0]).tolist()),
        kelly_equity=tuple((kelly[1:][at] / kelly[0]).tolist()),
    )


def _fold(bars: Bars, fold: FoldRange, sharpes: Sequence[float | None]) -> Fold:
    ends = (fold.train.start, fold.train.stop - 1, fold.test.start, fold.test.stop - 1)
    first, last, start, end = (
        f"{np.datetime64(int(bars.timestamp[bar]), 'ns').astype('datetime64[s]')}+00:00" for bar in ends
    )
    return Fold(fold.number, first, last, start, end, tuple(sharpes))


def _overfitting(seeds: Sequence[Track]) -> Overfitting | None:
    """Over the seeds' records on the same bars; ``None`` where an account was lost, or two do not differ."""
    if any(np.any(track.equity <= 0.0) for track in seeds):
        return None
    return overfitting_if_any(np.stack([track.equity[1:] / track.equity[:-1] - 1.0 for track in seeds], axis=1))


def _sharpe(equity: Floats, periods: float) -> float | None:
    """Annualised, of equity (n + 1,); ``None`` where it was lost."""
    return None if np.any(equity <= 0.0) else sharpe(equity[1:] / equity[:-1] - 1.0, periods)
