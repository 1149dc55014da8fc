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

from layer3 import contract
from layer3.agent import checkpoint as checkpoints
from layer3.agent.bars import Bars
from layer3.agent.checks import check_learnable, check_memory, checked_workers
from layer3.agent.crew import Crew
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import layers_of, single_threaded
from layer3.agent.ppo import PPOConfig, Progress
from layer3.agent.share import FIGURES, Share, Walk, assign, blank_board, chunks_of, walked
from layer3.agent.team import Fold, Member
from layer3.errors import TrainingError

__all__ = ["Report", "Settings", "Trained", "train"]

States = NDArray[np.float32]

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
    count = checked_workers(seeds, windows, settings, device, workers, checkpoint, checkpoint_every)
    for fold in windows:
        for window in fold:
            check_learnable(bars, window)
    members = _members(seeds, windows, settings)
    groups = _groups(members)
    for places in groups:
        config = members[places[0]].settings.ppo
        markets = len({members[place].settings.environment for place in places})
        check_memory(len(places), config, len(bars), device, count, markets)
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


def _members(seeds: Sequence[int], folds: Sequence[Fold], settings: Sequence[Settings]) -> list[Member]:
    """A policy per (setting, fold, seed), named by what tells it from the others."""
    return [
        Member(seed, fold, setting, f"settings[{number}], seed {seed}" if len(settings) > 1 else f"seed {seed}")
        for number, setting in enumerate(settings)
        for fold in folds
        for seed in seeds
    ]


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
        chunks = chunks_of(count) if device.type == "cpu" else [slice(0, count)]
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
        w1, w2, b2, w3, b3 = (part.cpu().numpy() for part in layers_of(actor, config.hidden, 2))
        seen = {first: arrays for part in self._crew.call("observations") for first, arrays in part.items()}
        mean, std, kept = (np.concatenate([seen[first][k] for first in sorted(seen)]) for k in range(3))
        trained = []
        for place, member in enumerate(self._members):
            tensors = {
                "mean": mean[place],
                "std": std[place],
                "w1": w1[place, :-1],
                "b1": w1[place, -1],
                "w2": w2[place],
                "b2": b2[place, 0],
                "w3": w3[place].T,
                "b3": b3[place, :, 0],
            }
            curves = tuple(_progress(row) for row in self._curves[:, place])
            # Copied: the board goes when training is over.
            own = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
            trained.append(Trained(member.seed, tuple(member.fold), member.settings, own, kept[place], curves))
        return trained


def _progress(row: NDArray[np.float64]) -> Progress:
    values = dict(zip(_FIGURES, row.tolist(), strict=True))
    return Progress(**{**values, "steps": int(values["steps"]), "total_steps": int(values["total_steps"])})
