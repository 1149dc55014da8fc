"""Everything tried is counted once, wherever the store is and however often it was repeated."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3 import storage, trials
from layer3.errors import DataError

NOW = datetime(2026, 11, 21, 10, 11, 12, 345_678, tzinfo=UTC)
BTC = trials.Data("ab" * 32, "BTC-USDT", "2024-04-16T01:00:00+00:00", "2026-04-16T00:00:00+00:00", "cd" * 32)


def note(store: str, data: trials.Data = BTC, **changes: Any) -> str:
    given: dict[str, Any] = {
        "kind": "tune",
        "seeds": [1, 2],
        "folds": [{data.sha256: [range(100)]}],
        "settings": [{"ppo": {"learning_rate": 1e-3}}],
        "scores": {},
        "code_version": "c0de",
        "now": NOW,
    }
    return trials.record(store, data=data, **(given | changes))


def test_a_record_says_everything_and_lies_where_it_is_looked_for(store: str) -> None:
    folds = [{BTC.sha256: [range(100)], "ef" * 32: [range(5, 50), range(60, 70)]}]
    scores = {"validation_reward": [0.25, None]}
    address = note(store, folds=folds, scores=scores, now=NOW.astimezone(timezone(timedelta(hours=9))))
    assert address.startswith(storage.join(store, "trials", "abababababababab", "20261121T101112345-"))
    assert json.loads(storage.read_bytes(address)) == {
        "schema": 1,
        "when": "2026-11-21T10:11:12.345+00:00",
        "kind": "tune",
        "data": {
            "sha256": "ab" * 32,
            "symbol": "BTC-USDT",
            "start": "2024-04-16T01:00:00+00:00",
            "end": "2026-04-16T00:00:00+00:00",
            "sizing_sha256": "cd" * 32,
        },
        "seeds": [1, 2],
        "folds": [{"ab" * 32: [[0, 100]], "ef" * 32: [[5, 50], [60, 70]]}],
        "settings": [{"ppo": {"learning_rate": 1e-3}}],
        "policies": 2,
        "scores": scores,
        "code_version": "c0de",
    }


def test_settings_folds_and_seeds_multiply(store: str) -> None:
    assert trials.count(store, BTC.sha256) == 0
    folds = [{BTC.sha256: [range(100)]}, {BTC.sha256: [range(200)]}]
    note(store, settings=[{"a": 1}, {"a": 2}, {"a": 3}], folds=folds, seeds=[1, 2, 3, 4, 5])
    assert trials.count(store, BTC.sha256) == 30


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, 0),
        ({"kind": "run"}, 0),
        ({"scores": {"validation_reward": [1.0, 2.0]}}, 0),
        ({"seeds": [2, 3]}, 1),
        ({"settings": [{"ppo": {"learning_rate": 2e-3}}]}, 2),
        ({"folds": [{BTC.sha256: [range(101)]}]}, 2),
        ({"code_version": "0ther"}, 2),
        ({"data": replace(BTC, sizing_sha256="00" * 32)}, 2),
    ],
)
def test_only_the_very_same_training_is_a_repetition(tmp_path: Path, changes: dict[str, Any], more: int) -> None:
    note(str(tmp_path))
    note(str(tmp_path), **({"now": NOW + timedelta(days=1)} | changes))
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert trials.count(str(tmp_path), BTC.sha256) == 2 + more


MOVED = replace(BTC, sha256="11" * 32, start="2024-04-17T01:00:00+00:00", end="2026-04-17T00:00:00+00:00")


@pytest.mark.parametrize(
    ("other", "counted"),
    [
        (MOVED, True),
        (replace(MOVED, symbol="btc/usdt"), True),
        (replace(MOVED, symbol="BTC-USD"), True),
        (replace(MOVED, symbol="BTC/USDC"), True),
        (replace(MOVED, symbol="BTC-EUR"), False),
        (replace(MOVED, symbol="USDT-USD"), False),
        (replace(MOVED, symbol="ETH-USDT"), False),
        (replace(MOVED, start="2026-04-16T00:00:00+00:00", end="2026-05-01T00:00:00+00:00"), True),
        (replace(MOVED, start="2026-04-16T01:00:00+00:00", end="2026-05-01T00:00:00+00:00"), False),
        (replace(MOVED, start="2020-01-01T00:00:00+00:00", end="2024-04-16T00:00:00+00:00"), False),
        (replace(MOVED, start="2026-04-16T02:00:00+02:00", end="2026-05-01T00:00:00+02:00"), True),
    ],
)
def test_a_window_that_has_moved_on_is_the_same_history(store: str, other: trials.Data, counted: bool) -> None:
    note(store)
    note(store, other, settings=[{"a": 1}, {"a": 2}, {"a": 3}])
    assert trials.count(store, BTC.sha256) == (8 if counted else 2)
    assert trials.count(store, other.sha256) == (8 if counted else 6)


def test_simulated_markets_share_dates_and_nothing_else(tmp_path: Path) -> None:
    one, other = replace(BTC, symbol="SYNTH-USD"), replace(MOVED, symbol="SYNTH-USD")
    note(str(tmp_path), one)
    note(str(tmp_path), other)
    assert trials.count(str(tmp_path), one.sha256) == trials.count(str(tmp_path), other.sha256) == 2


def test_what_ingest_says_names_the_data() -> None:
    info = {
        "data_sha256": BTC.sha256,
        "symbol": "BTC-USDT",
        "start": BTC.start,
        "end": BTC.end,
        "sizing_sha256": BTC.sizing_sha256,
        "rows": 17_520,
    }
    assert trials.Data.of(info) == BTC


def test_what_is_no_record_is_left_alone(tmp_path: Path) -> None:
    address = Path(note(str(tmp_path)))
    address.with_name(".20261121T101112345-000000000000.json.0123.partial").write_bytes(b"{")
    (tmp_path / "trials" / ".DS_Store").write_bytes(b"x")
    assert trials.count(str(tmp_path), BTC.sha256) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: text.replace('"seeds"', '"sneeds"'),
        lambda text: text.replace('"symbol"', '"market"'),
        lambda text: text.replace('"scores": {}', '"scores": {"validation_sharpe": [1.0]}'),
        lambda text: text.replace('"scores": {}', '"scores": {"validation_sharpe": ["high", "low"]}'),
        lambda text: text.replace("2024-04-16T01:00:00+00:00", "last spring"),
        lambda text: text.replace("2024-04-16T01:00:00+00:00", "2024-04-16T01:00:00"),
        lambda text: "[]",
        lambda text: "\x00",
    ],
)
def test_a_damaged_record_is_named_and_never_passed_over(tmp_path: Path, damage: Any) -> None:
    address = Path(note(str(tmp_path)))
    address.write_text(damage(address.read_text()))
    with pytest.raises(DataError, match=f"{address.name} is no record of a trial"):
        trials.count(str(tmp_path), "00" * 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "nothing was trained"),
        ({"settings": []}, "nothing was trained"),
        ({"folds": []}, "nothing was trained"),
        ({"scores": {"validation_reward": [1.0]}}, "1 scores 'validation_reward' for 2 policies"),
        ({"scores": {"validation_reward": [1.0, float("nan")]}}, "not finite"),
    ],
)
def test_a_record_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        note(str(tmp_path), **changes)
    assert not list(tmp_path.iterdir())


def sharpes(*values: float | None) -> dict[str, Any]:
    return {"scores": {trials.VALIDATION_SHARPE: list(values)}}


def variance(store: str) -> float | None:
    spread = trials.sharpe_spread(store, BTC.sha256)
    return spread.variance if spread else None


def test_one_ratio_has_no_spread(store: str) -> None:
    assert variance(store) is None
    note(store)
    assert variance(store) is None
    note(store, seeds=[1], **sharpes(1.5))
    assert variance(store) is None
    note(store, seeds=[2, 3], **sharpes(0.5, None))
    assert variance(store) == pytest.approx(0.5)


@pytest.mark.parametrize("tried", [2, 4, 5, 9])
def test_the_spread_of_a_few_is_not_believed(tmp_path: Path, tried: int) -> None:
    """Two settings that happen to agree would say that trying costs nothing."""
    ratios = [1.0 + 1e-7 * number for number in range(2 * tried)]
    note(str(tmp_path), kind="tune", settings=[{"a": k} for k in range(tried)], seeds=[1, 2], **sharpes(*ratios))
    spread = trials.sharpe_spread(str(tmp_path), BTC.sha256)
    assert spread is not None
    assert (spread.freedom, spread.between) == (2 * tried - 1, tried - 1)
    expected = pytest.approx(statistics.variance(ratios)) if tried > trials.LEAST_FREEDOM else None
    assert trials.sharpe_variance(str(tmp_path), BTC.sha256) == expected


@pytest.mark.parametrize(("members", "fold_seeds"), [(4, 2), (4, 5), (8, 2), (64, 64)])
def test_the_members_of_a_run_are_not_what_was_chosen_among(tmp_path: Path, members: int, fold_seeds: int) -> None:
    folds = [{BTC.sha256: [range(100)]}, {BTC.sha256: [range(200)]}]
    stitched = [0.1 * number for number in range(fold_seeds)] * 2
    note(str(tmp_path), seeds=range(members), **sharpes(*(1.0 + 1e-7 * number for number in range(members))))
    scores = {trials.STITCHED_SHARPE: stitched}
    note(str(tmp_path), kind="walk_forward", folds=folds, seeds=range(fold_seeds), scores=scores)
    spread = trials.sharpe_spread(str(tmp_path), BTC.sha256)
    assert spread is not None
    assert (spread.freedom, spread.between) == (members + fold_seeds - 2, 0)
    assert trials.sharpe_variance(str(tmp_path), BTC.sha256) is None


def test_ratios_on_the_same_bars_are_one_sample_whichever_record_they_are_in(tmp_path: Path) -> None:
    note(str(tmp_path), kind="run", seeds=[1], **sharpes(1.0))
    note(str(tmp_path), kind="tune", settings=[{"a": 1}, {"a": 2}], **sharpes(0.2, -0.4, 1.1, 0.7))
    assert variance(str(tmp_path)) == pytest.approx(statistics.variance([1.0, 0.2, -0.4, 1.1, 0.7]))


def test_ratios_on_other_bars_are_pooled_around_their_own_mean(tmp_path: Path) -> None:
    note(str(tmp_path), **sharpes(1.0, 2.0))
    note(str(tmp_path), MOVED, seeds=[1, 2, 3], **sharpes(11.0, 12.0, 16.0))
    note(str(tmp_path), replace(BTC, sizing_sha256="00" * 32), **sharpes(-5.0, -5.5))
    note(str(tmp_path), replace(BTC, sha256="22" * 32, symbol="ETH-USD"), **sharpes(0.0, 50.0))
    expected = (statistics.variance([1.0, 2.0]) + 2 * statistics.variance([11.0, 12.0, 16.0]) + 0.125) / 4
    assert variance(str(tmp_path)) == pytest.approx(expected)


def test_a_walk_forward_has_one_ratio_per_seed_however_many_its_folds(tmp_path: Path) -> None:
    folds = [{BTC.sha256: [range(100)]}, {BTC.sha256: [range(200)]}, {BTC.sha256: [range(300)]}]
    scores = {trials.STITCHED_SHARPE: [0.4, 1.6] * 3}
    note(str(tmp_path), kind="walk_forward", folds=folds, scores=scores)
    assert trials.count(str(tmp_path), BTC.sha256) == 6
    assert variance(str(tmp_path)) == pytest.approx(statistics.variance([0.4, 1.6]))
    note(str(tmp_path), seeds=[7, 8], **sharpes(3.0, 3.2))
    assert variance(str(tmp_path)) == pytest.approx((0.72 + 0.02) / 2)


def test_a_repetition_adds_no_weight_and_the_last_word_counts(tmp_path: Path) -> None:
    for day, ratios in enumerate([(9.0, -9.0), (1.0, 2.0), (1.0, 2.0)]):
        note(str(tmp_path), now=NOW + timedelta(days=day), **sharpes(*ratios))
    assert variance(str(tmp_path)) == pytest.approx(0.5)


def test_the_same_outcome_again_is_no_spread(tmp_path: Path) -> None:
    """The same policy after a change of code that did not touch it: nothing is known of how far trials differ."""
    note(str(tmp_path), seeds=[1], **sharpes(1.5))
    note(str(tmp_path), seeds=[1], code_version="0ther", **sharpes(1.5))
    assert trials.count(str(tmp_path), BTC.sha256) == 2
    assert variance(str(tmp_path)) is None


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=6, unique=True), min_size=1, max_size=4))
def test_the_pooled_variance_is_anovas_within_groups(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[float]]
) -> None:
    store = str(tmp_path_factory.mktemp("store"))
    for number, values in enumerate(groups):
        data = replace(BTC, sizing_sha256=f"{number:064d}")
        note(store, data, seeds=list(range(len(values))), **sharpes(*values))
    freedom = sum(len(values) - 1 for values in groups)
    if not freedom:
        assert variance(store) is None
        return
    within = sum((len(values) - 1) * statistics.variance(values) for values in groups if len(values) > 1)
    assert variance(store) == pytest.approx(within / freedom, abs=1e-9)


TRAINING = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=30)
@given(st.lists(TRAINING, max_size=8))
def test_the_count_is_the_size_of_the_set_of_trainings(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[int, int, int]]
) -> None:
    store = str(tmp_path_factory.mktemp("store"))
    for number, (setting, fold, seed) in enumerate(done):
        note(
            store,
            settings=[{"a": setting}],
            folds=[{BTC.sha256: [range(10 + fold)]}],
            seeds=[seed],
            now=NOW + timedelta(seconds=number),
        )
    assert trials.count(store, BTC.sha256) == len(set(done))


def series(*columns: float, bars: int = 4) -> np.ndarray[Any, Any]:
    """Returns (bars, policies), each policy's its own number and the bar's."""
    return np.asarray(columns, np.float32) + np.arange(bars, dtype=np.float32)[:, None]


def test_the_returns_of_different_trainings_stand_side_by_side(store: str) -> None:
    assert trials.validation_returns(store, BTC, 4).shape == (4, 0)
    note(store, seeds=[1, 2], returns=series(3.0, 1.0))
    note(store, seeds=[2, 3], returns=series(1.5, 5.0), now=NOW + timedelta(days=1))
    # Tried, but walked nowhere; of other candles or sizing, of another split, or the same to the last digit.
    note(store, kind="walk_forward", folds=[{BTC.sha256: [range(50)]}])
    note(store, MOVED, returns=series(7.0, 8.0))
    note(store, replace(BTC, sizing_sha256="00" * 32), returns=series(7.0, 8.0))
    note(store, seeds=[4, 5], returns=series(7.0, 8.0, bars=5))
    note(store, seeds=[6, 7], returns=series(3.0, 3.0))
    kept = trials.validation_returns(store, BTC, 4)
    np.testing.assert_array_equal(kept, series(3.0, 1.5, 5.0))
    assert trials.count(store, BTC.sha256) == 3 + 2 + 2 + 2 + 2 + 2


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04", "short", "wide", "nan", "objects"])
def test_returns_that_cannot_be_read_are_told_by_where_they_lie(tmp_path: Path, content: bytes | str) -> None:
    beside = Path(note(str(tmp_path), returns=series(3.0, 1.0))).with_suffix(".npy")
    if content == "short":
        beside.write_bytes(beside.read_bytes()[:-1])
    elif isinstance(content, str):
        arrays = {"wide": series(1.0, 2.0, 3.0), "nan": series(np.nan, 1.0), "objects": np.array([[{}, {}]])}
        np.save(beside, arrays[content], allow_pickle=True)
    else:
        beside.write_bytes(content)
    with pytest.raises(DataError, match=f"{beside} holds no returns of policies .*: restore it, or remove it"):
        trials.validation_returns(str(tmp_path), BTC, 4)
    assert trials.count(str(tmp_path), BTC.sha256) == 2


@pytest.mark.parametrize("wrong", [series(1.0), series(1.0, 2.0, 3.0), series(1.0, np.inf), np.zeros(4, np.float32)])
def test_returns_that_are_not_those_of_the_policies_are_refused(tmp_path: Path, wrong: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="expected a finite one per bar and policy"):
        note(str(tmp_path), returns=wrong)
    assert list(tmp_path.iterdir()) == []
