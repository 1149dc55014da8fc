from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from layer3.errors import SourceError
from layer3.net import refreshed
from layer3.net.refreshed import Refreshed
from tests.fakes.timing import best_of_three, quickest


@contextmanager
def keeping(fetch: Callable[[], tuple[str, float]], **options: float) -> Iterator[Refreshed[str]]:
    kept = Refreshed("the thing", fetch, **options)
    try:
        yield kept
    finally:
        kept.close()
        kept._thread.join(5)
        assert not kept._thread.is_alive()


def wait_for(kept: Refreshed[str], value: str) -> None:
    deadline = time.monotonic() + 5
    while kept.peek() != value:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_nobody_waits_for_a_slow_fetch() -> None:
    come = threading.Event()
    with keeping(lambda: (str(come.wait(5)), math.inf)) as kept:
        assert quickest(kept.peek) < 0.05
        assert kept.peek() is None
        come.set()
        wait_for(kept, "True")


@best_of_three
def test_a_value_is_replaced_ahead_of_its_expiry_and_there_always_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshed, "_RETRY", (0.01, 0.02))
    fetched: list[float] = []

    def fetch() -> tuple[str, float]:
        fetched.append(time.time())
        return str(len(fetched)), time.time() + 0.4

    with keeping(fetch, ahead=0.25) as kept:
        wait_for(kept, "1")
        while len(fetched) < 5:
            assert kept.peek() is not None
            time.sleep(0.005)
    gaps = [after - before for before, after in itertools.pairwise(fetched)]
    assert all(0.15 <= gap < 0.4 for gap in gaps), gaps  # half of a life that is shorter than twice `ahead`


def test_a_failed_fetch_keeps_the_old_value_until_it_expires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refreshed, "_RETRY", (0.01, 0.02))
    works = True

    def fetch() -> tuple[str, float]:
        if not works:
            raise RuntimeError("nobody there")
        return "good", time.time() + 0.5

    with caplog.at_level(logging.CRITICAL), keeping(fetch) as kept:
        wait_for(kept, "good")
        works = False
        begun = time.monotonic()
        with pytest.raises(SourceError, match="the thing: RuntimeError: nobody there"):
            wait_for(kept, "another")
        assert time.monotonic() - begun > 0.2
        works = True
        deadline = time.monotonic() + 5
        while True:
            try:
                wait_for(kept, "good")
                break
            except SourceError:
                assert time.monotonic() < deadline
                time.sleep(0.005)


def test_it_is_fetched_again_after_the_period_and_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshed, "_RETRY", (0.05, 0.05))
    count = 0

    def fetch() -> tuple[str, float]:
        nonlocal count
        count += 1
        return str(count), math.inf

    with keeping(fetch, period=0.05) as kept:
        wait_for(kept, "3")
    count = 0
    with keeping(fetch) as kept:
        wait_for(kept, "1")
        for _ in range(50):
            kept.refresh()  # too soon
        time.sleep(0.1)
        assert kept.peek() == "1"
        kept.refresh()
        wait_for(kept, "2")


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
        kept._value = None
        gone = threading.Thread(target=lambda: None)
        gone.start()
        gone.join()
        first, kept._thread = kept._thread, gone
        wait_for(kept, "a")
        kept._closed = True
        kept._wake.set()
        first.join(5)
