"""A team of policies that walk one environment together, and bring back what they met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.distribution import bounded_log_sd, log_density
from layer3.agent.environment import TradingEnvironment, episode_starts
from layer3.agent.networks import INPUTS, Network, layers_of, logistic
from layer3.agent.policy import OBSERVATION_CLIP
from layer3.agent.ppo import Experience

if TYPE_CHECKING:
    from layer3.agent.population import Settings

__all__ = ["EXPLORATION", "Fold", "Member", "Team"]

States = NDArray[np.float32]
#: The windows of a history that one policy may see.
Fold = Sequence[range]

#: Steps under random multipliers that the observations' centre and scale are measured on.
EXPLORATION: Final = 128
#: Of the states met then, a trained policy brings so many of each step along, for golden pairs.
_KEPT_OF_A_STEP: Final = 8


class Member(NamedTuple):
    """One policy of a population: what it is trained with, and what an error calls it."""

    seed: int
    fold: Fold
    settings: Settings
    name: str


class Team:
    """Neighbours of a population, walking one environment: their settings have the same shape and the same
    ``environment``."""

    def __init__(
        self,
        bars: Bars,
        pieces: Sequence[slice],
        members: Sequence[Member],
        network: Network,
        device: torch.device,
        on_host: bool,
    ) -> None:
        """``pieces``: the members' places in the population, one after another, and whose products are made together;
        ``on_host``: the accounts are numpy's, whose calls are faster on a CPU; else torch's on ``device``."""
        self.pieces, self.places = pieces, slice(pieces[0].start, pieces[-1].stop)
        # Of their hyperparameters only the shape matters here, which they share.
        config, environment = members[0].settings.ppo, members[0].settings.environment
        self._config, self._device, self._on_host = config, device, on_host
        self._size = (len(members), config.environments)
        xp: Any = np if self._on_host else torch
        self.environment = TradingEnvironment(
            bars, math.prod(self._size), environment, xp, None if self._on_host else device
        )
        self.generators = [np.random.default_rng(member.seed) for member in members]
        self._starts = [episode_starts(member.fold, environment) for member in members]
        ages = np.arange(self._size[1]) * environment.episode_steps // self._size[1]
        self._ages = np.tile(ages, self._size[0])
        self._network = network
        self.mean, self.std, self.kept = self._explore()
        self.states = self._begin()

    def _begin(self) -> Tensor:
        return self._observed(self.environment.reset(self._sent(self._draw_starts(1)[0].ravel()), self._ages))

    def _draw_starts(self, steps: int) -> NDArray[np.int64]:
        """Bars to start at, (steps, G, n), should an episode end."""
        n = self._size[1]
        drawn = [
            starts[rng.integers(len(starts), size=(steps, n))]
            for rng, starts in zip(self.generators, self._starts, strict=True)
        ]
        return np.stack(drawn, axis=1)

    def _sent(self, array: NDArray[Any]) -> Any:
        return array if self._on_host else torch.from_numpy(array).to(self._device)

    def _observed(self, array: Any) -> Tensor:
        """What the environment says of its G n windows, as a tensor (G, n, ...)."""
        tensor = torch.from_numpy(array) if self._on_host else array
        return tensor.view(*self._size, *tensor.shape[1:])

    def _explore(self) -> tuple[Tensor, Tensor, States]:
        """Centre and scale of the observations, (G, 1, 16) each, under multipliers that are random and held for a
        while; and some of the states, (G, m, 16)."""
        low, high = contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH
        shape = (EXPLORATION, self._size[1])
        tried = np.stack([rng.uniform(low, high, shape) for rng in self.generators], axis=1)
        changed = np.stack([rng.random(shape) < 0.1 for rng in self.generators], axis=1)
        for k in range(1, EXPLORATION):
            tried[k] = np.where(changed[k], tried[k], tried[k - 1])
        held, starts = (self._sent(array.reshape(EXPLORATION, -1)) for array in (tried, self._draw_starts(EXPLORATION)))
        states = self._begin()
        total = torch.zeros(self._size[0], contract.STATE_DIM, dtype=torch.float64, device=self._device)
        squares, kept = torch.zeros_like(total), []
        apart = max(1, self._size[1] // _KEPT_OF_A_STEP)
        for k in range(EXPLORATION):
            wide = states.double()
            total += wide.sum(1)
            squares += wide.square().sum(1)
            kept.append(states[:, k % apart :: apart])
            step = self.environment.step(held[k], starts[k])
            states = self._observed(step.states)
        count = EXPLORATION * self._size[1]
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0.0).sqrt()
        # A number that never varies (an absent tier, a missing feed) keeps its own scale.
        std = torch.where(deviation > 1e-4, deviation, 1.0)
        return mean.float().unsqueeze(1), std.float().unsqueeze(1), torch.cat(kept, dim=1).cpu().numpy()

    def resume(self, walk: dict[str, NDArray[Any]], generators: Sequence[dict[str, Any]]) -> None:
        """Take up a walk, and the random streams, where they were put down."""
        self.states = self._observed(self.environment.restore(walk))
        for rng, state in zip(self.generators, generators, strict=True):
            rng.bit_generator.state = state

    def normalise(self, states: Tensor) -> Tensor:
        """(G, n, 16) as the networks see them."""
        return ((states - self.mean) / self.std).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    def walk(self, weights: Tensor, seen: Experience, growth: Tensor) -> Experience:
        """One rollout under the actors ``weights`` (G, N), written into this team's views ``seen`` and ``growth``
        (G, T, n); ``seen`` again, with the windows that ran into their time limit and what they would have seen."""
        steps, (size, n) = self._config.rollout, self._size
        starts = self._sent(self._draw_starts(steps).reshape(steps, -1))
        noise = torch.from_numpy(
            np.stack([rng.standard_normal((steps, n), dtype=np.float32) for rng in self.generators])
        ).to(self._device)
        # The windows' ages are alike in every policy. All is sent at once, so that no step waits for the host.
        limits = self.environment.time_limits(steps)[:, :n]
        truncated = torch.from_numpy(limits).to(self._device)
        ending = torch.from_numpy(np.nonzero(limits)[1]).to(self._device).split(limits.sum(1).tolist())
        cut = [torch.empty(size, 0, INPUTS, device=self._device)]
        said = torch.empty(size, steps, 2, n, device=self._device)
        tried = torch.empty(size, n, dtype=torch.float64, device=self._device)
        own = [slice(piece.start - self.places.start, piece.stop - self.places.start) for piece in self.pieces]
        actors = [(few, logistic(layers_of(weights[few], self._config.hidden, 2))) for few in own]
        for k in range(steps):
            x = seen.states[:, k]
            x[..., :-1] = self.normalise(self.states)
            for few, actor in actors:
                outputs = said[few, k] = self._network.forward(actor, x[few])
                u = torch.addcmul(outputs[:, 0], bounded_log_sd(outputs[:, 1]).exp_(), noise[few, k])
                # By the piece too: torch's last digit depends on where in an array a number stands.
                seen.actions[few, k], tried[few] = u, torch.sigmoid(u.double())
            multiplier = (contract.MULTIPLIER_HIGH * tried).view(-1)
            step = self.environment.step(multiplier.numpy() if self._on_host else multiplier, starts[k])
            seen.rewards[:, k], growth[:, k] = self._observed(step.reward), self._observed(step.growth)
            seen.terminated[:, k] = self._observed(step.terminated)
            if len(ending[k]):
                final = self._observed(step.final_states).index_select(1, ending[k])
                cut.append(torch.nn.functional.pad(self.normalise(final), (0, 1), value=1.0))
            self.states = self._observed(step.states)
        seen.last_states[..., :-1] = self.normalise(self.states)
        seen.log_density.copy_(log_density(seen.actions, said[:, :, 0], bounded_log_sd(said[:, :, 1])))
        return replace(seen, truncated=truncated, final_states=torch.cat(cut, dim=1))

    def orders(self) -> NDArray[np.int64]:
        """Which sample of a rollout comes when, (G, epochs, T n), each policy's from its own stream.

        Within a batch, whose sum does not ask for an order, they ascend: memory is read forwards.
        """
        config = self._config
        orders = np.stack([[rng.permutation(config.samples) for _ in range(config.epochs)] for rng in self.generators])
        for first in range(0, config.samples, config.batch):
            orders[..., first : first + config.batch].sort(axis=-1)
        return orders
