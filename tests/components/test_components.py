"""Each component as KFP calls it: real artifacts in a folder, ``python_func``, and the real steps behind it."""

import json
from pathlib import Path

import numpy as np
import pytest
from google_cloud_pipeline_components.types import artifact_types
from kfp import dsl

from components.artifacts import log_metrics, metadata
from components.deploy import deploy
from components.evaluate import evaluate
from components.gate import gate
from components.ingest import ingest
from components.notify import notify
from components.reject import reject
from components.train import train
from layer3 import contract
from layer3.agent.bars import load_bars
from layer3.agent.policy import load_policy
from layer3.backtest.record import Evaluation
from layer3.errors import ReleaseError
from layer3.version import source_sha256


class Box:
    """Artifacts of one chain of components in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def artifact(self, kind, name):
        return kind(name=name, uri=str(self.folder / name / "data"), metadata={})


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    box = Box(tmp_path_factory.mktemp("artifacts"))
    out = {
        "candles": box.artifact(dsl.Dataset, "candles"),
        "features": box.artifact(dsl.Dataset, "features"),
        "model": box.artifact(dsl.Model, "model"),
        "train_metrics": box.artifact(dsl.Metrics, "train_metrics"),
        "curves": box.artifact(dsl.HTML, "curves"),
        "events": box.artifact(dsl.Artifact, "events"),
        "evaluation": box.artifact(dsl.Dataset, "evaluation"),
        "metrics": box.artifact(dsl.Metrics, "metrics"),
        "verdict": box.artifact(dsl.Markdown, "verdict"),
        "tear_sheet": box.artifact(dsl.HTML, "tear_sheet"),
    }
    ingest.python_func("synthetic:bars=6000,edge=3", "SYNTH-USD", "", "", out["candles"], out["features"])
    train.python_func(
        out["features"],
        1,
        8_192,
        2,
        str(box.folder / "store"),
        *(out[name] for name in ("model", "train_metrics", "curves", "events")),
    )
    evaluate.python_func(out["features"], out["model"], out["evaluation"], out["metrics"])
    out["passed"] = gate.python_func(out["evaluation"], -100.0, out["verdict"], out["tear_sheet"])
    return box, out


def test_ingest_tells_what_lineage_needs(chain):
    _, out = chain
    for artifact in (out["candles"], out["features"]):
        told = artifact.metadata
        assert told["synthetic"] is True
        assert "SYNTHETIC" in told["source"]
        assert told["rows"] == 6_000
        assert told["start"] == "2022-01-01T00:00:00+00:00"
        assert len(told["data_sha256"]) == 64
        assert told["code_version"] == source_sha256()[:12]
        assert told["filled_rows"] == 0
    assert len(load_bars(Path(out["features"].path))[0]) == 6_000


def test_training_leaves_its_curves_its_events_and_what_was_tried(chain):
    box, out = chain
    page = Path(out["curves"].path).read_text()
    assert "Training curves" in page
    assert "SYNTHETIC" in page
    assert "seed-2" in page
    names = {path.parent.name for path in Path(out["events"].path).rglob("events.out.tfevents.*")}
    assert names == {"seed-1", "seed-2"}
    (record,) = (box.folder / "store" / "trials").rglob("*.json")
    assert json.loads(record.read_text())["policies"] == 2
    assert out["train_metrics"].metadata["trials"] == 2
    assert not list((box.folder / "store" / "checkpoints").iterdir())


def test_train_tells_what_lineage_needs(chain):
    _, out = chain
    policy = load_policy(Path(out["model"].path))
    told = out["model"].metadata
    assert told["policy_sha256"] == policy.manifest["policy_sha256"]
    assert told["contract"] == contract.VERSION
    assert told["seed"] == 1
    assert told["data_sha256"] == out["candles"].metadata["data_sha256"]
    assert told["data_start"] < told["data_end"]
    assert told["synthetic"] is True
    assert len(policy.manifest["golden"]) == 32


def test_every_metric_is_logged_finite_and_on_disk(chain):
    _, out = chain
    result = Evaluation.load(Path(out["evaluation"].path))
    for artifact in (out["metrics"], out["train_metrics"]):
        assert artifact.metadata
        assert np.isfinite(list(artifact.metadata.values())).all()
        assert json.loads(Path(artifact.path).read_text()) == artifact.metadata
    assert out["metrics"].metadata["policy_sharpe"] == result.metrics["policy"]["sharpe"]
    assert out["metrics"].metadata["kelly_only_max_drawdown"] == result.metrics["kelly_only"]["max_drawdown"]


def test_gate_answers_with_a_bool_and_shows_its_reasons(chain):
    box, out = chain
    assert isinstance(out["passed"], bool)
    refused = gate.python_func(
        out["evaluation"], 100.0, box.artifact(dsl.Markdown, "refusal"), box.artifact(dsl.HTML, "sheet")
    )
    assert refused is False
    told = out["verdict"].metadata
    assert told["passed"] is out["passed"]
    assert [criterion["name"] for criterion in told["criteria"]] == [
        "sharpe",
        "probabilistic_sharpe",
        "max_drawdown",
        "trades",
        "versus_kelly",
        "not_constant",
    ]
    page = (box.folder / "tear_sheet" / "data").read_text()
    assert "SYNTHETIC" in page
    assert len(page) <= 300_000


def verdict_like(box, out, name, **changes):
    artifact = box.artifact(dsl.Markdown, name)
    artifact.metadata = out["verdict"].metadata | changes
    return artifact


def deploy_with(box, out, verdict, store):
    released = box.artifact(artifact_types.UnmanagedContainerModel, "released")
    note = box.artifact(dsl.Markdown, "note")
    deploy.python_func(out["model"], verdict, str(store), "run-1", "image@sha256:" + "0" * 64, released, note)
    return released, note


def test_deploy_releases_what_passed(chain, tmp_path):
    box, out = chain
    released, note = deploy_with(box, out, verdict_like(box, out, "good", passed=True), tmp_path)
    champion = json.loads((tmp_path / "channels" / "production.json").read_text())
    assert champion["model_id"] == out["model"].metadata["model_id"] == released.metadata["model_id"]
    assert released.uri == str(tmp_path / "models" / champion["model_id"])
    assert released.metadata["containerSpec"]["predictRoute"] == "/predict"
    assert released.schema_title == "google.UnmanagedContainerModel"
    assert "parity" in (box.folder / "note" / "data").read_text()
    assert note.metadata["outcome"] == "released"


@pytest.mark.parametrize("changes", [{"passed": False}, {"passed": None}, {"passed": "true"}, {"policy_sha256": "x"}])
def test_deploy_refuses_what_did_not_pass_or_is_another_policy(chain, tmp_path, changes):
    box, out = chain
    with pytest.raises(ReleaseError):
        deploy_with(box, out, verdict_like(box, out, "bad", **{"passed": True, **changes}), tmp_path)
    assert not (tmp_path / "channels").exists()


def test_reject_says_which_criteria_failed(chain):
    box, out = chain
    refusal = box.artifact(dsl.Markdown, "refusal2")
    assert gate.python_func(out["evaluation"], 100.0, refusal, box.artifact(dsl.HTML, "sheet2")) is False
    note = box.artifact(dsl.Markdown, "rejection")
    reject.python_func(refusal, "run-2", note)
    text = (box.folder / "rejection" / "data").read_text()
    assert "sharpe" in text
    assert "run-2" in text
    assert "sharpe" in note.metadata["failed"]
    with pytest.raises(ReleaseError, match="passed"):
        reject.python_func(verdict_like(box, out, "fine", passed=True), "run-2", box.artifact(dsl.Markdown, "no"))


def test_notify_writes_how_the_run_ended(tmp_path, capsys):
    status = dsl.PipelineTaskFinalStatus("FAILED", "job", "workflow", 9, "train broke")
    notify.python_func(status, "run-3", str(tmp_path))
    told = json.loads((tmp_path / "runs" / "run-3" / "notification.json").read_text())
    assert told == {"run_id": "run-3", "state": "FAILED", "error": "train broke"}
    line = json.loads(capsys.readouterr().out)
    assert line["severity"] == "ERROR"


def test_a_metric_that_is_not_finite_is_refused(tmp_path):
    artifact = dsl.Metrics(name="m", uri=str(tmp_path / "m"), metadata={})
    with pytest.raises(ValueError, match="sharpe is nan"):
        log_metrics(artifact, {"sharpe": float("nan")})


def test_metadata_is_flat_and_knows_no_none():
    assert metadata({"a": {"b": {"c": 1}}, "d": None, "e": [1]}) == {"a_b_c": 1, "e": [1]}
