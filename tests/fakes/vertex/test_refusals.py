"""The loopback schedules, models and metadata refuse what the real services refuse, each in its own code."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as v1

from serving.vertex import Place, client
from tests.fakes.vertex.server import FakeVertex

IMAGE = "us-docker.pkg.dev/himari-test/himari/serving@sha256:" + "ab" * 32
ACCOUNT = "himari-pipeline@himari-test.iam.gserviceaccount.com"
HERE = "projects/himari-test/locations/us-central1"


@pytest.fixture
def vertex(tmp_path: Path) -> Iterator[FakeVertex]:
    with FakeVertex(tmp_path, storage="", images=[IMAGE], accounts=[ACCOUNT]) as fake:
        yield fake


@pytest.fixture
def place(vertex: FakeVertex) -> Place:
    return Place("himari-test", "us-central1", "himari", vertex.url)


def schedule(**changes: Any) -> v1.Schedule:
    spec = {"schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0", "pipelineInfo": {"name": "tiny"}, "root": {"dag": {}}}
    job = v1.PipelineJob(
        display_name="tiny",
        pipeline_spec=spec,
        service_account=ACCOUNT,
        runtime_config={"gcs_output_directory": "gs://bucket/runs"},
    )
    request = v1.CreatePipelineJobRequest(parent=HERE, pipeline_job=job)
    given = {"display_name": "tiny", "cron": "0 6 * * *", "max_concurrent_run_count": 1}
    return v1.Schedule(**(given | {"create_pipeline_job_request": request} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cron": "every monday"}, "Invalid cron"),
        ({"cron": "60 6 * * *"}, "Invalid cron"),
        ({"cron": "TZ=Mars 0 6 * * *"}, "Invalid time zone"),
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 129}, "display_name"),
        ({"max_concurrent_run_count": 0}, "max_concurrent_run_count"),
        ({"create_pipeline_job_request": None}, "parent is required"),
    ],
)
def test_schedules_that_cannot_be(vertex: FakeVertex, place: Place, changes: dict[str, Any], words: str) -> None:
    schedules = client(v1.ScheduleServiceClient, place)
    with pytest.raises(exceptions.BadRequest, match=words):
        schedules.create_schedule(parent=HERE, schedule=schedule(**changes))
    assert vertex.schedules.schedules == {}


def test_a_schedule_of_a_run_that_would_be_refused_is_refused(vertex: FakeVertex, place: Place) -> None:
    made = schedule()
    made.create_pipeline_job_request.pipeline_job.service_account = "nobody@himari-test.iam.gserviceaccount.com"
    with pytest.raises(exceptions.Forbidden, match="act as service_account"):
        client(v1.ScheduleServiceClient, place).create_schedule(parent=HERE, schedule=made)


def test_changes_of_schedules_that_cannot_be(vertex: FakeVertex, place: Place) -> None:
    schedules = client(v1.ScheduleServiceClient, place)
    made = schedules.create_schedule(parent=HERE, schedule=schedule())
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (
            exceptions.BadRequest,
            "update_mask cannot hold",
            lambda: schedules.update_schedule(schedule=made, update_mask={"paths": ["state"]}),
        ),
        (
            exceptions.BadRequest,
            "update_mask cannot hold nothing",
            lambda: schedules.update_schedule(schedule=made),
        ),
        (exceptions.BadRequest, "not PAUSED", lambda: schedules.resume_schedule(name=made.name)),
        (exceptions.NotFound, "does not exist", lambda: schedules.pause_schedule(name=f"{HERE}/schedules/1")),
        (exceptions.Forbidden, "denied", lambda: schedules.get_schedule(name=made.name.replace("4242", "1", 1))),
        (
            exceptions.BadRequest,
            "Invalid filter",
            lambda: list(schedules.list_schedules(request={"parent": HERE, "filter": "name:tiny"})),
        ),
    ]
    for kind, words, call in wrong:
        with pytest.raises(kind, match=words):
            call()
    schedules.pause_schedule(name=made.name)
    with pytest.raises(exceptions.BadRequest, match="not ACTIVE"):
        schedules.pause_schedule(name=made.name)
    assert vertex.schedules.fire(made.name) is None


def model(**changes: Any) -> v1.Model:
    spec = v1.ModelContainerSpec(image_uri=IMAGE, predict_route="/predict", health_route="/health")
    return v1.Model(**({"display_name": "tiny", "container_spec": spec} | changes))


def spec(**changes: Any) -> v1.ModelContainerSpec:
    return v1.ModelContainerSpec(**({"image_uri": IMAGE} | changes))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"model": model(container_spec=spec(image_uri=""))}, "image_uri is required"),
        ({"model": model(container_spec=spec(image_uri="himari:latest"))}, "not pinned by digest"),
        ({"model": model(container_spec=spec(image_uri=IMAGE.replace("ab", "cd")))}, "does not exist"),
        ({"model": model(container_spec=spec(predict_route="predict"))}, "begin with /"),
        ({"model": model(container_spec=spec(env=[{"name": "A-B", "value": "1"}]))}, "C identifier"),
        ({"model": model(container_spec=spec(ports=[{"container_port": 0}]))}, "container port"),
        ({"model": model(display_name="")}, "display_name"),
        ({"model": model(labels={"Run": "1"})}, "Invalid label key"),
        ({"model": model(labels={"run": "x" * 64})}, "Invalid label value"),
        ({"model": model(version_aliases=["7"])}, "An alias must match"),
        ({"model": model(artifact_uri="/tmp/model")}, "Cloud Storage directory"),
        ({"model": model(), "model_id": "Tiny"}, "model_id 'Tiny' must match"),
        ({"model": model(), "model_id": "a", "parent_model": f"{HERE}/models/b"}, "cannot both be set"),
    ],
)
def test_models_that_cannot_be(vertex: FakeVertex, place: Place, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(exceptions.BadRequest, match=words):
        client(v1.ModelServiceClient, place).upload_model(request=v1.UploadModelRequest(parent=HERE, **request_))
    assert vertex.models.versions == {}


def test_changes_of_models_that_cannot_be(vertex: FakeVertex, place: Place) -> None:
    models = client(v1.ModelServiceClient, place)
    upload = {"parent": HERE, "model_id": "tiny", "model": model(version_aliases=["candidate"])}
    models.upload_model(request=v1.UploadModelRequest(**upload)).result(timeout=60)
    with pytest.raises(exceptions.Conflict, match="already exists"):
        models.upload_model(request=v1.UploadModelRequest(**upload))
    base = f"{HERE}/models/tiny"
    first = models.get_model(name=base)
    assert (first.version_id, sorted(first.version_aliases)) == ("1", ["candidate", "default"])

    def merge(name: str, *aliases: str) -> Callable[[], Any]:
        return lambda: models.merge_version_aliases(name=name, version_aliases=list(aliases))

    stale = v1.Model(name=f"{base}@1", labels={"run": "2"}, etag="0")
    unknown = v1.Model(name=f"{base}@9", labels={"run": "2"})
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (exceptions.BadRequest, "by its id", merge(base, "champion")),
        (exceptions.BadRequest, "by its id", merge(f"{base}@candidate", "champion")),
        (exceptions.NotFound, "does not exist", merge(f"{base}@2", "champion")),
        (exceptions.BadRequest, "has no alias champion", merge(f"{base}@1", "-champion")),
        (exceptions.BadRequest, "must have the alias default", merge(f"{base}@1", "-default")),
        (exceptions.BadRequest, "added and removed at once", merge(f"{base}@1", "x1", "-x1")),
        (exceptions.BadRequest, "must match", merge(f"{base}@1", "Champion")),
        (
            exceptions.Conflict,
            "is stale",
            lambda: models.update_model(model=stale, update_mask={"paths": ["labels"]}),
        ),
        (
            exceptions.NotFound,
            "does not exist",
            lambda: models.update_model(model=unknown, update_mask={"paths": ["labels"]}),
        ),
        (
            exceptions.BadRequest,
            "update_mask cannot hold",
            lambda: models.update_model(model=first, update_mask={"paths": ["container_spec"]}),
        ),
        (exceptions.NotFound, "does not exist", lambda: models.get_model(name=f"{base}@champion")),
        (exceptions.NotFound, "does not exist", lambda: list(models.list_model_versions(name=f"{HERE}/models/other"))),
    ]
    for kind, words, call in wrong:
        with pytest.raises(kind, match=words):
            call()
    assert vertex.models.aliases("tiny") == {"candidate": "1", "default": "1"}


def test_contexts_that_cannot_be(vertex: FakeVertex, place: Place) -> None:
    metadata = client(v1.MetadataServiceClient, place)
    store = f"{HERE}/metadataStores/default"

    def create(name: str, **said: Any) -> Callable[[], Any]:
        given = {"display_name": "x", "schema_title": "system.Experiment", "schema_version": "0.0.1"} | said
        return lambda: metadata.create_context(parent=store, context=v1.Context(**given), context_id=name)

    with pytest.raises(exceptions.NotFound, match="MetadataStore"):
        create("early")()
    metadata.create_metadata_store(parent=HERE, metadata_store=v1.MetadataStore(), metadata_store_id="default").result(
        timeout=60
    )
    one, two = create("one")(), create("two")()
    metadata.add_context_children(context=one.name, child_contexts=[two.name])
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (exceptions.Conflict, "already exists", create("one")),
        (exceptions.BadRequest, "must match", create("One")),
        (exceptions.BadRequest, "must match", create("x" * 129)),
        (exceptions.NotFound, "MetadataSchema", create("three", schema_title="system.Runs")),
        (exceptions.BadRequest, "display_name", create("three", display_name="")),
        (
            exceptions.BadRequest,
            "above itself",
            lambda: metadata.add_context_children(context=two.name, child_contexts=[one.name]),
        ),
        (
            exceptions.NotFound,
            "not found",
            lambda: metadata.add_context_children(context=one.name, child_contexts=[f"{store}/contexts/none"]),
        ),
        (
            exceptions.Conflict,
            "is stale",
            lambda: metadata.update_context(
                context=v1.Context(name=one.name, etag="0"), update_mask={"paths": ["metadata"]}
            ),
        ),
    ]
    for kind, words, call in wrong:
        with pytest.raises(kind, match=words):
            call()
    assert vertex.metadata.children("one") == {"two"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("schedules", {"cron": "0 6 * * *", "every": "monday"}),
        ("models:upload", {"model": {"displayName": "x", "container": {}}}),
        ("metadataStores/default/contexts?contextId=a", {"schema": "system.Experiment"}),
    ],
)
def test_a_field_that_does_not_exist_is_refused(vertex: FakeVertex, path: str, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection(vertex.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", f"/v1/{HERE}/{path}", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
    finally:
        connection.close()
    assert answer.status == 400
    assert "Invalid JSON payload" in said["error"]["message"]
