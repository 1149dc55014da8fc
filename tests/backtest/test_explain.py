"""The verdict in words: the outcome first, what failed and what would change it, and no line too long."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.backtest.explain import clean, explain_verdict, wrapped
from layer3.backtest.gate import GateConfig
from layer3.backtest.record import Criterion, Override, Verdict

HELD = Criterion("trades", 80.0, ">=", 30.0, True, "80 closed round trips, at least 30 asked.")
LOST = Criterion("sharpe", 0.9499, ">=", 0.95, False, "Annualised Sharpe ratio 0.9499, at least 0.95 asked.")
SHORT = Criterion("track_record", 5.2, ">=", 12.0, False, "5.2 months of record; it takes 12.0.")
UNKNOWN = Criterion(
    "no_leak", None, "<=", 0.0, False, "Could not be computed, so it fails: the features file is missing."
)
CONTEXT = {
    "symbol": "BTC-USDT",
    "source": "candles.csv",
    "synthetic": False,
    "model_id": "himari-7",
    "seed": 7,
    "trials": 40,
    "data_sha256": "9f" * 32,
    "period": {"start": "2024-03-10T00:00:00+00:00", "end": "2025-03-09T00:00:00+00:00"},
    "interval_seconds": 3600,
    "policy_sha256": "not shown",
}


def said(*criteria: Criterion, context: dict[str, Any] | None = None, width: int = 88, **changes: Any) -> str:
    verdict = Verdict(all(one.passed for one in criteria), criteria, None, dataclasses.asdict(GateConfig()))
    document = json.loads(json.dumps(dataclasses.replace(verdict, **changes).to_json()))
    return explain_verdict(document, CONTEXT if context is None else context, width)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_passed_verdict_is_short_and_says_what_was_judged() -> None:
    text = said(HELD)
    assert text.startswith("PASSED: the criterion holds.\n")
    assert "What failed" not in text
    assert "80 closed round trips, at least 30 asked." in flat(text)
    assert "Every limit is the default." in text
    for shown in ("BTC-USDT", "candles.csv", "himari-7", "9f9f", "2024-03-10", "2025-03-09", "1 hour"):
        assert shown in text
    assert "Trials" in text
    assert "40" in text
    assert "not shown" not in text
    assert "SYNTHETIC" not in text
    assert said(HELD, HELD).startswith("PASSED: all 2 criteria hold.\n")


def test_what_failed_comes_first_with_value_limit_reason_and_remedy() -> None:
    text = said(HELD, LOST, SHORT, UNKNOWN)
    assert text.startswith("REJECTED: 3 of 4 criteria failed.\n")
    order = ["REJECTED", "What failed", "0.9499", "5.2 months", "features file is missing", "What held", "80 closed"]
    assert [flat(text).index(part) for part in order] == sorted(flat(text).index(part) for part in order)
    assert "asked ≥ 0.9500" in text
    assert "What would change it: a policy that earns more for the risk it takes" in flat(text)
    assert "What would change it: 7 more months of record at this ratio." in flat(text)
    assert "What would change it: that cause removed, and a new run" in flat(text)
    assert text.index("What held") < text.index("What was judged")


def test_a_criterion_nobody_knows_has_no_invented_remedy() -> None:
    text = said(Criterion("moon_phase", 1.0, ">=", 2.0, False, "The moon is new."))
    assert "The moon is new." in text
    assert "What would change it" not in text


def test_every_criterion_of_the_gate_has_a_remedy() -> None:
    from tests.backtest.test_gate import RISK, evaluation, judge

    names = {criterion.name for config in (None, RISK) for criterion in judge(evaluation(), config).criteria}
    for name in names:
        assert "What would change it" in said(Criterion(name, 1.0, ">=", 2.0, False, "Because."))


def test_an_override_is_told_first_with_name_and_reason() -> None:
    text = said(HELD, LOST, passed=True, override=Override("Ada Lovelace", "Paper account only."))
    opening = flat(text.split("\n\n")[0])
    assert opening == (
        "OVERRIDDEN: 1 of 2 criteria failed, and Ada Lovelace released it all the same. "
        "The reason given: Paper account only."
    )
    assert "What failed" in text


def test_a_record_that_contradicts_itself_is_not_believed() -> None:
    assert "do not trust this record" in flat(said(LOST, HELD, passed=True).split("\n\n")[0])
    assert "do not trust this record" in flat(said(HELD, passed=False).split("\n\n")[0])
    assert said().startswith("PASSED without a single criterion: do not trust this record.")


def test_a_simulated_market_is_called_one() -> None:
    text = said(HELD, context=CONTEXT | {"synthetic": True})
    assert "SYNTHETIC market: these numbers say nothing about a real one." in text


def test_limits_that_are_not_the_defaults_are_listed() -> None:
    less = dataclasses.asdict(GateConfig(sharpe=-5.0, claim="risk"))
    less["walk_forward"] = {"required": False, "probabilistic_sharpe": 0.95}
    text = flat(said(HELD, limits=less))
    assert (
        text.endswith(
            "Limits that are not the defaults: sharpe -5 (default 1), claim risk (default return), "
            "walk_forward.required False (default True)."
        )
        or "sharpe −5 (default 1)" in text
    )
    assert "claim risk (default return)" in text
    assert "walk_forward.required False (default True)" in text
    assert "deflated_sharpe" not in text
    assert "limit" not in said(HELD, limits={}).lower()


def test_nothing_in_it_reaches_the_terminal() -> None:
    evil = "a\x1b[2Jb\nREJECTED\r\u202ec\ud800"
    lost = dataclasses.replace(LOST, sentence=evil, name=evil)
    override = {"name": evil, "reason": evil}
    text = explain_verdict(
        {"passed": True, "criteria": [dataclasses.asdict(lost)], "override": override, "limits": {evil: evil}},
        dict.fromkeys(CONTEXT, evil),
        88,
    )
    assert all(character.isprintable() or character == "\n" for character in text)
    text.encode()
    assert not any(line.startswith("REJECTED") for line in text.splitlines())


@pytest.mark.parametrize("width", [40, 80, 88, 100])
def test_no_line_is_longer_than_asked(width: int) -> None:
    long = dataclasses.replace(LOST, sentence="word " * 60 + "x" * 300)
    text = said(HELD, long, UNKNOWN, context=CONTEXT | {"source": "y" * 300, "synthetic": True}, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.endswith("\n")
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"comparison": "<"}, "compares by '<'"),
        ({"limit": None}, "no limit"),
        ({"limit": 10**400}, "beyond any number"),
    ],
)
def test_what_is_no_verdict_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain_verdict({"passed": True, "criteria": [dataclasses.asdict(HELD) | changes]}, {})


def test_helpers() -> None:
    assert clean("a\tb\x07c") == "a b c"
    assert wrapped("one two", 40, 2) == ["  one two"]
    assert wrapped("", 40) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Criterion,
            st.text(max_size=20),
            st.none() | st.floats(),
            st.sampled_from([">=", "<="]),
            st.floats(),
            st.booleans(),
            st.text(max_size=60),
        ),
        max_size=4,
    ),
    st.booleans(),
    st.none() | st.dictionaries(st.sampled_from(["name", "reason"]), JSON),
    st.dictionaries(st.text(max_size=8), JSON, max_size=3),
    st.dictionaries(st.sampled_from([*CONTEXT, "x"]), JSON, max_size=5),
)
def test_any_verdict_and_any_context_can_be_told(
    criteria: list[Criterion], passed: bool, override: Any, limits: Any, context: Any
) -> None:
    document = {"passed": passed, "criteria": [dataclasses.asdict(one) for one in criteria]}
    text = explain_verdict(document | {"override": override, "limits": limits}, context, 80)
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 80
