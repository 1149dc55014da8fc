"""The last step of a run: what passed is released, on Cloud Run where a target is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.deploy import deploy
from layer3.errors import ConfigurationError, ReleaseError
from tests.fakes.vertex.server import FakeVertex
from tests.serving.cloud import IMAGE, STORE, Desk, ground


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with ground(tmp_path) as base:
        yield base.desk(monkeypatch.setenv, served=False)


def artifact(folder: Path, name: str, **metadata: Any) -> Any:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return dsl.Artifact(name=name, uri=str(folder / name), metadata=metadata)


def deployed(cloud: Desk, target: str, vertex: str = "", **verdict: Any) -> tuple[Any, Any]:
    model = artifact(cloud.folder, cloud.candidate(1).name)
    sha256 = cloud.policies[1].manifest["policy_sha256"]
    judged = artifact(cloud.folder, "verdict", **{"passed": True, "policy_sha256": sha256, **verdict})
    released, note = artifact(cloud.folder, "released"), artifact(cloud.folder, "note.md")
    version = {"registered": True, "resourceName": "projects/1/locations/us-central1/models/himari-synth-usd@1"}
    registered = artifact(cloud.folder, "registered", **version)
    deploy.python_func(model, judged, STORE, "run-1", IMAGE, released, note, target, vertex, registered)
    return released, note


def target(cloud: Desk, **changes: Any) -> str:
    """As the pipeline is given it: without an image, which is a parameter of its own."""
    return json.dumps({**json.loads(cloud.target(image="").to_json()), **changes})


def test_what_passed_is_released_on_cloud_run(cloud: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    released, note = deployed(cloud, target(cloud))
    model = cloud.policies[1].model_id
    assert (cloud.champion(), cloud.serving()) == (model, {model: 100})
    assert released.uri == f"{STORE}/models/{model}"
    assert note.metadata["outcome"] == "released"
    assert [each.containers[0].image for each in cloud.run.revisions.values()] == [IMAGE]
    output = capsys.readouterr().out
    assert "canary 100 % ok" in output
    assert f"Released {model} after verify, settle, store, revision, health" in output


def test_a_registry_that_cannot_follow_is_told_and_the_run_says_what_serves(cloud: Desk) -> None:
    with FakeVertex(cloud.folder / "vertex", storage="", images=[], accounts=[]) as vertex:
        place = {"project": "himari-test", "endpoint": vertex.url}
        _, note = deployed(cloud, target(cloud), json.dumps(place))
    assert (note.metadata["outcome"], cloud.champion()) == ("released", cloud.policies[1].model_id)
    said = Path(note.path).read_text()
    assert "WARNING: the model registry still names another champion: " in said
    assert "`make registry` says it again" in said


def test_what_did_not_pass_never_gets_there(cloud: Desk) -> None:
    with pytest.raises(ReleaseError, match="is not passed"):
        deployed(cloud, target(cloud), passed=False)
    with pytest.raises(ReleaseError, match="another policy"):
        deployed(cloud, target(cloud), policy_sha256="x")
    with pytest.raises(ConfigurationError, match="not JSON"):
        deployed(cloud, "gs://")
    assert cloud.run.google.calls == []
