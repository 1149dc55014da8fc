"""A circuit breaker: leave a service that fails alone, and let one single call find out when it is back.

States and transitions (M. Nygard, *Release It!*, 2nd ed. 2018, chapter 5):

    closed ── `failures` in a row, or too high a rate of them ──> open ── its wait is over ──> half_open
      ^                                                            ^                              │  │
      └──────────────── the probe succeeds ────────────────────────┼──────────────────────────────┘  │
                                                                   └──────── the probe fails ────────┘

Whoever wants to call asks for a :class:`Permit` and answers it. The breaker's lock is held for the
bookkeeping only, never while a call runs or a listener is told.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from layer3 import settings
from layer3.errors import DataError

__all__ = ["BreakerConfig", "BreakerFigures", "CircuitBreaker", "Listener", "Permit", "State"]

State = Literal["closed", "half_open", "open"]
#: Called with the old state, the new one and the reason in words.
Listener = Callable[[State, State, str], None]
_STATES: Final = ("closed", "half_open", "open")
_VERSION: Final = 1
#: Longest duration that a configuration may name, seconds, and most calls.
_LONGEST: Final = 86_400.0
_MOST_CALLS: Final = 1_000_000_000
#: Beyond any duration, in seconds, and still a number to add to.
_FOREVER: Final = 1e12
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When to open and how long to stay open; durations in seconds, at most a day.

    Opens after ``failures`` in a row, or when at least ``failure_rate`` of the calls failed that were
    answered within the last ``window`` seconds (the latest ``window_calls`` of them), once there are
    ``minimum_calls``. Waits ``first_wait``, after each failed probe ``factor`` times as long, never
    longer than ``longest_wait``; a generator shortens each wait by up to ``jitter`` of it, so that
    many callers do not probe at once. A probe that nobody answers within ``lease`` is given up.
    """

    failures: int = 5
    window: float = 60.0
    window_calls: int = 100
    minimum_calls: int = 20
    failure_rate: float = 0.5
    first_wait: float = 30.0
    factor: float = 2.0
    longest_wait: float = 300.0
    jitter: float = 0.1
    lease: float = 5.0

    def __post_init__(self) -> None:
        settings.within(self, "failures", 1, _MOST_CALLS, whole=True)
        settings.within(self, "window", 0.0, _LONGEST, open_low=True)
        settings.within(self, "minimum_calls", 1, _MOST_CALLS, whole=True)
        settings.within(self, "window_calls", self.minimum_calls, _MOST_CALLS, whole=True)
        settings.within(self, "failure_rate", 0.0, 1.0, open_low=True)
        settings.within(self, "first_wait", 0.0, _LONGEST, open_low=True)
        settings.within(self, "factor", 1.0, sys.float_info.max)
        settings.within(self, "longest_wait", self.first_wait, _LONGEST)
        settings.within(self, "jitter", 0.0, 1.0, open_high=True)
        settings.within(self, "lease", 0.0, _LONGEST, open_low=True)


@dataclass(frozen=True, slots=True)
class BreakerFigures:
    """What a breaker counts: totals since it was made, ``wait`` and ``retry_in`` in seconds.

    ``wait`` is the wait that runs, or the one that the next opening will have at most; ``success_rate``
    is that of the window, ``None`` before any answer in it.
    """

    state: State
    successes: int
    failures: int
    refused: int
    wait: float
    retry_in: float
    success_rate: float | None
    listener_errors: int


class Permit:
    """Leave to make one call. Answer it once; what comes after the first answer changes nothing."""

    __slots__ = ("_answered", "_breaker", "_generation")

    def __init__(self, breaker: CircuitBreaker, generation: int) -> None:
        self._breaker = breaker
        self._generation = generation
        self._answered = False

    def success(self) -> None:
        """The service did its work."""
        self._breaker._settle(self, failed=False)

    def failure(self) -> None:
        """The service did not answer, or answered something that cannot be used."""
        self._breaker._settle(self, failed=True)

    def ignore(self) -> None:
        """The call says nothing about the service; a probe is handed back for the next caller."""
        self._breaker._settle(self, failed=None)


class CircuitBreaker:
    """Thread-safe; ``clock`` gives seconds and ``rng`` the jitter (without one, waits are exact).

    ``listeners`` is a list to append to. They are told of each transition in order, outside the lock,
    by a thread that caused one; one that raises harms no call: it is logged and counted.
    """

    def __init__(
        self,
        config: BreakerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.listeners: list[Listener] = []
        self._config = config
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._state: State = "closed"
        # Answers count only for the state in which their permit was given.
        self._generation = 0
        self._calls: deque[tuple[float, bool]] = deque(maxlen=config.window_calls)
        self._in_a_row = 0
        self._next_wait = config.first_wait
        self._wait = config.first_wait
        self._opened = 0.0
        self._probe_until = -math.inf
        self._successes = self._failures = self._refused = self._listener_errors = 0
        self._untold: deque[tuple[State, State, str]] = deque()
        self._telling = False

    @property
    def state(self) -> State:
        """``open`` lasts until the first caller after the wait, who makes it ``half_open``."""
        return self._state

    def try_acquire(self) -> Permit | None:
        """A permit that must be answered, or ``None``: do not call now.

        Closed, everyone gets one. When an open breaker's wait is over, exactly one caller does: the
        probe. The next goes out only after the probe was handed back, or was not answered in its lease.
        """
        now = self._clock()
        with self._lock:
            if self._state == "closed":
                return Permit(self, self._generation)
            waiting = now < self._opened + self._wait if self._state == "open" else now < self._probe_until
            if waiting:
                self._refused += 1
                return None
            if self._state == "open":
                self._move("half_open", f"{self._wait:.1f} s are over: one call may try")
            # A probe that was given up must not speak for the one that follows it.
            self._generation += 1
            self._probe_until = now + self._config.lease
            permit = Permit(self, self._generation)
        self._tell()
        return permit

    def reset(self) -> None:
        """Close now and forget every failure, by hand; calls under way no longer count."""
        with self._lock:
            self._close("reset by hand")
        self._tell()

    def figures(self) -> BreakerFigures:
        """Counts and rates now."""
        now = self._clock()
        with self._lock:
            if self._state == "closed":
                self._forget(now)
            calls = len(self._calls)
            return BreakerFigures(
                state=self._state,
                successes=self._successes,
                failures=self._failures,
                refused=self._refused,
                wait=self._next_wait if self._state == "closed" else self._wait,
                retry_in=self._retry_in(now),
                success_rate=1.0 - sum(failed for _, failed in self._calls) / calls if calls else None,
                listener_errors=self._listener_errors,
            )

    def snapshot(self) -> dict[str, Any]:
        """All that decides what comes next, as JSON can hold it; times are seconds ago or to go."""
        now = self._clock()
        with self._lock:
            return {
                "version": _VERSION,
                "state": self._state,
                "in_a_row": self._in_a_row,
                "wait": self._wait,
                "next_wait": self._next_wait,
                "retry_in": self._retry_in(now),
                "calls": [[now - at, failed] for at, failed in self._calls],
                "rng": None if self._rng is None else self._rng.bit_generator.state,
            }

    def restore(self, snapshot: Mapping[str, Any], *, elapsed: float = 0.0) -> None:
        """Go on where :meth:`snapshot` was taken, ``elapsed`` seconds ago; no listener is told.

        Whoever held a probe then is gone, so that the next caller gets one. Totals start at 0.

        Raises
        ------
        DataError : the snapshot is not one of this version; nothing was changed
        """
        now = self._clock() - elapsed
        state, numbers, calls = _checked(snapshot)
        with self._lock:
            if self._rng is not None and snapshot["rng"] is not None:
                try:
                    self._rng.bit_generator.state = snapshot["rng"]
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise DataError(f"breaker snapshot: rng is not a state of this generator: {error}") from error
            self._generation += 1
            self._state = state
            self._in_a_row = int(numbers["in_a_row"])
            self._wait = numbers["wait"]
            self._next_wait = numbers["next_wait"]
            self._opened = now + numbers["retry_in"] - self._wait
            self._probe_until = -math.inf
            self._calls = deque(((now - age, failed) for age, failed in calls), maxlen=self._config.window_calls)

    def _settle(self, permit: Permit, *, failed: bool | None) -> None:
        now = self._clock()
        with self._lock:
            if permit._answered:
                return
            permit._answered = True
            self._failures += failed is True
            self._successes += failed is False
            if permit._generation != self._generation:
                return
            if self._state == "closed":
                if failed is not None:
                    self._count(now, failed)
            elif failed is None:
                self._probe_until = -math.inf
            elif failed:
                self._open(now, "the probe failed")
            else:
                self._close("the probe succeeded")
        self._tell()

    def _count(self, now: float, failed: bool) -> None:
        self._calls.append((now, failed))
        if not failed:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._forget(now)
        failures, calls = sum(one for _, one in self._calls), len(self._calls)
        if self._in_a_row >= self._config.failures:
            self._open(now, f"{self._in_a_row} failures in a row")
        elif calls >= self._config.minimum_calls and failures >= self._config.failure_rate * calls:
            self._open(now, f"{failures} of the last {calls} calls failed")

    def _forget(self, now: float) -> None:
        while self._calls and self._calls[0][0] <= now - self._config.window:
            self._calls.popleft()

    def _open(self, now: float, reason: str) -> None:
        shortened = self._config.jitter * self._rng.random() if self._rng is not None else 0.0
        self._wait = self._next_wait * (1.0 - shortened)
        self._next_wait = min(self._next_wait * self._config.factor, self._config.longest_wait)
        self._opened = now
        self._move("open", reason)

    def _close(self, reason: str) -> None:
        self._calls.clear()
        self._in_a_row = 0
        self._next_wait = self._wait = self._config.first_wait
        self._move("closed", reason)

    def _move(self, state: State, reason: str) -> None:
        if state != self._state:
            self._untold.append((self._state, state, reason))
        self._state = state
        self._generation += 1

    def _retry_in(self, now: float) -> float:
        return max(0.0, self._opened + self._wait - now) if self._state == "open" else 0.0

    def _tell(self) -> None:
        # One thread at a time tells, also for others, so that listeners see the transitions in order
        # and may themselves call the breaker.
        while self._untold:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                transition = self._untold.popleft()
            try:
                for listener in tuple(self.listeners):
                    self._call(listener, transition)
            finally:
                with self._lock:
                    self._telling = False

    def _call(self, listener: Listener, transition: tuple[State, State, str]) -> None:
        try:
            listener(*transition)
        except Exception:  # a stranger's code must not turn a call that succeeded into one that failed
            logger.exception("a listener failed on the transition %s", transition)
            with self._lock:
                self._listener_errors += 1


def _checked(snapshot: Mapping[str, Any]) -> tuple[State, dict[str, float], list[tuple[float, bool]]]:
    if not isinstance(snapshot, Mapping):
        raise DataError(f"breaker snapshot: got {type(snapshot).__name__}, expected an object")
    if snapshot.get("version") != _VERSION:
        raise DataError(f"breaker snapshot: version is {snapshot.get('version')!r}, expected {_VERSION}")
    state = snapshot.get("state")
    if state not in _STATES:
        raise DataError(f"breaker snapshot: state is {state!r}, expected one of {', '.join(_STATES)}")
    numbers: dict[str, float] = {}
    for name in ("in_a_row", "wait", "next_wait", "retry_in"):
        value = snapshot.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < _FOREVER:
            raise DataError(f"breaker snapshot: {name} is {value!r}, expected a finite number, at least 0")
        numbers[name] = value
    calls = snapshot.get("calls")
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise DataError("breaker snapshot: calls is no list of pairs of an age in seconds and whether the call failed")
    if "rng" not in snapshot:
        raise DataError("breaker snapshot: rng is missing")
    return state, numbers, [(float(age), failed) for age, failed in calls]


def _is_call(value: object) -> bool:
    # An age below 0 is one of a clock that was set back.
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], int | float)
        and -_FOREVER < value[0] < _FOREVER
        and isinstance(value[1], bool)
    )
