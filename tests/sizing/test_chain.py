from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.errors import ConfigurationError
from layer3.sizing.chain import SizingChain, decide
from layer3.sizing.config import ChainConfig, ConformalConfig, KellyConfig, RegimeConfig
from layer3.types import Action, CascadeIndicators, PositionSizingDecision, Regime, TacticalSignal

CALM = CascadeIndicators(0.0001, 0.0, 1.0, 0.3, 0.0)


def sized(signal: TacticalSignal, cascade: CascadeIndicators = CALM, multiplier: float = 1.0) -> PositionSizingDecision:
    return decide(
        signal,
        SizingChain().assess(signal, cascade),
        multiplier=multiplier,
        multiplier_source="test",
        portfolio_value=100_000.0,
    )


def test_old_bug_hold_and_sell_sized_like_a_buy(signal: TacticalSignal) -> None:
    by_action = {a: sized(dataclasses.replace(signal, action=a)).exposure for a in Action}
    assert by_action[Action.HOLD] == 0.0
    assert by_action[Action.BUY] == by_action[Action.STRONG_BUY] > 0.0
    assert by_action[Action.SELL] == by_action[Action.STRONG_SELL] == -by_action[Action.BUY]


def test_with_shorts_off_a_sell_is_nothing(signal: TacticalSignal) -> None:
    sell = dataclasses.replace(signal, action=Action.SELL)
    assessment = SizingChain(ChainConfig(allow_shorts=False)).assess(sell, CALM)
    assert (assessment.direction, assessment.base_fraction) == (0, 0.0)
    assert assessment.reason == "nothing to hold: kelly: SELL while shorts are off: nothing to hold"
    assert SizingChain(ChainConfig(allow_shorts=False)).assess(signal, CALM).base_fraction > 0.0


def test_the_chain_multiplies_its_stages(signal: TacticalSignal) -> None:
    chain = SizingChain()
    for i in range(40):
        chain.record_residual(0.0, 0.001 * i)
    stressed = CascadeIndicators(0.005, -0.2, 6.0, 0.8, 3.0)
    signal = dataclasses.replace(signal, sentiment_score=0.9, regime=Regime.HIGH_VOLATILITY)
    a = chain.assess(signal, stressed)
    assert a.cascade_action == "REDUCE_75"
    product = a.kelly_fraction * a.conformal_scale * a.sentiment_multiplier * a.regime_multiplier * 0.25
    assert a.base_fraction == pytest.approx(product)
    assert a.conformal_scale < 1.0 < a.sentiment_multiplier


def test_every_stage_is_in_the_decision_and_each_starts_where_the_last_ended(signal: TacticalSignal) -> None:
    decision = sized(signal, multiplier=1.4)
    names = [stage.name for stage in decision.stages]
    assert names == [
        "validate",
        "kelly",
        "conformal",
        "sentiment",
        "regime",
        "cascade",
        "base cap",
        "multiplier",
        "cap",
    ]
    for before, after in zip(decision.stages, decision.stages[1:], strict=False):
        assert after.input == before.output
    assert all(stage.reason for stage in decision.stages)
    assert decision.stages[-1].output == decision.exposure
    assert decision.position_size_usd == pytest.approx(decision.exposure * 100_000)
    assert "multiplier x 1.400 from test" in decision.reason


def test_the_base_is_capped_and_the_exposure_again() -> None:
    config = ChainConfig(max_exposure=0.3)
    chain = SizingChain(config)
    wild = TacticalSignal("s", "BTC", Action.SELL, 1.0, 0.0, Regime.TRENDING_UP, 1, 0.5, 0.01)
    assessment = chain.assess(wild, CALM)
    assert assessment.base_fraction == 0.3
    assert assessment.stages[-1].reason == "above 0.3 of equity, cut"
    decision = decide(
        wild, assessment, multiplier=2.0, multiplier_source="x", portfolio_value=1e3, max_exposure=config.max_exposure
    )
    assert decision.exposure == -0.3
    assert decision.position_size_usd == -300.0


def test_crisis_takes_one_bar_and_calm_three(signal: TacticalSignal) -> None:
    chain = SizingChain()
    regimes = [Regime.RANGING, Regime.CRISIS, Regime.RANGING, Regime.RANGING, Regime.RANGING]
    got = [chain.assess(dataclasses.replace(signal, regime=r), CALM).regime_multiplier for r in regimes]
    assert got == [1.0, 0.2, 0.2, 0.2, 1.0]


def test_exit_sizes_to_zero(signal: TacticalSignal) -> None:
    decision = sized(signal, CascadeIndicators(volume_ratio=30.0), multiplier=2.0)
    assert (decision.cascade_action, decision.exposure, decision.direction) == ("EXIT", 0.0, 1)
    assert "nothing to hold: cascade" in decision.reason


def test_closed_trades_move_the_size(signal: TacticalSignal) -> None:
    chain = SizingChain()
    start = chain.assess(signal, CALM).base_fraction
    for _ in range(5):
        assert chain.record_trade(0.02)
    better = chain.assess(signal, CALM).base_fraction
    assert better == pytest.approx(start * (15 / 25) / 0.5)
    for _ in range(20):
        chain.record_trade(-0.02)
    assert chain.assess(signal, CALM).base_fraction == 0.0
    assert not chain.record_trade(math.nan)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence", math.nan), ("confidence", 1.5), ("confidence", None), ("confidence", "high"),
        ("confidence", True),
        ("risk_score", -0.1), ("expected_return", math.inf), ("expected_return", 50.0), ("predicted_volatility", -0.1),
        ("sentiment_score", 2.0), ("signal_strength", math.nan), ("timestamp_ns", -1), ("action", "long"),
        ("regime", "bull"),
    ],
)  # fmt: skip
def test_a_bad_signal_sizes_to_zero_and_names_the_field(signal: TacticalSignal, field: str, value: Any) -> None:
    chain = SizingChain()
    bad = dataclasses.replace(signal, **{field: value})
    assessment = chain.assess(bad, CALM)
    assert (assessment.direction, assessment.base_fraction) == (0, 0.0)
    assert f"signal.{field} is {value!r}, expected" in assessment.reason
    assert assessment.stages[0].output == 0.0
    assert chain.regime.regime is None  # it taught nothing
    decision = decide(bad, assessment, multiplier=2.0, multiplier_source="test", portfolio_value=1.0)
    assert (decision.exposure, decision.position_size_usd) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("funding_rate", math.nan), ("oi_change_pct", -1.1), ("volume_ratio", -1.0), ("onchain_whale_pressure", 1.1),
        ("exchange_netflow_zscore", -math.inf), ("liquidation_volume_24h", math.inf),
    ],
)  # fmt: skip
def test_a_broken_feed_is_taken_as_the_worst(signal: TacticalSignal, field: str, value: float) -> None:
    assessment = SizingChain().assess(signal, dataclasses.replace(CALM, **{field: value}))
    assert (assessment.base_fraction, assessment.cascade_risk, assessment.cascade_action) == (0.0, 1.0, "EXIT")
    assert f"cascade.{field} is {value!r}" in assessment.reason


@pytest.mark.parametrize(
    ("argument", "value"),
    [("multiplier", 2.1), ("multiplier", math.nan), ("portfolio_value", 0.0), ("max_exposure", 0.6)],
)
def test_decide_refuses_what_is_out_of_range(signal: TacticalSignal, argument: str, value: float) -> None:
    arguments: dict[str, Any] = {"multiplier": 1.0, "multiplier_source": "x", "portfolio_value": 1.0}
    with pytest.raises(ConfigurationError, match=f"{argument} is {value!r}"):
        decide(signal, SizingChain().assess(signal, CALM), **arguments | {argument: value})


def test_a_regime_configured_to_zero_says_so(signal: TacticalSignal) -> None:
    config = ChainConfig(regime=RegimeConfig(crisis=0.0))
    assessment = SizingChain(config).assess(dataclasses.replace(signal, regime=Regime.CRISIS), CALM)
    assert assessment.reason.startswith("nothing to hold: regime")


unit = st.floats(0, 1)
signals = st.builds(
    TacticalSignal,
    strategy_id=st.just("s"),
    symbol=st.just("BTC"),
    action=st.sampled_from(Action),
    confidence=unit,
    risk_score=unit,
    regime=st.sampled_from(Regime),
    timestamp_ns=st.integers(0, 2**62),
    expected_return=st.none() | st.floats(-1, 10),
    predicted_volatility=st.none() | st.floats(0, 5),
    sentiment_score=st.none() | unit,
)
feeds = st.builds(
    CascadeIndicators,
    st.none() | st.floats(-0.1, 0.1),
    st.none() | st.floats(-1, 2),
    st.none() | st.floats(0, 100),
    st.none() | unit,
    st.none() | st.floats(-20, 20),
    st.none() | st.floats(0, 1e10),
)


@settings(deadline=None)
@given(signals, feeds, st.floats(0, 2))
def test_size_is_finite_capped_and_on_the_signals_side(
    signal: TacticalSignal, cascade: CascadeIndicators, multiplier: float
) -> None:
    decision = sized(signal, cascade, multiplier)
    assert abs(decision.exposure) <= 0.5
    assert 0.0 <= decision.base_fraction <= 0.5
    assert decision.exposure * signal.action.side >= 0.0
    assert math.copysign(1.0, decision.exposure) == 1.0 or decision.exposure < 0.0
    if signal.action is Action.HOLD:
        assert decision.exposure == 0.0
    assert all(math.isfinite(stage.output) and stage.output >= 0.0 for stage in decision.stages)


@settings(deadline=None)
@given(signals.filter(lambda s: s.expected_return is None or s.expected_return >= 0), unit, feeds)
def test_monotone_in_confidence(signal: TacticalSignal, other: float, cascade: CascadeIndicators) -> None:
    low, high = sorted((signal.confidence, other))
    bases = [
        SizingChain().assess(dataclasses.replace(signal, confidence=c), cascade).base_fraction for c in (low, high)
    ]
    assert bases[0] <= bases[1] + 1e-12


@settings(deadline=None)
@given(signals, feeds, feeds)
def test_more_cascade_risk_never_holds_more(
    signal: TacticalSignal, one: CascadeIndicators, two: CascadeIndicators
) -> None:
    a, b = sorted((SizingChain().assess(signal, c) for c in (one, two)), key=lambda x: x.cascade_risk)
    assert b.base_fraction <= a.base_fraction


bad_number = st.one_of(st.floats(), st.none(), st.text(max_size=3), st.integers())


@settings(deadline=None)
@given(signals, feeds, st.data())
def test_no_value_makes_assess_raise(signal: TacticalSignal, cascade: CascadeIndicators, data: st.DataObject) -> None:
    fields = [f.name for f in dataclasses.fields(TacticalSignal) if f.name not in ("strategy_id", "symbol")]
    signal = dataclasses.replace(signal, **{data.draw(st.sampled_from(fields)): data.draw(bad_number)})
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(CascadeIndicators)]))
    assessment = SizingChain().assess(signal, dataclasses.replace(cascade, **{name: data.draw(bad_number)}))
    assert 0.0 <= assessment.base_fraction <= 0.5
    assert assessment.reason


@settings(deadline=None)
@given(
    st.lists(st.tuples(signals, feeds, st.floats(-0.1, 0.1), st.booleans()), min_size=1, max_size=12),
    st.data(),
)
def test_a_chain_that_was_stopped_goes_on_to_the_bit(
    bars: list[tuple[TacticalSignal, CascadeIndicators, float, bool]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(bars)))
    config = ChainConfig(kelly=KellyConfig(prior_alpha=10.1), conformal=ConformalConfig(0.5, 5, 2))
    whole, again = SizingChain(config), SizingChain(config)
    for i, (signal, cascade, number, new_bar) in enumerate(bars):
        if i == cut:
            again = SizingChain.restored(config, json.loads(json.dumps(again.to_json())))
        for chain in (whole, again):
            chain.record_trade(number)
            chain.record_residual(number, -number)
        one, two = (chain.assess(signal, cascade, new_bar=new_bar) for chain in (whole, again))
        assert (one.base_fraction, one.stages) == (two.base_fraction, two.stages)
    assert whole.to_json() == again.to_json()


def test_what_was_learnt_outlives_a_change_of_the_configuration(signal: TacticalSignal) -> None:
    chain = SizingChain()
    for i in range(30):
        chain.record_trade(0.01 if i < 20 else -0.01)
        chain.record_residual(0.0, 0.01 * i)
    chain.assess(dataclasses.replace(signal, regime=Regime.CRISIS), CALM)
    other = ChainConfig(kelly=KellyConfig(prior_alpha=5.0), conformal=ConformalConfig(0.5, 10, 2))
    moved = SizingChain.restored(other, chain.to_json())
    assert (moved.posterior.alpha, moved.posterior.beta) == (25.0, 20.0)
    assert moved.residuals.to_json()["residuals"] == [0.01 * i for i in range(20, 30)]
    assert moved.regime.regime is Regime.CRISIS
    assert moved.assess(signal, CALM).regime_multiplier == 0.2


def test_a_second_look_at_a_bar_counts_for_no_calmer_regime(signal: TacticalSignal) -> None:
    chain = SizingChain()

    def multiplier(regime: Regime, new_bar: bool) -> float:
        return chain.assess(dataclasses.replace(signal, regime=regime), CALM, new_bar=new_bar).regime_multiplier

    assert multiplier(Regime.CRISIS, True) == 0.2
    assert [multiplier(Regime.RANGING, False) for _ in range(10)] == [0.2] * 10
    assert multiplier(Regime.RANGING, True) == 0.2
    assert multiplier(Regime.HIGH_VOLATILITY, False) == 0.2  # the more restrictive of the two looks counts
    assert multiplier(Regime.RANGING, True) == 0.2
    assert multiplier(Regime.RANGING, True) == 0.6
    assert multiplier(Regime.CRISIS, False) == 0.2  # danger counts at every look
