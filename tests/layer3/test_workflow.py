"""Ingest, fit and judge as functions over files: repeatable to the byte, and blind to the test part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layer3 import contract, trials
from layer3.agent.bars import Bars, load_bars, save_bars
from layer3.agent.policy_file import load_policy
from layer3.backtest.metrics import sharpe
from layer3.backtest.record import KELLY_ONLY, POLICY
from layer3.errors import ConfigurationError, DataError, TrainingError
from layer3.market import sources
from layer3.version import source_sha256
from layer3.workflow import fit, ingest, splits_of

STEPS = 4_096


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("market")
    data = "synthetic:edge=1,bars=4200,seed=2"
    info = ingest(data, "SYNTH-USD", "", "", folder / "candles.parquet", folder / "features.parquet")
    return folder, info


@pytest.fixture(scope="module")
def trained(
    market: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("policy")
    fitted = fit(market[0] / "features.parquet", folder, seed=1, steps=STEPS)
    return folder, fitted.metrics


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest()


def test_ingest_says_what_lineage_needs(market: tuple[Path, dict[str, Any]]) -> None:
    folder, info = market
    assert info["data_sha256"] == hashlib.sha256((folder / "candles.parquet").read_bytes()).hexdigest()
    assert info["source"] == "synthetic:edge=1,bars=4200,seed=2 (SYNTHETIC, simulated)"
    assert info["synthetic"] is True
    assert (info["symbol"], info["rows"], info["filled_rows"], info["interval_seconds"]) == (
        "SYNTH-USD",
        4_200,
        0,
        3_600,
    )
    assert info["start"].startswith("2022-01-01T00:00:00")
    assert info["signals"] == "columns of the file"
    assert info["code_version"] == source_sha256()[:12]
    bars, kept = load_bars(folder / "features.parquet")
    assert kept == info
    assert len(bars) == 4_200
    assert len(pd.read_parquet(folder / "candles.parquet")) == 4_200


def test_ingest_is_repeatable_to_the_byte(market: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again = ingest(
        "synthetic:edge=1,bars=4200,seed=2", "SYNTH-USD", "", "", tmp_path / "candles.parquet", tmp_path / "f.parquet"
    )
    assert again == market[1]
    assert (tmp_path / "f.parquet").read_bytes() == (market[0] / "features.parquet").read_bytes()


def test_a_real_file_is_not_called_synthetic(market: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "BTC-USDT_1h.csv.gz"
    pd.read_parquet(market[0] / "candles.parquet").to_csv(path, index=False)
    where = (tmp_path / "candles.parquet", tmp_path / "features.parquet")
    info = ingest(str(path), "BTC-USDT", sources.version_of(str(path)), "", *where)
    assert (info["synthetic"], info["source"], info["rows"]) == (False, str(path), 4_200)


def test_what_may_change_must_be_pinned(tmp_path: Path) -> None:
    """Ingest may be served from a cache: an unpinned file or window would come back stale."""
    for data in ("candles.csv", "gs://bucket/candles.csv", "coinbase:BTC-USD"):
        with pytest.raises(ConfigurationError, match="not pinned"):
            ingest(data, "BTC-USD", "", "", tmp_path / "c", tmp_path / "f")


def test_the_sizing_settings_reach_the_base_fraction(market: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    where = (tmp_path / "c.parquet", tmp_path / "f.parquet")
    text = "allow_shorts: false\nmax_exposure: 0.25\n"
    info = ingest("synthetic:edge=1,bars=4200,seed=2", "SYNTH-USD", "", text, *where)
    usual, _ = load_bars(market[0] / "features.parquet")
    bars, _ = load_bars(where[1])
    assert usual.direction.min() == -1
    assert bars.direction.min() == 0
    assert 0.0 < bars.base_fraction.max() <= 0.25 < usual.base_fraction.max()
    assert info["sizing_sha256"] != market[1]["sizing_sha256"]
    with pytest.raises(ConfigurationError, match="allow_short"):
        ingest("synthetic:bars=4200", "SYNTH-USD", "", "allow_short: false", *where)


def test_the_split_is_by_time_with_a_week_between(market: tuple[Path, dict[str, Any]]) -> None:
    bars, _ = load_bars(market[0] / "features.parquet")
    parts = splits_of(bars)
    assert parts.validation.start - parts.train.stop == parts.test.start - parts.validation.stop == 168
    assert parts.test.stop == len(bars)
    daily = dataclasses.replace(bars, timestamp=bars.timestamp[0] + 86_400_000_000_000 * np.arange(len(bars)))
    assert splits_of(daily).test.start - splits_of(daily).validation.stop == 7


def test_the_manifest_says_how_the_policy_came_to_be(
    market: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, float]]
) -> None:
    folder, metrics = trained
    manifest = load_policy(folder).manifest
    bars, info = load_bars(market[0] / "features.parquet")
    last = int(bars.timestamp[splits_of(bars).train.stop - 1])
    assert manifest["data"] == {
        "source": info["source"],
        "sha256": info["data_sha256"],
        "sizing_sha256": info["sizing_sha256"],
        "start": "2022-01-01T00:00:00+00:00",
        "end": f"{np.datetime64(last, 'ns').astype('datetime64[s]')}+00:00",
        "interval_seconds": 3_600,
    }
    assert (manifest["seed"], manifest["symbol"], manifest["synthetic"]) == (1, "SYNTH-USD", True)
    assert manifest["contract"] == contract.VERSION
    assert manifest["training"]["steps"] == STEPS == metrics["steps"]
    assert manifest["metrics"] == metrics
    assert np.isfinite(list(metrics.values())).all()
    assert {f"{part}_{name}_total_return" for part in ("train", "validation") for name in (POLICY, KELLY_ONLY)} <= set(
        metrics
    )


def test_golden_pairs_cover_positions_held(trained: tuple[Path, dict[str, float]]) -> None:
    states = np.array([pair["state"] for pair in load_policy(trained[0]).manifest["golden"]])
    assert np.mean(states[:, 8] > 0.0) > 0.3
    assert states[:, 8].std() > 0.05


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    market: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    features = market[0] / "features.parquet"
    seen: list[int] = []
    fit(features, tmp_path / "same", seed=1, steps=STEPS, on_progress=lambda progress: seen.append(progress.steps))
    fit(features, tmp_path / "other", seed=2, steps=STEPS)
    assert sha(tmp_path / "same") == sha(trained[0])
    assert (tmp_path / "same" / "manifest.json").read_bytes() == (trained[0] / "manifest.json").read_bytes()
    assert sha(tmp_path / "other") != sha(trained[0])
    assert seen == [2_048, 4_096]


def test_fitting_never_looks_at_the_test_part(
    market: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    bars, info = load_bars(market[0] / "features.parquet")
    start, rng = splits_of(bars).test.start, np.random.default_rng(1)
    garbage: dict[str, Any] = {}
    for field in dataclasses.fields(Bars):
        if field.name == "timestamp":
            continue
        values = getattr(bars, field.name).copy()
        values[start:] = (
            rng.permutation(values[start:]) if values.dtype == np.int8 else rng.uniform(0.1, 9.0, values[start:].shape)
        )
        garbage[field.name] = values
    save_bars(tmp_path / "features.parquet", dataclasses.replace(bars, **garbage), info)
    metrics = fit(tmp_path / "features.parquet", tmp_path / "policy", seed=1, steps=STEPS).metrics
    assert sha(tmp_path / "policy") == sha(trained[0])
    assert metrics == trained[1]
    # The validation part is measured, but not learnt from.
    part = splits_of(bars).validation
    moved = dataclasses.replace(bars, open=np.where(np.arange(len(bars)) >= part.start, bars.open * 1.7, bars.open))
    spoilt = moved.open.copy()
    spoilt[part.start : part.stop : 2] *= 0.97
    save_bars(tmp_path / "features.parquet", dataclasses.replace(moved, open=spoilt), info)
    other = fit(tmp_path / "features.parquet", tmp_path / "again", seed=1, steps=STEPS).metrics
    assert sha(tmp_path / "again") == sha(trained[0])
    assert other["validation_policy_total_return"] != metrics["validation_policy_total_return"]


def test_too_little_history_is_refused_with_what_it_takes(market: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3,000 bars give .* supply at least 4,003 bars"):
        ingest("synthetic:bars=3000", "SYNTH-USD", "", "", tmp_path / "c.parquet", tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()
    bars, info = load_bars(market[0] / "features.parquet")
    short = Bars(**{field.name: getattr(bars, field.name)[:4_002] for field in dataclasses.fields(Bars)})
    save_bars(tmp_path / "f.parquet", short, info)
    with pytest.raises(DataError, match=r"supply at least 4,003 bars"):
        fit(tmp_path / "f.parquet", tmp_path / "policy", seed=1, steps=STEPS)
    assert not (tmp_path / "policy").exists()


def test_an_ensemble_is_its_members_mean_and_they_are_trained_by_their_own_seeds(
    market: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    features = market[0] / "features.parquet"
    store = tmp_path / "store"
    crowd = fit(features, tmp_path / "crowd", seed=4, steps=STEPS, members=3, store=str(store))
    assert [member.seed for member in crowd.members] == [4, 5, 6]
    alone = [fit(features, tmp_path / str(seed), seed=seed, steps=STEPS).policy for seed in (4, 5, 6)]
    (record,) = [json.loads(path.read_text()) for path in (store / "trials").rglob("*.json")]
    own = [policy.manifest["metrics"]["validation_policy_sharpe"] for policy in alone]
    assert record["scores"]["validation_sharpe"] == pytest.approx(own, abs=1e-4)
    bars, info = load_bars(features)
    decisions = len(splits_of(bars).validation) - 2
    kept = trials.validation_returns(str(store), trials.Data.of(info), decisions).astype(np.float64)
    assert sorted(sharpe(column, 8_760.0) for column in kept.T) == pytest.approx(sorted(own), abs=1e-3)
    assert len(set(own)) == 3
    states = crowd.members[0].states[:200]
    multiplier, _ = load_policy(tmp_path / "crowd").act(states)
    np.testing.assert_allclose(multiplier, np.mean([policy.act(states)[0] for policy in alone], axis=0), atol=1e-5)
    assert crowd.policy.manifest["architecture"]["members"] == 3
    assert crowd.metrics["members"] == 3.0
    for bad in (0, 65):
        with pytest.raises(ConfigurationError, match=f"members is {bad}"):
            fit(features, tmp_path / "none", seed=1, steps=STEPS, members=bad)


def test_a_training_that_was_stopped_goes_on_and_is_written_down_as_tried(
    market: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    features, store, steps = market[0] / "features.parquet", tmp_path / "store", 40 * 2_048

    def stop(report: Any) -> None:
        if report.steps >= 30 * 2_048:
            raise KeyboardInterrupt

    now = datetime(2026, 11, 21, tzinfo=UTC)
    with pytest.raises(KeyboardInterrupt):
        fit(features, tmp_path / "a", seed=1, steps=steps, store=str(store), now=now, on_progress=stop)
    assert not (tmp_path / "a").exists()
    assert len(list((store / "checkpoints").iterdir())) == 1
    told: list[int] = []
    resumed = fit(
        features,
        tmp_path / "b",
        seed=1,
        steps=steps,
        store=str(store),
        now=now,
        on_progress=lambda r: told.append(r.steps),
    )
    assert told[0] == 26 * 2_048
    fit(features, tmp_path / "c", seed=1, steps=steps)
    assert sha(tmp_path / "b") == sha(tmp_path / "c")
    # What is finished needs no checkpoint; that it was tried stays on record.
    assert not list((store / "checkpoints").iterdir())
    assert resumed.metrics["trials"] == 1.0
    (record,) = [json.loads(path.read_text()) for path in (store / "trials").rglob("*.json")]
    assert record["scores"]["validation_sharpe"] == [resumed.metrics["validation_policy_sharpe"]]
    again = fit(features, tmp_path / "d", seed=1, steps=STEPS, store=str(store), now=now + timedelta(days=1))
    assert again.metrics["trials"] == 2.0
    assert sha(tmp_path / "d") == sha(trained[0])


def test_a_disk_that_has_no_room_for_the_policy_costs_no_training(
    market: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    features, store = market[0] / "features.parquet", tmp_path / "store"
    taken = tmp_path / "policy"
    taken.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"cannot write the policy .*policy: .*: check the folder and run again"):
        fit(features, taken, seed=1, steps=STEPS, store=str(store))
    assert len(list((store / "checkpoints").iterdir())) == 1
    told: list[Any] = []
    fit(features, tmp_path / "elsewhere", seed=1, steps=STEPS, store=str(store), on_progress=told.append)
    assert told == []
    assert not list((store / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"direction": 0}, "the sizing chain holds nothing"),
        ({"base_fraction": 0.0}, "the sizing chain holds nothing"),
        ({"open": 100.0}, "constant price"),
    ],
)
def test_a_history_that_teaches_nothing_gives_a_policy_that_says_so(
    market: tuple[Path, dict[str, Any]], tmp_path: Path, columns: dict[str, float], says: str
) -> None:
    bars, info = load_bars(market[0] / "features.parquet")
    made = {name: np.full_like(getattr(bars, name), value) for name, value in columns.items()}
    save_bars(tmp_path / "features", dataclasses.replace(bars, **made), info)
    store = tmp_path / "store"
    fitted = fit(tmp_path / "features", tmp_path / "policy", seed=1, steps=STEPS, store=str(store))
    assert says in fitted.refusal
    assert fitted.members == ()
    policy = load_policy(tmp_path / "policy")
    assert policy.manifest["refusal"] == fitted.refusal
    states = np.random.default_rng(1).standard_normal((20, contract.STATE_DIM)).astype(np.float32)
    np.testing.assert_array_equal(policy.act(states)[0], 1.0)
    assert not store.exists()
