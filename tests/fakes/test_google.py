"""The loopback Google refuses and fails as the real one does, seen through Google's own clients."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.pipeline_service.transports.rest_base import _BasePipelineServiceRestTransport

from tests.fakes.google import FakeGoogle, Refused, label_problem, page

PARENT = "projects/p/locations/us-central1"
JOB = f"{PARENT}/pipelineJobs/some-job"


@pytest.fixture
def google() -> Iterator[FakeGoogle]:
    with FakeGoogle() as fake:

        def listed(request: Any) -> v1.ListPipelineJobsResponse:
            jobs = [v1.PipelineJob(name=f"{PARENT}/pipelineJobs/j{number}") for number in range(25)]
            found, token = page(jobs, request.page_size, request.page_token, most=10)
            return v1.ListPipelineJobsResponse(pipeline_jobs=found, next_page_token=token)

        def got(request: Any) -> v1.PipelineJob:
            if request.name.endswith("none"):
                raise Refused("NOT_FOUND", "There is none.")
            if request.name.endswith("bug"):
                raise ZeroDivisionError
            return v1.PipelineJob(name=request.name, state=v1.PipelineState.PIPELINE_STATE_RUNNING)

        def deleted(request: Any) -> Any:
            if request.name.endswith("kept"):
                return fake.operation(request.name, lambda: _refuse("FAILED_PRECONDITION", "It is kept."))
            return fake.operation(request.name, lambda: None, polls=2)

        for name, kind, handler in (
            ("ListPipelineJobs", v1.ListPipelineJobsRequest, listed),
            ("GetPipelineJob", v1.GetPipelineJobRequest, got),
            ("CreatePipelineJob", v1.CreatePipelineJobRequest, lambda request: request.pipeline_job),
            ("DeletePipelineJob", v1.DeletePipelineJobRequest, deleted),
        ):
            fake.serve(_BasePipelineServiceRestTransport, name, kind, handler)
        fake.serve_operations()
        yield fake


def _refuse(code: str, message: str) -> None:
    raise Refused(code, message)


@pytest.fixture
def client(google: FakeGoogle) -> v1.PipelineServiceClient:
    options = {"api_endpoint": google.url}
    return v1.PipelineServiceClient(credentials=AnonymousCredentials(), transport="rest", client_options=options)


def test_a_message_goes_there_and_back(client):
    job = v1.PipelineJob(
        display_name="a run",
        pipeline_spec={"schemaVersion": "2.1.0", "root": {"list": [1, 2.5, "x", None, True]}},
        labels={"a": "b"},
        runtime_config={"gcs_output_directory": "gs://b", "parameter_values": {"n": 3, "flag": True, "text": "ü"}},
    )
    assert client.create_pipeline_job(parent=PARENT, pipeline_job=job, pipeline_job_id="some-job") == job


def test_pages_are_followed(client, google):
    names = [job.name for job in client.list_pipeline_jobs(parent=PARENT)]
    assert names == [f"{PARENT}/pipelineJobs/j{number}" for number in range(25)]
    assert len(google.named("ListPipelineJobs")) == 3


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("pipelineJobs", {"nonsense": 1}, 'no field named \\"nonsense\\"'),
        ("pipelineJobs", {"labels": ["a"]}, "labels"),
        ("pipelineJobs", {"runtimeConfig": {"gcsOutputDir": ""}}, "gcsOutputDir"),
        ("pipelineJobs", [1], "Invalid JSON payload"),
        ("pipelineJobs?pipelineJobID=x", {}, 'Unknown name \\"pipelineJobID\\"'),
    ],
)
def test_what_a_message_has_no_field_for_is_refused(google, path, body, said):
    answer = requests.post(f"{google.url}/v1/{PARENT}/{path}", json=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert said in answer.text


def test_a_refusal_and_an_unknown_address_are_googles_errors(client, google):
    with pytest.raises(exceptions.NotFound, match="There is none"):
        client.get_pipeline_job(name=f"{PARENT}/pipelineJobs/none")
    with pytest.raises(exceptions.InternalServerError, match="the fake itself failed: ZeroDivisionError"):
        client.get_pipeline_job(name=f"{PARENT}/pipelineJobs/bug")
    assert requests.get(f"{google.url}/v1/nowhere", timeout=30).json()["error"]["code"] == 404
    assert requests.get(f"{google.url}/v1/{PARENT}/pipelineJobs/a/b", timeout=30).status_code == 404


def test_an_operation_ends_with_its_message_or_its_refusal(client, google):
    client.delete_pipeline_job(name=JOB).result(timeout=60)
    with pytest.raises(exceptions.GoogleAPICallError, match="It is kept"):
        client.delete_pipeline_job(name=f"{PARENT}/pipelineJobs/kept").result(timeout=60)
    google.fail("DeletePipelineJob", "endless")
    with pytest.raises(TimeoutError):
        client.delete_pipeline_job(name=JOB).result(timeout=0.5)
    with pytest.raises(exceptions.NotFound):
        client.transport.operations_client.get_operation(f"{PARENT}/operations/1")


def test_faults_happen_as_often_and_as_late_as_asked(client, google):
    google.fail("GetPipelineJob", status=429, retry_after=3, skip=1, times=2)
    assert client.get_pipeline_job(name=JOB).name == JOB
    for _ in range(2):
        with pytest.raises(exceptions.TooManyRequests) as refused:
            client.get_pipeline_job(name=JOB)
        assert refused.value.response.headers["Retry-After"] == "3"
    assert client.get_pipeline_job(name=JOB).name == JOB


@pytest.mark.parametrize("kind", ["drop", "lose"])
def test_a_dropped_connection_has_no_answer(client, google, kind):
    google.fail("CreatePipelineJob", kind)
    with pytest.raises(requests.ConnectionError):
        client.create_pipeline_job(parent=PARENT, pipeline_job=v1.PipelineJob(), pipeline_job_id="x")


def test_a_stalled_call_is_let_go_when_the_server_ends(client, google):
    google.fail("GetPipelineJob", "stall")
    with pytest.raises(requests.Timeout):
        client.get_pipeline_job(name=JOB, timeout=0.2)


def test_faults_are_taken_back(client, google):
    google.fail("GetPipelineJob", "drop", times=9)
    google.heal()
    assert client.get_pipeline_job(name=JOB).name == JOB


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"a": "", "b_c-1": "x" * 63}, None),
        ({"A": "x"}, "label key"),
        ({"1a": "x"}, "label key"),
        ({"": "x"}, "label key"),
        ({"a": "X"}, "label value"),
        ({"a": "x" * 64}, "label value"),
        ({"a": "x.y"}, "label value"),
        ({f"a{number}": "" for number in range(65)}, "65 labels"),
    ],
)
def test_labels(labels, problem):
    found = label_problem(labels)
    assert found is None if problem is None else problem in found


@pytest.mark.parametrize("token", ["x", "-1"])
def test_a_page_of_an_unknown_token_is_refused(token):
    with pytest.raises(Refused):
        page([1, 2], 1, token)
