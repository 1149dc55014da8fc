"""The token bucket against another way to say the same: a queue that is drained at a steady rate."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from serving import rate
from serving.rate import TokenBuckets
from tests.fakes.clock import Clock

#: Of the clock: exact, so that a model may be compared bit for bit.
START = Fraction(1000)


class Model:
    """The textbook's queue, drained at a steady rate: it may hold ``burst`` requests, what does not fit is refused."""

    def __init__(self, per_second: Fraction, burst: int, now: Fraction) -> None:
        self.gap, self.burst, self.drained_at = 1 / per_second, burst, now

    def take(self, now: Fraction) -> Fraction:
        self.drained_at = max(self.drained_at, now)
        room_at = self.drained_at - (self.burst - 1) * self.gap
        if room_at > now:
            return room_at - now
        self.drained_at += self.gap
        return Fraction(0)


def fractions(low: int, high: int) -> st.SearchStrategy[Fraction]:
    return st.fractions(min_value=low, max_value=high, max_denominator=64)


@given(
    per_second=fractions(0, 500).filter(bool),
    burst=st.integers(1, 20),
    requests=st.lists(st.tuples(fractions(0, 3), st.sampled_from("ab")), max_size=120),
)
def test_a_bucket_admits_what_the_model_admits_and_names_the_same_wait(
    per_second: Fraction, burst: int, requests: list[tuple[Fraction, str]]
) -> None:
    clock = Clock(START)
    buckets = TokenBuckets(per_second, burst, clock)
    models = {caller: Model(per_second, burst, clock.now) for caller in "ab"}
    for pause, caller in requests:
        clock.now += pause
        expected = models[caller].take(clock.now)
        assert buckets.wait(caller) == expected
        assert buckets.take(caller) == expected


@given(per_second=fractions(1, 500), burst=st.integers(1, 20), pauses=st.lists(fractions(0, 1), max_size=200))
def test_in_any_time_no_more_than_the_burst_and_what_was_refilled_is_admitted(
    per_second: Fraction, burst: int, pauses: list[Fraction]
) -> None:
    clock = Clock(START)
    buckets = TokenBuckets(per_second, burst, clock)
    started, admitted = clock.now, 0
    for pause in pauses:
        clock.now += pause
        admitted += buckets.take("a") == 0
        assert admitted <= burst + (clock.now - started) * per_second


@given(per_second=fractions(1, 500), burst=st.integers(1, 20))
def test_who_waits_as_long_as_it_was_told_is_admitted(per_second: Fraction, burst: int) -> None:
    clock = Clock(START)
    buckets = TokenBuckets(per_second, burst, clock)
    assert [buckets.take("a") for _ in range(burst)] == [0] * burst
    wait = buckets.take("a")
    assert wait > 0
    clock.now += wait
    assert buckets.take("a") == 0


def test_the_first_request_is_admitted_at_any_time_of_the_clock() -> None:
    for now in (-5.0, 0.0, 1e9):
        buckets = TokenBuckets(1.0, 1.0, lambda now=now: now)
        assert buckets.wait("a") == 0
        assert buckets.take("a") == 0
        assert buckets.take("a") > 0


def test_no_more_than_so_many_callers_are_remembered_and_the_busy_ones_stay() -> None:
    clock = Clock(START)
    buckets = TokenBuckets(Fraction(1, 1000), 2, clock)
    assert buckets.take("busy") == 0
    for number in range(3 * rate.MAX_CALLERS):
        buckets.take(f"caller {number}")
        if number == 10:
            assert buckets.take("busy") == 0
        if number > 10 and number % 1000 == 0:
            clock.now += 1000
            assert buckets.take("busy") == 0
    assert len(buckets._buckets) == rate.MAX_CALLERS
    assert "busy" in buckets._buckets
    assert "caller 0" not in buckets._buckets


def test_a_full_bucket_holds_its_burst_to_the_token_in_floating_point() -> None:
    for now in (0.1, 12_345.678, 1e7 / 3):
        buckets = TokenBuckets(200.0, 400.0, lambda now=now: now)
        assert [buckets.take("a") == 0 for _ in range(500)] == [True] * 400 + [False] * 100
