"""What a training is refused for, and the memory that it asks for in advance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layer3.agent.bars import Bars
from layer3.agent.checks import memory_needed
from layer3.agent.population import train
from layer3.agent.ppo import PPOConfig
from layer3.errors import ConfigurationError, TrainingError
from tests.agent.populations import SHORT, TINY, WINDOW
from tests.agent.worlds import make_bars, trend

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bars() -> Bars:
    return make_bars(2_000)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (trend(np.full(600, 123.0)), "the price is 123.0 on all 600 bars .* constant price"),
        (trend(np.linspace(100, 200, 600), direction=np.zeros(600, dtype=np.int8)), "holds nothing on all 600 bars"),
        (trend(np.linspace(100, 200, 600), base_fraction=np.zeros(600)), "holds nothing on all 600 bars"),
        (trend(np.where(np.arange(600) == 40, 0.0, 100.0)), "open at bar 40 is 0.0, which is no price"),
        (trend(np.linspace(100, 200, 300)), "300 bars cannot hold an episode of 500"),
        (
            trend(np.linspace(100, 200, 600), return_1h=np.where(np.arange(600) == 500, np.nan, 0.0)),
            "return_1h at bar 500 is nan",
        ),
    ],
    ids=["constant price", "all HOLD", "zero base", "zero price", "too short", "NaN"],
)
def test_what_cannot_be_learnt_from_is_refused(world: Bars, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(world, seeds=[1], folds=[range(len(world))], settings=[SHORT])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seeds": []}, ConfigurationError, "no seeds given"),
        ({"folds": []}, ConfigurationError, "no folds given"),
        ({"folds": [[]]}, ConfigurationError, "a fold of no windows"),
        ({"settings": []}, ConfigurationError, "no settings given"),
        ({"seeds": [-1]}, ConfigurationError, "seed is -1"),
        ({"seeds": [1.5]}, ConfigurationError, "seed is 1.5, expected an int"),
        ({"seeds": np.arange(2)}, ConfigurationError, r"seed is \S*0\)?, expected an int"),
        ({"seeds": [True]}, ConfigurationError, "seed is True"),
        ({"device": "tpu"}, ConfigurationError, "device is 'tpu', expected cpu or cuda"),
        ({"device": "cuda"}, ConfigurationError, "torch finds no GPU"),
        ({"workers": 0}, ConfigurationError, "workers is 0"),
        ({"workers": 1.5}, ConfigurationError, "workers is 1.5, expected a whole number"),
        ({"checkpoint_every": 0}, ConfigurationError, "checkpoint_every is 0"),
        ({"checkpoint": "ftp://x/y"}, ConfigurationError, "only local paths and gs://"),
        ({"settings": [TINY, SHORT], "checkpoint": "x"}, ConfigurationError, "2 settings share no checkpoint"),
        ({"folds": [range(1_500, 2_500)]}, TrainingError, "does not lie within the 2,000 bars"),
        ({"folds": [range(0, 1_500, 2)]}, TrainingError, "does not lie within"),
        ({"folds": [range(7, 7)]}, TrainingError, r"a fold of range\(7, 7\) holds no bars"),
    ],
)
def test_a_bad_argument_is_refused_in_a_sentence(
    bars: Bars, change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        train(bars, **({"seeds": [1], "folds": [WINDOW], "settings": [TINY]} | change))


def test_more_policies_than_memory_holds_are_refused_before_they_are_made(
    bars: Bars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4_096 if name == "SC_PAGE_SIZE" else 1_000)
    with pytest.raises(TrainingError, match=r"3 policies at once need about 0\.\d GiB, cpu has 0\.0: train fewer"):
        train(bars, seeds=range(3), folds=[WINDOW], settings=[SHORT])


MEMORY = """
import re, torch
from pathlib import Path
from layer3.agent.checks import memory_needed
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig
from tests.agent.worlds import make_bars

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

bars, config = make_bars(20_000), PPOConfig(steps=4_096)
def run(policies):
    train(bars, seeds=range(policies), folds=[range(1_500)], settings=[Settings(config)], workers=2)
run(1)
before = peak()
run(80)
print(peak() - before, memory_needed(80, config, len(bars), workers=2))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_the_memory_that_is_told_in_advance_is_enough_and_not_far_from_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    grown, told = map(int, said.stdout.split())
    assert 0.3 * told < grown < told


def test_a_gpu_is_asked_for_all_policies_at_once() -> None:
    config = PPOConfig()
    assert memory_needed(128, config, 20_000, "cuda") > memory_needed(128, config, 20_000, "cpu", 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_environment_asks_for_a_market_of_its_own(device: str) -> None:
    config = PPOConfig()
    one, three = (memory_needed(8, config, 20_000, device, markets=count) for count in (1, 3))
    # Each number of a bar's state takes four bytes.
    assert three - one > 2 * 20_000 * 16 * 4
