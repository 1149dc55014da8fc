"""The steps that put a run on record in Vertex AI, and that do nothing of the kind without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from google.cloud import aiplatform_v1 as v1
from google_cloud_pipeline_components.types import artifact_types
from kfp import dsl

from components.artifacts import metadata
from components.notify import notify
from components.register import register
from layer3 import contract
from layer3.agent.policy import Policy
from layer3.errors import ConfigurationError, RefusedError, ReleaseError
from serving.vertex import Place
from tests.fakes.vertex.server import FakeVertex
from tests.serving.support import make_policy

IMAGE = "us-docker.pkg.dev/himari-test/himari/serving@sha256:" + "ab" * 32
RUN = "himari-training-7"


@pytest.fixture
def vertex(tmp_path: Path) -> Iterator[FakeVertex]:
    with FakeVertex(tmp_path / "work", storage="", images=[IMAGE], accounts=[]) as fake:
        name = f"{fake.place.parent}/metadataStores/default/contexts/{RUN}"
        fake.metadata.began(v1.Context(name=name, schema_title="system.PipelineRun", schema_version="0.0.1"))
        yield fake


@pytest.fixture
def place(vertex: FakeVertex) -> str:
    return json.dumps(asdict(Place("himari-test", "us-central1", "himari", vertex.url)))


@dataclass
class Bench:
    """The step's inputs, as the steps before it leave them."""

    folder: Path

    def __post_init__(self) -> None:
        self.policy: Policy = make_policy(
            self.folder / "model",
            symbol="BTC-USDT",
            synthetic=False,
            data={"source": "BTC.csv", "sha256": "cd" * 32, "end": "2026-01-01T00:00:00+00:00"},
        )

    def artifact(self, kind: Any, name: str, **said: Any) -> Any:
        return kind(name=name, uri=str(self.folder / name), metadata=said)

    def run(self, vertex: str, *, passed: bool = True, rejected_too: bool = False, **verdict: Any) -> Any:
        manifest = self.policy.manifest
        kept = {name: value for name, value in manifest.items() if name not in {"golden", "metrics", "normalisation"}}
        said = {
            "passed": passed,
            "model_id": self.policy.model_id,
            "policy_sha256": manifest["policy_sha256"],
            "synthetic": False,
            "criteria": [{"name": "sharpe", "passed": passed}],
            "override": None,
        }
        registered = self.artifact(artifact_types.VertexModel, "registered")
        register.python_func(
            self.artifact(dsl.Model, "model", **metadata(kept)),
            self.artifact(dsl.Metrics, "learning", final_entropy=-1.0),
            self.artifact(dsl.Metrics, "performance", policy_sharpe=1.5),
            self.artifact(dsl.Markdown, "verdict", **(said | verdict)),
            str(self.folder / "store"),
            RUN,
            IMAGE,
            vertex,
            rejected_too,
            registered,
        )
        return registered


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_without_vertex_nothing_is_recorded_and_the_artifact_says_so(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    registered = bench.run("")
    assert registered.metadata == {
        "registered": False,
        "reason": "Not registered: this run has no Vertex AI",
        "passed": True,
        "model_id": bench.policy.model_id,
        "policy_sha256": bench.policy.manifest["policy_sha256"],
        "synthetic": False,
    }
    assert json.loads(Path(registered.path).read_text()) == registered.metadata
    assert "Not registered: this run has no Vertex AI" in capsys.readouterr().out
    assert not (bench.folder / "store").exists()


def test_a_candidate_is_registered_and_its_run_is_logged(bench: Bench, vertex: FakeVertex, place: str) -> None:
    registered = bench.run(place)
    name = f"projects/himari-test/locations/us-central1/models/himari-btc-usdt@{1}"
    assert registered.schema_title == "google.VertexModel"
    assert registered.uri == f"{vertex.url}/v1/{name}"
    told = registered.metadata
    assert (told["registered"], told["resourceName"], told["version"], told["parent"]) == (True, name, "1", "")
    assert told["verdict"] == "passed"
    assert told["containerSpec"]["predictRoute"] == "/predict"
    assert told["containerSpec"]["env"][0]["value"].endswith(f"models/{bench.policy.model_id}")
    logged = vertex.metadata.named(f"himari-{RUN}").metadata
    assert dict(logged["_metrics"]) == {"final_entropy": -1.0, "policy_sharpe": 1.5, "passed": 1.0}
    assert logged["_params"]["contract"] == contract.VERSION
    assert logged["_params"]["data_sha256"] == "cd" * 32
    assert vertex.metadata.children("himari") == {RUN, f"himari-{RUN}"}


def test_the_step_tried_again_makes_nothing_twice(bench: Bench, vertex: FakeVertex, place: str) -> None:
    first = bench.run(place)
    again = bench.run(place)
    assert again.metadata == first.metadata
    assert len(vertex.named("UploadModel")) == 1
    assert len(vertex.named("CreateContext")) == 2


@pytest.mark.parametrize("rejected_too", [True, False])
def test_what_the_gate_refused_is_logged_and_gets_no_alias(
    bench: Bench, vertex: FakeVertex, place: str, rejected_too: bool
) -> None:
    registered = bench.run(place, passed=False, rejected_too=rejected_too)
    assert registered.metadata["registered"] is False
    assert "is not registered: the gate refused it" in registered.metadata["reason"]
    assert vertex.models.versions == {}
    assert vertex.metadata.named(f"himari-{RUN}").metadata["_metrics"]["passed"] == 0.0


def test_a_verdict_on_another_policy_stops_the_step(bench: Bench, vertex: FakeVertex, place: str) -> None:
    with pytest.raises(ReleaseError, match="another policy"):
        bench.run(place, policy_sha256="ef" * 32)
    assert vertex.calls == []


@pytest.mark.parametrize("vertex_text", ["himari-test", "{}", '{"project": "himari-test", "zone": "a"}'])
def test_a_place_that_is_none_stops_the_step(bench: Bench, vertex_text: str) -> None:
    with pytest.raises(ConfigurationError, match="vertex is"):
        bench.run(vertex_text)


def test_the_last_step_links_the_run_whatever_became_of_it(vertex: FakeVertex, place: str, tmp_path: Path) -> None:
    status = dsl.PipelineTaskFinalStatus("FAILED", "job", "workflow", 9, "train broke")
    notify.python_func(status, RUN, str(tmp_path), place)
    assert vertex.metadata.children("himari") == {RUN}
    assert json.loads((tmp_path / "runs" / RUN / "notification.json").read_text())["state"] == "FAILED"


def test_the_end_is_told_even_where_the_experiment_refuses(vertex: FakeVertex, place: str, tmp_path: Path) -> None:
    status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "job", "workflow", 0, "")
    vertex.fail("GetContext", status=403)
    with pytest.raises(RefusedError, match=r"roles/aiplatform\.user"):
        notify.python_func(status, RUN, str(tmp_path), place)
    assert (tmp_path / "runs" / RUN / "notification.json").exists()
