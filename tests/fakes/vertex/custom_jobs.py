"""Steps that are custom jobs, run as Vertex runs them: what the launcher's payload names, not the launcher."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format

from tests.fakes.google import Refused

__all__ = ["LAUNCHER", "custom_jobs", "unfolded"]

LAUNCHER: Final = "google_cloud_pipeline_components.container.v1.custom_job.launcher"
_INPUT: Final = re.compile(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}")
_EMPTY: Final = {"LIST": [], "STRUCT": {}}


def custom_jobs(spec: Mapping[str, Any]) -> dict[str, v1.CustomJob]:
    """The custom job of every step that is one, from the defaults of its parameters; refused where it can be none."""
    found = {}
    for name, executor in spec.get("deploymentSpec", {}).get("executors", {}).items():
        if LAUNCHER in executor.get("container", {}).get("command", []):
            found[name] = _job(name, executor["container"], _inputs(spec, name))
    return found


def unfolded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with every custom job as a step of its own container, which the local runner can run."""
    plain = copy.deepcopy(dict(spec))
    for name, job in custom_jobs(spec).items():
        container = job.job_spec.worker_pool_specs[0].container_spec
        plain["deploymentSpec"]["executors"][name]["container"] = {
            "image": container.image_uri,
            "command": list(container.command),
            "args": ["{{$}}" if word == "{{$.json_escape[1]}}" else word for word in container.args],
        }
        component = plain["components"][_component(name)]
        launchers = set(_INPUT.findall(json.dumps(spec["deploymentSpec"]["executors"][name]["container"])))
        for parameter in launchers:
            del component["inputDefinitions"]["parameters"][parameter]
        del component["outputDefinitions"]["parameters"]
    return plain


def _job(name: str, container: Mapping[str, Any], inputs: Mapping[str, Any]) -> v1.CustomJob:
    def value(matched: re.Match[str]) -> str:
        definition = inputs[matched[1]]
        given = definition.get("defaultValue", _EMPTY.get(definition["parameterType"], ""))
        return given if isinstance(given, str) else json.dumps(given)

    payload = container["args"][container["args"].index("--payload") + 1]
    job = v1.CustomJob()
    try:
        json_format.ParseDict(json.loads(_INPUT.sub(value, payload)), v1.CustomJob.pb(job))
    except (ValueError, json_format.ParseError) as error:
        raise Refused("INVALID_ARGUMENT", f"{name}: the custom job cannot be read: {error}") from error
    pools = job.job_spec.worker_pool_specs
    if len(pools) != 1 or not pools[0].container_spec.image_uri or not pools[0].machine_spec.machine_type:
        raise Refused("INVALID_ARGUMENT", f"{name}: a worker pool needs a machine type and an image.")
    if not job.display_name or job.job_spec.scheduling.timeout.total_seconds() <= 0.0:
        raise Refused("INVALID_ARGUMENT", f"{name}: a custom job needs a display name and a timeout.")
    return job


def _inputs(spec: Mapping[str, Any], executor: str) -> dict[str, Any]:
    return dict(spec["components"][_component(executor)]["inputDefinitions"]["parameters"])


def _component(executor: str) -> str:
    return executor.replace("exec-", "comp-", 1)
