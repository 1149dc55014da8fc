"""Folds by time: against skfolio's, tiling without a hole, and never trained on what is near the test."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skfolio.model_selection import WalkForward

from layer3.backtest.folds import KINDS, FoldRange, Kind, plan, shared_out
from layer3.errors import ConfigurationError, EvaluationError

TWO_YEARS = 2 * 365 * 24
GAP = {"purge": 168, "embargo": 24}


def test_two_years_of_hours_give_six_months_a_month_and_a_month() -> None:
    folds = plan(TWO_YEARS, **GAP)
    months = 365 * 24 / 12
    assert len(folds) == 18
    assert {len(fold.train) for fold in folds} == {4_380}
    assert len(folds[0].train) / months == pytest.approx(6.0)
    assert [fold.test.start for fold in folds[1:]] == [fold.test.stop for fold in folds[:-1]]
    for fold in folds:
        assert len(fold.test) / months == pytest.approx(1.0, abs=0.02)


def test_the_first_two_folds_by_hand() -> None:
    assert plan(1_000, folds=3, kind="rolling", purge=7, embargo=3, min_train=100) == (
        FoldRange(1, range(250), range(260, 506)),
        FoldRange(2, range(246, 496), range(506, 752)),
        FoldRange(3, range(492, 742), range(752, 1_000)),
    )
    expanding = plan(1_000, folds=3, kind="expanding", purge=7, embargo=3, min_train=100)
    assert [fold.train for fold in expanding] == [range(250), range(496), range(742)]


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "folds": draw(st.integers(1, 30)),
        "kind": draw(st.sampled_from(KINDS)),
        "purge": draw(st.integers(0, 200)),
        "embargo": draw(st.integers(0, 50)),
    }


@given(st.integers(3_000, 40_000), cuts())
def test_test_pieces_tile_the_rest_and_training_keeps_its_distance(bars: int, cut: dict[str, Any]) -> None:
    folds = plan(bars, **cut)
    tested = [bar for fold in folds for bar in (fold.test.start, fold.test.stop)]
    assert tested == sorted(tested)
    assert tested[1:-1:2] == tested[2::2]
    assert tested[-1] == bars
    assert tested[0] == bars // 4 + cut["purge"] + cut["embargo"]
    assert [fold.number for fold in folds] == list(range(1, cut["folds"] + 1))
    sizes = {len(fold.test) for fold in folds[:-1]}
    assert len(sizes) <= 1
    assert len(folds[-1].test) < cut["folds"] + min(sizes | {len(folds[-1].test)})
    for fold in folds:
        assert fold.test.start - fold.train.stop == cut["purge"] + cut["embargo"]
        assert 0 <= fold.train.start < fold.train.stop <= fold.test.start
        assert len(fold.train) == bars // 4 if cut["kind"] == "rolling" else fold.train.start == 0


@given(st.integers(3_000, 40_000), cuts())
def test_they_are_skfolios(bars: int, cut: dict[str, Any]) -> None:
    folds = plan(bars, **cut)
    oracle = WalkForward(
        test_size=len(folds[0].test) if len(folds) > 1 else bars - folds[0].test.start,
        train_size=bars // 4,
        purged_size=cut["purge"] + cut["embargo"],
        expand_train=cut["kind"] == "expanding",
    )
    theirs = list(oracle.split(np.zeros((bars, 1))))[: len(folds)]
    assert len(theirs) == len(folds)
    for fold, (train, test) in zip(folds, theirs, strict=True):
        assert (train[0], train[-1] + 1) == (fold.train.start, fold.train.stop)
        assert test[0] == fold.test.start
        # The remainder, which skfolio drops, is the last piece's.
        assert test[-1] + 1 == fold.test.stop or (fold is folds[-1] and test[-1] < fold.test.stop)


@pytest.mark.parametrize("kind", KINDS)
def test_more_history_never_changes_how_far_a_window_keeps_away(kind: Kind) -> None:
    for bars in (4_003, 4_004, 35_040):
        assert {fold.test.start - fold.train.stop for fold in plan(bars, kind=kind, **GAP)} == {192}


@given(st.integers(0, 6_000), st.integers(1, 60), st.integers(0, 300))
def test_what_is_too_short_says_what_it_takes_and_that_suffices(bars: int, folds: int, purge: int) -> None:
    try:
        plan(bars, folds=folds, purge=purge, embargo=24)
    except EvaluationError as error:
        needed = int(re.findall(r"at least ([\d,]+) bars", str(error))[0].replace(",", ""))
        assert needed > bars
        plan(needed, folds=folds, purge=purge, embargo=24)
        with pytest.raises(EvaluationError):
            plan(needed - 1, folds=folds, purge=purge, embargo=24)


def test_the_message_names_what_is_short() -> None:
    with pytest.raises(EvaluationError, match=r"2,000 bars in 18 folds give 500 to train \(at least 550 .* 2,200 bars"):
        plan(2_000, **GAP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 0}, "folds is 0, expected 1 to 200"),
        ({"folds": 201}, "folds is 201"),
        ({"kind": "random"}, "'random', expected rolling or expanding"),
        ({"purge": -1}, "purge is -1"),
        ({"embargo": -1}, "embargo -1"),
    ],
)
def test_an_argument_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(20_000, **(GAP | changes))


@given(st.integers(0, 200), st.integers(1, 50))
def test_groups_are_neighbours_of_equal_number_and_none_is_left_out(folds: int, groups: int) -> None:
    shared = shared_out(folds, groups)
    assert [number for group in shared for number in group] == list(range(1, folds + 1))
    assert len(shared) == max(min(folds, groups), 1)
    assert max(map(len, shared)) - min(map(len, shared)) <= 1


def test_groups_by_hand() -> None:
    assert shared_out(5, 2) == [[1, 2], [3, 4, 5]]
    assert shared_out(0, 6) == [[]]
    with pytest.raises(ConfigurationError, match="fold_groups is 0"):
        shared_out(3, 0)
    with pytest.raises(ConfigurationError, match=r"folds is -1, expected 0 \(no walk-forward\) to 200"):
        shared_out(-1, 3)
