"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) for one number in [0, 2].

Read it top to bottom: configuration, what is told after an update, advantages, and the two halves of
an update; the action's distribution is :mod:`layer3.agent.distribution`. Everything has a leading axis
of C policies that learn side by side and never touch each other (:mod:`layer3.agent.population` holds
the loop); what they may differ in is in :class:`Columns`.

The actor's action is ``2 sigmoid(u)`` with ``u ~ Normal(m, s)``: no probability lies outside
[0, 2], nothing is clipped, and since the map from u to the action has no parameters, ratios of
densities are those of u. The slopes of both losses are written out; tests compare them with autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from layer3.agent.distribution import bounded_log_sd, entropy, entropy_slopes
from layer3.agent.networks import Adam, Layers, Network, layers_of, logistic
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
    "generalised_advantages",
    "improve_actor",
    "improve_critic",
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
        if self.samples < 2:
            raise ConfigurationError(
                "ppo: environments x rollout = 1 sample, expected at least 2, so that advantages have a spread"
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

    ``states`` (C, T, n, 17) and ``last_states`` (C, n, 17) normalised, a one behind; ``actions`` (C, T, n) the u's;
    ``log_density`` of them when drawn; ``rewards`` (C, T, n); ``terminated`` (C, T, n) and ``truncated`` (T, n) bool;
    ``final_states`` (C, r, 17): what the r truncated windows would have seen, in the order of ``truncated``'s rows.
    """

    states: Tensor
    last_states: Tensor
    actions: Tensor
    log_density: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_states: Tensor

    def part(self, policies: slice) -> Experience:
        """Some of the policies' own."""
        whole = {name: getattr(self, name) for name in self.__slots__}
        return Experience(**{name: one if name == "truncated" else one[policies] for name, one in whole.items()})


@dataclass(frozen=True, slots=True)
class ActorFigures:
    """What the actor's half of an update measured, each (C,)."""

    kl: Tensor
    clip_fraction: Tensor
    gradient: Tensor
    entropy: Tensor


#: Products of fewer rows are summed in another order for one policy than for several, and a policy would not be
#: the one that is trained alone.
_FEWEST_ROWS: Final = 64


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


def values_of(critic: Network, layers: Layers, states: Tensor, batch: int) -> Tensor:
    """The critic's values (C, m) of ``states`` (C, m, 17), at most ``batch`` rows at a time."""
    count = states.shape[1]
    missing = min(_FEWEST_ROWS, batch) - (count % batch or batch)
    if missing > 0:
        states = torch.nn.functional.pad(states, (0, 0, 0, missing))
    pieces = [critic.forward(layers, piece)[:, 0] for piece in states.split(batch, dim=1)]
    return torch.cat(pieces, dim=1)[:, :count]


def advantages_of(
    critic: Network, layers: Layers, seen: Experience, columns: Columns, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised advantages, the critic's goals, and its explained variance: (C, T n), (C, T n), (C,)."""
    c, t, n = seen.rewards.shape
    values = values_of(critic, layers, seen.states.flatten(1, 2), batch).view(c, t, n)
    following = torch.empty_like(values)
    following[:, :-1] = values[:, 1:]
    ends = values_of(critic, layers, torch.cat((seen.last_states, seen.final_states), dim=1), batch)
    following[:, -1] = ends[:, :n]
    # Not by a mask as an index: on a GPU that waits to learn how many there are.
    following.masked_scatter_(seen.truncated, ends[:, n:])
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
    """Slope of the actor's loss by its ``outputs`` (C, 2, B), and KL and clip fraction of the batch, (C,).

    The loss is ``-mean min(r A, clip(r, 1 - c, 1 + c) A) - entropy weight * mean entropy`` with
    r the ratio of densities to when the ``actions`` (C, B) were drawn.
    """
    mean, raw = outputs.unbind(1)
    log_sd = bounded_log_sd(raw)
    sd = log_sd.exp()
    inverse = sd.reciprocal()
    z = (actions - mean).mul_(inverse)
    square = z.square()
    log_ratio = torch.add(log_sd, square, alpha=0.5).add_(old).neg_()
    ratio = log_ratio.exp()
    beyond = ratio - ratio.clamp(columns.lowest, columns.highest)
    # Not a product with what is within: beyond the clip a ratio may have overflowed.
    by_density = torch.where(beyond * advantages <= 0.0, ratio * advantages, 0.0)
    slope = entropy_slopes(mean, sd).mul_(columns.entropy.unsqueeze(-1))
    by_mean, by_log_sd = slope.unbind(1)
    by_mean.addcmul_(by_density, z.mul_(inverse))
    by_log_sd.addcmul_(by_density, square.sub_(1.0))
    slope.mul_(-1.0 / outputs.shape[2])
    # Beyond its bounds a log standard deviation may come back, but go no further: with no slope at all it would stay.
    by_log_sd.masked_fill_((raw - log_sd).mul_(by_log_sd) < 0.0, 0.0)
    return slope, (ratio - 1.0).sub_(log_ratio).mean(1), (beyond != 0.0).float().mean(1)


def improve_actor(
    network: Network, adam: Adam, seen: Experience, advantages: Tensor, order: Tensor, columns: Columns, batch: int
) -> ActorFigures:
    """The actor's half of an update, in gradient steps of ``batch`` samples: ``order`` (C, epochs, T n) says which
    sample comes when."""
    size = len(advantages)
    states = seen.states.flatten(0, 2)
    numbers = torch.stack((seen.actions.flatten(), seen.log_density.flatten(), advantages.flatten()))
    alive = torch.ones_like(advantages[:, :1])
    sums = torch.zeros(3, size, device=states.device)
    count = torch.zeros_like(alive[:, 0])
    outputs = states.new_zeros(size, 2, 1)
    own, slopes = (layers_of(flat, network.hidden, 2) for flat in (adam.weights, adam.gradient))
    for epoch in _places(order).unbind(1):
        figures = []
        for part in epoch.split(batch, dim=1):
            rows = part.flatten()
            x = states.index_select(0, rows).view(size, -1, states.shape[1])
            layers = logistic(own)
            outputs = network.forward(layers, x)
            actions, old, gains = numbers.index_select(1, rows).view(3, size, -1).unbind()
            slope, kl, clipped = actor_slope(outputs, actions, old, gains, columns)
            network.backward(layers, x, slope, slopes)
            norm = adam.step(columns.rate, columns.max_gradient, alive)
            figures.append(torch.stack((kl, clipped, norm[:, 0])))
        told, now = torch.stack(figures), alive[:, 0]
        sums += told.sum(0) * now
        count += len(figures) * now
        # A policy that has moved far enough stands still; the others go on.
        alive = alive * (told[:, 0].mean(0).unsqueeze(1) <= columns.target_kl).float()
    mean, log_sd = outputs[:, 0], bounded_log_sd(outputs[:, 1])
    kl_mean, clip_mean, gradient_mean = sums / count
    return ActorFigures(kl_mean, clip_mean, gradient_mean, entropy(mean, log_sd).mean(1))


def improve_critic(
    network: Network, adam: Adam, seen: Experience, goals: Tensor, order: Tensor, columns: Columns, batch: int
) -> None:
    """The critic's half of an update: least squares on ``goals`` (C, T n), by the same ``order``."""
    size, states, wanted = len(goals), seen.states.flatten(0, 2), goals.flatten()
    alive = torch.ones_like(goals[:, :1])
    slopes = [(2.0 * columns.value / rows.shape[1]).to(goals) for rows in order[:, 0].split(batch, dim=1)]
    own, by_own = (layers_of(flat, network.hidden, 1) for flat in (adam.weights, adam.gradient))
    for epoch in _places(order).unbind(1):
        for part, slope in zip(epoch.split(batch, dim=1), slopes, strict=True):
            rows = part.flatten()
            x = states.index_select(0, rows).view(size, -1, states.shape[1])
            layers = logistic(own)
            error = network.forward(layers, x) - wanted.index_select(0, rows).view(size, 1, -1)
            network.backward(layers, x, error.mul_(slope.unsqueeze(-1)), by_own)
            adam.step(columns.rate, columns.max_gradient, alive)


def _places(order: Tensor) -> Tensor:
    """``order`` (C, epochs, m) of each policy's own samples as places among the C m of all."""
    c, _, m = order.shape
    return order + torch.arange(0, c * m, m, device=order.device).view(-1, 1, 1)
