from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.ab.assignment import Arm, Assignment
from layer3.types import Action, CascadeIndicators, ClosedTrade, PositionSizingDecision, Regime, TacticalSignal
from tests.live.desk import CALM, CLOUD, DAY, NOON, OFF, Desk, Scripted, signal_of

unit = st.floats(0.0, 1.0)
signals = st.builds(
    signal_of,
    action=st.sampled_from(Action),
    confidence=unit,
    risk_score=unit,
    regime=st.sampled_from(Regime),
    expected_return=st.none() | st.floats(-1.0, 10.0),
    predicted_volatility=st.none() | st.floats(0.0, 5.0),
    sentiment_score=st.none() | unit,
)
feeds = st.builds(
    CascadeIndicators,
    st.floats(-0.1, 0.1),
    st.none() | st.floats(-1.0, 2.0),
    st.none() | st.floats(0.0, 100.0),
    st.none() | unit,
    st.none() | st.floats(-20.0, 20.0),
    st.none() | st.floats(0.0, 1e10),
)
prices = st.floats(1e-9, 1e9)
multipliers = st.floats(0.0, 2.0)


@settings(deadline=None)
@given(signals, feeds, prices, multipliers, st.floats(0.01, 0.5), st.floats(0.05, 10.0), st.floats(-1e6, 1e6), prices)
def test_a_size_is_finite_within_its_caps_and_on_the_signals_side(
    signal: TacticalSignal, cascade: CascadeIndicators, price: float, multiplier: float, cap: float, leverage: float,
    position: float, entry: float,
) -> None:  # fmt: skip
    overrides = {**CLOUD, "chain": {"max_exposure": cap}, "risk": {"max_leverage": leverage}}
    got = Desk(overrides, Scripted(multiplier)).size(
        signal, cascade, price, current_position_usd=position, entry_price=entry
    )
    assert got.refusal in (None, "daily_loss")
    assert abs(got.exposure) <= min(cap, leverage)
    assert got.position_size_usd == got.exposure * 100_000.0
    assert got.exposure * signal.action.side >= 0.0
    assert math.copysign(1.0, got.exposure) == 1.0 or got.exposure < 0.0
    if signal.action is Action.HOLD or got.refusal is not None:
        assert got.exposure == 0.0
    assert abs(got.exposure) <= got.base_fraction * multiplier
    assert got.state is not None
    assert np.isfinite(got.state).all()
    json.dumps(got.to_json(), allow_nan=False)


class Chosen:
    """An experiment that gives everybody one arm."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def assign(self, signal: TacticalSignal) -> Assignment:
        return Assignment("x", self.arm, "assigned", "u", signal.symbol, signal.strategy_id, 0.5)


@settings(deadline=None)
@given(signals, feeds, multipliers, st.floats(0.01, 0.5), st.floats(0.05, 10.0), st.booleans())
def test_either_arm_holds_what_it_would_hold_alone(
    signal: TacticalSignal, cascade: CascadeIndicators, multiplier: float, cap: float, leverage: float, killed: bool
) -> None:
    overrides = {**CLOUD, "chain": {"max_exposure": cap}, "risk": {"max_leverage": leverage}}

    def sized(multiplier: float, arm: Arm | None) -> PositionSizingDecision:
        desk = Desk(overrides, Scripted(multiplier), assigner=None if arm is None else Chosen(arm))
        if killed:
            desk.engine.kill_switch.engage("test")
        return desk.size(signal, cascade)

    policy, kelly = sized(multiplier, None), sized(1.0, None)
    for arm in Arm:
        got = sized(multiplier, arm)
        assert got.experiment is not None
        assert got.experiment.policy_usd == policy.position_size_usd
        assert got.experiment.kelly_usd == kelly.position_size_usd
        assert got.position_size_usd == (policy if arm is Arm.POLICY else kelly).position_size_usd
        assert (got.multiplier, got.multiplier_source) == (policy.multiplier, policy.multiplier_source)


@settings(deadline=None)
@given(signals.filter(lambda s: s.expected_return is None or s.expected_return >= 0.0), unit, feeds)
def test_more_confidence_never_holds_less(signal: TacticalSignal, other: float, cascade: CascadeIndicators) -> None:
    low, high = sorted((signal.confidence, other))
    sizes = [abs(Desk().size(dataclasses.replace(signal, confidence=c), cascade).exposure) for c in (low, high)]
    assert sizes[0] <= sizes[1] + 1e-12


@settings(deadline=None)
@given(signals, feeds, feeds)
def test_more_cascade_risk_never_holds_more(
    signal: TacticalSignal, one: CascadeIndicators, two: CascadeIndicators
) -> None:
    calm, wild = sorted((Desk().size(signal, c) for c in (one, two)), key=lambda decision: decision.cascade_risk)
    assert abs(wild.exposure) <= abs(calm.exposure)


class Nasty:
    """Raises at whatever is tried with it."""

    def _no(self, *_: object) -> Any:
        raise RuntimeError("do not touch me")

    __float__ = __int__ = __index__ = __repr__ = __str__ = __bool__ = __len__ = __iter__ = __hash__ = _no
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __mul__ = __abs__ = __getitem__ = __eq__ = _no  # type: ignore[assignment]


class NastyFloat(float):
    """A number only in name."""

    def __le__(self, other: object) -> Any:
        raise RuntimeError("do not compare me")

    __lt__ = __ge__ = __gt__ = __le__


anything = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.just(10**400), st.just(-(10**5000)), st.text(max_size=5),
    st.binary(max_size=3), st.complex_numbers(), st.decimals(), st.fractions(), st.dates(), st.builds(Nasty),
    st.just(NastyFloat(0.5)), st.just(np.float32("nan")), st.just(np.array([1.0, 2.0])), st.just(np.bool_(True)),
    st.just(np.int64(5)), st.just(object), st.just(lambda: 1.0), st.lists(st.floats(), max_size=2),
    st.dictionaries(st.sampled_from(["pnl", "return", "id", "timestamp_ns"]), st.floats(), max_size=3),
    st.sampled_from(Action), st.sampled_from(Regime),
)  # fmt: skip
trades = st.builds(ClosedTrade, anything, anything, anything, anything)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return good | anything


broken_signals = st.builds(
    TacticalSignal, mostly(st.just("s")), mostly(st.just("BTC")), mostly(st.sampled_from(Action)), mostly(unit),
    mostly(unit), mostly(st.sampled_from(Regime)), mostly(st.just(NOON)), mostly(unit), mostly(unit), anything,
    anything,
)  # fmt: skip
broken_feeds = st.builds(CascadeIndicators, *[mostly(unit)] * 6)


@settings(deadline=None, max_examples=500)
@given(
    mostly(broken_signals | signals), mostly(broken_feeds | feeds), mostly(prices), mostly(prices), mostly(prices),
    mostly(st.lists(mostly(trades), max_size=3)), mostly(st.just(NOON)), mostly(multipliers),
)  # fmt: skip
def test_nothing_makes_it_raise(
    signal: Any, cascade: Any, price: Any, position: Any, entry: Any, recent: Any, stamp: Any, multiplier: Any
) -> None:
    desk = Desk(CLOUD, Scripted(lambda: multiplier))
    got = desk.size(
        signal, cascade, price, current_position_usd=position, entry_price=entry, recent_trades=recent,
        price_timestamp_ns=stamp,
    )  # fmt: skip
    assert math.isfinite(got.position_size_usd)
    assert abs(got.exposure) <= 0.5
    assert got.refusal is None or got.position_size_usd == 0.0
    assert got.reason
    assert desk.engine.counters["decisions"] == 1
    if got.refusal == "internal_error":  # only a policy that answers no number in [0, 2] is one
        assert type(multiplier) not in (float, int) or not 0.0 <= multiplier <= 2.0
    json.dumps(got.to_json(), allow_nan=False)
    after = desk.size()  # and it goes on as if nothing had been
    assert after.refusal in (None, "internal_error", "daily_loss")


Step = Callable[[Desk], PositionSizingDecision | None]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """A turn of the clock, then a decision (good, bad, stale), or something else that changes what is remembered."""
    wait = draw(st.sampled_from([0, 10**9, 3_600 * 10**9, 7 * 3_600 * 10**9, DAY]))
    kind = draw(st.sampled_from(["size", "size", "size", "size", "residual", "kill", "release", "reset"]))
    signal = draw(signals)
    changes = {"symbol": draw(st.sampled_from(["A", "B"])), "strategy_id": draw(st.sampled_from(["x", "y"]))}
    if draw(st.integers(0, 9)) == 0:
        changes["confidence"] = math.nan
    late = draw(st.sampled_from([0, 0, 0, 6 * 10**9]))
    price = draw(st.floats(50.0, 150.0))
    account = {
        "current_position_usd": draw(st.sampled_from([0.0, 5_000.0, -20_000.0])),
        "entry_price": draw(st.none() | st.floats(80.0, 120.0)),
        "recent_trades": draw(
            st.lists(
                st.builds(
                    ClosedTrade,
                    st.floats(-0.05, 0.05),
                    st.none() | st.floats(-900.0, 900.0),
                    st.none() | st.integers(NOON, NOON + 3 * DAY),
                    st.none() | st.sampled_from("abcdef"),
                ),
                max_size=4,
            )
        ),
    }
    residual = draw(st.floats(-0.1, 0.1))

    def step(desk: Desk) -> PositionSizingDecision | None:
        desk.now += wait
        if kind == "size":
            told = dataclasses.replace(signal, timestamp_ns=desk.now - late, **changes)
            return desk.size(told, CALM, price, **account)
        if kind == "residual":
            for i in range(25):
                desk.engine.record_residual(str(changes["symbol"]), residual, 0.01 * i)
        elif kind == "kill":
            desk.engine.kill_switch.engage("test")
        elif kind == "release":
            desk.engine.kill_switch.release()
        else:
            desk.engine.reset_daily_loss()
        return None

    return step


def told(decision: PositionSizingDecision | None) -> Any:
    if decision is None:
        return None
    return {name: v for name, v in decision.to_json().items() if name not in ("decision_id", "latency_ms")}


@settings(deadline=None, max_examples=40)
@given(st.lists(steps(), min_size=2, max_size=14))
def test_stopped_anywhere_and_started_again_it_decides_the_same(stream: list[Step]) -> None:
    whole = Desk()
    expected = [told(step(whole)) for step in stream]
    for cut in range(len(stream)):
        desk = Desk()
        got = [told(step(desk)) for step in stream[:cut]]
        kept = json.loads(json.dumps(desk.engine.snapshot(), allow_nan=False))
        again = Desk(OFF, now=desk.now, state=kept)
        got += [told(step(again)) for step in stream[cut:]]
        assert got == expected
        ended, other = again.engine.snapshot(), whole.engine.snapshot()
        for snapshot in (ended, other):
            del snapshot["latest"]  # the id of a decision, counted anew in each engine
        assert ended == other
