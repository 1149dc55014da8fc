"""Training some folds of a walk-forward over files: the same as each alone, blind to what comes later, on record."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import storage, trials
from layer3.agent.bars import Bars, load_bars, save_bars
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig
from layer3.backtest.walk_forward import FoldSet, load_folds
from layer3.errors import ConfigurationError, TrainingError
from layer3.walk_forward import folds_of, train_folds
from layer3.workflow import ingest

DATA = "synthetic:edge=1,bars=4200,seed=2"
STEPS = 4_096
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market")
    ingest(DATA, "SYNTH-USD", "", "", folder / "candles.parquet", folder / "features.parquet")
    return folder / "features.parquet"


def walk(features: Path, path: Path, *group: int, folds: int = 3, **changes: Any) -> FoldSet:
    given: dict[str, Any] = {"kind": "rolling", "seeds": (5, 6), "steps": STEPS, "store": str(path.parent / "store")}
    return train_folds(features, path, group=group, folds=folds, now=NOW, **(given | changes))


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (tmp_path / "store" / "trials").rglob("*.json")]


def same(one: FoldSet, other: FoldSet) -> bool:
    return all(
        np.array_equal(mine[name], theirs[name])
        for ours, others in zip(one.tensors, other.tensors, strict=True)
        for mine, theirs in zip(ours, others, strict=True)
        for name in mine
    )


def test_each_policy_is_the_one_trained_alone_on_its_fold(features: Path, tmp_path: Path) -> None:
    made = walk(features, tmp_path / "a", 2, 3)
    bars, info = load_bars(features)
    planned = folds_of(bars, 3, "rolling")
    assert made.folds == planned[1:]
    assert made.seeds == (5, 6)
    (alone,) = train(bars, seeds=[6], folds=[planned[2].train], settings=[Settings(PPOConfig(steps=STEPS))])
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(made.tensors[1][1][name], tensor)
    loaded = load_folds(tmp_path / "a")
    assert same(made, loaded)
    assert loaded.training["data_sha256"] == info["data_sha256"]
    assert loaded.training["settings"]["ppo"]["steps"] == STEPS


def test_groups_trained_apart_are_those_trained_together(features: Path, tmp_path: Path) -> None:
    whole = walk(features, tmp_path / "whole", 1, 2)
    first, second = walk(features, tmp_path / "one", 1), walk(features, tmp_path / "two", 2)
    apart = dataclasses.replace(whole, tensors=first.tensors + second.tensors)
    assert same(whole, apart)
    assert first.training == second.training == whole.training


def test_a_week_and_a_day_lie_between_training_and_test(features: Path) -> None:
    bars, _ = load_bars(features)
    for kind in ("rolling", "expanding"):
        assert {fold.test.start - fold.train.stop for fold in folds_of(bars, 3, kind)} == {168 + 24}
    daily = dataclasses.replace(bars, timestamp=bars.timestamp[0] + 86_400_000_000_000 * np.arange(len(bars)))
    assert {fold.test.start - fold.train.stop for fold in folds_of(daily, 3, "rolling")} == {7 + 1}


def test_nothing_after_the_window_is_looked_at(features: Path, tmp_path: Path) -> None:
    bars, info = load_bars(features)
    stop = folds_of(bars, 3, "rolling")[0].train.stop
    later: dict[str, Any] = {}
    for entry in dataclasses.fields(Bars):
        values = getattr(bars, entry.name).copy()
        # The last two bars' opens settle the last decision.
        if entry.name != "timestamp":
            values[stop:] = values[stop:][::-1]
        later[entry.name] = values
    save_bars(tmp_path / "features", Bars(**later), info)
    assert same(walk(features, tmp_path / "a", 1), walk(tmp_path / "features", tmp_path / "b", 1))


def test_what_was_trained_is_on_record_and_needs_no_checkpoint(features: Path, tmp_path: Path) -> None:
    made = walk(features, tmp_path / "a", 1, 2)
    (record,) = records(tmp_path)
    sha256 = load_bars(features)[1]["data_sha256"]
    assert (record["kind"], record["policies"], record["seeds"], record["scores"]) == ("walk_forward", 4, [5, 6], {})
    assert record["folds"] == [{sha256: [[fold.train.start, fold.train.stop]]} for fold in made.folds]
    assert record["when"].startswith("2026-11-21T00:00:00")
    assert trials.count(str(tmp_path / "store"), sha256) == 4
    assert not list((tmp_path / "store" / "checkpoints").iterdir())


def test_a_training_that_was_stopped_goes_on(features: Path, tmp_path: Path) -> None:
    def stop(report: Any) -> None:
        if report.steps >= 2 * 30 * 2_048:
            raise KeyboardInterrupt

    told: list[int] = []
    steps = 40 * 2_048
    with pytest.raises(KeyboardInterrupt):
        walk(features, tmp_path / "a", 1, steps=steps, on_progress=stop)
    walk(features, tmp_path / "a", 1, steps=steps, on_progress=lambda report: told.append(report.steps))
    assert told[0] == 2 * 26 * 2_048
    assert same(load_folds(tmp_path / "a"), walk(features, tmp_path / "b", 1, steps=steps))


def test_no_folds_are_no_training(features: Path, tmp_path: Path) -> None:
    made = walk(features, tmp_path / "a", folds=0)
    assert (made.folds, made.tensors, made.refusal) == ((), (), "")
    assert load_folds(tmp_path / "a").folds == ()
    assert not (tmp_path / "store").exists()


def test_what_cannot_be_trained_is_written_down_and_no_crash(features: Path, tmp_path: Path) -> None:
    short = walk(features, tmp_path / "a", 1, folds=200)
    assert "no walk-forward: 4,200 bars in 200 folds give" in short.refusal
    bars, info = load_bars(features)
    still = dataclasses.replace(bars, open=np.full(len(bars), 100.0), close=np.full(len(bars), 100.0))
    save_bars(tmp_path / "features", still, info)
    assert "constant price" in walk(tmp_path / "features", tmp_path / "b", 1).refusal
    assert load_folds(tmp_path / "b").refusal.startswith("no walk-forward: ")
    assert not records(tmp_path)


def test_a_full_disk_is_no_finding_and_the_same_again_goes_on(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written down as a refusal, it would be served from the cache when there is room again."""
    write = storage.write_bytes

    def full(uri: str, content: bytes) -> None:
        if "checkpoints" in uri:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), uri)
        write(uri, content)

    with monkeypatch.context() as context:
        context.setattr(storage, "write_bytes", full)
        with pytest.raises(TrainingError, match=r"cannot write the checkpoint .*No space left on device: free some"):
            walk(features, tmp_path / "a", 1)
    assert not (tmp_path / "a").exists()
    assert not records(tmp_path)
    assert same(walk(features, tmp_path / "a", 1), walk(features, tmp_path / "b", 1))


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_of_seeds_out_of_range_is_refused(features: Path, tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"fold_seeds is {count}, expected 1 to 64"):
        walk(features, tmp_path / "a", 1, seeds=range(count))
