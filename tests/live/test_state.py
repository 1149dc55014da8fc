from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from layer3.errors import DataError, SourceError
from layer3.live.configuration import load_config
from layer3.live.phase1 import Layer3Phase1
from layer3.live.state import VERSION, Saver, read_state, write_state
from layer3.types import ClosedTrade
from tests.fakes.servers import wait_for
from tests.live.desk import CALM, CLOUD, DAY, NOON, OFF, Desk, Scripted, signal_of


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    assert read_state(path) is None
    state = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_state(path, state)
    assert read_state(path) == state
    write_state(path, {"a": 0.1 + 0.2})
    assert read_state(path) == {"a": 0.1 + 0.2}
    assert [file.name for file in path.parent.iterdir()] == ["state.json"]


def change(document: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(document | changes).encode()


def test_every_kind_of_damage_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_state(path, {"x": 1.5, "y": [1, 2, 3]})
    content = path.read_bytes()
    good = json.loads(content)
    for damaged, says in [
        (b"", "is damaged"),
        (content[:-10], "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "is no state of layer 3"),
        (change(good, format="other"), "is no state of layer 3"),
        (change(good, version=VERSION + 1), f"has version {VERSION + 1}, this program reads {VERSION}"),
        (change(good, version=None), "has version None"),
        (change(good, state={"x": 1.6, "y": [1, 2, 3]}), "its checksum is another"),
        (change(good, state=3), "its checksum is another"),
        (change(good, sha256=None), "its checksum is another"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=says):
            read_state(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot read the state"):
        read_state(path)


def test_no_byte_can_be_changed_unseen(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = {"x": 1.5, "y": ["abc", None]}
    write_state(path, state)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert read_state(path) == state  # a changed space, say
        except DataError:
            continue


def keep(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {**OFF, "state": {"path": str(tmp_path / "state.json"), **more}}


def test_an_engine_goes_on_where_it_was_closed(tmp_path: Path) -> None:
    first = Desk(keep(tmp_path))
    trades = [ClosedTrade(-0.03, -2_500.0, NOON, "a")]
    assert first.size(recent_trades=trades).refusal == "daily_loss"
    first.engine.close()
    second = Desk(keep(tmp_path))
    assert second.size(recent_trades=trades).refusal == "daily_loss"
    second.engine.reset_daily_loss()
    second.engine.kill_switch.engage("operator")
    second.engine.close()
    third = Desk(keep(tmp_path))
    assert third.size(recent_trades=trades).reason == "not sized: the kill switch is on: operator"
    third.engine.kill_switch.release()
    assert third.size(recent_trades=trades).refusal is None
    third.engine.close()


def test_a_damaged_state_stops_the_start_unless_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        Desk(keep(tmp_path))
    with caplog.at_level(logging.ERROR):
        desk = Desk(keep(tmp_path, start_fresh_if_unreadable=True))
    assert "begins without what was learnt" in caplog.text
    assert desk.size().refusal is None
    desk.engine.close()
    assert read_state(tmp_path / "state.json") is not None


def test_a_state_that_no_engine_wrote_is_refused() -> None:
    desk = Desk()
    desk.size(recent_trades=[0.01])
    good = desk.engine.snapshot()
    Desk(state=copy.deepcopy(good))

    def broken(*path: str, value: Any = None, drop: bool = False) -> dict[str, Any]:
        state = copy.deepcopy(good)
        inner: Any = state
        for name in path[:-1]:
            inner = inner[name]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return state

    chain = ("memory", "symbols", "BTC-USD", "chain")
    for bad in [
        {},
        broken("memory", drop=True),
        broken("memory", value=[]),
        broken("saved_at_ns", value="now"),
        broken("memory", "account", "realised", value=10**400),
        broken("memory", "account", "day", value=None),
        broken("memory", "books", "momentum\tBTC-USD", value=[1.0, 2.0, 3.0, 4.0]),
        broken(*chain, "posterior", "alpha", value=3.0),
        broken(*chain, "posterior", "alpha", value=float("nan")),
        broken(*chain, "residuals", "residuals", value=[-1.0]),
        broken(*chain, "regime", "regime", value="bull"),
        broken(*chain, "regime", "pending", value=2),
        broken("memory", "symbols", "BTC-USD", "trades", "seen", value=[[1]]),
        broken("memory", "symbols", "BTC-USD", "prices", "prices", value=[-1.0]),
    ]:
        with pytest.raises(DataError, match="is not one that it wrote"):
            Desk(state=bad)


def test_the_breaker_goes_on_too() -> None:
    config = load_config(None, {**CLOUD, "breaker": {"failures": 2, "jitter": 0.0}})

    class Breaking(Scripted):
        def __init__(self, breaker: Any) -> None:
            super().__init__(1.0)
            self.breaker = breaker

        def ask(self, state: Any, request_id: str | None = None) -> Any:
            permit = self.breaker.try_acquire()
            if permit is None:
                raise SourceError("open")
            permit.failure()
            raise SourceError("failed")

    def engine(now: int, state: Any = None) -> Layer3Phase1:
        return Layer3Phase1(config, clock=lambda: now, connect=lambda _, breaker: Breaking(breaker), state=state)

    first = engine(NOON)
    for _ in range(2):
        first.calculate_position(signal_of(), CALM, 100.0)
    assert first.breaker is not None
    assert first.breaker.state == "open"
    kept = json.loads(json.dumps(first.snapshot()))
    soon, late = engine(NOON + 10 * 10**9, kept), engine(NOON + 40 * 10**9, kept)
    assert soon.breaker is not None
    assert late.breaker is not None
    assert soon.breaker.state == "open"
    assert 15.0 < soon.breaker.figures().retry_in <= 20.0
    assert late.breaker.try_acquire() is not None


def test_it_is_saved_while_it_runs(tmp_path: Path) -> None:
    desk = Desk(keep(tmp_path, every_s=0.02))
    desk.size()
    wait_for(lambda: (s := read_state(tmp_path / "state.json")) and "BTC-USD" in s["memory"]["symbols"])
    desk.engine.close()


def test_a_disk_that_refuses_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def save() -> None:
        tried.append(1)
        raise OSError("no space")

    saver = Saver(save, 0.01)
    wait_for(lambda: len(tried) >= 3)
    saver.stop()
    assert "could not be saved" in caplog.text


def test_bars_of_another_length_begin_anew() -> None:
    desk = Desk()
    desk.size()
    other = Desk({**OFF, "market": {"bar_seconds": 60}}, state=desk.engine.snapshot())
    assert other.engine.snapshot()["memory"]["symbols"]["BTC-USD"]["prices"]["bars"] == []
    assert other.size().refusal is None


@pytest.mark.parametrize("price", [1e-15, 1e15])
def test_the_largest_inputs_leave_a_state_that_can_be_saved(price: float) -> None:
    desk = Desk({**OFF, "portfolio_value": 1e15})
    worst = [{"trade_return": -1e6, "trade_id": "1"}, {"pnl_usd": -1e15, "trade_id": "2"}]
    for hour, now in enumerate((price, 1.0 / price, price)):
        desk.now = NOON + hour * 3_600 * 10**9
        more = {"price": now, "current_position_usd": 1e15, "entry_price": 1.0 / price, "recent_trades": worst}
        assert desk.size(**more).refusal in (None, "daily_loss")
        json.dumps(desk.engine.snapshot(), allow_nan=False)
    desk.size_at(NOON + 2 * DAY, price)
    json.dumps(desk.engine.snapshot(), allow_nan=False)


@pytest.mark.parametrize(
    "beyond",
    [{"price": 5e-324}, {"price": 0.0}, {"entry_price": 5e-324}, {"entry_price": -0.01}, {"recent_trades": [-1.7e308]}],
)
def test_what_would_leave_another_one_is_refused(beyond: dict[str, Any]) -> None:
    assert Desk(OFF).size(**beyond).refusal == "bad_input"


def test_a_fault_while_saving_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []
    saver = Saver(lambda: tried.append(1 // len(tried)), 0.001)
    wait_for(lambda: "the last snapshot stays" in caplog.text)
    tried.append(0)
    wait_for(lambda: len(tried) > 1)
    saver.stop()
