"""Unhealthy training is told in words, with the number and the remedy; a healthy one is told nothing."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.agent import health
from layer3.agent.bars import prepare
from layer3.agent.health import summary, warnings_of
from layer3.agent.population import Settings, Trained, train
from layer3.agent.ppo import PPOConfig
from layer3.market.candles import check
from layer3.market.simulator import MarketSpec, simulate
from tests.agent.curves import make_curve


@cache
def trained(learning_rate: float) -> Trained:
    frame, report = check(simulate(MarketSpec(bars=8_000)), "synthetic:bars=8000")
    bars, _ = prepare(frame, "SYNTH-USD", report.interval_seconds)
    settings = Settings(ppo=PPOConfig(steps=61_440, learning_rate=learning_rate))
    return train(bars, seeds=[1], folds=[range(1_000, 8_000)], settings=[settings], workers=1)[0]


def test_our_own_training_is_healthy():
    assert warnings_of(trained(2e-3).curves) == {}


def test_training_at_a_hopeless_learning_rate_is_not():
    found = warnings_of(trained(0.2).curves)
    assert "KL divergence explodes" in found["kl"]
    assert "lower the learning rate of 2.0e-01" in found["kl"]


@given(seed=st.integers(0, 2**32 - 1), updates=st.integers(1, 400))
def test_a_healthy_curve_gets_no_warning_however_long(seed, updates):
    assert warnings_of(make_curve(updates, seed)) == {}


BENT = [
    ("collapsed", {"multiplier_sd": 0.004}, ["0.004", "limit 0.05", "around 1.0", "entropy weight"]),
    ("bound", {"multiplier_mean": 0.02, "multiplier_sd": 0.03}, ["bound 0", "0.020", "not to trade", "costs"]),
    ("bound", {"multiplier_mean": 1.97}, ["bound 2", "1.970", "risk aversion"]),
    ("entropy", {"entropy": -6.5}, ["-6.50 nats", "limit -5", "entropy weight"]),
    ("kl", {"kl": 0.2}, ["0.200 per update", "limit 0.05", "6.0e-04", "epochs"]),
    ("clipped", {"clip_fraction": 0.55}, ["55%", "limit 40%", "learning rate"]),
    ("critic", {"explained_variance": -0.3}, ["-0.30", "second half", "critic"]),
    ("reward", {"reward": np.linspace(-0.01, -0.02, 120)}, ["-0.0195", "-0.0105", "more steps"]),
]


@pytest.mark.parametrize(("kind", "bent", "words"), BENT)
def test_every_illness_is_named_with_its_number_and_a_remedy(kind, bent, words):
    found = warnings_of(make_curve(**bent))
    assert list(found) == [kind]
    for word in words:
        assert word in found[kind]


@given(at=st.integers(0, 119), height=st.floats(1.0, 1e6))
def test_one_burst_of_kl_is_found_wherever_it_is_and_its_place_is_told(at, height):
    kl = np.full(120, 0.005)
    kl[at] = height
    tenth = at // 12
    place = f"steps {tenth * 12 * 2_048:,} to {(tenth + 1) * 12 * 2_048:,} "
    assert place in warnings_of(make_curve(kl=kl))["kl"]


def test_after_a_checkpoint_the_place_is_told_from_where_training_went_on():
    kl = np.full(120, 0.005)
    kl[40:48] = 4.0
    assert f"steps {40 * 2_048:,} to {48 * 2_048:,} " in warnings_of(make_curve(kl=kl)[40:])["kl"]


@pytest.mark.parametrize(
    ("name", "limit", "kind"),
    [("multiplier_sd", health.SPREAD_LOW, "collapsed"), ("entropy", health.ENTROPY_LOW, "entropy")],
)
def test_a_dip_that_training_recovered_from_is_no_illness(name, limit, kind):
    values = np.full(120, 0.5)
    values[40:60] = limit - 1.0
    assert kind not in warnings_of(make_curve(**{name: values}))
    values[108:] = limit - 1e-6
    assert kind in warnings_of(make_curve(**{name: values}))


def test_a_critic_that_starts_badly_or_wavers_around_nothing_is_no_illness():
    late = np.r_[np.full(70, -2.0), np.full(50, 0.3)]
    assert "critic" not in warnings_of(make_curve(explained_variance=late))
    wavering = np.random.default_rng(0).normal(0.0, 0.1, 120)
    assert "critic" not in warnings_of(make_curve(explained_variance=wavering))


@pytest.mark.parametrize("part", ["still going on", "taken up from a checkpoint", "too short to tell a trend"])
def test_trends_are_judged_on_a_whole_training_only(part):
    sick = {"reward": np.linspace(0.0, -1.0, 120), "explained_variance": -1.0}
    whole = make_curve(**sick)
    assert set(warnings_of(whole)) == {"critic", "reward"}
    parts = {
        "still going on": whole[:100],
        "taken up from a checkpoint": whole[40:],
        "too short to tell a trend": make_curve(19, reward=np.linspace(0.0, -1.0, 19), explained_variance=-1.0),
    }
    assert warnings_of(parts[part]) == {}


def test_what_is_sick_already_is_told_while_training_goes_on():
    assert set(warnings_of(make_curve(3, total=500, kl=4.0, multiplier_sd=0.0))) == {"kl", "collapsed"}


def test_nothing_is_said_of_nothing():
    assert warnings_of([]) == {}


def test_a_summary_says_each_kind_once_and_names_who_has_it():
    found = {"seed-1": {}, "seed-2": {"kl": "K two", "reward": "R two"}, "seed-3": {"kl": "K three"}}
    assert summary(found) == ["seed-2: K two (the same holds for seed-3)", "seed-2: R two"]
    assert summary({"seed-2": found["seed-2"]}) == ["K two", "R two"]
    assert summary({"seed-1": {}}) == []


def test_health_needs_no_torch():
    code = "import sys, layer3.agent.health, layer3.agent.log, layer3.agent.events; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
