"""The walk-forward: files that come back as they were, one account over all test pieces, nothing from later."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3.agent.bars import Bars
from layer3.agent.policy import Policy, stack
from layer3.backtest.engine import run
from layer3.backtest.folds import plan
from layer3.backtest.metrics import max_drawdown, periods_per_year, sharpe, summarise
from layer3.backtest.overfitting import overfitting
from layer3.backtest.record import KELLY_ONLY, POLICY, Track
from layer3.backtest.trust import difference, trust
from layer3.backtest.walk_forward import FoldSet, describe, joined, load_folds, save_folds, stitch
from layer3.errors import EvaluationError
from tests.agent.worlds import constant_member, make_bars, make_member

BARS = 3_000
FOLDS = plan(BARS, folds=3, purge=168, embargo=24)
TRAINING = {"data_sha256": "ab" * 32, "settings": {"steps": 4096}}


def folds_of(*seeds: int, member: Any = None) -> FoldSet:
    policies = tuple(tuple((member or make_member)(10 * fold.number + seed) for seed in seeds) for fold in FOLDS)
    return FoldSet("rolling", TRAINING, seeds, FOLDS, policies)


def parts(whole: FoldSet) -> list[FoldSet]:
    return [
        replace(whole, folds=(fold,), tensors=(policies,))
        for fold, policies in zip(whole.folds, whole.tensors, strict=True)
    ]


@pytest.fixture(scope="module")
def bars() -> Bars:
    return make_bars(BARS)


def described(bars: Bars, whole: FoldSet, **changes: Any) -> Any:
    given: dict[str, Any] = {"trials": 7, "trials_variance": 0.25, "seed": 3, "resamples": 50}
    return describe(bars, whole, stitch(bars, whole), **(given | changes))


def test_a_set_comes_back_from_its_file_and_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = folds_of(1, 2)
    for name in ("a", "b"):
        save_folds(tmp_path / name, whole)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_folds(tmp_path / "a")
    assert (loaded.kind, loaded.training, loaded.seeds, loaded.folds) == ("rolling", TRAINING, (1, 2), FOLDS)
    for mine, theirs in zip(whole.tensors, loaded.tensors, strict=True):
        for policy, other in zip(mine, theirs, strict=True):
            assert set(policy) == set(other)
            for name, tensor in policy.items():
                np.testing.assert_array_equal(tensor, other[name])


def test_a_refusal_comes_back_too(tmp_path: Path) -> None:
    refused = FoldSet("expanding", TRAINING, (1,), (), (), "the price is constant")
    save_folds(tmp_path / "a", refused)
    assert load_folds(tmp_path / "a") == refused
    with pytest.raises(EvaluationError, match="the price is constant"):
        joined([*parts(folds_of(1)), refused])


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(EvaluationError, match="holds no folds of a walk-forward"):
        load_folds(tmp_path / "a")
    with pytest.raises(EvaluationError, match="holds no folds"):
        load_folds(tmp_path / "absent")


def test_sets_trained_apart_are_one_in_whatever_order_they_come() -> None:
    whole = folds_of(1, 2)
    first, second, third = parts(whole)
    again = joined([third, first, second])
    assert again.folds == whole.folds
    assert [id(policies) for policies in again.tensors] == [id(policies) for policies in whole.tensors]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sets: [], "no walk-forward was run"),
        (lambda sets: [replace(sets[0], folds=(), tensors=())], "no walk-forward was run"),
        (lambda sets: sets[:1] + sets[2:], "folds 1, 3 do not follow each other"),
        (lambda sets: sets[1:], "folds 2, 3 do not follow"),
        (lambda sets: [*sets, sets[0]], "folds 1, 1, 2, 3 do not follow"),
        (lambda sets: [*sets[:2], replace(sets[2], training={})], "different data, settings or seeds"),
        (lambda sets: [*sets[:2], replace(sets[2], kind="expanding")], "different data"),
    ],
)
def test_sets_that_are_no_whole_are_refused(spoil: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        joined(spoil(parts(folds_of(1))))


def test_one_account_walks_all_test_pieces_under_the_policies_of_their_folds(bars: Bars) -> None:
    """Against constants: what each fold answers is known, and the plain walk with those answers is the record."""
    answers = {1: 0.4, 2: 1.0, 3: 1.7}
    whole = FoldSet("rolling", TRAINING, (1,), FOLDS, tuple((constant_member(answers[fold.number]),) for fold in FOLDS))
    stitched = stitch(bars, whole)
    first = FOLDS[0].test.start
    assert stitched.window == range(first, BARS)
    turn = {bar: answers[fold.number] for fold in FOLDS for bar in fold.test}
    plain = run(bars, stitched.window, {"x": lambda _, t: turn[first + t]})["x"]
    np.testing.assert_allclose(stitched.tracks[POLICY].equity, plain.equity, rtol=1e-6)
    for fold in FOLDS:
        at = slice(fold.test.start - first, min(fold.test.stop - first, len(plain.multiplier)))
        np.testing.assert_allclose(stitched.tracks[POLICY].multiplier[at], answers[fold.number], atol=1e-6)
    np.testing.assert_array_equal(stitched.tracks[KELLY_ONLY].multiplier, 1.0)


def test_the_mean_of_the_seeds_acts_and_each_has_its_own_record(bars: Bars) -> None:
    whole = folds_of(4, 5)
    stitched = stitch(bars, whole)
    assert set(stitched.tracks) == {POLICY, KELLY_ONLY}
    alone = stitch(bars, replace(whole, seeds=(5,), tensors=tuple(policies[1:] for policies in whole.tensors)))
    np.testing.assert_array_equal(stitched.seeds[1].equity, alone.tracks[POLICY].equity)
    crowd = Policy(stack(list(whole.tensors[0])), {})
    first = FOLDS[0].test
    own = run(bars, first, {"x": lambda state, _: float(crowd.act(state)[0])})["x"]
    np.testing.assert_array_equal(own.equity, stitched.tracks[POLICY].equity[: len(own.equity)])


def test_nothing_of_a_fold_depends_on_later_bars(bars: Bars) -> None:
    whole, cut = folds_of(1, 2), FOLDS[1].test.stop
    later: dict[str, Any] = {}
    for entry in fields(Bars):
        values = getattr(bars, entry.name).copy()
        if entry.name != "timestamp":
            values[cut:] = values[cut:][::-1]
        later[entry.name] = values
    ends = cut - FOLDS[0].test.start - 2
    one, other = stitch(bars, whole), stitch(Bars(**later), whole)
    for mine, theirs in zip([*one.tracks.values(), *one.seeds], [*other.tracks.values(), *other.seeds], strict=True):
        for entry in fields(Track):
            if entry.name != "trades":
                np.testing.assert_array_equal(getattr(mine, entry.name)[:ends], getattr(theirs, entry.name)[:ends])
    assert one.tracks[POLICY].equity[-1] != other.tracks[POLICY].equity[-1]


def test_every_figure_is_that_of_the_stitched_record(bars: Bars) -> None:
    whole = folds_of(1, 2)
    stitched = stitch(bars, whole)
    found = described(bars, whole)
    equity, kelly = stitched.tracks[POLICY].equity, stitched.tracks[KELLY_ONLY].equity
    assert found.trust == trust(equity, 3_600, trials=7, trials_variance=0.25, seed=3, resamples=50)
    assert found.versus_kelly == difference(equity, kelly, 3_600, against=KELLY_ONLY, seed=3, resamples=50)
    assert found.total_return == summarise(stitched.tracks[POLICY], 3_600)["total_return"]
    assert found.max_drawdown == max_drawdown(equity)
    assert found.seed_sharpes == tuple(summarise(track, 3_600)["sharpe"] for track in stitched.seeds)
    returns = np.stack([track.equity[1:] / track.equity[:-1] - 1.0 for track in stitched.seeds], axis=1)
    assert found.overfitting == overfitting(returns, 16)
    assert described(bars, whole) == found


def test_each_fold_says_when_it_was_and_what_its_seeds_came_to(bars: Bars) -> None:
    whole = folds_of(1, 2)
    stitched, found = stitch(bars, whole), described(bars, whole)
    starts = bars.timestamp.astype("datetime64[ns]")
    for fold, told in zip(FOLDS, found.folds, strict=True):
        for said, bar in (
            (told.train_start, fold.train.start),
            (told.train_end, fold.train.stop - 1),
            (told.test_start, fold.test.start),
            (told.test_end, fold.test.stop - 1),
        ):
            assert said.endswith("+00:00")
            assert np.datetime64(said[:19]) == starts[bar]
        assert told.train_end < told.test_start
    second = FOLDS[1].test
    at = slice(second.start - FOLDS[0].test.start, second.stop - FOLDS[0].test.start + 1)
    piece = stitched.seeds[0].equity[at]
    assert len(piece) == len(second) + 1
    assert found.folds[1].sharpes[0] == sharpe(piece[1:] / piece[:-1] - 1.0, periods_per_year(3_600))


def test_the_curve_is_read_at_the_ends_of_days(bars: Bars) -> None:
    whole = folds_of(1)
    stitched, found = stitch(bars, whole), described(bars, whole)
    day = bars.timestamp[stitched.window.start + 1 : stitched.window.stop - 1] // 86_400_000_000_000
    assert list(found.days) == sorted(set(day.tolist()))
    equity = stitched.tracks[POLICY].equity
    last = {int(d): t for t, d in enumerate(day)}
    for place, d in enumerate(found.days):
        assert found.equity[place] == equity[1 + last[d]] / equity[0]
    assert found.equity[-1] == equity[-1] / equity[0]
    assert len(found.days) == len(found.equity) == len(found.kelly_equity)


def test_a_long_record_keeps_at_most_1500_points(bars: Bars) -> None:
    daily = replace(bars, timestamp=bars.timestamp[0] + 86_400_000_000_000 * np.arange(BARS))
    found = described(daily, folds_of(1))
    assert 700 < len(found.days) <= 1_500
    assert found.days[-1] == daily.timestamp[-2] // 86_400_000_000_000
    assert set(np.diff(found.days)) == {2}


def test_one_seed_or_equal_ones_leave_nothing_to_choose_among(bars: Bars) -> None:
    assert described(bars, folds_of(1)).overfitting is None
    assert described(bars, folds_of(1, 2, member=lambda _: constant_member(1.2))).overfitting is None


def test_a_market_in_which_nothing_is_held_has_no_ratio_and_no_nan(bars: Bars) -> None:
    still = replace(bars, direction=np.zeros(BARS, dtype=np.int8))
    found = described(still, folds_of(1, 2))
    assert found.trust.sharpe is None
    assert found.seed_sharpes == (None, None)
    assert {value for fold in found.folds for value in fold.sharpes} == {None}
    assert found.total_return == found.max_drawdown == 0.0


def test_folds_of_other_data_are_refused(bars: Bars) -> None:
    short = Bars(**{entry.name: getattr(bars, entry.name)[:2_900] for entry in fields(Bars)})
    with pytest.raises(EvaluationError, match="the folds reach to bar 3,000 of 2,900"):
        stitch(short, folds_of(1))
