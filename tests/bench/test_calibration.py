"""The calibration's pieces: what its markets are, that its shortcuts change no verdict, and that it can be cut off."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from bench.calibration import judging, markets, picture, plan, summary, truth, work
from bench.calibration.candidates import Candidate, candidates, first, record_of
from bench.calibration.markets import Design
from layer3 import contract
from layer3.agent.population import Settings
from layer3.agent.ppo import PPOConfig
from layer3.backtest.engine import evaluate
from layer3.backtest.evidence import Effort, Subject, gather
from layer3.backtest.gate import judge
from layer3.backtest.record import POLICY
from layer3.errors import ConfigurationError
from layer3.market.splits import PURGE_HOURS
from layer3.types import Action

SHORT = Settings(PPOConfig(steps=8_192, hidden=8))
DESIGNS = [Design(kind, signals) for kind in markets.KINDS for signals in ("own", "baseline")]


def some(design: Design, numbers: tuple[int, ...], years: float = 0.15, settings: Settings = SHORT) -> list[Candidate]:
    return candidates(design, numbers, training_years=0.3, record_years=years, code_version="test", settings=settings)


@pytest.fixture(scope="module")
def planted() -> Candidate:
    settings = Settings(PPOConfig(steps=100_000, hidden=16))
    design = Design("planted", edge=0.15)
    return candidates(design, (1,), training_years=1.0, record_years=0.5, code_version="test", settings=settings)[0]


def sides(market: markets.Market) -> np.ndarray:
    return np.array([Action(name).side for name in market.frame["signal_action"]])


@pytest.mark.parametrize("design", [*DESIGNS, Design("planted", edge=0.05)], ids=str)
def test_a_market_is_its_arguments_and_nothing_else(design):
    one, again, other = (markets.make(design, 3_000, seed) for seed in (1, 1, 2))
    assert one.frame.equals(again.frame)
    assert not np.array_equal(one.frame["close"], other.frame["close"])
    assert (one.frame[["open", "high", "low", "close"]] > 0.0).all(axis=None)
    assert ("signal_action" in one.frame.columns) == (design.signals == "own")


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_without_an_edge_no_drift_depends_on_anything(design):
    assert np.ptp(markets.make(design, 3_000, 1).drift) == 0.0


@pytest.mark.parametrize("kind", ["random walk", "GARCH", "regimes", "permuted"])
def test_returns_without_an_edge_have_no_mean_and_no_relation_to_signals(kind):
    market = markets.make(Design(kind), 60_000, 3)
    returns = market.frame["close"].pct_change().to_numpy()[1:]
    followed = returns * sides(market)[:-1] * np.where(market.oracle[:-1] > 0.0, 1.0, -1.0)
    for values in (returns, followed):
        assert abs(values.mean()) < 3.5 * values.std() / np.sqrt(len(values))


def test_a_planted_edge_is_the_drift_that_it_says():
    edge, learning = 0.05, 20_000
    market = markets.make(Design("planted", edge=edge), 60_000, 4, learning=learning)
    frame = market.frame
    side = sides(market)
    good = contract.tier_of(frame["signal_risk_score"]) <= 2
    assert np.array_equal(np.sign(market.drift[1:]), (np.where(good, 1, -1) * side)[:-1])
    assert np.array_equal(market.oracle, np.where(good, 2.0, 0.0))
    returns = frame["close"].pct_change().to_numpy()
    for part, wanted in ((slice(1, learning), markets.LEARNING_EDGE), (slice(learning, None), edge)):
        held = returns[part] * np.sign(market.drift[part])
        assert abs(held.mean() - np.abs(market.drift[part]).mean()) < 3.5 * held.std() / np.sqrt(len(held))
        share = np.mean(side != 0)
        assert np.abs(market.drift[part]).mean() == pytest.approx(wanted * 0.01 * share, rel=0.1)


def test_a_given_path_is_permuted_bar_by_bar():
    path = markets.make(Design("GARCH", "baseline"), 3_001, 9).frame
    market = markets.make(Design("permuted"), 3_000, 1, path=path)
    before, after = (np.diff(np.log(frame["close"])) for frame in (path, market.frame))
    assert not np.allclose(before[:50], after[:50])
    # The first bar's step is from a close before the market begins.
    assert np.setdiff1d(np.round(after, 9), np.round(before, 9)).size <= 5
    first_step = np.log(market.frame["close"].iloc[0] / path["close"].iloc[0])
    np.testing.assert_allclose(np.sort(np.append(after, first_step)), np.sort(before), atol=1e-12)
    longer = markets.make(Design("permuted"), 7_000, 1, path=path)
    assert len(longer.frame) == 7_000


@pytest.mark.parametrize(("kind", "edge"), [("bubble", 0.0), ("planted", -0.1), ("planted", 1.0)])
def test_an_unknown_market_is_refused(kind, edge):
    with pytest.raises(ConfigurationError):
        Design(kind, edge=edge)


def test_a_candidate_does_not_depend_on_the_markets_beside_it():
    one, beside = some(Design("GARCH"), (5, 6))
    other, _ = some(Design("GARCH"), (5, 7))
    assert np.array_equal(one.policy.tensors["w1"], other.policy.tensors["w1"])
    assert not np.array_equal(one.policy.tensors["w1"], beside.policy.tensors["w1"])
    assert one.start - PURGE_HOURS == round(0.3 * markets.YEAR)


def test_a_shorter_record_is_the_head_of_the_longer_one(planted):
    whole, decisions = record_of(planted), 2_000
    info = {"symbol": "SYNTH-USD", "source": "bench.calibration", "synthetic": True, "data_sha256": ""}
    apart = evaluate(planted.bars, range(planted.start, planted.start + decisions + 2), planted.policy, info)
    head = first(whole, decisions)
    assert np.array_equal(head.timestamps, apart.timestamps)
    for name, track in apart.tracks.items():
        for column, values in vars(track).items():
            assert np.array_equal(getattr(head.tracks[name], column), values), (name, column)
        got = {key: head.metrics[name][key] for key in apart.metrics[name] if not key.startswith("multiplier")}
        assert got == {key: value for key, value in apart.metrics[name].items() if not key.startswith("multiplier")}


@pytest.mark.parametrize("which", ["planted", "no edge"])
def test_stages_come_to_the_verdict_of_all_evidence(planted, which):
    candidate = planted if which == "planted" else some(Design("random walk"), (1,), years=0.3)[0]
    years = 0.4 if which == "planted" else 0.3
    (outcome,) = judging.outcomes(candidate, (years,), seed=3)
    record = first(record_of(candidate), round(years * markets.YEAR))
    window = range(candidate.start, candidate.start + len(record.timestamps) + 2)
    subject = Subject(candidate.market.frame, judging.SYMBOL, candidate.bars, window, candidate.policy, judging.CHAIN)
    evidence = gather(
        subject,
        record.tracks,
        trials=1,
        trials_variance=None,
        walk_forward=None,
        champion=None,
        seed=3,
        effort=judging.EFFORT,
    )
    assert not evidence.problems
    verdict = judge(dataclasses.replace(record, evidence=evidence), judging.GATE)
    failed = {criterion.name for criterion in verdict.criteria if not criterion.passed}
    assert outcome.released == verdict.passed == (which == "planted")
    assert set(outcome.failed) <= failed
    assert bool(outcome.failed) == bool(failed)


def test_stages_ask_for_every_criterion_once():
    names = [name for _, settled in judging.STAGES for name in settled]
    verdict = judge(record_of(some(Design("random walk"), (1,))[0]), judging.GATE)
    assert sorted(names) == sorted(criterion.name for criterion in verdict.criteria)
    assert Effort(permutations=judging.GATE.permutation_paths) == judging.EFFORT


def test_the_true_ratio_is_what_returns_show_but_for_luck(planted):
    ratios = truth.true_ratios(planted)
    years = (len(planted.bars) - planted.start) / markets.YEAR
    for each in ratios.values():
        assert abs(each.sharpe - each.shown) < 3.5 / np.sqrt(years)
    assert ratios[truth.ORACLE].mean > ratios[POLICY].mean > ratios["kelly_only"].mean


@pytest.mark.parametrize(("count", "n"), [(0, 480), (3, 480), (20, 40), (40, 40), (1, 1)])
def test_intervals_are_scipys(count, n):
    share = summary.wilson(count, n)
    wanted = binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert (share.low, share.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(("count", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_what_is_no_share_is_refused(count, n):
    with pytest.raises(ValueError, match="is no share"):
        summary.wilson(count, n)


def test_needed_years_by_hand():
    assert summary.needed_years(1.0, 0.5) == pytest.approx(1.6449**2, rel=1e-3)
    assert summary.needed_years(2.0, 0.8) == pytest.approx((1.6449 + 0.8416) ** 2 / 4.0, rel=1e-3)


TINY = plan.Plan(markets=4, planted={2.0: {0.5: 2, 1.0: 1}}, truth=1, truth_years=1.0, together=2)


def line(task: plan.Task, number: int, answer: object) -> work.Line:
    return {
        "code": "v",
        "aim": task.aim,
        "design": str(task.design),
        "level": task.level,
        "years": list(task.years),
        "training_years": task.training_years,
        "training_seed": task.numbers[0],
        "number": number,
        "answer": answer,
        "seconds": 1.0,
    }


def answered(task: plan.Task, number: int) -> work.Line:
    """A line as a market leaves it: of those with an edge the gate releases all, of the others market 1."""
    if task.aim == "truth":
        kinds = {POLICY: 2.0, "kelly_only": 0.5, truth.ORACLE: 2.1}
        return line(task, number, {name: {"sharpe": v, "mean": v / 10, "shown": v} for name, v in kinds.items()})
    released = task.level is not None or number == 1
    outcome = {"released": released, "plain": True, "failed": [] if released else ["sharpe"], "trades": 50.0}
    return line(task, number, [{**outcome, "years": years} for years in task.years])


@pytest.fixture
def done() -> list[work.Line]:
    return [answered(task, number) for task in plan.tasks(TINY) for number in task.numbers]


def test_the_full_plan_is_what_was_asked():
    tasks = plan.tasks(plan.FULL)
    null = [(str(t.design), number) for t in tasks if t.aim == "verdict" and t.level is None for number in t.numbers]
    assert len(set(null)) == len(null) >= 400
    assert {name.rpartition(", ")[0] for name, _ in null} == set(markets.KINDS)
    judged = {(t.level, years) for t in tasks if t.level and t.aim == "verdict" for years in t.years}
    assert judged == {(level, years) for level in (1.0, 1.5, 2.0, 3.0) for years in (0.5, 1.0, 2.0, 4.0)}
    for level, counts in plan.FULL.planted.items():
        for years, count in counts.items():
            mine = [t for t in tasks if t.level == level and t.aim == "verdict" and years in t.years]
            assert sum(len(t.numbers) for t in mine) == count


def test_what_is_done_is_not_done_again(tmp_path, done):
    path = tmp_path / "deep" / "results.jsonl"
    tasks = plan.tasks(TINY)
    kept = work.Remembered(path, "v")
    for one in done[:5]:
        kept.append(one)
    with path.open("a") as file:
        file.write(json.dumps({**done[5], "code": "another"}) + "\n" + json.dumps(done[5])[:40])
    again = work.Remembered(path, "v")
    assert again.lines == done[:5]
    again.append(done[5])
    assert work.Remembered(path, "v").lines == done[:6]
    left = work.remaining(tasks, done[:6], "v")
    assert sum(len(t.left) for t in left) == len(done) - 6
    assert {t.numbers for t in left} <= {t.numbers for t in tasks}
    assert work.remaining(tasks, done, "v") == []
    assert work.remaining(tasks, done, "another") == tasks


def test_the_report_says_what_came_out(capsys, done):
    asked = {each.name: each for each in summary.report(done, TINY, 120.0, "simulated")}
    printed = capsys.readouterr().out
    assert not asked["markets without an edge"].met
    # Market 1 of each of 10 designs, of 40 markets.
    assert asked["of them released"].value.startswith("25.0%")
    assert not asked["of them released"].met
    assert "sharpe 30" in printed
    cells = summary.cells(done, summary.levels(done))
    assert [(cell.years, cell.gate.n, cell.must) for cell in cells] == [(0.5, 2, False), (1.0, 2, False)]
    (level,) = summary.levels(done)
    assert level.learned == pytest.approx(1.5 / 1.6)


def test_the_picture_and_the_section(tmp_path, done):
    levels = summary.levels(done)
    cells = summary.cells(done, levels)
    for name in ("one.svg", "two.svg"):
        picture.draw(cells, levels, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    document = tmp_path / "gate.md"
    document.write_text(f"before\n{picture.BEGIN}\nold\n{picture.END}\nafter\n")
    for _ in range(2):
        picture.write_section(document, "make calibrate", "the table\n")
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("the table") == 1
    document.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        picture.write_section(document, "make calibrate", "")
