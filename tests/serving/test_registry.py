"""The model registry and the experiments, through Google's own clients, against a loopback Vertex."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layer3 import contract
from layer3.champion import Champion, read
from layer3.errors import ConfigurationError, RefusedError, ReleaseError, SourceError
from serving import champion_alias, registry
from serving.channels import publish
from serving.cloud import Cloud, Endpoints
from serving.experiments import link_run, log_run
from serving.models import store_policy
from serving.versions import Candidate, Version
from serving.vertex import Place, asked, label, place_of, said_of
from tests.fakes.gcs import FakeGcs
from tests.fakes.vertex.server import FakeVertex
from tests.serving.support import make_policy

IMAGE = "us-docker.pkg.dev/himari-test/himari/serving@sha256:" + "ab" * 32
MODEL = "himari-btc-usdt"


@pytest.fixture
def vertex(tmp_path: Path) -> Iterator[FakeVertex]:
    with FakeVertex(tmp_path / "work", storage="", images=[IMAGE], accounts=[]) as fake:
        yield fake


@pytest.fixture
def place(vertex: FakeVertex) -> Place:
    return Place("himari-test", "us-central1", "himari", vertex.url)


class Desk:
    """Registers policies, each of them by the number of its seed."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.folder = folder
        self.place = place
        self.slept: list[float] = []

    def candidate(self, seed: int, verdict: str = "passed") -> Candidate:
        folder = self.folder / f"policy-{seed}"
        if not folder.exists():
            make_policy(folder, seed, symbol="BTC-USDT")
        manifest = json.loads((folder / "manifest.json").read_text())
        return Candidate(
            model_id=manifest["model_id"],
            policy_sha256=manifest["policy_sha256"],
            contract=contract.VERSION,
            symbol="BTC-USDT",
            synthetic=False,
            data_sha256="cd" * 32,
            verdict=verdict,
            sentence=verdict,
            run_id=f"himari-training-{seed}",
        )

    def record(self, seed: int, verdict: str = "passed", **options: Any) -> Version:
        candidate = self.candidate(seed, verdict)
        return registry.record(
            self.place,
            candidate,
            self.folder / f"policy-{seed}",
            uri=f"gs://bucket/runs/run-{seed}/model",
            store=str(self.folder / "store"),
            image=options.pop("image", IMAGE),
            rejected_too=options.pop("rejected_too", False),
            sleep=self.slept.append,
            **options,
        )


@pytest.fixture
def desk(tmp_path: Path, place: Place) -> Desk:
    return Desk(tmp_path, place)


def versions(vertex: FakeVertex) -> list[Any]:
    return vertex.models.versions.get(f"{vertex.place.parent}/models/{MODEL}", [])


def test_the_first_version_says_all_that_a_reviewer_asks(vertex: FakeVertex, desk: Desk) -> None:
    made = desk.record(1)
    (version,) = versions(vertex)
    candidate = desk.candidate(1)
    assert made.name == f"{desk.place.parent}/models/{MODEL}@1"
    assert made.uri == f"{vertex.url}/v1/{made.name}"
    assert vertex.models.aliases(MODEL) == {"candidate": "1", "default": "1"}
    spec = version.container_spec
    assert spec.image_uri == IMAGE
    assert (spec.predict_route, spec.health_route) == ("/predict", "/health")
    assert [port.container_port for port in spec.ports] == [8080]
    model_uri = str(desk.folder / "store" / "models" / candidate.model_id)
    assert {one.name: one.value for one in spec.env} == {"MODEL_URI": model_uri, "AUTH": "off"}
    assert (Path(model_uri) / "policy.safetensors").exists()
    assert dict(version.labels) == {
        "policy": candidate.policy_sha256[:63],
        "data": ("cd" * 32)[:63],
        "contract": label(contract.VERSION),
        "run": "himari-training-1",
        "verdict": "passed",
        "synthetic": "false",
        "parent_version": "",
    }
    assert version.pipeline_job == f"{desk.place.parent}/pipelineJobs/himari-training-1"
    assert candidate.model_id in version.version_description
    told = made.to_metadata()
    assert told["registered"] is True
    assert told["resourceName"] == made.name
    assert told["containerSpec"]["imageUri"] == IMAGE
    assert told["containerSpec"]["env"][0] == {"name": "MODEL_URI", "value": model_uri}


def test_a_version_follows_the_one_before_and_takes_the_alias(vertex: FakeVertex, desk: Desk) -> None:
    first = desk.record(1)
    assert "champion" in registry.promote(desk.place, first.name)
    second = desk.record(2)
    assert second.parent == first.name
    assert versions(vertex)[1].labels["parent_version"] == "1"
    assert "Follows version 1" in versions(vertex)[1].version_description
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "champion": "1", "default": "1"}
    registry.promote(desk.place, second.name)
    registry.promote(desk.place, second.name)
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "champion": "2", "default": "2"}
    assert len(vertex.named("MergeVersionAliases")) == 4
    # Back again, as a rollback does it.
    found = registry.version_of(desk.place, "BTC-USDT", desk.candidate(1).policy_sha256)
    assert found == first.name
    registry.promote(desk.place, first.name)
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "champion": "1", "default": "1"}
    assert registry.version_of(desk.place, "ETH-USDT", desk.candidate(1).policy_sha256) is None


def test_one_policy_has_one_version_however_often_it_is_registered(vertex: FakeVertex, desk: Desk) -> None:
    first = desk.record(1)
    again = desk.record(1)
    assert again.name == first.name
    assert again.container == first.container
    assert "already" in again.sentence
    assert len(vertex.named("UploadModel")) == 1
    assert vertex.named("UpdateModel") == []


def test_a_rejected_policy_is_not_registered_unless_asked(vertex: FakeVertex, desk: Desk) -> None:
    made = desk.record(1, "rejected")
    assert made.to_metadata() == {"registered": False, "reason": made.sentence}
    assert "register_rejected" in made.sentence
    assert "first version" in desk.record(1, "rejected", rejected_too=True).sentence
    assert vertex.named("UploadModel") == []
    assert not (desk.folder / "store").exists()


def test_a_rejected_policy_is_registered_as_such_and_never_becomes_anything(vertex: FakeVertex, desk: Desk) -> None:
    desk.record(1)
    made = desk.record(2, "rejected", rejected_too=True)
    rejected = versions(vertex)[1]
    assert rejected.labels["verdict"] == "rejected"
    assert {one.name: one.value for one in rejected.container_spec.env}["MODEL_URI"] == "gs://bucket/runs/run-2/model"
    assert rejected.artifact_uri == "gs://bucket/runs/run-2/model"
    assert vertex.models.aliases(MODEL) == {"candidate": "1", "default": "1"}
    with pytest.raises(ReleaseError, match="rejected by the gate"):
        registry.promote(desk.place, made.name)
    assert "champion" not in vertex.models.aliases(MODEL)


def test_a_policy_that_is_judged_again_is_labelled_as_it_was_judged_last(vertex: FakeVertex, desk: Desk) -> None:
    desk.record(1)
    desk.record(2)
    desk.record(2, "rejected")
    assert versions(vertex)[1].labels["verdict"] == "rejected"
    assert vertex.models.aliases(MODEL) == {"default": "1"}
    desk.record(2, "overridden")
    assert versions(vertex)[1].labels["verdict"] == "overridden"
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "default": "1"}
    assert len(versions(vertex)) == 2


def test_an_image_that_is_not_pinned_is_refused_before_anything_is_asked(vertex: FakeVertex, desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match="pinned by digest"):
        desk.record(1, image="himari-serving:unset")
    assert vertex.calls == []


def test_an_image_that_is_not_there_is_refused_with_what_to_do(vertex: FakeVertex, desk: Desk) -> None:
    with pytest.raises(RefusedError, match=r"to register \S+: The image .* does not exist\. Correct what it names"):
        desk.record(1, image=IMAGE.replace("ab", "cd"))
    assert versions(vertex) == []


CALLS = ["ListModelVersions", "UploadModel", "GetOperation", "MergeVersionAliases"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"kind": "lose"}, {"status": 503}, {"status": 429}])
def test_a_call_that_got_no_answer_is_made_again_and_makes_no_second_version(
    vertex: FakeVertex, desk: Desk, name: str, fault: dict[str, Any]
) -> None:
    vertex.fail(name, **fault)
    made = desk.record(1)
    assert [one.version_id for one in versions(vertex)] == ["1"]
    assert vertex.models.aliases(MODEL) == {"candidate": "1", "default": "1"}
    assert made.name.endswith("@1")


@pytest.mark.parametrize("name", CALLS)
def test_no_answer_at_all_ends_in_a_sentence_and_running_again_ends_the_job(
    vertex: FakeVertex, desk: Desk, name: str
) -> None:
    # Google's client asks for an operation by itself, with more patience than anything else here.
    fault = {"status": 403} if name == "GetOperation" else {"kind": "drop"}
    vertex.fail(name, times=100, **fault)
    with pytest.raises(SourceError, match=r"run the same|gcloud projects add-iam-policy-binding"):
        desk.record(1)
    vertex.heal()
    desk.record(1)
    assert [one.version_id for one in versions(vertex)] == ["1"]
    assert vertex.models.aliases(MODEL) == {"candidate": "1", "default": "1"}


def test_a_refusal_names_the_role_and_is_not_asked_again(vertex: FakeVertex, desk: Desk) -> None:
    vertex.fail("UploadModel", status=403, message="Permission 'aiplatform.models.upload' denied")
    with pytest.raises(RefusedError, match=r"aiplatform\.models\.upload.*roles/aiplatform\.user"):
        desk.record(1)
    assert len(vertex.named("UploadModel")) == 1
    assert desk.slept == []


def test_a_model_that_is_deleted_meanwhile_is_told(vertex: FakeVertex, desk: Desk) -> None:
    vertex.fail("UploadModel", status=404)
    with pytest.raises(SourceError, match="deleted meanwhile; run the step again"):
        desk.record(1)


def test_an_operation_that_never_ends_is_not_waited_for_for_ever(vertex: FakeVertex, desk: Desk) -> None:
    vertex.fail("UploadModel", "endless")
    with pytest.raises(SourceError, match="has not ended it"):
        desk.record(1, patience_seconds=0.1)
    desk.record(1)
    assert [one.version_id for one in versions(vertex)] == ["1"]


def test_two_that_change_one_version_at_once_both_end_well(vertex: FakeVertex, desk: Desk) -> None:
    desk.record(1)
    vertex.fail("UpdateModel", status=409, message="Etag is stale")
    desk.record(1, "overridden")
    assert versions(vertex)[0].labels["verdict"] == "overridden"
    assert desk.slept == [1.0]


@pytest.mark.parametrize("name", ["@7", "@champion", ""])
def test_what_is_not_a_version_becomes_no_champion(vertex: FakeVertex, desk: Desk, name: str) -> None:
    made = desk.record(1)
    base = made.name.partition("@")[0] if name else f"{desk.place.parent}/models/other"
    with pytest.raises(ReleaseError, match="not in the registry any more"):
        registry.promote(desk.place, f"{base}{name}")


@pytest.fixture
def cloud(tmp_path: Path, vertex: FakeVertex, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The configuration of a cloud whose bucket is a fake, too."""
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        path = tmp_path / "cloud.yaml"
        path.write_text(
            f"project: himari-test\nstore: gs://bucket\nendpoints: {{storage: {gcs.url}, vertex: {vertex.url}}}\n"
        )
        yield path


def serves(desk: Desk, seed: int, before: Any = None) -> Any:
    """The policy of this seed is the champion of the bucket."""
    candidate = desk.candidate(seed)
    store_policy(desk.folder / f"policy-{seed}", "gs://bucket")
    champion = Champion(
        candidate.model_id, candidate.policy_sha256, candidate.contract, "2026-02-01T00:00:00+00:00", "run-1"
    )
    return publish("gs://bucket", champion, expected=before)


def test_the_alias_follows_what_serves(
    vertex: FakeVertex, desk: Desk, cloud: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        assert champion_alias.main(["--cloud", str(cloud)]) == 0
        return capsys.readouterr().out

    assert "nothing serves in gs://bucket" in told()
    first = serves(desk, 1)
    assert "is not in the model registry" in told()
    desk.record(1)
    desk.record(2)
    assert "@1 is the champion" in told()
    second = serves(desk, 2, first)
    assert "@2 is the champion" in told()
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "champion": "2", "default": "2"}
    publish("gs://bucket", first.champion, expected=second)
    assert "@1 is the champion" in told()
    assert vertex.models.aliases(MODEL) == {"candidate": "2", "champion": "1", "default": "1"}
    vertex.fail("MergeVersionAliases", status=403)
    publish("gs://bucket", second.champion, expected=read("gs://bucket"))
    assert champion_alias.main(["--cloud", str(cloud)]) == 1
    assert "roles/aiplatform.user" in capsys.readouterr().err


def began(vertex: FakeVertex, run_id: str) -> None:
    """A run that Vertex has on record."""
    from google.cloud import aiplatform_v1 as v1

    name = f"{vertex.place.parent}/metadataStores/default/contexts/{run_id}"
    vertex.metadata.began(v1.Context(name=name, schema_title="system.PipelineRun", schema_version="0.0.1"))


def test_a_run_is_linked_to_its_experiment_once(vertex: FakeVertex, place: Place) -> None:
    began(vertex, "run-1")
    link_run(place, "run-1")
    link_run(place, "run-1")
    assert vertex.metadata.children("himari") == {"run-1"}
    assert vertex.metadata.named("himari").schema_title == "system.Experiment"
    assert len(vertex.named("AddContextChildren")) == 1


def test_googles_own_library_reads_parameters_and_metrics(vertex: FakeVertex, place: Place) -> None:
    began(vertex, "run-1")
    metrics = {"policy_sharpe": 1.5, "unknown": float("nan")}
    log_run(place, "run-1", parameters={"seed": 1, "symbol": "BTC-USDT", "list": [1]}, metrics={"policy_sharpe": 9.0})
    log_run(place, "run-1", parameters={"seed": 1, "symbol": "BTC-USDT", "list": [1]}, metrics=metrics)
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform

    aiplatform.init(
        project=place.project,
        location=place.region,
        api_transport="rest",
        api_endpoint=vertex.url,
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
    )
    try:
        read = aiplatform.ExperimentRun("run-1", experiment="himari")
        assert read.get_params() == {"seed": 1, "symbol": "BTC-USDT"}
        assert read.get_metrics() == {"policy_sharpe": 1.5}
        assert read.get_state() == "COMPLETE"
    finally:
        aiplatform.initializer.global_pool.shutdown(wait=True)
    assert vertex.metadata.children("himari") == {"run-1", "himari-run-1"}
    assert vertex.metadata.children("himari-run-1") == {"run-1"}


METADATA_CALLS = ["GetContext", "CreateContext", "AddContextChildren", "GetMetadataStore"]


@pytest.mark.parametrize("name", METADATA_CALLS)
@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"kind": "lose"}, {"status": 503}])
def test_what_is_lost_on_the_way_to_the_experiment_is_said_again(
    vertex: FakeVertex, place: Place, name: str, fault: dict[str, Any]
) -> None:
    began(vertex, "run-1")
    vertex.fail(name, **fault)
    log_run(place, "run-1", parameters={"seed": 1}, metrics={"sharpe": 1.0}, sleep=lambda seconds: None)
    assert vertex.metadata.children("himari") == {"run-1", "himari-run-1"}
    assert dict(vertex.metadata.named("himari-run-1").metadata["_metrics"]) == {"sharpe": 1.0}


def test_a_run_that_vertex_does_not_know_is_not_linked(vertex: FakeVertex, place: Place) -> None:
    with pytest.raises(SourceError, match="knows no run run-9"):
        link_run(place, "run-9", sleep=lambda seconds: None)


def test_an_experiments_name_that_leaves_no_room_is_refused(vertex: FakeVertex, place: Place) -> None:
    began(vertex, "run-1")
    with pytest.raises(ConfigurationError, match="it has 126 of at most 121 characters"):
        log_run(dataclasses.replace(place, experiment="x" * 120), "run-1", parameters={}, metrics={})


def test_an_experiments_name_that_is_taken_is_refused(vertex: FakeVertex, place: Place) -> None:
    began(vertex, "run-1")
    with pytest.raises(ConfigurationError, match=r"system\.PipelineRun.*name another experiment"):
        link_run(dataclasses.replace(place, experiment="run-1"), "run-1")


def test_a_project_without_a_store_gets_one(vertex: FakeVertex, place: Place) -> None:
    with pytest.raises(SourceError, match="knows no run"):
        link_run(place, "run-1", sleep=lambda seconds: None)
    assert vertex.metadata.has_store
    assert vertex.metadata.named("himari").metadata == {"experiment_deleted": False}


def test_a_place_goes_through_the_pipeline_as_json(vertex: FakeVertex, place: Place) -> None:
    cloud = Cloud(project="himari-test", store="gs://b123", endpoints=Endpoints(vertex=vertex.url))
    assert place_of(said_of(cloud)) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no place"),
        ("himari-test", "names no place"),
        ("[]", "mapping"),
        ('{"project": "himari-test", "zone": "a"}', "unknown key 'zone'"),
        ('{"project": "P"}', "project id"),
        ('{"project": "himari-test", "region": "moon"}', "region"),
        ('{"project": "himari-test", "endpoint": "http://10.0.0.1:80"}', "emulator on this machine"),
        ('{"region": "us-central1"}', "names no project"),
    ],
)
def test_what_is_no_place_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        place_of(text)


@pytest.mark.parametrize(("said", "waited"), [(7.0, [7.0] * 3), (9_000.0, [60.0] * 3), (None, [1.0, 2.0, 4.0])])
def test_a_busy_service_is_waited_for_as_it_asks(
    vertex: FakeVertex, place: Place, said: float | None, waited: list[float]
) -> None:
    slept: list[float] = []
    vertex.fail("GetContext", status=429, retry_after=said, times=4)
    with pytest.raises(SourceError, match=r"did not answer in 4 attempts .*injected failure"):
        link_run(place, "run-1", sleep=slept.append)
    assert slept == waited


def test_credentials_that_do_not_work_are_told(place: Place) -> None:
    from google.auth.exceptions import RefreshError

    def call() -> None:
        raise RefreshError("invalid_grant")

    with pytest.raises(RefusedError, match=r"invalid_grant.*gcloud auth application-default login"):
        asked("do it", call)


OF_A_MODEL = {
    "policy_sha256": "a",
    "model_id": "m",
    "contract": "c",
    "symbol": "S",
    "synthetic": True,
    "data_sha256": "d",
}


def test_a_verdict_on_another_policy_is_refused() -> None:
    verdict = {"policy_sha256": "b", "passed": True, "criteria": [], "override": None}
    with pytest.raises(ReleaseError, match="another policy"):
        Candidate.of(OF_A_MODEL, verdict, "run-1")


@pytest.mark.parametrize(
    ("passed", "override", "word", "words"),
    [
        (True, None, "passed", "passed all 2 criteria"),
        (False, None, "rejected", "failed sharpe"),
        (True, {"name": "Ada", "reason": "why"}, "overridden", "failed sharpe; released by Ada"),
    ],
)
def test_a_verdict_in_a_word_and_a_sentence(passed: bool, override: Any, word: str, words: str) -> None:
    criteria = [{"name": "sharpe", "passed": word == "passed"}, {"name": "trades", "passed": True}]
    verdict = {"policy_sha256": "a", "passed": passed, "criteria": criteria, "override": override}
    made = Candidate.of(OF_A_MODEL, verdict, "run-1")
    assert (made.verdict, made.sentence) == (word, words)
