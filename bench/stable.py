"""stable-baselines3's PPO on the benchmark's market, with our hyperparameters and its stock settings otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from bench.alone import Run
from bench.arena import ENVIRONMENT, TRAINED_ON, Market, market, run_of
from bench.scalar import MULTIPLIER, OBSERVATION, GymWindow, History
from layer3.agent.environment import TradingEnvironment, episode_starts
from layer3.agent.ppo import PPOConfig

__all__ = ["learn"]


class BatchedWindows(VecEnv):
    """Our environment of many windows as a stable-baselines3 vector environment."""

    def __init__(self, where: Market, n: int, seed: int) -> None:
        super().__init__(n, OBSERVATION, MULTIPLIER)
        self._environment = TradingEnvironment(where.bars, n, ENVIRONMENT)
        self._starts = episode_starts([TRAINED_ON], ENVIRONMENT)
        self._rng = np.random.default_rng(seed)
        # Nobody writes into it, so all windows may share it.
        self._nothing: dict[str, Any] = {}

    def reset(self) -> NDArray[np.float32]:
        ages = np.arange(self.num_envs) * ENVIRONMENT.episode_steps // self.num_envs
        states: NDArray[np.float32] = self._environment.reset(self._draw(), ages)
        return states

    def step_async(self, actions: NDArray[np.float32]) -> None:
        self._multipliers = 1.0 + actions[:, 0].astype(np.float64)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        step = self._environment.step(self._multipliers, self._draw())
        done = step.terminated | step.truncated
        notes = [self._nothing] * self.num_envs
        for row in np.flatnonzero(done):
            over = bool(step.truncated[row] and not step.terminated[row])
            notes[row] = {"terminal_observation": step.final_states[row], "TimeLimit.truncated": over}
        return step.states, step.reward.astype(np.float32), done, notes

    def _draw(self) -> NDArray[np.intp]:
        return self._starts[self._rng.integers(len(self._starts), size=self.num_envs)]

    def close(self) -> None:
        """Nothing is held open."""

    def _each(self, indices: int | Iterable[int] | None) -> Iterable[int]:
        return self._get_indices(indices)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        return [getattr(self, attr_name, None) for _ in self._each(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        return [False for _ in self._each(indices)]


def _make(environment: VecEnv, windows: int, seed: int) -> PPO:
    config = PPOConfig()
    return PPO(
        "MlpPolicy",
        environment,
        learning_rate=lambda left: config.learning_rate * (config.final_rate + (1.0 - config.final_rate) * left),
        n_steps=config.samples // windows,
        batch_size=config.batch,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        ent_coef=config.entropy,
        vf_coef=config.value,
        max_grad_norm=config.max_gradient,
        policy_kwargs={"net_arch": {"pi": [config.hidden] * 2, "vf": [config.hidden] * 2}},
        seed=seed,
        device="cpu",
    )


def learn(name: str, steps: int, seed: int, batched: bool, windows: int, threads: int) -> Run:
    """One policy: our batched environment or scalar ones, ``windows`` of them, torch on ``threads``."""
    torch.set_num_threads(threads)
    where = market(name)
    environment: VecEnv
    if batched:
        environment = BatchedWindows(where, windows, seed)
    else:
        history = History(where.bars)
        environment = DummyVecEnv([partial(GymWindow, history, 1_000 * seed + k) for k in range(windows)])
    # What torch loads at its first gradient is no part of training.
    _make(environment, windows, seed).learn(1)
    started = time.perf_counter()
    model = _make(environment, windows, seed).learn(steps)
    seconds = time.perf_counter() - started

    def act(states: NDArray[np.float32]) -> NDArray[np.float64]:
        return 1.0 + model.predict(states, deterministic=True)[0][:, 0].astype(np.float64)

    return run_of(name, [act], model.num_timesteps, seconds)
