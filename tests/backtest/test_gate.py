"""The gate: every criterion at its limit, all of them asked, and nothing unknown ever passes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from layer3.backtest.gate import Limits, judge
from layer3.backtest.record import KELLY_ONLY, POLICY, Evaluation, Verdict
from layer3.errors import ConfigurationError

GOOD: dict[str, float | None] = {
    "sharpe": 1.8,
    "probabilistic_sharpe": 0.99,
    "max_drawdown": 0.1,
    "trades": 80.0,
    "multiplier_sd": 0.4,
}
NAMES = ["sharpe", "probabilistic_sharpe", "max_drawdown", "trades", "versus_kelly", "not_constant"]


def verdict(kelly: float | None = 1.0, limits: Limits | None = None, **policy: float | None) -> Verdict:
    metrics = {POLICY: GOOD | policy, KELLY_ONLY: {"sharpe": kelly}}
    return judge(Evaluation(np.empty(0, np.int64), {}, metrics, {}), limits)


def failed(decision: Verdict) -> list[str]:
    assert [criterion.name for criterion in decision.criteria] == NAMES
    lost = [criterion.name for criterion in decision.criteria if not criterion.passed]
    assert decision.passed == (not lost)
    return lost


def test_a_good_candidate_passes_every_criterion() -> None:
    decision = verdict()
    assert failed(decision) == []
    assert decision.passed is True


@pytest.mark.parametrize(
    ("policy", "lost"),
    [
        ({"sharpe": 1.0}, []),
        ({"sharpe": np.nextafter(1.0, 0.0)}, ["sharpe", "versus_kelly"]),
        ({"probabilistic_sharpe": 0.95}, []),
        ({"probabilistic_sharpe": 0.9499}, ["probabilistic_sharpe"]),
        ({"max_drawdown": 0.2}, []),
        ({"max_drawdown": np.nextafter(0.2, 1.0)}, ["max_drawdown"]),
        ({"max_drawdown": 0.0}, []),
        ({"trades": 30.0}, []),
        ({"trades": 29.0}, ["trades"]),
        ({"trades": 0.0}, ["trades"]),
        ({"multiplier_sd": 0.02}, []),
        ({"multiplier_sd": 0.0199}, ["not_constant"]),
        ({"multiplier_sd": 0.0}, ["not_constant"]),
        ({"sharpe": -2.0}, ["sharpe", "versus_kelly"]),
    ],
)
def test_each_criterion_at_its_limit(policy: dict[str, float], lost: list[str]) -> None:
    assert failed(verdict(**policy)) == lost


@pytest.mark.parametrize(
    ("own", "kelly", "lost"),
    [
        (1.5, 1.5, []),
        (1.5, 1.6, ["versus_kelly"]),
        (1.5, -3.0, []),
        (1.5, 0.0, []),
        (1.5, None, []),
        (-0.5, None, ["sharpe", "versus_kelly"]),
        (0.0, 0.0, ["sharpe"]),
    ],
)
def test_it_must_not_be_worse_than_kelly_only(own: float, kelly: float | None, lost: list[str]) -> None:
    assert failed(verdict(kelly, sharpe=own)) == lost


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("metric", "lost"),
    [
        ("sharpe", ["sharpe", "versus_kelly"]),
        ("probabilistic_sharpe", ["probabilistic_sharpe"]),
        ("max_drawdown", ["max_drawdown"]),
        ("trades", ["trades"]),
        ("multiplier_sd", ["not_constant"]),
    ],
)
def test_what_cannot_be_computed_fails_with_its_sentence(metric: str, lost: list[str], unknown: float | None) -> None:
    decision = verdict(**{metric: unknown})
    assert failed(decision) == lost
    for criterion in decision.criteria:
        if criterion.name in lost:
            assert criterion.value is None
            assert criterion.sentence == "Could not be computed on this record, so it fails."
    json.dumps(decision.to_json(), allow_nan=False)


def test_every_criterion_is_asked_although_the_first_fails() -> None:
    decision = verdict(sharpe=-1.0, probabilistic_sharpe=0.1, max_drawdown=0.9, trades=1.0, multiplier_sd=0.0)
    assert failed(decision) == NAMES
    assert [criterion.value for criterion in decision.criteria] == [-1.0, 0.1, 0.9, 1.0, -2.0, 0.0]
    assert [criterion.limit for criterion in decision.criteria] == [1.0, 0.95, 0.2, 30, 0.0, 0.02]
    assert [criterion.comparison for criterion in decision.criteria] == [">=", ">=", "<=", ">=", ">=", ">="]
    assert decision.criteria[0].sentence == "Annualised Sharpe ratio -1.00, at least 1.00 asked."
    assert decision.criteria[4].sentence.startswith("Sharpe ratio -2.00 against Kelly only")


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "50.0%"), (0.9512, "95.1%"), (0.999, "99.9%"), (0.99999, "above 99.9%"), (1.0, "above")]
)
def test_no_estimate_is_printed_as_a_certainty(value: float, shown: str) -> None:
    sentence = verdict(probabilistic_sharpe=value).criteria[1].sentence
    assert sentence.startswith(f"Probability {shown}")
    assert "100" not in sentence


def test_a_policy_that_never_traded_fails() -> None:
    nothing: dict[str, Any] = {
        "sharpe": None,
        "probabilistic_sharpe": None,
        "max_drawdown": 0.0,
        "trades": 0.0,
        "multiplier_sd": None,
    }
    assert failed(verdict(None, **nothing)) == [name for name in NAMES if name != "max_drawdown"]


def test_the_limits_can_be_set() -> None:
    strict = Limits(sharpe=2.0, probabilistic_sharpe=0.999, max_drawdown=0.05, trades=100, versus_kelly=1.0)
    assert failed(verdict(limits=strict)) == NAMES[:5]
    assert failed(verdict(limits=Limits(multiplier_sd=0.5))) == ["not_constant"]
    loose = Limits(sharpe=-5, probabilistic_sharpe=0, max_drawdown=1, trades=0, versus_kelly=-5, multiplier_sd=0)
    assert verdict(limits=loose, sharpe=-2.0, trades=0.0, multiplier_sd=0.0, max_drawdown=0.9).passed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sharpe", math.nan),
        ("sharpe", math.inf),
        ("sharpe", 1e9),
        ("probabilistic_sharpe", 95.0),
        ("probabilistic_sharpe", -0.1),
        ("max_drawdown", 20.0),
        ("max_drawdown", -0.2),
        ("trades", -1),
        ("versus_kelly", math.nan),
        ("multiplier_sd", -0.02),
    ],
)
def test_limits_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"gate: {name} = .*, expected a number in \["):
        Limits(**{name: value})  # type: ignore[arg-type]
