"""The loopback Cloud Run refuses what the real one refuses, through the real client."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import run_v2

from serving.platforms.target import Target
from serving.platforms.template import revision_template, split
from tests.fakes.cloud_run import FakeCloudRun, cloud_run
from tests.fakes.front import Fleet

PARENT = "projects/himari-tests/locations/us-central1"
NAME = f"{PARENT}/services/himari"
IMAGE = "us-central1-docker.pkg.dev/p/r/serving@sha256:" + "a" * 64


class Still(Fleet):
    """Containers that start at once and serve nothing: these tests ask the API alone."""

    def start(self, environment: object, health: str, seconds: float) -> int:
        return 1


@pytest.fixture
def fake() -> Iterator[FakeCloudRun]:
    with cloud_run(Still(), IMAGE) as run:
        yield run


@pytest.fixture
def client(fake: FakeCloudRun) -> run_v2.ServicesClient:
    return run_v2.ServicesClient(
        credentials=AnonymousCredentials(), transport="rest", client_options={"api_endpoint": fake.url}
    )


def service(revision: str = "himari-one", model: str = "m1") -> run_v2.Service:
    target = Target("himari-tests", "us-central1", "himari", "a@b.iam.gserviceaccount.com", IMAGE)
    template = revision_template(target, model, f"gs://b/models/{model}", [])
    template.revision = revision
    return run_v2.Service(template=template, traffic=split([(revision, 100, "champion")]))


def created(client: run_v2.ServicesClient) -> run_v2.Service:
    client.create_service(parent=PARENT, service=service(), service_id="himari").result(timeout=30)
    return client.get_service(name=NAME)


def wrong(change: Callable[[run_v2.Service], object]) -> run_v2.Service:
    asked = service()
    change(asked)
    return asked


def container(asked: run_v2.Service) -> run_v2.Container:
    return asked.template.containers[0]


def test_a_service_becomes_what_was_asked(client: run_v2.ServicesClient) -> None:
    found = created(client)
    assert (found.name, found.reconciling, found.generation) == (NAME, False, 1)
    assert [(to.revision, to.percent, to.tag) for to in found.traffic_statuses] == [("himari-one", 100, "champion")]
    assert found.latest_ready_revision == f"{NAME}/revisions/himari-one"
    assert found.uri.startswith("http://127.0.0.1:")
    assert found.traffic_statuses[0].uri not in ("", found.uri)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.traffic.append(run_v2.TrafficTarget(type_=2, revision="himari-one", percent=1)), "must be 100"),
        (lambda s: setattr(s, "traffic", split([("himari-two", 100, "")])), "'himari-two' not found"),
        (lambda s: setattr(s, "traffic", split([("himari-one", 100, "t"), ("himari-one", 0, "t")])), "tags"),
        (lambda s: setattr(s, "traffic", split([("himari-one", 100, "UPPER")])), "tags"),
        (lambda s: setattr(s, "traffic", split([("himari-one", 120, ""), ("himari-one", -20, "t")])), "outside"),
        (lambda s: setattr(s.template, "revision", "other-one"), "must begin with 'himari-'"),
        (lambda s: setattr(s.template, "revision", "himari-ONE"), "DNS label"),
        (lambda s: setattr(s.template, "revision", "himari-" + "x" * 60), "DNS label"),
        (lambda s: setattr(s.template, "service_account", "somebody"), "service account"),
        (lambda s: setattr(s.template.scaling, "min_instance_count", 11), "scaling"),
        (lambda s: setattr(container(s), "image", ""), "exactly one with an image"),
        (lambda s: container(s).env.append(run_v2.EnvVar(name="PORT", value="1")), "reserved"),
        (lambda s: container(s).resources.limits.update(cpu="3"), "cpu"),
        (lambda s: setattr(container(s).startup_probe, "timeout_seconds", 9), "probe"),
        (lambda s: s.labels.update(Model="x"), "label key"),
        (lambda s: s.labels.update(model="20260101.A"), "label value"),
        (lambda s: s.annotations.update({"run.googleapis.com/x": "y"}), "reserved namespace"),
    ],
)
def test_a_wrong_service_is_refused(
    client: run_v2.ServicesClient, change: Callable[[run_v2.Service], object], said: str
) -> None:
    with pytest.raises(exceptions.BadRequest, match=said):
        client.create_service(parent=PARENT, service=wrong(change), service_id="himari")
    with pytest.raises(exceptions.NotFound):
        client.get_service(name=NAME)


@pytest.mark.parametrize("service_id", ["Himari", "1himari", "himari-", "x" * 50])
def test_a_wrong_name_is_refused(client: run_v2.ServicesClient, service_id: str) -> None:
    with pytest.raises(exceptions.BadRequest, match="service_id"):
        client.create_service(parent=PARENT, service=service(), service_id=service_id)


def test_an_unknown_field_is_refused(fake: FakeCloudRun) -> None:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=60)
    connection.request("POST", f"/v2/{PARENT}/services?serviceId=himari", json.dumps({"trafic": []}))
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    assert (answer.status, said["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert "trafic" in said["error"]["message"]


def test_a_stale_version_is_refused(client: run_v2.ServicesClient) -> None:
    first = created(client)
    mask = {"paths": ["labels"]}
    mine, theirs = run_v2.Service(first), run_v2.Service(first)
    theirs.labels["who"] = "they"
    client.update_service(service=theirs, update_mask=mask).result(timeout=30)
    mine.labels["who"] = "me"
    with pytest.raises(exceptions.Conflict, match="current version"):
        client.update_service(service=mine, update_mask=mask)
    assert client.get_service(name=NAME).labels["who"] == "they"


def test_a_second_revision_of_one_name_is_refused(client: run_v2.ServicesClient) -> None:
    found = created(client)
    found.template.containers[0].env[0].value = "gs://b/models/m2"
    with pytest.raises(exceptions.Conflict, match="with different configuration already exists"):
        client.update_service(service=found, update_mask={"paths": ["template"]})


def test_only_what_the_mask_names_is_changed(client: run_v2.ServicesClient) -> None:
    found = created(client)
    asked = run_v2.Service(name=NAME, labels={"a": "b"})
    client.update_service(service=asked, update_mask={"paths": ["labels"]}).result(timeout=30)
    after = client.get_service(name=NAME)
    assert (dict(after.labels), after.template, list(after.traffic)) == (
        {"a": "b"},
        found.template,
        list(found.traffic),
    )
    with pytest.raises(exceptions.BadRequest, match="field mask"):
        client.update_service(service=asked, update_mask={"paths": ["uri"]})


def test_an_image_that_nobody_pushed_fails_the_operation(client: run_v2.ServicesClient) -> None:
    asked = wrong(lambda s: setattr(container(s), "image", IMAGE[:-1] + "b"))
    operation = client.create_service(parent=PARENT, service=asked, service_id="himari")
    with pytest.raises(exceptions.GoogleAPICallError, match="not found"):
        operation.result(timeout=30)
    found = client.get_service(name=NAME)
    assert found.terminal_condition.state == run_v2.Condition.State.CONDITION_FAILED
    assert list(found.traffic_statuses) == []


def test_a_revision_that_is_in_use_stays(fake: FakeCloudRun, client: run_v2.ServicesClient) -> None:
    created(client)
    revisions = run_v2.RevisionsClient(
        credentials=AnonymousCredentials(), transport="rest", client_options={"api_endpoint": fake.url}
    )
    with pytest.raises(exceptions.BadRequest, match="in use"):
        revisions.delete_revision(name=f"{NAME}/revisions/himari-one")
    assert [each.name for each in revisions.list_revisions(parent=NAME)] == [f"{NAME}/revisions/himari-one"]
