from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import contract
from layer3.engine import Layer3Phase1, Layer3Phase1RL
from layer3.errors import CircuitOpenError, ConfigurationError, ContractError, PolicyError, RefusedError, SourceError
from layer3.live.configuration import Layer3Config, load_config
from layer3.live.inputs import Inputs
from layer3.live.metrics import MetricsServer
from layer3.live.sources import Pace
from layer3.sizing.chain import SizingChain, decide
from layer3.types import Action, CascadeIndicators, ClosedTrade, PositionSizingDecision, Regime
from tests.fakes.threads import at_once
from tests.layer3.test_size import release
from tests.live.desk import CALM, CLOUD, DAY, NOON, OFF, Desk, Scripted, signal_of

HOUR = 3_600 * 10**9


def test_without_a_policy_it_is_the_chain() -> None:
    got = Desk().size()
    expected = decide(
        signal_of(),
        SizingChain().assess(signal_of(), CALM),
        multiplier=1.0,
        multiplier_source="fallback_kelly",
        portfolio_value=100_000.0,
    )
    assert got.position_size_usd == expected.position_size_usd > 0.0
    assert got.stages[: len(expected.stages)] == expected.stages
    assert (got.multiplier_source, got.refusal) == ("fallback_kelly", None)
    assert got.passed_over == ("policy.enabled is false",)


def test_the_account_of_a_decision() -> None:
    client = Scripted(1.3)
    desk = Desk(CLOUD, client)
    got = desk.size()
    rl = got.diagnostics["rl"]
    assert (rl["multiplier"], rl["source"], rl["confidence"], rl["model_version"]) == (1.3, "gcp_api", 0.8, "model-1")
    assert rl["base_position_usd"] == got.cascade_adjusted_usd == got.base_fraction * 100_000.0
    assert rl["rl_adjusted_usd"] == got.position_size_usd == pytest.approx(1.3 * got.cascade_adjusted_usd)
    assert got.kelly_position_usd == got.kelly_fraction * 100_000.0
    names = [stage["name"] for stage in got.diagnostics["stages"]]
    assert names == [
        "validate", "kelly", "conformal", "sentiment", "regime", "cascade", "base cap", "multiplier", "cap",
        "leverage", "risk",
    ]  # fmt: skip
    for before, after in zip(got.stages, got.stages[1:], strict=False):
        assert after.input == before.output
    assert got.stages[-1].output == got.exposure
    assert got.config_hash == desk.engine.config_hash == load_config(None, CLOUD).digest()
    assert (got.timestamp_ns, got.decision_id) == (NOON, client.asked[0][1])
    assert got.latency_ms > 0.0
    json.dumps([got.diagnostics, got.to_json()], allow_nan=False)
    assert Desk(CLOUD, client).size().decision_id != got.decision_id


def test_the_state_is_the_contracts() -> None:
    client = Scripted(1.0)
    desk = Desk(CLOUD, client)
    prices = [100.0, 101.0, 99.0, 102.0, 103.0, 104.0]
    for i, price in enumerate(prices):
        desk.size_at(NOON + i * HOUR, price)
    trades = [ClosedTrade(0.02, 100.0, NOON, str(i)) for i in range(3)] + [ClosedTrade(-0.01, -50.0, NOON, "x")]
    desk.now += HOUR
    signal = signal_of(action=Action.STRONG_SELL, risk_score=0.5, timestamp_ns=desk.now)
    got = desk.size(signal, CALM, 106.0, current_position_usd=-20_000.0, entry_price=110.0, recent_trades=trades)
    changes = np.diff(np.log([*prices, 106.0]))
    expected = contract.build_state(
        confidence=0.7, side=-1, tier=3, exposure=-0.2, unrealised_pnl=1.0 - 106.0 / 110.0,
        return_1h=106.0 / 104.0 - 1.0, return_4h=106.0 / 99.0 - 1.0,
        volatility=float(np.std(changes, ddof=1) * math.sqrt(24.0)), win_rate=0.75, cascade_risk=got.cascade_risk,
    )  # fmt: skip
    assert got.state is not None
    np.testing.assert_allclose(got.state, expected, rtol=1e-6)
    np.testing.assert_array_equal(client.asked[-1][0], got.state)


def test_before_prices_are_known_the_signal_says_the_volatility() -> None:
    desk = Desk()
    given = desk.size().state
    assert given is not None
    assert given[13] == pytest.approx(0.3)
    silent = Desk().size(signal_of(predicted_volatility=None)).state
    assert silent is not None
    assert silent[13] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("script", "source", "says"),
    [
        (0.4, "gcp_api", None),
        (SourceError("no answer"), "local_model", "gcp_api: no answer"),
        (CircuitOpenError("open"), "local_model", "gcp_api: open"),
        (RefusedError("HTTP 422"), "local_model", "gcp_api: HTTP 422"),
        (ContractError("a/2", "a/1", "there"), "local_model", "gcp_api: there was built for state contract 'a/2'"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_order_of_the_sources(
    tmp_path: Path, script: Any, source: str, says: str | None, asynchronous: bool
) -> None:
    policy = release(tmp_path)
    overrides = {"deployment_mode": "cloud", "policy": {"endpoint": "http://127.0.0.1:9", "model_path": str(tmp_path)}}
    desk = Desk(overrides, Scripted(script))
    got = asyncio.run(desk.engine.acalculate_position(signal_of(), CALM, 100.0)) if asynchronous else desk.size()
    assert (got.multiplier_source, got.refusal) == (source, None)
    if says is None:
        assert (got.multiplier, got.passed_over) == (0.4, ())
    else:
        assert got.state is not None
        assert got.multiplier == float(policy.act(got.state)[0])
        assert (got.model_version, got.multiplier_confidence) == (policy.model_id, float(policy.act(got.state)[1]))
        assert len(got.passed_over) == 1
        assert got.passed_over[0].startswith(says)


def test_without_anybody_the_fallback() -> None:
    overrides = {"deployment_mode": "cloud", "policy": {"endpoint": "http://127.0.0.1:9", "fallback_multiplier": 0.5}}
    got = Desk(overrides, Scripted(SourceError("gone"))).size()
    assert (got.multiplier, got.multiplier_source) == (0.5, "fallback_kelly")
    assert got.passed_over == ("gcp_api: gone", "local_model: policy.model_path is not given")
    assert got.position_size_usd == pytest.approx(0.5 * got.cascade_adjusted_usd)


def test_a_probe_is_alone_however_long_a_call_may_take() -> None:
    seconds = [0.0]
    policy = {"endpoint": "http://127.0.0.1:9", "timeout_ms": 20_000}
    config = load_config(None, {**CLOUD, "policy": policy, "breaker": {"failures": 1, "jitter": 0.0}})
    with Layer3Phase1(config, timer=lambda: seconds[0], connect=lambda *_: Scripted(1.0)) as engine:
        breaker = engine.breaker
        assert breaker is not None
        for now, leave in ((0.0, True), (29.9, False), (30.0, True), (50.0, False), (51.1, True)):
            seconds[0] = now
            permit = breaker.try_acquire()
            assert (permit is not None) == leave, now
            if permit is not None and now == 0.0:
                permit.failure()


def test_local_mode_asks_no_server(tmp_path: Path) -> None:
    policy = release(tmp_path)
    folder = str(tmp_path / "models" / policy.model_id)
    got = Desk({"policy": {"endpoint": "http://127.0.0.1:9", "model_path": folder}}).size()
    assert (got.multiplier_source, got.model_version, got.passed_over) == ("local_model", policy.model_id, ())


def test_bad_construction_raises_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a Layer3Config"):
        Layer3Phase1({})  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="no policy at"):
        Desk({"policy": {"model_path": str(tmp_path / "ppo_final.pt")}})
    with pytest.raises(ConfigurationError):
        Layer3Phase1(load_config(None, {"deployment_mode": "cloud", "policy": {"endpoint": "http://a b"}}))


class Evil:
    def __float__(self) -> float:
        raise RuntimeError("float")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __le__(self, other: object) -> bool:
        raise RuntimeError("le")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"signal": None}, "signal is None"),
    ({"signal": Evil()}, "signal is of type Evil"),
    ({"signal": signal_of(confidence=math.nan)}, "signal.confidence is nan"),
    ({"signal": signal_of(confidence="0.7")}, "signal.confidence is '0.7'"),
    ({"signal": signal_of(confidence=Evil())}, "signal.confidence is of type Evil"),
    ({"signal": signal_of(confidence=10**400)}, "signal.confidence is a whole number of 1329 bits"),
    ({"signal": signal_of(confidence=None)}, "signal.confidence is None"),
    ({"signal": signal_of(risk_score=-0.1)}, "signal.risk_score is -0.1"),
    ({"signal": signal_of(expected_return=math.inf)}, "signal.expected_return is inf"),
    ({"signal": signal_of(action="hodl")}, "signal.action is 'hodl', expected one of strong_buy"),
    ({"signal": signal_of(action=Evil())}, "signal.action is of type Evil"),
    ({"signal": signal_of(regime="bull")}, "signal.regime is 'bull'"),
    ({"signal": signal_of(symbol="")}, "signal.symbol is ''"),
    ({"signal": signal_of(strategy_id=7)}, "signal.strategy_id is 7"),
    ({"signal": signal_of(strategy_id="a\tb")}, "signal.strategy_id is"),
    ({"signal": signal_of(timestamp_ns=None)}, "signal.timestamp_ns is None"),
    ({"signal": signal_of(timestamp_ns=-1)}, "signal.timestamp_ns is -1"),
    ({"signal": signal_of(timestamp_ns=math.nan)}, "signal.timestamp_ns is nan"),
    ({"cascade": None}, "the cascade indicators are None"),
    ({"cascade": CascadeIndicators()}, "0 of 6 cascade feeds are there, at least 1 are needed"),
    ({"cascade": CascadeIndicators(math.nan)}, "cascade.funding_rate is nan"),
    ({"cascade": CascadeIndicators("much")}, "cascade.funding_rate is 'much'"),  # type: ignore[arg-type]
    ({"price": math.nan}, "current_price is nan"),
    ({"price": -1.0}, "current_price is -1.0"),
    ({"price": 0}, "current_price is 0.0"),
    ({"price": None}, "current_price is None"),
    ({"price": True}, "current_price is True"),
    ({"price": 10**5000}, "current_price is a whole number of"),
    ({"current_position_usd": math.inf}, "current_position_usd is inf"),
    ({"current_position_usd": Evil()}, "current_position_usd is of type Evil"),
    ({"entry_price": -5.0}, "entry_price is -5.0"),
    ({"recent_trades": 5}, "recent_trades is 5"),
    ({"recent_trades": [math.nan]}, "recent_trades[0].trade_return is nan"),
    ({"recent_trades": [0.1, {"fee": 1}]}, "recent_trades[1] has neither trade_return nor pnl_usd"),
    ({"recent_trades": [ClosedTrade(0.1, None, None, Evil())]}, "trade_id is of type Evil"),  # type: ignore[arg-type]
    ({"recent_trades": [{"return": 0.1, "id": 10**5000}]}, "trade_id is a whole number of 16610 bits"),
    ({"recent_trades": [{"return": 0.1, "id": "x" * 201}]}, "trade_id is 'xxx"),
    ({"recent_trades": [0.0] * 10_001}, "recent_trades holds 10001 trades"),
    ({"price_timestamp_ns": "now"}, "price_timestamp_ns is 'now'"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[says for _, says in BAD])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_bad_input_sizes_to_zero_and_says_why(
    caplog: pytest.LogCaptureFixture, arguments: Mapping[str, Any], says: str, asynchronous: bool
) -> None:
    client = Scripted(1.0)
    engine = Desk(CLOUD, client).engine
    values: dict[str, Any] = {"signal": signal_of(), "cascade": CALM, "price": 100.0} | dict(arguments)
    values["current_price"] = values.pop("price")
    with caplog.at_level(logging.WARNING):
        got = asyncio.run(engine.acalculate_position(**values)) if asynchronous else engine.calculate_position(**values)
    assert (got.position_size_usd, got.exposure, got.refusal) == (0.0, 0.0, "bad_input")
    assert says in got.reason
    assert engine.counters == {"decisions": 1, "refused.bad_input": 1}
    assert [record.getMessage() for record in caplog.records] == [got.reason]
    assert client.asked == []
    assert got.multiplier_source == "fallback_kelly"
    json.dumps([got.diagnostics, got.to_json()], allow_nan=False)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy_signal = signal_of(confidence=np.float32(0.7), risk_score=np.float64(0.2), timestamp_ns=np.int64(NOON))
    got = Desk().size(numpy_signal, CALM, np.float64(100.0), current_position_usd=np.int64(0))
    assert got.refusal is None
    assert got.position_size_usd == pytest.approx(Desk().size().position_size_usd, rel=1e-6)
    assert Desk().size(signal_of(timestamp_ns=float(NOON))).refusal is None


@pytest.mark.parametrize(
    ("age_s", "refusal"),
    [
        (0.0, None),
        (4.9, None),
        (5.1, "stale_signal"),
        (86_400.0, "stale_signal"),
        (-0.9, None),
        (-1.1, "future_signal"),
    ],
)
def test_the_signals_age(age_s: float, refusal: str | None) -> None:
    desk = Desk()
    got = desk.size(signal_of(timestamp_ns=NOON - int(age_s * 1e9)))
    assert got.refusal == refusal
    assert (got.position_size_usd > 0.0) is (refusal is None)
    assert refusal is None or f"{abs(age_s):.3f} s" in got.reason


@pytest.mark.parametrize(("age_s", "refusal"), [(4.9, None), (5.1, "stale_price"), (-0.9, None), (-2, "future_price")])
def test_the_prices_age(age_s: float, refusal: str | None) -> None:
    got = Desk().size(price_timestamp_ns=NOON - int(age_s * 1e9))
    assert (got.refusal, got.position_size_usd > 0.0) == (refusal, refusal is None)


def test_a_stale_price_teaches_nothing_but_trades_do() -> None:
    desk = Desk()
    trades = [ClosedTrade(0.1, -5_000.0, NOON, "a")]
    assert desk.size(price_timestamp_ns=NOON - DAY, recent_trades=trades).refusal == "stale_price"
    assert desk.size().refusal == "daily_loss"
    memory = desk.engine.snapshot()["memory"]["symbols"]["BTC-USD"]
    assert len(memory["prices"]["bars"]) == 1


def test_the_kill_switch_by_call() -> None:
    client = Scripted(1.0)
    desk = Desk(CLOUD, client)
    desk.engine.kill_switch.engage("operator")
    got = desk.size()
    assert (got.position_size_usd, got.refusal, client.asked) == (0.0, "kill_switch", [])
    assert got.reason == "not sized: the kill switch is on: operator"
    assert got.base_fraction > 0.0  # what it would have been is told
    desk.engine.kill_switch.release()
    assert desk.size().position_size_usd > 0.0


def test_a_kill_while_the_policy_is_asked_counts() -> None:
    client = Scripted(1.0)
    desk = Desk(CLOUD, client)

    def kill() -> float:
        desk.engine.kill_switch.engage("now")
        return 2.0

    client.script = kill
    got = desk.size()
    assert (got.position_size_usd, got.refusal, got.multiplier_source) == (0.0, "kill_switch", "gcp_api")


def test_the_kill_switch_by_file(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    desk = Desk({**OFF, "risk": {"kill_file": str(file)}})
    assert desk.size().refusal is None
    file.touch()
    got = desk.size()
    assert (got.refusal, got.position_size_usd) == ("kill_switch", 0.0)
    assert str(file) in got.reason
    file.unlink()
    assert desk.size().refusal is None


def test_the_daily_loss_stops_until_the_next_utc_day_or_a_reset() -> None:
    desk = Desk()
    lost = [ClosedTrade(-0.03, -2_000.0, NOON, "a")]
    got = desk.size(recent_trades=lost)
    assert (got.refusal, got.position_size_usd) == ("daily_loss", 0.0)
    assert "2.00%" in got.reason
    assert desk.size(recent_trades=[*lost, ClosedTrade(0.1, 50_000.0, NOON, "b")]).refusal == "daily_loss"
    desk.engine.reset_daily_loss()
    assert desk.size(recent_trades=lost).refusal is None
    assert desk.size(recent_trades=[*lost, ClosedTrade(-0.03, -2_000.0, NOON, "c")]).refusal == "daily_loss"
    assert desk.size_at(NOON + DAY // 2 - 1).refusal == "daily_loss"
    assert desk.size_at(NOON + DAY // 2).refusal is None


def test_unrealised_losses_count_over_all_symbols() -> None:
    desk = Desk()
    assert desk.size(price=99.0, current_position_usd=9_900.0, entry_price=100.0).refusal is None  # -100
    other = signal_of(symbol="ETH-USD")
    assert desk.size(other, price=80.0, current_position_usd=8_000.0, entry_price=98.0).refusal is None  # -1,800
    got = desk.size(other, price=79.0, current_position_usd=7_900.0, entry_price=98.0)  # -1,900
    assert got.refusal == "daily_loss"


def test_yesterdays_loss_of_an_open_position_is_not_todays() -> None:
    desk = Desk()
    desk.size(price=90.0, current_position_usd=9_000.0, entry_price=100.0)  # -1,000
    desk.now = NOON + DAY
    signal = signal_of(timestamp_ns=desk.now)
    assert desk.size(signal, CALM, 80.5, current_position_usd=8_050.0, entry_price=100.0).refusal is None  # -950 today
    closed = [ClosedTrade(-0.2, -2_000.0, desk.now, "a")]  # -1,000 of it today
    assert desk.size(signal, CALM, 80.0, recent_trades=closed).refusal is None
    closed.append(ClosedTrade(-0.2, -1_001.0, desk.now, "b"))
    assert desk.size(signal, CALM, 80.0, recent_trades=closed).refusal == "daily_loss"


def test_a_loss_without_dollars_is_taken_at_the_largest_position() -> None:
    assert Desk().size(recent_trades=[-0.039]).refusal is None
    assert Desk().size(recent_trades=[-0.04]).refusal == "daily_loss"
    assert Desk().size(recent_trades=[0.5, -0.04]).refusal == "daily_loss"  # such a gain counts for nothing


def test_leverage_is_over_all_positions() -> None:
    desk = Desk({**OFF, "risk": {"max_leverage": 0.3}})
    strong = {"expected_return": 0.2, "predicted_volatility": 0.01}
    first = desk.size(signal_of(**strong, symbol="A"))
    assert first.exposure == pytest.approx(0.3)
    assert "cut to 30.00% by the leverage of 0.3" in first.reason
    assert desk.size(signal_of(**strong, symbol="B")).exposure == 0.0
    assert desk.size(signal_of(**strong, symbol="A")).exposure == pytest.approx(0.3)
    desk.size(signal_of(action=Action.HOLD, symbol="A"))
    assert desk.size(signal_of(**strong, symbol="B", action=Action.SELL)).exposure == pytest.approx(-0.3)
    assert desk.size(signal_of(**strong, symbol="B", strategy_id="other")).exposure == 0.0


def test_trades_teach_once() -> None:
    desk = Desk()
    trades: list[Any] = [
        ClosedTrade(0.02, 10.0, NOON, "a"), {"return": 0.01, "pnl": 5.0, "timestamp_ns": NOON, "id": 7},
        ClosedTrade(0.02, 10.0, NOON), ClosedTrade(0.02, 10.0, NOON), 0.05, -0.001, {"pnl_usd": 3.0},
    ]  # fmt: skip
    for _ in range(3):
        desk.size(recent_trades=trades)
    posterior = desk.engine.snapshot()["memory"]["symbols"]["BTC-USD"]["chain"]["posterior"]
    assert (posterior["alpha"], posterior["beta"]) == (16.0, 11.0)
    desk.size(recent_trades=[*trades[3:], ClosedTrade(-0.02, -10.0, NOON, "z")])
    posterior = desk.engine.snapshot()["memory"]["symbols"]["BTC-USD"]["chain"]["posterior"]
    assert (posterior["alpha"], posterior["beta"]) == (16.0, 12.0)


def test_the_regime_is_counted_by_the_bar() -> None:
    desk = Desk()
    assert desk.size_at(NOON, regime=Regime.CRISIS).regime_multiplier == 0.2
    seen = [desk.size_at(NOON + i * 10**9, regime=Regime.RANGING).regime_multiplier for i in range(1, 20)]
    assert set(seen) == {0.2}
    by_bar = [desk.size_at(NOON + i * HOUR, regime=Regime.RANGING).regime_multiplier for i in range(1, 4)]
    assert by_bar == [0.2, 0.2, 1.0]
    assert desk.size_at(NOON + 3 * HOUR + 1, regime=Regime.CRISIS).regime_multiplier == 0.2  # danger counts at once


def test_residuals_shrink_the_size() -> None:
    desk = Desk()
    assert not desk.engine.record_residual("BTC-USD", 0.0, 0.1)  # a symbol that nobody sized
    before = desk.size().exposure
    assert all(desk.engine.record_residual("BTC-USD", 0.0, 0.1) for _ in range(20))
    for bad in (math.nan, None, "0.1", Evil(), 10**400):
        assert not desk.engine.record_residual("BTC-USD", 0.0, bad)  # type: ignore[arg-type]
        assert not desk.engine.record_residual(bad, 0.0, 0.1)  # type: ignore[arg-type]
    assert desk.size().exposure == pytest.approx(before / 1.1)
    assert desk.size(signal_of(symbol="ETH")).exposure == pytest.approx(before)


def test_a_fault_of_the_program_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(CLOUD, Scripted(ZeroDivisionError("oh")))
    for decision in (desk.size(), asyncio.run(desk.engine.acalculate_position(signal_of(), CALM, 100.0))):
        assert (decision.position_size_usd, decision.refusal) == (0.0, "internal_error")
        assert "internal error: ZeroDivisionError: oh" in decision.reason
    assert desk.engine.counters["refused.internal_error"] == 2
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert all(record.exc_info is not None for record in errors)
    assert Desk(CLOUD, Scripted(math.nan)).size().refusal == "internal_error"


def test_a_clock_that_fails() -> None:
    def clock() -> int:
        raise OSError("no clock")

    got = Layer3Phase1(load_config(None, OFF), clock=clock).calculate_position(signal_of(), CALM, 100.0)
    assert (got.refusal, got.timestamp_ns) == ("internal_error", -1)


def test_what_a_reload_does_not_take_up_is_said(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.engine.reload(load_config(None, {**OFF, "risk": {"max_leverage": 1.0}}))
    assert "next start" not in caplog.text
    changed = {"metrics": {"port": 1}, "experiment": {"path": "x"}, "logging": {"level": "ERROR"}}
    desk.engine.reload(load_config(None, {**OFF, **changed}))
    [record] = [record for record in caplog.records if "next start" in record.message]
    assert record.settings == ["metrics", "experiment", "logging.level"]  # type: ignore[attr-defined]


def test_a_server_that_refuses_what_is_sent_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(CLOUD, Scripted(RefusedError("http://there answered HTTP 404: not here")))
    for _ in range(50):
        assert "HTTP 404" in desk.size().passed_over[0]
    refusals = [record for record in caplog.records if "refuses what this program sends" in record.message]
    turned = [record for record in caplog.records if "another source" in record.message]
    assert (len(refusals), refusals[0].levelname, len(turned)) == (1, "ERROR", 1)
    now = [0.0]
    pace = Pace(60.0, lambda: now[0])
    assert [pace.due(), pace.due()] == [True, False]
    now[0] = 60.0
    assert pace.due()


def test_observers_see_every_decision_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    seen: list[tuple[PositionSizingDecision, Inputs]] = []

    def failing(decision: PositionSizingDecision, inputs: Inputs) -> None:
        raise ValueError("the disk is full")

    desk.engine.observers += [failing, lambda decision, inputs: seen.append((decision, inputs))]
    got = desk.size()
    bad = desk.size(price=-1.0)
    assert [decision for decision, _ in seen] == [got, bad]
    assert seen[0][1] == Inputs(NOON, signal_of(), CALM, 100.0, 0.0, None, (), None)
    assert got.position_size_usd > 0.0
    assert desk.engine.counters["observer_errors"] == 2
    assert "an observer failed" in caplog.text


def test_the_lock_is_free_while_the_policy_is_asked() -> None:
    client = Scripted(1.0)
    desk = Desk(CLOUD, client)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> float:
        inside.set()
        assert go_on.wait(10.0)
        return 1.0

    client.script = slow
    thread = threading.Thread(target=desk.size)
    thread.start()
    assert inside.wait(10.0)
    client.script = 0.5
    assert desk.size(signal_of(symbol="ETH-USD")).multiplier == 0.5  # would wait for ever otherwise
    assert desk.engine.snapshot()["memory"]["symbols"].keys() == {"BTC-USD", "ETH-USD"}
    go_on.set()
    thread.join(10.0)
    assert not thread.is_alive()


def test_many_threads_lose_nothing() -> None:
    desk = Desk({**OFF, "risk": {"max_leverage": 0.4}})
    found: list[PositionSizingDecision] = []

    def work(number: int) -> None:
        for i in range(50):
            trade = ClosedTrade(0.01, 1.0, NOON, f"{number}-{i}")
            found.append(desk.size(signal_of(symbol=f"S{number % 4}", strategy_id=str(number)), recent_trades=[trade]))

    at_once(work, range(8))
    assert desk.engine.counters == {"decisions": 400}
    assert len({decision.decision_id for decision in found}) == 400
    symbols = desk.engine.snapshot()["memory"]["symbols"]
    assert [symbols[f"S{n}"]["chain"]["posterior"]["alpha"] for n in range(4)] == [110.0] * 4
    last = {decision.strategy_id: decision.exposure for decision in found}
    assert sum(last.values()) <= 0.4 + 1e-9


def test_more_symbols_than_are_kept_apart() -> None:
    desk = Desk({**OFF, "market": {"max_symbols": 2}})
    assert [desk.size(signal_of(symbol=name)).refusal for name in "ABCA"] == [None, None, "too_many", None]


def test_a_reload_keeps_what_was_learnt() -> None:
    first, second = Scripted(1.5), Scripted(0.5)
    desk = Desk(CLOUD, first)
    desk.size(recent_trades=[ClosedTrade(0.1, 1.0, NOON, str(i)) for i in range(10)])
    breaker = desk.engine.breaker
    desk.engine.reload(load_config(None, {**CLOUD, "chain": {"kelly": {"prior_alpha": 20.0}}}))
    posterior = desk.engine.snapshot()["memory"]["symbols"]["BTC-USD"]["chain"]["posterior"]
    assert (posterior["alpha"], posterior["beta"]) == (30.0, 10.0)
    assert desk.engine.breaker is breaker
    assert desk.size().multiplier == 1.5
    desk.client = second
    elsewhere: dict[str, Any] = {"deployment_mode": "cloud", "policy": {"endpoint": "http://127.0.0.1:10"}}
    desk.engine.reload(load_config(None, elsewhere))
    assert (desk.size().multiplier, desk.engine.config_hash) == (0.5, load_config(None, elsewhere).digest())
    assert desk.engine.breaker is not breaker
    with pytest.raises(PolicyError):
        desk.engine.reload(load_config(None, {"policy": {"model_path": "/nowhere"}}))
    assert desk.size().multiplier == 0.5
    assert desk.engine.counters["reloads"] == 2
    desk.engine.close()
    assert (first.closed, second.closed) == (1, 1)


GUIDE: dict[str, Any] = {
    "portfolio_value": 200_000.0,
    "kelly_fraction": 0.1,
    "config_path": None,
    "enable_hot_reload": True,
    "enable_metrics": False,
    "enable_sentiment": False,
    "enable_rl": True,
    "rl_model_path": None,
    "rl_api_endpoint": "http://127.0.0.1:9/predict",
    "rl_timeout_ms": 90,
    "device": "cpu",
}


def test_the_older_constructor() -> None:
    client = Scripted(1.0)
    with Layer3Phase1RL(**GUIDE, clock=lambda: NOON, connect=lambda *_: client) as engine:
        config = engine.config
        assert (config.portfolio_value, config.chain.kelly.kelly_share) == (200_000.0, 0.1)
        assert (config.metrics.enabled, config.chain.sentiment.weight) == (False, 0.0)
        assert (config.policy.endpoint, config.policy.timeout_ms) == ("http://127.0.0.1:9", 90.0)
        assert config.deployment_mode == "cloud"
        got = engine.calculate_position(
            signal=signal_of(), cascade_indicators=CALM, current_price=100.0, current_position_usd=0.0, recent_trades=[]
        )
        assert (got.refusal, got.diagnostics["rl"]["source"]) == (None, "gcp_api")
        again = asyncio.run(engine.acalculate_position(signal_of(), CALM, 100.0))
        assert again.position_size_usd == got.position_size_usd
        assert engine.registry is None


def test_the_older_constructor_keeps_metrics() -> None:
    given = {**GUIDE, "enable_metrics": True}
    with Layer3Phase1RL(**given, clock=lambda: NOON, connect=lambda *_: Scripted(1.0)) as engine:
        engine.calculate_position(signal_of(), CALM, 100.0)
        assert engine.registry is not None
        with MetricsServer(engine.registry, "127.0.0.1", 0) as server:
            text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10.0).read().decode()
    assert 'himari_l3_position_decisions_total{strategy_id="momentum"} 1.0' in text


def test_the_older_call_in_units() -> None:
    engine = Layer3Phase1RL(enable_rl=False, clock=lambda: NOON)
    got = engine.calculate_position(signal_of(), CALM, 100.0, current_position_qty=-50.0, entry_price=90.0)
    assert got.state is not None
    assert got.state[[8, 9]].tolist() == [pytest.approx(0.1), -1.0]
    for bad in (math.nan, Evil(), 10**400, "5"):
        refused = engine.calculate_position(signal_of(), CALM, 100.0, current_position_qty=bad)  # type: ignore[arg-type]
        assert (refused.position_size_usd, refused.refusal) == (0.0, "bad_input")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"portfolio_value": -1.0}, ConfigurationError),
        ({"portfolio_value": "much"}, ConfigurationError),
        ({"kelly_fraction": 3.0}, ConfigurationError),
        ({"rl_timeout_ms": 0}, ConfigurationError),
        ({"enable_sentiment": 0}, ConfigurationError),
        ({"enable_sentiment": "false"}, ConfigurationError),
        ({"device": "tpu"}, ConfigurationError),
        ({"device": None}, ConfigurationError),
        ({"config_path": "/nowhere.yaml"}, ConfigurationError),
        ({"config_path": "a\0b"}, ConfigurationError),
        ({"rl_api_endpoint": "somewhere"}, ConfigurationError),
        ({"rl_model_path": "/nowhere"}, PolicyError),
        ({"rl_modle_path": "x"}, TypeError),
    ],
)
def test_a_wrong_argument_raises_at_once(change: Mapping[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Layer3Phase1RL(**(GUIDE | dict(change)))


def test_what_the_older_constructor_does_not_say_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "layer3.yaml"
    path.write_text("portfolio_value: 5000\nhot_reload: false\nchain: {kelly: {kelly_share: 0.5}}")
    engine = Layer3Phase1RL(config_path=path, kelly_fraction=0.4)
    assert (engine.config.portfolio_value, engine.config.chain.kelly.kelly_share) == (5_000.0, 0.4)
    assert engine.watcher is None
    assert Layer3Phase1RL().config == Layer3Config()


def test_every_field_of_the_decision_is_told() -> None:
    told = Desk().size().to_json()
    fields = {field.name for field in dataclasses.fields(PositionSizingDecision)} - {"explanation"}
    assert fields <= told.keys()
