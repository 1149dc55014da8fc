"""Ten thousand decisions while the served policy misbehaves in every way there is: each in time, as what it is."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3.agent.policy import Policy
from layer3.breaker import BreakerConfig
from layer3.engine import Layer3Phase1
from layer3.live.configuration import load_config
from layer3.types import FALLBACK_KELLY, GCP_API, LOCAL_MODEL, PositionSizingDecision
from tests.fakes.breaker_model import BreakerModel
from tests.fakes.policies import small_policy
from tests.fakes.policy_server import ANSWER, BEHAVIOURS, GONE, PolicyServer
from tests.fakes.threads import at_once
from tests.fakes.timing import noise
from tests.layer3.test_remote_faults import ANSWERED, HANGING, REFUSED
from tests.live.desk import CALM, signal_of

BUDGET_MS, SLACK_MS = 150.0, 10.0
THREADS = 32
#: Opens never: the way of each behaviour is to be seen, not the breaker's.
ALWAYS_ASK = {"failures": 10**9, "minimum_calls": 10**9, "window_calls": 10**9}


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    saved: Policy = small_policy(folder)
    assert saved.model_id
    return folder


def engine_of(server: PolicyServer, timeout_ms: float, breaker: dict[str, Any], **more: Any) -> Layer3Phase1:
    policy = {"endpoint": server.url, "timeout_ms": timeout_ms, "model_path": more.pop("model_path", None)}
    # The machine that runs the tests may stand still: no signal is to be stale for that.
    risk = {"stale_signal_s": 3_600, "stale_price_s": 3_600}
    config = {"deployment_mode": "cloud", "policy": policy, "breaker": breaker, "risk": risk}
    return Layer3Phase1(load_config(None, config), **more)


def decide_from_threads(engine: Layer3Phase1, calls: int) -> tuple[list[PositionSizingDecision], list[float]]:
    """The decisions of :data:`THREADS` threads at once, and how many milliseconds each took its caller."""
    decisions: list[PositionSizingDecision] = []
    milliseconds: list[float] = []

    def work(_: int) -> None:
        for _ in range(calls):
            start = time.monotonic()
            decision = engine.calculate_position(signal_of(timestamp_ns=time.time_ns()), CALM, 100.0)
            milliseconds.append((time.monotonic() - start) * 1e3)
            decisions.append(decision)

    at_once(work, range(THREADS))
    return decisions, milliseconds


def test_10000_decisions_each_in_time_and_of_the_right_source(policy_folder: Path) -> None:
    total = 0
    took: dict[str, list[float]] = defaultdict(list)
    with (
        PolicyServer() as server,
        # In time for what hangs is its budget. Whatever answers gets more, so that a busy machine turns none into
        # a timeout.
        engine_of(server, BUDGET_MS, ALWAYS_ASK, model_path=str(policy_folder)) as hasty,
        engine_of(server, 60_000.0, ALWAYS_ASK) as patient,
        noise(BUDGET_MS / 1e3, THREADS) as late,
    ):
        for how in [*BEHAVIOURS, GONE, "healthy"]:
            server.behave(how)
            stuck = how in HANGING
            decisions, milliseconds = decide_from_threads(hasty if stuck else patient, 8 if stuck else 9)
            total += len(decisions)
            took[how] += milliseconds
            source = GCP_API if how in ANSWERED else LOCAL_MODEL if stuck else FALLBACK_KELLY
            assert {decision.multiplier_source for decision in decisions} == {source}, how
            for decision in decisions:
                assert decision.refusal is None
                assert decision.position_size_usd > 0.0
                if source == GCP_API:
                    assert decision.multiplier == ANSWER["position_multiplier"]
                    assert decision.passed_over == ()
                else:
                    assert decision.passed_over[0].startswith("gcp_api: http://127.0.0.1:")
                if source == FALLBACK_KELLY:
                    assert decision.multiplier == 1.0
    assert total >= 10_000
    # What most decisions took, and no tail: a machine that stands still for a moment makes every decision of that
    # moment late, an eighth of a behaviour's. `python -m bench.engine` prints the tail. What answers has no deadline.
    slack = SLACK_MS + 1e3 * float(np.quantile(late, 0.9))
    for how in HANGING:
        assert min(took[how]) >= BUDGET_MS, how
        assert np.median(took[how]) <= BUDGET_MS + slack, how
        assert np.quantile(took[how], 0.9) <= BUDGET_MS + SLACK_MS + 1e3 * max(late), how


class Seconds:
    """A timer to turn: the breaker's and the latency's."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", [1, 2])
def test_1000_decisions_under_a_breaker_go_the_way_of_its_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    timer, config = Seconds(), BreakerConfig(jitter=0.0)
    model = BreakerModel(config)
    heard: list[tuple[str, str]] = []
    ways = [how for how in (*BEHAVIOURS, GONE) if how not in HANGING]
    with PolicyServer() as server, engine_of(server, 60_000.0, {"jitter": 0.0}, timer=timer) as engine:
        breaker = engine.breaker
        assert breaker is not None
        breaker.listeners.append(lambda old, new, _: heard.append((old, new)))
        decided = 0
        while decided < 1_000:
            how = "healthy" if rng.random() < 0.5 else ways[rng.integers(len(ways))]
            server.behave(how)
            for _ in range(rng.integers(1, 25)):
                timer.now += float(rng.choice([0.0, 1.0, 40.0], p=[0.7, 0.28, 0.02]))
                era = model.ask(timer.now)
                decision = engine.calculate_position(signal_of(timestamp_ns=time.time_ns()), CALM, 100.0)
                decided += 1
                if era is None:
                    assert decision.multiplier_source == FALLBACK_KELLY
                    assert "the breaker is" in decision.passed_over[0]
                    continue
                answered = how in ANSWERED
                assert decision.multiplier_source == (GCP_API if answered else FALLBACK_KELLY), how
                model.answer(timer.now, era, None if how in REFUSED else not answered)
                assert breaker.state == model.state
    assert heard == model.transitions
    assert {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")} <= set(heard)
