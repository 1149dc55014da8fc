from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layer3.breaker import BreakerConfig, CircuitBreaker, Permit
from layer3.errors import ConfigurationError, DataError
from tests.fakes.breaker_model import BreakerModel
from tests.fakes.clock import Clock
from tests.fakes.threads import at_once, beside


def acquire(breaker: CircuitBreaker) -> Permit:
    permit = breaker.try_acquire()
    assert permit is not None
    return permit


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        acquire(breaker).failure()


def opened(clock: Clock, config: BreakerConfig | None = None) -> CircuitBreaker:
    config = config or BreakerConfig()
    breaker = CircuitBreaker(config, clock=clock)
    fail(breaker, config.failures)
    assert breaker.state == "open"
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row_and_lets_nobody_through_for_30_seconds() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock)
    fail(breaker, 4)
    acquire(breaker).success()
    fail(breaker, 4)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    clock.now += 29.999
    assert breaker.try_acquire() is None
    clock.now += 0.001
    assert breaker.try_acquire() is not None
    assert breaker.state == "half_open"
    assert breaker.try_acquire() is None


def test_waits_double_up_to_300_seconds_and_start_again_after_a_success() -> None:
    clock = Clock()
    breaker = opened(clock)
    for wait in (30, 60, 120, 240, 300, 300):
        assert breaker.figures().retry_in == wait
        clock.now += wait - 0.5
        assert breaker.try_acquire() is None
        clock.now += 0.5
        acquire(breaker).failure()
    clock.now += 300
    acquire(breaker).success()
    assert breaker.state == "closed"
    fail(breaker, 5)
    assert breaker.figures().retry_in == 30


def test_a_thousand_failed_probes_overflow_nothing() -> None:
    clock = Clock()
    breaker = opened(clock, BreakerConfig(factor=1e30))
    for _ in range(1_000):
        clock.now += 300
        acquire(breaker).failure()
    assert breaker.figures().wait == 300


def test_jitter_shortens_waits_and_comes_from_the_generator() -> None:
    def waits(seed: int) -> list[float]:
        clock = Clock()
        breaker = CircuitBreaker(BreakerConfig(jitter=0.2), clock=clock, rng=np.random.default_rng(seed))
        fail(breaker, 5)
        found = []
        for _ in range(200):
            found.append(breaker.figures().retry_in)
            clock.now += found[-1]
            acquire(breaker).failure()
        return found

    first = waits(1)
    assert first == waits(1)
    assert first != waits(2)
    assert 24 <= first[0] <= 30
    assert all(240 <= wait <= 300 for wait in first[4:])
    assert max(first[4:]) - min(first[4:]) > 50


def test_a_failure_rate_opens_it_too() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(minimum_calls=20, failure_rate=0.5), clock=clock)
    for _ in range(9):
        acquire(breaker).success()
        acquire(breaker).failure()
    assert breaker.state == "closed"  # half of 18: too few to judge
    acquire(breaker).success()
    acquire(breaker).failure()
    assert breaker.state == "open"


def test_the_rate_forgets_what_is_old_and_what_is_many_calls_ago() -> None:
    clock = Clock()
    config = BreakerConfig(failures=100, minimum_calls=4, failure_rate=0.75, window=60, window_calls=8)
    breaker = CircuitBreaker(config, clock=clock)
    fail(breaker, 3)
    clock.now += 60
    fail(breaker, 3)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    breaker.reset()
    for _ in range(8):
        acquire(breaker).success()
    fail(breaker, 5)
    assert breaker.state == "closed"  # 5 of the last 8
    fail(breaker, 1)
    assert breaker.state == "open"


def test_what_says_nothing_changes_nothing_and_hands_the_probe_back() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock)
    fail(breaker, 4)
    for _ in range(100):
        acquire(breaker).ignore()
    assert breaker.state == "closed"
    fail(breaker, 1)
    clock.now += 30
    for _ in range(100):
        probe = acquire(breaker)
        assert breaker.try_acquire() is None
        probe.ignore()
        assert breaker.state == "half_open"
    acquire(breaker).success()
    assert breaker.state == "closed"


def test_a_permit_counts_once() -> None:
    breaker = CircuitBreaker(BreakerConfig(failures=2), clock=Clock())
    permit = acquire(breaker)
    for _ in range(3):
        permit.failure()
    permit.success()
    assert breaker.state == "closed"
    assert dataclasses.astuple(breaker.figures())[1:3] == (0, 1)


def test_an_answer_to_a_call_from_before_a_transition_does_not_speak_for_after_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock)
    early, late = acquire(breaker), acquire(breaker)
    fail(breaker, 5)
    early.success()
    assert breaker.state == "open"
    clock.now += 30
    probe = acquire(breaker)
    late.failure()
    assert breaker.state == "half_open"
    probe.success()
    assert breaker.state == "closed"


def test_a_probe_whose_holder_died_is_given_up_after_its_lease() -> None:
    clock = Clock()
    breaker = opened(clock, BreakerConfig(lease=5))
    clock.now += 30
    lost = acquire(breaker)
    clock.now += 4.9
    assert breaker.try_acquire() is None
    clock.now += 0.1
    second = acquire(breaker)
    assert breaker.try_acquire() is None
    lost.failure()
    assert breaker.state == "half_open"
    second.success()
    assert breaker.state == "closed"


def test_reset_closes_and_forgets() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    acquire(breaker).failure()
    breaker.reset()
    assert breaker.state == "closed"
    fail(breaker, 4)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.figures().retry_in == 30


def test_figures() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock)
    assert breaker.figures().success_rate is None
    for _ in range(3):
        acquire(breaker).success()
    fail(breaker, 1)
    assert breaker.figures().success_rate == 0.75
    fail(breaker, 4)
    assert breaker.try_acquire() is None
    clock.now += 10
    figures = breaker.figures()
    assert (figures.state, figures.successes, figures.failures, figures.refused) == ("open", 3, 5, 1)
    assert (figures.wait, figures.retry_in) == (30, 20)


# Listeners


def test_listeners_hear_every_transition_in_order_and_outside_the_lock() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock)
    heard: list[tuple[str, str, str]] = []

    def listener(old: str, new: str, reason: str) -> None:
        assert not breaker._lock.locked()
        heard.append((old, new, reason))
        if new == "open" and len(heard) < 4:
            breaker.figures()
            breaker.reset()  # the transition that this makes is told after this one

    breaker.listeners.append(listener)
    fail(breaker, 5)
    assert heard == [("closed", "open", "5 failures in a row"), ("open", "closed", "reset by hand")]
    breaker.listeners.remove(listener)
    breaker.listeners.append(lambda *transition: heard.append(transition))
    heard.clear()
    fail(breaker, 5)
    clock.now += 30
    acquire(breaker).failure()
    clock.now += 60
    acquire(breaker).success()
    assert [(old, new) for old, new, _ in heard] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]


def test_a_listener_that_fails_harms_nobody_and_is_known(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: str) -> None:
        raise RuntimeError("no disk")

    heard: list[str] = []
    breaker = CircuitBreaker(BreakerConfig(), clock=Clock())
    breaker.listeners += [broken, lambda old, new, reason: heard.append(new)]
    with caplog.at_level(logging.ERROR):
        fail(breaker, 5)
    assert heard == ["open"]
    assert breaker.figures().listener_errors == 1
    assert "no disk" in caplog.text


# Configuration and state


@pytest.mark.parametrize(
    "change",
    [
        {"failures": 0},
        {"window": 0.0},
        {"window": float("nan")},
        {"minimum_calls": 0},
        {"window_calls": 19},
        {"failure_rate": 0.0},
        {"failure_rate": 1.1},
        {"first_wait": 0.0},
        {"first_wait": 301.0},
        {"factor": 0.9},
        {"factor": float("inf")},
        {"factor": 10**400},
        {"longest_wait": float("inf")},
        {"jitter": 1.0},
        {"jitter": -0.1},
        {"lease": 0.0},
        {"lease": 1e9},
        {"failures": 2.5},
        {"failures": True},
        {"failures": float("inf")},
        {"window_calls": 100.0},
        {"window_calls": 10**12},
        {"first_wait": "30"},
        {"jitter": None},
    ],
)
def test_configurations_that_are_none(change: dict[str, Any]) -> None:
    name = "longest_wait" if change == {"first_wait": 301.0} else next(iter(change))
    with pytest.raises(ConfigurationError, match=f"^BreakerConfig.{name} is "):
        BreakerConfig(**change)


def restored(breaker: CircuitBreaker, clock: Clock, elapsed: float = 0.0) -> CircuitBreaker:
    fresh = CircuitBreaker(breaker._config, clock=clock, rng=np.random.default_rng(99))
    fresh.restore(json.loads(json.dumps(breaker.snapshot(), allow_nan=False)), elapsed=elapsed)
    return fresh


def test_a_restored_breaker_goes_on_also_by_another_clock() -> None:
    clock, later = Clock(), Clock()
    later.now = 5.0
    rng = np.random.default_rng(3)
    breaker = CircuitBreaker(BreakerConfig(), clock=clock, rng=rng)
    fail(breaker, 5)
    clock.now += 10
    left = breaker.figures().retry_in
    twin = restored(breaker, later, elapsed=7.0)
    assert twin.figures().retry_in == pytest.approx(left - 7)
    later.now += left - 7.001
    assert twin.try_acquire() is None
    later.now += 0.002
    clock.now += left
    acquire(twin).failure()
    acquire(breaker).failure()
    assert twin.figures().wait == breaker.figures().wait < 60  # the same jitter


def test_a_probe_under_way_is_lost_with_its_process() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    acquire(breaker)
    twin = restored(breaker, clock)
    assert twin.state == "half_open"
    acquire(twin)
    assert twin.try_acquire() is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"state": "ajar"},
        {"wait": float("nan")},
        {"wait": -1.0},
        {"retry_in": None},
        {"in_a_row": True},
        {"next_wait": "30"},
        {"calls": None},
        {"calls": [[1.0]]},
        {"calls": [["1", True]]},
        {"calls": [[10**400, True]]},
        {"calls": [[float("nan"), True]]},
        {"wait": 10**400},
        {"calls": [[1.0, 1]]},
        {"rng": {"bit_generator": "MT19937"}},
        {"rng": 7},
    ],
)
def test_snapshots_that_are_none_change_nothing(change: dict[str, Any]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(), clock=clock, rng=np.random.default_rng(1))
    before = breaker.snapshot()
    with pytest.raises(DataError, match=f"breaker snapshot: {next(iter(change))}"):
        breaker.restore(before | {"state": "open"} | change)
    assert breaker.snapshot() == before


def test_a_snapshot_is_an_object() -> None:
    with pytest.raises(DataError, match="got list, expected an object"):
        CircuitBreaker(BreakerConfig()).restore([])  # type: ignore[arg-type]


# Against a plain model

CONFIG = BreakerConfig(
    failures=3,
    window=40.0,
    window_calls=8,
    minimum_calls=4,
    failure_rate=0.6,
    first_wait=30.0,
    factor=2.0,
    longest_wait=100.0,
    jitter=0.0,
    lease=5.0,
)


class BreakerMachine(RuleBasedStateMachine):
    """Every permit is remembered with the era that the model gave it in."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.heard: list[tuple[str, str]] = []
        self.model = BreakerModel(CONFIG)
        self.breaker = self.made()
        self.permits: list[tuple[Permit, int]] = []

    def made(self) -> CircuitBreaker:
        breaker = CircuitBreaker(CONFIG, clock=self.clock)
        breaker.listeners.append(lambda old, new, _: self.heard.append((old, new)))
        return breaker

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.5, 5.0, 25.0, 30.0, 39.0, 70.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def someone_asks(self) -> None:
        era = self.model.ask(self.clock.now)
        permit = self.breaker.try_acquire()
        assert (permit is None) == (era is None)
        if permit is not None and era is not None:
            self.permits.append((permit, era))

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), answer=st.sampled_from(["failure", "failure", "success", "ignore"]), forget=st.booleans())
    def someone_answers(self, data: st.DataObject, answer: str, forget: bool) -> None:
        index = data.draw(st.integers(0, len(self.permits) - 1))
        permit, era = self.permits[index]
        getattr(permit, answer)()
        self.model.answer(self.clock.now, era, {"failure": True, "success": False, "ignore": None}[answer])
        # An answered permit may be answered again, to no effect: no era is -1.
        self.permits[index] = (permit, -1)
        if forget:
            del self.permits[index]

    @rule()
    def someone_resets(self) -> None:
        self.breaker.reset()
        self.model.reset(self.clock.now)

    @rule()
    def the_process_starts_again(self) -> None:
        snapshot = json.loads(json.dumps(self.breaker.snapshot(), allow_nan=False))
        self.breaker = self.made()
        self.breaker.restore(snapshot)
        self.permits = []
        self.model.probe_until = None

    @invariant()
    def it_is_what_the_model_is(self) -> None:
        assert self.breaker.state == self.model.state
        assert self.heard == self.model.transitions
        assert self.breaker.figures().retry_in == self.model.retry_in(self.clock.now)


BreakerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAgainstAModel = BreakerMachine.TestCase


# Threads


def test_of_64_threads_exactly_one_gets_the_probe() -> None:
    clock = Clock()
    breaker = opened(clock, BreakerConfig(longest_wait=30.0))
    rounds, threads = 150, 64
    start, end = threading.Barrier(threads + 1, timeout=120), threading.Barrier(threads + 1, timeout=120)
    won: list[Permit] = []
    opened_for: list[str] = []
    breaker.listeners.append(lambda old, new, reason: opened_for.append(new))

    def work(_: int) -> None:
        for _ in range(rounds):
            start.wait()
            permit = breaker.try_acquire()
            if permit is not None:
                won.append(permit)
            end.wait()

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with beside(work, range(threads)):
            for turn in range(rounds):
                clock.now += 30.0
                start.wait()
                end.wait()
                assert len(won) == 1
                won.pop().failure() if turn % 3 else won.pop().ignore()
    finally:
        sys.setswitchinterval(switch)
    assert set(opened_for) == {"half_open", "open"}
    assert breaker.figures().refused >= rounds * (threads - 1)


def test_threads_that_answer_at_once_leave_a_sound_breaker_and_an_ordered_story() -> None:
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(first_wait=1e-9, longest_wait=1e-9), clock=clock)
    story: list[tuple[str, str]] = []
    breaker.listeners.append(lambda old, new, _: story.append((old, new)))

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for failed in rng.random(400) < 0.7:
            clock.now += 1e-3
            permit = breaker.try_acquire()
            if permit is not None:
                permit.failure() if failed else permit.success()

    at_once(work, range(16))
    assert len(story) > 20
    assert story[0][0] == "closed"
    assert all(before[1] == after[0] for before, after in itertools.pairwise(story))
    assert story[-1][1] == breaker.state
    figures = breaker.figures()
    assert figures.successes + figures.failures + figures.refused == 16 * 400
