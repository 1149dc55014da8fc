"""Many policies trained at once: every (setting, fold, seed), the same numbers as each trained alone.

Policies whose settings have one shape (:attr:`layer3.agent.ppo.PPOConfig.shape`) form a population;
several shapes are trained one after another. Between two updates the policies walk their windows;
then each makes its update on its own rollout. On a CPU the work is handed to a crew of ``workers``
in pieces of a few policies, cut without regard to how many workers there are, so that their number
changes no bit: first everybody walks and judges, then actors and critics are improved apart. On a GPU
there is one piece. Of what one worker walks, the policies of equal ``environment`` settings share one
environment; the networks' products are made by the piece.

Every policy draws from its own generator, always in the same order, so that who else is trained
changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from layer3 import contract, machine
from layer3.agent import checkpoint as checkpoints
from layer3.agent.bars import Bars
from layer3.agent.crew import Crew
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import single_threaded, weights_of, weights_size
from layer3.agent.ppo import PPOConfig, Progress
from layer3.agent.share import FIGURES, Share, Walk, assign, blank_board, walked
from layer3.agent.team import EXPLORATION, Fold, Member
from layer3.errors import ConfigurationError, NothingToLearnError, TrainingError

__all__ = ["Report", "Settings", "Trained", "memory_needed", "train"]

States = NDArray[np.float32]

#: Policies that one worker improves together: enough to share the calls' cost, few enough for the cache.
_CHUNK: Final = 4
_YEAR_SECONDS: Final = 365 * 86_400
_FIGURES: Final = tuple(entry.name for entry in fields(Progress))


@dataclass(frozen=True, slots=True)
class Settings:
    """What one training is done with."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)


@dataclass(frozen=True, slots=True)
class Report:
    """Where the whole training stands: ``steps`` of ``total_steps`` of all policies together, and the ``figures``
    of those that just made an update, ``policies`` their places in the result."""

    steps: int
    total_steps: int
    seconds: float
    policies: tuple[int, ...]
    figures: tuple[Progress, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """One policy: tensors as :func:`layer3.agent.policy.stack` takes them, observed states (m, 16), curves."""

    seed: int
    fold: tuple[range, ...]
    settings: Settings
    tensors: dict[str, States]
    states: States
    curves: tuple[Progress, ...]


def memory_needed(
    policies: int, config: PPOConfig, bars: int, device: str = "cpu", workers: int = 1, markets: int = 1
) -> int:
    """Bytes that training ``policies`` policies of ``config``'s shape, of ``markets`` different ``environment``
    settings, on ``bars`` bars takes at most, torch itself aside.

    On a GPU all policies are one piece of work, on a CPU ``workers`` pieces of a few are under way at once.
    """
    size = _CHUNK if device == "cpu" else policies
    chunk, workers = min(policies, size), workers if device == "cpu" else 1
    weights = weights_size(config.hidden, 2) + weights_size(config.hidden, 1)
    number, long = 4, 8
    samples = config.samples * (number * (contract.STATE_DIM + 6) + long * (3 + 2 * config.epochs))
    walking = config.environments * (4 * number * config.hidden + 60 * long)
    own = weights * 4 * number + samples + walking + config.updates * len(_FIGURES) * long
    # Each worker may hold the end of one environment's policies and the beginning of another's.
    teams = min(workers, -(-policies // size)) + markets - 1
    market = bars * (number * contract.STATE_DIM + 5 * long)
    # Each worker's activations, what passes through while it works, and the exploration before it.
    working = chunk * config.batch * number * (8 * config.hidden + 6 * contract.STATE_DIM)
    exploring = policies * EXPLORATION * config.environments * 3 * long
    # What the allocator keeps between.
    return int(1.25 * (policies * own + teams * market + exploring + workers * working))


def train(
    bars: Bars,
    *,
    seeds: Sequence[int],
    folds: Sequence[range | Fold],
    settings: Sequence[Settings] = (Settings(),),
    device: str = "cpu",
    workers: int | None = None,
    checkpoint: str | None = None,
    checkpoint_every: int = 25,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> tuple[Trained, ...]:
    """Train one policy per (setting, fold, seed), seeds innermost; the same inputs give the same bytes.

    Settings of one :attr:`~layer3.agent.ppo.PPOConfig.shape` are trained together, several shapes one
    after another.

    Parameters
    ----------
    folds : what each policy may see of ``bars``: a range of bars, or several (of histories that
        :func:`layer3.agent.bars.concatenate` joined)
    device : "cpu" or "cuda"
    workers : processes (threads where the system cannot fork) on a CPU, by default one per core; the
        result does not depend on it
    checkpoint : address (local or ``gs://``) of a file that is written every ``checkpoint_every``
        updates; where it exists, training goes on from there. One setting only.

    Raises
    ------
    TrainingError : a fold cannot hold an episode, nothing in it can be traded or its price is
        constant; numbers ended up not finite (the last good checkpoint is named); memory or disk do
        not suffice; the checkpoint is of another training
    ContractError : the checkpoint is of another state contract
    ConfigurationError : an argument is out of range, or the device is not there
    """
    windows = [(fold,) if isinstance(fold, range) else tuple(fold) for fold in folds]
    count = _checked(seeds, windows, settings, device, workers, checkpoint, checkpoint_every)
    for fold in windows:
        for window in fold:
            _check_learnable(bars, window)
    members = [
        Member(seed, fold, setting, f"settings[{number}], seed {seed}" if len(settings) > 1 else f"seed {seed}")
        for number, setting in enumerate(settings)
        for fold in windows
        for seed in seeds
    ]
    groups = _groups(members)
    for places in groups:
        config = members[places[0]].settings.ppo
        markets = len({members[place].settings.environment for place in places})
        _check_memory(memory_needed(len(places), config, len(bars), device, count, markets), len(places), device)
    saved = None
    if checkpoint is not None:
        pairs = [(member.seed, member.fold) for member in members]
        saved = checkpoints.Checkpoint(checkpoint, checkpoints.identity(bars, pairs, settings[0]))
    total = sum(member.settings.ppo.updates * member.settings.ppo.samples for member in members)
    started, done = time.perf_counter(), 0
    trained: dict[int, Trained] = {}
    for places in groups:
        together = [members[place] for place in places]
        config = together[0].settings.ppo
        with (
            single_threaded(),
            _Population(bars, together, torch.device(device), count, saved) as population,
        ):
            while population.update < config.updates:
                figures = population.improve(time.perf_counter() - started)
                if population.update % checkpoint_every == 0 or population.update == config.updates:
                    population.save()
                at = done + population.update * config.samples * len(places)
                on_progress(Report(at, total, time.perf_counter() - started, places, figures))
            trained |= zip(places, population.results(), strict=True)
        done += config.updates * config.samples * len(places)
    return tuple(trained[place] for place in range(len(members)))


def _groups(members: Sequence[Member]) -> list[tuple[int, ...]]:
    """Places of the members that can be trained together, those of one environment side by side."""
    shapes: dict[tuple[int, ...], dict[EnvironmentConfig, list[int]]] = {}
    for place, member in enumerate(members):
        environments = shapes.setdefault(member.settings.ppo.shape, {})
        environments.setdefault(member.settings.environment, []).append(place)
    return [tuple(chain.from_iterable(environments.values())) for environments in shapes.values()]


class _Population:
    """All policies of one shape, and what their training has come to."""

    def __init__(
        self,
        bars: Bars,
        members: Sequence[Member],
        device: torch.device,
        workers: int,
        saved: checkpoints.Checkpoint | None,
    ) -> None:
        config, count = members[0].settings.ppo, len(members)
        self._members, self._saved = members, saved
        # Any member's: only what they share is asked of it.
        self._config = config
        self._per_year = math.sqrt(_YEAR_SECONDS / bars.interval_seconds)
        self._curves = np.zeros((config.updates, count, len(_FIGURES)))
        self.update = 0
        self._board = blank_board(members, device)
        size = _CHUNK if device.type == "cpu" else count
        chunks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        halves = assign(chunks, workers)
        walks = self._resume([walked(own) for own in halves])
        self._seconds = float(self._curves[self.update - 1, 0, _FIGURES.index("seconds")]) if self.update else 0.0
        self._crew = Crew(
            len(halves),
            lambda worker: Share(bars, members, self._board, halves[worker], walks),
        )

    def __enter__(self) -> _Population:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.__exit__()

    def improve(self, seconds: float) -> tuple[Progress, ...]:
        """One rollout and one update of every policy; where each stands then, ``seconds`` after this training began
        or was taken up."""
        config, board = self._config, self._board
        self._crew.call("gather", self.update)
        self._crew.call("improve", self.update)
        rates = [member.settings.ppo.rate(self.update) for member in self._members]
        self.update += 1
        multiplier = contract.MULTIPLIER_HIGH * torch.sigmoid(board.seen.actions.flatten(1))
        growth = board.growth.flatten(1)
        deviation = growth.std(dim=1)
        columns = {
            "reward": board.seen.rewards.flatten(1).mean(1),
            "sharpe": torch.where(deviation > 0.0, self._per_year * growth.mean(1) / deviation, 0.0),
            "multiplier_mean": multiplier.mean(1),
            "multiplier_sd": multiplier.std(1),
            **dict(zip(FIGURES, board.figures.unbind(1), strict=True)),
        }
        table = self._curves[self.update - 1]
        known = {
            "steps": self.update * config.samples,
            "total_steps": config.updates * config.samples,
            "learning_rate": rates,
            "seconds": self._seconds + seconds,
        }
        for column, name in enumerate(_FIGURES):
            table[:, column] = columns[name].double().cpu().numpy() if name in columns else known[name]
        self._check_finite(table)
        return tuple(_progress(row) for row in table)

    def _check_finite(self, table: NDArray[np.float64]) -> None:
        state = self._board.state
        weights = (state["actor"].sum(1) + state["critic"].sum(1)).cpu().numpy()
        bad = np.flatnonzero(~(np.isfinite(table).all(axis=1) & np.isfinite(weights)))
        if not bad.size:
            return
        member = self._members[bad[0]]
        figures = _progress(table[bad[0]])
        kept = self._saved.describe() if self._saved else "there is no checkpoint"
        raise TrainingError(
            f"training of {member.name} diverged after {figures.steps:,} steps (reward {figures.reward}, "
            f"KL {figures.kl}, explained variance {figures.explained_variance}; {bad.size} of {len(table)} policies): "
            f"lower the learning rate of {member.settings.ppo.learning_rate} or check the data; no policy was written, "
            f"{kept}"
        )

    def save(self) -> None:
        """Write every array that the next update depends on, and the curves so far, where there is a checkpoint."""
        if self._saved is None:
            return
        walks: dict[int, Walk] = {first: walk for part in self._crew.call("walks") for first, walk in part.items()}
        arrays: dict[str, NDArray[Any]] = {name: tensor.cpu().numpy() for name, tensor in self._board.state.items()}
        ordered = [walks[first] for first in sorted(walks)]
        # Joined, so that a training may be taken up on another machine's number of workers.
        arrays |= {
            f"walk.{name}": np.concatenate([arrays_of[name] for arrays_of, _ in ordered], axis=-1)
            for name in ordered[0][0]
        }
        generators = [state for _, states in ordered for state in states]
        self._saved.write(arrays | {"curves": self._curves[: self.update]}, generators)

    def _resume(self, teams: Sequence[slice]) -> dict[int, Walk]:
        """Take up what was saved, if anything was; where each team's windows and random streams were then."""
        found = self._saved.read() if self._saved else None
        if found is None:
            return {}
        arrays, generators = found
        for name, tensor in self._board.state.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.update = len(arrays["curves"])
        self._curves[: self.update] = arrays["curves"]
        n = self._config.environments
        walk = {name[5:]: array for name, array in arrays.items() if name.startswith("walk.")}
        return {
            team.start: (
                {name: array[..., team.start * n : team.stop * n] for name, array in walk.items()},
                generators[team],
            )
            for team in teams
            if team.stop > team.start
        }

    def results(self) -> list[Trained]:
        """Every policy, once training is over."""
        config, actor = self._config, self._board.state["actor"]
        w1, b1, w2, b2, w3, b3 = (part.cpu().numpy() for part in weights_of(actor, config.hidden, 2))
        seen = {first: arrays for part in self._crew.call("observations") for first, arrays in part.items()}
        mean, std, kept = (np.concatenate([seen[first][k] for first in sorted(seen)]) for k in range(3))
        trained = []
        for place, member in enumerate(self._members):
            tensors = {
                "mean": mean[place],
                "std": std[place],
                "w1": w1[place].T,
                "b1": b1[place, 0],
                "w2": w2[place].T,
                "b2": b2[place, 0],
                "w3": w3[place].T,
                "b3": b3[place, 0],
            }
            curves = tuple(_progress(row) for row in self._curves[:, place])
            # Copied: the board goes when training is over.
            own = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
            trained.append(Trained(member.seed, tuple(member.fold), member.settings, own, kept[place], curves))
        return trained


def _progress(row: NDArray[np.float64]) -> Progress:
    values = dict(zip(_FIGURES, row.tolist(), strict=True))
    return Progress(**{**values, "steps": int(values["steps"]), "total_steps": int(values["total_steps"])})


def _checked(
    seeds: Sequence[int],
    folds: Sequence[Fold],
    settings: Sequence[Settings],
    device: str,
    workers: int | None,
    checkpoint: str | None,
    checkpoint_every: int,
) -> int:
    """Refuse what cannot be trained; how many workers there are."""
    for name, given in (("seeds", seeds), ("folds", folds), ("settings", settings)):
        if not len(given):
            raise ConfigurationError(f"no {name} given: there is nothing to train")
    if not all(folds):
        raise ConfigurationError("a fold of no windows: there is nothing to train on")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigurationError(f"seed is {seed}, expected an integer in [0, 2^32)")
    if device not in {"cpu", "cuda"}:
        raise ConfigurationError(f"device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda is not there: torch finds no GPU, or is its CPU build; use device cpu")
    count = machine.cores() if workers is None else workers
    if count < 1:
        raise ConfigurationError(f"workers is {workers}, expected at least 1")
    if checkpoint is not None and len(settings) > 1:
        raise ConfigurationError(f"{len(settings)} settings share no checkpoint: train them one after another")
    if checkpoint_every < 1:
        raise ConfigurationError(f"checkpoint_every is {checkpoint_every}, expected at least 1 update")
    return count if device == "cpu" else 1


def _check_memory(needed: int, policies: int, device: str) -> None:
    there = int(torch.cuda.mem_get_info()[0]) if device == "cuda" else machine.memory()
    if needed > there:
        raise TrainingError(
            f"{policies:,} policies at once need about {needed / 2**30:.1f} GiB, {device} has "
            f"{there / 2**30:.1f}: train fewer at a time"
        )


def _check_learnable(bars: Bars, window: range) -> None:
    part = slice(window.start, window.stop)
    if not 0 <= window.start <= window.stop <= len(bars) or window.step != 1:
        raise TrainingError(f"a fold of {window} does not lie within the {len(bars):,} bars of the history")
    for entry in fields(Bars):
        bad = np.flatnonzero(~np.isfinite(getattr(bars, entry.name)[part]))
        if bad.size:
            raise TrainingError(
                f"{entry.name} at bar {window.start + bad[0]} is {getattr(bars, entry.name)[part][bad[0]]}, "
                "which is not finite: prepare the data again with ingest"
            )
    if len(window) and np.ptp(bars.open[part]) == 0.0:
        raise NothingToLearnError(
            f"the price is {bars.open[window.start]} on all {len(window):,} bars of the training period: "
            "there is nothing to learn from a constant price; check the data"
        )
    if not np.any(bars.base_fraction[part] * bars.direction[part]):
        raise NothingToLearnError(
            f"the sizing chain holds nothing on all {len(window):,} bars of the training period, so no multiplier "
            "matters: check the signals (all HOLD? confidence or expected return too low?), or give a longer "
            "history: the baseline needs 30 days before it speaks"
        )
