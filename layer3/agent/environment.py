"""The market as the policy meets it: many windows of one history at once.

At the close of bar *t* the policy sees the state and names a multiplier; the exposure
``direction x base fraction x multiplier``, clipped to the cap, is traded at the open of *t + 1*
and earns until the open of *t + 2*, less the funding of bar *t + 1* where the history has such a feed.
Everything that does not depend on the policy is in :class:`layer3.agent.bars.Bars`; money is
:class:`layer3.ledger.Ledger`'s.

The reward prices risk in absolute terms, in units of 1 % of equity:

    100 (g_t - b_t - risk_aversion / 2 * mean of the last reward_window g^2),  g_t = log growth of equity

so that doubling the size doubles the gain and quadruples the price of risk, and the best size is
identified. ``b_t``, what multiplier 1 earns in the same bar before costs, depends on no action: it
takes noise away and changes no preference. (A Sharpe-shaped reward hardly changes with the size, and cannot teach it.)

The same lines run on numpy arrays and on torch tensors (``xp``), so that on a GPU the accounts stay
there and no step waits for the host. Prices, money and rewards are float64, states float32. The two
give the same money and states bit for bit; rewards differ by the last bit of the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.errors import ConfigurationError, TrainingError
from layer3.ledger import Costs, Fill, Ledger

__all__ = ["Account", "EnvironmentConfig", "Move", "Step", "TradingEnvironment", "episode_starts"]

#: Smallest ratio of equity over one bar that counts; at or below it the account is ruined.
_RUIN: Final = 1e-9
#: Funding rates are quoted per 8 hours.
_FUNDING_SECONDS: Final = 8 * 3_600
#: What the next step depends on, besides the ledger, the ages and the clock.
_CURSOR: Final = ("_at", "_squares", "_square_sum")


@dataclass(frozen=True, slots=True)
class EnvironmentConfig:
    """How money works and what is rewarded."""

    capital: float = 100_000.0
    """Equity at the start of an episode."""
    costs: Costs = field(default_factory=Costs)
    """Commission 0.1 % and slippage 5 bps of the traded notional."""
    max_exposure: float = contract.MAX_EXPOSURE
    """Largest |exposure| as a fraction of equity."""
    episode_steps: int = 500
    """Decisions in an episode; its end is a time limit, not an end of the world."""
    reward_window: int = 10
    """Bars over which the price of risk is averaged."""
    risk_aversion: float = 5.0
    """Weight of variance in the reward; log growth itself already carries a weight of 1."""

    def __post_init__(self) -> None:
        checks = {
            "capital": 0.0 < self.capital < math.inf,
            "max_exposure": 0.0 < self.max_exposure <= contract.MAX_EXPOSURE,
            "episode_steps": isinstance(self.episode_steps, int) and self.episode_steps >= 2,
            "reward_window": isinstance(self.reward_window, int) and self.reward_window >= 1,
            "risk_aversion": 0.0 <= self.risk_aversion < 1e6,
        }
        for name, valid in checks.items():
            if not valid:
                raise ConfigurationError(f"environment: {name} = {getattr(self, name)} is out of range")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of n windows gave.

    ``states`` (n, 16) to act on next; ``reward`` (n,) in percent of equity; ``growth`` (n,) log growth of equity;
    ``terminated`` (n,) marks ruined accounts, ``truncated`` (n,) windows that ran into the time limit: both were
    started afresh, and ``final_states`` (n, 16) is what they would have seen. ``truncated`` is always numpy's:
    it is known without asking the device.
    """

    states: Any
    reward: Any
    growth: Any
    terminated: Any
    truncated: NDArray[np.bool_]
    final_states: Any


class Move(NamedTuple):
    """What one bar did to n accounts, each (n,).

    ``funding`` paid (negative: received) in currency, ``None`` where the history has no such feed; ``growth`` log
    growth of equity to the next open; ``ruined`` whether less than a sliver of it was left.
    """

    fill: Fill
    funding: Any
    growth: Any
    ruined: Any


class Account:
    """n accounts walking over one history: the common core of training and judging.

    ``xp`` is numpy, or torch for a GPU; what the policy does not move is put on the ``device`` once.
    """

    def __init__(self, bars: Bars, n: int, config: EnvironmentConfig, xp: Any = np, device: Any = None) -> None:
        self._xp = xp
        self._config = config
        self.ledger = Ledger(n, config.capital, config.costs, xp, device)
        flat = contract.build_state(
            confidence=bars.confidence,
            side=bars.signal_side,
            tier=bars.tier,
            exposure=0.0,
            unrealised_pnl=0.0,
            return_1h=bars.return_1h,
            return_4h=bars.return_4h,
            volatility=bars.volatility,
            win_rate=contract.NEUTRAL_WIN_RATE,
            cascade_risk=bars.cascade_risk,
        )
        self.flat_states = xp.asarray(flat, device=device)
        """(bars, 16): what an account without a position and a past sees at each bar."""
        self.open = xp.asarray(bars.open.copy(), device=device)
        self.close = xp.asarray(bars.close.copy(), device=device)
        self.base = xp.asarray(bars.direction * bars.base_fraction, device=device)
        """(bars,): signed exposure of multiplier 1."""
        per_bar = bars.funding_rate * (bars.interval_seconds / _FUNDING_SECONDS)
        # Most files have no such feed, and a step without it is faster.
        self._funding = xp.asarray(per_bar, device=device) if per_bar.any() else None

    def observe(self, at: Any) -> Any:
        """States (n, 16) float32 at the close of bars ``at`` (n,)."""
        close, ledger = self.close[at], self.ledger
        # Of whole rows numpy's take is several times as fast.
        states = self.flat_states.take(at, axis=0) if self._xp is np else self.flat_states[at]
        account = contract.account_part(ledger.exposure(close), ledger.unrealised(close), ledger.win_rate, self._xp)
        for column, values in zip(contract.ACCOUNT_COLUMNS, account, strict=True):
            states[:, column] = values
        return states

    def target(self, at: Any, multiplier: Any) -> Any:
        """Signed fraction of equity to hold after bars ``at`` (n,), multipliers (n,) clipped to [0, 2] first."""
        clip, cap = self._xp.clip, self._config.max_exposure
        return clip(self.base[at] * clip(multiplier, contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH), -cap, cap)

    def trade(self, at: Any, exposure: Any) -> Move:
        """Trade to ``exposure`` at the open after bars ``at`` and hold it to the next open, funding paid."""
        price, later = self.open[at + 1], self.open[at + 2]
        before = self.ledger.equity(price)
        fill = self.ledger.rebalance(exposure, price)
        funding = None
        if self._funding is not None:
            funding = self.ledger.units * price * self._funding[at + 1]
            self.ledger.cash = self.ledger.cash - funding
        ratio = self.ledger.equity(later) / before
        # An account that lost everything in one bar keeps a finite, very bad, record.
        return Move(fill, funding, self._xp.log(self._xp.clip(ratio, _RUIN, None)), ~(ratio > _RUIN))


def episode_starts(windows: Sequence[range], config: EnvironmentConfig) -> NDArray[np.intp]:
    """Every bar of ``windows`` at which an episode may start, so that it ends within its window.

    Raises
    ------
    TrainingError : a window cannot hold an episode
    """
    starts = []
    for window in windows:
        last = window.stop - config.episode_steps - 2
        if last < window.start:
            raise TrainingError(
                f"{len(window):,} bars cannot hold an episode of {config.episode_steps:,} decisions: "
                f"supply at least {config.episode_steps + 2:,} bars, or shorten the episode"
            )
        starts.append(np.arange(window.start, last + 1, dtype=np.intp))
    return np.concatenate(starts)


class TradingEnvironment:
    """n windows of ``episode_steps`` decisions side by side; where they start is told from outside.

    It draws nothing itself, so that a caller can give every policy of a population its own stream,
    and rows never depend on each other.
    """

    def __init__(self, bars: Bars, n: int, config: EnvironmentConfig, xp: Any = np, device: Any = None) -> None:
        self._account = Account(bars, n, config, xp, device)
        self._config = config
        self._xp = xp
        self._device = device
        self._n = n
        self._at = xp.zeros((n,), dtype=xp.int64, device=device)
        self._age = np.zeros(n, dtype=np.int64)
        self._clock = 0
        self._squares = xp.zeros((config.reward_window, n), dtype=xp.float64, device=device)
        self._square_sum = xp.zeros((n,), dtype=xp.float64, device=device)
        held = bars.direction * bars.base_fraction
        baseline = np.zeros(len(bars))
        baseline[:-2] = held[:-2] * (bars.open[2:] / bars.open[1:-1] - 1.0)
        self._baseline = xp.asarray(baseline, device=device)

    def reset(self, starts: Any, ages: Any = 0) -> Any:
        """Start every window anew at bars ``starts`` (n,); its states (n, 16).

        ``ages`` (n,) are the decisions by which a window's first episode is shorter, so that not all end at once.
        """
        self._age[:] = ages
        self._send_ages()
        self._restart(self._xp.ones((self._n,), dtype=self._xp.bool, device=self._device), starts)
        return self._account.observe(self._at)

    def step(self, multiplier: Any, starts: Any) -> Step:
        """Apply multipliers (n,) in [0, 2]; windows that end here begin again at bars ``starts`` (n,)."""
        xp, config, account = self._xp, self._config, self._account
        baseline = self._baseline[self._at]
        move = account.trade(self._at, account.target(self._at, multiplier))
        growth, terminated = move.growth, move.ruined
        slot = self._clock % config.reward_window
        square = growth * growth
        # A sum that is carried along may end a hair below zero.
        self._square_sum = xp.clip(self._square_sum + (square - self._squares[slot]), 0.0, None)
        self._squares[slot] = square
        risk = 0.5 * config.risk_aversion / config.reward_window * self._square_sum
        reward = 100.0 * (growth - baseline - risk)
        self._clock += 1
        self._at = self._at + 1
        self._age += 1
        final_states = states = account.observe(self._at)
        # A ruined account's next episode ends when its own would have: the ages stay known on this side.
        truncated = self._age >= config.episode_steps
        self._age[truncated] = 0
        if truncated.any() or xp is not np or terminated.any():
            # Sent to the device, a mask would have every step wait for the host: there the clock tells it.
            over = truncated if xp is np else (self._clock - self._begun) % config.episode_steps == 0
            fresh = terminated | over
            self._restart(fresh, starts)
            states = xp.where(fresh[:, None], account.flat_states[self._at], final_states)
        return Step(states, reward, growth, terminated, truncated, final_states)

    def _restart(self, fresh: Any, starts: Any) -> None:
        where = self._xp.where
        self._account.ledger.reset(fresh)
        self._at = where(fresh, starts, self._at)
        self._squares = where(fresh, 0.0, self._squares)
        self._square_sum = where(fresh, 0.0, self._square_sum)

    def time_limits(self, steps: int) -> NDArray[np.bool_]:
        """Which windows will run into their time limit in each of the next ``steps`` steps, (steps, n): no action
        changes it, so that nobody need ask the device."""
        ends: NDArray[np.bool_] = (self._age + np.arange(1, steps + 1)[:, None]) % self._config.episode_steps == 0
        return ends

    def _send_ages(self) -> None:
        """Tell the device, once, when each window's episode began; on the host the ages themselves are at hand."""
        if self._xp is not np:
            self._begun = self._xp.asarray(self._clock - self._age, device=self._device)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, numpy arrays (..., n); :meth:`restore` takes it up again."""
        own = {name: getattr(self, name) for name in _CURSOR}
        money = {f"ledger.{name}": getattr(self._account.ledger, name) for name in Ledger.FIELDS}
        arrays = {
            name: np.asarray(value.cpu() if self._xp is not np else value).copy()
            for name, value in (own | money).items()
        }
        return arrays | {"_age": self._age.copy(), "_clock": np.full(self._n, self._clock)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """Go on from a :meth:`snapshot`; the states (n, 16) to act on next."""
        # Copied both ways: the walk writes into its arrays, and a snapshot may be taken up again.
        for name in _CURSOR:
            setattr(self, name, self._xp.asarray(arrays[name].copy(), device=self._device))
        for name in Ledger.FIELDS:
            setattr(self._account.ledger, name, self._xp.asarray(arrays[f"ledger.{name}"].copy(), device=self._device))
        self._age = arrays["_age"].copy()
        self._clock = int(arrays["_clock"][0])
        self._send_ages()
        return self._account.observe(self._at)
