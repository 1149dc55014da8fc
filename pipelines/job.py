"""Reading a run that Vertex executes: its steps, its verdict, what it released, and the record of it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format

from layer3.market import sources
from pipelines import spec as specs
from pipelines.manifest import SCHEMA

__all__ = ["ENDED", "StepState", "ended", "manifest", "released", "run_id_of", "state_of", "steps", "verdict"]

_State = v1.PipelineTaskDetail.State
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
#: Vertex's words for a step's state, as this project's records have them. Vertex skips what it finds in its cache.
_WORDS: Final = {
    _State.STATE_UNSPECIFIED: "PENDING",
    _State.PENDING: "PENDING",
    _State.RUNNING: "RUNNING",
    _State.SUCCEEDED: "SUCCEEDED",
    _State.CANCEL_PENDING: "CANCELLING",
    _State.CANCELLING: "CANCELLING",
    _State.CANCELLED: "CANCELLED",
    _State.FAILED: "FAILED",
    _State.SKIPPED: "CACHED",
    _State.NOT_TRIGGERED: "SKIPPED",
}
#: Of a loop's iterations the first of these that one is in is the step's.
_WORST: Final = (
    "FAILED",
    "CANCELLED",
    "CANCELLING",
    "RUNNING",
    "PENDING",
    "SUCCEEDED",
    "CACHED",
    "SKIPPED",
)


@dataclass(frozen=True, slots=True)
class StepState:
    """One step, all its iterations together; ``seconds`` is None until it has ended."""

    name: str
    display_name: str
    component: str
    depends_on: tuple[str, ...]
    state: str
    done: int
    tasks: int
    started: str | None
    ended: str | None
    seconds: float | None
    error: str | None


def run_id_of(job: v1.PipelineJob) -> str:
    """The last part of the job's name."""
    return str(job.name.rsplit("/", 1)[-1])


def state_of(job: v1.PipelineJob) -> str:
    """The job's state in one word: QUEUED, PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLING, CANCELLED or PAUSED."""
    return str(v1.PipelineState(job.state).name.removeprefix("PIPELINE_STATE_"))


def ended(job: v1.PipelineJob) -> bool:
    """Whether nothing more will happen."""
    return state_of(job) in ENDED


def steps(job: v1.PipelineJob) -> list[StepState]:
    """Every step of the spec in its order, as far as it has come."""
    by_name: dict[str, list[v1.PipelineTaskDetail]] = {}
    for detail in job.job_detail.task_details:
        by_name.setdefault(detail.task_name, []).append(detail)
    return [_step(leaf, by_name.get(leaf.name, [])) for leaf in specs.leaves(_spec(job))]


def verdict(job: v1.PipelineJob) -> dict[str, Any] | None:
    """What the gate said: passed, criteria, limits, override; None where it did not get to speak."""
    said = _metadata(job, "gate", "verdict")
    return {name: said.get(name) for name in ("passed", "criteria", "limits", "override")} if said else None


def released(job: v1.PipelineJob) -> dict[str, Any] | None:
    """The policy that the run put into service, if it did."""
    said = _metadata(job, "deploy", "released")
    if not said:
        return None
    artifact = _artifact(job, "deploy", "released")
    return {"model_id": said.get("model_id"), "policy_sha256": said.get("policy_sha256"), "uri": artifact.uri}


def manifest(job: v1.PipelineJob) -> dict[str, Any]:
    """The run's record, as a run on this machine writes it to ``runs/<run id>/manifest.json``."""
    spec, states = _spec(job), steps(job)
    runtime = json_format.MessageToDict(v1.PipelineJob.pb(job).runtime_config)
    parameters = specs.defaults(spec) | runtime.get("parameterValues", {})
    ran = {step.name for step in states if step.state in ("SUCCEEDED", "CACHED")}
    commit = job.labels.get("git_commit", "")
    return {
        "schema": SCHEMA,
        "run_id": run_id_of(job),
        "pipeline": spec["pipelineInfo"]["name"],
        "status": state_of(job),
        "started": _iso(job.start_time or job.create_time),
        "ended": _iso(job.end_time),
        "seconds": _seconds(job.start_time or job.create_time, job.end_time),
        "parameters": parameters,
        "synthetic": sources.is_synthetic(parameters["data"]),
        "versions": {},
        "git": {"commit": commit.removesuffix("-dirty") or None, "dirty": commit.endswith("-dirty")},
        "source_sha256": job.labels.get("source"),
        "spec_sha256": hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest(),
        "steps": [_record(step, job) for step in states],
        "verdict": verdict(job),
        "branch": next((name for name in ("deploy", "reject") if name in ran), None),
        "released": released(job),
        "error": job.error.message or None,
    }


def _step(leaf: specs.Leaf, details: Sequence[v1.PipelineTaskDetail]) -> StepState:
    states = [_WORDS[detail.state] for detail in details] or ["PENDING"]
    over = [detail for detail in details if detail.end_time]
    whole = bool(details) and len(over) == len(details)
    began = [detail.start_time for detail in details if detail.start_time]
    start, end = min(began, default=None), max((d.end_time for d in over), default=None) if whole else None
    return StepState(
        name=leaf.name,
        display_name=leaf.display_name,
        component=leaf.component,
        depends_on=leaf.depends_on,
        state=next(word for word in _WORST if word in states),
        done=len(over),
        tasks=len(details),
        started=_iso(start),
        ended=_iso(end),
        seconds=_seconds(start, end),
        error=next((detail.error.message for detail in details if detail.error.message), None),
    )


def _record(step: StepState, job: v1.PipelineJob) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for detail in (d for d in job.job_detail.task_details if d.task_name == step.name):
        for name, found in detail.outputs.items():
            for artifact in found.artifacts:
                key = name if name not in outputs else f"{name}-{1 + sum(k.split('-')[0] == name for k in outputs)}"
                outputs[key] = {
                    "uri": artifact.uri,
                    "type": artifact.schema_title or None,
                    "metadata": json_format.MessageToDict(v1.Artifact.pb(artifact).metadata),
                }
    nothing: dict[str, Any] = {"parameters": {}, "artifacts": {}}
    return {
        "name": step.name,
        "display_name": step.display_name,
        "component": step.component,
        "status": step.state,
        "started": step.started,
        "ended": step.ended,
        "seconds": step.seconds,
        "depends_on": list(step.depends_on),
        "inputs": nothing,
        "outputs": {"parameters": {}, "artifacts": outputs},
        "error": step.error,
    }


def _artifact(job: v1.PipelineJob, step: str, output: str) -> Any:
    for detail in job.job_detail.task_details:
        if detail.task_name == step and output in detail.outputs and detail.outputs[output].artifacts:
            return detail.outputs[output].artifacts[0]
    return None


def _metadata(job: v1.PipelineJob, step: str, output: str) -> Mapping[str, Any]:
    artifact = _artifact(job, step, output)
    return {} if artifact is None else json_format.MessageToDict(v1.Artifact.pb(artifact).metadata)


def _spec(job: v1.PipelineJob) -> dict[str, Any]:
    return dict(json_format.MessageToDict(v1.PipelineJob.pb(job).pipeline_spec))


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return round((end - start).total_seconds(), 3) if start and end else None
