"""Settings of one shape train in the same products, and each policy is the one that is trained alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import Network
from layer3.agent.population import Report, Settings, Trained, train
from layer3.agent.share import chunks_of, pieces_of, teams_of
from layer3.agent.team import Member
from layer3.errors import TrainingError
from tests.agent.populations import SHORT, TINY, WINDOW, differences, same
from tests.agent.worlds import make_bars

SEEDS = (1, 2)
#: What may differ between policies that share their products; none is what :class:`PPOConfig` has.
OTHERWISE: dict[str, Any] = {
    "learning_rate": 7e-3,
    "final_rate": 0.9,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "clip": 0.05,
    "entropy": 0.05,
    "value": 0.01,
    "max_gradient": 0.05,
    "log_sd_start": 0.3,
}
SMALL_STEPS = EnvironmentConfig(risk_aversion=2.0, reward_window=7, capital=5_000.0, episode_steps=40)


@pytest.fixture(scope="module")
def bars() -> Bars:
    return make_bars(2_000)


def changed(base: Settings, **changes: Any) -> Settings:
    """``base`` with another ``environment`` or other hyperparameters."""
    environment = changes.pop("environment", base.environment)
    return Settings(replace(base.ppo, **changes), environment)


def check_alone(bars: Bars, together: Sequence[Trained], settings: Sequence[Settings]) -> None:
    """Every policy of a (setting, seed) is the one of its own training, and so is what was told of it."""
    assert [(own.settings, own.seed) for own in together] == list(product(settings, SEEDS))
    for own in together:
        (alone,) = train(bars, seeds=[own.seed], folds=[WINDOW], settings=[own.settings], workers=1)
        assert differences(own, alone) <= 1e-5
        np.testing.assert_array_equal(own.states, alone.states)
        for here, there in zip(own.curves, alone.curves, strict=True):
            assert (here.steps, here.total_steps, here.learning_rate) == (
                there.steps,
                there.total_steps,
                there.learning_rate,
            )
            np.testing.assert_allclose(
                astuple(replace(here, seconds=0.0)), astuple(replace(there, seconds=0.0)), rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("base", [TINY, SHORT], ids=["tiny", "default size"])
def test_every_policy_of_settings_of_one_shape_is_the_one_trained_alone(bars: Bars, base: Settings) -> None:
    early = changed(base, target_kl=1e-9)
    settings = [base, changed(base, **OTHERWISE), early]
    reports: list[Report] = []
    together = train(bars, seeds=SEEDS, folds=[WINDOW], settings=settings, workers=2, on_progress=reports.append)
    assert [report.policies for report in reports] == [tuple(range(6))] * base.ppo.updates
    check_alone(bars, together, settings)
    # The last setting's actors stop after their first epoch, the first one's, the same but for that, do not.
    for free, held in zip(together[:2], together[4:], strict=True):
        assert held.curves[-1].kl < free.curves[-1].kl


@pytest.fixture(scope="module")
def twice(bars: Bars) -> tuple[Trained, ...]:
    """One policy, trained beside itself."""
    return train(bars, seeds=[1], folds=[WINDOW], settings=[TINY, TINY], workers=1)


@pytest.mark.parametrize("name", [*OTHERWISE, "target_kl"])
def test_each_hyperparameter_reaches_its_own_policy_and_no_other(
    bars: Bars, twice: tuple[Trained, ...], name: str
) -> None:
    settings = [TINY, changed(TINY, **{name: OTHERWISE.get(name, 1e-9)})]
    trained = train(bars, seeds=[1], folds=[WINDOW], settings=settings, workers=1)
    assert same(trained[0], twice[0])
    assert differences(trained[1], twice[1]) > 1e-5


def test_environments_that_differ_are_walked_apart_and_improved_together(bars: Bars) -> None:
    settings = [TINY, changed(TINY, environment=SMALL_STEPS), changed(TINY, clip=0.1)]
    reports: list[Report] = []
    together = train(bars, seeds=SEEDS, folds=[WINDOW], settings=settings, workers=2, on_progress=reports.append)
    # The policies of one environment are neighbours while they are trained.
    assert [report.policies for report in reports] == [(0, 1, 4, 5, 2, 3)] * TINY.ppo.updates
    check_alone(bars, together, settings)
    for place, figures in zip(reports[-1].policies, reports[-1].figures, strict=True):
        assert figures == together[place].curves[-1]


def test_teams_are_the_neighbours_of_one_environment() -> None:
    environments = [TINY.environment, TINY.environment, SMALL_STEPS, TINY.environment]
    members = [Member(1, (WINDOW,), Settings(TINY.ppo, environment), "") for environment in environments]
    assert list(teams_of(slice(0, 4), members)) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert list(teams_of(slice(1, 3), members)) == [slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (2, [1, 1]), (4, [2, 2]), (5, [2, 3]), (8, [4, 4]), (9, [3, 3, 3]), (16, [4] * 4)],
)
def test_chunks_are_even(count: int, sizes: list[int]) -> None:
    chunks = chunks_of(count)
    assert [chunk.stop - chunk.start for chunk in chunks] == sizes
    assert [place for chunk in chunks for place in range(count)[chunk]] == list(range(count))


def test_a_team_is_cut_where_the_population_is() -> None:
    chunks = [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert pieces_of(slice(0, 9), chunks) == chunks
    assert pieces_of(slice(3, 6), chunks) == [slice(3, 4), slice(4, 6)]
    assert pieces_of(slice(8, 9), chunks) == [slice(8, 9)]


def test_shapes_train_one_after_another_and_results_keep_the_settings_order(bars: Bars) -> None:
    settings = [TINY, changed(TINY, hidden=12), changed(TINY, clip=0.1), changed(TINY, steps=512)]
    reports: list[Report] = []
    trained = train(bars, seeds=SEEDS, folds=[WINDOW], settings=settings, on_progress=reports.append)
    check_alone(bars, trained, settings)
    assert [report.policies for report in reports] == [(0, 1, 4, 5)] * 8 + [(2, 3)] * 8 + [(6, 7)] * 4
    done = [512 * k for k in range(1, 9)] + [4_096 + 256 * k for k in range(1, 13)]
    assert [report.steps for report in reports] == done
    assert {report.total_steps for report in reports} == {7_168}


def test_steps_that_make_no_further_update_are_no_other_shape() -> None:
    config = TINY.ppo
    assert replace(config, steps=config.steps + 1).shape == config.shape
    for name in ("hidden", "environments", "rollout", "batch", "epochs"):
        assert replace(config, **{name: getattr(config, name) + 1}).shape != config.shape  # type: ignore[arg-type]
    assert replace(config, steps=2 * config.steps).shape != config.shape
    assert replace(config, target_kl=1.0, **OTHERWISE).shape == config.shape


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(bars: Bars, workers: int) -> None:
    settings = [SHORT, changed(SHORT, **OTHERWISE), changed(SHORT, environment=SMALL_STEPS)]
    one, other = (train(bars, seeds=SEEDS, folds=[WINDOW], settings=settings, workers=k) for k in (2, workers))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("environments", "seeds"), [(16, range(3)), (16, range(5)), (5, range(7))])
def test_nor_where_calls_are_so_small_that_their_last_digit_depends_on_who_shares_them(
    bars: Bars, environments: int, seeds: range
) -> None:
    base = changed(TINY, environments=environments, steps=8 * 8 * environments)
    # The environments change in the middle of a piece of four policies.
    settings = [base, changed(base, environment=SMALL_STEPS)]
    one, *others = (train(bars, seeds=seeds, folds=[WINDOW], settings=settings, workers=k) for k in range(1, 5))
    for other in others:
        assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_numbers_that_are_not_finite_name_the_setting(bars: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    backward, calls = Network.backward, []

    def poison(self: Network, layers: Any, x: Any, slope: Any, slopes: Any) -> None:
        backward(self, layers, x, slope, slopes)
        calls.append(1)
        # One setting after the other, actor and critic: a gradient for each of 2 batches, 2 epochs.
        if len(calls) > 8:
            slopes.w1[-1] = torch.nan

    monkeypatch.setattr(Network, "backward", poison)
    settings = [TINY, changed(TINY, learning_rate=3e-3)]
    said = r"settings\[1\], seed 2 diverged after 128 steps .*1 of 4 policies.*lower the learning rate of 0\.003"
    with pytest.raises(TrainingError, match=said):
        train(bars, seeds=SEEDS, folds=[WINDOW], settings=settings, workers=1)


def test_memory_is_asked_for_the_policies_of_all_settings_at_once(bars: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4_096 if name == "SC_PAGE_SIZE" else 1_000)
    with pytest.raises(TrainingError, match=r"6 policies at once need about 0\.\d GiB"):
        train(bars, seeds=range(3), folds=[WINDOW], settings=[SHORT, changed(SHORT, clip=0.1)])
