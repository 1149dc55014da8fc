"""An experiment beside the engine: sticky without the disk, written behind, and Kelly's size where it cannot be."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layer3.ab.assignment import Arm, Assignment, Design, bucket
from layer3.ab.live import LiveExperiment
from layer3.ab.store import Store
from layer3.errors import StoreError
from layer3.live.configuration import load_config
from layer3.live.phase1 import Layer3Phase1
from layer3.types import PositionSizingDecision
from tests.fakes.servers import wait_for
from tests.fakes.threads import at_once
from tests.live.desk import CALM, CLOUD, NOON, Scripted, signal_of

HALF = Design("x", least_units=10)


def opened(path: Path, design: Design = HALF, **more: Any) -> LiveExperiment:
    return LiveExperiment(Store(path), Store(path, read_only=True), design, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ab.sqlite"


@pytest.fixture
def live(path: Path) -> Iterator[LiveExperiment]:
    with opened(path) as made:
        yield made


def engine_with(live: LiveExperiment | None, multiplier: float = 1.5, **config: Any) -> Layer3Phase1:
    client = Scripted(multiplier)
    engine = Layer3Phase1(
        load_config(None, {**CLOUD, **config}), clock=lambda: NOON, connect=lambda *_: client, seed=0, assigner=live
    )
    if live is not None:
        engine.observers.append(live.observe)
    return engine


def sized(engine: Layer3Phase1, number: int, **changes: Any) -> PositionSizingDecision:
    signal = signal_of(timestamp_ns=NOON - number, **changes)
    return engine.calculate_position(signal, CALM, 100.0, price_timestamp_ns=NOON)


def rows(path: Path) -> list[Any]:
    with Store(path, read_only=True) as store:
        return store.rows("x")


def test_the_arms_size_is_held_and_both_are_recorded(live: LiveExperiment, path: Path) -> None:
    engine, plain = engine_with(live), engine_with(None)
    decisions = [sized(engine, number) for number in range(60)]
    policy = sized(plain, 0).position_size_usd
    kelly = sized(plain, 0).cascade_adjusted_usd
    assert policy == pytest.approx(1.5 * kelly)
    for decision in decisions:
        arms = decision.experiment
        assert arms is not None
        assert (arms.kelly_usd, arms.policy_usd) == pytest.approx((kelly, policy))
        assert decision.position_size_usd == pytest.approx(policy if arms.arm == "policy" else kelly)
        assert arms.arm == ("policy" if bucket("x", arms.unit) < 0.5 else "kelly")
        # What the policy said is kept in either arm.
        assert (decision.multiplier, decision.multiplier_source) == (1.5, "gcp_api")
        [stage] = [stage for stage in decision.stages if stage.name == "experiment"]
        assert stage.input == pytest.approx(policy / 100_000.0)
        assert stage.output == pytest.approx(abs(decision.exposure))
        outputs = [stage.output for stage in decision.stages]
        assert outputs[:-1] == [stage.input for stage in decision.stages[1:]]
        assert f"x holds {'the policy' if arms.arm == 'policy' else 'Kelly'}'s size (assigned)" in decision.reason
    assert {decision.experiment.arm for decision in decisions if decision.experiment} == {"policy", "kelly"}
    assert live.settle(30.0)
    kept = {row.decision.id: row.decision for row in rows(path)}
    assert kept.keys() == {decision.decision_id for decision in decisions}
    for decision in decisions:
        assert kept[decision.decision_id].size_usd == decision.position_size_usd
        assert kept[decision.decision_id].source == "gcp_api"
    assert live.counters["policy"] + live.counters["kelly"] == 60


def test_the_position_that_is_held_counts_for_the_leverage(path: Path) -> None:
    # Kelly's size of one symbol leaves more room for the next than the policy's would.
    room = {}
    for arm in Arm:
        with opened(path.with_name(arm.value), forced=arm) as live:
            engine = engine_with(live, 2.0, risk={"max_leverage": 0.6})
            first, second = (sized(engine, n, symbol=name).experiment for n, name in enumerate(("A", "B")))
            assert first is not None
            assert second is not None
            room[arm] = second.policy_usd
    assert room[Arm.KELLY] > room[Arm.POLICY]


def test_a_stop_of_the_engine_is_zero_in_both_arms(live: LiveExperiment, path: Path) -> None:
    engine = engine_with(live)
    engine.kill_switch.engage("by hand")
    decision = sized(engine, 1)
    assert decision.refusal == "kill_switch"
    assert decision.experiment is not None
    assert (decision.experiment.kelly_usd, decision.experiment.policy_usd, decision.position_size_usd) == (0, 0, 0)
    bad = engine.calculate_position(signal_of(confidence=float("nan")), CALM, 100.0)
    assert bad.experiment is None
    assert live.settle(30.0)
    assert [row.decision.id for row in rows(path)] == [decision.decision_id]


def test_a_unit_keeps_its_arm_over_a_restart_and_a_ramp(path: Path) -> None:
    ramp = Design("x", unit="strategy", ramp=((0.0, 0.2), (1.0, 0.9)))
    now = [NOON]
    first = {}
    for _ in range(2):
        with opened(path, ramp, clock=lambda: now[0]) as live:
            engine = engine_with(live)
            for number in range(20):
                arms = sized(engine, number, strategy_id=f"s{number}").experiment
                assert arms is not None
                assert first.setdefault(number, arms.arm) == arms.arm
                assert arms.share == 0.2
        now[0] += 2 * 86_400 * 10**9
    with opened(path, ramp, clock=lambda: now[0]) as live:
        assert live.assign(signal_of(strategy_id="new")).share == 0.9


def test_outcomes_are_joined_and_a_guardrail_stops_the_policy(live: LiveExperiment, path: Path) -> None:
    engine = engine_with(live)
    decisions = [sized(engine, number) for number in range(60)]
    assert live.stopped is None
    for decision in decisions:
        loss = -0.2 * abs(decision.position_size_usd)
        ticket = live.record_outcome(decision.decision_id, pnl_usd=loss, realised_return=-0.2, duration_s=60.0)
        assert ticket.wait(30.0)
        assert ticket.error is None
    assert live.stopped is not None
    assert "the policy's arm" in live.stopped.reason
    after = sized(engine, 100).experiment
    assert after is not None
    assert (after.arm, after.how) == ("kelly", "stopped")
    # Another process finds the stop; the same outcome again changes nothing, another one is refused.
    with opened(path) as second:
        assert second.stopped == live.stopped
    again = live.record_outcome(decisions[0].decision_id, pnl_usd=1.0, realised_return=0.1, duration_s=60.0)
    assert again.wait(30.0)
    assert "an outcome is final" in str(again.error)
    unknown = live.record_outcome("nobody", pnl_usd=1.0, realised_return=0.1, duration_s=60.0)
    assert unknown.wait(30.0)
    assert "record the decision first" in str(unknown.error)
    assert live.counters["refused"] == 2


def test_a_stop_by_another_process_is_seen_without_a_decision(live: LiveExperiment, path: Path) -> None:
    with Store(path) as other:
        other.stop("x", "by hand", NOON)
    wait_for(lambda: live.stopped is not None)
    assert live.assign(signal_of()).how == "stopped"


def test_a_forced_arm(path: Path) -> None:
    with opened(path, forced=Arm.POLICY) as live:
        engine = engine_with(live)
        decisions = [sized(engine, number).experiment for number in range(8)]
    assert {(arms.arm, arms.how) for arms in decisions if arms} == {("policy", "forced")}
    assert {row.decision.how for row in rows(path)} == {"forced"}


def test_a_store_that_another_holds_delays_no_decision_and_loses_none(
    live: LiveExperiment, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_with(live)
    sized(engine, 0)
    assert live.settle(30.0)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    decisions = [sized(engine, number) for number in range(1, 41)]
    assert not live.settle(0.01)
    assert live.waiting
    # The store waits ten seconds for a lock: no decision did.
    assert sorted(decision.latency_ms for decision in decisions)[len(decisions) // 2] < 100.0
    holder.execute("ROLLBACK")
    holder.close()
    assert live.settle(60.0)
    assert len(rows(path)) == 41


class Broken(Store):
    """A store whose disk is full while ``full``."""

    full = True

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        if self.full:
            raise StoreError("ab.sqlite was not written: database or disk is full")
        with super().together():
            yield


def test_while_the_disk_is_full_every_decision_is_kellys_and_said_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Broken(path)
    with LiveExperiment(store, Store(path, read_only=True), Design("x", ramp=((0.0, 1.0),))) as live:
        engine = engine_with(live)
        first = sized(engine, 1)
        assert first.experiment is not None
        assert first.experiment.arm == "policy"
        wait_for(lambda: live.counters["store_errors"])
        assert not live.settle(30.0)  # at once: it fails
        second = sized(engine, 2)
        assert second.experiment is not None
        assert (second.experiment.arm, second.experiment.how) == ("kelly", "unrecorded")
        assert second.position_size_usd == pytest.approx(second.cascade_adjusted_usd)
        assert live.counters["unrecorded"] == 1
        assert caplog.text.count("until it works every decision gets Kelly's size") == 1
        store.full = False
        wait_for(lambda: not live.waiting)
        wait_for(lambda: live.assign(signal_of()).how == "assigned")
        assert "works again" in caplog.text
    assert [row.decision.id for row in rows(path)] == [first.decision_id]


def test_what_is_lost_at_the_end_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveExperiment(Broken(path), Store(path, read_only=True), HALF)
    sized(engine_with(live), 1)
    live.close()
    assert "records of an experiment are lost" in caplog.text


def test_a_record_that_nobody_foresaw_is_refused_and_the_next_is_written(
    live: LiveExperiment, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = sized(engine_with(live), 1)
    plain = {"pnl_usd": 1.0, "realised_return": 0.01, "duration_s": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(Store, "add_outcome", lambda *_: 1 / 0)
        ticket = live.record_outcome(decided.decision_id, **plain)
        assert ticket.wait(10.0)
    assert "ZeroDivisionError" in str(ticket.error)
    surrogate = live.record_outcome("\ud800", **plain)
    assert surrogate.wait(10.0)
    assert "decision_id" in str(surrogate.error)
    assert live.counters["refused"] == 2
    assert live.settle(10.0)
    assert [row.decision.id for row in rows(path)] == [decided.decision_id]


def test_another_process_that_assigned_first_is_heard(live: LiveExperiment, path: Path) -> None:
    signal = signal_of()
    mine = live.assign(signal)
    other = Arm.KELLY if mine.arm is Arm.POLICY else Arm.POLICY
    with Store(path) as store:
        store.assign("x", mine.unit, other, 0.5, NOON)
    engine_with(live).calculate_position(signal, CALM, 100.0)
    assert live.settle(30.0)
    assert live.counters["refused"] == 1
    assert live.assign(signal).arm is other


def test_threads_agree_and_every_decision_is_recorded_once(live: LiveExperiment, path: Path) -> None:
    engine = engine_with(live)
    arms: list[set[Any]] = [set() for _ in range(25)]

    def work(_: int) -> None:
        for number in range(25):
            found = sized(engine, number).experiment
            assert found is not None
            arms[number].add(found.arm)

    at_once(work, range(8))
    assert [len(found) for found in arms] == [1] * 25
    assert live.settle(60.0)
    assert len({row.decision.id for row in rows(path)}) == 200


def test_a_logged_decision_is_recorded_again_only_if_it_was_not(live: LiveExperiment, path: Path) -> None:
    engine = engine_with(live)
    told = json.loads(json.dumps(sized(engine, 1).to_json()))
    for decision in (told, {**told, "decision_id": "lost"}, {**told, "experiment": None, "decision_id": "none"}):
        live.record_again(decision)
    assert live.settle(30.0)
    assert {row.decision.id for row in rows(path)} == {told["decision_id"], "lost"}
    assert not live.counters["refused"]


def test_assigning_costs_little(live: LiveExperiment) -> None:
    seconds = []
    for number in range(200):
        start = time.perf_counter()
        live.assign(signal_of(timestamp_ns=NOON + number))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.005


def test_an_assigner_may_pass_a_signal_over() -> None:
    class Nobody:
        def assign(self, signal: Any) -> Assignment | None:
            return None

    client = Scripted(1.5)
    engine = Layer3Phase1(load_config(None, CLOUD), clock=lambda: NOON, connect=lambda *_: client, assigner=Nobody())
    assert sized(engine, 1).experiment is None
