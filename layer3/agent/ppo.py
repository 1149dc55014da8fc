"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) for one number in [0, 2].

Read it top to bottom: configuration, what is told after an update, the action's distribution,
advantages, and the two halves of an update. Everything has a leading axis of C policies that learn
side by side and never touch each other (:mod:`layer3.agent.population` holds the loop); what they may
differ in is in :class:`Columns`.

The actor's action is ``2 sigmoid(u)`` with ``u ~ Normal(m, s)``: no probability lies outside
[0, 2], nothing is clipped, and since the map from u to the action has no parameters, ratios of
densities are those of u. The slopes of both losses are written out; tests compare them with autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from layer3.agent.networks import Adam, Network
from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW
from layer3.errors import ConfigurationError

__all__ = [
    "ActorFigures",
    "Columns",
    "Experience",
    "PPOConfig",
    "Progress",
    "actor_slope",
    "advantages_of",
    "entropy",
    "generalised_advantages",
    "improve_actor",
    "improve_critic",
    "log_density",
    "values_of",
]


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Every hyperparameter. Batch, epochs, rollout, rate and first spread were measured to learn (docs/training.md);
    the customary 64 x 10 epochs at 3e-4 collapse the action's spread on this problem."""

    steps: int = 500_000
    """Environment steps in all."""
    environments: int = 128
    """Windows that run side by side."""
    rollout: int = 16
    """Steps of each window between two updates; environments x rollout samples make an update."""
    batch: int = 1_024
    """Samples per gradient step."""
    epochs: int = 4
    """Passes over each rollout, unless ``target_kl`` ends them."""
    learning_rate: float = 2e-3
    """Adam's rate at the start."""
    final_rate: float = 0.05
    """Share of the rate that is left at the end; it falls linearly."""
    gamma: float = 0.99
    """Discount per bar."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage."""
    clip: float = 0.2
    """Largest change of a probability ratio that still earns gradient."""
    entropy: float = 1e-3
    """Weight of the entropy of the action's distribution."""
    value: float = 0.5
    """Weight of the critic's squared error."""
    max_gradient: float = 0.5
    """Largest gradient norm, for actor and critic each."""
    target_kl: float = 0.1
    """Divergence from the rollout's policy at which the actor's epochs end; a healthy run stays far below."""
    log_sd_start: float = 1.4
    """Log of the action's first standard deviation before the sigmoid: so wide that it mostly tries the ends.
    Wavering costs commission, and a policy that begins narrow learns to stand still before it learns when to act."""
    hidden: int = 128
    """Width of both hidden layers."""

    def __post_init__(self) -> None:
        for name in ("steps", "environments", "rollout", "batch", "epochs", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"ppo: {name} = {value}, expected a whole number of at least 1")
        for name in ("learning_rate", "clip", "max_gradient", "target_kl"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected a positive number")
        for name in ("entropy", "value"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected a number of at least 0")
        for name in ("gamma", "gae_lambda", "final_rate"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigurationError(f"ppo: {name} = {getattr(self, name)}, expected a number in (0, 1]")
        if not LOG_SD_LOW <= self.log_sd_start <= LOG_SD_HIGH:
            raise ConfigurationError(
                f"ppo: log_sd_start = {self.log_sd_start}, expected a number in [{LOG_SD_LOW}, {LOG_SD_HIGH}]"
            )
        if self.steps < self.samples:
            raise ConfigurationError(
                f"ppo: steps = {self.steps:,} is less than one rollout of {self.environments} windows x "
                f"{self.rollout} steps = {self.samples:,}"
            )

    @property
    def samples(self) -> int:
        """Samples of one rollout."""
        return self.environments * self.rollout

    @property
    def updates(self) -> int:
        """Rollouts, each followed by an update."""
        return self.steps // self.samples

    @property
    def shape(self) -> tuple[int, ...]:
        """What policies must have in common to be trained in the same products: the sizes of their tensors, and
        how many updates they make."""
        return self.hidden, self.environments, self.rollout, self.batch, self.epochs, self.updates

    def rate(self, update: int) -> float:
        """Adam's rate in update number ``update``, from 0."""
        return self.learning_rate * (1.0 - (1.0 - self.final_rate) * update / self.updates)


@dataclass(frozen=True, slots=True)
class Columns:
    """The hyperparameters of C policies of one shape in one update, each (C, 1).

    ``decay`` is gamma x lambda, ``lowest`` and ``highest`` are 1 -+ clip. Each is computed in double precision and
    rounded once, as torch rounds a plain number; ``value`` only once it is divided by a batch's size.
    """

    rate: Tensor
    gamma: Tensor
    decay: Tensor
    clip: Tensor
    lowest: Tensor
    highest: Tensor
    entropy: Tensor
    max_gradient: Tensor
    target_kl: Tensor
    value: Tensor

    @classmethod
    def of(
        cls, configs: Sequence[PPOConfig], update: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Columns:
        """Of ``configs`` in update number ``update``, from 0."""
        rows = [
            (
                own.rate(update),
                own.gamma,
                own.gamma * own.gae_lambda,
                own.clip,
                1.0 - own.clip,
                1.0 + own.clip,
                own.entropy,
                own.max_gradient,
                own.target_kl,
                own.value,
            )
            for own in configs
        ]
        exact = torch.tensor(rows, dtype=torch.float64, device=device)
        return replace(cls(*exact.to(dtype).split(1, dim=1)), value=exact[:, -1:])

    def part(self, chunk: slice) -> Columns:
        """Some of the policies."""
        return Columns(*(getattr(self, name)[chunk] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one policy stands after an update."""

    steps: int
    total_steps: int
    seconds: float
    reward: float
    """Mean per step, in percent of equity."""
    sharpe: float
    """Annualised, of the log growth of this update's windows taken together; 0 where nothing moved."""
    multiplier_mean: float
    multiplier_sd: float
    """Spread of the multipliers that were tried, over states and draws."""
    entropy: float
    """Of the action's distribution on [0, 2], in nats; log 2 is the most there is."""
    kl: float
    clip_fraction: float
    explained_variance: float
    learning_rate: float
    gradient: float
    """Norm of the actor's gradient before it was cut, mean over the gradient steps."""


@dataclass(frozen=True, slots=True)
class Experience:
    """A rollout of T steps of n windows for C policies, as views of the population's.

    ``states`` (C, T, n, 16) and ``last_states`` (C, n, 16) normalised; ``actions`` (C, T, n) the u's; ``log_density``
    of them when drawn; ``rewards`` (C, T, n); ``terminated`` (C, T, n) and ``truncated`` (T, n) bool;
    ``final_states`` (C, r, 16): what the r truncated windows would have seen, in the order of ``truncated``'s rows.
    """

    states: Tensor
    last_states: Tensor
    actions: Tensor
    log_density: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_states: Tensor


@dataclass(frozen=True, slots=True)
class ActorFigures:
    """What the actor's half of an update measured, each (C,)."""

    kl: Tensor
    clip_fraction: Tensor
    gradient: Tensor
    entropy: Tensor


def log_density(action: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """Log-density of u under Normal(m, s), less the constant -log(2 pi) / 2."""
    return -0.5 * ((action - mean) * torch.exp(-log_sd)).square_() - log_sd


def bounded_log_sd(raw: Tensor) -> Tensor:
    """The network's second number as a log standard deviation."""
    return raw.clamp(LOG_SD_LOW, LOG_SD_HIGH)


_NODES: Final = np.polynomial.hermite_e.hermegauss(16)
#: Products of fewer rows are summed in another order for one policy than for several, and a policy would not be
#: the one that is trained alone.
_FEWEST_ROWS: Final = 64


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    nodes, weights = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in _NODES)
    return nodes, weights / math.sqrt(2.0 * math.pi)


def entropy(mean: Tensor, log_sd: Tensor) -> Tensor:
    """Differential entropy of ``2 sigmoid(u)`` on [0, 2], in nats.

    ``H(u) + E log |d action / d u|``, the expectation by Gauss-Hermite quadrature with 16 nodes.
    """
    nodes, weights = _quadrature(mean)
    u = mean.unsqueeze(-1) + torch.exp(log_sd).unsqueeze(-1) * nodes
    stretch = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
    return log_sd + 0.5 * math.log(2.0 * math.pi * math.e) + math.log(2.0) + stretch @ weights


def _entropy_slopes(mean: Tensor, log_sd: Tensor) -> tuple[Tensor, Tensor]:
    nodes, weights = _quadrature(mean)
    sd = torch.exp(log_sd).unsqueeze(-1)
    tilt = torch.sigmoid(mean.unsqueeze(-1) + sd * nodes).mul_(-2.0).add_(1.0)
    return tilt @ weights, 1.0 + (tilt * sd) @ (weights * nodes)


def generalised_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, gamma: Tensor, decay: Tensor
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), shape (C, T, n).

    ``next_values[:, k]`` is the value of what step k led to *before* any restart: the critic's
    where an episode ran into its time limit (it is bootstrapped there), 0 where the account was
    ruined. Where ``ended``, no advantage flows back across the restart. ``gamma``, ``decay`` as in :class:`Columns`.
    """
    deltas = rewards + gamma.unsqueeze(-1) * next_values - values
    keep = (~ended).to(deltas) * decay.unsqueeze(-1)
    advantages = torch.empty_like(deltas)
    tail = torch.zeros_like(deltas[:, 0])
    for k in range(deltas.shape[1] - 1, -1, -1):
        tail = deltas[:, k] + keep[:, k] * tail
        advantages[:, k] = tail
    return advantages


def values_of(critic: Network, weights: Tensor, states: Tensor, batch: int) -> Tensor:
    """The critic's values (C, m) of ``states`` (C, m, 16), at most ``batch`` rows at a time."""
    count = states.shape[1]
    if count < _FEWEST_ROWS:
        states = torch.nn.functional.pad(states, (0, 0, 0, _FEWEST_ROWS - count))
    pieces = [critic.forward(weights, piece)[..., 0] for piece in states.split(batch, dim=1)]
    return torch.cat(pieces, dim=1)[:, :count]


def advantages_of(
    critic: Network, weights: Tensor, seen: Experience, columns: Columns, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised advantages, the critic's goals, and its explained variance: (C, T n), (C, T n), (C,)."""
    c, t, n = seen.rewards.shape
    values = values_of(critic, weights, seen.states.flatten(1, 2), batch).view(c, t, n)
    following = torch.empty_like(values)
    following[:, :-1] = values[:, 1:]
    following[:, -1] = values_of(critic, weights, seen.last_states, batch)
    if seen.final_states.shape[1]:
        following[:, seen.truncated] = values_of(critic, weights, seen.final_states, batch)
    following = torch.where(seen.terminated, 0.0, following)
    ended = seen.terminated | seen.truncated
    advantages = generalised_advantages(seen.rewards, values, following, ended, columns.gamma, columns.decay)
    goals = (advantages + values).flatten(1)
    spread = goals.var(dim=1)
    explained = torch.where(spread > 0.0, 1.0 - advantages.flatten(1).var(dim=1) / spread, 0.0)
    flat = advantages.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-8)
    return flat, goals, explained


def actor_slope(
    outputs: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, columns: Columns
) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the actor's loss by its ``outputs`` (C, B, 2), and KL and clip fraction of the batch, (C,).

    The loss is ``-mean min(r A, clip(r, 1 - c, 1 + c) A) - entropy weight * mean entropy`` with
    r the ratio of densities to when the ``actions`` (C, B) were drawn.
    """
    mean, raw = outputs[..., 0], outputs[..., 1]
    log_sd = bounded_log_sd(raw)
    inverse = torch.exp(-log_sd)
    z = (actions - mean) * inverse
    log_ratio = z.square().mul_(-0.5).sub_(log_sd).sub_(old)
    ratio = log_ratio.exp()
    within = torch.where(advantages > 0.0, ratio < columns.highest, ratio > columns.lowest)
    # Not a product with `within`: beyond the clip a ratio may have overflowed.
    by_density = torch.where(within, ratio * advantages, 0.0)
    by_mean, by_log_sd = _entropy_slopes(mean, log_sd)
    slope = torch.empty_like(outputs)
    torch.addcmul(by_density * z * inverse, by_mean, columns.entropy, out=slope[..., 0])
    torch.addcmul(by_density * (z.square() - 1.0), by_log_sd, columns.entropy, out=slope[..., 1])
    slope.mul_(-1.0 / outputs.shape[1])
    # Beyond its bounds a log standard deviation may come back, but go no further: with no slope at all it would stay.
    outward = ((raw > LOG_SD_HIGH) & (slope[..., 1] < 0.0)) | ((raw < LOG_SD_LOW) & (slope[..., 1] > 0.0))
    slope[..., 1].masked_fill_(outward, 0.0)
    clipped = ((ratio - 1.0).abs() > columns.clip).float().mean(1)
    return slope, (ratio - 1.0 - log_ratio).mean(1), clipped


def improve_actor(
    network: Network, adam: Adam, seen: Experience, advantages: Tensor, order: Tensor, columns: Columns, batch: int
) -> ActorFigures:
    """The actor's half of an update, in gradient steps of ``batch`` samples: ``order`` (C, epochs, T n) says which
    sample comes when."""
    states, actions, old = seen.states.flatten(1, 2), seen.actions.flatten(1), seen.log_density.flatten(1)
    alive = torch.ones_like(advantages[:, :1])
    sums = torch.zeros(3, len(states), device=states.device)
    count = torch.zeros_like(alive[:, 0])
    outputs = states.new_zeros(len(states), 1, 2)
    for epoch in order.unbind(1):
        kl = torch.zeros_like(count)
        batches = epoch.split(batch, dim=1)
        for rows in batches:
            x = _pick(states, rows)
            outputs = network.forward(adam.weights, x)
            slope, batch_kl, clipped = actor_slope(
                outputs, actions.gather(1, rows), old.gather(1, rows), advantages.gather(1, rows), columns
            )
            network.backward(adam.weights, x, slope, adam.gradient)
            norm = adam.step(columns.rate, columns.max_gradient, alive)
            kl += batch_kl
            now = alive[:, 0]
            sums += torch.stack((batch_kl, clipped, norm[:, 0])) * now
            count += now
        # A policy that has moved far enough stands still; the others go on.
        alive = alive * (kl.unsqueeze(1) / len(batches) <= columns.target_kl).float()
    mean, log_sd = outputs[..., 0], bounded_log_sd(outputs[..., 1])
    kl_mean, clip_mean, gradient_mean = sums / count
    return ActorFigures(kl_mean, clip_mean, gradient_mean, entropy(mean, log_sd).mean(1))


def improve_critic(
    network: Network, adam: Adam, seen: Experience, goals: Tensor, order: Tensor, columns: Columns, batch: int
) -> None:
    """The critic's half of an update: least squares on ``goals`` (C, T n), by the same ``order``."""
    states = seen.states.flatten(1, 2)
    alive = torch.ones_like(goals[:, :1])
    slopes = [(2.0 * columns.value / rows.shape[1]).to(goals) for rows in order[:, 0].split(batch, dim=1)]
    for epoch in order.unbind(1):
        for rows, slope in zip(epoch.split(batch, dim=1), slopes, strict=True):
            x = _pick(states, rows)
            error = network.forward(adam.weights, x)[..., 0] - goals.gather(1, rows)
            network.backward(adam.weights, x, (error * slope).unsqueeze(-1), adam.gradient)
            adam.step(columns.rate, columns.max_gradient, alive)


def _pick(states: Tensor, rows: Tensor) -> Tensor:
    """Rows (C, B) of ``states`` (C, m, 16), each policy its own."""
    c, m, width = states.shape
    offsets = torch.arange(0, c * m, m, device=rows.device).unsqueeze(1)
    return states.reshape(c * m, width).index_select(0, (rows + offsets).flatten()).view(c, -1, width)
