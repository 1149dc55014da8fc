"""The loopback Vertex Pipelines refuses what the real one refuses; what it takes, it runs (test_closed_network.py)."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as v1

from serving.vertex import client
from tests.fakes.cloud import COMPONENTS, World, world

PARENT = "projects/himari-test/locations/us-central1"


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("cloud") / "world") as cloud:
        cloud.vertex.pipelines.paused = True
        yield cloud


@pytest.fixture(scope="module")
def pipelines(here: World) -> v1.PipelineServiceClient:
    return client(v1.PipelineServiceClient, here.cloud)


@pytest.fixture(scope="module")
def compiled(here: World) -> dict:
    return yaml.safe_load(Path(here.spec).read_text())


def job(compiled: dict, **changes: object) -> v1.PipelineJob:
    fields = {
        "display_name": "a run",
        "pipeline_spec": compiled,
        "service_account": "himari-dev-pipeline@himari-test.iam.gserviceaccount.com",
        "runtime_config": {"gcs_output_directory": "gs://bucket/runs", "parameter_values": {"store": "gs://bucket"}},
    }
    return v1.PipelineJob(**(fields | changes))


def test_a_name_has_the_projects_number_and_is_found_by_both(here, pipelines, compiled):
    made = pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled), pipeline_job_id="found")
    assert made.name == "projects/424242424242/locations/us-central1/pipelineJobs/found"
    assert made.state == v1.PipelineState.PIPELINE_STATE_PENDING
    for name in (made.name, f"{PARENT}/pipelineJobs/found"):
        assert pipelines.get_pipeline_job(name=name) == made
    assert made.job_detail.pipeline_run_context.schema_title == "system.PipelineRun"


def test_runs_are_listed_by_label_the_newest_first(pipelines, compiled):
    for number in range(3):
        labelled = job(compiled, labels={"kind": "listed" if number else "other"})
        pipelines.create_pipeline_job(parent=PARENT, pipeline_job=labelled, pipeline_job_id=f"listed-{number}")
    request = v1.ListPipelineJobsRequest(parent=PARENT, filter='labels.kind="listed"', page_size=1)
    assert [found.name.rsplit("/", 1)[1] for found in pipelines.list_pipeline_jobs(request)] == ["listed-2", "listed-1"]


def test_a_name_is_given_once(pipelines, compiled):
    pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled), pipeline_job_id="once")
    with pytest.raises(exceptions.Conflict, match="already exists"):
        pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled), pipeline_job_id="once")


def test_what_has_ended_cannot_be_cancelled(pipelines, compiled):
    made = pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled), pipeline_job_id="cancelled")
    pipelines.cancel_pipeline_job(name=made.name)
    assert pipelines.get_pipeline_job(name=made.name).state == v1.PipelineState.PIPELINE_STATE_CANCELLED
    with pytest.raises(exceptions.BadRequest, match="has ended"):
        pipelines.cancel_pipeline_job(name=made.name)


@pytest.mark.parametrize("name", ["Upper", "1st", "-x", "x_y", "x" * 129])
def test_a_bad_id_is_refused(pipelines, compiled, name):
    with pytest.raises(exceptions.BadRequest, match="Invalid pipeline_job_id"):
        pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled), pipeline_job_id=name)


def _image(image: str) -> Callable[[dict], None]:
    def change(spec: dict) -> None:
        spec["deploymentSpec"]["executors"]["exec-gate"]["container"]["image"] = image

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_image("us-central1-docker.pkg.dev/himari-test/himari/components:latest"), "not pinned by digest"),
        (_image(COMPONENTS.replace("c" * 64, "d" * 64)), "does not exist"),
        (lambda spec: spec["root"].update(nonsense=1), "nonsense"),
        (lambda spec: spec["deploymentSpec"]["executors"]["exec-gate"]["container"].update(imag="x"), "imag"),
        (lambda spec: spec["root"]["inputDefinitions"]["parameters"].update(more={}), "more is required"),
    ],
)
def test_a_spec_that_cannot_run_is_refused(pipelines, compiled, change, said):
    spec = copy.deepcopy(compiled)
    change(spec)
    with pytest.raises(exceptions.BadRequest, match=said):
        pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(spec), pipeline_job_id="a")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "store is required"),
        ({"store": "x", "sotre": "y"}, "sotre is not an input"),
        ({"store": 1}, "is no STRING"),
        ({"store": "x", "seed": 1.5}, "is no NUMBER_INTEGER"),
        ({"store": "x", "sharpe_threshold": "1"}, "is no NUMBER_DOUBLE"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(pipelines, compiled, values, said):
    runtime = {"gcs_output_directory": "gs://bucket", "parameter_values": values}
    with pytest.raises(exceptions.BadRequest, match=said):
        pipelines.create_pipeline_job(
            parent=PARENT, pipeline_job=job(compiled, runtime_config=runtime), pipeline_job_id="a"
        )


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"display_name": ""}, exceptions.BadRequest, "display_name"),
        ({"labels": {"Bad": "x"}}, exceptions.BadRequest, "Invalid label key"),
        ({"service_account": "who@himari-test.iam.gserviceaccount.com"}, exceptions.Forbidden, "act as"),
        ({"service_account": ""}, exceptions.Forbidden, "act as"),
        (
            {"runtime_config": {"gcs_output_directory": "/tmp", "parameter_values": {}}},
            exceptions.BadRequest,
            "Storage",
        ),
    ],
)
def test_a_job_that_breaks_a_rule_is_refused(pipelines, compiled, changes, error, said):
    with pytest.raises(error, match=said):
        pipelines.create_pipeline_job(parent=PARENT, pipeline_job=job(compiled, **changes), pipeline_job_id="a")


@pytest.mark.parametrize(
    ("parent", "error"),
    [
        ("projects/other/locations/us-central1", exceptions.Forbidden),
        ("projects/himari-test/locations/europe-west4", exceptions.BadRequest),
    ],
)
def test_another_project_or_region_is_refused(pipelines, compiled, parent, error):
    with pytest.raises(error):
        pipelines.create_pipeline_job(parent=parent, pipeline_job=job(compiled), pipeline_job_id="a")


def test_a_run_that_is_not_there_is_not_found(pipelines):
    with pytest.raises(exceptions.NotFound):
        pipelines.get_pipeline_job(name=f"{PARENT}/pipelineJobs/nowhere")
