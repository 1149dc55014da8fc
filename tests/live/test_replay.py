from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.agent.policy import Policy
from layer3.errors import DataError
from layer3.live.configuration import digest_of, load_config
from layer3.live.decision_log import DecisionLog
from layer3.live.log_file import files, read, read_all
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import Recorder, head
from layer3.live.replay import replay
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal
from tests.fakes.policies import small_policy
from tests.fakes.threads import at_once

NOW = 1_767_258_000_000_000_000
HOUR = 3_600_000_000_000
CALM = CascadeIndicators(funding_rate=0.0001)


class Desk:
    """An engine whose decisions are recorded, and a clock to turn."""

    def __init__(self, path: Path, **config: Any) -> None:
        self.now = NOW
        self.engine = Layer3Phase1(load_config(None, config), clock=lambda: self.now, seed=1)
        size = self.engine.config.decision_log.max_bytes
        self.log = DecisionLog(path, lambda: head(self.engine), fsync="none", max_bytes=size)
        self.recorder = Recorder(self.log, self.engine)
        self.engine.observers.append(self.recorder.observe)

    def size(self, **changes: Any) -> None:
        plain: dict[str, Any] = {
            "strategy_id": "s", "symbol": "BTC-USDT", "action": Action.BUY, "confidence": 0.8, "risk_score": 0.2,
            "regime": Regime.RANGING, "timestamp_ns": self.now, "expected_return": 0.06,
        }  # fmt: skip
        given = {name: changes.pop(name) for name in list(changes) if name in plain}
        arguments = {"cascade": CALM, "current_price": 100.0} | changes
        self.engine.calculate_position(TacticalSignal(**(plain | given)), **arguments)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "log.jsonl")
    yield made
    made.log.close()
    made.engine.close()


def records(desk: Desk) -> list[dict[str, Any]]:
    return list(read_all(desk.log.path))


def policy(folder: Path) -> Policy:
    return small_policy(folder)


def a_long_day(desk: Desk) -> None:
    """Everything that changes what comes after: trades, prices, regimes, losses, kill switch, residuals, a reload."""
    rng = np.random.default_rng(5)
    price = 100.0
    for i in range(60):
        desk.now += HOUR // 2
        price *= float(np.exp(rng.normal(0.0, 0.01)))
        desk.size(
            symbol=("BTC-USDT", "ETH-USDT")[i % 2],
            action=list(Action)[rng.integers(5)],
            regime=list(Regime)[rng.integers(5)],
            confidence=float(rng.uniform(0.5, 1.0)) if i % 9 else float("nan"),
            current_price=price,
            current_position_usd=float(rng.normal(0.0, 5_000.0)),
            recent_trades=[{"trade_return": float(rng.normal(0.0, 0.02)), "trade_id": str(i)}] if i % 4 == 0 else (),
        )
        desk.recorder.record_residual("BTC-USDT", 0.0, float(rng.normal(0.0, 0.02)))
        if i == 20:
            desk.engine.kill_switch.engage("by hand, a test")
        if i == 23:
            desk.engine.kill_switch.release()
        if i == 30:
            desk.size(recent_trades=[{"trade_return": -0.5, "pnl_usd": -5_000.0, "trade_id": "loss"}])
        if i == 33:
            desk.recorder.reset_daily_loss()
        if i == 40:
            desk.engine.reload(load_config(None, {"chain": {"kelly": {"kelly_share": 0.2}}}))
        if i % 15 == 14:
            desk.log.roll()


def test_a_long_day_is_made_again_to_the_bit(desk: Desk) -> None:
    a_long_day(desk)
    found = records(desk)
    outcome = replay(found)
    assert outcome.differences == []
    assert outcome.decisions == 61
    refusals = {record["decision"]["refusal"] for record in found if record["kind"] == "decision"}
    assert refusals >= {None, "bad_input", "kill_switch", "daily_loss"}
    kinds = [record["kind"] for record in found]
    assert {"residual", "daily_loss_reset", "configuration"} <= set(kinds)


def test_each_file_can_be_replayed_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "log.jsonl")
    desk.log._max_bytes = 20_000
    a_long_day(desk)
    desk.log.close()
    first = tmp_path / "log.000001.jsonl"
    assert first.exists()
    made = 0
    for file in sorted(tmp_path.glob("log*.jsonl")):
        outcome = replay(list(read(file)))
        assert outcome.differences == []
        made += outcome.decisions
    assert made == 61


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r["decision"].__setitem__("exposure", r["decision"]["exposure"] + 1e-16), "exposure"),
        (lambda r: r["decision"].__setitem__("symbol", "ETH"), "symbol"),
        (lambda r: r["decision"]["stages"][1].__setitem__("reason", "x"), "stages[1].reason"),
        (lambda r: r["decision"]["stages"].pop(), "stages[10]"),
        (lambda r: r["decision"]["state"].__setitem__(3, 0.5), "state[3]"),
        (lambda r: r["decision"].__setitem__("extra", 1), "extra"),
        (lambda r: r["inputs"].__setitem__("current_price", 101.0), None),
        (lambda r: r["inputs"]["signal"].__setitem__("confidence", 0.81), "kelly_fraction"),
    ],
)
def test_what_differs_is_named_field_by_field(desk: Desk, change: Any, field: str | None) -> None:
    desk.size(cascade=CascadeIndicators(funding_rate=0.002))
    changed = copy.deepcopy(records(desk))
    change(changed[-1])
    told: list[Any] = []
    found = replay(changed, say=told.append).differences
    assert told == found
    if field is None:  # the first price of a symbol sets the scale: nothing of the decision depends on it
        assert found == []
    else:
        assert any(difference.field.startswith(field) for difference in found), found
        assert found[0].decision_id == changed[-1]["decision"]["decision_id"]


def test_the_multiplier_is_taken_as_given_or_asked_again(tmp_path: Path) -> None:
    made = policy(tmp_path / "model")
    desk = Desk(tmp_path / "log.jsonl", policy={"model_path": str(tmp_path / "model")})
    for confidence in (0.6, 0.7, 0.9):
        desk.size(confidence=confidence)
    desk.log.close()
    found = records(desk)
    assert {record["decision"]["multiplier_source"] for record in found[1:]} == {"local_model"}
    assert replay(found).differences == []
    assert [d for d in replay(found, policy=made).differences if not d.field.startswith("passed_over")] == []
    found[-1]["decision"]["multiplier"] = 1.9
    assert replay(found, policy=made).differences != []


def test_the_log_of_an_older_program_can_be_made_again(desk: Desk) -> None:
    desk.size()
    desk.size(confidence=0.6)
    found = copy.deepcopy(records(desk))
    del found[0]["configuration"]["experiment"]
    found[0]["config_hash"] = digest_of(found[0]["configuration"])
    for record in found[1:]:
        del record["decision"]["experiment"]
    again = replay(found)
    assert (again.decisions, again.differences) == (2, [])


def test_each_decision_is_made_again_by_the_configuration_that_it_was_made_by(desk: Desk) -> None:
    """However quickly one follows the other, and whichever thread writes first."""
    changes = iter([load_config(None, {"portfolio_value": value}) for value in (2e5, 3e5, 2e5, 1e5)])
    desk.engine.observers.insert(0, lambda *_: desk.engine.reload(next(changes)))
    for _ in range(4):
        desk.size()
    found = records(desk)
    assert [each["decision"]["portfolio_value"] for each in found if "decision" in each] == [1e5, 2e5, 3e5, 2e5]
    for order in (found, [found[0], *reversed(found[1:])]):
        assert replay(order).differences == []


def test_each_file_holds_the_configurations_of_its_decisions(tmp_path: Path) -> None:
    """Also where a file's head holds another, by which nobody sized."""
    desk = Desk(tmp_path / "log.jsonl", decision_log={"max_bytes": 1})
    first = desk.engine.config
    desk.size()
    desk.engine.reload(load_config(None, {"portfolio_value": 2e5}))
    assert desk.log.roll()
    desk.engine.reload(first)
    desk.size()
    desk.log.close()
    desk.engine.close()
    for file in files(desk.log.path):
        again = replay(read(file))
        assert (again.decisions, again.differences) == (1, [])


def test_another_configuration_shows_what_it_would_change(desk: Desk) -> None:
    desk.size()
    config = load_config(None, {"chain": {"max_exposure": 0.05}})
    fields = {difference.field for difference in replay(records(desk), config=config).differences}
    assert {"exposure", "position_size_usd", "base_fraction"} <= fields


@pytest.mark.parametrize(
    "change", [{"action": np.str_("buy")}, {"confidence": object()}, {"current_price": b"1"}, {"cascade": None},
               {"recent_trades": {1: 2}}, {"confidence": float("nan")}, {"current_price": float("-inf")},
               {"action": "buy"}, {"confidence": "nan"}, {"symbol": float("nan")}, {"cascade": {"funding_rate": 0.1}},
               {"cascade": "inf"}, {"current_price": 10**400}, {"current_price": "of type x"}, {"cascade": "text x"}],
)  # fmt: skip
def test_what_no_json_can_say_is_refused_again_in_the_same_words(desk: Desk, change: dict[str, Any]) -> None:
    desk.size(**change)
    found = records(desk)
    assert found[-1]["decision"]["refusal"] == "bad_input"
    assert replay(found).differences == []


def test_residuals_that_are_no_numbers_are_recorded_and_counted_again(desk: Desk) -> None:
    desk.size()
    for predicted in (float("nan"), float("inf"), None, "nan", 10**400):
        assert not desk.recorder.record_residual("BTC-USDT", predicted, 0.1)  # type: ignore[arg-type]
    assert replay(records(desk)).state["memory"] == desk.engine.snapshot()["memory"]


def test_decisions_of_many_threads_are_taken_in_the_engines_order(desk: Desk) -> None:
    barrier = threading.Barrier(4)

    def work(symbol: str) -> None:
        barrier.wait()
        for i in range(25):
            desk.size(symbol=symbol, recent_trades=[{"trade_return": 0.01, "trade_id": f"{symbol}{i}"}])

    at_once(work, [f"S{i}-USDT" for i in range(4)])
    found = records(desk)
    shuffled = [found[0], *reversed(found[1:])]
    for order in (found, shuffled):
        fields = {difference.field for difference in replay(order).differences}
        assert {field for field in fields if not field.startswith("stages")} == set()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(Action), st.sampled_from(Regime), st.floats(1, 1e6))))
def test_whatever_was_asked_is_made_again(tmp_path_factory: pytest.TempPathFactory, asked: list[Any]) -> None:
    desk = Desk(tmp_path_factory.mktemp("log") / "log.jsonl")
    for confidence, action, regime, price in asked:
        desk.now += HOUR
        desk.size(confidence=confidence, action=action, regime=regime, current_price=price, current_position_usd=price)
    desk.log.close()
    again = replay(records(desk))
    assert (again.decisions, again.differences) == (len(asked), [])
    assert again.state["memory"] == desk.engine.snapshot()["memory"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop(0), "does not begin with a head"),
        (lambda r: r[0].pop("state"), "not one that the engine wrote"),
        (lambda r: r[0].__setitem__("config_hash", "0" * 64), "it was changed, or another program's"),
        (lambda r: r[1].__setitem__("kind", "x"), "unknown kind 'x'"),
        (lambda r: r[1]["inputs"].pop("signal"), "signal: it is missing"),
    ],
)
def test_a_log_that_cannot_be_replayed_says_why(desk: Desk, change: Any, says: str) -> None:
    desk.size()
    found = records(desk)
    change(found)
    with pytest.raises(DataError, match=says):
        replay(found)


def test_the_command_line(desk: Desk, tmp_path: Path) -> None:
    desk.size()
    desk.size(confidence=0.6)

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "layer3.live.replay", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert run("--log", desk.log.path) == (0, "2 decisions made again, 0 differ (0 fields)\n")
    config = tmp_path / "c.yaml"
    config.write_text("portfolio_value: 50000.0\n")
    status, text = run("--log", desk.log.path, "--config", config, "--show", 1)
    assert status == 1
    assert text.count("recorded") == 1
    assert "2 decisions made again, 2 differ" in text
    assert run("--log", tmp_path / "absent")[0] == 2
    empty = tmp_path / "empty.jsonl"
    DecisionLog(empty, lambda: head(desk.engine)).close()
    assert run("--log", empty) == (2, f"error: {empty} holds no decision\n")
