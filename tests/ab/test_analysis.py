"""The analysis of what a store holds: each number by a plain loop, and clear words where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from layer3.ab.analysis import Analysis, analyse
from layer3.ab.assignment import DAY_NS, Arm, Design
from layer3.ab.records import Decision, Outcome, Row
from layer3.ab.rehearsal import START_NS, rehearse
from layer3.ab.simulate import World
from layer3.ab.store import Store
from layer3.errors import DataError

SMALL = World(decisions=16, days=12, skill=0.5)
DESIGN = Design("rehearsed", least_units=15, expected_units=200, planned_days=30.0)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("ab") / "ab.sqlite") as store:
        rehearse(store, DESIGN, SMALL, seed=4)
        yield store


@pytest.fixture(scope="module")
def found(rehearsed: Store) -> Analysis:
    return analyse(rehearsed, "rehearsed")


def closed(store: Store) -> list[Row]:
    return [row for row in store.rows("rehearsed") if row.outcome]


def test_the_arms_are_what_a_loop_over_the_rows_says(rehearsed: Store, found: Analysis) -> None:
    rows = closed(rehearsed)
    days = (max(row.closed_ns for row in rows) - min(row.decision.decided_ns for row in rows)) / DAY_NS
    per_year = len(rows) / days * 365.0
    assert found.units_per_year == pytest.approx(per_year)
    for arm in Arm:
        mine = sorted((row for row in rows if row.decision.arm is arm), key=lambda row: row.closed_ns)
        returns = [row.outcome.pnl_usd / row.decision.portfolio_value for row in mine if row.outcome]
        equity = peak = 1.0
        fall = 0.0
        for gained in returns:
            equity *= 1.0 + gained
            peak = max(peak, equity)
            fall = max(fall, 1.0 - equity / peak)
        result = found.arms[arm]
        held = [gained for row, gained in zip(mine, returns, strict=True) if row.decision.size_usd]
        assert (result.units, result.outcomes, result.trades) == (len(mine), len(mine), len(held))
        assert result.mean is not None
        assert result.mean.estimate == pytest.approx(np.mean(returns))
        assert result.total == pytest.approx(sum(returns))
        assert result.sharpe.estimate == pytest.approx(
            np.mean(returns) / np.std(returns, ddof=1) * math.sqrt(per_year), rel=1e-9
        )
        assert result.drawdown.estimate == pytest.approx(fall)
        assert result.win_rate == pytest.approx(np.mean(np.array(held) > 0.0))
        assert result.sharpe.low is not None
        assert result.sharpe.high is not None
        assert result.sharpe.low < result.sharpe.estimate < result.sharpe.high  # type: ignore[operator]


def test_the_tests_are_those_of_scipy(rehearsed: Store, found: Analysis) -> None:
    rows = closed(rehearsed)
    returns = {arm: [r.outcome.pnl_usd / 1e5 for r in rows if r.outcome and r.decision.arm is arm] for arm in Arm}
    at_policy, at_kelly = (
        np.array([abs(getattr(r.decision, name)) / 1e5 * r.outcome.realised_return for r in rows if r.outcome])
        for name in ("policy_usd", "kelly_usd")
    )
    assert found.welch is not None
    assert found.paired is not None
    theirs = stats.ttest_ind(returns[Arm.POLICY], returns[Arm.KELLY], equal_var=False)
    assert found.welch.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert found.paired.p == pytest.approx(stats.ttest_rel(at_policy, at_kelly).pvalue, rel=1e-6)
    ratio = at_policy.mean() / at_policy.std(ddof=1) - at_kelly.mean() / at_kelly.std(ddof=1)
    assert found.sharpe_difference.estimate == pytest.approx(ratio * math.sqrt(found.units_per_year or 0.0))


def test_each_look_knows_what_was_known_then(rehearsed: Store, found: Analysis) -> None:
    rows = closed(rehearsed)
    for look in found.looks:
        known = [row for row in rows if row.known_ns <= look.at_ns]
        assert sum(look.units) == len(known)
        assert look.low < look.difference < look.high
    assert [look.at_ns for look in found.looks] == sorted(look.at_ns for look in found.looks)
    assert all(later.p <= sooner.p for sooner, later in zip(found.looks, found.looks[1:], strict=False))
    assert found.looks[-1].at_ns == found.until_ns >= max(row.known_ns for row in rows)


def test_the_base_size_and_what_it_earned_take_most_of_the_noise(found: Analysis) -> None:
    assert found.removed is not None
    assert found.removed_by_size is not None
    assert 0.0 <= found.removed_by_size < 0.5 < found.removed < 1.0
    assert found.looks[-1].high - found.looks[-1].low < 3.0 * (found.welch.high - found.welch.low)  # type: ignore[union-attr]


def fill(
    store: Store,
    n: int,
    *,
    kelly: float = 1_000.0,
    policy: float = 1_500.0,
    outcome: float = 0.01,
    arms: str = "both",
) -> None:
    """``n`` decisions an hour apart, alternately of each arm, each known when it closes."""
    name = "x"
    store.begin(name, Design(name, least_units=10).as_text(), START_NS)
    for number in range(n):
        arm = Arm.POLICY if number % 2 else Arm.KELLY
        at = START_NS + number * 3_600 * 10**9
        unit = f"{name} {number}"
        store.assign(name, unit, arm, 0.5, at)
        decision = Decision(unit, name, unit, arm, "assigned", "BTC", "m", kelly, policy, 1e5, "api", at)
        store.add_decision(decision, at)
        if outcome is not None and (arms == "both" or arms == arm.value):
            store.add_outcome(
                name, Outcome(unit, abs(decision.size_usd) * outcome, outcome, 60.0), at + 60 * 10**9, 2**62
            )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "ab.sqlite") as opened:
        yield opened


def test_an_unknown_experiment_is_named(store: Store) -> None:
    with pytest.raises(DataError, match="knows no experiment 'x': it holds no experiment yet"):
        analyse(store, "x")


def test_an_experiment_without_decisions_says_that_it_goes_on(store: Store) -> None:
    fill(store, 0)
    found = analyse(store, "x")
    assert found.recommendation.action == "continue"
    assert (found.looks, found.welch, found.units_per_year, found.ratio_p) == ((), None, None, None)


@pytest.mark.parametrize("arms", ["policy", "kelly"])
def test_an_arm_without_outcomes_proves_nothing(store: Store, arms: str) -> None:
    fill(store, 80, arms=arms)
    found = analyse(store, "x")
    assert found.recommendation.action == "continue"
    assert "0 units" in found.recommendation.reason or "0 of Kelly's" in found.recommendation.reason
    assert found.left_out["no outcome yet"] == 40
    assert found.known_ratio_p is not None
    assert found.known_ratio_p < 1e-6


def test_too_few_units_are_waited_for(store: Store) -> None:
    fill(store, 16)
    told = analyse(store, "x").recommendation
    assert "8 units of the policy's arm and 8 of Kelly's" in told.reason
    assert told.more == "At the rate so far each arm has as many in 1 day more."


def test_equal_returns_prove_nothing(store: Store) -> None:
    fill(store, 80, outcome=0.0)
    found = analyse(store, "x")
    assert found.recommendation.action == "continue"
    assert "All returns are equal" in found.recommendation.reason
    assert found.arms[Arm.KELLY].win_rate == 0.0
    assert found.arms[Arm.KELLY].sharpe.estimate is None


def test_equal_sizes_are_no_difference(store: Store) -> None:
    fill(store, 80, policy=1_000.0)
    assert analyse(store, "x").recommendation.action == "no_difference"


def test_a_policy_that_always_loses_is_stopped_by_its_guardrail(store: Store) -> None:
    fill(store, 80, kelly=20_000.0, policy=40_000.0, outcome=-0.01)
    found = analyse(store, "x")
    assert found.recommendation.action == "disable"
    assert "guardrail" in found.recommendation.reason
    assert any("Kelly's arm broke a guardrail too" in warning for warning in found.warnings)


def test_a_broken_split_is_told_before_any_difference(store: Store) -> None:
    fill(store, 80)
    for number in range(60):
        unit, at = f"more {number}", START_NS + (number + 80) * 3_600 * 10**9
        store.assign("x", unit, Arm.POLICY, 0.5, at)
        store.add_decision(Decision(unit, "x", unit, Arm.POLICY, "assigned", "BTC", "m", 1e3, 2e3, 1e5, "api", at), at)
        store.add_outcome("x", Outcome(unit, 100.0, 0.05, 1.0), at, 2**62)
    found = analyse(store, "x")
    assert found.ratio_p is not None
    assert found.ratio_p < 0.001
    assert "not the intended one" in found.recommendation.reason


def test_forced_decisions_and_empty_ones_are_counted_and_left_out(store: Store) -> None:
    fill(store, 40)
    before = analyse(store, "x")
    for number in range(30):
        store.add_decision(
            Decision(f"f{number}", "x", "u", Arm.POLICY, "forced", "BTC", "m", 1e3, 2e3, 1e5, "api", START_NS), START_NS
        )
        store.add_outcome("x", Outcome(f"f{number}", 1e4, 5.0, 1.0), START_NS, 2**62)
    store.assign("x", "hold", Arm.POLICY, 0.5, START_NS)
    store.add_decision(Decision("hold", "x", "hold", Arm.POLICY, "assigned", "B", "m", 0.0, 0.0, 1e5, "api", 1), 1)
    after = analyse(store, "x")
    assert after.left_out == {"forced": 30, "both sizes zero": 1}
    assert (after.arms, after.looks, after.ratio_p) == (before.arms, before.looks, before.ratio_p)


def test_what_cannot_be_trusted_is_said(store: Store) -> None:
    fill(store, 20)
    at = START_NS + 10**9
    store.assign("x", "odd", Arm.POLICY, 0.5, at)
    decision = Decision("odd", "x", "odd", Arm.POLICY, "assigned", "BTC", "m", 1e3, 1e3, 1e5, "fallback_kelly", at)
    store.add_decision(decision, at)
    store.add_outcome("x", Outcome("odd", 30.0, -0.03, 60.0), at, 2**62)
    first, second = analyse(store, "x").warnings
    assert "In 1 outcomes the P&L is not the size times the return" in first
    assert "In 1 of the policy's 11 decisions no policy answered" in second


def test_units_are_what_was_assigned_as_one(store: Store) -> None:
    store.begin("x", Design("x", unit="symbol_day", least_units=10).as_text(), START_NS)
    for number in range(60):
        unit, at = f"day {number // 3}", START_NS + number * 8 * 3_600 * 10**9
        store.assign("x", unit, Arm.POLICY if number // 3 % 2 else Arm.KELLY, 0.5, at)
        arm = store.assigned("x", unit)[0]  # type: ignore[index]
        decision = Decision(str(number), "x", unit, arm, "assigned", "B", "m", 1e3, 2e3, 1e5, "api", at)
        store.add_decision(decision, at)
        store.add_outcome("x", Outcome(str(number), decision.size_usd * 0.01, 0.01, 60.0), at, 2**62)
    found = analyse(store, "x")
    assert (found.arms[Arm.POLICY].units, found.arms[Arm.POLICY].outcomes) == (10, 30)
    assert found.units_per_year == pytest.approx(365.0 * 20 / (59 / 3 + 60 / 86_400))
