"""The environment's gymnasium form: what the checkers ask, and the same numbers as the environment itself."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from gymnasium.utils.env_checker import check_space_limit
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RescaleAction
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_for_sb3
from stable_baselines3.common.vec_env import DummyVecEnv

from layer3.agent.environment import EnvironmentConfig, TradingEnvironment
from layer3.agent.gym_env import TradingEnv, TradingVectorEnv
from layer3.errors import ConfigurationError, TrainingError
from layer3.ledger import Costs
from tests.agent.worlds import bar_of, make_bars, trend

BARS = make_bars(300)
WINDOWS = [range(10, 150), range(160, 290)]
CONFIG = EnvironmentConfig(episode_steps=50)
EVERYTHING = {"bars": BARS, "windows": WINDOWS, "config": CONFIG}
#: A window that holds one episode exactly, so that every episode begins at its first bar.
ONE = {"bars": BARS, "windows": [range(20, 72)], "config": CONFIG}


def spec() -> EnvSpec:
    return EnvSpec("HIMARI-v0", entry_point=TradingEnv, vector_entry_point=TradingVectorEnv, kwargs=EVERYTHING)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_the_multiplier_itself_would_pass_neither_checker() -> None:
    # Why the action is in [-1, 1]: warnings are errors here, and both checkers warn of a box from 0 to 2.
    env = RescaleAction(TradingEnv(**EVERYTHING), floats(0.0), floats(2.0))
    with pytest.warns(UserWarning, match="symmetric and normalized"):
        check_space_limit(env.action_space, "action")
    with pytest.warns(UserWarning, match="symmetric and normalized"):
        check_for_sb3(env)


def test_gymnasiums_checker_passes_without_a_warning() -> None:
    env = gymnasium.make(spec())
    # With a spec it also checks determinism, render modes and closing.
    assert env.unwrapped.spec is not None
    check_for_gymnasium(env.unwrapped)


def test_stable_baselines3s_checker_passes_without_a_warning() -> None:
    check_for_sb3(TradingEnv(**EVERYTHING), warn=True)


def test_the_spaces_are_the_contracts() -> None:
    env, vector = TradingEnv(**EVERYTHING), TradingVectorEnv(4, **EVERYTHING)
    assert env.observation_space.low.tolist() == [0.0] * 9 + [-1.0] * 4 + [0.0] * 3
    assert env.observation_space.high.tolist() == [1.0] * 16
    assert (env.action_space.low, env.action_space.high) == ([-1.0], [1.0])
    for space in (env.observation_space, env.action_space, vector.observation_space, vector.action_space):
        assert space.dtype == np.float32
    assert vector.single_observation_space == env.observation_space
    assert vector.single_action_space == env.action_space
    assert (vector.observation_space.shape, vector.action_space.shape) == ((4, 16), (4, 1))
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize(("action", "multiplier"), [(-1.0, 0.0), (-0.5, 0.5), (0.0, 1.0), (0.7, 1.7), (1.0, 2.0)])
def test_the_multiplier_is_one_and_the_action(action: float, multiplier: float) -> None:
    # The predecessor clipped an action in [0, 2] to [-1, 1]: here both of its halves reach the market.
    env = TradingEnv(**ONE)
    core = TradingEnvironment(BARS, 1, CONFIG)
    env.reset()
    core.reset(np.array([20]))
    for _ in range(20):
        observation, reward, *_ = env.step(floats(action))
        step = core.step(np.array([1.0 + np.float64(np.float32(action))]), np.array([20]))
        assert reward == step.reward[0]
        np.testing.assert_array_equal(observation, step.final_states[0])
    assert 1.0 + float(np.float32(action)) == pytest.approx(multiplier)


def test_whoever_prefers_the_multiplier_itself_rescales() -> None:
    env, plain = RescaleAction(TradingEnv(**ONE), floats(0.0), floats(2.0)), TradingEnv(**ONE)
    assert env.action_space == gymnasium.spaces.Box(0.0, 2.0, (1,), np.float32)
    env.reset()
    plain.reset()
    for multiplier in np.random.default_rng(0).choice([0.0, 0.25, 1.0, 1.75, 2.0], 40):
        assert env.step(floats(multiplier))[1] == plain.step(floats(multiplier - 1.0))[1]


def test_one_window_is_the_environments() -> None:
    env, core, rng = TradingEnv(**EVERYTHING), TradingEnvironment(BARS, 1, CONFIG), np.random.default_rng(0)
    begun = set()
    for episode in range(40):
        observation, info = env.reset(seed=7 if episode == 0 else None)
        at = bar_of(observation[None])
        begun.add(int(at[0]))
        np.testing.assert_array_equal(observation, core.reset(at)[0])
        assert info == {"timestamp": BARS.timestamp[at[0]]}
        for t in range(50):
            action = floats(rng.uniform(-1.0, 1.0))
            observation, reward, terminated, truncated, info = env.step(action)
            step = core.step(1.0 + action.astype(np.float64), at)
            np.testing.assert_array_equal(observation, step.final_states[0])
            assert info == {"growth": step.growth[0], "timestamp": BARS.timestamp[at[0] + t + 1]}
            assert (reward, terminated, truncated) == (step.reward[0], False, t == 49)
    assert any(start < 150 for start in begun)
    assert any(start >= 160 for start in begun)


def test_many_windows_are_the_environments_row_by_row() -> None:
    n, rng = 7, np.random.default_rng(0)
    env, core = TradingVectorEnv(n, **EVERYTHING), TradingEnvironment(BARS, n, CONFIG)
    states, infos = env.reset(seed=3)
    at = bar_of(states)
    ages = np.arange(n) * 50 // n
    np.testing.assert_array_equal(states, core.reset(at, ages))
    np.testing.assert_array_equal(infos["timestamp"], BARS.timestamp[at])
    endings = 0
    for _ in range(220):
        actions = rng.uniform(-1.0, 1.0, (n, 1)).astype(np.float32)
        states, reward, terminated, truncated, infos = env.step(actions)
        step = core.step(1.0 + actions[:, 0].astype(np.float64), bar_of(states))
        np.testing.assert_array_equal(states, step.states)
        np.testing.assert_array_equal(reward, step.reward)
        np.testing.assert_array_equal(terminated, step.terminated)
        np.testing.assert_array_equal(truncated, step.truncated)
        np.testing.assert_array_equal(infos["growth"], step.growth)
        assert infos["_growth"].all()
        np.testing.assert_array_equal(infos["timestamp"], BARS.timestamp[bar_of(states)])
        if not truncated.any():
            assert not {"final_obs", "_final_obs", "final_info", "_final_info"} & set(infos)
            continue
        final = infos["final_info"]
        for mask in (infos["_final_obs"], infos["_final_info"], final["_growth"], final["_timestamp"]):
            np.testing.assert_array_equal(mask, truncated)
        assert all((infos["final_obs"][row] is None) != truncated[row] for row in range(n))
        for row in np.flatnonzero(truncated):
            endings += 1
            np.testing.assert_array_equal(infos["final_obs"][row], step.final_states[row])
            assert final["growth"][row] == step.growth[row]
            assert final["timestamp"][row] == BARS.timestamp[bar_of(step.final_states[[row]])[0]]
    assert endings == ((220 + ages) // 50).sum() == 30


def test_a_vector_of_one_is_gymnasiums_own_vector_of_one() -> None:
    ours = TradingVectorEnv(1, **ONE)
    theirs = SyncVectorEnv([lambda: TradingEnv(**ONE)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata == theirs.metadata
    results = [env.reset(seed=1) for env in (ours, theirs)]
    rng = np.random.default_rng(1)
    for t in range(120):
        for one, other in zip(results[0][:-1], results[1][:-1], strict=True):
            assert_alike(one, other)
        infos, expected = results[0][-1], results[1][-1]
        if t in (50, 100):
            # Of a window that begins again theirs tells nothing but the beginning: the growth is in final_info only.
            infos = {name: column for name, column in infos.items() if name not in {"growth", "_growth"}}
        assert_alike(infos, expected)
        actions = rng.uniform(-1.0, 1.0, (1, 1)).astype(np.float32)
        results = [env.step(actions) for env in (ours, theirs)]


def assert_alike(one: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert set(one) == set(other)
        for name in other:
            assert_alike(one[name], other[name])
    elif other.dtype == object:
        assert one.dtype == object
        for kept, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(kept, expected)
    else:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_the_same_seed_gives_the_same_walk_and_no_seed_goes_on(many: bool) -> None:
    shape = (5, 1) if many else (1,)

    def episode(env: Any, seed: int | None) -> list[Any]:
        rng, seen = np.random.default_rng(1), [env.reset(seed=seed)[0].tolist()]
        for _ in range(50):
            observation, reward, *_ = env.step(rng.uniform(-1.0, 1.0, shape).astype(np.float32))
            seen += [observation.tolist(), np.asarray(reward).tolist()]
        return seen

    one, other = (TradingVectorEnv(5, **EVERYTHING) if many else TradingEnv(**EVERYTHING) for _ in range(2))
    first = episode(one, 1)
    assert first == episode(other, 1)
    second = episode(one, None)
    assert second == episode(other, None)
    assert first != second
    assert first == episode(one, 1)
    assert first != episode(one, 2)


def ruinous() -> dict[str, Any]:
    """Short a half when the price rises tenfold, at decision 8 of the only episode that there is."""
    prices = np.where(np.arange(22) < 10, 100.0, 1_000.0)
    bars = trend(prices, direction=np.full(22, -1, dtype=np.int8), base_fraction=np.full(22, 0.5))
    free = Costs(commission=0.0, slippage=0.0)
    return {"bars": bars, "windows": [range(22)], "config": EnvironmentConfig(episode_steps=20, costs=free)}


def test_ruin_terminates_and_the_time_limit_truncates() -> None:
    env = TradingEnv(**ruinous())
    for action, ends in ((0.0, (9, True, False)), (-1.0, (20, False, True))):
        env.reset()
        terminated = truncated = False
        t = 0
        while not (terminated or truncated):
            observation, reward, terminated, truncated, _ = env.step(floats(action))
            assert np.isfinite(reward)
            assert observation in env.observation_space
            t += 1
        assert (t, terminated, truncated) == ends
        with pytest.raises(ConfigurationError, match=r"no episode under way: call reset\(\)"):
            env.step(floats(action))


def test_a_ruined_row_begins_again_within_the_step() -> None:
    env = TradingVectorEnv(2, **ruinous())
    first, _ = env.reset()
    for t in range(20):
        states, _, terminated, truncated, infos = env.step(np.array([[0.0], [-1.0]], dtype=np.float32))
        # Begun again at the same bar, it is ruined again nine steps later.
        assert terminated.tolist() == [t in (8, 17), False]
        # The second row's first episode is shorter by half; the first keeps its time limit in spite of its ruin.
        assert truncated.tolist() == [t == 19, t == 9]
        if t == 8:
            np.testing.assert_array_equal(states[0], first[0])
            assert bar_of(infos["final_obs"][0][None]).tolist() == [9]
            assert infos["_final_obs"].tolist() == [True, False]
            assert infos["final_info"]["growth"].tolist() == [infos["growth"][0], 0.0]


def test_what_was_returned_is_nobodys_to_change() -> None:
    env = TradingVectorEnv(3, **EVERYTHING)
    returned = [env.reset(seed=1)[0]]
    for _ in range(60):
        states, reward, *_ = env.step(np.zeros((3, 1), dtype=np.float32))
        returned += [states, reward]
    kept = [array.copy() for array in returned]
    for array in returned[:-20]:
        array[:] = np.nan
    for _ in range(5):
        assert np.isfinite(env.step(np.zeros((3, 1), dtype=np.float32))[1]).all()
    for array, copy in zip(returned[-20:], kept[-20:], strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("action", [np.nan, np.inf, -np.inf, 1.7, -1.1, 2.0])
def test_an_action_out_of_bounds_is_refused(many: bool, action: float) -> None:
    env = TradingVectorEnv(1, **EVERYTHING) if many else TradingEnv(**EVERYTHING)
    env.reset()
    message = rf"action {action:.3}.* of window 0 is not in \[-1, 1\], where multiplier = 1 \+ action: clip or rescale"
    with pytest.raises(ConfigurationError, match=message):
        env.step(np.full(env.action_space.shape, action, dtype=np.float32))


@pytest.mark.parametrize("shape", [(), (2,), (1, 1, 1), (0,)])
def test_an_action_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for env in (TradingEnv(**EVERYTHING), TradingVectorEnv(3, **EVERYTHING)):
        env.reset()
        message = f"actions of shape {shape}, expected {env.action_space.shape}: one number in [-1, 1] per window"
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            env.step(np.zeros(shape, dtype=np.float32))


def test_the_window_of_a_bad_action_is_named() -> None:
    env = TradingVectorEnv(4, **EVERYTHING)
    env.reset()
    with pytest.raises(ConfigurationError, match="action nan of window 2 "):
        env.step(np.array([[0.0], [1.0], [np.nan], [3.0]], dtype=np.float32))


def test_a_rounding_beyond_the_bounds_is_the_bound() -> None:
    rewards = []
    for action in (1.0, np.nextafter(np.float32(1.0), np.float32(2.0))):
        env = TradingEnv(**ONE)
        env.reset()
        rewards.append([env.step(floats(action))[1] for _ in range(20)])
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"windows": []}, ConfigurationError, "no windows given"),
        ({"windows": [range(0, 301)]}, ConfigurationError, r"range\(0, 301\) does not lie within the 300 bars"),
        ({"windows": [range(10, 150), range(-9, 60)]}, ConfigurationError, r"range\(-9, 60\) does not lie within"),
        ({"windows": [range(0, 200, 2)]}, ConfigurationError, r"range\(0, 200, 2\) does not lie within"),
        ({"windows": [range(200, 240)]}, TrainingError, "40 bars cannot hold an episode of 50 decisions"),
    ],
)
def test_windows_that_hold_no_episode_are_refused(changes: Any, error: type[Exception], message: str) -> None:
    for make in (TradingEnv, lambda **arguments: TradingVectorEnv(3, **arguments)):
        with pytest.raises(error, match=message):
            make(**(EVERYTHING | changes))


def test_what_the_environment_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_envs is 0, expected at least 1"):
        TradingVectorEnv(0, **EVERYTHING)
    for env in (TradingEnv(**EVERYTHING), TradingVectorEnv(2, **EVERYTHING)):
        with pytest.raises(ConfigurationError, match=r"no episode under way: call reset\(\) before step\(\)"):
            env.step(env.action_space.sample())
        with pytest.raises(ConfigurationError, match=r"reset\(\) knows no options, got start"):
            env.reset(options={"start": 7})


def test_gymnasiums_vector_wrappers_go_around_it() -> None:
    recorded = RecordEpisodeStatistics(gymnasium.make_vec(spec(), num_envs=4))
    env = DictInfoToList(recorded)
    _, infos = env.reset(seed=1)
    assert [set(info) for info in infos] == [{"timestamp"}] * 4
    total, episodes = np.zeros(4), []
    for _ in range(120):
        _, reward, _, truncated, infos = env.step(env.action_space.sample())
        total += reward
        for row, info in enumerate(infos):
            assert ("final_obs" in info) == ("episode" in info) == truncated[row]
            if truncated[row]:
                assert info["final_obs"] in env.single_observation_space
                assert info["episode"]["r"] == pytest.approx(total[row])
                episodes.append((row, int(info["episode"]["l"])))
                total[row] = 0.0
    # The first one of each row is shorter, so that they do not all end at once.
    assert {row: [length for which, length in episodes if which == row] for row in range(4)} == {
        0: [50, 50],
        1: [38, 50],
        2: [25, 50],
        3: [13, 50, 50],
    }


def test_stable_baselines3_trains_on_it() -> None:
    def trained() -> PPO:
        env = DummyVecEnv([lambda: TradingEnv(**EVERYTHING)] * 2)
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=1, device="cpu")
        return model.learn(384)

    model = trained()
    assert model.num_timesteps == 384
    env = TradingEnv(**EVERYTHING)
    observation, _ = env.reset(seed=1)
    actions = []
    for _ in range(50):
        action, _ = model.predict(observation, deterministic=True)
        observation, _, _, truncated, _ = env.step(action)
        actions.append(float(action[0]))
    assert truncated
    assert np.std(actions) > 0.0
    other = [parameter.detach().numpy() for parameter in trained().policy.parameters()]
    for parameter, again in zip(model.policy.parameters(), other, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), again)
