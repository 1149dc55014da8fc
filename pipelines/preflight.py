"""What must be there before a run is submitted: every thing that is missing, each with the one command that makes it.

All are looked at before anything is said, so that nobody meets them one at a time. Where the project itself cannot be
seen there is nothing more to ask.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.transport.requests import AuthorizedSession
from google.cloud import resourcemanager_v3

from layer3.errors import ConfigurationError, RefusedError
from pipelines import grants
from serving.cloud import Cloud, Images
from serving.vertex import SECONDS, Waiter, asked

__all__ = ["APIS", "Missing", "images_of", "missing"]

#: What a run uses: its steps, its images, its files, its logs, its release, its canary, and these very checks.
APIS: Final = (
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
)
_IMAGE: Final = re.compile(
    r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[a-z][a-z0-9-]+)/(?P<repository>[a-z0-9-]+)/"
    r"(?P<image>[\w./-]+)@(?P<digest>sha256:[0-9a-f]{64})"
)
#: What a service holds until its first release.
_HELLO: Final = "us-docker.pkg.dev/cloudrun/container/hello"
_LOGIN: Final = "gcloud auth application-default login"


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that is missing, in a sentence, and the command that fixes it."""

    what: str
    fix: str


def images_of(spec: Mapping[str, Any]) -> list[str]:
    """The image of every step, or of the machines of a step that is a custom job."""
    found = []
    for name, executor in spec["deploymentSpec"]["executors"].items():
        pools = _parameters(spec, name).get("worker_pool_specs", {}).get("defaultValue")
        found += [pool["container_spec"]["image_uri"] for pool in pools or ()] or [executor["container"]["image"]]
    return found


def missing(
    cloud: Cloud, images: Images | None, spec: Mapping[str, Any], *, sleep: Waiter = time.sleep
) -> list[Missing]:
    """Everything that a run in ``cloud`` would miss; nothing is changed by asking.

    ``images`` is what the last build pushed (None if there was none), ``spec`` the compiled pipeline.

    Raises
    ------
    SourceError : a service did not answer
    """
    found = list(_images_missing(cloud, images, images_of(spec)))
    try:
        project = _Project(cloud, sleep)
        number = project.number()
    except ConfigurationError:
        return [*found, Missing("this machine has no Google credentials", _LOGIN)]
    except RefusedError as error:
        return [*found, _no_project(cloud, error)]
    checks: list[Callable[[], Iterator[Missing]]] = [
        project.apis,
        lambda: project.bucket(number),
        lambda: project.pushed(images),
        lambda: project.accounts(as_itself=_has_custom_job(spec)),
    ]
    for check in checks:
        try:
            found += check()
        except RefusedError as error:
            found.append(_may_not_look(cloud, error))
    # One cause may show in several places.
    return list(dict.fromkeys(found))


def _has_custom_job(spec: Mapping[str, Any]) -> bool:
    return any("worker_pool_specs" in _parameters(spec, name) for name in spec["deploymentSpec"]["executors"])


def _parameters(spec: Mapping[str, Any], executor: str) -> Mapping[str, Any]:
    inputs = spec["components"][executor.replace("exec-", "comp-", 1)].get("inputDefinitions", {})
    return dict(inputs.get("parameters", {}))


def _no_project(cloud: Cloud, error: RefusedError) -> Missing:
    cause = error.__cause__
    if not isinstance(cause, exceptions.GoogleAPICallError) or cause.code == 401:
        return Missing(f"this machine's Google credentials do not work ({cause})", _LOGIN)
    if _reason(cause) == "SERVICE_DISABLED":
        return _may_not_look(cloud, error)
    return Missing(
        f"there is no project {cloud.project}, or this account may not see it (correct `project` if it is mistyped)",
        f"gcloud projects create {cloud.project}",
    )


def _may_not_look(cloud: Cloud, error: RefusedError) -> Missing:
    cause = error.__cause__
    if isinstance(cause, exceptions.GoogleAPICallError) and _reason(cause) == "SERVICE_DISABLED":
        service = str((cause.metadata or {}).get("service", "serviceusage.googleapis.com"))
        return Missing(f"the API {service} is not enabled", _enable(cloud, [service]))
    return Missing(
        f"this account may not look whether all is there ({cause})",
        grants.in_project(cloud.project, grants.ME, "roles/iam.securityReviewer"),
    )


def _reason(error: exceptions.GoogleAPICallError) -> str:
    return str(error.reason or "")


def _build(cloud: Cloud) -> str:
    repository = f"{cloud.region}-docker.pkg.dev/{cloud.project}/{cloud.service or 'himari'}"
    return f"make images REPOSITORY={repository} STORE={cloud.store}"


def _enable(cloud: Cloud, services: Sequence[str]) -> str:
    return f"gcloud services enable {' '.join(services)} --project={cloud.project}"


def _images_missing(cloud: Cloud, images: Images | None, spec_images: Sequence[str]) -> Iterator[Missing]:
    if images is None:
        yield Missing(f"no image was built yet: there is no {cloud.images_file}", _build(cloud))
    elif set(spec_images) != {images.components}:
        runs_on = ", ".join(sorted(set(spec_images)))
        yield Missing(
            f"the pipeline was compiled for {runs_on}, the last build pushed {images.components}",
            f"the same command with IMAGE={cloud.images_file}",
        )


class _Project:
    """Asks the services of one project."""

    def __init__(self, cloud: Cloud, sleep: Waiter) -> None:
        self._cloud = cloud
        self._sleep = sleep
        credentials = cloud.credentials()
        self._session = AuthorizedSession(credentials)
        options = ClientOptions(api_endpoint=cloud.endpoints.resource_manager or "cloudresourcemanager.googleapis.com")
        self._projects = resourcemanager_v3.ProjectsClient(
            credentials=credentials, transport="rest", client_options=options
        )

    def number(self) -> str:
        """The project's number; a RefusedError where it is not seen."""
        name = f"projects/{self._cloud.project}"
        try:
            found = asked(
                "see the project",
                lambda: self._projects.get_project(name=name, timeout=SECONDS, retry=None),
                sleep=self._sleep,
                service="Resource Manager",
            )
        except exceptions.NotFound as error:
            raise RefusedError(f"there is no project {self._cloud.project}") from error
        return str(found.name.removeprefix("projects/"))

    def apis(self) -> Iterator[Missing]:
        parent = f"projects/{self._cloud.project}"
        names = [("names", f"{parent}/services/{api}") for api in APIS]
        host = self._cloud.endpoints.services or "https://serviceusage.googleapis.com"
        said = self._ask("see which APIs are enabled", "GET", f"{host}/v1/{parent}/services:batchGet", params=names)
        enabled = {service["config"]["name"] for service in said.get("services", []) if service["state"] == "ENABLED"}
        absent = [api for api in APIS if api not in enabled]
        if absent:
            yield Missing(f"not enabled in {self._cloud.project}: {', '.join(absent)}", _enable(self._cloud, absent))

    def bucket(self, number: str) -> Iterator[Missing]:
        cloud, bucket = self._cloud, self._cloud.bucket
        at = f"{cloud.endpoints.storage or 'https://storage.googleapis.com'}/storage/v1/b/{bucket}"
        make = (
            f"gcloud storage buckets create gs://{bucket} --project={cloud.project} --location={cloud.region} "
            "--uniform-bucket-level-access --public-access-prevention"
        )
        try:
            found = self._ask("see the bucket", "GET", at)
        except exceptions.NotFound:
            yield Missing(f"there is no bucket gs://{bucket}", make)
            return
        if str(found.get("projectNumber")) != number:
            # Whoever made a bucket of a name that can be guessed would get our files.
            yield Missing(
                f"the bucket gs://{bucket} belongs to another project than {cloud.project}: name one of its own as "
                "`store` in the cloud's configuration",
                make.replace(f"gs://{bucket}", f"gs://{cloud.project}-himari"),
            )
            return
        # Version 3 has roles that are granted under a condition by their own names.
        with_conditions = {"optionsRequestedPolicyVersion": 3}
        policy = self._ask("see who may use the bucket", "GET", f"{at}/iam", params=with_conditions)
        wanted = {cloud.pipeline_service_account: grants.BUCKET}
        if cloud.service:
            wanted.setdefault(cloud.serving_service_account, grants.MODELS)
        for account, roles in wanted.items():
            for role in grants.lacking(policy, grants.member(account), roles):
                yield Missing(
                    f"{account} has not {role} on gs://{bucket}",
                    f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --member={grants.member(account)} "
                    f"--role={role}",
                )

    def pushed(self, images: Images | None) -> Iterator[Missing]:
        host = self._cloud.endpoints.artifact_registry or "https://artifactregistry.googleapis.com"
        for image in (images.components, images.serving) if images else ():
            found = _IMAGE.fullmatch(image)
            if found is None:
                yield Missing(f"{image} is not in Artifact Registry (REGION-docker.pkg.dev/…)", _build(self._cloud))
                continue
            name = quote(f"{found['image']}@{found['digest']}", safe="@:")
            parent = f"projects/{found['project']}/locations/{found['location']}/repositories/{found['repository']}"
            try:
                self._ask("see the image", "GET", f"{host}/v1/{parent}/dockerImages/{name}")
            except exceptions.NotFound:
                yield Missing(f"there is no image {image}", _build(self._cloud))

    def accounts(self, *, as_itself: bool) -> Iterator[Missing]:
        """``as_itself``: whether the pipeline starts machines of its own account, as a custom job is."""
        cloud = self._cloud
        pipeline, serving = cloud.pipeline_service_account, cloud.serving_service_account
        there = {}
        for account in dict.fromkeys((pipeline, serving)):
            there[account] = not (problems := list(self._account(account)))
            yield from problems
        policy = self._projects.get_iam_policy
        project = f"projects/{cloud.project}"
        granted = asked(
            "see who may do what in the project",
            lambda: policy(resource=project, timeout=SECONDS, retry=None),
            sleep=self._sleep,
            service="Resource Manager",
        )
        bindings = {"bindings": [{"role": b.role, "members": list(b.members)} for b in granted.bindings]}
        wanted = grants.PROJECT | (grants.RELEASE if cloud.service else {})
        for role in grants.lacking(bindings, grants.member(pipeline), wanted):
            yield Missing(
                f"{pipeline} has not {role}",
                grants.in_project(cloud.project, grants.member(pipeline), role),
            )
        if there[pipeline]:
            yield from self._may_start_as(pipeline)
            if as_itself:
                yield from self._may_act_as(pipeline, pipeline, "start machines as itself")
        if there[serving]:
            yield from self._may_act_as(pipeline, serving, f"release services that run as {serving}")
        if cloud.service:
            yield from self._may_release(pipeline, bindings)

    def _account(self, email: str) -> Iterator[Missing]:
        try:
            found = self._ask("see the service account", "GET", f"{self._iam}/{email}")
        except exceptions.NotFound:
            name, _, project = email.removesuffix(".iam.gserviceaccount.com").partition("@")
            yield Missing(
                f"there is no service account {email}",
                f"gcloud iam service-accounts create {name} --project={project}",
            )
            return
        if found.get("disabled"):
            yield Missing(f"the service account {email} is disabled", f"gcloud iam service-accounts enable {email}")

    def _may_start_as(self, email: str) -> Iterator[Missing]:
        wanted = {"permissions": ["iam.serviceAccounts.actAs"]}
        said = self._ask("see whom it may act as", "POST", f"{self._iam}/{email}:testIamPermissions", json=wanted)
        if said.get("permissions") != wanted["permissions"]:
            yield Missing(f"this account may not start runs as {email}", grants.let_act(grants.ME, email))

    def _may_act_as(self, pipeline: str, email: str, what: str) -> Iterator[Missing]:
        policy = self._ask("see who may act as an account", "POST", f"{self._iam}/{email}:getIamPolicy")
        if grants.lacking(policy, grants.member(pipeline), {grants.ACT_AS: set()}):
            yield Missing(f"{pipeline} may not {what}", grants.let_act(grants.member(pipeline), email))

    def _may_release(self, pipeline: str, project: Mapping[str, Any]) -> Iterator[Missing]:
        """``project`` is the project's policy: what it grants holds on every service, on one that is not there too."""
        cloud, member = self._cloud, grants.member(pipeline)
        wanted = grants.SERVICE | (grants.OPEN if cloud.allow_unauthenticated else {})
        lacking = {role: wanted[role] for role in grants.lacking(project, member, wanted)}
        at = f"{cloud.endpoints.run or 'https://run.googleapis.com'}/v2/{cloud.parent}/services/{cloud.service}"
        where = f"--region={cloud.region} --project={cloud.project}"
        try:
            policy = self._ask("see who may release to the service", "GET", f"{at}:getIamPolicy") if lacking else {}
        except exceptions.NotFound:
            yield Missing(
                f"there is no Cloud Run service {cloud.service} in {cloud.region}, and {pipeline} may not make one",
                f"gcloud run deploy {cloud.service} --image={_HELLO} --no-allow-unauthenticated "
                f"--service-account={cloud.serving_service_account} {where}",
            )
            return
        found = grants.lacking(policy, member, lacking)
        if not grants.OPEN.keys().isdisjoint(found) and self._is_open(at, policy):
            found = [role for role in found if role not in grants.OPEN]
        for role in found:
            yield Missing(
                f"{pipeline} has not {role} on the Cloud Run service {cloud.service}",
                f"gcloud run services add-iam-policy-binding {cloud.service} --member={member} --role={role} {where}",
            )

    def _is_open(self, at: str, policy: Mapping[str, Any]) -> bool:
        """Whether IAM asks no caller of the service as it is, and so need not be told."""
        if any("allUsers" in binding.get("members", []) for binding in policy.get("bindings", [])):
            return True
        return bool(self._ask("see the service", "GET", at).get("invokerIamDisabled"))

    @property
    def _iam(self) -> str:
        return f"{self._cloud.endpoints.iam or 'https://iam.googleapis.com'}/v1/projects/-/serviceAccounts"

    def _ask(self, what: str, verb: str, url: str, **more: Any) -> dict[str, Any]:
        """The JSON that a service without a client library answers; Google's NotFound passes."""

        def call() -> dict[str, Any]:
            response = self._session.request(verb, url, timeout=SECONDS, **more)
            if response.status_code >= 400:
                raise exceptions.from_http_response(response)
            return dict(response.json())

        return asked(what, call, sleep=self._sleep, service=urlsplit(url).netloc)
