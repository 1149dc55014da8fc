"""The search's components as KFP calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl

from components.compare import compare
from components.ingest import ingest
from components.propose import propose
from components.score import score
from layer3 import trials
from layer3.agent.bars import load_bars, save_bars
from layer3.agent.search import default_values
from layer3.errors import LostWorkerError, TrainingError
from layer3.experiments import scoring
from layer3.workflow import splits_of

DATA = "synthetic:bars=5000,edge=3,seed=5"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dsl.Dataset:
    folder = tmp_path_factory.mktemp("artifacts")
    made = dsl.Dataset(name="features", uri=str(folder / "features"))
    ingest.python_func(DATA, "SYNTH-USD", "", "", dsl.Dataset(name="candles", uri=str(folder / "candles")), made)
    return made


def sha256(features: dsl.Dataset) -> str:
    return str(load_bars(Path(features.path))[1]["data_sha256"])


def test_the_defaults_are_proposed_first() -> None:
    proposed = propose.python_func(3, 1)
    assert len(proposed) == 3
    assert proposed[0] == default_values()


def test_a_setting_is_scored_recorded_and_compared(features: dsl.Dataset, tmp_path: Path) -> None:
    as_a_pipeline_brings_them = {name: float(value) for name, value in reversed(default_values().items())}
    result = score.python_func(features, as_a_pipeline_brings_them, 2, 4_096, str(tmp_path))
    assert result["values"] == as_a_pipeline_brings_them
    assert result["refusal"] == ""
    assert [len(series) for series in result["scores"].values()] == [2, 2, 2, 2]
    assert trials.count(str(tmp_path), sha256(features)) == 2

    refused = {"values": as_a_pipeline_brings_them, "scores": {}, "refusal": "diverged"}
    page = dsl.HTML(name="comparison", uri=str(tmp_path / "page"))
    compare.python_func(features, [result, refused], 2, 4_096, str(tmp_path), "run-1", page)
    text = Path(page.path).read_text()
    assert "1 more settings could not be trained" in text
    rate, batch, epochs = (default_values()[f"ppo.{name}"] for name in ("learning_rate", "batch", "epochs"))
    assert f"Defaults<small>learning rate {rate:.3g}, batch {batch:,}, epochs {epochs}, clip" in text
    assert page.metadata == {"settings": 1, "synthetic": True}
    with pytest.raises(TrainingError, match="the default settings cannot be trained here: diverged"):
        compare.python_func(features, [refused, result], 2, 4_096, str(tmp_path), "run-1", page)


def test_a_setting_that_cannot_be_trained_does_not_end_the_others(features: dsl.Dataset, tmp_path: Path) -> None:
    bars, info = load_bars(Path(features.path))
    flat = np.full(len(bars), 100.0)
    still = dsl.Dataset(name="features", uri=str(tmp_path / "features"))
    save_bars(tmp_path / "features", replace(bars, open=flat, close=flat), info)
    result = score.python_func(still, default_values(), 2, 4_096, str(tmp_path))
    assert "price" in result["refusal"]
    assert result["scores"] == {}
    assert trials.count(str(tmp_path), sha256(features)) == 2


def test_a_setting_whose_policy_is_ruined_does_not_end_the_others(features: dsl.Dataset, tmp_path: Path) -> None:
    bars, info = load_bars(Path(features.path))
    part = splits_of(bars).validation
    # Shorts at half of the equity lose all of it where the price trebles.
    price = np.where(np.arange(len(bars)) > part.start + 50, 4.0, 1.0) * bars.open
    always = np.full(len(bars), -1, dtype=np.int8)
    doomed = replace(bars, open=price, close=price, direction=always, base_fraction=np.full(len(bars), 0.5))
    short = dsl.Dataset(name="features", uri=str(tmp_path / "features"))
    save_bars(tmp_path / "features", doomed, info)
    result = score.python_func(short, default_values(), 2, 2_048, str(tmp_path))
    assert "lost all its equity" in result["refusal"]
    assert result["scores"] == {}


def test_a_training_that_lost_a_process_is_a_failed_step_and_on_no_record(
    features: dsl.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise LostWorkerError("a worker of the training ended by itself")

    monkeypatch.setattr(scoring, "train_and_score", killed)
    with pytest.raises(LostWorkerError):
        score.python_func(features, default_values(), 2, 2_048, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
