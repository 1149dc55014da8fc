"""The gate: every criterion at its limit, all of them asked, and nothing unknown ever passes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.backtest.gate import (
    GateConfig,
    WalkForwardLimits,
    gate_config_text,
    judge,
    load_gate_config,
    parse_gate_config,
    parse_override,
)
from layer3.backtest.record import (
    CHAMPION,
    KELLY_ONLY,
    POLICY,
    Criterion,
    Degeneracy,
    Difference,
    Evaluation,
    Evidence,
    Fold,
    Interval,
    Leak,
    Override,
    Permutation,
    Trust,
    Verdict,
    WalkForward,
)
from layer3.errors import ConfigurationError

SHIPPED = Path(__file__).parents[2] / "config" / "gate.yaml"
NAMES = [
    "sharpe",
    "probabilistic_sharpe",
    "deflated_sharpe",
    "track_record",
    "max_drawdown",
    "trades",
    "permutation_p",
    "versus_kelly",
    "versus_champion",
    "champion_margin",
    "not_degenerate",
    "degeneracy_findings",
    "no_leak",
    "walk_forward",
]
METRICS = {"sharpe": 2.4, "max_drawdown": 0.1, "trades": 80.0}
TRUST = Trust(2.4, 0.7, 0.9995, 0.97, 40, 1.1, 1.0, 0.5, Interval(2.4, 1.2, 3.6), Interval(0.1, 0.05, 0.18))
BARS = Permutation("bars", 1, "recomputed", 2.4, (0.1,) * 199 + (2.5,), 2 / 201)
BLOCKS = Permutation("blocks", 24, "recomputed", 2.4, (0.2,) * 200, 1 / 201)
KELLY = Difference(KELLY_ONLY, Interval(0.8, 0.1, 1.5), 0.85)
SERVING = Difference(CHAMPION, Interval(0.1, -0.4, 0.6), 1.0)
WALK = WalkForward(
    "rolling",
    (1, 2),
    (Fold(0, "a", "b", "c", "d", (1.0, 1.2)),) * 18,
    replace(TRUST, sharpe=1.6, probabilistic=0.98),
    0.4,
    0.1,
    None,
    None,
    (1.5, 1.7),
    (19000,),
    (1.0,),
    (1.0,),
)
GOOD = Evidence(
    trust=TRUST,
    differences=(KELLY, SERVING),
    permutations=(BARS, BLOCKS),
    leak=Leak(("features", "signals", "states", "decisions"), (100, 200), ()),
    degeneracy=Degeneracy(4000, 1.1, 0.3, 0.0, 0.1, 1, None, ()),
    walk_forward=WALK,
    champion="himari-000",
)


def evaluation(evidence: Evidence = GOOD, **metrics: float | None) -> Evaluation:
    return Evaluation(np.empty(0, np.int64), {}, {POLICY: METRICS | metrics}, {}, evidence)


def asked(decision: Verdict) -> dict[str, Criterion]:
    return {criterion.name: criterion for criterion in decision.criteria}


def failed(decision: Verdict) -> list[str]:
    """The names of the failed criteria, after checking what holds of every verdict."""
    lost = [criterion.name for criterion in decision.criteria if not criterion.passed]
    assert decision.passed == (not lost or decision.override is not None)
    for one in decision.criteria:
        holds = one.value is not None and (one.value >= one.limit if one.comparison == ">=" else one.value <= one.limit)
        assert one.passed == holds, one
        assert one.value is None or math.isfinite(one.value)
        assert math.isfinite(one.limit)
        assert one.sentence.strip().endswith((".", "!", "?"))
        assert "robability 100" not in one.sentence
        assert "nan" not in one.sentence.split()
        assert one.sentence.startswith("Could not be computed, so it fails: ") == (one.value is None)
    json.dumps(decision.to_json(), allow_nan=False)
    return lost


def with_trust(**changes: Any) -> Evidence:
    return replace(GOOD, trust=replace(TRUST, **changes))


def with_kelly(volatility: float | None = 0.85, **changes: Any) -> Evidence:
    return replace(GOOD, differences=(Difference(KELLY_ONLY, replace(KELLY.sharpe, **changes), volatility), SERVING))


def with_champion(**changes: Any) -> Evidence:
    return replace(GOOD, differences=(KELLY, replace(SERVING, sharpe=replace(SERVING.sharpe, **changes))))


def with_walk(**changes: Any) -> Evidence:
    return replace(GOOD, walk_forward=replace(WALK, trust=replace(WALK.trust, **changes)))


def with_degeneracy(**changes: Any) -> Evidence:
    assert GOOD.degeneracy is not None
    return replace(GOOD, degeneracy=replace(GOOD.degeneracy, **changes))


def with_p(bars: float, blocks: float = 0.01) -> Evidence:
    return replace(GOOD, permutations=(replace(BARS, p=bars), replace(BLOCKS, p=blocks)))


def test_a_good_candidate_passes_every_criterion_in_reading_order() -> None:
    decision = judge(evaluation())
    assert [criterion.name for criterion in decision.criteria] == NAMES
    assert failed(decision) == []
    assert decision.passed is True
    assert decision.override is None


BELOW, ABOVE = float(np.nextafter(0.95, 0)), float(np.nextafter(0.95, 1))


@pytest.mark.parametrize(
    ("judged", "lost"),
    [
        (evaluation(sharpe=1.0), []),
        (evaluation(sharpe=float(np.nextafter(1.0, 0.0))), ["sharpe"]),
        (evaluation(sharpe=float(np.nextafter(1.0, 2.0))), []),
        (evaluation(sharpe=-2.0), ["sharpe"]),
        (evaluation(max_drawdown=0.2), []),
        (evaluation(max_drawdown=float(np.nextafter(0.2, 1.0))), ["max_drawdown"]),
        (evaluation(max_drawdown=float(np.nextafter(0.2, 0.0))), []),
        (evaluation(max_drawdown=0.0), []),
        (evaluation(max_drawdown=1.3), ["max_drawdown"]),
        (evaluation(trades=30.0), []),
        (evaluation(trades=29.0), ["trades"]),
        (evaluation(trades=31.0), []),
        (evaluation(trades=0.0), ["trades"]),
        (evaluation(with_trust(probabilistic=0.95)), []),
        (evaluation(with_trust(probabilistic=BELOW)), ["probabilistic_sharpe"]),
        (evaluation(with_trust(probabilistic=ABOVE)), []),
        (evaluation(with_trust(deflated=0.95)), []),
        (evaluation(with_trust(deflated=BELOW)), ["deflated_sharpe"]),
        (evaluation(with_trust(deflated=ABOVE)), []),
        (evaluation(with_trust(years=0.5)), []),
        (evaluation(with_trust(years=0.4999)), ["track_record"]),
        (evaluation(with_trust(years=0.25, years_needed=0.1)), []),
        (evaluation(with_trust(years=0.2499, years_needed=0.1)), ["track_record"]),
        (evaluation(with_trust(years=0.2501, years_needed=0.0)), []),
        (evaluation(with_p(0.05)), []),
        (evaluation(with_p(float(np.nextafter(0.05, 1)))), ["permutation_p"]),
        (evaluation(with_p(0.01, float(np.nextafter(0.05, 1)))), ["permutation_p"]),
        (evaluation(with_p(float(np.nextafter(0.05, 0)))), []),
        (evaluation(with_kelly(low=1e-12)), []),
        (evaluation(with_kelly(low=0.0)), ["versus_kelly"]),
        (evaluation(with_kelly(low=-1e-12)), ["versus_kelly"]),
        (evaluation(with_champion(high=0.0)), []),
        (evaluation(with_champion(high=1e-12)), []),
        (evaluation(with_champion(high=-1e-12)), ["versus_champion"]),
        (evaluation(with_champion(low=-0.5)), []),
        (evaluation(with_champion(low=float(np.nextafter(-0.5, -1)))), ["champion_margin"]),
        (evaluation(with_champion(low=float(np.nextafter(-0.5, 0)))), []),
        (evaluation(with_champion(low=-3.0, high=9.0)), ["champion_margin"]),
        (evaluation(with_degeneracy(spread=0.02)), []),
        (evaluation(with_degeneracy(spread=0.0199)), ["not_degenerate"]),
        (evaluation(with_degeneracy(spread=0.0201)), []),
        (evaluation(with_degeneracy(spread=0.0)), ["not_degenerate"]),
        (evaluation(with_degeneracy(findings=("Five seeds, one output.",))), ["degeneracy_findings"]),
        (evaluation(replace(GOOD, leak=Leak(("states",), (9,), ("states",)))), ["no_leak"]),
        (evaluation(with_walk(probabilistic=0.95)), []),
        (evaluation(with_walk(probabilistic=BELOW)), ["walk_forward"]),
        (evaluation(with_walk(probabilistic=ABOVE)), []),
    ],
)
def test_each_criterion_at_just_below_and_just_above_its_limit(judged: Evaluation, lost: list[str]) -> None:
    assert failed(judge(judged)) == lost


RISK = GateConfig(claim="risk", risk_reduction=0.1)


@pytest.mark.parametrize(
    ("evidence", "lost"),
    [
        (with_kelly(0.9, low=-0.5, high=0.0), []),
        (with_kelly(0.9, low=-0.5, high=-1e-12), ["versus_kelly"]),
        (with_kelly(0.9, low=float(np.nextafter(-0.5, -1))), ["kelly_margin"]),
        (with_kelly(float(np.nextafter(0.9, 1)), low=-0.5), ["less_risk"]),
        (with_kelly(float(np.nextafter(0.9, 0)), low=-0.5), []),
        (with_kelly(1.2, low=-1.0, high=-0.5), ["versus_kelly", "kelly_margin", "less_risk"]),
        (with_kelly(None), ["less_risk"]),
        (with_kelly(-0.5), ["less_risk"]),
        (replace(GOOD, differences=(SERVING,)), ["versus_kelly", "kelly_margin", "less_risk"]),
    ],
)
def test_a_claim_of_less_risk_needs_less_risk_and_no_proof_of_being_worse(evidence: Evidence, lost: list[str]) -> None:
    decision = judge(evaluation(evidence), RISK)
    assert failed(decision) == lost
    assert [one.name for one in decision.criteria] == [*NAMES[:8], "kelly_margin", "less_risk", *NAMES[8:]]
    assert asked(decision)["less_risk"].limit == 0.9


def test_kelly_only_itself_does_not_beat_kelly_only() -> None:
    itself = with_kelly(1.0, estimate=0.0, low=0.0, high=0.0)
    assert failed(judge(evaluation(itself))) == ["versus_kelly"]
    assert failed(judge(evaluation(itself), RISK)) == ["less_risk"]
    assert "too many bars to tell them apart" in asked(judge(evaluation(itself)))["versus_kelly"].sentence


@pytest.mark.parametrize(
    ("section", "lost"),
    [
        ("trust", ["probabilistic_sharpe", "deflated_sharpe", "track_record"]),
        ("differences", ["versus_kelly", "versus_champion", "champion_margin"]),
        ("permutations", ["permutation_p"]),
        ("leak", ["no_leak"]),
        ("degeneracy", ["not_degenerate", "degeneracy_findings"]),
        ("walk_forward", ["walk_forward"]),
    ],
)
def test_a_missing_section_fails_closed_with_the_sentence_that_says_why(section: str, lost: list[str]) -> None:
    nothing: Any = () if section in ("differences", "permutations") else None
    silent = judge(evaluation(replace(GOOD, **{section: nothing})))
    assert failed(silent) == lost
    assert all(f"the evidence has no section {section!r}" in asked(silent)[name].sentence for name in lost)
    told = replace(GOOD, **{section: nothing}, problems={section: "the record is too short:\n 12 bars"})
    decision = judge(evaluation(told))
    assert failed(decision) == lost
    for name in lost:
        wanted = "Could not be computed, so it fails: the record is too short: 12 bars."
        assert asked(decision)[name].sentence == wanted
        assert asked(decision)[name].value is None


UNKNOWN = [None, math.nan, math.inf, -math.inf]
PLACES: dict[str, tuple[Callable[[Any], Evaluation], list[str]]] = {
    "sharpe": (lambda x: evaluation(sharpe=x), ["sharpe"]),
    "max_drawdown": (lambda x: evaluation(max_drawdown=x), ["max_drawdown"]),
    "trades": (lambda x: evaluation(trades=x), ["trades"]),
    "probabilistic": (lambda x: evaluation(with_trust(probabilistic=x)), ["probabilistic_sharpe"]),
    "deflated": (lambda x: evaluation(with_trust(deflated=x)), ["deflated_sharpe"]),
    "years_needed": (lambda x: evaluation(with_trust(years_needed=x)), ["track_record"]),
    "kelly low": (lambda x: evaluation(with_kelly(low=x)), ["versus_kelly"]),
    "champion high": (lambda x: evaluation(with_champion(high=x)), ["versus_champion"]),
    "champion low": (lambda x: evaluation(with_champion(low=x)), ["champion_margin"]),
    "spread": (lambda x: evaluation(with_degeneracy(spread=x)), ["not_degenerate"]),
    "walk": (lambda x: evaluation(with_walk(probabilistic=x)), ["walk_forward"]),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_number_fails(place: str, unknown: float | None) -> None:
    make, lost = PLACES[place]
    decision = judge(make(unknown))
    assert failed(decision) == lost
    assert asked(decision)[lost[0]].value is None


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_numbers_that_only_stand_in_a_sentence_do_not_change_the_answer(unknown: float | None) -> None:
    evidence = replace(
        with_trust(standard_error=unknown, trials_sharpe=unknown, sharpe=unknown),
        walk_forward=replace(WALK, trust=replace(WALK.trust, sharpe=unknown)),
        differences=(
            replace(KELLY, sharpe=Interval(unknown, 0.1, unknown)),
            replace(SERVING, sharpe=Interval(unknown, -0.1, 0.1)),
        ),
    )
    assert failed(judge(evaluation(evidence))) == []


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -0.5, 1.5])
@pytest.mark.parametrize("order", [0, 1])
def test_a_p_value_that_is_no_probability_fails_wherever_it_stands(unknown: float, order: int) -> None:
    evidence = with_p(unknown) if order else with_p(0.01, unknown)
    assert failed(judge(evaluation(evidence))) == ["permutation_p"]


@pytest.mark.parametrize("length", [math.nan, math.inf, -1.0])
def test_a_record_of_no_length_fails(length: float) -> None:
    decision = judge(evaluation(with_trust(years=length)))
    assert failed(decision) == ["track_record"]
    assert asked(decision)["track_record"].value is None
    assert asked(decision)["track_record"].sentence.endswith("how long the record is, is not known.")


@pytest.mark.parametrize(
    ("judged", "lost"),
    [
        (evaluation(max_drawdown=-0.1), "max_drawdown"),
        (evaluation(trades=-1.0), "trades"),
        (evaluation(with_trust(probabilistic=1.01)), "probabilistic_sharpe"),
        (evaluation(with_trust(deflated=97.0)), "deflated_sharpe"),
        (evaluation(with_walk(probabilistic=2.0)), "walk_forward"),
        (evaluation(with_trust(years_needed=1.7e308)), "track_record"),
        (evaluation(with_trust(trials=0)), "deflated_sharpe"),
    ],
)
def test_a_value_that_cannot_be_is_not_believed(judged: Evaluation, lost: str) -> None:
    assert failed(judge(judged)) == [lost]


@pytest.mark.parametrize(
    ("permutations", "says"),
    [
        ((BARS,), "price paths of permuted blocks are missing"),
        ((BLOCKS,), "price paths of permuted bars are missing"),
        ((BARS, replace(BLOCKS, values=(0.1,) * 99)), "99 paths of permuted blocks, at least 100 are needed"),
        ((BARS, BLOCKS, replace(BARS, values=(0.1,))), "1 path of permuted bars, at least 100 are needed"),
    ],
)
def test_both_kinds_of_permutation_are_needed_with_enough_paths(
    permutations: tuple[Permutation, ...], says: str
) -> None:
    decision = judge(evaluation(replace(GOOD, permutations=permutations)))
    assert failed(decision) == ["permutation_p"]
    assert says in asked(decision)["permutation_p"].sentence
    enough = replace(BARS, values=(0.1,) * 100, p=1 / 101), replace(BLOCKS, values=(0.1,) * 100, p=1 / 101)
    assert failed(judge(evaluation(replace(GOOD, permutations=enough)))) == []


def test_the_worst_permutation_decides_and_is_the_one_that_is_told() -> None:
    survived = replace(BLOCKS, values=(0.2,) * 100 + (2.4,) * 100, p=101 / 201)
    decision = judge(evaluation(replace(GOOD, permutations=(BARS, survived))))
    assert failed(decision) == ["permutation_p"]
    criterion = asked(decision)["permutation_p"]
    assert criterion.value == 101 / 201
    assert criterion.sentence == (
        "With blocks of 24 bars of the price path in random order the policy did as well on 100 of 200 paths: "
        "p 0.502, at most 0.05 allowed."
    )


def test_a_small_p_value_is_not_printed_as_none() -> None:
    decision = judge(evaluation(with_p(1 / 100_001, 1 / 100_001)))
    assert "p 0.0000100, at most" in asked(decision)["permutation_p"].sentence


def test_there_may_be_no_champion_but_one_that_cannot_be_walked_fails() -> None:
    both = ["versus_champion", "champion_margin"]
    nobody = replace(GOOD, champion=None, differences=(KELLY,))
    decision = judge(evaluation(nobody))
    assert failed(decision) == []
    assert [one.name for one in decision.criteria] == [name for name in NAMES if name != "champion_margin"]
    assert asked(decision)["versus_champion"].sentence == "There is no champion yet: nothing to be worse than."
    foreign = replace(nobody, problems={"champion": "himari-000 was trained for 15-minute bars"})
    assert failed(judge(evaluation(foreign))) == both
    also = replace(GOOD, problems={"champion": "himari-000 was trained for 15-minute bars"})
    said = asked(judge(evaluation(also)))["versus_champion"].sentence
    assert said == "Could not be computed, so it fails: himari-000 was trained for 15-minute bars."
    uncompared = judge(evaluation(replace(GOOD, differences=(KELLY,))))
    assert failed(uncompared) == both
    assert "himari-000 was not compared with" in asked(uncompared)["versus_champion"].sentence
    lost = judge(evaluation(with_champion(estimate=None, low=None, high=None)))
    assert failed(lost) == both
    assert "or the champion himari-000 has no Sharpe ratio on these bars" in asked(lost)["versus_champion"].sentence
    unnamed = judge(evaluation(replace(GOOD, champion=None)))
    assert failed(unnamed) == []
    assert "None" not in asked(unnamed)["versus_champion"].sentence
    assert failed(judge(evaluation(replace(with_champion(high=-0.1), champion=None)))) == ["versus_champion"]


@pytest.mark.parametrize("leak", [Leak((), (), ()), Leak(("states",), (), ()), Leak((), (9,), ())])
def test_a_leak_test_that_compared_nothing_is_none(leak: Leak) -> None:
    decision = judge(evaluation(replace(GOOD, leak=leak)))
    assert failed(decision) == ["no_leak"]
    assert "nothing was computed again on truncated data" in asked(decision)["no_leak"].sentence


@pytest.mark.parametrize(
    ("years", "needed", "says"),
    [
        (0.5, 1.0, "this record would need 6 more months."),
        (0.5, 0.51, "this record would need 1 more month."),
        (0.1, 0.05, "this record would need 2 more months."),
        (0.5, 1000.0, "this record would need 11,994 more months."),
    ],
)
def test_too_short_a_record_says_how_much_more_it_needs(years: float, needed: float, says: str) -> None:
    criterion = asked(judge(evaluation(with_trust(years=years, years_needed=needed))))["track_record"]
    assert not criterion.passed
    assert criterion.sentence.endswith(says)
    assert criterion.value == pytest.approx(12 * years)
    assert criterion.limit == pytest.approx(max(12 * needed, 3.0))


def test_a_ratio_that_no_length_would_prove_says_so() -> None:
    criterion = asked(judge(evaluation(with_trust(years_needed=None, sharpe=-0.3))))["track_record"]
    assert "at a Sharpe ratio of -0.30 no length of record would show" in criterion.sentence


def test_a_record_without_a_ratio_is_not_said_to_have_one() -> None:
    sentence = asked(judge(evaluation(with_trust(sharpe=None, years_needed=None))))["track_record"].sentence
    assert sentence.endswith("the returns are too few, or have no spread, or all was lost.")


def test_the_walk_forward_can_be_left_out_visibly() -> None:
    config = GateConfig(walk_forward=WalkForwardLimits(required=False))
    decision = judge(evaluation(replace(GOOD, walk_forward=None)), config)
    assert failed(decision) == []
    assert [criterion.name for criterion in decision.criteria] == NAMES[:-1]
    assert decision.limits["walk_forward"] == {"required": False, "probabilistic_sharpe": 0.95}


def test_every_criterion_is_asked_of_an_evaluation_that_holds_nothing() -> None:
    decision = judge(Evaluation(np.empty(0, np.int64), {}, {}, {}))
    assert failed(decision) == [name for name in NAMES if "champion" not in name]


def test_the_sentences_of_a_good_candidate() -> None:
    said = {name: criterion.sentence for name, criterion in asked(judge(evaluation())).items()}
    assert said == {
        "sharpe": "Annualised Sharpe ratio 2.40 (standard error 0.70), at least 1 asked.",
        "probabilistic_sharpe": "Probability above 99.9% that the true Sharpe ratio is above 0, at least 95% asked.",
        "deflated_sharpe": "Probability 97.0% that the true Sharpe ratio is above what the best of 40 trials without "
        "an edge would show (1.10), at least 95% asked.",
        "track_record": "12.0 months of record; to tell this Sharpe ratio from 0 at 95% takes 6.0, and at least 3 are "
        "asked.",
        "max_drawdown": "Largest fall from a peak 10.0%, at most 20% allowed.",
        "trades": "80 closed round trips, at least 30 asked.",
        "permutation_p": "With single bars of the price path in random order the policy did as well on 1 of 200 "
        "paths: p 0.010, at most 0.05 allowed.",
        "versus_kelly": "Sharpe ratio +0.80 against Kelly only on the same bars, 90% interval +0.10 to +1.50; the "
        "lower end must be above 0.",
        "versus_champion": "Sharpe ratio +0.10 against the champion himari-000 on the same bars, 90% interval -0.40 "
        "to +0.60; the upper end must not be below 0.",
        "champion_margin": "Against the champion himari-000 at worst -0.40, the lower end of the 90% interval; at "
        "least -0.5 asked.",
        "not_degenerate": "The multiplier's standard deviation is 0.300, at least 0.02 asked of a policy that decides "
        "anything.",
        "degeneracy_findings": "Nothing speaks against the policy's decisions being its own.",
        "no_leak": "Signals, features, states and decisions (4 series) were computed again on data cut off at 2 bars, "
        "and the same to the last bit.",
        "walk_forward": "Stitched from 18 folds and 2 seeds, the procedure's record shows a Sharpe ratio of 1.60: "
        "probability 98.0% that its true one is above 0, at least 95% asked.",
    }


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (0.5, 0.95, "50.0%"),
        (0.9512, 0.95, "95.1%"),
        (0.9499, 0.95, "94.99%"),
        (BELOW, 0.95, "94.9999"),
        (0.999, 0.95, "99.9%"),
        (0.99999, 0.95, "above 99.9%"),
        (1.0, 0.95, "above 99.9%"),
        (1.0, 1.0, "above 99.9%"),
        (0.99999, 1.0, "99.999%"),
        (0.0, 0.95, "below 0.1%"),
    ],
)
def test_no_estimate_is_printed_as_a_certainty_or_as_its_limit_when_it_failed(
    value: float, limit: float, shown: str
) -> None:
    config = GateConfig(probabilistic_sharpe=limit)
    decision = judge(evaluation(with_trust(probabilistic=value)), config)
    failed(decision)
    assert asked(decision)["probabilistic_sharpe"].sentence.startswith(f"Probability {shown}")


def test_the_limits_can_be_set_and_travel_whole() -> None:
    strict = GateConfig(sharpe=3, deflated_sharpe=0.99, max_drawdown=0.05, trades=100, min_record_months=13, spread=0.5)
    decision = judge(evaluation(), strict)
    lost = ["sharpe", "deflated_sharpe", "track_record", "max_drawdown", "trades", "not_degenerate"]
    assert failed(decision) == lost
    assert decision.limits == dataclasses.asdict(strict)
    assert parse_gate_config(yaml.safe_dump(json.loads(json.dumps(decision.to_json()["limits"]))), "record") == strict


def test_an_override_passes_what_failed_and_changes_no_criterion() -> None:
    override = Override("  Ada Lovelace ", "Paper account only, agreed on 3 May. ")
    plain = judge(evaluation(sharpe=0.2))
    decision = judge(evaluation(sharpe=0.2), override=override)
    assert (plain.passed, decision.passed) == (False, True)
    assert decision.criteria == plain.criteria
    assert decision.override == Override("Ada Lovelace", "Paper account only, agreed on 3 May.")
    assert decision.to_json()["override"] == {"name": "Ada Lovelace", "reason": "Paper account only, agreed on 3 May."}
    assert failed(decision) == ["sharpe"]


def test_an_override_that_was_not_needed_is_not_recorded() -> None:
    assert judge(evaluation(), override=Override("Ada", "just in case")) == judge(evaluation())


@pytest.mark.parametrize(
    ("name", "reason", "says"),
    [
        ("", "because", "the override has no name"),
        ("Ada", "", "the override has no reason"),
        ("Ada", " \t ", "the override has no reason"),
        ("x" * 201, "because", "name has 201 characters, at most 200"),
        ("Ada", "x" * 1_001, r"reason has 1,001 characters, at most 1,000"),
        ("Ada\nLovelace", "because", "name is 'Ada.*one line"),
        ("Ada", "first\r\nsecond", "one line"),
        ("Ada", "a\x1b[31mred", "one line"),
        ("Ada", "a\u2028b", "one line"),
        ("Ada", "a\ud800b", "one line"),
        ("\u200b", "because", "name is .*one line"),
        ("Ada\u202eevelyn", "because", "one line"),
        ("Ada", "...", "reason is .*one line"),
        (None, "because", "the override has no name"),
        ("Ada", 7, "the override has no reason"),
    ],
)
def test_an_override_needs_a_name_and_a_reason_of_one_line(name: Any, reason: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_override(name, reason)
    for metrics in ({}, {"sharpe": 0.2}):
        with pytest.raises(ConfigurationError, match=says):
            judge(evaluation(**metrics), override=Override(name, reason))


def test_two_blank_texts_are_no_override_and_a_blank_override_is_an_error() -> None:
    assert parse_override("", "  ") is None
    assert parse_override("x" * 200, "y" * 1_000) == Override("x" * 200, "y" * 1_000)
    assert parse_override("José Ñ 李", "ok – “fine”") == Override("José Ñ 李", "ok – “fine”")
    with pytest.raises(ConfigurationError, match="no name and no reason"):
        judge(evaluation(sharpe=0.2), override=Override(" ", ""))


def test_the_shipped_file_is_the_defaults_and_leaves_nothing_out() -> None:
    assert load_gate_config(SHIPPED) == GateConfig()
    assert yaml.safe_load(SHIPPED.read_text()) == dataclasses.asdict(GateConfig())
    assert gate_config_text(SHIPPED) == SHIPPED.read_text()
    for line in SHIPPED.read_text().splitlines():
        assert not line.strip() or "#" in line, line


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("claim: risk\nwalk_forward: {required: false}\n")
    assert load_gate_config(path) == GateConfig(claim="risk", walk_forward=WalkForwardLimits(required=False))
    assert parse_gate_config("", "nothing") == GateConfig()
    assert gate_config_text(None) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shrpe: 1", r"unknown key 'shrpe'; did you mean 'sharpe'"),
        ("walk_forward: {requird: true}", r"'walk_forward.requird'; did you mean 'required'"),
        ("sharpe: high", r"sharpe is the text 'high'; it must be a number"),
        ("sharpe: '1.0'", r"sharpe is the text '1.0'"),
        ("sharpe: .nan", r"GateConfig.sharpe is nan"),
        ("sharpe: 1.0e+9", r"GateConfig.sharpe is 1000000000.0; it must be a number in \[-100, 100\]"),
        ("probabilistic_sharpe: 95", r"probabilistic_sharpe is 95; it must be a number in \[0, 1\]"),
        ("deflated_sharpe: -0.1", r"deflated_sharpe is -0.1"),
        ("max_drawdown: 20", r"max_drawdown is 20; it must be a number in \[0, 1\]"),
        ("permutation_p: 0", r"permutation_p is 0; it must be a number in \[0.00497512, 1\]"),
        ("permutation_p: 0.001", r"permutation_p is 0.001; it must be a number in \[0.00497512, 1\]"),
        ("permutation_p: 0.005", r"permutation_paths is 100; it must be a whole number in \[199, 200\]"),
        ("permutation_paths: 18", r"permutation_paths is 18; it must be a whole number in \[19, 200\]"),
        ("permutation_paths: 201", r"permutation_paths is 201; it must be a whole number in \[19, 200\]"),
        ("trades: 30.5", r"trades is 30.5; it must be a whole number"),
        ("trades: -1", r"trades is -1"),
        ("trades: true", r"trades is True"),
        ("min_record_months: -3", r"min_record_months is -3"),
        ("claim: both", r"claim is 'both'; it must be return or risk"),
        ("claim: 1", r"claim is 1; it must be return or risk"),
        ("risk_reduction: 1.0", r"risk_reduction is 1.0; it must be a number in \[0, 1\)"),
        ("spread: 2", r"spread is 2"),
        ("walk_forward: false", r"walk_forward is False; it must be a mapping"),
        ("walk_forward: {required: 1}", r"WalkForwardLimits.required is 1; it must be true or false"),
        ("walk_forward: {probabilistic_sharpe: 95}", r"walk_forward: WalkForwardLimits.probabilistic_sharpe is 95"),
        ("sharpe: 1\nsharpe: -5", r"'sharpe' stands there twice"),
        ("sharpe: [", "is not YAML"),
        ("- 1", r"the document is \[1\]"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_gate_config(path)
    assert "gate.yaml" in str(caught.value)
    with pytest.raises(ConfigurationError, match=says):
        parse_gate_config(text, "gate")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the gate's configuration .*absent.yaml"):
        load_gate_config(tmp_path / "absent.yaml")


NUMBER = st.none() | st.floats() | st.sampled_from([0.0, 0.02, 0.05, 0.2, 0.5, 0.95, 1.0, 30.0])
INTERVAL = st.builds(Interval, NUMBER, NUMBER, NUMBER)
TEXTS = st.lists(st.text(max_size=8), max_size=2).map(tuple)
TRUSTS = st.builds(
    Trust, NUMBER, NUMBER, NUMBER, NUMBER, st.integers(-1, 10**6), NUMBER, st.floats(), NUMBER, INTERVAL, INTERVAL
)
PERMUTATION = st.builds(
    Permutation,
    st.sampled_from(["bars", "blocks"]),
    st.integers(1, 24),
    st.sampled_from(["recomputed", "kept"]),
    st.floats(),
    st.sampled_from([(), (0.0,) * 99, (1.0,) * 100, (math.nan,) * 200]),
    st.floats() | st.floats(0, 0.1),
)
EVIDENCE = st.builds(
    Evidence,
    trust=st.none() | TRUSTS,
    differences=st.lists(
        st.builds(Difference, st.sampled_from([KELLY_ONLY, CHAMPION, "flat"]), INTERVAL, NUMBER), max_size=3
    ).map(tuple),
    permutations=st.lists(PERMUTATION, max_size=3).map(tuple),
    leak=st.none() | st.builds(Leak, TEXTS, st.lists(st.integers(), max_size=2).map(tuple), TEXTS),
    degeneracy=st.none()
    | st.builds(Degeneracy, st.integers(0, 9), NUMBER, NUMBER, NUMBER, NUMBER, st.integers(1, 5), NUMBER, TEXTS),
    walk_forward=st.none() | TRUSTS.map(lambda trust: replace(WALK, trust=trust)),
    champion=st.none() | st.text(max_size=8),
    problems=st.dictionaries(st.sampled_from(["trust", "champion", "leak", "differences"]), st.text(max_size=20)),
)
CONFIG = st.builds(
    GateConfig,
    sharpe=st.floats(-100, 100),
    permutation_p=st.floats(0.01, 1),
    trades=st.integers(0, 100),
    claim=st.sampled_from(["return", "risk"]),
    walk_forward=st.builds(WalkForwardLimits, st.booleans(), st.floats(0, 1)),
)


@settings(max_examples=150, deadline=None)
@given(EVIDENCE, st.fixed_dictionaries(dict.fromkeys(METRICS, NUMBER)), CONFIG)
def test_whatever_the_evidence_value_limit_and_answer_agree(
    evidence: Evidence, metrics: dict[str, float | None], config: GateConfig
) -> None:
    decision = judge(evaluation(evidence, **metrics), config)
    lost = failed(decision)
    overridden = judge(evaluation(evidence, **metrics), config, Override("Ada", "because"))
    assert overridden.passed
    assert (overridden.override is not None) == bool(lost)
    assert overridden.criteria == decision.criteria


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_worse_evidence_never_passes_what_better_evidence_did_not(data: st.DataObject) -> None:
    low, high = sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))
    for make in (
        lambda x: with_trust(probabilistic=x),
        lambda x: with_trust(deflated=x),
        lambda x: with_walk(probabilistic=x),
        lambda x: with_kelly(low=x - 0.5),
        lambda x: with_degeneracy(spread=x / 10),
    ):
        assert judge(evaluation(make(low))).passed <= judge(evaluation(make(high))).passed
    assert judge(evaluation(with_p(high))).passed <= judge(evaluation(with_p(low))).passed
