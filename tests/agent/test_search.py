"""The space of hyperparameters: every way of searching it gives settings that can be trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.agent.population import Settings
from layer3.agent.search import SPACE, Choice, Number, default_values, sample, to_optuna, to_settings
from layer3.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def inside(values: dict[str, float]) -> bool:
    return [entry.name for entry in SPACE] == list(values) and all(
        values[entry.name] in entry.options
        if isinstance(entry, Choice)
        else entry.low <= values[entry.name] <= entry.high
        for entry in SPACE
    )


def test_the_defaults_are_in_the_space_and_are_the_defaults() -> None:
    values = default_values()
    assert inside(values)
    assert to_settings(values, Settings().ppo.steps) == to_settings({}, Settings().ppo.steps) == Settings()


@given(st.integers(0, 2**32 - 1))
def test_whatever_is_drawn_can_be_trained(seed: int) -> None:
    first, *others = sample(4, seed)
    assert first == default_values()
    assert all(inside(values) for values in others)
    for values in others:
        settings = to_settings(values, 100_000)
        assert settings.ppo.steps == 100_000
        for name, value in values.items():
            part, field = name.split(".")
            assert getattr(getattr(settings, part), field) == value


def test_the_same_seed_draws_the_same_and_another_another() -> None:
    assert sample(5, 1) == sample(5, 1)
    assert sample(3, 1) == sample(5, 1)[:3]
    assert sample(2, 1)[1] != sample(2, 2)[1]


def test_draws_reach_both_ends_of_every_range() -> None:
    drawn = sample(400, 3)[1:]
    for entry in SPACE:
        values = [point[entry.name] for point in drawn]
        if isinstance(entry, Choice):
            assert set(values) == set(entry.options)
        elif entry.log:
            assert min(values) < entry.low * (entry.high / entry.low) ** 0.05
            assert max(values) > entry.low * (entry.high / entry.low) ** 0.95
        elif entry.whole:
            assert set(values) == set(range(int(entry.low), int(entry.high) + 1))
        else:
            assert min(values) < entry.low + 0.05 * (entry.high - entry.low)
            assert max(values) > entry.low + 0.95 * (entry.high - entry.low)


def test_a_pipeline_brings_whole_numbers_as_floats() -> None:
    for values in sample(20, 5):
        through = {name: float(value) for name, value in json.loads(json.dumps(values)).items()}
        settings = to_settings(through, 100_000)
        assert settings == to_settings(values, 100_000)
        assert isinstance(settings.ppo.batch, int)
        assert isinstance(settings.ppo.epochs, int)


def test_optuna_searches_the_same_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        values = to_optuna(trial)
        assert inside(values)
        assert trial.params == values
        to_settings(values, 100_000)
    assert set(trial.distributions) == {entry.name for entry in SPACE}
    for entry in SPACE:
        found: Any = trial.distributions[entry.name]
        if isinstance(entry, Choice):
            assert found.choices == entry.options
        else:
            assert (found.low, found.high, found.log) == (entry.low, entry.high, entry.log)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ppo.learning_rate": 1.0}, r"ppo.learning_rate is 1.0, expected a number in \[0.0001, 0.01\]"),
        ({"ppo.learning_rate": float("nan")}, "expected a number in"),
        ({"ppo.learning_rate": "fast"}, "expected a number in"),
        ({"ppo.epochs": 4.5}, "ppo.epochs is 4.5, expected a whole number"),
        ({"ppo.epochs": True}, "expected a number in"),
        ({"ppo.batch": 1_000}, "ppo.batch is 1000, expected one of 256, 512, 1024, 2048"),
        ({"ppo.momentum": 0.9}, "ppo.momentum is not searched: there are ppo.learning_rate, "),
    ],
)
def test_what_is_outside_the_space_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        to_settings(values, 100_000)


def test_too_few_steps_are_refused_where_the_settings_are_made() -> None:
    with pytest.raises(ConfigurationError, match="less than one rollout"):
        to_settings({}, 100)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="trials is 0"):
        sample(0, 1)


def test_a_number_over_a_logarithm_stays_in_its_range() -> None:
    rng = np.random.default_rng(1)
    narrow = Number("x", 0.1, 0.1 + 1e-16, log=True)
    assert all(narrow.low <= narrow.draw(rng) <= narrow.high for _ in range(100))


def test_asking_what_is_searched_waits_for_neither_torch_nor_optuna() -> None:
    code = "import sys, layer3.agent.search; print([m for m in ('torch', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
