"""The Vertex Model Registry on this machine: models, their versions, and the aliases that move between them."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.model_service.transports.rest_base import _BaseModelServiceRestTransport
from google.longrunning import operations_pb2

from tests.fakes.google import FakeGoogle, Refused, label_problem, page

if TYPE_CHECKING:
    from tests.fakes.vertex.server import Place

__all__ = ["Models"]

_ID: Final = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_ALIAS: Final = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MUTABLE: Final = {"display_name", "description", "labels", "version_description"}
#: Of the fields that the service fills, those that a client must not.
_OUTPUT_ONLY: Final = ("version_id", "create_time", "version_create_time", "deployed_models")


class Models:
    """State and handlers of the service; ``versions`` of each model by its full name, the oldest first."""

    def __init__(self, google: FakeGoogle, place: Place, *, images: list[str]) -> None:
        self.versions: dict[str, list[v1.Model]] = {}
        self.images = set(images)
        self._google = google
        self._place = place
        for name, request, handler in (
            ("UploadModel", v1.UploadModelRequest, self._upload),
            ("GetModel", v1.GetModelRequest, self._get),
            ("ListModels", v1.ListModelsRequest, self._list),
            ("ListModelVersions", v1.ListModelVersionsRequest, self._list_versions),
            ("UpdateModel", v1.UpdateModelRequest, self._update),
            ("MergeVersionAliases", v1.MergeVersionAliasesRequest, self._merge),
        ):
            google.serve(_BaseModelServiceRestTransport, name, request, handler)

    def aliases(self, model_id: str) -> dict[str, str]:
        """Which version of the model has each alias."""
        found = self.versions.get(f"{self._place.parent}/models/{model_id}", [])
        return {alias: one.version_id for one in found for alias in one.version_aliases}

    def _upload(self, request: v1.UploadModelRequest) -> operations_pb2.Operation:
        parent = self._place.canonical(request.parent)
        self._check(request.model)
        name = self._where(request, parent)

        def work() -> v1.UploadModelResponse:
            with self._google.lock:
                version = self._add(name, request.model)
            return v1.UploadModelResponse(model=name, model_version_id=version)

        return self._google.operation(name, work)

    def _where(self, request: v1.UploadModelRequest, parent: str) -> str:
        if request.parent_model and request.model_id:
            raise Refused("INVALID_ARGUMENT", "parent_model and model_id cannot both be set.")
        if request.parent_model:
            name = self._place.canonical(request.parent_model)
            if name not in self.versions:
                raise Refused("NOT_FOUND", f"Model {name} does not exist.")
            return name
        model_id = request.model_id or str(secrets.randbits(60))
        if request.model_id and not _ID.fullmatch(model_id):
            raise Refused("INVALID_ARGUMENT", f"model_id {model_id!r} must match {_ID.pattern}.")
        name = f"{parent}/models/{model_id}"
        if name in self.versions:
            raise Refused("ALREADY_EXISTS", f"Model {name} already exists.")
        return name

    def _check(self, model: v1.Model) -> None:
        problem = label_problem(model.labels)
        if not 1 <= len(model.display_name) <= 128:
            problem = "display_name must be 1 to 128 characters long."
        spec = model.container_spec
        if not spec.image_uri:
            problem = "container_spec.image_uri is required."
        elif "@sha256:" not in spec.image_uri or spec.image_uri not in self.images:
            problem = f"The image {spec.image_uri!r} is not pinned by digest or does not exist."
        elif any(route and not route.startswith("/") for route in (spec.predict_route, spec.health_route)):
            problem = "A route must begin with /."
        elif any(not _ENV.fullmatch(one.name) for one in spec.env):
            problem = "The name of an environment variable must be a C identifier."
        elif any(not 0 < one.container_port < 65_536 for one in spec.ports):
            problem = "A container port must be in [1, 65535]."
        if model.artifact_uri and not re.fullmatch(r"gs://[a-z0-9._-]+/.+", model.artifact_uri):
            problem = "artifact_uri must be a Cloud Storage directory."
        if any(not _ALIAS.fullmatch(alias) for alias in model.version_aliases):
            problem = f"An alias must match {_ALIAS.pattern}."
        if any(field in model for field in _OUTPUT_ONLY):
            problem = "A field that only the service fills was given."
        if model.pipeline_job and not re.fullmatch(
            r"projects/[^/]+/locations/[^/]+/pipelineJobs/[^/]+", model.pipeline_job
        ):
            problem = f"pipeline_job {model.pipeline_job!r} is not the name of a pipeline job."
        if problem:
            raise Refused("INVALID_ARGUMENT", problem)

    def _add(self, name: str, model: v1.Model) -> str:
        versions = self.versions.setdefault(name, [])
        stored = v1.Model(model)
        stored.name = name
        stored.version_id = str(len(versions) + 1)
        stored.create_time = stored.version_create_time = datetime.now(UTC)
        wanted = {*model.version_aliases, *([] if versions else ["default"])}
        stored.version_aliases = []
        versions.append(_stamped(stored))
        self._move(name, stored, wanted)
        return stored.version_id

    def _move(self, name: str, version: v1.Model, aliases: set[str]) -> None:
        for other in self.versions[name]:
            if other is not version and aliases & set(other.version_aliases):
                other.version_aliases = sorted(set(other.version_aliases) - aliases)
                _stamped(other)
        version.version_aliases = sorted({*version.version_aliases, *aliases})
        _stamped(version)

    def _get(self, request: v1.GetModelRequest) -> v1.Model:
        return _named(self._find(request.name))

    def _list(self, request: v1.ListModelsRequest) -> v1.ListModelsResponse:
        self._place.canonical(request.parent)
        if request.filter:
            raise Refused("INVALID_ARGUMENT", f"Invalid filter: {request.filter}")
        models, token = page(
            [self._find(name) for name in sorted(self.versions)], request.page_size, request.page_token
        )
        return v1.ListModelsResponse(models=models, next_page_token=token)

    def _list_versions(self, request: v1.ListModelVersionsRequest) -> v1.ListModelVersionsResponse:
        name = self._place.canonical(request.name)
        if name not in self.versions:
            raise Refused("NOT_FOUND", f"Model {name} does not exist.")
        if request.filter:
            raise Refused("INVALID_ARGUMENT", f"Invalid filter: {request.filter}")
        models, token = page(
            [_named(one) for one in reversed(self.versions[name])], request.page_size, request.page_token
        )
        return v1.ListModelVersionsResponse(models=models, next_page_token=token)

    def _update(self, request: v1.UpdateModelRequest) -> v1.Model:
        version = self._find(request.model.name)
        if request.model.etag and request.model.etag != version.etag:
            raise Refused("ABORTED", f"Etag {request.model.etag} of {version.name} is stale.")
        unknown = set(request.update_mask.paths) - _MUTABLE
        if unknown or not request.update_mask.paths:
            raise Refused("INVALID_ARGUMENT", f"update_mask cannot hold {sorted(unknown) or 'nothing'}.")
        problem = label_problem(request.model.labels)
        if problem:
            raise Refused("INVALID_ARGUMENT", problem)
        for path in request.update_mask.paths:
            setattr(version, path, getattr(request.model, path))
        return _named(_stamped(version))

    def _merge(self, request: v1.MergeVersionAliasesRequest) -> v1.Model:
        if not re.fullmatch(r".*/models/[^/@]+@\d+", request.name):
            raise Refused("INVALID_ARGUMENT", f"{request.name} must name a version by its id.")
        version = self._find(request.name)
        added = {alias for alias in request.version_aliases if not alias.startswith("-")}
        removed = {alias[1:] for alias in request.version_aliases if alias.startswith("-")}
        if not added | removed or any(not _ALIAS.fullmatch(alias) for alias in added | removed):
            raise Refused("INVALID_ARGUMENT", f"Every alias must match {_ALIAS.pattern}.")
        if added & removed:
            raise Refused("INVALID_ARGUMENT", "An alias cannot be added and removed at once.")
        if "default" in removed:
            raise Refused("FAILED_PRECONDITION", "One version must have the alias default: give it to another one.")
        if not removed <= set(version.version_aliases):
            raise Refused("INVALID_ARGUMENT", f"{request.name} has no alias {', '.join(sorted(removed))}.")
        version.version_aliases = sorted(set(version.version_aliases) - removed)
        self._move(version.name, version, added)
        return _named(version)

    def _find(self, name: str) -> v1.Model:
        base, _, wanted = self._place.canonical(name).partition("@")
        wanted = wanted or "default"
        for version in self.versions.get(base, []):
            if wanted in (version.version_id, *version.version_aliases):
                return version
        raise Refused("NOT_FOUND", f"Model {name} does not exist.")


def _named(version: v1.Model) -> v1.Model:
    """The version as it is answered: its name has its id."""
    answer = v1.Model(version)
    answer.name = f"{version.name}@{version.version_id}"
    return answer


def _stamped(version: v1.Model) -> v1.Model:
    version.etag = secrets.token_hex(8)
    version.update_time = version.version_update_time = datetime.now(UTC)
    return version
