"""Vertex Pipelines on this machine: takes what the real service takes, refuses what it refuses, and runs it.

A submitted spec is executed step by step by the project's own local runner, in a process of its own
(:mod:`tests.fakes.vertex.executor`). The run's folder below ``work`` stands for the pipeline root: what a step has
written is copied to the bucket when the step has ended, and the addresses that the service reports are the bucket's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.pipeline_service.transports.rest_base import _BasePipelineServiceRestTransport
from google.protobuf import empty_pb2, json_format
from google.rpc import status_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.fakes.google import FakeGoogle, Refused, label_problem, page
from tests.fakes.vertex.custom_jobs import unfolded

if TYPE_CHECKING:
    from tests.fakes.vertex.server import Place

__all__ = ["Pipelines"]

ROOT: Final = Path(__file__).resolve().parents[3]
_ID: Final = re.compile(r"[a-z][-a-z0-9]{0,127}")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")
_TYPES: Final = {
    "STRING": str,
    "NUMBER_INTEGER": float,
    "NUMBER_DOUBLE": float,
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
_ENDED: Final = (
    v1.PipelineState.PIPELINE_STATE_SUCCEEDED,
    v1.PipelineState.PIPELINE_STATE_FAILED,
    v1.PipelineState.PIPELINE_STATE_CANCELLED,
)
_TASK: Final = v1.PipelineTaskDetail.State


class Pipelines:
    """State and handlers of the service; ``jobs`` by name. ``paused`` keeps new runs pending until it is cleared."""

    def __init__(
        self, google: FakeGoogle, place: Place, work: Path, *, storage: str, images: list[str], accounts: list[str]
    ) -> None:
        self.jobs: dict[str, v1.PipelineJob] = {}
        self.images = set(images)
        self.accounts = set(accounts)
        self.paused = False
        self.on_context: Callable[[v1.Context], None] = lambda context: None
        self._google = google
        self._place = place
        self._work = work
        self._storage = storage
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []
        for name, request, handler in (
            ("CreatePipelineJob", v1.CreatePipelineJobRequest, self._create),
            ("GetPipelineJob", v1.GetPipelineJobRequest, self._get),
            ("ListPipelineJobs", v1.ListPipelineJobsRequest, self._list),
            ("CancelPipelineJob", v1.CancelPipelineJobRequest, self._cancel),
        ):
            google.serve(_BasePipelineServiceRestTransport, name, request, handler)

    def submit(self, job: v1.PipelineJob, job_id: str) -> v1.PipelineJob:
        """Check the job and start it, as CreatePipelineJob does (a schedule starts its runs so, too)."""
        self._check(job, job_id)
        name = f"{self._place.parent}/pipelineJobs/{job_id}"
        if name in self.jobs:
            raise Refused("ALREADY_EXISTS", f"PipelineJob {name} already exists.")
        stored = v1.PipelineJob(job)
        stored.name, stored.state, stored.create_time = name, v1.PipelineState.PIPELINE_STATE_PENDING, _now()
        stored.job_detail.pipeline_run_context = v1.Context(
            name=f"{self._place.parent}/metadataStores/default/contexts/{job_id}",
            schema_title="system.PipelineRun",
            schema_version="0.0.1",
        )
        self.on_context(stored.job_detail.pipeline_run_context)
        self.jobs[name] = stored
        if not self.paused:
            self._start(name, job_id)
        return v1.PipelineJob(stored)

    def close(self) -> None:
        """End what runs, and wait for it."""
        with self._google.lock:
            for process in self._processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Until every run that was started has ended."""
        for thread in list(self._threads):
            thread.join()

    # Handlers.

    def _create(self, request: v1.CreatePipelineJobRequest) -> v1.PipelineJob:
        self._place.canonical(request.parent)
        return self.submit(request.pipeline_job, request.pipeline_job_id)

    def _get(self, request: v1.GetPipelineJobRequest) -> v1.PipelineJob:
        return self._find(request.name)

    def _list(self, request: v1.ListPipelineJobsRequest) -> v1.ListPipelineJobsResponse:
        self._place.canonical(request.parent)
        newest = sorted(self.jobs.values(), key=lambda job: job.create_time, reverse=True)
        jobs, token = page(
            [job for job in newest if _matches(job, request.filter)], request.page_size, request.page_token
        )
        return v1.ListPipelineJobsResponse(pipeline_jobs=jobs, next_page_token=token)

    def _cancel(self, request: v1.CancelPipelineJobRequest) -> empty_pb2.Empty:
        job = self._find(request.name)
        if job.state in _ENDED:
            raise Refused("FAILED_PRECONDITION", f"PipelineJob {job.name} has ended already.")
        process = self._processes.get(job.name)
        if process is None:
            job.state, job.end_time = v1.PipelineState.PIPELINE_STATE_CANCELLED, _now()
        else:
            job.state = v1.PipelineState.PIPELINE_STATE_CANCELLING
            os.killpg(process.pid, signal.SIGTERM)  # its steps, too
        return empty_pb2.Empty()

    def _find(self, name: str) -> v1.PipelineJob:
        job = self.jobs.get(self._place.canonical(name))
        if job is None:
            raise Refused("NOT_FOUND", f"PipelineJob {name} does not exist.")
        return job

    # What is refused.

    def _check(self, job: v1.PipelineJob, job_id: str) -> None:
        if not _ID.fullmatch(job_id):
            raise Refused(
                "INVALID_ARGUMENT", f"Invalid pipeline_job_id {job_id!r}: must match [a-z][-a-z0-9]{{0,127}}."
            )
        if not 1 <= len(job.display_name) <= 128:
            raise Refused("INVALID_ARGUMENT", "display_name must be 1 to 128 characters long.")
        problem = label_problem(job.labels)
        if problem:
            raise Refused("INVALID_ARGUMENT", problem)
        if not _EMAIL.fullmatch(job.service_account) or job.service_account not in self.accounts:
            raise Refused(
                "PERMISSION_DENIED",
                f"You do not have permission to act as service_account: {job.service_account}. (or it may not exist)",
            )
        spec = json_format.MessageToDict(v1.PipelineJob.pb(job).pipeline_spec)
        parsed = _parsed(spec)
        for name, executor in unfolded(spec).get("deploymentSpec", {}).get("executors", {}).items():
            image = executor.get("container", {}).get("image", "")
            if "@sha256:" not in image or image not in self.images:
                raise Refused(
                    "INVALID_ARGUMENT", f"{name}: the image {image!r} is not pinned by digest or does not exist."
                )
        runtime = job.runtime_config
        if not re.fullmatch(r"gs://[a-z0-9._-]+(/.*)?", runtime.gcs_output_directory):
            raise Refused("INVALID_ARGUMENT", "runtime_config.gcs_output_directory must be a Cloud Storage address.")
        if runtime.parameters:
            raise Refused("INVALID_ARGUMENT", "runtime_config.parameters is for schema 2.0.0; use parameter_values.")
        _check_parameters(parsed.root.input_definitions.parameters, _arguments(job))

    # Running.

    def _start(self, name: str, job_id: str) -> None:
        job = self.jobs[name]
        request = {
            "spec": unfolded(json_format.MessageToDict(v1.PipelineJob.pb(job).pipeline_spec)),
            "arguments": _arguments(job),
            "root": f"{job.runtime_config.gcs_output_directory.rstrip('/')}/{self._place.number}",
            "run_id": job_id,
            "work": str(self._work),
        }
        thread = threading.Thread(target=self._run, args=(name, json.dumps(request)), name=f"run {job_id}")
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str, request: str) -> None:
        environment = {**os.environ, "STORAGE_EMULATOR_HOST": self._storage, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-m", "tests.fakes.vertex.executor"]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            with self._google.lock:
                self._processes[name] = process
                self.jobs[name].state = v1.PipelineState.PIPELINE_STATE_RUNNING
                self.jobs[name].start_time = _now()
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            errors: list[str] = []
            drain = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
            drain.start()
            process.stdin.write(request)
            process.stdin.close()
            for line in process.stdout:
                with self._google.lock:
                    self._told(self.jobs[name], json.loads(line))
            drain.join()
        with self._google.lock:
            self._ended(self.jobs[name], process.returncode, errors[0])

    def _told(self, job: v1.PipelineJob, event: Mapping[str, Any]) -> None:
        details = job.job_detail.task_details
        detail = next((d for d in details if d.task_id == event["id"]), None)
        if detail is None:
            details.append(v1.PipelineTaskDetail(task_id=event["id"], task_name=event["name"], create_time=_now()))
            detail = details[-1]
        detail.state = _TASK[event["state"]]
        detail.pipeline_task_status.append({"update_time": _now(), "state": detail.state})
        if event["state"] == "RUNNING":
            detail.start_time = _now()
        if event["state"] in ("SUCCEEDED", "FAILED", "SKIPPED", "NOT_TRIGGERED"):
            detail.end_time = _now()
        if event.get("error"):
            detail.error = status_pb2.Status(code=9, message=event["error"])
        for output, artifacts in event.get("outputs", {}).items():
            detail.outputs[output] = v1.PipelineTaskDetail.ArtifactList(
                artifacts=[
                    v1.Artifact(
                        name=f"{self._place.parent}/metadataStores/default/artifacts/{event['id']}-{output}-{index}",
                        uri=artifact["uri"],
                        schema_title=artifact["type"],
                        metadata=artifact["metadata"],
                    )
                    for index, artifact in enumerate(artifacts)
                ]
            )

    def _ended(self, job: v1.PipelineJob, code: int, said: str) -> None:
        job.end_time = _now()
        if job.state == v1.PipelineState.PIPELINE_STATE_CANCELLING:
            job.state = v1.PipelineState.PIPELINE_STATE_CANCELLED
            job.error = status_pb2.Status(code=1, message="The PipelineJob was cancelled by the user.")
        elif code == 0:
            job.state = v1.PipelineState.PIPELINE_STATE_SUCCEEDED
        else:
            job.state = v1.PipelineState.PIPELINE_STATE_FAILED
            failed = [detail.task_name for detail in job.job_detail.task_details if detail.state == _TASK.FAILED]
            why = f"The following tasks failed: {', '.join(failed)}." if failed else said[-2000:]
            job.error = status_pb2.Status(code=9, message=why)
        for detail in job.job_detail.task_details:
            if detail.state in (_TASK.PENDING, _TASK.RUNNING):
                cancelled = job.state == v1.PipelineState.PIPELINE_STATE_CANCELLED
                detail.state = _TASK.CANCELLED if cancelled else _TASK.NOT_TRIGGERED
                detail.end_time = _now()


def _arguments(job: v1.PipelineJob) -> dict[str, Any]:
    runtime = json_format.MessageToDict(v1.PipelineJob.pb(job).runtime_config)
    return dict(runtime.get("parameterValues", {}))


def _parsed(spec: Mapping[str, Any]) -> Any:
    try:
        parsed = json_format.ParseDict(dict(spec), pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
        deployment = json_format.MessageToDict(parsed.deployment_spec)
        json_format.ParseDict(deployment, pipeline_spec_pb2.PipelineDeploymentConfig(), ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise Refused("INVALID_ARGUMENT", f"Failed to parse the pipeline spec: {error}") from error
    return parsed


def _check_parameters(definitions: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in definitions:
            raise Refused("INVALID_ARGUMENT", f"Parameter {name} is not an input of the pipeline.")
        kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(definitions[name].parameter_type)
        if not isinstance(value, _TYPES[kind]) or (kind == "NUMBER_INTEGER" and value != int(value)):
            raise Refused("INVALID_ARGUMENT", f"Parameter {name} is {value!r}, which is no {kind}.")
    for name, definition in definitions.items():
        if name not in given and not definition.HasField("default_value") and not definition.is_optional:
            raise Refused("INVALID_ARGUMENT", f"Parameter {name} is required and missing.")


def _matches(job: v1.PipelineJob, wanted: str) -> bool:
    """The kinds of filter that are asked: labels.key=value, pipeline_name and state, joined by AND."""
    said = {f"labels.{key}": value for key, value in job.labels.items()}
    said |= {"pipeline_name": dict(job.pipeline_spec["pipelineInfo"])["name"], "state": job.state.name}
    for part in filter(None, wanted.split(" AND ")):
        found = re.fullmatch(r'(labels\.[a-z0-9_-]+|pipeline_name|state)="?([^"]*)"?', part.strip())
        if found is None:
            raise Refused("INVALID_ARGUMENT", f"Invalid filter: {part}")
        if said.get(found[1]) != found[2]:
            return False
    return True


def _now() -> datetime:
    return datetime.now(UTC)
