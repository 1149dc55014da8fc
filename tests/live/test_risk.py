from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.errors import ConfigurationError
from layer3.live.risk import REFUSALS, DayAccount, KillSwitch, age_problem
from tests.live.desk import DAY, NOON, OFF, Desk, signal_of


def test_ages() -> None:
    assert age_problem("signal", NOON, NOON, 5.0, 1.0) is None
    assert age_problem("signal", NOON - 5 * 10**9, NOON, 5.0, 1.0) is None
    for time_ns, word in ((NOON - 5 * 10**9 - 1, "stale_price"), (NOON + 10**9 + 1, "future_price")):
        problem = age_problem("price", time_ns, NOON, 5.0, 1.0)
        assert problem is not None
        assert problem[0] == word in REFUSALS


def test_the_day_of_trades_and_positions() -> None:
    account = DayAccount()
    account.begin(NOON, agreed=True)
    account.add_trade(-100.0, NOON)
    account.add_trade(-1_000.0, NOON - DAY)  # yesterday's
    account.add_trade(-10.0, None)
    account.mark("a", -50.0)
    account.mark("b", 20.0)
    assert account.result == -140.0
    assert not account.check(140.1)
    assert account.check(140.0)
    account.mark("a", 5_000.0)
    assert account.check(140.0)  # until the day ends
    account.begin(NOON + DAY, agreed=True)
    assert (account.result, account.locked) == (0.0, False)
    account.mark("a", 4_900.0)
    assert account.result == -100.0
    account.begin(NOON, agreed=True)  # a clock that is set back
    assert account.result == -100.0
    account.reset()
    assert account.result == 0.0
    account.mark("a", 4_899.0)
    assert account.result == -1.0


events = st.one_of(
    st.tuples(st.just("trade"), st.floats(-1e3, 1e3)),
    st.tuples(st.just("mark"), st.floats(-1e3, 1e3)),
    st.tuples(st.just("day"), st.floats(0, 1)),
    st.tuples(st.just("reset"), st.floats(0, 1)),
    st.tuples(st.just("leap"), st.floats(0, 1)),
)


@given(st.lists(events, max_size=30), st.data())
def test_the_account_survives_a_restart_anywhere(stream: list[tuple[str, float]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stream)))
    accounts = [DayAccount(), DayAccount()]
    day = 0
    for i, (kind, value) in enumerate(stream):
        if i == cut:
            accounts[1] = DayAccount.restored(json.loads(json.dumps(accounts[1].to_json())))
        day += kind in ("day", "leap")
        for account in accounts:
            account.begin(NOON + day * DAY, agreed=kind != "leap")
            if kind == "trade":
                account.add_trade(value, None)
            elif kind == "mark":
                account.mark("a", value)
            elif kind == "reset":
                account.reset()
        assert accounts[0].result == accounts[1].result
        assert accounts[0].check(500.0) == accounts[1].check(500.0)


def test_a_clock_that_leaps_for_a_moment_neither_unlocks_nor_forgets() -> None:
    desk = Desk(OFF)
    desk.size(recent_trades=[{"pnl_usd": -2_500.0, "closed_at_ns": NOON}])
    for away in (DAY, 300 * DAY, -300 * DAY):
        desk.now = NOON + away
        assert desk.size(signal_of(timestamp_ns=NOON)).refusal in ("stale_signal", "future_signal")
        desk.now = NOON
        assert desk.size().refusal == "daily_loss"
    desk.engine.reset_daily_loss()
    lost = [{"pnl_usd": -2_500.0, "closed_at_ns": NOON, "trade_id": "2"}]
    assert desk.size(recent_trades=lost).refusal == "daily_loss"
    assert desk.size_at(NOON + DAY).refusal is None


def test_what_is_lost_on_a_day_before_its_first_fresh_signal_counts() -> None:
    desk = Desk(OFF)
    desk.size()
    desk.now = NOON + DAY
    old = signal_of(timestamp_ns=NOON)
    assert desk.size(old, recent_trades=[{"pnl_usd": -2_500.0, "closed_at_ns": NOON + DAY}]).refusal == "stale_signal"
    assert desk.size().refusal == "daily_loss"
    desk.now = NOON + 2 * DAY
    assert desk.size(old, price_timestamp_ns=desk.now).refusal == "stale_signal"  # the price's clock agrees: it turns
    assert desk.size().refusal is None


def test_a_first_day_that_was_wrong_is_none() -> None:
    desk = Desk(OFF)
    old = [{"pnl_usd": -2_500.0, "closed_at_ns": NOON - DAY}]
    desk.now = NOON + 300 * DAY
    desk.size(signal_of(timestamp_ns=NOON), price=50.0, recent_trades=old)
    desk.now = NOON
    first = desk.size()
    assert first.refusal is None
    assert first.state is not None
    assert first.state[11] == 0.0  # nor is the price of that moment one of a later bar
    assert desk.size(recent_trades=[{"pnl_usd": -2_500.0}]).refusal == "daily_loss"
    assert desk.size_at(NOON + DAY).refusal is None


def test_a_reset_brings_the_account_to_the_day_of_the_clock() -> None:
    desk = Desk(OFF)
    assert desk.size_at(NOON + 300 * DAY).refusal is None  # both clocks were wrong
    desk.now = NOON
    desk.size(recent_trades=[{"pnl_usd": -2_500.0}])
    desk.engine.reset_daily_loss()
    assert (
        desk.size(recent_trades=[{"pnl_usd": -2_500.0, "closed_at_ns": NOON, "trade_id": "2"}]).refusal == "daily_loss"
    )
    assert desk.size_at(NOON + DAY).refusal is None


def test_the_kill_switch_by_signal() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        desk = Desk({**OFF, "risk": {"kill_signal": True}})
        assert desk.size().refusal is None
        os.kill(os.getpid(), signal.SIGUSR1)
        got = desk.size()
        assert (got.refusal, got.reason) == ("kill_switch", "not sized: the kill switch is on: signal SIGUSR1")
        desk.engine.kill_switch.release()
        assert desk.size().refusal is None
        assert desk.engine.kill_switch.engaged is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_signal_is_opt_in() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    Desk()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_only_the_main_thread_may_listen() -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            KillSwitch().listen()
        except ConfigurationError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_a_kill_file_that_cannot_be_looked_for_stops(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert KillSwitch(tmp_path / "none").why() is None
    why = KillSwitch(tmp_path / "file" / "below").why()
    assert why is not None
    assert "cannot be looked for" in why


def test_a_dangling_link_is_a_kill_file(tmp_path: Path) -> None:
    (tmp_path / "stop").symlink_to(tmp_path / "nowhere")
    assert KillSwitch(tmp_path / "stop").why() is not None


@pytest.mark.parametrize("bad", [{}, {"day": 1, "locked": 0, "realised": 0, "forgiven": 0, "marks": {"a": [1]}}])
def test_an_account_that_cannot_be_restored(bad: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        DayAccount.restored(bad)
