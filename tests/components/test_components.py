"""Each component as KFP calls it: real artifacts in a folder, ``python_func``, and the real steps behind it."""

import json
from pathlib import Path

import numpy as np
import pytest
from google_cloud_pipeline_components.types import artifact_types
from kfp import dsl

from components.allot import allot
from components.artifacts import log_metrics, metadata
from components.deploy import deploy
from components.evaluate import evaluate
from components.gate import gate
from components.ingest import ingest
from components.notify import notify
from components.reject import reject
from components.train import train
from components.walk import walk
from layer3 import contract
from layer3.agent.bars import load_bars
from layer3.agent.policy_file import load_policy
from layer3.backtest.evidence import Effort
from layer3.backtest.record import Evaluation
from layer3.errors import ConfigurationError, ReleaseError
from layer3.version import source_sha256


class Box:
    """Artifacts of one chain of components in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def artifact(self, kind, name):
        return kind(name=name, uri=str(self.folder / name / "data"), metadata={})


def judged(box, out, threshold=-100.0, limits="", name="", reason="", *, into=("verdict", "tear_sheet")):
    for kind, key in zip((dsl.Markdown, dsl.HTML), into, strict=True):
        out[key] = box.artifact(kind, key)
    verdict, page = (out[key] for key in into)
    return gate.python_func(out["evaluation"], threshold, limits, name, reason, verdict, page)


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
        "policies": box.artifact(dsl.Model, "policies"),
        "more_policies": box.artifact(dsl.Model, "more_policies"),
        "evaluation": box.artifact(dsl.Dataset, "evaluation"),
        "metrics": box.artifact(dsl.Metrics, "metrics"),
    }
    ingest.python_func("synthetic:bars=5000,edge=3,seed=5", "SYNTH-USD", "", "", out["candles"], out["features"])
    store = str(box.folder / "store")
    train.python_func(
        out["features"],
        1,
        8_192,
        2,
        store,
        *(out[name] for name in ("model", "train_metrics", "curves", "events")),
    )
    groups = allot.python_func(out["features"], 3, "rolling", 2)
    for group, name in zip(groups, ("policies", "more_policies"), strict=True):
        # Numbers in lists come through a pipeline as floats.
        numbers = [float(number) for number in group]
        walk.python_func(out["features"], numbers, 3, "rolling", 2, 1, 4_096, store, out[name])
    walks = [out["policies"], out["more_policies"]]
    evaluate.python_func(
        out["candles"], out["features"], out["model"], walks, "", store, 1, out["evaluation"], out["metrics"]
    )
    out["passed"] = judged(box, out)
    return box, out


def test_ingest_tells_what_lineage_needs(chain):
    _, out = chain
    for artifact in (out["candles"], out["features"]):
        told = artifact.metadata
        assert told["synthetic"] is True
        assert "SYNTHETIC" in told["source"]
        assert told["rows"] == 5_000
        assert told["start"] == "2022-01-01T00:00:00+00:00"
        assert len(told["data_sha256"]) == 64
        assert told["code_version"] == source_sha256()[:12]
        assert told["filled_rows"] == 0
    assert len(load_bars(Path(out["features"].path))[0]) == 5_000


def test_training_leaves_its_curves_its_events_and_what_was_tried(chain):
    box, out = chain
    page = Path(out["curves"].path).read_text()
    assert "Training curves" in page
    assert "SYNTHETIC" in page
    assert "seed-2" in page
    names = {path.parent.name for path in Path(out["events"].path).rglob("events.out.tfevents.*")}
    assert names == {"seed-1", "seed-2"}
    for artifact in (out["curves"], out["events"]):
        assert artifact.metadata["model_id"] == out["model"].metadata["model_id"]
        assert artifact.metadata["data_sha256"] == out["candles"].metadata["data_sha256"]
    records = [json.loads(path.read_text()) for path in (box.folder / "store" / "trials").rglob("*.json")]
    (record,) = [record for record in records if record["kind"] == "run"]
    assert record["policies"] == 2
    one, other = record["scores"]["validation_sharpe"]
    assert one != other
    assert out["train_metrics"].metadata["trials"] == 2
    assert not list((box.folder / "store" / "checkpoints").iterdir())


def test_every_group_of_folds_is_trained_and_told(chain):
    _, out = chain
    assert out["policies"].metadata == {"folds": [1], "kind": "rolling", "seeds": [1, 2], "refusal": ""}
    assert out["more_policies"].metadata["folds"] == [2, 3]
    found = Evaluation.load(Path(out["evaluation"].path)).evidence.walk_forward
    assert [fold.number for fold in found.folds] == [1, 2, 3]
    assert found.seeds == (1, 2)


def test_what_was_tried_counts_folds_and_seeds(chain):
    box, out = chain
    evidence = Evaluation.load(Path(out["evaluation"].path)).evidence
    assert evidence.trust.trials == evidence.walk_forward.trust.trials == 2 + 3 * 2
    records = [json.loads(path.read_text()) for path in (box.folder / "store" / "trials").rglob("*.json")]
    walked = [record["scores"] for record in records if record["kind"] == "walk_forward"]
    assert sorted(map(bool, walked)) == [False, False, True]
    stitched = next(scores for scores in walked if scores)["stitched_sharpe"]
    assert stitched == list(evidence.walk_forward.seed_sharpes) * 3


def test_an_evaluation_lacks_nothing(chain):
    _, out = chain
    evidence = Evaluation.load(Path(out["evaluation"].path)).evidence
    assert evidence.problems == {}
    assert evidence.trust is not None
    assert len(evidence.permutations) == 2
    assert evidence.leak.differs == ()
    assert evidence.champion is None


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
    assert judged(box, out, 100.0, into=("refusal", "sheet")) is False
    told = out["verdict"].metadata
    assert told["passed"] is out["passed"]
    names = [criterion["name"] for criterion in told["criteria"]]
    assert len(set(names)) == len(names) > 10
    assert {"sharpe", "deflated_sharpe", "no_leak", "walk_forward"} <= set(names)
    assert told["limits"]["sharpe"] == -100.0
    assert told["override"] is None
    page = (box.folder / "tear_sheet" / "data").read_text()
    assert "SYNTHETIC" in page
    assert len(page) <= 500_000


def test_a_file_of_limits_holds_whole_and_travels_along(chain):
    box, out = chain
    assert judged(box, out, -100.0, "sharpe: 99.0\n", into=("strict", "strict_sheet")) is False
    limits = out["strict"].metadata["limits"]
    assert limits["sharpe"] == 99.0
    assert limits["walk_forward"]["required"] is True
    (sharpe,) = [one for one in out["strict"].metadata["criteria"] if one["name"] == "sharpe"]
    assert (sharpe["limit"], sharpe["passed"]) == (99.0, False)


def test_an_override_is_recorded_by_name_and_reason(chain, capsys):
    box, out = chain
    passed = judged(box, out, 100.0, "", "Ada", "the desk needs it", into=("forced", "forced_sheet"))
    assert passed is True
    told = out["forced"].metadata
    assert told["override"] == {"name": "Ada", "reason": "the desk needs it"}
    assert not all(criterion["passed"] for criterion in told["criteria"])
    assert "released by Ada all the same" in capsys.readouterr().out
    for path in (out["forced"].path, out["forced_sheet"].path):
        assert "the desk needs it" in Path(path).read_text()
    with pytest.raises(ConfigurationError, match="has no reason"):
        judged(box, out, 100.0, "", "Ada", "", into=("unfounded", "unfounded_sheet"))


def test_no_folds_are_no_walk_forward_and_a_criterion_that_fails(chain, monkeypatch):
    box, out = chain
    (group,) = allot.python_func(out["features"], 0, "rolling", 6)
    nothing = box.artifact(dsl.Model, "nothing")
    store = str(box.folder / "store")
    walk.python_func(out["features"], group, 0, "rolling", 2, 1, 4_096, store, nothing)
    # What else is in the evidence is looked at above, and takes its time.
    monkeypatch.setattr("layer3.judging.Effort", lambda: Effort(permutations=20, resamples=50, cuts=1))
    bare, figures = box.artifact(dsl.Dataset, "bare"), box.artifact(dsl.Metrics, "bare_metrics")
    evaluate.python_func(out["candles"], out["features"], out["model"], [nothing], "", store, 1, bare, figures)
    without = {"evaluation": bare}
    judged(box, without, into=("bare_verdict", "bare_sheet"))
    (asked,) = [one for one in without["bare_verdict"].metadata["criteria"] if one["name"] == "walk_forward"]
    assert asked["passed"] is False
    assert "no walk-forward was run" in asked["sentence"]
    lenient = "walk_forward:\n  required: false\n"
    judged(box, without, -100.0, lenient, into=("lenient_verdict", "lenient_sheet"))
    assert "walk_forward" not in [one["name"] for one in without["lenient_verdict"].metadata["criteria"]]


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
    container = released.metadata["containerSpec"]
    assert (container["predictRoute"], container["healthRoute"]) == ("/predict", "/health")
    # What the server needs to start: without AUTH it refuses to.
    assert {one["name"]: one["value"] for one in container["env"]} == {"MODEL_URI": released.uri, "AUTH": "off"}
    assert container["ports"] == [{"containerPort": 8080}]
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
    assert judged(box, out, 100.0, into=("refusal2", "sheet2")) is False
    refusal = out["refusal2"]
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
