"""One window of the environment in plain Python numbers, as trainers want it that step one environment at a time.

The same money, states and rewards as :class:`layer3.agent.environment.TradingEnvironment` (a test
compares them), and as little per step as Python allows, so that no peer is slowed by ours.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from bench.arena import ENVIRONMENT, TRAINED_ON
from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import Account, episode_starts

__all__ = ["MULTIPLIER", "OBSERVATION", "GymWindow", "History", "Window"]

State = NDArray[np.float32]

OBSERVATION = gymnasium.spaces.Box(-1.0, 1.0, (contract.STATE_DIM,), np.float32)
#: Multiplier less 1: stable-baselines3 wants actions around 0.
MULTIPLIER = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


class History:
    """Bars as plain lists; any number of windows may look at one."""

    def __init__(self, bars: Bars) -> None:
        self.states: State = Account(bars, 1, ENVIRONMENT).flat_states
        self.open: list[float] = bars.open.tolist()
        self.close: list[float] = bars.close.tolist()
        self.base: list[float] = (bars.direction * bars.base_fraction).tolist()


class Window:
    """Episodes on the bars to train on, one after another."""

    def __init__(self, history: History, seed: int) -> None:
        self._history = history
        self._starts = episode_starts([TRAINED_ON], ENVIRONMENT)
        self._rng = np.random.default_rng(seed)

    def reset(self) -> State:
        """Start at a random bar; the state there."""
        return self.begin(int(self._starts[self._rng.integers(len(self._starts))]))

    def begin(self, at: int) -> State:
        """Start at this bar; the state there."""
        self._at, self._age = at, 0
        self._cash, self._units, self._entry, self._start = ENVIRONMENT.capital, 0.0, 0.0, ENVIRONMENT.capital
        self._won: deque[bool] = deque(maxlen=contract.WIN_RATE_TRADES)
        self._squares = deque([0.0] * ENVIRONMENT.reward_window, maxlen=ENVIRONMENT.reward_window)
        return self._state()

    def step(self, multiplier: float) -> tuple[State, float, bool, bool]:
        """State, reward, ruined, out of time."""
        at, history, config = self._at, self._history, ENVIRONMENT
        price, later, base = history.open[at + 1], history.open[at + 2], history.base[at]
        before = self._cash + self._units * price
        wanted = base * min(max(multiplier, contract.MULTIPLIER_LOW), contract.MULTIPLIER_HIGH)
        self._rebalance(min(max(wanted, -config.max_exposure), config.max_exposure), price, before)
        ratio = (self._cash + self._units * later) / before
        growth = math.log(max(ratio, 1e-9))
        self._squares.append(growth * growth)
        risk = 0.5 * config.risk_aversion / config.reward_window * sum(self._squares)
        reward = 100.0 * (growth - base * (later / price - 1.0) - risk)
        self._at = at + 1
        self._age += 1
        return self._state(), reward, ratio <= 1e-9, self._age >= config.episode_steps

    def _rebalance(self, target: float, price: float, equity: float) -> None:
        costs, held = ENVIRONMENT.costs, self._units * price
        gap = target * equity - held
        if abs(gap) <= 1e-12 * equity:
            return
        direction = math.copysign(1.0, gap)
        rate = costs.slippage + costs.commission * (1.0 + direction * costs.slippage)
        notional = abs(gap) / (1.0 + direction * target * rate) if target else abs(held)
        fill = price * (1.0 + direction * costs.slippage)
        delta = direction * notional / price
        units = self._units + delta if target else 0.0
        if units * self._units > 0.0:
            if abs(units) > abs(self._units):
                self._entry = (self._units * self._entry + delta * fill) / units
        else:
            left = equity - rate * abs(held)
            if self._units:
                self._won.append(left > self._start)
            self._entry, self._start = fill if units else 0.0, left
        self._cash -= delta * price + rate * notional
        self._units = units

    def _state(self) -> State:
        state: State = self._history.states[self._at].copy()
        if self._units:
            close = self._history.close[self._at]
            held = self._units * close
            side = math.copysign(1.0, held)
            state[8] = min(abs(held / (self._cash + held)) / contract.MAX_EXPOSURE, 1.0)
            state[9] = side
            state[10] = 2.0 * min(max(side * (close / self._entry - 1.0), -0.5), 0.5)
        if self._won:
            state[14] = sum(self._won) / len(self._won)
        return state


class GymWindow(gymnasium.Env[State, NDArray[np.float32]]):
    """The same behind gymnasium's interface."""

    observation_space = OBSERVATION
    action_space = MULTIPLIER

    def __init__(self, history: History, seed: int) -> None:
        self._window = Window(history, seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        return self._window.reset(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[State, float, bool, bool, dict[str, Any]]:
        state, reward, ruined, over = self._window.step(1.0 + float(action[0]))
        return state, reward, ruined, over, {}
