"""The evaluation's benchmark: equal tasks have equal ends; nothing here is timed."""

from __future__ import annotations

import sys

import pytest

from bench import evaluation, following, judged
from layer3.backtest.evidence import Effort


def test_our_engines_agree_to_the_last_bit():
    task = following._task(1)
    assert following.ours_backtest(task) == following.ours_accounts(task)


def test_a_path_is_the_same_alone_and_among_others():
    alone, among = (
        following.follow("ours, accounts side by side", 1, 1),
        following.follow("ours, accounts side by side", 2, 1),
    )
    assert alone.equity == among.equity[:1]
    assert among.bars == 2 * alone.bars
    assert among.equity[0] != among.equity[1]


@pytest.mark.parametrize("engine", ["vectorbt", "backtesting.py"])
@pytest.mark.filterwarnings("ignore")
def test_peers_end_where_we_do(engine):
    pytest.importorskip(engine.removesuffix(".py"))
    (ours,), (theirs,) = (
        following.follow("ours, accounts side by side", 1, 1).equity,
        following.follow(engine, 1, 1).equity,
    )
    assert theirs == pytest.approx(ours, rel=evaluation.CONVENTIONS)
    assert ours != 1.0


def test_every_section_is_measured_and_computed():
    found = judged.evaluated(0.15, Effort(permutations=2, resamples=20, cuts=1))
    assert {"walk", "trust", "permutations", "leak", "verdict"} <= set(found.seconds)
    assert min(found.seconds.values()) >= 0.0
    assert not found.problems


def test_permutations_are_counted():
    found = judged.permuted(3, 0.1, "baseline")
    assert (found.paths, found.bars) == (3, 876)


def test_without_its_peers_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation"])
    monkeypatch.setattr(evaluation, "PEERS", ("a_peer_that_nobody_wrote",))
    assert evaluation.main() == 2
    assert "a_peer_that_nobody_wrote not installed" in capsys.readouterr().err
