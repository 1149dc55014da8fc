"""Moments as text: exact beyond what numpy's nanoseconds hold, and nothing that is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.moments import nanoseconds

OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.integers(-(2**53), 2**53), OFFSETS)
def test_it_is_numpys_where_numpy_holds_it(microseconds: int, offset: timezone) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    there = np.datetime64(moment.replace(tzinfo=None), "ns").astype(np.int64)
    assert nanoseconds(moment.astimezone(offset).isoformat()) == there


def test_what_has_no_offset_is_utc_and_far_years_do_not_wrap() -> None:
    assert nanoseconds("1970-01-01T00:00:01") == nanoseconds("1970-01-01T01:00:01+01:00") == 10**9
    assert nanoseconds("9999-01-01") > nanoseconds("2300-01-01") > np.iinfo(np.int64).max


@pytest.mark.parametrize("text", ["", "NaT", "now", "2022", "long ago", "2022-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        nanoseconds(text)
