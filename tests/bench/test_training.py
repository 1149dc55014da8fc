"""The training benchmark's pieces; nothing here is timed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench import arena, bound, guide, ours, scalar, stable
from layer3.agent.environment import TradingEnvironment
from layer3.agent.ppo import PPOConfig
from tests.agent.worlds import make_bars


@pytest.fixture
def own_threads() -> Iterator[None]:
    """The peers set torch's threads, in a process of their own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", range(3))
def test_a_scalar_window_is_a_row_of_the_environment(seed):
    rng = np.random.default_rng(seed)
    bars = make_bars(arena.HELD_OUT.stop, seed)
    window, environment = scalar.Window(scalar.History(bars), seed), TradingEnvironment(bars, 1, arena.ENVIRONMENT)
    state, states = window.begin(7), environment.reset(np.array([7]))
    for _ in range(arena.ENVIRONMENT.episode_steps):
        np.testing.assert_allclose(state, states[0], atol=1e-6)
        # Both ends and a position that is merely kept are among them.
        multiplier = float(np.clip(rng.normal(1.0, 1.0), 0.0, 2.0))
        state, reward, ruined, over = window.step(multiplier)
        step = environment.step(np.array([multiplier]), np.array([0]))
        states = step.final_states
        assert reward == pytest.approx(step.reward[0], abs=1e-9)
        assert (ruined, over) == (bool(step.terminated[0]), bool(step.truncated[0]))
    assert over


def test_knowing_the_regime_pays_and_restlessness_costs():
    scores = arena.references("planted")
    assert scores["rule that knows the regime"] == pytest.approx(0.06, abs=0.01)
    assert 0.0 < scores["multiplier 1"] < 0.01
    assert scores["random multipliers"] < -0.01


@pytest.mark.parametrize("name", ["shuffled", "no edge"])
def test_the_controls_hold_nothing_to_learn(name):
    scores = arena.references(name)
    assert scores["rule that knows the regime"] < scores["multiplier 1"]


def test_operations_against_a_count_by_hand():
    # Weights without biases: actor 16 x 2 + 2 x 2 + 2 x 2 = 40, critic 16 x 2 + 2 x 2 + 2 x 1 = 38. A pass is two
    # operations per weight; backward needs one for all weights and one for all but the first layer's 32.
    # Acting 80; judging 5 of every 4 states 76; an epoch 80 + 80 + 16 and 76 + 76 + 12.
    config = PPOConfig(hidden=2, rollout=4, epochs=3)
    assert bound.operations(config) == 80 + 5 / 4 * 76 + 3 * (176 + 164)


def test_rates_are_measured_for_both_libraries():
    measured = bound.rates(0.01)
    assert set(measured) == set(bound.RATES)
    assert min(measured.values()) > 0.0


def test_settings_are_timed_in_one_call_and_one_after_another():
    together, apart = ours.settings_at_once(2, 1, 2_048)
    assert min(together, apart) > 0.0


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize(
    ("trainer", "arguments", "steps"),
    [
        (ours.learn, ("planted", 2_048, [0, 1]), 2_048),
        (guide.learn, ("planted", 500, 0), 500),
        (stable.learn, ("planted", 2_048, 0, False, 16, 1), 2_048),
        (stable.learn, ("planted", 2_048, 0, True, 128, 1), 2_048),
        (ours.walk_forward, (2, 1, 2_048), 2_048),
    ],
)
def test_every_trainer_runs(trainer, arguments, steps):
    run = trainer(*arguments)
    assert run.steps == steps
    assert np.isfinite([run.seconds, run.excess, run.noise, *run.scores]).all()
