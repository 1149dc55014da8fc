"""What a backtest leaves behind comes back as it was, from one file without pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from layer3.backtest.record import (
    POLICY,
    Attribution,
    CostLine,
    Costs,
    Criterion,
    Degeneracy,
    Difference,
    Evaluation,
    Evidence,
    Fold,
    Interval,
    Leak,
    Overfitting,
    Permutation,
    Slice,
    Stability,
    Superiority,
    Track,
    Trust,
    Verdict,
    WalkForward,
)
from tests.backtest.sheets import make_evaluation


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    evaluation = make_evaluation(300)
    evaluation.save(tmp_path / "evaluation.npz")
    loaded = Evaluation.load(tmp_path / "evaluation.npz")
    np.testing.assert_array_equal(loaded.timestamps, evaluation.timestamps)
    assert loaded.timestamps.dtype == np.int64
    assert list(loaded.tracks) == list(evaluation.tracks)
    for name, track in evaluation.tracks.items():
        for field in dataclasses.fields(Track):
            np.testing.assert_array_equal(getattr(loaded.tracks[name], field.name), getattr(track, field.name))
    assert loaded.metrics == evaluation.metrics
    assert loaded.metrics["flat"]["sharpe"] is None
    assert loaded.context == evaluation.context


def test_no_closed_trades_come_back_as_none(tmp_path: Path) -> None:
    evaluation = make_evaluation(20)
    track = dataclasses.replace(evaluation.tracks[POLICY], trades=np.empty(0))
    dataclasses.replace(evaluation, tracks={POLICY: track}).save(tmp_path / "e")
    assert Evaluation.load(tmp_path / "e").tracks[POLICY].trades.shape == (0,)


def test_the_same_evaluation_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_evaluation(100).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_nan_is_never_written(tmp_path: Path) -> None:
    evaluation = make_evaluation(20)
    spoilt = dataclasses.replace(evaluation, metrics={POLICY: {"sharpe": float("nan")}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        spoilt.save(tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    details = np.frombuffer(b'{"context": {}, "metrics": {}, "evidence": {}}', dtype=np.uint8)
    np.savez(tmp_path / "e.npz", timestamps=np.array([{"a": 1}], dtype=object), details=details)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        Evaluation.load(tmp_path / "e.npz")


def test_a_verdict_is_plain_data() -> None:
    verdict = Verdict(False, (Criterion("sharpe", None, ">=", 1.0, False, "No."),))
    assert json.loads(json.dumps(verdict.to_json())) == {
        "passed": False,
        "criteria": [
            {"name": "sharpe", "value": None, "comparison": ">=", "limit": 1.0, "passed": False, "sentence": "No."}
        ],
        "override": None,
        "limits": {},
    }


def test_evidence_comes_back_as_it_was(tmp_path: Path) -> None:
    interval = Interval(None, -0.5, 1.5)
    trust = Trust(1.0, 0.4, 0.98, 0.9, 90, 0.3, 0.5, None, interval, Interval(0.1, 0.05, 0.2))
    evidence = Evidence(
        trust=trust,
        differences=(Difference("flat", interval, None),),
        superiority=Superiority(("flat", "kelly_only"), 0.01, 0.02, 0.03),
        costs=Costs(0.3, 0.1, 0.05, -0.01, 0.16, (CostLine(1.0, None, 0.16), CostLine(4.0, 0.1, None)), None),
        permutations=(Permutation("blocks", 24, "recomputed", 1.2, (0.1, -0.2), 1 / 3),),
        leak=Leak(("volatility",), (17, 34), ("volatility at bar 17",)),
        attribution=(Attribution("off", "constant mean", None, 0.0, 0.0),),
        degeneracy=Degeneracy(3, 1.0, 0.2, 0.0, 0.1, 5, None, ("a finding",)),
        stability=Stability((), (Slice("2023-01", 3, None, 0.1),), (), Slice("all", 2, 1.0, 0.1)),
        walk_forward=WalkForward(
            "rolling",
            (1, 2),
            (Fold(0, "a", "b", "c", "d", (None, 1.0)),),
            trust,
            0.1,
            0.2,
            None,
            Overfitting(9, 16, 0.25),
            (0.1, None),
            (19_000,),
            (1.0,),
            (1.1,),
        ),
        champion="20230101-abc",
        bootstrap_band=((19_000.0,), (0.9,), (1.1,)),
        problems={"trust": "why not"},
    )
    dataclasses.replace(make_evaluation(20), evidence=evidence).save(tmp_path / "e.npz")
    assert Evaluation.load(tmp_path / "e.npz").evidence == evidence
