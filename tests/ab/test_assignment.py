"""Assignment: the same for a unit for ever, as often as the share says, and unrelated between experiments."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layer3.ab.assignment import DAY_NS, Design, bucket, unit_of
from layer3.errors import ConfigurationError

UNITS = [f"unit {number}" for number in range(20_000)]


def test_a_bucket_is_what_another_program_computes_from_the_same_names() -> None:
    key = hashlib.sha256(b"policy-against-kelly").digest()
    number = int(hashlib.blake2b(b"BTC", key=key, digest_size=8).hexdigest(), 16)
    assert bucket("policy-against-kelly", "BTC") == pytest.approx(number / 2**64, abs=2.0**-53)


def test_buckets_are_uniform_and_those_of_two_experiments_have_nothing_to_do_with_each_other() -> None:
    first, second = (np.array([bucket(name, unit) for unit in UNITS]) for name in ("one", "two"))
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.0 / np.sqrt(len(UNITS))
    assert first.min() >= 0.0
    assert first.max() < 1.0


@given(name=st.text(min_size=1, max_size=20), unit=st.text(max_size=60))
def test_any_text_has_a_bucket(name: str, unit: str) -> None:
    assert 0.0 <= bucket(name, unit) < 1.0


@pytest.mark.parametrize(
    ("days", "share"), [(-1.0, 0.05), (0.0, 0.05), (2.999, 0.05), (3.0, 0.2), (6.9, 0.2), (7.0, 0.5), (900.0, 0.5)]
)
def test_the_share_grows_by_the_ramp(days: float, share: float) -> None:
    design = Design("x", ramp=((0.0, 0.05), (3.0, 0.2), (7.0, 0.5)))
    assert design.share_at(DAY_NS, DAY_NS + round(days * DAY_NS)) == share


def test_units_of_each_kind() -> None:
    signal = {"strategy_id": "m|1", "symbol": "BTC", "timestamp_ns": 3 * DAY_NS + 5}
    later = {**signal, "timestamp_ns": 4 * DAY_NS - 1}
    assert unit_of("signal", **signal) != unit_of("signal", **later)  # type: ignore[arg-type]
    assert unit_of("symbol_day", **signal) == unit_of("symbol_day", **later) == '["BTC", "1970-01-04"]'  # type: ignore[arg-type]
    assert unit_of("symbol_day", **signal) != unit_of("symbol_day", **{**later, "timestamp_ns": 4 * DAY_NS})  # type: ignore[arg-type]
    assert unit_of("strategy", **signal) == '["m|1"]'  # type: ignore[arg-type]
    # A separator within a name makes no unit of another.
    assert unit_of("signal", strategy_id="a", symbol="b,c", timestamp_ns=1) != unit_of(
        "signal", strategy_id="a,b", symbol="c", timestamp_ns=1
    )


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 50.0), st.floats(0.0, 1.0)), max_size=5),
    first=st.floats(0.0, 1.0),
    level=st.floats(0.51, 0.999),
    unit=st.sampled_from(["signal", "symbol_day", "strategy"]),
)
def test_a_design_comes_back_from_its_text(
    steps: list[tuple[float, float]], first: float, level: float, unit: str
) -> None:
    days = np.cumsum([0.0] + [day for day, _ in steps]).tolist()
    shares = sorted([first, *(share for _, share in steps)])
    design = Design("ä b", unit=unit, ramp=tuple(zip(days, shares, strict=True)), level=level)  # type: ignore[arg-type]
    assert Design.from_text(design.as_text()) == design


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", " ", "name"),
        ("unit", "day", "signal or symbol_day or strategy"),
        ("ramp", (), "pairs"),
        ("ramp", ((1.0, 0.5),), "begin on day 0"),
        ("ramp", ((0.0, 0.5), (1.0, 0.2)), "never fall"),
        ("ramp", ((0.0, 0.5), (0.0, 0.6)), "later and later"),
        ("ramp", ((0.0, 1.5),), r"share in \[0, 1\]"),
        ("ramp", ((0.0, float("nan")),), r"share in \[0, 1\]"),
        ("ramp", (0.0, 0.5), "pair of numbers"),
        ("level", 1.0, "level"),
        ("planned_days", 0.0, "planned_days"),
        ("least_units", 1, "least_units"),
        ("smallest_effect", float("inf"), "smallest_effect"),
        ("max_drawdown", 20.0, "max_drawdown"),
        ("daily_loss", 0.0, "daily_loss"),
    ],
)
def test_a_design_that_cannot_be_is_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Design(**{"name": "x", field: value})  # type: ignore[arg-type]
