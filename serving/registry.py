"""Policies in the Vertex Model Registry: one model per market, one version per policy.

Two aliases move: ``candidate`` to the newest policy that the gate let through, ``champion`` (and Vertex's own
``default``, which a deployment takes when it names no version) to the one that serves. A policy that the gate
refused is registered only if asked, under the label ``verdict=rejected`` and without an alias.

Everything here may be done again: a policy is found by its sha256, which is a label of its version.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from layer3 import storage
from layer3.errors import ConfigurationError, ReleaseError, SourceError
from serving.models import store_policy
from serving.versions import REJECTED, Candidate, Version
from serving.vertex import SECONDS, Place, Waiter, asked, client, label

__all__ = ["CANDIDATE", "CHAMPION", "container_spec", "promote", "record", "version_of"]

CANDIDATE: Final = "candidate"
CHAMPION: Final = "champion"
PREDICT_ROUTE: Final = "/predict"
HEALTH_ROUTE: Final = "/health"
PORT: Final = 8080
_DEFAULT: Final = "default"
#: Seconds that Vertex may take to make a version.
_PATIENCE: Final = 600.0
_PINNED: Final = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")


def record(
    place: Place,
    candidate: Candidate,
    folder: Path,
    *,
    uri: str,
    store: str,
    image: str,
    rejected_too: bool,
    sleep: Waiter = time.sleep,
    patience_seconds: float = _PATIENCE,
) -> Version:
    """Register the policy in ``folder`` as it was judged; the version, or why there is none.

    Parameters
    ----------
    uri : the folder's own address, which is a rejected policy's; another's copy is put into ``store`` below models/
    image : what serves it, pinned by digest
    rejected_too : whether a rejected policy is registered

    Raises
    ------
    ConfigurationError : the image is not pinned
    SourceError, RefusedError : as :func:`serving.vertex.asked`
    """
    from google.api_core.exceptions import NotFound

    if not _PINNED.fullmatch(image):
        raise ConfigurationError(
            f"serving_image is {image!r}; the registry needs it pinned by digest, name@sha256:<64 hexadecimal digits>, "
            "as build/images.json has it: build the images and start the run again"
        )
    uri = uri if candidate.rejected else store_policy(folder, store).uri
    registry = _Registry(place, candidate, patience_seconds)
    container = container_spec(image, uri)
    try:
        return asked(
            f"register {candidate.model_id}",
            lambda: registry.recorded(container, uri, rejected_too=rejected_too),
            sleep=sleep,
        )
    except NotFound as error:
        raise SourceError(
            f"{candidate.model_id} was not registered: what the registry held of its market was deleted meanwhile; "
            "run the step again"
        ) from error


def container_spec(image: str, uri: str) -> dict[str, Any]:
    """How the policy at ``uri`` is served by ``image``, as the artifact type UnmanagedContainerModel words it."""
    # A deployment from the registry starts behind Vertex's own sign-in, which asks for no other.
    return _container(image, {"MODEL_URI": uri, "AUTH": "off"})


def promote(place: Place, name: str, *, sleep: Waiter = time.sleep) -> str:
    """Give the version ``name`` (``projects/…/models/…@version``) the alias champion; a sentence that says so.

    Raises
    ------
    ReleaseError : there is no such version, or it was rejected
    SourceError, RefusedError : as :func:`serving.vertex.asked`
    """
    from google.api_core.exceptions import NotFound

    try:
        return asked(f"make {name} the champion", lambda: _promoted(place, name), sleep=sleep)
    except NotFound as error:
        raise ReleaseError(f"{name} is not in the registry any more: run the pipeline again to register it") from error


def version_of(place: Place, symbol: str, policy_sha256: str, *, sleep: Waiter = time.sleep) -> str | None:
    """The full name of the version of this market that holds this policy, or None."""
    from google.cloud.aiplatform_v1 import ModelServiceClient

    base = f"{place.parent}/models/{_registry_id(symbol)}"

    def find() -> str | None:
        versions = _versions(client(ModelServiceClient, place), base)
        return next((_full(base, one) for one in versions if one.labels["policy"] == label(policy_sha256)), None)

    return asked("look into the model registry", find, sleep=sleep)


class _Registry:
    """One candidate before the registry of one place."""

    def __init__(self, place: Place, candidate: Candidate, patience_seconds: float) -> None:
        from google.cloud import aiplatform_v1

        self._types = aiplatform_v1
        self._client = client(aiplatform_v1.ModelServiceClient, place)
        self._place = place
        self._candidate = candidate
        self._patience = patience_seconds
        self._id = _registry_id(candidate.symbol)
        self._base = f"{place.parent}/models/{self._id}"

    def recorded(self, container: Mapping[str, Any], uri: str, *, rejected_too: bool) -> Version:
        candidate = self._candidate
        versions = _versions(self._client, self._base)
        known = next((one for one in versions if one.labels["policy"] == label(candidate.policy_sha256)), None)
        if known is not None:
            return self._judged_again(known)
        if candidate.rejected and not rejected_too:
            return Version(f"{candidate.model_id} is not registered: the gate refused it (register_rejected is off)")
        if candidate.rejected and not versions:
            return Version(
                f"{candidate.model_id} is not registered: the gate refused it, and a model's first version is what is "
                "deployed by default"
            )
        before = versions[-1] if versions else None
        return self._uploaded(before, container, uri)

    def _uploaded(self, before: Any, container: Mapping[str, Any], uri: str) -> Version:
        candidate, types = self._candidate, self._types
        parent = before.version_id if before is not None else ""
        model = types.Model(
            display_name=f"HIMARI sizing policy {candidate.symbol}",
            description=f"How much of a signal on {candidate.symbol} to hold, as a multiplier in [0, 2].",
            version_description=self._description(parent),
            labels=self._labels(parent),
            container_spec=types.ModelContainerSpec(
                image_uri=container["imageUri"],
                env=[types.EnvVar(name=one["name"], value=one["value"]) for one in container["env"]],
                ports=[types.Port(container_port=one["containerPort"]) for one in container["ports"]],
                predict_route=container["predictRoute"],
                health_route=container["healthRoute"],
            ),
            artifact_uri=uri if storage.is_remote(uri) else "",
            pipeline_job=f"{self._place.parent}/pipelineJobs/{candidate.run_id}",
        )
        where = {"parent_model": self._base} if before is not None else {"model_id": self._id}
        request = types.UploadModelRequest(parent=self._place.parent, model=model, **where)
        operation = self._client.upload_model(request=request, timeout=SECONDS)
        made = operation.result(timeout=self._patience)
        name = f"{self._base}@{made.model_version_id}"
        if not candidate.rejected:
            self._client.merge_version_aliases(name=name, version_aliases=[CANDIDATE], timeout=SECONDS)
        follows = f", after version {parent}" if parent else ""
        return self._version(name, parent, container, f"registered as version {made.model_version_id}{follows}")

    def _judged_again(self, known: Any) -> Version:
        """The version that holds this very policy, labelled as it was judged now."""
        candidate, name = self._candidate, _full(self._base, known)
        parent = known.labels["parent_version"]
        if dict(known.labels) != self._labels(parent):
            model = self._types.Model(
                name=name,
                etag=known.etag,
                labels=self._labels(parent),
                version_description=self._description(parent),
            )
            mask = {"paths": ["labels", "version_description"]}
            self._client.update_model(model=model, update_mask=mask, timeout=SECONDS)
        aliases = {CANDIDATE} & set(known.version_aliases)
        if candidate.rejected and aliases:
            self._client.merge_version_aliases(name=name, version_aliases=[f"-{CANDIDATE}"], timeout=SECONDS)
        if not candidate.rejected and not aliases:
            self._client.merge_version_aliases(name=name, version_aliases=[CANDIDATE], timeout=SECONDS)
        spec = known.container_spec
        container = _container(spec.image_uri, {one.name: one.value for one in spec.env})
        return self._version(name, parent, container, f"is version {known.version_id} already, and labelled anew")

    def _version(self, name: str, parent: str, container: Mapping[str, Any], what: str) -> Version:
        candidate = self._candidate
        return Version(
            sentence=f"{candidate.model_id} {what} of {self._id} ({candidate.verdict})",
            name=name,
            uri=f"{self._place.address}/v1/{name}",
            verdict=candidate.verdict,
            parent=f"{self._base}@{parent}" if parent else "",
            container=container,
        )

    def _labels(self, parent: str) -> dict[str, str]:
        candidate = self._candidate
        return {
            "policy": label(candidate.policy_sha256),
            "data": label(candidate.data_sha256),
            "contract": label(candidate.contract),
            "run": label(candidate.run_id),
            "verdict": candidate.verdict,
            "synthetic": str(candidate.synthetic).lower(),
            "parent_version": parent,
        }

    def _description(self, parent: str) -> str:
        candidate = self._candidate
        follows = f" Follows version {parent}." if parent else " The first version."
        kind = " SYNTHETIC market." if candidate.synthetic else ""
        return f"{candidate.model_id} of run {candidate.run_id}: {candidate.sentence}.{follows}{kind}"


def _promoted(place: Place, name: str) -> str:
    from google.cloud.aiplatform_v1 import ModelServiceClient

    models = client(ModelServiceClient, place)
    version = models.get_model(name=name, timeout=SECONDS)
    if version.labels["verdict"] == REJECTED:
        raise ReleaseError(f"{name} was rejected by the gate: it does not become the champion")
    if not {CHAMPION, _DEFAULT} <= set(version.version_aliases):
        # An alias has one version: it leaves the champion before.
        models.merge_version_aliases(name=name, version_aliases=[CHAMPION, _DEFAULT], timeout=SECONDS)
    return f"{name} is the champion in the model registry"


def _versions(models: Any, base: str) -> list[Any]:
    """Every version of the model ``base``, the oldest first; none where there is no such model."""
    from google.api_core.exceptions import NotFound

    try:
        found = list(models.list_model_versions(name=base, timeout=SECONDS))
    except NotFound:
        return []
    return sorted(found, key=lambda one: int(one.version_id))


def _full(base: str, version: Any) -> str:
    return f"{base}@{version.version_id}"


def _registry_id(symbol: str) -> str:
    """The registry's model of a market."""
    return f"himari-{label(symbol)}"[:63]


def _container(image: str, environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "imageUri": image,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"containerPort": PORT}],
        "predictRoute": PREDICT_ROUTE,
        "healthRoute": HEALTH_ROUTE,
    }
