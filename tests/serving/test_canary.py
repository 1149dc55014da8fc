"""When a canary is taken back: errors and latency against the champion's, as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.canary import Comparison, Limits, Tally, objection, percentile

LIMITS = Limits()


def compared(candidate: Tally, champion: Tally | None = None) -> str | None:
    return objection(Comparison("our questions", candidate, champion), LIMITS)


@pytest.mark.parametrize(
    ("errors", "requests", "champions", "refused"),
    [
        (0, 0, None, False),
        (0, 1000, None, False),
        (1, 2, None, False),  # a single error says nothing
        (2, 2, None, True),
        (2, 199, None, True),
        (2, 200, None, False),  # exactly one in a hundred
        (10, 1000, (0, 1000), False),
        (11, 1000, (0, 1000), True),
        (60, 1000, (50, 1000), False),  # the champion fails as well
        (61, 1000, (50, 1000), True),
        (1000, 1000, (1000, 1000), False),
        (1000, 1000, (0, 0), True),
    ],
)
def test_errors(errors: int, requests: int, champions: tuple[int, int] | None, refused: bool) -> None:
    champion = Tally(champions[1], champions[0], None) if champions else None
    said = compared(Tally(requests, errors, None), champion)
    assert (said is not None) == refused
    if said is not None:
        assert f"candidate {errors} of {requests} failed" in said
        assert "of the candidate's requests failed, at most" in said


@pytest.mark.parametrize(
    ("milliseconds", "champions", "refused"),
    [
        (40, 5, False),
        (55, 5, False),  # 50 ms more
        (56, 5, True),
        (300, 200, False),  # half as much again
        (301, 200, True),
        (150, None, False),  # alone: what layer 3 waits
        (151, None, True),
    ],
)
def test_latency(milliseconds: int, champions: int | None, refused: bool) -> None:
    champion = Tally(100, 0, champions / 1e3) if champions else None
    said = compared(Tally(100, 0, milliseconds / 1e3), champion)
    assert (said is not None) == refused
    if said is not None:
        assert f"99th percentile is {milliseconds} ms" in said


def test_a_percentile_of_too_few_says_nothing() -> None:
    assert compared(Tally(99, 0, 9.0), Tally(1000, 0, 0.01)) is None
    assert compared(Tally(1000, 0, 9.0), Tally(99, 0, 0.01)) is None
    assert compared(Tally(1000, 0, None), Tally(1000, 0, 0.01)) is None


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.0, 0.15))
def test_who_does_no_worse_is_never_taken_back(requests: int, errors: int, seconds: float) -> None:
    tally = Tally(requests, min(errors, requests), seconds)
    assert compared(tally, tally) is None


def test_a_comparison_reads_as_a_sentence() -> None:
    found = Comparison("our questions", Tally(300, 1, 0.0123), Tally(299, 0, None))
    assert str(found) == "our questions: candidate 1 of 300 failed, p99 12 ms, champion 0 of 299 failed"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([3.0], 3.0), ([float(i) for i in range(1, 101)], 99.0), ([float(i) for i in range(1, 201)], 198.0)],
)
def test_the_percentile_is_a_value_that_was_seen(values: list[float], expected: float | None) -> None:
    assert percentile(values[::-1], 99) == expected
