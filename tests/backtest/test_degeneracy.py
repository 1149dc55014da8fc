"""Policies that decide nothing, each found, and one that does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from layer3.agent.bars import Bars
from layer3.agent.policy import Policy, stack
from layer3.backtest.degeneracy import find_degeneracy, member_multipliers
from layer3.backtest.engine import run
from layer3.backtest.record import Degeneracy, Track
from tests.agent.worlds import Tensors, constant_member, make_bars, make_member

WINDOW = range(30, 430)


def mirrored(member: Tensors) -> Tensors:
    """The policy that always answers the opposite: 2 less what ``member`` does."""
    sign = np.array([-1.0, 1.0], dtype=np.float32)
    return member | {"w3": member["w3"] * sign, "b3": member["b3"] * sign}


def walked(bars: Bars, policy: Policy) -> Track:
    return run(bars, WINDOW, {"x": lambda state, _: float(policy.act(state)[0])})["x"]


def found(*members: Tensors, bars: Bars | None = None) -> Degeneracy:
    policy, bars = Policy(stack(members), {}), bars or make_bars(500)
    return find_degeneracy(bars, WINDOW, policy, walked(bars, policy))


def test_a_policy_that_decides_has_no_finding() -> None:
    bars, policy = make_bars(500), Policy(stack([make_member()]), {})
    track = walked(bars, policy)
    got = find_degeneracy(bars, WINDOW, policy, track)
    chosen = track.multiplier[bars.direction[30:428] != 0]
    assert got.findings == ()
    assert (got.decisions, got.members, got.agreement) == (len(chosen), 1, None)
    assert 200 < len(chosen) < 398
    assert (got.mean, got.spread) == (chosen.mean(), chosen.std())
    assert got.at_low == np.mean(chosen <= 0.02)
    assert got.at_high == np.mean(chosen >= 1.98)


def test_where_the_chain_holds_nothing_no_decision_counts() -> None:
    quiet = found(make_member(), bars=make_bars(500, base_fraction=np.where(np.arange(500) < 200, 0.2, 0.0)))
    busy = found(make_member(), bars=make_bars(500, base_fraction=np.full(500, 0.2)))
    assert quiet.decisions < busy.decisions / 2
    nothing = found(make_member(), make_member(2), bars=make_bars(500, direction=np.zeros(500, dtype=np.int8)))
    sentence = "The chain holds nothing at any of 398 decisions, so the policy decided nothing."
    assert nothing == Degeneracy(0, None, None, None, None, 2, None, (sentence,))


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 1.5])
def test_a_constant_is_found(multiplier: float) -> None:
    got = found(constant_member(multiplier))
    assert got.mean == pytest.approx(multiplier, abs=1e-6)
    assert got.spread == pytest.approx(0.0, abs=1e-6)
    assert len(got.findings) == 1
    assert got.findings[0].startswith(f"The multiplier hardly varies: mean {multiplier:.3f}, standard deviation 0.0000")


@pytest.mark.parametrize(("multiplier", "bound"), [(0.01, "0"), (1.99, "2")])
def test_a_bound_is_found(multiplier: float, bound: str) -> None:
    got = found(constant_member(multiplier))
    assert (got.at_low, got.at_high) == ((1.0, 0.0) if bound == "0" else (0.0, 1.0))
    assert got.findings[1] == f"100.0% of {got.decisions} decisions are at the bound {bound}."


def steps(share: float) -> Callable[[Track], Track]:
    """Multipliers at 2 in the first ``share`` of the bars and at 0 in the others."""
    return lambda track: Track(
        **{**vars(track), "multiplier": np.where(np.arange(398) < round(share * 398), 2.0, 0.0)},
    )


@pytest.mark.parametrize(("share", "findings"), [(0.5, 0), (0.9, 0), (0.99, 1), (0.01, 1)])
def test_both_bounds_in_turn_are_decisions_and_nearly_always_one_is_not(share: float, findings: int) -> None:
    bars = make_bars(500, direction=np.ones(500, dtype=np.int8))
    policy = Policy(stack([make_member()]), {})
    got = find_degeneracy(bars, WINDOW, policy, steps(share)(walked(bars, policy)))
    assert len(got.findings) == findings
    assert got.at_low is not None
    assert got.at_high is not None
    assert got.at_low + got.at_high == 1.0


def test_five_seeds_with_one_output_are_a_finding() -> None:
    got = found(*[make_member(3)] * 5)
    assert got.members == 5
    assert got.agreement == pytest.approx(1.0)
    assert got.findings == ("All 5 members give the same answers: one policy 5 times, not an ensemble.",)


def test_two_of_three_alike_are_named() -> None:
    got = found(make_member(3), make_member(1), make_member(3))
    assert "Of 3 members these give the same answers: 0 and 2." in got.findings
    assert not any(finding.startswith("All") for finding in got.findings)


def test_members_that_disagree_entirely_are_found() -> None:
    got = found(make_member(3), mirrored(make_member(3)))
    assert got.agreement == pytest.approx(-1.0)
    assert any("mean correlation of their multipliers is -1.00" in finding for finding in got.findings)
    # Their mean is 1 whatever they see.
    assert any(finding.startswith("The multiplier hardly varies: mean 1.000") for finding in got.findings)


def test_one_idle_member_is_found_and_the_others_agreement_is_theirs() -> None:
    near = make_member(3)
    near = near | {"b1": near["b1"] + np.float32(0.05)}
    got = found(make_member(3), near, constant_member(1.2))
    assert got.findings == ("1 of 3 members hardly vary.",)
    assert got.agreement is not None
    assert 0.9 < got.agreement < 1.0
    assert found(constant_member(1.2), constant_member(0.8)).agreement is None
    assert found(make_member(3), constant_member(1.2)).agreement is None


def test_agreement_is_the_mean_of_pandas_correlations() -> None:
    bars, policy = make_bars(500), Policy(stack([make_member(seed) for seed in (1, 2, 3, 4)]), {})
    got = find_degeneracy(bars, WINDOW, policy, walked(bars, policy))
    held = bars.direction[30:428] != 0
    table = pd.DataFrame(member_multipliers(bars, WINDOW, policy)[:, held].T.astype(float)).corr().to_numpy()
    assert got.agreement == pytest.approx((table.sum() - 4) / 12, rel=1e-9)


def test_members_are_asked_about_the_states_that_were_met() -> None:
    bars, policy = make_bars(500), Policy(stack([make_member(seed) for seed in (1, 2)]), {})
    apart = member_multipliers(bars, WINDOW, policy)
    assert apart.shape == (2, 398)
    np.testing.assert_allclose(apart.mean(axis=0), walked(bars, policy).multiplier, atol=1e-5)
