from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from layer3.errors import SourceError
from layer3.net import refreshed
from layer3.net.refreshed import Refreshed
from tests.fakes import servers
from tests.fakes.timing import quickest


class Clock:
    """The machine's clocks, in seconds, for the module under test: so many waits are over at once and turn them on."""

    def __init__(self) -> None:
        self.now, self.turns = 1_000.0, 0

    def time(self) -> float:
        return self.now

    monotonic = time

    def event(self) -> threading.Event:
        clock = self

        class Turning(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                if not clock.turns:
                    return super().wait(60)
                clock.turns -= 1
                clock.now += timeout or 0.0
                return False

        return Turning()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    known = {"Lock": threading.Lock, "Thread": threading.Thread, "TIMEOUT_MAX": threading.TIMEOUT_MAX}
    monkeypatch.setattr(refreshed, "time", clock)
    monkeypatch.setattr(refreshed, "threading", SimpleNamespace(Event=clock.event, **known))
    return clock


@contextmanager
def keeping(fetch: Callable[[], tuple[str, float]], **options: float) -> Iterator[Refreshed[str]]:
    kept = Refreshed("the thing", fetch, **options)
    try:
        yield kept
    finally:
        kept.close()
        kept._thread.join(60)
        assert not kept._thread.is_alive()


def wait_for(kept: Refreshed[str], value: str) -> None:
    servers.wait_for(lambda: kept.peek() == value)


def test_nobody_waits_for_a_slow_fetch() -> None:
    come = threading.Event()
    with keeping(lambda: (str(come.wait(60)), math.inf)) as kept:
        assert quickest(kept.peek, 0.05) < 0.05
        assert kept.peek() is None
        come.set()
        wait_for(kept, "True")


def test_a_value_is_replaced_ahead_of_its_expiry_and_there_always_is_one(clock: Clock) -> None:
    begin = threading.Event()
    fetched: list[tuple[float, str | None]] = []

    def fetch() -> tuple[str, float]:
        begin.wait(60)
        fetched.append((clock.now, kept.peek()))
        return str(len(fetched)), clock.now + 400.0

    clock.turns = 4
    with keeping(fetch, ahead=250.0) as kept:
        begin.set()
        wait_for(kept, "5")
    # At half of a life that is shorter than twice `ahead`.
    assert fetched == [(1_000.0, None), (1_200.0, "1"), (1_400.0, "2"), (1_600.0, "3"), (1_800.0, "4")]


def test_a_failed_fetch_keeps_the_old_value_until_it_expires(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    begin = threading.Event()
    told: list[tuple[float, str | None]] = []

    def held() -> str | None:
        try:
            return kept.peek()
        except SourceError as error:
            return str(error)

    def fetch() -> tuple[str, float]:
        begin.wait(60)
        told.append((clock.now, held()))
        if 1 < len(told) < 15:
            raise RuntimeError("nobody there")
        return "good", clock.now + 400.0

    clock.turns = 14
    with caplog.at_level(logging.CRITICAL), keeping(fetch) as kept:
        begin.set()
        servers.wait_for(lambda: len(told) == 15 and not clock.turns)
        wait_for(kept, "good")
    (_, nothing), *afterwards = told
    assert nothing is None
    assert {value for now, value in afterwards if now < 1_400.0} == {"good"}
    late = {value for now, value in afterwards if now >= 1_400.0}
    assert late == {"the thing: RuntimeError: nobody there"}
    pauses = [after - before for (before, _), (after, _) in itertools.pairwise(afterwards)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 8]


def test_it_is_fetched_again_after_the_period_and_on_demand(clock: Clock) -> None:
    moments: list[float] = []

    def fetch() -> tuple[str, float]:
        moments.append(clock.now)
        return str(len(moments)), math.inf

    clock.turns = 2
    with keeping(fetch, period=50.0) as kept:
        wait_for(kept, "3")
    assert moments == [1_000.0, 1_050.0, 1_100.0]
    moments.clear()
    with keeping(fetch) as kept:
        wait_for(kept, "1")
        for _ in range(50):
            kept.refresh()  # too soon
        assert not kept._wake.is_set()
        clock.now += 1.0
        kept.refresh()
        wait_for(kept, "2")
    assert moments == [1_100.0, 1_101.0]


@pytest.mark.parametrize("expiry", [0.0, float("nan")])
def test_what_has_expired_already_is_none(expiry: float, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.CRITICAL),
        keeping(lambda: ("old", expiry)) as kept,
        pytest.raises(SourceError, match="expired at"),
    ):
        wait_for(kept, "old")


def test_a_thread_that_a_fork_left_behind_is_started_again() -> None:
    with keeping(lambda: ("a", math.inf)) as kept:
        wait_for(kept, "a")
        gone = threading.Thread(target=lambda: None)
        gone.start()
        gone.join()
        first, kept._thread = kept._thread, gone
        # A value that never expires is kept up to date there, too.
        assert kept.peek() == "a"
        assert kept._thread.is_alive()
        kept._closed = True
        kept._wake.set()
        first.join(60)
