"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) for one number in [0, 2].

Read it top to bottom: configuration, networks, advantages, one update, the loop. The actor gives
a Beta distribution (Chou et al. 2017) on [0, 1] that is stretched to the multiplier's range, so
that no probability lies outside the bounds and nothing has to be clipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment
from layer3.agent.policy import OBSERVATION_CLIP
from layer3.errors import ConfigurationError, TrainingError

__all__ = ["PPOConfig", "Progress", "Trained", "generalised_advantages", "train"]

Floats = NDArray[np.float64]
States = NDArray[np.float32]

#: Keeps sampled actions off the ends of [0, 1], where the Beta's log-density may be infinite.
_ACTION_MARGIN: Final = 1e-6


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Every hyperparameter. Batch, epochs, rollout and rate were measured to learn; the customary
    64 x 10 epochs at 3e-4 collapse the action's spread on this problem."""

    steps: int = 250_000
    """Environment steps in all."""
    environments: int = 128
    """Windows that run side by side."""
    rollout: int = 16
    """Steps of each window between two updates; environments x rollout samples make an update."""
    batch: int = 1_024
    """Samples per gradient step."""
    epochs: int = 4
    """Passes over each rollout."""
    learning_rate: float = 6e-4
    """Adam's rate at the start; it falls linearly to 5 % of that."""
    gamma: float = 0.99
    """Discount per bar."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage."""
    clip: float = 0.2
    """Largest change of a probability ratio that still earns gradient."""
    entropy: float = 1e-3
    """Weight of the distribution's entropy."""
    value: float = 0.5
    """Weight of the critic's squared error."""
    max_gradient: float = 0.5
    """Largest gradient norm, for actor and critic each."""
    hidden: int = 128
    """Width of both hidden layers."""
    threads: int = 1
    """Torch's CPU threads; fixed, because another number sums in another order."""

    def __post_init__(self) -> None:
        for name in ("steps", "environments", "rollout", "batch", "epochs", "hidden", "threads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "clip", "max_gradient"):
            if not getattr(self, name) > 0.0:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected a positive number")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected a number in (0, 1]")
        if self.steps < self.environments * self.rollout:
            raise ConfigurationError(
                f"ppo: steps = {self.steps:,} is less than one rollout of {self.environments * self.rollout:,}"
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after an update; rewards are per step, in percent of equity."""

    steps: int
    total_steps: int
    seconds: float
    reward: float
    multiplier_mean: float
    multiplier_sd: float
    entropy: float
    kl: float
    clip_fraction: float
    explained_variance: float


@dataclass(frozen=True, slots=True)
class Trained:
    """Tensors for :func:`layer3.agent.policy.save_policy`, observed states (n, 16), and the curves."""

    tensors: dict[str, States]
    states: States
    curves: tuple[Progress, ...]


class _Networks(nn.Module):
    """Separate actor (alpha, beta of a Beta distribution) and critic."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.actor = _mlp(hidden, 2, 0.01, generator)
        self.critic = _mlp(hidden, 1, 1.0, generator)

    def distribution(self, states: Tensor) -> torch.distributions.Beta:
        shape = nn.functional.softplus(self.actor(states)) + 1.0
        return torch.distributions.Beta(shape[..., 0], shape[..., 1], validate_args=False)

    def value(self, states: Tensor) -> Tensor:
        return torch.as_tensor(self.critic(states)).squeeze(-1)


def _mlp(hidden: int, outputs: int, last_gain: float, generator: torch.Generator) -> nn.Sequential:
    sizes = ((contract.STATE_DIM, hidden, 2**0.5), (hidden, hidden, 2**0.5), (hidden, outputs, last_gain))
    layers: list[nn.Module] = []
    for inputs, width, gain in sizes:
        # The usual constructor would draw weights from the caller's global stream.
        linear = nn.utils.skip_init(nn.Linear, inputs, width)
        nn.init.orthogonal_(linear.weight, gain, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def generalised_advantages(
    rewards: Floats, values: Floats, next_values: Floats, truncated: NDArray[np.bool_], gamma: float, lam: float
) -> Floats:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), shape (t, n).

    ``next_values[k]`` is the value of the state that step k led to *before* any restart: an
    episode that ends at its time limit is bootstrapped from there, and no advantage flows back
    across the restart.
    """
    advantages = np.empty_like(rewards)
    tail = np.zeros(rewards.shape[1])
    deltas = rewards + gamma * next_values - values
    for k in range(len(rewards) - 1, -1, -1):
        tail = deltas[k] + gamma * lam * np.where(truncated[k], 0.0, tail)
        advantages[k] = tail
    return advantages


@dataclass(frozen=True, slots=True)
class _Rollout:
    states: Tensor
    """(t * n, 16), normalised"""
    actions: Tensor
    """(t * n,), in (0, 1)"""
    rewards: Floats
    truncated: NDArray[np.bool_]
    next_states: Tensor
    """(t * n, 16), normalised: what each step led to, before any restart"""


class _Normaliser:
    """Fixed centre and scale of the observations, measured once under random multipliers."""

    def __init__(self, states: States) -> None:
        self.mean = states.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = states.std(axis=0, dtype=np.float64)
        # A number that never varies (an absent tier, a missing feed) keeps its own scale.
        self.std = np.where(deviation > 1e-4, deviation, 1.0).astype(np.float32)

    def __call__(self, states: States) -> Tensor:
        return torch.from_numpy(np.clip((states - self.mean) / self.std, -OBSERVATION_CLIP, OBSERVATION_CLIP))


def _explore(environment: TradingEnvironment, steps: int, n: int, rng: np.random.Generator) -> States:
    """States (steps * n, 16) met under multipliers that are random and held for a while."""
    seen = [environment.reset()]
    multiplier = rng.uniform(contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH, n)
    for _ in range(steps - 1):
        changed = rng.random(n) < 0.1
        multiplier = np.where(changed, rng.uniform(contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH, n), multiplier)
        seen.append(environment.step(multiplier).states)
    return np.concatenate(seen)


def _collect(
    environment: TradingEnvironment,
    networks: _Networks,
    normalise: _Normaliser,
    states: States,
    config: PPOConfig,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[_Rollout, States]:
    seen, taken, rewards, truncated, led_to = [], [], [], [], []
    for _ in range(config.rollout):
        observed = normalise(states).to(device)
        with torch.no_grad():
            beta = networks.distribution(observed)
            alpha, other = beta.concentration1.cpu().numpy(), beta.concentration0.cpu().numpy()
        action = np.clip(rng.beta(alpha, other), _ACTION_MARGIN, 1.0 - _ACTION_MARGIN).astype(np.float32)
        step = environment.step(contract.MULTIPLIER_HIGH * action.astype(np.float64))
        seen.append(observed)
        taken.append(torch.from_numpy(action))
        rewards.append(step.reward)
        truncated.append(step.truncated)
        led_to.append(normalise(step.final_states))
        states = step.states
    return (
        _Rollout(
            torch.cat(seen),
            torch.cat(taken).to(device),
            np.stack(rewards),
            np.stack(truncated),
            torch.cat(led_to).to(device),
        ),
        states,
    )


def _batches(n: int, config: PPOConfig, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        yield from torch.randperm(n, generator=generator).split(config.batch)


def _update(
    networks: _Networks,
    optimiser: torch.optim.Optimizer,
    rollout: _Rollout,
    config: PPOConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    shape = rollout.rewards.shape
    with torch.no_grad():
        old_log_prob = networks.distribution(rollout.states).log_prob(rollout.actions)
        values = networks.value(rollout.states)
        next_values = networks.value(rollout.next_states)
    plain = values.double().cpu().numpy().reshape(shape)
    advantages = generalised_advantages(
        rollout.rewards,
        plain,
        next_values.double().cpu().numpy().reshape(shape),
        rollout.truncated,
        config.gamma,
        config.gae_lambda,
    )
    goals = advantages + plain
    spread = float(goals.var())
    explained = 1.0 - float((goals - plain).var()) / spread if spread > 0.0 else 0.0
    device = values.device
    goal = torch.from_numpy(goals.ravel()).float().to(device)
    advantage = torch.from_numpy(advantages.ravel()).float().to(device)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    sums = {"entropy": 0.0, "kl": 0.0, "clip_fraction": 0.0}
    count = 0
    for rows in _batches(len(rollout.states), config, generator):
        rows = rows.to(device)
        states = rollout.states[rows]
        beta = networks.distribution(states)
        log_ratio = beta.log_prob(rollout.actions[rows]) - old_log_prob[rows]
        ratio = log_ratio.exp()
        gain = advantage[rows]
        clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
        entropy = beta.entropy().mean()
        loss = -torch.min(ratio * gain, clipped * gain).mean() - config.entropy * entropy
        loss = loss + config.value * nn.functional.mse_loss(networks.value(states), goal[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(networks.actor.parameters(), config.max_gradient)
        nn.utils.clip_grad_norm_(networks.critic.parameters(), config.max_gradient)
        optimiser.step()
        with torch.no_grad():
            sums["entropy"] += float(entropy)
            sums["kl"] += float((ratio - 1.0 - log_ratio).mean())
            sums["clip_fraction"] += float(((ratio - 1.0).abs() > config.clip).float().mean())
        count += 1
    return {name: total / count for name, total in sums.items()} | {"explained_variance": explained}


def train(
    bars: Bars,
    window: range,
    *,
    seed: int,
    config: PPOConfig | None = None,
    environment: EnvironmentConfig | None = None,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Train one policy on ``bars[window]``; the same seed, data, machine and threads give the same bytes.

    Raises
    ------
    TrainingError : the window cannot hold an episode, nothing in it can be traded or its price is
        constant, or training ended in numbers that are not finite
    """
    config = config or PPOConfig()
    environment = environment or EnvironmentConfig()
    _check_learnable(bars, window)
    previous_threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _train(bars, window, seed, config, environment, torch.device(device), on_progress)
    finally:
        torch.set_num_threads(previous_threads)


def _train(
    bars: Bars,
    window: range,
    seed: int,
    config: PPOConfig,
    environment_config: EnvironmentConfig,
    device: torch.device,
    on_progress: Callable[[Progress], None],
) -> Trained:
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    n = config.environments
    environment = TradingEnvironment(bars, window, n, environment_config, rng)
    seen = _explore(environment, 256, n, rng)
    normalise = _Normaliser(seen)
    networks = _Networks(config.hidden, generator).to(device)
    optimiser = torch.optim.Adam(networks.parameters(), lr=config.learning_rate, eps=1e-5)
    updates = config.steps // (n * config.rollout)
    curves: list[Progress] = []
    states = environment.reset()
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * (1.0 - 0.95 * update / updates)
        rollout, states = _collect(environment, networks, normalise, states, config, rng, device)
        figures = _update(networks, optimiser, rollout, config, generator)
        multipliers = contract.MULTIPLIER_HIGH * rollout.actions
        progress = Progress(
            steps=(update + 1) * n * config.rollout,
            total_steps=updates * n * config.rollout,
            seconds=time.perf_counter() - started,
            reward=float(rollout.rewards.mean()),
            multiplier_mean=float(multipliers.mean()),
            multiplier_sd=float(multipliers.std()),
            **figures,
        )
        if not np.isfinite([progress.reward, progress.kl, progress.explained_variance]).all():
            raise TrainingError(
                f"training diverged after {progress.steps:,} steps (reward {progress.reward}, KL {progress.kl}): "
                f"lower the learning rate of {config.learning_rate} or check the data; no policy was written"
            )
        curves.append(progress)
        on_progress(progress)
    picked = seen[np.linspace(0, len(seen) - 1, 4_096).astype(int)]
    return Trained(_tensors(networks, normalise), picked, tuple(curves))


def _tensors(networks: _Networks, normalise: _Normaliser) -> dict[str, States]:
    tensors = {"mean": normalise.mean, "std": normalise.std}
    linears = [layer for layer in networks.actor if isinstance(layer, nn.Linear)]
    for number, linear in enumerate(linears, start=1):
        tensors[f"w{number}"] = linear.weight.detach().cpu().numpy().T.copy()
        tensors[f"b{number}"] = linear.bias.detach().cpu().numpy().copy()
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise TrainingError(f"training ended with numbers in {name} that are not finite; no policy was written")
    return tensors


def _check_learnable(bars: Bars, window: range) -> None:
    part = slice(window.start, window.stop)
    for field in fields(Bars):
        bad = np.flatnonzero(~np.isfinite(getattr(bars, field.name)[part]))
        if bad.size:
            raise TrainingError(
                f"{field.name} at bar {window.start + bad[0]} is {getattr(bars, field.name)[part][bad[0]]}, "
                "which is not finite: prepare the data again with ingest"
            )
    if np.ptp(bars.open[part]) == 0.0:
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
