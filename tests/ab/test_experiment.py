"""The public face: sticky whatever the share becomes, forced apart, both sizes kept, harmful arms stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.ab.assignment import DAY_NS, Arm, Design, bucket
from layer3.ab.store import Store
from layer3.errors import ConfigurationError, DataError
from layer3.experiment import Experiment
from layer3.live.outcome import Limits
from layer3.sizing.chain import SizingChain
from layer3.sizing.chain import decide as decide_size
from layer3.sizing.config import ChainConfig
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal
from tests.fakes.clock import Clock

START = 1_767_225_600_000_000_000


def signal(number: int = 0, strategy: str = "m", symbol: str = "BTC") -> TacticalSignal:
    return TacticalSignal(strategy, symbol, Action.BUY, 0.8, 0.2, Regime.RANGING, START + number)


def decide(
    experiment: Experiment, number: int, kelly: float = 1_000.0, policy: float = 2_000.0, forced: Arm | None = None
):
    return experiment.record_decision(
        experiment.assign(signal(number), forced=forced),
        decision_id=str(number),
        kelly_usd=kelly,
        policy_usd=policy,
        portfolio_value=100_000.0,
        source="api",
        decided_ns=START + number,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "ab.sqlite") as opened:
        yield opened


def test_the_arm_is_the_hash_below_the_share(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x", ramp=((0.0, 0.3),)), clock=clock)
    assigned = [experiment.assign(signal(number)) for number in range(100)]
    assert [one.arm is Arm.POLICY for one in assigned] == [bucket("x", one.unit) < 0.3 for one in assigned]
    assert {(one.how, one.share) for one in assigned} == {("assigned", 0.3)}
    assert len({one.arm for one in assigned}) == 2


@settings(max_examples=20)
@given(days=st.lists(st.floats(0.0, 20.0), min_size=2, max_size=5))
def test_a_growing_share_moves_nobody_who_was_assigned(
    tmp_path_factory: pytest.TempPathFactory, days: list[float]
) -> None:
    ramp, clock = ((0.0, 0.1), (5.0, 0.5), (10.0, 1.0)), Clock(START)
    path = tmp_path_factory.mktemp("ramp") / "ab.sqlite"
    first: dict[str, Arm] = {}
    for day in days:
        clock.now = START + round(day * DAY_NS)
        # Opened anew each time: nothing is remembered but in the file.
        with Store(path) as store:
            experiment = Experiment(store, Design("x", unit="strategy", ramp=ramp), clock=clock)
            clock.now = max(clock.now, experiment.started_ns)
            for name in "abcdefgh":
                arm = experiment.assign(signal(strategy=name)).arm
                assert arm is first.setdefault(name, arm)


def test_the_ramp_counts_from_the_first_opening(store: Store, clock: Clock) -> None:
    design = Design("x", ramp=((0.0, 0.0), (3.0, 1.0)))
    assert Experiment(store, design, clock=clock).assign(signal(1)).arm is Arm.KELLY
    clock.now += 3 * DAY_NS
    again = Experiment(store, design, clock=clock)
    assert (again.started_ns, again.assign(signal(1)).arm, again.assign(signal(2)).arm) == (
        START,
        Arm.KELLY,
        Arm.POLICY,
    )


def test_another_design_under_the_same_name_is_refused(store: Store, clock: Clock) -> None:
    Experiment(store, Design("x"), clock=clock)
    with pytest.raises(ConfigurationError, match=r"ramp was .*level was 0\.95.*a name of its own"):
        Experiment(store, Design("x", ramp=((0.0, 0.6),), level=0.9), clock=clock)


def test_both_sizes_are_kept_and_one_is_held(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    decisions = [decide(experiment, number) for number in range(20)]
    for decision in decisions:
        expected = (2_000.0, 1_000.0) if decision.arm is Arm.POLICY else (1_000.0, 2_000.0)
        assert (decision.size_usd, decision.counterfactual_usd) == expected
    assert [row.decision for row in store.rows("x")] == decisions


def engine_says(number: int, multiplier: float, room: float = 2.0, stop: tuple[str, str] | None = None):
    one = signal(number)
    assessment = SizingChain(ChainConfig()).assess(one, CascadeIndicators(0.0001, 0.0, 1.0, 0.1, 0.0))
    sized = decide_size(
        one,
        assessment,
        multiplier=multiplier,
        multiplier_source="gcp_api",
        portfolio_value=50_000.0,
        limit=Limits(2.0 - room, 2.0, 0.0, 0.02, stop).apply,
        refusal=None if stop is None else stop[0],
        decision_id=f"id-{number}",
        timestamp_ns=START + number,
    )
    return one, sized, assessment.base_fraction * 50_000.0


def test_what_the_engine_decided_is_recorded_with_both_sizes(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    for number, multiplier in enumerate([0.0, 0.5, 1.0, 1.7]):
        one, sized, base = engine_says(number, multiplier)
        assert base > 0.0
        decision = experiment.record_sizing(one, sized)
        assert (decision.kelly_usd, decision.policy_usd) == pytest.approx((base, base * multiplier))
        assert (decision.id, decision.source, decision.portfolio_value) == (f"id-{number}", "gcp_api", 50_000.0)
        assert decision.decided_ns == START + number
        assert experiment.record_sizing(one, sized) == decision


@pytest.mark.parametrize("share", [0.3, 1.0, 1.5])
def test_what_cuts_the_policys_size_cuts_kellys(store: Store, clock: Clock, share: float) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    base = engine_says(1, 1.0)[2]
    one, sized, _ = engine_says(1, 2.0, room=share * base / 50_000.0)
    decision = experiment.record_sizing(one, sized)
    assert decision.policy_usd == pytest.approx(share * base)
    assert decision.kelly_usd == pytest.approx(min(share, 1.0) * base)


def test_what_the_engine_refused_is_zero_for_both(store: Store, clock: Clock) -> None:
    one, sized, _ = engine_says(1, 1.5, stop=("kill_switch", "it is on"))
    decision = Experiment(store, Design("x"), clock=clock).record_sizing(one, sized)
    assert (decision.kelly_usd, decision.policy_usd) == (0.0, 0.0)


def test_a_forced_arm_is_recorded_as_forced_and_changes_no_assignment(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    own = experiment.assign(signal(5)).arm
    other = Arm.KELLY if own is Arm.POLICY else Arm.POLICY
    decision = decide(experiment, 5, forced=other)
    assert (decision.arm, decision.how) == (other, "forced")
    assert experiment.assign(signal(5)).arm is own


def test_an_arm_that_is_none_cannot_be_forced(store: Store, clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match="policy or kelly"):
        Experiment(store, Design("x"), clock=clock).assign(signal(1), forced="rl")  # type: ignore[arg-type]


def test_a_decision_or_an_outcome_of_the_future_is_refused(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    with pytest.raises(DataError, match="into the future"):
        decide(experiment, 10_000_000_000)
    decide(experiment, 1)
    with pytest.raises(DataError, match="when the trade has closed"):
        experiment.record_outcome("1", pnl_usd=1.0, realised_return=0.001, duration_s=3_600.0)
    clock.now += 3_600 * 10**9
    assert experiment.record_outcome("1", pnl_usd=1.0, realised_return=0.001, duration_s=3_600.0) is None


@pytest.mark.parametrize("harmed", list(Arm))
def test_a_guardrail_stops_the_policy_and_never_kelly(store: Store, clock: Clock, harmed: Arm) -> None:
    experiment = Experiment(store, Design("x", daily_loss=0.02), clock=clock)
    chosen = [decide(experiment, number) for number in range(40)]
    mine = [decision for decision in chosen if decision.arm is harmed]
    clock.now += DAY_NS // 2
    stops = [
        experiment.record_outcome(decision.id, pnl_usd=-900.0, realised_return=-0.01, duration_s=60.0)
        for decision in mine[:4]
    ]
    later = experiment.assign(signal(1_000))
    if harmed is Arm.KELLY:
        assert stops == [None] * 4
        assert store.stopped("x") is None
        return
    # 0.9 % a trade: the third one breaks 2 %.
    assert [stop is not None for stop in stops] == [False, False, True, True]
    assert "lost on one day 2.70%" in stops[2].reason  # type: ignore[union-attr]
    assert (later.arm, later.how) == (Arm.KELLY, "stopped")
    # Its own earlier units, too; and a test may still force it.
    policy = next(decision for decision in chosen if decision.arm is Arm.POLICY)
    assert experiment.assign(signal(int(policy.id))).arm is Arm.KELLY
    assert experiment.assign(signal(1_000), forced=Arm.POLICY).how == "forced"


def test_losses_of_forced_decisions_stop_nothing(store: Store, clock: Clock) -> None:
    experiment = Experiment(store, Design("x"), clock=clock)
    decide(experiment, 1, forced=Arm.POLICY)
    clock.now += DAY_NS
    assert experiment.record_outcome("1", pnl_usd=-50_000.0, realised_return=-0.5, duration_s=60.0) is None
    assert store.stopped("x") is None
