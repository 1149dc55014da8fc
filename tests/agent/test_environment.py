"""The environment: exact money, the next open, the whole span of the action, and a reward that teaches size."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment, target_exposure
from layer3.agent.ppo import PPOConfig, train
from layer3.backtest.engine import run
from layer3.backtest.metrics import sharpe
from layer3.errors import ConfigurationError, TrainingError
from layer3.ledger import Costs
from tests.agent.worlds import bar_of, make_bars, trend
from tests.layer3.slow_ledger import SlowLedger

FREE = Costs(commission=0.0, slippage=0.0)


def make(bars: Bars, n: int = 1, window: range | None = None, seed: int = 0, **config: Any) -> TradingEnvironment:
    settings = EnvironmentConfig(**config)
    return TradingEnvironment(
        bars, range(len(bars)) if window is None else window, n, settings, np.random.default_rng(seed)
    )


class PlainLoop:
    """One window of the environment, number by number, on the slow ledger."""

    def __init__(self, bars: Bars, at: int, config: EnvironmentConfig) -> None:
        self.bars, self.at, self.config = bars, at, config
        self.ledger = SlowLedger(config.capital, config.costs.commission, config.costs.slippage)
        self.growths: list[float] = []

    def step(self, multiplier: float) -> float:
        bars, t = self.bars, self.at
        held = float(bars.direction[t]) * float(bars.base_fraction[t])
        wanted = min(max(held * min(max(multiplier, 0.0), 2.0), -self.config.max_exposure), self.config.max_exposure)
        before = self.ledger.equity(bars.open[t + 1])
        self.ledger.rebalance(wanted, bars.open[t + 1])
        growth = math.log(float(self.ledger.equity(bars.open[t + 2]) / before))
        self.growths.append(growth)
        window = self.config.reward_window
        risk = self.config.risk_aversion / 2.0 * sum(g * g for g in self.growths[-window:]) / window
        baseline = held * (bars.open[t + 2] / bars.open[t + 1] - 1.0)
        self.at += 1
        return float(100.0 * (growth - baseline - risk))

    def state(self) -> list[float]:
        bars, t, ledger = self.bars, self.at, self.ledger
        exposure, gain = float(ledger.exposure(bars.close[t])), float(ledger.unrealised(bars.close[t]))
        side, tier = int(bars.signal_side[t]), int(bars.tier[t])
        return [
            float(bars.confidence[t]),
            *(float(side == s) for s in (-1, 0, 1)),
            *(float(tier == k) for k in (1, 2, 3, 4)),
            min(abs(exposure) / 0.5, 1.0),
            float(exposure > 0) - float(exposure < 0),
            2.0 * min(max(gain, -0.5), 0.5),
            min(max(bars.return_1h[t] * 10.0, -1.0), 1.0),
            min(max(bars.return_4h[t] * 5.0, -1.0), 1.0),
            min(bars.volatility[t] / 0.1, 1.0),
            ledger.win_rate,
            float(bars.cascade_risk[t]),
        ]


@pytest.mark.parametrize(
    "config",
    [
        EnvironmentConfig(episode_steps=60),
        EnvironmentConfig(episode_steps=60, costs=Costs(0.02, 0.01), reward_window=3, risk_aversion=40.0),
        EnvironmentConfig(episode_steps=60, max_exposure=0.2, capital=7.0, risk_aversion=0.0, reward_window=1),
    ],
    ids=["default", "costly", "tight"],
)
def test_many_windows_equal_a_plain_loop_on_the_slow_ledger(config: EnvironmentConfig) -> None:
    bars, n = make_bars(400), 6
    environment = TradingEnvironment(bars, range(20, 380), n, config, np.random.default_rng(3))
    rng = np.random.default_rng(4)
    states = environment.reset()
    loops = [PlainLoop(bars, int(at), config) for at in bar_of(states)]
    ages = [i * 60 // n for i in range(n)]
    ended = 0
    for _ in range(150):
        multiplier = rng.uniform(-0.5, 2.5, n)
        step = environment.step(multiplier)
        for i, loop in enumerate(loops):
            assert step.reward[i] == pytest.approx(loop.step(float(multiplier[i])), rel=1e-9, abs=1e-9)
            np.testing.assert_allclose(step.final_states[i], np.float32(loop.state()), rtol=1e-6, atol=1e-6)
            ages[i] += 1
            assert step.truncated[i] == (ages[i] == 60)
            if step.truncated[i]:
                ended += 1
                ages[i] = 0
                loops[i] = PlainLoop(bars, int(bar_of(step.states[i : i + 1])[0]), config)
            np.testing.assert_allclose(step.states[i], np.float32(loops[i].state()), rtol=1e-6, atol=1e-6)
    assert ended == 15


def test_many_windows_equal_single_windows() -> None:
    # The window holds one episode exactly, so that every window starts at the same bar.
    bars, rng = make_bars(102), np.random.default_rng(1)
    actions = rng.uniform(0.0, 2.0, (100, 5))
    together = make(bars, 5, episode_steps=100)
    first = together.reset()
    # The first window of several starts at age 0 like a single one; ages differ, states must not.
    seen, rewards = [first], []
    for action in actions[:19]:  # until the oldest window ends
        step = together.step(action)
        seen.append(step.final_states)
        rewards.append(step.reward)
    for i in range(5):
        alone = make(bars, 1, episode_steps=100)
        np.testing.assert_array_equal(alone.reset()[0], seen[0][i])
        for t in range(19):
            step = alone.step(actions[t, i : i + 1])
            np.testing.assert_array_equal(step.final_states[0], seen[t + 1][i])
            assert step.reward[0] == rewards[t][i]


def test_the_same_generator_gives_the_same_walk() -> None:
    def walk(seed: int) -> list[float]:
        environment = make(make_bars(300), 4, seed=seed, episode_steps=50)
        environment.reset()
        return [float(reward) for _ in range(120) for reward in environment.step(np.full(4, 1.5)).reward]

    assert walk(1) == walk(1)
    assert walk(1) != walk(2)


@pytest.mark.parametrize(
    ("base", "multiplier", "exposure"),
    [
        (0.1, 0.0, 0.0),
        (0.1, 0.5, 0.05),
        (0.1, 1.0, 0.1),
        (0.1, 1.7, 0.17),
        (0.1, 2.0, 0.2),
        (0.1, 3.0, 0.2),
        (0.1, -1.0, 0.0),
        (0.4, 1.0, 0.4),
        (0.4, 2.0, 0.5),
        (0.0, 2.0, 0.0),
    ],
)
@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_the_action_spans_zero_to_two_and_meets_the_cap(
    base: float, multiplier: float, exposure: float, direction: int
) -> None:
    bars = trend(np.full(10, 100.0), base_fraction=np.full(10, base), direction=np.full(10, direction, dtype=np.int8))
    at = np.array([3], dtype=np.intp)
    assert target_exposure(bars, at, np.array([multiplier]), 0.5)[0] == pytest.approx(direction * exposure)


def test_twice_the_multiplier_is_twice_the_money() -> None:
    # The predecessor clipped the action to [-1, 1]: 2.0 was then worth 1.0.
    prices = 100.0 * 1.001 ** np.arange(12)
    gains = {}
    for multiplier in (0.5, 1.0, 2.0):
        environment = make(trend(prices), episode_steps=10, costs=FREE, risk_aversion=0.0)
        environment.reset()
        step = environment.step(np.array([multiplier]))
        gains[multiplier] = math.expm1(float(step.reward[0]) / 100.0 + 0.1 * 0.001)
        assert step.states[0, 8] == pytest.approx(0.1 * multiplier / 0.5, rel=1e-3)
    assert gains[1.0] == pytest.approx(0.1 * 0.001)
    assert gains[2.0] == pytest.approx(2 * gains[1.0])
    assert gains[0.5] == pytest.approx(gains[1.0] / 2)


@pytest.mark.parametrize("decision", range(10))
def test_a_decision_at_a_close_earns_from_the_next_open_only(decision: int) -> None:
    jump = 6  # the open of bar 6 stands 50 % above the open of bar 5
    prices = np.where(np.arange(12) >= jump, 150.0, 100.0)
    environment = make(trend(prices), episode_steps=10, costs=FREE, risk_aversion=0.0)
    environment.reset()
    growth = 0.0
    for t in range(10):
        reward = environment.step(np.array([2.0 if t == decision else 0.0])).reward[0]
        growth += reward / 100.0 + (0.1 * 0.5 if t == jump - 2 else 0.0)  # without the baseline
    # Decided at the close of bar 4, bought at the open of 5, and sold at the open of 6.
    assert growth == pytest.approx(math.log(1.0 + 0.2 * 0.5) if decision == jump - 2 else 0.0, abs=1e-12)


def test_closes_move_what_is_seen_but_never_what_is_earned() -> None:
    bars = make_bars(102)
    other = dataclasses.replace(bars, close=bars.close * np.random.default_rng(1).uniform(0.5, 2.0, 102))
    rewards, states = [], []
    for world in (bars, other):
        environment = make(world, episode_steps=100)
        environment.reset()
        steps = [environment.step(np.array([1.5])) for _ in range(99)]
        rewards.append([float(step.reward[0]) for step in steps])
        states.append(np.concatenate([step.states for step in steps]))
    assert rewards[0] == rewards[1]
    assert not np.array_equal(states[0], states[1])


def test_windows_never_read_outside_their_range() -> None:
    whole, window = make_bars(400), range(100, 260)
    poisoned: dict[str, Any] = {}
    for field in dataclasses.fields(Bars):
        values = getattr(whole, field.name)
        if values.dtype == np.float64:
            values = values.copy()
            values[: window.start] = np.nan
            values[window.stop :] = np.nan
            poisoned[field.name] = values
    bars = dataclasses.replace(whole, **poisoned)
    clean, dirty = (make(world, 16, window, episode_steps=40) for world in (whole, bars))
    np.testing.assert_array_equal(clean.reset(), dirty.reset())
    visited: set[int] = set()
    rng = np.random.default_rng(2)
    for _ in range(600):
        action = rng.uniform(0.0, 2.0, 16)
        one, other = clean.step(action), dirty.step(action)
        for name in ("states", "reward", "final_states"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert np.isfinite(other.reward).all()
        assert np.isfinite(other.final_states).all()
        visited |= set(bar_of(other.states).tolist())
    # Every start is used, the last of them too, whose last trade ends at the window's last open.
    assert min(visited) == window.start
    assert max(visited) == window.stop - 3


def test_a_time_limit_restarts_flat_and_keeps_what_was_seen() -> None:
    environment = make(trend(100.0 * 1.01 ** np.arange(300.0)), 4, episode_steps=20)
    environment.reset()
    flags = []
    for _ in range(40):
        step = environment.step(np.full(4, 2.0))
        flags.append(step.truncated)
        assert (step.final_states[:, 8] > 0.0).all()
        assert (step.states[step.truncated, 8] == 0.0).all()
        assert (step.states[step.truncated, 14] == 0.5).all()
        np.testing.assert_array_equal(step.states[~step.truncated], step.final_states[~step.truncated])
    # Ages are staggered: one window ends every five steps, each of them every twenty.
    assert [np.flatnonzero(row).tolist() for row in flags[:20]] == [
        [3] if t == 4 else [2] if t == 9 else [1] if t == 14 else [0] if t == 19 else [] for t in range(20)
    ]
    np.testing.assert_array_equal(np.stack(flags[:20]), np.stack(flags[20:]))


def test_the_best_constant_size_is_where_theory_says_and_a_sharpe_ratio_does_not_know_it() -> None:
    base, sigma, aversion, steps = 0.25, 0.01, 5.0, 4_000
    best = 1.2
    mu = best * base * (1.0 + aversion) * sigma**2
    # Drift and variance exactly as planned: shocks come in pairs, in random order within each.
    first = np.random.default_rng(6).choice([-1.0, 1.0], (steps + 1) // 2 + 1)
    shocks = np.stack([first, -first], axis=1).ravel()[: steps + 1]
    prices = 100.0 * np.concatenate(([1.0], np.cumprod(1.0 + mu + sigma * shocks)))
    sizes = np.arange(0.0, 2.01, 0.1)
    bars = trend(prices, base_fraction=np.full(len(prices), base))
    environment = make(bars, len(sizes), episode_steps=steps, costs=FREE, risk_aversion=aversion)
    environment.reset()
    mean = sum(environment.step(sizes).reward for _ in range(steps)) / steps
    assert sizes[int(np.argmax(mean))] == pytest.approx(best)
    # The curve itself: 100 (m h mu - (1 + aversion) / 2 (m h sigma)^2), less the baseline.
    theory = 100.0 * ((sizes - 1.0) * base * mu - (1.0 + aversion) / 2.0 * (sizes * base * sigma) ** 2)
    assert np.abs(mean - theory).max() < 0.1 * np.ptp(theory)

    strategies = {str(m): (lambda *_, m=m: m) for m in (0.5, 1.0, 2.0)}
    tracks = run(bars, range(len(bars)), strategies, EnvironmentConfig(costs=FREE)).values()
    ratios = [sharpe(track.equity[1:] / track.equity[:-1] - 1.0, 8_760) for track in tracks]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-9)


def test_the_baseline_changes_no_preference() -> None:
    bars = make_bars(62)
    rewards: dict[float, list[float]] = {}
    for multiplier in (0.3, 1.7):
        environment = make(bars, episode_steps=60)
        environment.reset()
        loop = PlainLoop(bars, 0, EnvironmentConfig(episode_steps=60))
        rewards[multiplier] = []
        for _ in range(59):
            got = environment.step(np.array([multiplier])).reward[0]
            loop.step(multiplier)
            risk = 2.5 * sum(g * g for g in loop.growths[-10:]) / 10
            rewards[multiplier].append(got - 100.0 * (loop.growths[-1] - risk))
    # What is left is the same whatever was done.
    np.testing.assert_allclose(rewards[0.3], rewards[1.7], atol=1e-9)


def test_ruin_stays_finite() -> None:
    prices = np.array([100.0] * 3 + [1_000.0] * 9)
    bars = trend(prices, direction=np.full(12, -1, dtype=np.int8), base_fraction=np.full(12, 0.5))
    environment = make(bars, episode_steps=10)
    states = environment.reset()
    for _ in range(10):
        assert np.isfinite(states).all()
        step = environment.step(np.array([1.0]))
        assert np.isfinite(step.reward).all()
        states = step.states


@pytest.mark.parametrize("bars", [0, 2, 501])
def test_a_window_too_short_for_an_episode_is_refused(bars: int) -> None:
    with pytest.raises(TrainingError, match=f"{bars} bars cannot hold an episode of 500 .* at least 502 bars"):
        make(make_bars(600), window=range(50, 50 + bars))


def test_the_shortest_window_holds_exactly_one_episode() -> None:
    environment = make(make_bars(600), 3, window=range(50, 552))
    assert bar_of(environment.reset()).tolist() == [50, 50, 50]


QUICK = PPOConfig(steps=256, environments=16, rollout=16, batch=64, epochs=1, hidden=8)


@pytest.mark.parametrize(
    ("bars", "message"),
    [
        (trend(np.full(600, 123.0)), "the price is 123.0 on all 600 bars .* constant price"),
        (trend(np.linspace(100, 200, 600), direction=np.zeros(600, dtype=np.int8)), "holds nothing on all 600 bars"),
        (trend(np.linspace(100, 200, 600), base_fraction=np.zeros(600)), "holds nothing on all 600 bars"),
        (trend(np.linspace(100, 200, 300)), "300 bars cannot hold an episode of 500"),
    ],
    ids=["constant price", "all HOLD", "zero base", "too short"],
)
def test_training_refuses_what_cannot_be_learnt_from(bars: Bars, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(bars, range(len(bars)), seed=1, config=QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["capital"], [0.0, -1.0, math.nan]),
        *itertools.product(["max_exposure"], [0.0, 0.51, -0.1, math.nan]),
        *itertools.product(["episode_steps"], [0, 1]),
        *itertools.product(["reward_window"], [0, -3]),
        *itertools.product(["risk_aversion"], [-1.0, 1e9, math.nan]),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"environment: {name} = "):
        EnvironmentConfig(**{name: value})  # type: ignore[arg-type]


def test_the_defaults_are_the_issues() -> None:
    config = EnvironmentConfig()
    assert (config.capital, config.costs.commission, config.costs.slippage) == (100_000.0, 0.001, 0.0005)
    assert (config.max_exposure, config.reward_window, config.episode_steps) == (0.5, 10, 500)
    assert (contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH) == (0.0, 2.0)
