"""Many policies trained at once: every (fold, seed) of a setting, the same numbers as each trained alone.

Policies of equal settings form a population; several settings are trained one after another. Between
two updates the policies walk their windows together; then each makes its update on its own rollout. On
a CPU the work is handed to ``threads`` workers in pieces of a few policies, cut without regard to how
many workers there are, so that their number changes no bit: first the walk, then the critics'
judgement, then actors and critics apart. On a GPU there is one piece.

Every policy draws from its own generator, always in the same order, so that who else is trained
changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layer3 import contract, machine
from layer3.agent import checkpoint as checkpoints
from layer3.agent import ppo
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import Adam, Network, initial_weights, single_threaded, weights_of, weights_size
from layer3.agent.ppo import Experience, PPOConfig, Progress
from layer3.agent.team import EXPLORATION, Fold, Team
from layer3.errors import ConfigurationError, TrainingError

__all__ = ["Report", "Settings", "Trained", "memory_needed", "train"]

States = NDArray[np.float32]

#: Policies that one worker walks, or improves, together: enough to share the calls' cost, few enough for the cache.
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


def memory_needed(policies: int, config: PPOConfig, bars: int, device: str = "cpu", threads: int = 1) -> int:
    """Bytes that training ``policies`` policies of one setting on ``bars`` bars takes at most, torch itself aside.

    On a GPU all policies are one piece of work, on a CPU ``threads`` pieces of a few are under way at once.
    """
    size = _CHUNK if device == "cpu" else policies
    chunk, threads = min(policies, size), threads if device == "cpu" else 1
    weights = weights_size(config.hidden, 2) + weights_size(config.hidden, 1)
    number, long = 4, 8
    samples = config.samples * (number * (contract.STATE_DIM + 6) + long * (3 + 2 * config.epochs))
    walking = config.environments * (4 * number * config.hidden + 60 * long)
    own = weights * 4 * number + samples + walking + config.updates * len(_FIGURES) * long
    market = bars * (number * contract.STATE_DIM + 5 * long)
    # Each worker's activations, what passes through while it works, and the exploration before it.
    working = chunk * config.batch * number * (8 * config.hidden + 6 * contract.STATE_DIM)
    exploring = chunk * EXPLORATION * config.environments * 3 * long
    # What the allocator keeps between.
    return int(1.25 * (policies * own + -(-policies // size) * market + threads * (working + exploring)))


def train(
    bars: Bars,
    *,
    seeds: Sequence[int],
    folds: Sequence[range | Fold],
    settings: Sequence[Settings] = (Settings(),),
    device: str = "cpu",
    threads: int | None = None,
    checkpoint: str | None = None,
    checkpoint_every: int = 25,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> tuple[Trained, ...]:
    """Train one policy per (setting, fold, seed), seeds innermost; the same inputs give the same bytes.

    Parameters
    ----------
    folds : what each policy may see of ``bars``: a range of bars, or several (of histories that
        :func:`layer3.agent.bars.concatenate` joined)
    device : "cpu" or "cuda"
    threads : workers on a CPU, by default one per core; the result does not depend on it
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
    workers = _checked(seeds, windows, settings, device, threads, checkpoint, checkpoint_every)
    for fold in windows:
        for window in fold:
            _check_learnable(bars, window)
    members = [(seed, fold) for fold in windows for seed in seeds]
    for setting in settings:
        _check_memory(memory_needed(len(members), setting.ppo, len(bars), device, workers), len(members), device)
    total = sum(setting.ppo.updates * setting.ppo.samples for setting in settings) * len(members)
    started, done = time.perf_counter(), 0
    trained: list[Trained] = []
    with single_threaded(), ThreadPoolExecutor(workers) as pool:
        for number, setting in enumerate(settings):
            population = _Population(bars, members, setting, torch.device(device), pool, workers)
            saved = checkpoints.Checkpoint(checkpoint, population.identity(bars)) if checkpoint else None
            if saved:
                population.resume(saved)
            places = tuple(range(number * len(members), (number + 1) * len(members)))
            updates, samples = setting.ppo.updates, setting.ppo.samples * len(members)
            while population.update < updates:
                figures = population.improve(time.perf_counter() - started, saved)
                if saved and (population.update % checkpoint_every == 0 or population.update == updates):
                    saved.write(population.snapshot(), population.generators())
                at = done + population.update * samples
                on_progress(Report(at, total, time.perf_counter() - started, places, figures))
            done += updates * samples
            trained += population.results()
    return tuple(trained)


class _Population:
    """All policies of one setting, and what their training has come to."""

    def __init__(
        self,
        bars: Bars,
        members: Sequence[tuple[int, Fold]],
        settings: Settings,
        device: torch.device,
        pool: ThreadPoolExecutor,
        workers: int,
    ) -> None:
        config, count = settings.ppo, len(members)
        self._members, self._settings, self._pool = members, settings, pool
        self._per_year = math.sqrt(_YEAR_SECONDS / bars.interval_seconds)
        self.update = 0
        host = device.type == "cpu"
        size = _CHUNK if host else count
        self._chunks = [slice(first, min(first + size, count)) for first in range(0, count, size)]

        def team(chunk: slice) -> Team:
            return Team(bars, chunk.start, members[chunk], settings.environment, config, device, on_host=host)

        self._teams = list(pool.map(team, self._chunks))
        self._networks: SimpleQueue[tuple[Network, Network]] = SimpleQueue()
        for _ in range(workers if host else 1):
            shape = (min(size, count), config.batch, config.hidden)
            self._networks.put((Network(*shape, 2, device), Network(*shape, 1, device)))
        generators = [torch.Generator().manual_seed(seed) for seed, _ in members]
        biases = ([0.0, config.log_sd_start], [0.0])
        self._state: dict[str, Tensor] = {}
        for name, bias, gain in zip(("actor", "critic"), biases, (0.01, 1.0), strict=True):
            weights = torch.stack([initial_weights(config.hidden, bias, gain, g) for g in generators]).to(device)
            self._state |= {
                name: weights,
                f"{name}.mean": torch.zeros_like(weights),
                f"{name}.square": torch.zeros_like(weights),
                f"{name}.steps": torch.zeros(count, 1, device=device),
            }
        t, n = config.rollout, config.environments
        shape = (count, t, n)
        self._seen = Experience(
            states=torch.empty(*shape, contract.STATE_DIM, device=device),
            last_states=torch.empty(count, n, contract.STATE_DIM, device=device),
            actions=torch.empty(shape, device=device),
            log_density=torch.empty(shape, device=device),
            rewards=torch.empty(shape, device=device),
            terminated=torch.zeros(shape, dtype=torch.bool, device=device),
            truncated=torch.zeros(t, n, dtype=torch.bool, device=device),
            final_states=torch.empty(count, 0, contract.STATE_DIM, device=device),
        )
        self._growth = torch.empty(shape, dtype=torch.float64, device=device)
        self._curves = np.zeros((config.updates, count, len(_FIGURES)))

    def improve(self, seconds: float, saved: checkpoints.Checkpoint | None) -> tuple[Progress, ...]:
        """One rollout and one update of every policy; where each stands then."""
        config = self._settings.ppo
        self._seen.truncated.zero_()
        cut = self._pool.map(
            lambda team: team.walk(self._state["actor"][team.places], self._seen, self._growth), self._teams
        )
        final_states = torch.cat(list(cut))
        order = torch.from_numpy(self._orders()).to(final_states.device)
        rate = config.rate(self.update)
        views = [_part(self._seen, final_states, chunk) for chunk in self._chunks]
        judged = list(self._pool.map(self._judge, self._chunks, views))
        halves = []
        for chunk, view, (advantages, goals, _) in zip(self._chunks, views, judged, strict=True):
            halves.append(self._pool.submit(self._half, "actor", chunk, view, advantages, order[chunk], rate))
            halves.append(self._pool.submit(self._half, "critic", chunk, view, goals, order[chunk], rate))
        actors = [half.result() for half in halves][::2]
        self.update += 1
        multiplier = contract.MULTIPLIER_HIGH * torch.sigmoid(self._seen.actions.flatten(1))
        growth = self._growth.flatten(1)
        deviation = growth.std(dim=1)
        columns = {
            "reward": self._seen.rewards.flatten(1).mean(1),
            "sharpe": torch.where(deviation > 0.0, self._per_year * growth.mean(1) / deviation, 0.0),
            "multiplier_mean": multiplier.mean(1),
            "multiplier_sd": multiplier.std(1),
            "explained_variance": torch.cat([explained for _, _, explained in judged]),
            **{
                name: torch.cat([getattr(figures, name) for figures in actors])
                for name in ("entropy", "kl", "clip_fraction", "gradient")
            },
        }
        table = self._curves[self.update - 1]
        known = {"steps": self.update * config.samples, "total_steps": config.updates * config.samples}
        for column, name in enumerate(_FIGURES):
            if name in columns:
                table[:, column] = columns[name].double().cpu().numpy()
            else:
                table[:, column] = known.get(name, rate if name == "learning_rate" else seconds)
        self._check_finite(table, saved)
        return tuple(_progress(row) for row in table)

    def _orders(self) -> NDArray[np.int64]:
        """Which sample comes when, (P, epochs, T n), each policy's from its own generator."""
        config = self._settings.ppo
        generators = [rng for team in self._teams for rng in team.generators]
        return np.stack([[rng.permutation(config.samples) for _ in range(config.epochs)] for rng in generators])

    def _judge(self, chunk: slice, view: Experience) -> tuple[Tensor, Tensor, Tensor]:
        networks = self._networks.get()
        try:
            return ppo.advantages_of(networks[1], self._state["critic"][chunk], view, self._settings.ppo)
        finally:
            self._networks.put(networks)

    def _half(
        self, name: str, chunk: slice, view: Experience, goals: Tensor, order: Tensor, rate: float
    ) -> ppo.ActorFigures | None:
        adam = Adam(*(self._state[f"{name}{part}"][chunk] for part in ("", ".mean", ".square", ".steps")))
        actor, critic = networks = self._networks.get()
        try:
            if name == "actor":
                return ppo.improve_actor(actor, adam, view, goals, order, self._settings.ppo, rate)
            ppo.improve_critic(critic, adam, view, goals, order, self._settings.ppo, rate)
            return None
        finally:
            self._networks.put(networks)

    def _check_finite(self, table: NDArray[np.float64], saved: checkpoints.Checkpoint | None) -> None:
        weights = torch.cat([self._state["actor"], self._state["critic"]], dim=1).sum(1).cpu().numpy()
        bad = np.flatnonzero(~(np.isfinite(table).all(axis=1) & np.isfinite(weights)))
        if not bad.size:
            return
        seed, _ = self._members[bad[0]]
        figures = _progress(table[bad[0]])
        kept = saved.describe() if saved else "there is no checkpoint"
        raise TrainingError(
            f"training of seed {seed} diverged after {figures.steps:,} steps (reward {figures.reward}, "
            f"KL {figures.kl}, explained variance {figures.explained_variance}; {bad.size} of {len(table)} policies): "
            f"lower the learning rate of {self._settings.ppo.learning_rate} or check the data; no policy was written, "
            f"{kept}"
        )

    def identity(self, bars: Bars) -> dict[str, Any]:
        """What makes this training this one and no other."""
        return checkpoints.identity(bars, self._members, self._settings)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Every array that the next update depends on, and the curves so far."""
        arrays: dict[str, NDArray[Any]] = {name: tensor.cpu().numpy() for name, tensor in self._state.items()}
        walks = [team.environment.snapshot() for team in self._teams]
        # Joined, so that a training may be taken up with another number of workers.
        arrays |= {f"walk.{name}": np.concatenate([walk[name] for walk in walks], axis=-1) for name in walks[0]}
        return arrays | {"curves": self._curves[: self.update]}

    def generators(self) -> list[dict[str, Any]]:
        """Where each policy's random stream stands."""
        return [dict(rng.bit_generator.state) for team in self._teams for rng in team.generators]

    def resume(self, saved: checkpoints.Checkpoint) -> None:
        """Go on from ``saved``, if there is one."""
        found = saved.read()
        if found is None:
            return
        arrays, generators = found
        for name, tensor in self._state.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.update = len(arrays["curves"])
        self._curves[: self.update] = arrays["curves"]
        n = self._settings.ppo.environments
        for team in self._teams:
            rows = slice(team.places.start * n, team.places.stop * n)
            walk = {name[5:]: array[..., rows] for name, array in arrays.items() if name.startswith("walk.")}
            team.resume(walk, generators[team.places])

    def results(self) -> list[Trained]:
        """Every policy, once training is over."""
        config = self._settings.ppo
        w1, b1, w2, b2, w3, b3 = (part.cpu().numpy() for part in weights_of(self._state["actor"], config.hidden, 2))
        trained = []
        for team in self._teams:
            mean, std = team.mean[:, 0].cpu().numpy(), team.std[:, 0].cpu().numpy()
            for own, place in enumerate(range(team.places.start, team.places.stop)):
                seed, fold = self._members[place]
                tensors = {
                    "mean": mean[own],
                    "std": std[own],
                    "w1": w1[place].T,
                    "b1": b1[place, 0],
                    "w2": w2[place].T,
                    "b2": b2[place, 0],
                    "w3": w3[place].T,
                    "b3": b3[place, 0],
                }
                curves = tuple(_progress(row) for row in self._curves[:, place])
                copied = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
                trained.append(Trained(seed, tuple(fold), self._settings, copied, team.kept[own], curves))
        return trained


def _part(seen: Experience, final_states: Tensor, chunk: slice) -> Experience:
    """A chunk's policies of a rollout."""
    return Experience(
        states=seen.states[chunk],
        last_states=seen.last_states[chunk],
        actions=seen.actions[chunk],
        log_density=seen.log_density[chunk],
        rewards=seen.rewards[chunk],
        terminated=seen.terminated[chunk],
        truncated=seen.truncated,
        final_states=final_states[chunk],
    )


def _progress(row: NDArray[np.float64]) -> Progress:
    values = dict(zip(_FIGURES, row.tolist(), strict=True))
    return Progress(**{**values, "steps": int(values["steps"]), "total_steps": int(values["total_steps"])})


def _checked(
    seeds: Sequence[int],
    folds: Sequence[Fold],
    settings: Sequence[Settings],
    device: str,
    threads: int | None,
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
    workers = machine.cores() if threads is None else threads
    if workers < 1:
        raise ConfigurationError(f"threads is {threads}, expected at least 1")
    if checkpoint is not None and len(settings) > 1:
        raise ConfigurationError(f"{len(settings)} settings share no checkpoint: train them one after another")
    if checkpoint_every < 1:
        raise ConfigurationError(f"checkpoint_every is {checkpoint_every}, expected at least 1 update")
    return workers if device == "cpu" else 1


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
        raise TrainingError(
            f"the price is {bars.open[window.start]} on all {len(window):,} bars of the training period: "
            "there is nothing to learn from a constant price; check the data"
        )
    if not np.any(bars.base_fraction[part] * bars.direction[part]):
        raise TrainingError(
            f"the sizing chain holds nothing on all {len(window):,} bars of the training period, so no multiplier "
            "matters: check the signals (all HOLD? confidence or expected return too low?), or give a longer "
            "history: the baseline needs 30 days before it speaks"
        )
