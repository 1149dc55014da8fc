"""The evidence as a whole: its sections are what their functions say, and no market makes it fall over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layer3.agent.bars import prepare
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest import evidence as module
from layer3.backtest.attribution import attribute
from layer3.backtest.bootstrap import equity_band
from layer3.backtest.costs import cost_evidence
from layer3.backtest.degeneracy import find_degeneracy
from layer3.backtest.engine import run, run_buy_and_hold
from layer3.backtest.evidence import Effort, Subject, gather
from layer3.backtest.leak import find_leaks
from layer3.backtest.metrics import sharpe, summarise
from layer3.backtest.paths import permutation_test
from layer3.backtest.record import (
    BUY_AND_HOLD,
    CHAMPION,
    FLAT,
    KELLY_ONLY,
    POLICY,
    Evaluation,
    Evidence,
    Track,
)
from layer3.backtest.stability import bar_returns, find_stability
from layer3.backtest.superiority import superiority
from layer3.backtest.trust import difference, trust
from layer3.errors import DataError, EvaluationError
from layer3.ledger import Costs
from layer3.market.simulator import MarketSpec, simulate
from layer3.sizing.config import ChainConfig
from tests.agent.worlds import constant_tensors, make_tensors

WINDOW = range(1_300, 2_000)
SMALL = Effort(permutations=6, resamples=60, cuts=2)
SECTIONS = (
    "trust",
    "differences",
    "superiority",
    "bootstrap_band",
    "costs",
    "attribution",
    "degeneracy",
    "stability",
    "leak",
    "permutations",
)
Tracks = dict[str, Track]


def asked(policy: Policy) -> Callable[..., float]:
    return lambda state, _: float(policy.act(state)[0])


def walked(subject: Subject) -> Tracks:
    bars, window, environment = subject.bars, subject.window, subject.environment
    strategies = {POLICY: asked(subject.policy), KELLY_ONLY: lambda *_: 1.0, FLAT: lambda *_: 0.0}
    return run(bars, window, strategies, environment) | {BUY_AND_HOLD: run_buy_and_hold(bars, window, environment)}


def made(candles: pd.DataFrame, policy: Policy | None = None, window: range = WINDOW, **options: Any) -> Subject:
    bars, _ = prepare(candles, "SYNTH-USD", 3_600, options.get("chain"))
    return Subject(candles, "SYNTH-USD", bars, window, policy or Policy(make_tensors(members=2), {}), **options)


def gathered(subject: Subject, tracks: Tracks | None = None, **options: Any) -> Evidence:
    given = {"trials": 7, "trials_variance": 0.3, "walk_forward": None, "champion": None, "seed": 5, "effort": SMALL}
    return gather(subject, walked(subject) if tracks is None else tracks, **{**given, **options})


def sound(evidence: Evidence, subject: Subject, folder: Path) -> None:
    """Plain data without a NaN that comes back as it was, each section there or with its sentence."""
    json.dumps(dataclasses.asdict(evidence), allow_nan=False)
    timestamps = subject.bars.timestamp[subject.window.start : subject.window.stop - 2]
    Evaluation(timestamps, {}, {}, {}, evidence).save(folder / "e.npz")
    assert Evaluation.load(folder / "e.npz").evidence == evidence
    for section in SECTIONS:
        assert getattr(evidence, section) or section in evidence.problems, section
    assert all(isinstance(text, str) and len(text) > 20 for text in evidence.problems.values())


@pytest.fixture(scope="module")
def market() -> pd.DataFrame:
    return simulate(MarketSpec(bars=2_000))


def test_every_section_is_what_its_function_says(market: pd.DataFrame, tmp_path: Path) -> None:
    chain = dataclasses.replace(ChainConfig(), kelly=dataclasses.replace(ChainConfig().kelly, prior_mean_return=0.02))
    environment = EnvironmentConfig(costs=Costs(0.002, 0.001), capital=7_000.0)
    subject = made(market, chain=chain, environment=environment)
    bars, policy, tracks = subject.bars, subject.policy, walked(subject)
    tracks[CHAMPION] = run(bars, WINDOW, {"x": lambda *_: 0.8}, environment)["x"]
    track, drawn = tracks[POLICY], {"seed": 5, "resamples": 60}
    got = gathered(subject, tracks, champion="20230101-abc")
    assert dict(got.problems) == {}
    assert got.champion == "20230101-abc"
    assert got.trust == trust(track.equity, 3_600, trials=7, trials_variance=0.3, **drawn)
    names = (KELLY_ONLY, BUY_AND_HOLD, FLAT, CHAMPION)
    assert got.differences == tuple(
        difference(track.equity, tracks[name].equity, 3_600, against=name, **drawn) for name in names
    )
    returns = {name: bar_returns(tracks[name]) for name in names[:3]}
    assert got.superiority == superiority(bar_returns(track), returns, **drawn)
    assert got.bootstrap_band == equity_band(bars.timestamp[1_301:1_999], track.equity, **drawn)
    assert got.costs == cost_evidence(bars, WINDOW, asked(policy), track, environment)
    assert got.attribution == attribute(bars, WINDOW, asked(policy), track, environment, 5)
    assert got.degeneracy == find_degeneracy(bars, WINDOW, policy, track, environment)
    assert got.stability == find_stability(market, bars, WINDOW, track)
    pieces = (market, "SYNTH-USD", 3_600, chain)
    assert got.leak == find_leaks(*pieces, bars, WINDOW, policy, cuts=2, environment=environment)
    assert got.leak.differs == ()
    real = sharpe(bar_returns(track), 8_760)
    assert real is not None
    drawn = {"seed": 5, "paths": 6, "real": real, "environment": environment}
    assert got.permutations == tuple(
        permutation_test(*pieces, WINDOW, policy, kind=kind, **drawn) for kind in ("bars", "blocks")
    )
    sound(got, subject, tmp_path)


def test_the_same_arguments_give_the_same_evidence_and_another_seed_other_chance(market: pd.DataFrame) -> None:
    subject = made(market)
    one, same, other = (gathered(subject, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.costs == other.costs
    assert one.leak == other.leak
    for section in ("trust", "differences", "bootstrap_band", "attribution", "permutations"):
        assert getattr(one, section) != getattr(other, section), section


def test_progress_is_told_before_each_section(market: pd.DataFrame) -> None:
    told: list[tuple[str, int, int]] = []
    gathered(made(market), on_progress=lambda *news: told.append(news))
    assert told == [(section, k, len(SECTIONS)) for k, section in enumerate(SECTIONS)]


def still(market: pd.DataFrame) -> pd.DataFrame:
    """From shortly before the window on: where it never moved, the chain has long stopped trading."""
    prices = {name: market[name].where(market.index < 1_250, 100.0) for name in ("open", "high", "low", "close")}
    return market.assign(**prices, volume=market["volume"].where(market.index < 1_250, 1.0))


def silent(market: pd.DataFrame) -> pd.DataFrame:
    return market.assign(signal_action="hold")


def explosive(market: pd.DataFrame) -> pd.DataFrame:
    """Always short, and then the price is a hundred times what it was."""
    up = np.where(np.arange(len(market)) < 1_600, 1.0, 100.0)
    prices = {name: market[name] * up for name in ("open", "high", "low", "close")}
    return market.assign(**prices, signal_action="sell", signal_confidence=0.9, signal_risk_score=0.1)


def without_feeds(market: pd.DataFrame) -> pd.DataFrame:
    return market[["timestamp", "open", "high", "low", "close", "volume"]]


@pytest.mark.parametrize("plain", [False, True])
def test_a_market_that_stands_still(market: pd.DataFrame, tmp_path: Path, plain: bool) -> None:
    subject = made(without_feeds(still(market)) if plain else still(market))
    got = gathered(subject)
    sound(got, subject, tmp_path)
    assert got.permutations == ()
    assert got.leak is not None
    assert got.leak.differs == ()
    if plain:
        # The baseline takes no side where nothing moves.
        assert got.trust is not None
        assert got.trust.sharpe is None
        assert "no Sharpe ratio" in got.problems["permutations"]
        assert "takes no position" in got.problems["attribution"]
    else:
        # Costs alone move this account.
        assert got.problems["permutations"].count("stands still") == 2
        assert got.costs is not None
        assert got.costs.net < 0.0
        assert got.costs.gross == pytest.approx(0.0, abs=1e-12)


def test_no_trades(market: pd.DataFrame, tmp_path: Path) -> None:
    subject = made(silent(market))
    got = gathered(subject)
    sound(got, subject, tmp_path)
    assert got.degeneracy is not None
    assert got.degeneracy.decisions == 0
    assert len(got.degeneracy.findings) == 1
    assert got.costs is not None
    assert (got.costs.gross, got.costs.net, got.costs.break_even) == (0.0, 0.0, None)
    assert got.attribution == ()
    assert got.permutations == ()


def test_an_account_that_was_lost(market: pd.DataFrame, tmp_path: Path) -> None:
    subject = made(explosive(market), Policy(constant_tensors(1.9), {}))
    tracks = walked(subject)
    assert tracks[POLICY].equity.min() < 0.0
    got = gathered(subject, tracks)
    sound(got, subject, tmp_path)
    assert got.trust is not None
    assert got.trust.probabilistic is None
    assert got.costs is not None
    assert got.costs.net < -1.0
    for section in ("superiority", "stability", "bootstrap_band", "permutations"):
        assert "after 299 decisions" in got.problems[section] or section == "bootstrap_band"
    assert got.leak is not None


def test_a_benchmark_that_holds_no_number_is_named(market: pd.DataFrame, tmp_path: Path) -> None:
    subject = made(market)
    tracks = walked(subject)
    equity = tracks[BUY_AND_HOLD].equity.copy()
    equity[-1] = np.nan
    tracks[BUY_AND_HOLD] = dataclasses.replace(tracks[BUY_AND_HOLD], equity=equity)
    got = gathered(subject, tracks)
    sound(got, subject, tmp_path)
    assert [made.against for made in got.differences] == [KELLY_ONLY, FLAT]
    assert got.problems["differences"].startswith("buy_and_hold: equity")
    assert got.problems["superiority"].startswith("equity of buy_and_hold is nan")
    assert set(got.problems) == {"differences", "superiority"}


@pytest.mark.parametrize("column", ["equity", "cost", "exposure", "multiplier", "trades"])
def test_numbers_in_the_record_that_are_none(market: pd.DataFrame, tmp_path: Path, column: str) -> None:
    subject = made(market)
    tracks = walked(subject)
    values = getattr(tracks[POLICY], column).copy()
    values[0 if column == "trades" else 100 :] = np.nan
    tracks[POLICY] = dataclasses.replace(tracks[POLICY], **{column: values})
    got = gathered(subject, tracks)
    sound(got, subject, tmp_path)
    at = 0 if column == "trades" else 100
    assert set(got.problems.values()) == {f"the policy's {column} is nan at decision {at}: check the data"}
    assert dataclasses.replace(got, problems={}) == Evidence()


@pytest.mark.parametrize("column", ["close", "volatility", "base_fraction", "open"])
def test_bars_that_hold_no_numbers(market: pd.DataFrame, tmp_path: Path, column: str) -> None:
    """Bars from elsewhere: those that a run loads are checked."""
    subject = made(market)
    tracks = walked(subject)
    values = getattr(subject.bars, column).copy()
    values[1_500:1_510] = np.nan
    subject = dataclasses.replace(subject, bars=dataclasses.replace(subject.bars, **{column: values}))
    got = gathered(subject, tracks)
    sound(got, subject, tmp_path)
    assert got.leak is None or got.leak.differs
    assert got.problems


@pytest.mark.parametrize("bars", [3, 5, 22, 60])
def test_a_record_too_short(market: pd.DataFrame, tmp_path: Path, bars: int) -> None:
    subject = made(market, window=range(1_300, 1_300 + bars))
    got = gathered(subject)
    sound(got, subject, tmp_path)
    assert "permutations" in got.problems
    assert ("superiority" in got.problems) == (bars <= 21)
    assert ("leak" in got.problems) == (bars < 9)


def test_parts_of_a_section_that_can_be_computed_are_there(market: pd.DataFrame, tmp_path: Path) -> None:
    subject = made(market, window=range(1_300, 1_400))
    tracks = walked(subject)
    tracks[CHAMPION] = dataclasses.replace(tracks[FLAT], equity=tracks[FLAT].equity[:50])
    del tracks[BUY_AND_HOLD]
    got = gathered(subject, tracks)
    sound(got, subject, tmp_path)
    assert [made.against for made in got.differences] == [KELLY_ONLY, FLAT]
    assert got.problems["differences"].startswith("champion: 98 bars against 49 of champion")
    assert got.superiority is not None
    assert got.superiority.benchmarks == (KELLY_ONLY, FLAT)
    # Of 100 bars single ones can be permuted, and days cannot.
    assert [made.kind for made in got.permutations] == ["bars"]
    assert got.problems["permutations"].startswith("blocks: ")


def test_what_is_known_to_be_impossible_is_not_tried(market: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this was not to be tried")

    monkeypatch.setattr(module, "find_leaks", never)
    problems = {"leak": "The candles are gone.", "walk_forward": "There was none.", "champion": "Another contract."}
    got = gathered(made(market), problems=problems)
    assert got.leak is None
    assert dict(got.problems) == problems
    assert got.permutations


def test_a_refusal_is_told_and_a_bug_is_raised(market: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    monkeypatch.setattr(module, "find_stability", failing(DataError("row 3 is wrong: repair it")))
    assert gathered(made(market)).problems == {"stability": "row 3 is wrong: repair it"}
    monkeypatch.setattr(module, "find_stability", failing(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        gathered(made(market))


def test_tracks_of_another_window_are_refused(market: pd.DataFrame) -> None:
    subject = made(market)
    tracks = walked(subject)
    other = dataclasses.replace(subject, window=range(1_300, 1_900))
    for given in (tracks, {KELLY_ONLY: tracks[KELLY_ONLY]}):
        with pytest.raises(EvaluationError, match=r"the window holds 598 decisions, the tracks \("):
            gathered(other, given)


def test_candles_of_another_history_are_refused(market: pd.DataFrame) -> None:
    subject = made(market)
    moved = market.assign(timestamp=market["timestamp"] + pd.Timedelta(hours=1))
    for candles in (market.iloc[:1_700], moved):
        with pytest.raises(EvaluationError, match=f"{len(candles):,} candles and 2,000 bars of SYNTH-USD are not"):
            dataclasses.replace(subject, candles=candles)


def test_the_record_and_the_evidence_agree(market: pd.DataFrame) -> None:
    subject = made(market)
    tracks = walked(subject)
    got, figures = gathered(subject, tracks), summarise(tracks[POLICY], 3_600)
    assert got.trust is not None
    assert got.costs is not None
    assert got.trust.sharpe == pytest.approx(figures["sharpe"])
    assert [made.real for made in got.permutations] == [figures["sharpe"]] * 2
    assert got.costs.net == figures["total_return"]
    assert got.attribution[0].sharpe == figures["sharpe"]
    kelly = summarise(tracks[KELLY_ONLY], 3_600)
    assert (got.attribution[1].sharpe, got.attribution[1].total_return) == (kelly["sharpe"], kelly["total_return"])
