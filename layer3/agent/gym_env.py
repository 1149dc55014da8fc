"""The environment in gymnasium's form, for others' tools: one window, or many side by side. Needs the ``gym`` extra.

An observation is the contract's state, within the contract's bounds. The action is the multiplier,
moved to where others' tools expect an action: ``multiplier = 1 + action``, the action in [-1, 1]. So -1
holds nothing, 0 holds what the chain says and 1 twice that; the whole of [0, 2] is reached and nothing
is clipped. Gymnasium's and Stable-Baselines3's checkers warn of a box from 0 to 2, and rightly: the
usual Gaussian policy begins around 0 with a spread of 1, and would hold nothing half of the time.

The reward, the fills and the states are :class:`layer3.agent.environment.TradingEnvironment`'s. An
episode is *terminated* by ruin and *truncated* by its time limit; what a truncated window would have
earned later is for the learner to estimate from the state that it ended in. ``info`` holds
``timestamp``, the open in UTC nanoseconds of the bar at whose close the observation was made, and
after a step ``growth``, the log growth of equity in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment, episode_starts
from layer3.errors import ConfigurationError

__all__ = ["TradingEnv", "TradingVectorEnv"]

#: float32 throughout; the annotations of gymnasium's Box leave that open.
Floats = NDArray[Any]

_CENTRE: Final = (contract.MULTIPLIER_LOW + contract.MULTIPLIER_HIGH) / 2.0
_REACH: Final = (contract.MULTIPLIER_HIGH - contract.MULTIPLIER_LOW) / 2.0
#: What wrappers that rescale actions in float32 may overshoot by.
_ROUNDING: Final = 1e-6


class TradingEnv(gymnasium.Env[Floats, Floats]):
    """One window of ``config.episode_steps`` decisions, from a random bar of ``windows`` (ranges of ``bars``) on.

    ``observation_space`` is Box (16,) float32, ``action_space`` Box [-1, 1] (1,) float32.

    Raises
    ------
    ConfigurationError : a window does not lie within the bars; an action is of another shape, not
        finite or not in [-1, 1]; a step is asked for outside of an episode; ``reset`` is given options
    TrainingError : a window cannot hold an episode
    """

    def __init__(self, bars: Bars, windows: Sequence[range], config: EnvironmentConfig | None = None) -> None:
        config = config or EnvironmentConfig()
        self._starts = _starts(bars, windows, config)
        self._timestamps = bars.timestamp
        self._environment = TradingEnvironment(bars, 1, config)
        self._at = self._starts[:1]
        self._over = True
        self.observation_space = _observations()
        self.action_space = _actions()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode at a random bar; ``seed`` begins the random stream anew, without it the stream goes on."""
        super().reset(seed=seed)
        _refuse(options)
        self._at = _draw(self.np_random, self._starts, 1)
        self._over = False
        states: Floats = self._environment.reset(self._at)
        return states[0], {"timestamp": int(self._timestamps[self._at[0]])}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """One decision: observation, reward in percent of equity, terminated, truncated, info."""
        if self._over:
            raise ConfigurationError("there is no episode under way: call reset() before step()")
        # Where the environment begins again by itself is never seen: reset() draws anew.
        step = self._environment.step(_multiplier(action, (1,)), self._at)
        self._at = self._at + 1
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        self._over = terminated or truncated
        info = {"growth": float(step.growth[0]), "timestamp": int(self._timestamps[self._at[0]])}
        return step.final_states[0], float(step.reward[0]), terminated, truncated, info


class TradingVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """``num_envs`` such windows, stepped together: one call of numpy for all of them.

    A window that ends begins again within the same step (``AutoresetMode.SAME_STEP``): its row of the
    observations is the new episode's first, and what the old one ended in is ``infos["final_obs"]``
    and ``infos["final_info"]``, with ``infos["_final_obs"]`` and ``infos["_final_info"]`` to say in
    which rows. ``infos["growth"]`` is of the step that was made, as the reward is, in every row.

    The windows' time limits are spread out, so that they do not all end at once: the first episode
    of row *i* is shorter by ``i * episode_steps // num_envs``. A window that is ruined keeps its time limit.

    All windows draw from one stream, ``reset(seed=...)``. Raises as :class:`TradingEnv` does.
    """

    def __init__(
        self, num_envs: int, bars: Bars, windows: Sequence[range], config: EnvironmentConfig | None = None
    ) -> None:
        if num_envs < 1:
            raise ConfigurationError(f"num_envs is {num_envs}, expected at least 1")
        config = config or EnvironmentConfig()
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space = _observations()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = _actions()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._starts = _starts(bars, windows, config)
        self._timestamps = bars.timestamp
        self._environment = TradingEnvironment(bars, num_envs, config)
        self._ages = np.arange(num_envs) * config.episode_steps // num_envs
        self._at: NDArray[np.intp] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin an episode in every window; observations (n, 16) and their timestamps."""
        super().reset(seed=seed)
        _refuse(options)
        self._at = _draw(self.np_random, self._starts, self.num_envs)
        states: Floats = self._environment.reset(self._at, self._ages)
        return states, _masked(np.ones(self.num_envs, dtype=np.bool_), timestamp=self._timestamps[self._at])

    def step(
        self, actions: Floats
    ) -> tuple[Floats, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One decision in every window, actions (n, 1): observations (n, 16), the rest (n,), infos."""
        if self._at is None:
            raise ConfigurationError("there is no episode under way: call reset() before step()")
        multiplier = _multiplier(actions, (self.num_envs, 1)).ravel()
        starts = _draw(self.np_random, self._starts, self.num_envs)
        step = self._environment.step(multiplier, starts)
        ended = step.terminated | step.truncated
        last = self._at + 1
        self._at = np.where(ended, starts, last)
        every = np.ones(self.num_envs, dtype=np.bool_)
        infos = _masked(every, growth=step.growth, timestamp=self._timestamps[self._at])
        if ended.any():
            final_states = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended):
                final_states[row] = step.final_states[row]
            infos |= {"final_obs": final_states, "_final_obs": ended}
            infos["final_info"] = _masked(ended, growth=step.growth, timestamp=self._timestamps[last])
            infos["_final_info"] = ended.copy()
        return step.states, step.reward, step.terminated, step.truncated, infos


def _masked(mask: NDArray[np.bool_], **columns: NDArray[Any]) -> dict[str, Any]:
    """Columns (n,) as gymnasium wants them: zero outside of ``mask``, each with its own copy of the mask beside it."""
    infos: dict[str, Any] = {}
    for name, values in columns.items():
        infos |= {name: np.where(mask, values, 0), f"_{name}": mask.copy()}
    return infos


def _observations() -> Box:
    """The contract's bounds: the two returns, the side and the unrealised P&L have a sign, the other numbers none."""
    signed = [name in {"position_side", "unrealised_pnl", "return_1h", "return_4h"} for name in contract.FEATURES]
    return Box(np.where(signed, -1.0, 0.0).astype(np.float32), np.ones(contract.STATE_DIM, dtype=np.float32))


def _actions() -> Box:
    return Box(-1.0, 1.0, (1,), np.float32)


def _starts(bars: Bars, windows: Sequence[range], config: EnvironmentConfig) -> NDArray[np.intp]:
    if not windows:
        raise ConfigurationError("no windows given: name at least one range of bars to draw episodes from")
    for window in windows:
        if window.step != 1 or not 0 <= window.start <= window.stop <= len(bars):
            raise ConfigurationError(f"{window} does not lie within the {len(bars):,} bars of the history")
    return episode_starts(windows, config)


def _draw(rng: np.random.Generator, starts: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    return starts[rng.integers(len(starts), size=n)]


def _multiplier(action: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    values = np.asarray(action, dtype=np.float64)
    if values.shape != shape:
        raise ConfigurationError(f"actions of shape {values.shape}, expected {shape}: one number in [-1, 1] per window")
    bad = np.flatnonzero(~(np.abs(values) <= 1.0 + _ROUNDING))
    if bad.size:
        raise ConfigurationError(
            f"action {values.flat[bad[0]]} of window {bad[0]} is not in [-1, 1], where multiplier = 1 + action: "
            "clip or rescale the policy's answer (gymnasium.wrappers.ClipAction, RescaleAction)"
        )
    return _CENTRE + _REACH * values


def _refuse(options: dict[str, Any] | None) -> None:
    if options:
        raise ConfigurationError(f"reset() knows no options, got {', '.join(options)}: leave them out")
