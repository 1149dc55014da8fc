"""PPO: its mathematics against slow plain versions, its determinism, and that it learns what is there to learn."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3 import contract
from layer3.agent import ppo
from layer3.agent.bars import Bars, prepare
from layer3.agent.policy import Policy
from layer3.agent.ppo import PPOConfig, generalised_advantages, train
from layer3.backtest.engine import run
from layer3.backtest.metrics import summarise
from layer3.backtest.record import Track
from layer3.errors import ConfigurationError, TrainingError
from layer3.market.candles import check
from layer3.market.features import market_features
from layer3.market.simulator import MarketSpec, simulate
from layer3.market.splits import Splits, split

SEEDS = range(5)
LEARNING = PPOConfig(steps=200_000)
SHORT = PPOConfig(steps=4_096)


@cache
def market() -> tuple[Bars, Splits]:
    frame, report = check(simulate(MarketSpec()), "synthetic:default")
    bars, _ = prepare(frame, "SYNTH-USD", report.interval_seconds)
    return bars, split(len(bars), purge=168)


def learn(bars: Bars, window: range, seed: int, config: PPOConfig = LEARNING) -> Policy:
    return Policy(train(bars, window, seed=seed, config=config).tensors, {})


def walk(bars: Bars, window: range, policy: Policy) -> Track:
    return run(bars, window, {"policy": lambda state, _: float(policy.act(state)[0])})["policy"]


def sharpe(track: Track) -> float:
    value = summarise(track, 3600)["sharpe"]
    assert value is not None
    return value


@given(
    data=st.data(), steps=st.integers(1, 30), n=st.integers(1, 5), gamma=st.floats(0.5, 1.0), lam=st.floats(0.0, 1.0)
)
@settings(deadline=None)
def test_advantages_equal_a_slow_sum_over_the_future(data, steps, n, gamma, lam):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rewards, values, next_values = rng.standard_normal((3, steps, n))
    truncated = rng.random((steps, n)) < 0.2
    fast = generalised_advantages(rewards, values, next_values, truncated, gamma, lam)
    for column in range(n):
        for start in range(steps):
            total, weight = 0.0, 1.0
            for k in range(start, steps):
                total += weight * (rewards[k, column] + gamma * next_values[k, column] - values[k, column])
                if truncated[k, column]:
                    break
                weight *= gamma * lam
            assert fast[start, column] == pytest.approx(total, abs=1e-9)


def test_a_time_limit_is_bootstrapped_and_not_taken_for_the_end():
    one = np.ones((1, 1))
    cut = generalised_advantages(one, 0 * one, 5 * one, np.array([[True]]), 0.99, 0.95)
    assert cut[0, 0] == pytest.approx(1.0 + 0.99 * 5.0)


def test_log_probability_entropy_and_mean_are_those_of_a_beta_distribution():
    networks = ppo._Networks(8, torch.Generator().manual_seed(3))
    with torch.no_grad():
        networks.actor[-1].weight.mul_(300.0)
    states = torch.randn(64, contract.STATE_DIM, generator=torch.Generator().manual_seed(4))
    beta = networks.distribution(states)
    a, b = beta.concentration1.detach().numpy(), beta.concentration0.detach().numpy()
    for action in (ppo._ACTION_MARGIN, 1e-3, 0.5, 0.999, 1.0 - ppo._ACTION_MARGIN):
        ours = beta.log_prob(torch.full((64,), action)).detach().numpy()
        np.testing.assert_allclose(ours, scipy.stats.beta.logpdf(np.float32(action), a, b), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(beta.entropy().detach().numpy(), scipy.stats.beta.entropy(a, b), rtol=1e-3, atol=1e-3)
    assert a.min() >= 1.0
    assert b.min() >= 1.0


def test_numpy_serves_the_very_network_that_torch_trained():
    """The old system served a network that was not the trained one."""
    bars, splits = market()
    trained = train(bars, splits.train, seed=1, config=SHORT)
    layers = torch.nn.Sequential(
        torch.nn.Linear(16, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh(), torch.nn.Linear(128, 2)
    )
    with torch.no_grad():
        for number, at in enumerate((0, 2, 4), start=1):
            layers[at].weight.copy_(torch.from_numpy(trained.tensors[f"w{number}"].T.copy()))
            layers[at].bias.copy_(torch.from_numpy(trained.tensors[f"b{number}"]))
        x = torch.from_numpy((trained.states - trained.tensors["mean"]) / trained.tensors["std"]).clamp(-10.0, 10.0)
        shape = torch.nn.functional.softplus(layers(x)) + 1.0
        expected = 2.0 * shape[:, 0] / shape.sum(dim=1)
    multiplier, _ = Policy(trained.tensors, {}).act(trained.states)
    np.testing.assert_allclose(multiplier, expected.numpy(), atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    bars, splits = market()
    first, again, other = (train(bars, splits.train, seed=seed, config=SHORT) for seed in (7, 7, 8))
    for name in first.tensors:
        assert first.tensors[name].tobytes() == again.tensors[name].tobytes()
    assert first.states.tobytes() == again.states.tobytes()
    assert first.tensors["w1"].tobytes() != other.tensors["w1"].tobytes()


def test_training_leaves_global_state_alone():
    bars, splits = market()
    torch.manual_seed(5)
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    train(bars, splits.train, seed=1, config=SHORT)
    # nn.Linear draws its own weights before they are replaced: the draw must not come from the caller's stream.
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_progress_is_told_after_every_update_and_ends_at_the_total():
    bars, splits = market()
    told = []
    trained = train(bars, splits.train, seed=1, config=SHORT, on_progress=told.append)
    assert [p.steps for p in told] == [2_048, 4_096]
    assert tuple(told) == trained.curves
    assert told[-1].total_steps == 4_096


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 100},
        {"batch": 0},
        {"epochs": 0},
        {"hidden": 0},
        {"threads": 0},
        {"learning_rate": 0.0},
        {"gamma": 1.5},
        {"gae_lambda": 0.0},
        {"clip": -0.1},
        {"max_gradient": float("nan")},
    ],
)
def test_a_bad_hyperparameter_is_refused_by_name(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        PPOConfig(**change)


def test_a_constant_price_is_refused():
    """The old system trained on a constant price and did not notice."""
    bars, splits = market()
    flat = dataclasses.replace(bars, open=np.full(len(bars), 100.0))
    with pytest.raises(TrainingError, match="constant price"):
        train(flat, splits.train, seed=1, config=SHORT)


def test_signals_that_never_trade_are_refused():
    bars, splits = market()
    idle = dataclasses.replace(bars, base_fraction=np.zeros(len(bars)))
    with pytest.raises(TrainingError, match="holds nothing"):
        train(idle, splits.train, seed=1, config=SHORT)


def test_a_window_shorter_than_an_episode_is_refused():
    bars, _ = market()
    with pytest.raises(TrainingError, match="episode of 500"):
        train(bars, range(400), seed=1, config=SHORT)


def test_numbers_that_are_not_finite_are_refused_by_name_and_bar():
    bars, splits = market()
    broken = dataclasses.replace(bars, return_1h=np.where(np.arange(len(bars)) == 500, np.nan, bars.return_1h))
    with pytest.raises(TrainingError, match="return_1h at bar 500 is nan"):
        train(broken, splits.train, seed=1, config=SHORT)


@pytest.fixture(scope="module")
def learned() -> dict[int, Track]:
    bars, splits = market()
    return {seed: walk(bars, splits.test, learn(bars, splits.train, seed)) for seed in SEEDS}


def test_it_learns_on_a_planted_edge(learned):
    """On unseen data: better than multiplier 1, and than random multipliers, for at least 4 of 5 seeds."""
    bars, splits = market()
    rng = np.random.default_rng(0)
    held = np.repeat(rng.uniform(0.0, 2.0, (5, 400)), 24, axis=1)
    rivals = {"kelly": lambda state, t: 1.0}
    # Random multipliers that are held for a day: redrawn every bar they would lose to costs alone.
    rivals |= {f"random {k}": lambda state, t, row=row: float(row[t]) for k, row in enumerate(held)}
    best = max(sharpe(track) for track in run(bars, splits.test, rivals).values())
    wins = [sharpe(track) > best + 0.5 for track in learned.values()]
    assert sum(wins) >= 4, {seed: sharpe(track) for seed, track in learned.items()} | {"best rival": best}


def test_its_action_uses_the_whole_range(learned):
    """The old system clipped an action in [0, 2] to [-1, 1]."""
    for track in learned.values():
        assert track.multiplier.min() < 0.25
        assert track.multiplier.max() > 1.6
        assert track.multiplier.std() > 0.3


def test_with_leaked_future_returns_it_wins_by_far(learned):
    bars, splits = market()
    coming = np.zeros(len(bars))
    coming[:-2] = bars.open[2:] / bars.open[1:-1] - 1.0
    leaked = dataclasses.replace(bars, confidence=(np.sign(coming) * bars.direction > 0).astype(np.float64))
    cheat = sharpe(walk(leaked, splits.test, learn(leaked, splits.train, 0)))
    assert cheat > 3.0 * max(sharpe(track) for track in learned.values())


@pytest.mark.parametrize("seed", range(3))
def test_on_shuffled_data_it_does_not_win(seed):
    """The old system's edge survived shuffling; here the returns are permuted and the signals stay."""
    bars, splits = market()
    steps = np.random.default_rng(seed).permutation(np.diff(np.log(bars.open)))
    opened = bars.open[0] * np.exp(np.concatenate(([0.0], np.cumsum(steps))))
    closed = np.concatenate((opened[1:], opened[-1:]))
    shuffled = dataclasses.replace(
        bars, open=opened, close=closed, **market_features(closed, bars.interval_seconds)._asdict()
    )
    figures = summarise(walk(shuffled, splits.test, learn(shuffled, splits.train, seed)), 3600)
    assert figures["probabilistic_sharpe"] < 0.95
    assert figures["sharpe"] < 1.0
