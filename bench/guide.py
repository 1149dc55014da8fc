"""Training the way the deployment guide does: one environment, one state at a time through torch.

Episodes of 500 steps, each followed by 10 epochs of batches of 64 at 3e-4; actor and critic of two
hidden layers of 128, one optimiser. The action is our trainer's: ``2 sigmoid(u)`` with a normal u.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.alone import Run
from bench.arena import ENVIRONMENT, market, run_of
from bench.scalar import History, Window
from layer3 import contract
from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW
from layer3.agent.ppo import PPOConfig

__all__ = ["learn"]

_BATCH, _EPOCHS, _RATE = 64, 10, 3e-4
_CONFIG = PPOConfig()


def _network(outputs: int) -> nn.Sequential:
    width = _CONFIG.hidden
    return nn.Sequential(
        nn.Linear(contract.STATE_DIM, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


class Agent:
    """Actor, critic and what one episode taught them."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.actor, self.critic = _network(2), _network(1)
        self._parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self._optimiser = torch.optim.Adam(self._parameters, lr=_RATE)

    def distribution(self, states: Tensor) -> torch.distributions.Normal:
        mean, log_sd = self.actor(states).unbind(-1)
        return torch.distributions.Normal(mean, log_sd.clamp(LOG_SD_LOW, LOG_SD_HIGH).exp(), validate_args=False)

    def act(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.no_grad():
            return (2.0 * torch.sigmoid(self.actor(torch.from_numpy(states))[:, 0])).double().numpy()

    @torch.no_grad()
    def episode(self, window: Window) -> tuple[Tensor, ...]:
        """Walk one; its states, u's, log-densities, advantages and returns."""
        states, actions, densities, values, rewards = [], [], [], [], []
        state, ruined, over = window.reset(), False, False
        while not (ruined or over):
            seen = torch.from_numpy(state)
            distribution = self.distribution(seen)
            u = distribution.sample()
            states.append(seen)
            actions.append(u)
            densities.append(distribution.log_prob(u))
            values.append(float(self.critic(seen)))
            state, reward, ruined, over = window.step(float(2.0 * torch.sigmoid(u)))
            rewards.append(reward)
        following = [*values[1:], 0.0 if ruined else float(self.critic(torch.from_numpy(state)))]
        advantages, tail = [], 0.0
        for reward, value, next_value in zip(reversed(rewards), reversed(values), reversed(following), strict=True):
            tail = reward + _CONFIG.gamma * (next_value + _CONFIG.gae_lambda * tail) - value
            advantages.append(tail)
        gained = torch.tensor(advantages[::-1])
        returns = gained + torch.tensor(values)
        gained = (gained - gained.mean()) / (gained.std() + 1e-8)
        return torch.stack(states), torch.stack(actions), torch.stack(densities), gained, returns

    def improve(self, seen: tuple[Tensor, ...]) -> None:
        """All epochs on one episode."""
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(seen[0])).split(_BATCH):
                states, actions, densities, advantages, returns = (part[rows] for part in seen)
                distribution = self.distribution(states)
                ratio = torch.exp(distribution.log_prob(actions) - densities)
                cut = ratio.clamp(1.0 - _CONFIG.clip, 1.0 + _CONFIG.clip)
                gain = torch.minimum(ratio * advantages, cut * advantages).mean()
                error = (self.critic(states)[:, 0] - returns).square().mean()
                loss = _CONFIG.value * error - gain - _CONFIG.entropy * distribution.entropy().mean()
                self._optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._parameters, _CONFIG.max_gradient)
                self._optimiser.step()


def _train(history: History, seed: int, episodes: int) -> Agent:
    window, agent = Window(history, seed), Agent(seed)
    for _ in range(episodes):
        agent.improve(agent.episode(window))
    return agent


def learn(name: str, steps: int, seed: int) -> Run:
    """One policy on one thread, as products so small gain nothing from a second."""
    torch.set_num_threads(1)
    history, episodes = History(market(name).bars), steps // ENVIRONMENT.episode_steps
    # What torch loads at its first gradient is no part of training.
    _train(history, seed, 1)
    started = time.perf_counter()
    agent = _train(history, seed, episodes)
    seconds = time.perf_counter() - started
    return run_of(name, [agent.act], episodes * ENVIRONMENT.episode_steps, seconds)
