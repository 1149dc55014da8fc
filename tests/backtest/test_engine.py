"""The backtest: against direct formulas, prefix by prefix, and refusing what it must not judge."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3.agent.bars import Bars
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.engine import MIN_DECISIONS, Decide, evaluate, run, run_buy_and_hold
from layer3.backtest.gate import judge
from layer3.backtest.metrics import summarise
from layer3.backtest.record import BUY_AND_HOLD, CHAMPION, FLAT, KELLY_ONLY, POLICY, Evaluation, Evidence, Track
from layer3.errors import EvaluationError
from layer3.ledger import Costs
from tests.agent.worlds import HOUR_NS, START, constant_tensors, make_bars, make_policy, make_tensors, trend
from tests.layer3.slow_ledger import SlowLedger

FIELDS = [field.name for field in dataclasses.fields(Track)]
INFO = {"symbol": "SYNTH-USD", "source": "test", "synthetic": True, "data_sha256": "0" * 64}


def constant(multiplier: float) -> Decide:
    return lambda *_: multiplier


def iso(timestamp: int) -> str:
    return f"{np.datetime64(timestamp, 'ns').astype('datetime64[s]')}+00:00"


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return make_policy(tmp_path / "policy")


def test_every_track_equals_the_slow_ledger() -> None:
    bars, window = make_bars(300), range(40, 240)
    rng = np.random.default_rng(2)
    wanted = rng.uniform(0.0, 2.0, 300)
    config = EnvironmentConfig(costs=Costs(0.004, 0.002), capital=5_000.0)
    track = run(bars, window, {"x": lambda _, t: float(wanted[t])}, config)["x"]
    slow = SlowLedger(5_000.0, 0.004, 0.002)
    assert len(track.equity) == 199
    for t, bar in enumerate(range(40, 238)):
        target = float(np.clip(bars.direction[bar] * bars.base_fraction[bar] * wanted[t], -0.5, 0.5))
        before, paid, traded = slow.equity(bars.open[bar + 1]), slow.paid, slow.traded
        slow.rebalance(target, bars.open[bar + 1])
        assert track.equity[t] == pytest.approx(float(before), rel=1e-9)
        assert track.exposure[t] == target
        assert track.multiplier[t] == wanted[t]
        assert track.cost[t] == pytest.approx(float(slow.paid - paid), rel=1e-9, abs=1e-9)
        assert track.turnover[t] == pytest.approx(float((slow.traded - traded) / before), rel=1e-9, abs=1e-9)
    assert track.equity[-1] == pytest.approx(float(slow.equity(bars.open[239])), rel=1e-9)
    np.testing.assert_allclose(track.trades, [float(r) for r in slow.closed], rtol=1e-9, atol=1e-12)
    assert len(track.trades) > 10


def test_buy_and_hold_equals_the_direct_formula() -> None:
    bars, window = make_bars(300), range(10, 290)
    track = run_buy_and_hold(bars, window)
    opens = bars.open[11:290]
    fill = 1.0005
    units = 100_000.0 / (opens[0] * fill * 1.001)  # everything, commission included
    assert track.equity[0] == 100_000.0
    np.testing.assert_allclose(track.equity[1:], units * opens[1:], rtol=1e-12)
    np.testing.assert_allclose(track.exposure, np.ones(278), rtol=1e-12)
    assert track.cost[0] == pytest.approx(100_000.0 - units * opens[0])
    assert track.cost[1:].sum() == track.turnover[1:].sum() == track.funding.sum() == 0.0
    lengths = {"equity": 279, "exposure": 278, "multiplier": 278, "turnover": 278, "cost": 278, "funding": 278}
    assert {name: len(getattr(track, name)) for name in FIELDS} == {**lengths, "trades": 0}


def test_flat_stays_at_its_capital() -> None:
    track = run(make_bars(200), range(200), {FLAT: constant(0.0)}, EnvironmentConfig(capital=1_234.5))[FLAT]
    assert set(track.equity.tolist()) == {1_234.5}
    assert not track.exposure.any()
    assert not track.cost.any()
    assert len(track.trades) == 0


def test_a_window_of_w_bars_holds_w_less_two_decisions() -> None:
    bars = make_bars(100)
    for w in (3, 4, 50):
        assert len(run(bars, range(20, 20 + w), {"x": constant(1.0)})["x"].exposure) == w - 2
    for w in (0, 1, 2):
        with pytest.raises(EvaluationError, match=f"{w} bars hold no decision"):
            run(bars, range(20, 20 + w), {"x": constant(1.0)})


def test_funding_is_paid_by_longs_and_received_by_shorts() -> None:
    prices, rates = np.full(100, 50.0), np.zeros(100)
    rates[[10, 20]] = 0.0008, -0.0016
    free = EnvironmentConfig(costs=Costs(0.0, 0.0), capital=1_000.0)
    for side in (1, -1):
        bars = trend(prices, direction=np.full(100, side, dtype=np.int8), funding_rate=rates)
        track = run(bars, range(100), {"x": constant(2.0)}, free)["x"]
        assert np.flatnonzero(track.funding).tolist() == [9, 19], "decided at bar 9, held from the open of bar 10"
        # An eighth of eight hours' rate on a fifth of the capital, and of what was left of it.
        first = side * 1_000.0 * 0.2 * 0.0001
        second = side * (1_000.0 - first) * 0.2 * -0.0002
        np.testing.assert_allclose(track.funding[[9, 19]], [first, second], rtol=1e-12)
        assert track.equity[-1] == pytest.approx(1_000.0 - first - second, rel=1e-12)


def test_a_shorter_window_gives_the_same_beginning() -> None:
    bars = make_bars(400)
    policy = Policy(make_tensors(), {})
    strategies: dict[str, Decide] = {"policy": lambda state, _: float(policy.act(state)[0]), "one": constant(1.0)}
    whole = run(bars, range(30, 400), strategies)
    part = run(bars, range(30, 170), strategies)
    for name in strategies:
        assert part[name].equity.tolist() == whole[name].equity[:139].tolist()
        for field in ("exposure", "multiplier", "turnover", "cost", "funding"):
            np.testing.assert_array_equal(getattr(part[name], field), getattr(whole[name], field)[:138])
        np.testing.assert_array_equal(part[name].trades, whole[name].trades[: len(part[name].trades)])


def test_bars_outside_the_window_do_not_matter() -> None:
    whole, window = make_bars(300), range(50, 200)
    spoilt: dict[str, Any] = {}
    for name in ("open", "close", "base_fraction", "confidence", "volatility"):
        values = getattr(whole, name).copy()
        values[:50] = values[200:] = np.nan
        spoilt[name] = values
    policy = Policy(make_tensors(), {})
    strategies: dict[str, Decide] = {"policy": lambda state, _: float(policy.act(state)[0])}
    one = run(whole, window, strategies)["policy"]
    other = run(dataclasses.replace(whole, **spoilt), window, strategies)["policy"]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_strategies_do_not_touch_each_other() -> None:
    bars = make_bars(200)
    strategies = {str(m): constant(m) for m in (0.3, 1.0, 2.0)}
    together = run(bars, range(200), strategies)
    for name, decide in strategies.items():
        alone = run(bars, range(200), {name: decide})[name]
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(together[name], field), getattr(alone, field))


def test_a_policy_that_knows_the_future_wins_by_far() -> None:
    bars = make_bars(2_000)

    def leaked(_: object, t: int) -> float:
        return 2.0 if bars.direction[t] * (bars.open[t + 2] / bars.open[t + 1] - 1.0) > 0.003 else 0.0

    tracks = run(bars, range(2_000), {"leaked": leaked, "one": constant(1.0)})
    cheat, honest = (summarise(tracks[name], 3_600)["sharpe"] for name in ("leaked", "one"))
    assert cheat is not None
    assert honest is not None
    assert cheat > 20.0
    assert cheat > honest + 20.0


def test_a_policy_that_knows_yesterday_wins_nothing_on_a_walk() -> None:
    bars = trend(100.0 * np.exp(np.cumsum(0.01 * np.random.default_rng(3).standard_normal(3_000))))

    def late(_: object, t: int) -> float:
        return 2.0 if bars.open[t] > bars.open[max(t - 1, 0)] else 0.0

    track = run(bars, range(3_000), {"late": late}, EnvironmentConfig(costs=Costs(0.0, 0.0)))["late"]
    returns = track.equity[1:] / track.equity[:-1] - 1.0
    assert abs(returns.mean()) < 4.0 * returns.std() / math.sqrt(len(returns))


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_finite_stops_the_backtest(answer: float) -> None:
    strategies: dict[str, Decide] = {"one": constant(1.0), "broken": lambda _, t: answer if t == 7 else 1.0}
    with pytest.raises(EvaluationError, match="broken answered no finite multiplier at bar 27"):
        run(make_bars(100), range(20, 80), strategies)


def test_an_evaluation_holds_all_four_tracks_and_where_they_came_from(policy: Policy, tmp_path: Path) -> None:
    bars, window = make_bars(800), range(100, 700)
    evaluation = evaluate(bars, window, policy, INFO)
    assert set(evaluation.tracks) == {POLICY, KELLY_ONLY, BUY_AND_HOLD, FLAT}
    assert len(evaluation.timestamps) == 598 == len(evaluation.tracks[POLICY].exposure)
    assert evaluation.timestamps[0] == START + 100 * HOUR_NS
    one = run(bars, window, {"x": constant(1.0)})["x"]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(evaluation.tracks[KELLY_ONLY], name), getattr(one, name))
    np.testing.assert_array_equal(evaluation.tracks[FLAT].equity, np.full(599, 100_000.0))
    np.testing.assert_array_equal(evaluation.tracks[BUY_AND_HOLD].equity, run_buy_and_hold(bars, window).equity)
    context = evaluation.context
    assert context["period"] == {"start": iso(START + 100 * HOUR_NS), "end": iso(START + 697 * HOUR_NS)}
    assert context["training_period"] == {"start": "2022-01-01T00:00:00+00:00", "end": "2022-12-31T00:00:00+00:00"}
    assert context["policy_sha256"] == policy.manifest["policy_sha256"]
    assert (context["seed"], context["code_version"], context["interval_seconds"]) == (1, "abc", 3_600)
    assert context["symbol"] == "SYNTH-USD"
    held = bars.base_fraction[100:698] * bars.direction[100:698] != 0.0
    chosen = evaluation.tracks[POLICY].multiplier[held]
    assert evaluation.metrics[POLICY]["multiplier_sd"] == pytest.approx(chosen.std())
    assert evaluation.metrics[POLICY]["multiplier_mean"] == pytest.approx(chosen.mean())
    json.dumps([evaluation.metrics, dict(evaluation.context)], allow_nan=False)
    evaluation.save(tmp_path / "e.npz")
    assert Evaluation.load(tmp_path / "e.npz").metrics == evaluation.metrics


def test_a_constant_policy_of_one_is_kelly_only_and_does_not_ship(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, constant_tensors(1.0))
    evaluation = evaluate(make_bars(800), range(800), policy, INFO)
    np.testing.assert_allclose(evaluation.tracks[POLICY].equity, evaluation.tracks[KELLY_ONLY].equity, rtol=1e-6)
    np.testing.assert_allclose(evaluation.tracks[POLICY].multiplier, 1.0, atol=1e-6)
    assert evaluation.metrics[POLICY]["multiplier_sd"] == pytest.approx(0.0, abs=1e-6)
    assert not judge(evaluation).passed


def test_a_constant_policy_of_another_size_is_that_constant(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, constant_tensors(1.5))
    bars = make_bars(600)
    track = evaluate(bars, range(600), policy, INFO).tracks[POLICY]
    expected = run(bars, range(600), {"x": constant(1.5)})["x"]
    np.testing.assert_allclose(track.equity, expected.equity, rtol=1e-5)


def test_a_market_in_which_nothing_can_be_held_is_judged_and_rejected(policy: Policy) -> None:
    bars = make_bars(700, direction=np.zeros(700, dtype=np.int8))
    evaluation = evaluate(bars, range(700), policy, INFO)
    assert evaluation.metrics[POLICY]["sharpe"] is None
    assert evaluation.metrics[POLICY]["multiplier_sd"] is None
    assert not judge(evaluation).passed


def test_a_flat_market_is_judged_and_rejected(policy: Policy) -> None:
    evaluation = evaluate(trend(np.full(700, 100.0)), range(700), policy, INFO)
    assert evaluation.metrics[BUY_AND_HOLD]["total_return"] == pytest.approx(-0.0015, abs=1e-5)
    assert not judge(evaluation).passed


SECTIONS = {field.name for field in dataclasses.fields(Evidence)} - {"problems"}


def is_plain(evaluation: Evaluation, path: Path) -> None:
    """Nothing in it is NaN, and it comes back from its file."""
    for track in evaluation.tracks.values():
        for name in FIELDS:
            assert np.isfinite(getattr(track, name)).all()
    evaluation.save(path)
    assert Evaluation.load(path).metrics == evaluation.metrics


@pytest.mark.parametrize("decisions", [-2, 0, 1, MIN_DECISIONS - 1])
def test_a_record_too_short_is_a_finding_and_no_crash(policy: Policy, tmp_path: Path, decisions: int) -> None:
    evaluation = evaluate(make_bars(800), range(100, 102 + decisions), policy, INFO)
    assert len(evaluation.timestamps) == max(decisions, 0)
    assert set(evaluation.evidence.problems) == SECTIONS
    for told in evaluation.evidence.problems.values():
        assert told.startswith(f"the held-out period has {max(decisions, 0)} decisions, at least 500 are needed")
    is_plain(evaluation, tmp_path / "e.npz")


@pytest.mark.parametrize(
    ("column", "value"), [("open", math.nan), ("open", math.inf), ("close", math.nan), ("return_1h", math.nan)]
)
@pytest.mark.parametrize("at", [101, 400])
def test_what_is_not_finite_ends_the_record_and_is_a_finding(
    policy: Policy, tmp_path: Path, column: str, at: int, value: float
) -> None:
    bars = make_bars(800)
    values = getattr(bars, column).astype(np.float64)
    values[at] = value
    evaluation = evaluate(dataclasses.replace(bars, **{column: values}), range(100, 700), policy, INFO)
    assert len(evaluation.timestamps) == (max(at - 102, 0) if column == "open" else at - 100)
    assert set(evaluation.evidence.problems) == SECTIONS
    told = evaluation.evidence.problems["trust"]
    assert told.startswith(f"the record ends after {len(evaluation.timestamps)} decisions: ")
    assert "check the data" in told
    assert set(evaluation.tracks) == {POLICY, KELLY_ONLY, BUY_AND_HOLD, FLAT}
    is_plain(evaluation, tmp_path / "e.npz")


def test_a_champion_walks_the_same_bars(policy: Policy, tmp_path: Path) -> None:
    bars, window = make_bars(800), range(100, 700)
    champion = make_policy(tmp_path / "champion", constant_tensors(0.5))
    evaluation = evaluate(bars, window, policy, INFO, champion=champion)
    assert list(evaluation.tracks) == [POLICY, KELLY_ONLY, FLAT, CHAMPION, BUY_AND_HOLD]
    half = run(bars, window, {"x": constant(0.5)})["x"]
    np.testing.assert_allclose(evaluation.tracks[CHAMPION].equity, half.equity, rtol=1e-6)
    alone = evaluate(bars, window, policy, INFO)
    assert CHAMPION not in alone.tracks
    np.testing.assert_array_equal(evaluation.tracks[POLICY].equity, alone.tracks[POLICY].equity)
    assert evaluation.metrics[CHAMPION]["sharpe"] != alone.metrics[POLICY]["sharpe"]
    assert not evaluation.evidence.problems


def test_the_shortest_record_that_is_judged(policy: Policy) -> None:
    assert len(evaluate(make_bars(800), range(100, 102 + MIN_DECISIONS), policy, INFO).timestamps) == MIN_DECISIONS


@pytest.mark.parametrize(("last_trained", "refused"), [(99, False), (100, True), (500, True), (5_000, True)])
def test_what_was_trained_on_cannot_judge(tmp_path: Path, last_trained: int, refused: bool) -> None:
    data = {"start": "2022-01-01T00:00:00+00:00", "end": iso(START + last_trained * HOUR_NS)}
    policy, bars = make_policy(tmp_path, data=data), make_bars(800)
    if not refused:
        assert evaluate(bars, range(100, 700), policy, INFO).context["training_period"] == data
        return
    with pytest.raises(EvaluationError, match=rf"trained on data up to {data['end'][:10]}.* cannot judge"):
        evaluate(bars, range(100, 700), policy, INFO)


@pytest.mark.parametrize(
    "manifest",
    [
        {"data": {"end": "2022-12-31T00:00:00+00:00"}},
        {"data": {"start": "long ago", "end": "2022-12-31T00:00:00+00:00"}},
        {"data": {"start": None, "end": "2022-12-31T00:00:00+00:00"}},
        {"data": {"start": "2022-01-01T00:00:00+00:00", "end": ""}},
        {"data": {"start": "2022-01-01T00:00:00+00:00", "end": "NaT"}},
    ],
)
def test_a_policy_of_unknown_training_cannot_be_judged(tmp_path: Path, manifest: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="lacks data: what it was trained on is not known"):
        evaluate(make_bars(800), range(800), make_policy(tmp_path, **manifest), INFO)


@pytest.mark.parametrize("key", ["seed", "code_version", "data"])
def test_a_policy_that_cannot_be_traced_cannot_be_judged(policy: Policy, key: str) -> None:
    manifest = {name: value for name, value in policy.manifest.items() if name != key}
    with pytest.raises(EvaluationError, match=f"lacks {key}"):
        evaluate(make_bars(800), range(800), Policy(policy.tensors, manifest), INFO)


def test_figures_are_annualised_by_the_bars_own_interval(policy: Policy) -> None:
    hourly = make_bars(800)
    daily: Bars = dataclasses.replace(hourly, timestamp=START + 24 * HOUR_NS * np.arange(800))
    one, other = (evaluate(bars, range(800), policy, INFO).metrics[KELLY_ONLY]["sharpe"] for bars in (hourly, daily))
    assert one is not None
    assert one == pytest.approx(other * math.sqrt(24))
