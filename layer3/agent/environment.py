"""The market as the policy meets it: many windows of one history at once.

At the close of bar *t* the policy sees the state and names a multiplier; the exposure
``direction x base fraction x multiplier``, clipped to the cap, is traded at the open of *t + 1*
and earns until the open of *t + 2*. Everything that does not depend on the policy is in
:class:`layer3.agent.bars.Bars`; money is :class:`layer3.ledger.Ledger`'s.

The reward prices risk in absolute terms, in units of 1 % of equity:

    100 (g_t - b_t - risk_aversion / 2 * mean of the last reward_window g^2),  g_t = log growth of equity

so that doubling the size doubles the gain and quadruples the price of risk, and the best size is
identified. ``b_t``, what multiplier 1 earns in the same bar before costs, depends on no action: it
takes noise away and changes no preference. (A Sharpe-shaped reward hardly changes with the size, and cannot teach it.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.errors import ConfigurationError, TrainingError
from layer3.ledger import Costs, Fill, Ledger

__all__ = ["Account", "EnvironmentConfig", "Step", "TradingEnvironment", "target_exposure"]

Floats = NDArray[np.float64]
States = NDArray[np.float32]


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
            "capital": self.capital > 0.0,
            "max_exposure": 0.0 < self.max_exposure <= contract.MAX_EXPOSURE,
            "episode_steps": self.episode_steps >= 2,
            "reward_window": self.reward_window >= 1,
            "risk_aversion": 0.0 <= self.risk_aversion < 1e6,
        }
        for name, valid in checks.items():
            if not valid:
                raise ConfigurationError(f"environment: {name} = {getattr(self, name)} is out of range")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of n windows gave.

    ``states`` (n, 16) to act on next; ``reward`` (n,); ``truncated`` (n,) marks windows that ran
    into the time limit and were started afresh, ``final_states`` (n, 16) what they would have seen.
    """

    states: States
    reward: Floats
    truncated: NDArray[np.bool_]
    final_states: States


def target_exposure(bars: Bars, at: NDArray[np.intp], multiplier: Floats, max_exposure: float) -> Floats:
    """Signed fraction of equity to hold after bars ``at`` (n,), multipliers (n,) clipped to [0, 2] first."""
    bounded = np.clip(multiplier, contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH)
    return np.asarray(np.clip(bars.direction[at] * bars.base_fraction[at] * bounded, -max_exposure, max_exposure))


class Account:
    """n accounts walking over one history: the common core of training and judging."""

    def __init__(self, bars: Bars, n: int, config: EnvironmentConfig) -> None:
        self.bars = bars
        self.config = config
        self.ledger = Ledger(n, config.capital, config.costs)

    def observe(self, at: NDArray[np.intp]) -> States:
        """States (n, 16) at the close of bars ``at``."""
        bars, close = self.bars, self.bars.close[at]
        return contract.build_state(
            confidence=bars.confidence[at],
            side=bars.signal_side[at],
            tier=bars.tier[at],
            exposure=self.ledger.exposure(close),
            unrealised_pnl=self.ledger.unrealised(close),
            return_1h=bars.return_1h[at],
            return_4h=bars.return_4h[at],
            volatility=bars.volatility[at],
            win_rate=self.ledger.win_rate,
            cascade_risk=bars.cascade_risk[at],
        )

    def trade(self, at: NDArray[np.intp], exposure: Floats) -> tuple[Fill, Floats]:
        """Trade to ``exposure`` at the open after bars ``at``; also the log growth until the next open, (n,)."""
        opens = self.bars.open
        before = self.ledger.equity(opens[at + 1])
        fill = self.ledger.rebalance(exposure, opens[at + 1])
        after = self.ledger.equity(opens[at + 2])
        # An account that lost everything in one bar keeps a finite, very bad, record.
        return fill, np.log(np.maximum(after, 1e-9 * before) / before)


class TradingEnvironment:
    """n windows of ``episode_steps`` decisions, drawn at random from ``window`` of the history."""

    def __init__(self, bars: Bars, window: range, n: int, config: EnvironmentConfig, rng: np.random.Generator) -> None:
        last_start = window.stop - config.episode_steps - 2
        if last_start < window.start:
            raise TrainingError(
                f"{len(window):,} bars cannot hold an episode of {config.episode_steps:,} decisions: "
                f"supply at least {config.episode_steps + 2:,} bars, or shorten the episode"
            )
        self._account = Account(bars, n, config)
        self._config = config
        self._rng = rng
        self._starts = range(window.start, last_start + 1)
        self._n = n
        self._at = np.zeros(n, dtype=np.intp)
        self._age = np.zeros(n, dtype=np.int64)
        self._squares = np.zeros((n, config.reward_window))
        held = bars.direction * bars.base_fraction
        self._baseline = np.zeros(len(bars))
        self._baseline[:-2] = held[:-2] * (bars.open[2:] / bars.open[1:-1] - 1.0)

    def reset(self) -> States:
        """Start every window anew; ages are staggered so that the windows do not end all at once."""
        self._restart(np.arange(self._n))
        self._age = np.arange(self._n) * self._config.episode_steps // self._n
        return self._account.observe(self._at)

    def step(self, multiplier: Floats) -> Step:
        """Apply multipliers (n,) in [0, 2]."""
        config = self._config
        exposure = target_exposure(self._account.bars, self._at, multiplier, config.max_exposure)
        _, growth = self._account.trade(self._at, exposure)
        self._squares[:, :-1] = self._squares[:, 1:]
        self._squares[:, -1] = growth**2
        risk = 0.5 * config.risk_aversion * self._squares.mean(axis=1)
        reward = 100.0 * (growth - self._baseline[self._at] - risk)
        self._at = self._at + 1
        self._age += 1
        final_states = states = self._account.observe(self._at)
        truncated = self._age >= config.episode_steps
        rows = np.flatnonzero(truncated)
        if rows.size:
            self._restart(rows)
            states = self._account.observe(self._at)
        return Step(states, reward, truncated, final_states)

    def _restart(self, rows: NDArray[np.intp]) -> None:
        self._account.ledger.reset(rows)
        self._at[rows] = self._rng.integers(self._starts.start, self._starts.stop, size=rows.size)
        self._age[rows] = 0
        self._squares[rows] = 0.0
