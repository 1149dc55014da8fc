"""The rules, as a table: the first that holds speaks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.ab.recommend import Facts, recommend

OPEN = Facts(
    broken=None,
    units=(100, 100),
    compared=(100, 100),
    least_units=50,
    ratio_p=0.4,
    known_ratio_p=0.4,
    identical=False,
    estimate=0.02,
    low=-0.1,
    high=0.14,
    sharpe=0.3,
    smallest_effect=0.05,
    days=10.0,
    planned_days=28.0,
    days_for_smallest=40.2,
    days_for_estimate=400.0,
    days_for_units=None,
)
ABOVE: dict[str, Any] = {"estimate": 0.2, "low": 0.1, "high": 0.3}
BELOW: dict[str, Any] = {"estimate": -0.2, "low": -0.3, "high": -0.1}
OVER: dict[str, Any] = {"days": 28.0}


@pytest.mark.parametrize(
    ("change", "action", "words"),
    [
        ({}, "continue", "Neither sign is shown"),
        ({"broken": "it fell"}, "disable", "it fell"),
        ({"broken": "it fell", **ABOVE}, "disable", "guardrail"),
        ({"units": (49, 900), **ABOVE}, "continue", "900 units of the policy's arm and 49 of Kelly's"),
        ({"units": (900, 0)}, "continue", "below 50 in each"),
        ({"compared": (49, 80), **ABOVE}, "continue", "80 units of the policy's arm and 49 of Kelly's were assigned"),
        ({"ratio_p": 0.0009, **ABOVE}, "continue", "split is not the intended one"),
        ({"known_ratio_p": 0.0009, **BELOW}, "continue", "missing from one arm"),
        ({"ratio_p": None, "known_ratio_p": None, **ABOVE}, "deploy", "not by risking more"),
        ({"identical": True, "estimate": None, "low": None, "high": None}, "no_difference", "the same in every"),
        ({"estimate": None, "low": None, "high": None}, "continue", "no difference can be tested"),
        (ABOVE, "deploy", "+10.0% to +30.0%"),
        ({**ABOVE, "sharpe": 0.0}, "deploy", "earns more"),
        ({**ABOVE, "sharpe": -0.1}, "continue", "only by holding more"),
        ({**ABOVE, "sharpe": None}, "continue", "per unit of risk"),
        ({**ABOVE, **OVER, "sharpe": -0.1}, "no_difference", "only by holding more"),
        ({**BELOW, "sharpe": -0.4}, "disable", "−30.0% to −10.0%"),
        ({**BELOW, "sharpe": 0.4}, "continue", "because it holds less"),
        ({"estimate": 0.0, "low": -0.04, "high": 0.05}, "no_difference", "does not matter"),
        ({"estimate": 0.02, "low": 0.01, "high": 0.03, "sharpe": 0.1}, "deploy", "earns more"),
        (OVER, "no_difference", "planned 28 days are over"),
        ({**OVER, "units": (10, 10)}, "continue", "nothing is concluded"),
    ],
)
def test_the_first_rule_that_holds_speaks(change: dict[str, Any], action: str, words: str) -> None:
    found = recommend(replace(OPEN, **change))
    assert found.action == action
    assert words in found.reason
    assert bool(found.more) == (action == "continue")


@pytest.mark.parametrize(
    ("smallest", "estimate", "words"),
    [
        (40.2, 400.0, "5.0% a year is found in 41 days more, one as large as the present estimate in 400 days more"),
        (0.0, 1.0, "found in 1 day more, one"),
        (math.inf, None, "found in more than ten years. The plan has 18 days left."),
        (None, None, "cannot be said yet"),
    ],
)
def test_to_go_on_is_told_in_days(smallest: float | None, estimate: float | None, words: str) -> None:
    assert words in recommend(replace(OPEN, days_for_smallest=smallest, days_for_estimate=estimate)).more


def test_too_few_units_are_waited_for_in_days() -> None:
    few = replace(OPEN, units=(20, 80), days_for_units=15.0)
    assert recommend(few).more.endswith("has as many in 15 days more.")
    none = replace(OPEN, units=(0, 80), days_for_smallest=None, days_for_estimate=None)
    assert "cannot be said" in recommend(none).more


@given(estimate=st.floats(-1.0, 1.0), reach=st.floats(0.0, 1.0), sharpe=st.floats(-5.0, 5.0), days=st.floats(0.0, 60.0))
def test_no_sign_is_acted_on_that_is_not_shown(estimate: float, reach: float, sharpe: float, days: float) -> None:
    facts = replace(OPEN, estimate=estimate, low=estimate - reach, high=estimate + reach, sharpe=sharpe, days=days)
    action = recommend(facts).action
    assert (action == "deploy") == (estimate - reach > 0.0 and sharpe >= 0.0)
    assert (action == "disable") == (estimate + reach < 0.0 and sharpe <= 0.0)
