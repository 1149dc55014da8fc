"""The environment: exact money, the next open, the whole span of the action, and a reward that teaches size."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layer3 import contract
from layer3.agent.bars import Bars, concatenate
from layer3.agent.environment import Account, EnvironmentConfig, Step, TradingEnvironment, episode_starts
from layer3.backtest.engine import run
from layer3.backtest.metrics import sharpe
from layer3.errors import ConfigurationError, TrainingError
from layer3.ledger import Costs
from tests.agent.worlds import bar_of, make_bars, trend
from tests.layer3.slow_ledger import SlowLedger

FREE = Costs(commission=0.0, slippage=0.0)
BOTH = pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
FIELDS = [field.name for field in dataclasses.fields(Step)]


class Walk:
    """An environment on numpy or torch, spoken to in numpy."""

    def __init__(self, bars: Bars, n: int = 1, xp: Any = np, **config: Any) -> None:
        self.n, self._xp = n, xp
        self.environment = TradingEnvironment(bars, n, EnvironmentConfig(**config), xp)

    def reset(self, starts: Any = 0, ages: Any = 0) -> NDArray[np.float32]:
        return np.asarray(self.environment.reset(self._sent(starts), ages))

    def step(self, multiplier: Any, starts: Any = 0) -> Step:
        multiplier = self._xp.asarray(np.broadcast_to(multiplier, self.n).astype(np.float64))
        step = self.environment.step(multiplier, self._sent(starts))
        assert isinstance(step.truncated, np.ndarray)
        return Step(**{name: np.asarray(getattr(step, name)) for name in FIELDS})

    def _sent(self, starts: Any) -> Any:
        return self._xp.asarray(np.broadcast_to(starts, self.n).astype(np.int64))


def actions(rng: np.random.Generator, steps: int, n: int) -> NDArray[np.float64]:
    """Multipliers (steps, n): anything within and somewhat without the bounds, and often 0, so that trades close."""
    return np.where(rng.random((steps, n)) < 0.2, 0.0, rng.uniform(-0.5, 2.5, (steps, n)))


def wild(n: int, seed: int = 1) -> Bars:
    """A market in which the price sometimes jumps far enough to ruin who is short."""
    bars = make_bars(n, seed)
    rng = np.random.default_rng(seed)
    jumps = np.where(rng.random(n) < 0.05, rng.uniform(2.0, 6.0, n), 1.0)
    return dataclasses.replace(bars, open=bars.open * jumps, close=bars.close * np.roll(jumps, -1))


def same(one: Step, other: Step, rows: Any = slice(None)) -> None:
    """``other`` is the ``rows`` of ``one``, bit for bit."""
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name), err_msg=name)


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


@BOTH
@pytest.mark.parametrize(
    "config",
    [
        EnvironmentConfig(episode_steps=60),
        EnvironmentConfig(episode_steps=60, costs=Costs(0.02, 0.01), reward_window=3, risk_aversion=40.0),
        EnvironmentConfig(episode_steps=60, max_exposure=0.2, capital=7.0, risk_aversion=0.0, reward_window=1),
    ],
    ids=["default", "costly", "tight"],
)
def test_many_windows_equal_a_plain_loop_on_the_slow_ledger(config: EnvironmentConfig, xp: Any) -> None:
    bars, n, rng = make_bars(400), 6, np.random.default_rng(3)
    walk = Walk(bars, n, xp, **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    possible = episode_starts([range(20, 380)], config)
    ages = np.arange(n) * 60 // n
    begun = rng.choice(possible, n)
    loops = [PlainLoop(bars, int(at), config) for at in begun]
    np.testing.assert_array_equal(bar_of(walk.reset(begun, ages)), begun)
    ended = 0
    for multiplier in actions(rng, 150, n):
        starts = rng.choice(possible, n)
        step = walk.step(multiplier, starts)
        for i, loop in enumerate(loops):
            assert step.reward[i] == pytest.approx(loop.step(float(multiplier[i])), rel=1e-9, abs=1e-9)
            assert step.growth[i] == pytest.approx(loop.growths[-1], rel=1e-9, abs=1e-11)
            np.testing.assert_allclose(step.final_states[i], np.float32(loop.state()), rtol=1e-6, atol=1e-6)
            ages[i] += 1
            assert step.truncated[i] == (ages[i] == 60)
            assert not step.terminated[i]
            if step.truncated[i]:
                ended += 1
                ages[i] = 0
                loops[i] = PlainLoop(bars, int(starts[i]), config)
            np.testing.assert_allclose(step.states[i], np.float32(loops[i].state()), rtol=1e-6, atol=1e-6)
    assert ended == 15


CONFIGS = st.builds(
    EnvironmentConfig,
    capital=st.floats(1e-3, 1e9),
    costs=st.builds(Costs, commission=st.floats(0.0, 0.05), slippage=st.floats(0.0, 0.05)),
    max_exposure=st.floats(0.01, 0.5),
    episode_steps=st.integers(2, 200),
    reward_window=st.integers(1, 30),
    risk_aversion=st.floats(0.0, 100.0),
)


@settings(max_examples=10, deadline=None)
@given(config=CONFIGS, n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), market=st.sampled_from([make_bars, wild]))
def test_numpy_and_torch_give_the_same_money_and_states_bit_for_bit(
    config: EnvironmentConfig, n: int, seed: int, market: Any
) -> None:
    bars, rng, steps = market(400, seed), np.random.default_rng(seed), 1_500
    possible = episode_starts([range(len(bars))], config)
    multipliers, starts = actions(rng, steps, n), rng.choice(possible, (steps + 1, n))
    ages = rng.integers(0, config.episode_steps, n)
    sides = [TradingEnvironment(bars, n, config, xp) for xp in (np, torch)]
    states = [np.asarray(side.reset(xp.asarray(starts[-1]), ages)) for side, xp in zip(sides, (np, torch), strict=True)]
    np.testing.assert_array_equal(*states)
    for k in range(steps):
        one = sides[0].step(multipliers[k], starts[k])
        other = sides[1].step(torch.asarray(multipliers[k]), torch.asarray(starts[k]))
        for name in ("states", "final_states", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, name), np.asarray(getattr(other, name)), err_msg=name)
        for name in ("reward", "growth"):
            np.testing.assert_allclose(getattr(one, name), np.asarray(getattr(other, name)), rtol=1e-12, atol=1e-12)
        if k % 100 == 99:
            money = [side.snapshot() for side in sides]
            for name in set(money[0]) - {"_squares", "_square_sum"}:  # these know the logarithm
                np.testing.assert_array_equal(money[0][name], money[1][name], err_msg=name)


class Transfers(TorchDispatchMode):
    """Notes what is done with an array of the host's, or asks the device for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors) or func in ASKING:
            self.met.append(str(func))
        return func(*args, **(kwargs or {}))


ASKING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


def test_on_a_device_no_step_sends_or_asks_for_anything() -> None:
    """The device is torch's stand-in without numbers, which every question to it would fail on."""
    steps, n = 60, 8
    walk = TradingEnvironment(make_bars(300), n, EnvironmentConfig(episode_steps=25), torch, "meta")
    starts = torch.zeros(n, dtype=torch.int64, device="meta")
    multiplier = torch.ones(n, dtype=torch.float64, device="meta")
    with Transfers() as seen:
        walk.reset(starts, np.arange(n))
    assert seen.met  # the ages are told once
    with Transfers() as seen:
        ended = sum(int(walk.step(multiplier, starts).truncated.sum()) for _ in range(steps))
    assert ended == 2 * n
    assert seen.met == []


@BOTH
def test_no_row_depends_on_another(xp: Any) -> None:
    bars, n, steps, rng = wild(300), 9, 400, np.random.default_rng(1)
    config: dict[str, Any] = {"episode_steps": 40, "costs": FREE}
    possible = episode_starts([range(len(bars))], EnvironmentConfig(**config))
    multipliers, starts, ages = actions(rng, steps, n), rng.choice(possible, (steps + 1, n)), rng.integers(0, 40, n)
    orders = [np.arange(n), rng.permutation(n), rng.permutation(n)[:4], np.array([5])]
    walks = [Walk(bars, len(rows), xp, **config) for rows in orders]
    first = [walk.reset(starts[-1, rows], ages[rows]) for walk, rows in zip(walks, orders, strict=True)]
    ruined = 0
    for rows, states in zip(orders, first, strict=True):
        np.testing.assert_array_equal(states, first[0][rows])
    for k in range(steps):
        together, *others = (
            walk.step(multipliers[k, rows], starts[k, rows]) for walk, rows in zip(walks, orders, strict=True)
        )
        ruined += together.terminated.sum()
        for rows, step in zip(orders[1:], others, strict=True):
            same(together, step, rows)
    assert ruined > 0


def test_it_draws_nothing_itself() -> None:
    def rewards(starts: int) -> list[float]:
        walk = Walk(make_bars(300), 4, episode_steps=50)
        walk.reset(starts)
        return [float(reward) for _ in range(120) for reward in walk.step(1.5, starts).reward]

    assert rewards(1) == rewards(1)
    assert rewards(1) != rewards(2)


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
@BOTH
def test_the_action_spans_zero_to_two_and_meets_the_cap(
    base: float, multiplier: float, exposure: float, direction: int, xp: Any
) -> None:
    bars = trend(np.full(10, 100.0), base_fraction=np.full(10, base), direction=np.full(10, direction, dtype=np.int8))
    account = Account(bars, 1, EnvironmentConfig(), xp)
    target = account.target(xp.asarray([3]), xp.asarray([multiplier]))
    assert float(target[0]) == pytest.approx(direction * exposure)


def test_twice_the_multiplier_is_twice_the_money() -> None:
    # The predecessor clipped the action to [-1, 1]: 2.0 was then worth 1.0.
    prices = 100.0 * 1.001 ** np.arange(12)
    gains = {}
    for multiplier in (0.5, 1.0, 2.0):
        walk = Walk(trend(prices), episode_steps=10, costs=FREE, risk_aversion=0.0)
        walk.reset()
        step = walk.step(multiplier)
        gains[multiplier] = math.expm1(float(step.growth[0]))
        assert step.reward[0] == pytest.approx(100.0 * (step.growth[0] - 0.1 * 0.001))
        assert step.states[0, 8] == pytest.approx(0.1 * multiplier / 0.5, rel=1e-3)
    assert gains[1.0] == pytest.approx(0.1 * 0.001)
    assert gains[2.0] == pytest.approx(2 * gains[1.0])
    assert gains[0.5] == pytest.approx(gains[1.0] / 2)


@pytest.mark.parametrize("decision", range(10))
def test_a_decision_at_a_close_earns_from_the_next_open_only(decision: int) -> None:
    jump = 6  # the open of bar 6 stands 50 % above the open of bar 5
    prices = np.where(np.arange(12) >= jump, 150.0, 100.0)
    walk = Walk(trend(prices), episode_steps=10, costs=FREE)
    walk.reset()
    growth = [float(walk.step(2.0 if t == decision else 0.0).growth[0]) for t in range(10)]
    # Decided at the close of bar 4, bought at the open of 5, and sold at the open of 6.
    earned = math.log(1.0 + 0.2 * 0.5)
    assert growth == pytest.approx([earned if t == decision == jump - 2 else 0.0 for t in range(10)], abs=1e-12)


def test_closes_move_what_is_seen_but_never_what_is_earned() -> None:
    bars = make_bars(102)
    other = dataclasses.replace(bars, close=bars.close * np.random.default_rng(1).uniform(0.5, 2.0, 102))
    rewards, states = [], []
    for world in (bars, other):
        walk = Walk(world, episode_steps=100)
        walk.reset()
        steps = [walk.step(1.5) for _ in range(99)]
        rewards.append([float(step.reward[0]) for step in steps])
        states.append(np.concatenate([step.states for step in steps]))
    assert rewards[0] == rewards[1]
    assert not np.array_equal(states[0], states[1])


def test_windows_never_read_outside_their_range() -> None:
    whole, windows = make_bars(400), [range(100, 260), range(300, 360)]
    outside = np.ones(400, dtype=bool)
    for window in windows:
        outside[window.start : window.stop] = False
    poisoned: dict[str, Any] = {}
    for field in dataclasses.fields(Bars):
        values = getattr(whole, field.name)
        if values.dtype == np.float64:
            poisoned[field.name] = np.where(outside, np.nan, values)
    bars = dataclasses.replace(whole, **poisoned)
    possible = episode_starts(windows, EnvironmentConfig(episode_steps=40))
    clean, dirty = (Walk(world, 16, episode_steps=40) for world in (whole, bars))
    ages = np.arange(16) * 40 // 16
    np.testing.assert_array_equal(clean.reset(possible[:16], ages), dirty.reset(possible[:16], ages))
    visited: set[int] = set()
    rng = np.random.default_rng(2)
    # Every start is used, the last of them too, whose last trade ends at the window's last open.
    remaining = itertools.cycle(possible)
    for _ in range(600):
        action, starts = rng.uniform(0.0, 2.0, 16), [next(remaining) for _ in range(16)]
        one, other = clean.step(action, starts), dirty.step(action, starts)
        same(one, other)
        assert np.isfinite(other.reward).all()
        assert np.isfinite(other.final_states).all()
        visited |= set(bar_of(other.final_states).tolist()) | set(bar_of(other.states).tolist())
    for window in windows:
        assert {window.start, window.stop - 2} <= visited


def parts() -> tuple[list[Bars], list[range]]:
    """Histories of prices a thousandfold apart, and where each lies once they are joined."""
    made = []
    for number, n in enumerate((90, 150, 60)):
        bars = make_bars(n, seed=number)
        level = 1_000.0**number
        made.append(dataclasses.replace(bars, open=bars.open * level, close=bars.close * level))
    bounds = np.cumsum([0, *(len(bars) for bars in made)])
    return made, [range(*pair) for pair in itertools.pairwise(bounds)]


@BOTH
def test_joined_histories_are_walked_as_if_each_were_alone(xp: Any) -> None:
    histories, windows = parts()
    config = EnvironmentConfig(episode_steps=30)
    joined = Walk(concatenate(histories), 6, xp, episode_steps=30)
    alone = [Walk(bars, 6, xp, episode_steps=30) for bars in histories]
    rng, ages = np.random.default_rng(5), np.arange(6) * 5
    for number, (bars, window) in enumerate(zip(histories, windows, strict=True)):
        possible = episode_starts([range(len(bars))], config)
        np.testing.assert_array_equal(episode_starts([window], config), possible + window.start)
        begun = rng.choice(possible, 6)
        np.testing.assert_array_equal(joined.reset(begun + window.start, ages), alone[number].reset(begun, ages))
        for action in actions(rng, 120, 6):
            starts = rng.choice(possible[[0, -1]], 6)
            same(joined.step(action, starts + window.start), alone[number].step(action, starts))


def test_no_episode_crosses_a_seam() -> None:
    histories, windows = parts()
    joined, config = concatenate(histories), EnvironmentConfig(episode_steps=30)
    possible = episode_starts(windows, config)
    for start in possible:
        # The last trade of the episode ends at the open of the bar after the one it is seen at last.
        assert any(start in window and start + 31 in window for window in windows)
    walk, rng = Walk(joined, len(possible), episode_steps=30), np.random.default_rng(0)
    walk.reset(possible)
    for action in actions(rng, 30, len(possible)):
        # Nobody could earn a thousandfold within a part.
        assert np.abs(walk.step(action, possible).growth).max() < 0.1


@BOTH
def test_a_time_limit_restarts_flat_and_keeps_what_was_seen(xp: Any) -> None:
    walk = Walk(trend(100.0 * 1.01 ** np.arange(300.0)), 4, xp, episode_steps=20)
    walk.reset(7, np.arange(4) * 20 // 4)
    flags = []
    for _ in range(40):
        step = walk.step(2.0, 11)
        flags.append(step.truncated)
        assert not step.terminated.any()
        assert (step.final_states[:, 8] > 0.0).all()
        assert (step.states[step.truncated, 8] == 0.0).all()
        assert (step.states[step.truncated, 14] == 0.5).all()
        assert (bar_of(step.states[step.truncated]) == 11).all()
        np.testing.assert_array_equal(step.states[~step.truncated], step.final_states[~step.truncated])
    # Ages are staggered: one window ends every five steps, each of them every twenty.
    assert [np.flatnonzero(row).tolist() for row in flags[:20]] == [
        [3] if t == 4 else [2] if t == 9 else [1] if t == 14 else [0] if t == 19 else [] for t in range(20)
    ]
    np.testing.assert_array_equal(np.stack(flags[:20]), np.stack(flags[20:]))


@BOTH
def test_time_limits_are_known_before_the_steps(xp: Any) -> None:
    walk, ages = Walk(make_bars(300), 8, xp, episode_steps=25), np.arange(8) * 25 // 8
    walk.reset(3, ages)
    for _ in range(7):
        walk.step(1.0, 5)
    limits = walk.environment.time_limits(60)
    np.testing.assert_array_equal(limits, np.stack([walk.step(1.0, 5).truncated for _ in range(60)]))
    assert limits.sum() > 8


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
    walk = Walk(bars, len(sizes), episode_steps=steps, costs=FREE, risk_aversion=aversion)
    walk.reset()
    mean = sum(walk.step(sizes).reward for _ in range(steps)) / steps
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
        walk = Walk(bars, episode_steps=60)
        walk.reset()
        loop = PlainLoop(bars, 0, EnvironmentConfig(episode_steps=60))
        rewards[multiplier] = []
        for _ in range(59):
            got = walk.step(multiplier).reward[0]
            loop.step(multiplier)
            risk = 2.5 * sum(g * g for g in loop.growths[-10:]) / 10
            rewards[multiplier].append(got - 100.0 * (loop.growths[-1] - risk))
    # What is left is the same whatever was done.
    np.testing.assert_allclose(rewards[0.3], rewards[1.7], atol=1e-9)


def doomed(factor: float) -> Bars:
    """Always short a half; at the open of bar 20 the price is ``factor`` times what it was at every open before."""
    prices = np.full(80, 100.0)
    prices[20:] *= factor * np.exp(np.cumsum(0.01 * np.random.default_rng(0).standard_normal(60)))
    prices[20] = 100.0 * factor
    return trend(prices, direction=np.full(80, -1, dtype=np.int8), base_fraction=np.full(80, 0.5))


@BOTH
@pytest.mark.parametrize("factor", [3.0, 10.0, 1e9], ids=["to zero exactly", "below zero", "far below zero"])
def test_ruin_happens_once_and_the_account_starts_afresh(factor: float, xp: Any) -> None:
    # Whoever is short from the open of bar 19 to that of bar 20, that is decides at bar 18, is ruined: after 8 steps,
    # 4, at once, just as the time limit comes, and never, because the time limit comes first.
    begun, ages, again = np.array([10, 14, 18, 0, 0]), np.array([0, 4, 11, 1, 5]), 30
    bars, n, rng = doomed(factor), 5, np.random.default_rng(0)
    config: dict[str, Any] = {"episode_steps": 20, "costs": FREE}
    walk, careful, fresh = (Walk(bars, n, xp, **config) for _ in range(3))
    walk.reset(begun, ages)
    careful.reset(begun, ages)
    first = fresh.reset(again)
    ruined = []
    for t in range(45):
        multiplier = rng.uniform(0.0, 2.0, n) if t > 18 else 1.0
        step = walk.step(multiplier, again)
        for array in (step.reward, step.growth, step.states, step.final_states):
            assert np.isfinite(array).all()
        # The time limit's schedule is that of somebody who never holds anything.
        np.testing.assert_array_equal(step.truncated, careful.step(0.0, again).truncated)
        np.testing.assert_array_equal(step.states[step.terminated], first[step.terminated])
        assert (step.growth[step.terminated] < -20.0).all()
        assert (step.final_states[step.terminated, 9] == -1.0).all()
        ruined.append(step.terminated)
        if 9 <= t < 19:  # row 0, since its ruin and until its time limit, is as if nothing had been before
            other = fresh.step(multiplier, again)
            for name in ("reward", "growth", "terminated", "final_states"):
                np.testing.assert_array_equal(getattr(step, name)[0], getattr(other, name)[0], err_msg=name)
    assert [np.flatnonzero(row).tolist() for row in np.transpose(ruined)] == [[8], [4], [0], [18], []]


@BOTH
@pytest.mark.parametrize("factor", [3.0, 10.0])
def test_a_loss_of_everything_that_only_a_close_shows_is_seen_as_the_largest_position(factor: float, xp: Any) -> None:
    close = np.full(12, 100.0)
    close[5] *= factor
    bars = dataclasses.replace(
        trend(close, direction=np.full(12, -1, dtype=np.int8), base_fraction=np.full(12, 0.5)), open=np.full(12, 100.0)
    )
    walk = Walk(bars, xp=xp, episode_steps=10, costs=FREE)
    walk.reset()
    steps = [walk.step(1.0) for _ in range(6)]
    assert steps[4].states[0, 8:11].tolist() == [1.0, -1.0, -1.0]
    assert steps[5].states[0, 8:11].tolist() == [1.0, -1.0, 0.0]
    assert not any(step.terminated[0] for step in steps)


@pytest.mark.parametrize("before", [np, torch], ids=["from numpy", "from torch"])
@pytest.mark.parametrize("after", [np, torch], ids=["to numpy", "to torch"])
def test_a_walk_goes_on_from_a_snapshot_to_the_last_bit(before: Any, after: Any) -> None:
    bars, n, steps, rng = wild(300), 6, 300, np.random.default_rng(4)
    config: dict[str, Any] = {"episode_steps": 50, "reward_window": 7}
    possible = episode_starts([range(len(bars))], EnvironmentConfig(**config))
    multipliers, starts = actions(rng, steps, n), rng.choice(possible, (steps, n))
    walk = Walk(bars, n, before, **config)
    walk.reset(possible[:n], np.arange(n) * 8)
    for k in range(130):
        seen = walk.step(multipliers[k], starts[k]).states
    snapshot = walk.environment.snapshot()
    kept = {name: array.copy() for name, array in snapshot.items()}
    whole = [walk.step(multipliers[k], starts[k]) for k in range(130, steps)]

    # Twice, so that going on spoils no snapshot; and in two halves, as several workers take it up.
    for rows in (slice(None), slice(None), slice(0, 2), slice(2, n)):
        resumed = Walk(bars, len(range(n)[rows]), after, **config)
        states = resumed.environment.restore({name: array[..., rows] for name, array in snapshot.items()})
        np.testing.assert_array_equal(np.asarray(states), seen[rows])
        for k, step in zip(range(130, steps), whole, strict=True):
            other = resumed.step(multipliers[k, rows], starts[k, rows])
            if before is after:
                same(step, other, rows)
                continue
            for name in FIELDS:
                tolerance = 1e-12 if name in {"reward", "growth"} else 0.0
                np.testing.assert_allclose(
                    getattr(step, name)[rows], getattr(other, name), rtol=tolerance, atol=tolerance, err_msg=name
                )
    for name, array in kept.items():
        np.testing.assert_array_equal(snapshot[name], array, err_msg=name)


def test_a_read_only_snapshot_can_be_taken_up() -> None:
    walk = Walk(make_bars(100), 2, episode_steps=50)
    walk.reset([3, 4])
    snapshot = walk.environment.snapshot()
    for array in snapshot.values():
        array.setflags(write=False)
    other = Walk(make_bars(100), 2, episode_steps=50)
    other.environment.restore(snapshot)
    same(walk.step(1.5), other.step(1.5))


@pytest.mark.parametrize("bars", [0, 2, 501])
def test_a_window_too_short_for_an_episode_is_refused(bars: int) -> None:
    with pytest.raises(TrainingError, match=f"{bars} bars cannot hold an episode of 500 .* at least 502 bars"):
        episode_starts([range(0, 600), range(50, 50 + bars)], EnvironmentConfig())


@pytest.mark.parametrize(
    ("windows", "starts"),
    [
        ([range(50, 57)], [50]),
        ([range(50, 59)], [50, 51, 52]),
        ([range(0, 8), range(20, 27)], [0, 1, 20]),
        ([range(20, 27), range(0, 8)], [20, 0, 1]),
    ],
)
def test_an_episode_may_start_wherever_it_ends_within_its_window(windows: list[range], starts: list[int]) -> None:
    assert episode_starts(windows, EnvironmentConfig(episode_steps=5)).tolist() == starts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["capital"], [0.0, -1.0, math.nan, math.inf]),
        *itertools.product(["max_exposure"], [0.0, 0.51, -0.1, math.nan]),
        *itertools.product(["episode_steps"], [0, 1, 50.5]),
        *itertools.product(["reward_window"], [0, -3, 2.5]),
        *itertools.product(["risk_aversion"], [-1.0, 1e9, math.nan]),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"environment: {name} = "):
        EnvironmentConfig(**{name: value})  # type: ignore[arg-type]


def test_the_defaults_are_what_production_charges_and_allows() -> None:
    config = EnvironmentConfig()
    assert (config.capital, config.costs.commission, config.costs.slippage) == (100_000.0, 0.001, 0.0005)
    assert (config.max_exposure, config.reward_window, config.episode_steps) == (0.5, 10, 500)
    assert (contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH) == (0.0, 2.0)
