from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from layer3.ab.assignment import Arm, Design
from layer3.ab.live import LiveExperiment
from layer3.ab.store import Store
from layer3.errors import ConfigurationError, SourceError
from layer3.live.configuration import Layer3Config, load_config
from layer3.live.metrics import LATENCY_BUCKETS, OTHER, Metrics, MetricsServer
from layer3.live.phase1 import Layer3Phase1
from layer3.remote import RemoteAnswer
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal
from tests.fakes.clock import Clock
from tests.fakes.servers import binary, free_port, running, wait_for
from tests.fakes.threads import at_once, beside

NOW = 1_767_258_000_000_000_000
HOUR = 3_600_000_000_000
CALM = CascadeIndicators(funding_rate=0.0001)
NAMES = """
kelly_fraction kelly_position_size_usd conformal_scale_factor conformal_residuals conformal_samples
conformal_null_rejections_total conformal_nan_rejections_total bayesian_win_rate bayesian_edge bayesian_trades_total
current_regime regime_multiplier regime_transitions_total regime_false_flips_total regime_confirmation_progress
cascade_risk_score cascade_risk_components cascade_recommendations_total cascade_threshold_breaches_total
circuit_breaker_state circuit_breaker_failures_total circuit_breaker_fallbacks_total circuit_breaker_timeout_sec
circuit_breaker_success_rate config_reloads_total config_callbacks position_decisions_total final_position_size_usd
position_reductions_total decision_latency_seconds_bucket rl_multiplier
"""


class Server:
    """A served policy that answers what it is told to, or not at all."""

    def __init__(self, breaker: Any) -> None:
        self.breaker = breaker
        self.multiplier: float | None = 1.5

    def ask(self, state: np.ndarray, request_id: str | None = None) -> RemoteAnswer:
        permit = self.breaker.try_acquire()
        if permit is None:
            raise SourceError("the breaker is open")
        if self.multiplier is None:
            permit.failure()
            raise SourceError("gone")
        permit.success()
        return RemoteAnswer(self.multiplier, 0.7, "m1")

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


def make(clock: Clock, **config: Any) -> tuple[Layer3Phase1, CollectorRegistry, list[Server]]:
    servers: list[Server] = []

    def connect(_: Layer3Config, breaker: Any) -> Server:
        servers.append(Server(breaker))
        return servers[-1]

    engine = Layer3Phase1(load_config(None, config), clock=clock, connect=connect, seed=1)  # type: ignore[arg-type]
    registry = CollectorRegistry()
    engine.observers.append(Metrics(registry, engine).observe)
    return engine, registry, servers


def signal(clock: Clock, **changes: Any) -> TacticalSignal:
    plain = TacticalSignal("s", "BTC-USDT", Action.BUY, 0.8, 0.2, Regime.RANGING, clock.now, 0.06, 0.04)
    return dataclasses.replace(plain, **changes)


def values(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample by its name and labels, without the prefix."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[sample.name.removeprefix("himari_l3_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


CLOUD = {"deployment_mode": "cloud", "policy": {"endpoint": "http://127.0.0.1:1"}}


def test_every_name_of_the_list_is_there_after_a_decision(clock: Clock) -> None:
    engine, registry, _ = make(clock, **CLOUD)
    for _ in range(20):
        engine.calculate_position(signal(clock), CALM, 100.0)
        engine.record_residual("BTC-USDT", 0.0, 0.01)
    engine.calculate_position(signal(clock), CALM, 100.0)
    names = {name.partition("{")[0] for name in values(registry)}
    assert set(NAMES.split()) - names == set()


def test_the_gauges_are_those_of_the_decision(clock: Clock) -> None:
    engine, registry, _ = make(clock, **CLOUD)
    feeds = CascadeIndicators(funding_rate=0.003, oi_change_pct=-0.1, volume_ratio=1.0)
    decision = engine.calculate_position(signal(clock), feeds, 100.0)
    found = values(registry)
    assert found["kelly_fraction"] == decision.kelly_fraction > 0.0
    assert found["kelly_position_size_usd"] == decision.kelly_position_usd
    assert found["final_position_size_usd"] == decision.position_size_usd > 0.0
    assert found["cascade_risk_score"] == pytest.approx(decision.cascade_risk)
    parts = [value for name, value in found.items() if name.startswith("cascade_risk_components")]
    assert len(parts) == 3
    assert sum(parts) == pytest.approx(decision.cascade_risk)
    assert found["rl_multiplier"] == 1.5
    assert found["current_regime{regime=ranging}"] == 1.0
    assert found["current_regime{regime=crisis}"] == 0.0
    assert found["bayesian_win_rate"] == 0.5
    # The formula of the Kelly docstring: 0.7 x confidence x expected return + 0.3 x prior mean.
    assert found["bayesian_edge"] == pytest.approx(0.7 * 0.8 * 0.06 + 0.3 * 0.05)
    assert "conformal_residuals" not in found, "no residual is known"
    assert found["decision_latency_seconds_count"] == 1.0
    assert found["decision_latency_seconds_sum"] == pytest.approx(decision.latency_ms / 1e3)


def test_a_refusal_is_counted_and_leaves_the_gauges(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    engine.calculate_position(signal(clock), CALM, 100.0)
    before = values(registry)
    engine.calculate_position(signal(clock, confidence=float("nan")), CALM, 100.0)
    engine.calculate_position(signal(clock, timestamp_ns=NOW - 60 * 10**9), CALM, 100.0)
    engine.calculate_position(None, CALM, 100.0)  # type: ignore[arg-type]
    after = values(registry)
    assert after["refusals_total{reason=bad_input}"] == 2.0
    assert after["refusals_total{reason=stale_signal}"] == 1.0
    assert after["final_position_size_usd"] == 0.0
    for name in ("kelly_fraction", "cascade_risk_score", "cascade_recommendations_total{action=EXIT}"):
        assert after[name] == before[name]


def test_what_was_learnt_and_refused(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    trades = [0.01, -0.02, 0.03]
    engine.calculate_position(signal(clock), CALM, 100.0, recent_trades=trades)
    engine.calculate_position(signal(clock, symbol="ETH-USDT"), CALM, 100.0, recent_trades=[0.01])
    for i in range(30):
        engine.record_residual("BTC-USDT", 0.0, i / 1_000.0)
    engine.record_residual("BTC-USDT", None, 0.1)
    engine.record_residual("BTC-USDT", 0.1, float("nan"))
    engine.record_residual("BTC-USDT", float("inf"), 0.1)
    waiting = values(registry)  # no decision need follow
    assert (waiting["conformal_null_rejections_total"], waiting["conformal_nan_rejections_total"]) == (1.0, 2.0)
    engine.calculate_position(signal(clock), CALM, 100.0, recent_trades=trades)
    found = values(registry)
    assert found["bayesian_trades_total"] == 4.0
    assert found["bayesian_win_rate"] == pytest.approx(12.0 / 23.0)
    assert found["conformal_samples"] == 30.0
    assert found["conformal_residuals"] == pytest.approx(0.027)
    assert found["conformal_scale_factor"] == pytest.approx(1.0 / 1.027)


def test_the_regime_is_followed_per_symbol(clock: Clock) -> None:
    engine, registry, _ = make(clock)

    def bar(regime: Regime) -> dict[str, float]:
        clock.now += HOUR
        engine.calculate_position(signal(clock, symbol="ETH-USDT"), CALM, 100.0)
        engine.calculate_position(signal(clock, regime=regime), CALM, 100.0)
        return values(registry)

    assert bar(Regime.TRENDING_UP)["regime_transitions_total"] == 0.0
    assert bar(Regime.CRISIS)["regime_transitions_total"] == 1.0
    found = bar(Regime.RANGING)
    assert found["regime_confirmation_progress"] == pytest.approx(1 / 3)
    assert found["regime_multiplier"] == pytest.approx(0.2)
    found = bar(Regime.CRISIS)
    assert (found["regime_false_flips_total"], found["regime_confirmation_progress"]) == (1.0, 0.0)
    for _ in range(3):
        found = bar(Regime.RANGING)
    assert (found["regime_transitions_total"], found["regime_false_flips_total"]) == (2.0, 1.0)
    assert found["current_regime{regime=ranging}"] == 1.0


def test_cascade_thresholds_and_reductions(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    for funding in (0.0001, 0.0035, 0.006, 0.01, 0.02):
        engine.calculate_position(signal(clock), CascadeIndicators(funding_rate=funding), 100.0)
    found = values(registry)
    actions = {
        a: found[f"cascade_recommendations_total{{action={a}}}"] for a in ("NORMAL", "REDUCE_50", "REDUCE_75", "EXIT")
    }
    assert actions == {"NORMAL": 1.0, "REDUCE_50": 1.0, "REDUCE_75": 1.0, "EXIT": 2.0}
    assert found["cascade_threshold_breaches_total{threshold=reduce_50}"] == 4.0
    assert found["cascade_threshold_breaches_total{threshold=reduce_75}"] == 3.0
    assert found["cascade_threshold_breaches_total{threshold=exit}"] == 2.0
    assert found["position_reductions_total{by=cascade}"] == 4.0


def test_the_policy_and_the_limits_reduce(clock: Clock) -> None:
    engine, registry, [server] = make(clock, **CLOUD)
    server.multiplier = 0.5
    engine.calculate_position(signal(clock), CALM, 100.0)
    engine.kill_switch.engage("a test")
    engine.calculate_position(signal(clock), CALM, 100.0)
    found = values(registry)
    assert found["position_reductions_total{by=policy}"] == 1.0
    assert found["position_reductions_total{by=limits}"] == 1.0
    assert found["refusals_total{reason=kill_switch}"] == 1.0


def test_the_breaker_and_who_answered(clock: Clock) -> None:
    engine, registry, [server] = make(clock, **CLOUD)
    engine.calculate_position(signal(clock), CALM, 100.0)
    found = values(registry)
    assert (found["circuit_breaker_state"], found["circuit_breaker_success_rate"]) == (0.0, 1.0)
    server.multiplier = None
    began = time.monotonic()
    for _ in range(6):
        engine.calculate_position(signal(clock), CALM, 100.0)
    found = values(registry)
    assert found["circuit_breaker_state"] == 2.0
    assert found["circuit_breaker_failures_total"] == 5.0
    assert found["circuit_breaker_fallbacks_total"] == 6.0
    assert 27.0 - (time.monotonic() - began) <= found["circuit_breaker_timeout_sec"] <= 30.0
    assert found["circuit_breaker_success_rate"] == pytest.approx(1 / 6)
    assert found["multiplier_sources_total{source=gcp_api}"] == 1.0
    assert found["multiplier_sources_total{source=fallback_kelly}"] == 6.0


def test_labels_are_bounded(clock: Clock) -> None:
    engine = Layer3Phase1(load_config(None, {"market": {"max_symbols": 1_000}}), clock=clock)
    registry = CollectorRegistry()
    engine.observers.append(Metrics(registry, engine, strategies=3).observe)
    for name in ("a", "b", OTHER, 'c"\\', "d", "e", "a", "d"):
        engine.calculate_position(signal(clock, strategy_id=name), CALM, 100.0)
    found = {name: value for name, value in values(registry).items() if name.startswith("position_decisions")}
    assert len(found) == 4
    assert found[f"position_decisions_total{{strategy_id={OTHER}}}"] == 4.0
    assert found["position_decisions_total{strategy_id=a}"] == 2.0


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[2J", "x" * 101, " "])
def test_a_name_that_is_none_is_no_label(clock: Clock, name: str) -> None:
    engine, registry, _ = make(clock)
    got = engine.calculate_position(signal(clock, strategy_id=name, symbol=name), CALM, 100.0)
    assert (got.refusal, got.strategy_id, got.symbol) == ("bad_input", "", "")
    assert values(registry)["position_decisions_total{strategy_id=}"] == 1.0


def test_numbers_of_numpy_are_shown_as_the_engine_took_them(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    feeds = CascadeIndicators(oi_change_pct=np.uint8(1), funding_rate=np.float16(60_000.0))  # type: ignore[arg-type]
    with np.errstate(over="raise"):
        decision = engine.calculate_position(signal(clock, confidence=np.float16(0.5)), feeds, 100.0)
        found = values(registry)
    parts = {name: value for name, value in found.items() if name.startswith("cascade_risk_components")}
    assert parts["cascade_risk_components{component=open_interest}"] == 0.0, "open interest that doubles is no fall"
    assert found["cascade_risk_score"] == decision.cascade_risk == 1.0
    assert found["bayesian_edge"] == pytest.approx(0.7 * 0.5 * 0.06 + 0.3 * 0.05)


def test_reloads_and_callbacks(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    engine.reload(load_config(None, {"risk": {"max_leverage": 1.5}}))
    assert values(registry)["config_reloads_total"] == 1.0
    other = CollectorRegistry()
    Metrics(other, engine, watcher=SimpleNamespace(callbacks=[print] * 4, rejected=2))
    assert (values(other)["config_callbacks"], values(other)["config_rejections_total"]) == (4.0, 2.0)


def test_threads_lose_no_decision(clock: Clock) -> None:
    engine, registry, _ = make(clock)
    over = threading.Event()

    def look(_: int) -> None:
        while not over.is_set():
            generate_latest(registry)

    def size(name: str) -> None:
        for _ in range(100):
            engine.calculate_position(signal(clock, strategy_id=name), CALM, 100.0)

    with beside(look, range(1)):
        at_once(size, [f"s{i}" for i in range(4)])
        over.set()
    found = values(registry)
    assert [found[f"position_decisions_total{{strategy_id=s{i}}}"] for i in range(4)] == [100.0] * 4
    assert found["decision_latency_seconds_count"] == 400.0
    assert found["decision_latency_seconds_bucket{le=+Inf}"] == 400.0
    buckets = [found[f"decision_latency_seconds_bucket{{le={bound}}}"] for bound in LATENCY_BUCKETS]
    assert buckets == sorted(buckets)
    assert engine.counters["observer_errors"] == 0


def test_an_experiment_is_shown_where_there_is_one(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "ab.sqlite"
    with LiveExperiment(Store(path), Store(path, read_only=True), Design("x"), forced=Arm.KELLY) as live:
        config = load_config(None, CLOUD)
        engine = Layer3Phase1(config, clock=clock, connect=lambda _, breaker: Server(breaker), assigner=live)
        registry = CollectorRegistry()
        engine.observers += [live.observe, Metrics(registry, engine, experiment=live).observe]
        for _ in range(3):
            engine.calculate_position(signal(clock), CALM, 100.0)
        assert live.settle(30.0)
        live.record_outcome("nobody", pnl_usd=0.0, realised_return=0.0, duration_s=0.0).wait(30.0)
        with Store(path) as other:
            other.stop("x", "by hand", clock.now)
        wait_for(lambda: live.stopped)
        found = values(registry)
        text = generate_latest(registry).decode()
    arms = {arm: found[f"experiment_decisions_total{{arm={arm}}}"] for arm in ("policy", "kelly", "unrecorded")}
    assert arms == {"policy": 0.0, "kelly": 3.0, "unrecorded": 0.0}
    assert (found["experiment_stopped"], found["experiment_refused_records_total"]) == (1.0, 1.0)
    assert (found["experiment_waiting_records"], found["experiment_store_errors_total"]) == (0.0, 0.0)
    # Kelly's size is neither the policy's doing nor a limit's.
    assert "position_reductions_total{by=policy}" not in found
    assert "position_reductions_total{by=limits}" not in found
    command = [binary("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert (done.stdout + done.stderr).count("\n") == 1


def test_promtool_has_nothing_to_say_but_of_the_one_name_that_is_given(clock: Clock) -> None:
    promtool = binary("promtool")
    engine, registry, _ = make(clock, **CLOUD)
    engine.calculate_position(signal(clock), CascadeIndicators(funding_rate=0.02), 100.0)
    engine.calculate_position(signal(clock, confidence=2.0), CALM, 100.0)
    text = generate_latest(registry).decode()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    remark = "himari_l3_circuit_breaker_timeout_sec metric names should not contain abbreviated units"
    assert (done.stdout + done.stderr).strip() == remark
    without = re.sub(r"(?m)^.*circuit_breaker_timeout_sec.*\n", "", text)
    done = subprocess.run([promtool, "check", "metrics"], input=without, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_it(clock: Clock, tmp_path: Path) -> None:
    prometheus = binary("prometheus")
    engine, registry, _ = make(clock, **CLOUD)
    for _ in range(3):
        engine.calculate_position(signal(clock, strategy_id="momentum"), CALM, 100.0)
    port = free_port()
    settings = tmp_path / "prometheus.yml"
    with MetricsServer(registry, "127.0.0.1", 0) as server:
        target = {"targets": [f"127.0.0.1:{server.port}"]}
        scrape = [{"job_name": "layer3", "scrape_interval": "2s", "scrape_timeout": "2s", "static_configs": [target]}]
        settings.write_text(json.dumps({"scrape_configs": scrape}))
        options = (f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'data'}")
        address = f"127.0.0.1:{port}"
        with running(
            prometheus, *options, f"--web.listen-address={address}", port=port, log=tmp_path / "log"
        ) as process:

            def ask(query: str) -> list[Any]:
                url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
                try:
                    with urllib.request.urlopen(url, timeout=60) as answer:
                        return list(json.load(answer)["data"]["result"])
                except OSError:
                    return []

            def value(query: str) -> str:
                found: list[Any] = []  # nothing until the first scrape, and after one that took too long
                wait_for(lambda: found.extend(ask(query)) or found)
                return str(found[0]["value"][1])

            assert value("himari_l3_kelly_fraction")
            assert value('himari_l3_position_decisions_total{strategy_id="momentum"}') == "3"
            assert value("himari_l3_circuit_breaker_state") == "0"
            assert value("histogram_quantile(0.5, himari_l3_decision_latency_seconds_bucket)")
            assert value('up{job="layer3"} == 1') == "1"
            process.terminate()


def test_a_port_that_is_taken_is_named(clock: Clock) -> None:
    with MetricsServer(CollectorRegistry(), "127.0.0.1", 0) as server:
        port = server.port
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}.*metrics\.port"):
            MetricsServer(CollectorRegistry(), "127.0.0.1", port)


def test_it_costs_little(clock: Clock) -> None:
    engine, _, _ = make(clock)
    [observe] = engine.observers
    kept: list[Any] = []
    engine.observers.append(lambda decision, inputs: kept.append((decision, inputs)))
    engine.calculate_position(signal(clock), CALM, 100.0)
    best = min(_timed(observe, *kept[0]) for _ in range(50))
    assert best < 50e-6


def _timed(observe: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    for _ in range(20):
        observe(*arguments)
    return (time.perf_counter() - started) / 20
