"""A loopback Cloud Run (v2): services, revisions and operations over the real client's messages, and what they serve.

A revision really starts this project's server, ``python -m serving``, with the template's environment, as a process
on loopback; :class:`tests.fakes.front.Front` in front of it splits the traffic, checks tokens and counts, as Google's
does. Refused is what the real service refuses: unknown fields (by tests/fakes/google.py), bad names, traffic that does
not add up to 100 or names a revision that is not there, a stale etag, a second revision of one name, an image that
nobody pushed, a secret that the service's account may not read, reserved variables and annotations. ``images`` are
those that were pushed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from google.cloud import run_v2
from google.cloud.run_v2.services.revisions.transports.rest_base import _BaseRevisionsRestTransport
from google.cloud.run_v2.services.services.transports.rest_base import _BaseServicesRestTransport
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2
from google.protobuf import timestamp_pb2

from tests.fakes.front import Fleet, Front
from tests.fakes.google import FakeGoogle, Refused, label_problem, page
from tests.fakes.secrets import Secrets, mount_problem

__all__ = ["FakeCloudRun", "cloud_run"]

_SERVICE_ID: Final = re.compile(r"[a-z]([a-z0-9-]{0,47}[a-z0-9])?")
_DNS_LABEL: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_ACCOUNT: Final = re.compile(r"[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com")
_RESERVED_VARIABLES: Final = ("PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION")
_RESERVED_NAMESPACES: Final = (
    "run.googleapis.com",
    "cloud.googleapis.com",
    "serving.knative.dev",
    "autoscaling.knative.dev",
)
_FIELDS: Final = (
    "description",
    "labels",
    "annotations",
    "client",
    "client_version",
    "ingress",
    "launch_stage",
    "template",
    "traffic",
    "scaling",
    "invoker_iam_disabled",
    "default_uri_disabled",
    "custom_audiences",
)
_LATEST: Final = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
_BY_NAME: Final = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION
_SUCCEEDED: Final = run_v2.Condition.State.CONDITION_SUCCEEDED
_FAILED: Final = run_v2.Condition.State.CONDITION_FAILED


@contextmanager
def cloud_run(fleet: Fleet, *images: str, environment: Mapping[str, str] | None = None) -> Iterator[FakeCloudRun]:
    """The fake for as long as the block lasts; the processes of its revisions are the ``fleet``'s."""
    with FakeGoogle() as google:
        fake = FakeCloudRun(google, fleet, images, dict(environment or {}))
        try:
            yield fake
        finally:
            fake.front.close()
            fake.secrets.close()


class FakeCloudRun:
    """``google`` answers the API and injects faults, ``front`` answers the services' own addresses.

    ``environment`` is what a container gets besides its template: the address of an emulated bucket, for example.
    """

    def __init__(self, google: FakeGoogle, fleet: Fleet, images: tuple[str, ...], environment: dict[str, str]) -> None:
        self.google = google
        self.secrets = Secrets()
        self.front = Front()
        self.images = set(images)
        self.services: dict[str, run_v2.Service] = {}
        self.revisions: dict[str, run_v2.Revision] = {}
        self.policies: dict[str, dict[str, set[str]]] = {}
        """Per service who has which role."""
        self._fleet = fleet
        self._environment = environment
        self._changes = 0
        for name, request, handler in (
            ("CreateService", run_v2.CreateServiceRequest, self._create),
            ("GetService", run_v2.GetServiceRequest, lambda request: self._service(request.name)),
            ("UpdateService", run_v2.UpdateServiceRequest, self._update),
            ("DeleteService", run_v2.DeleteServiceRequest, self._delete),
            ("GetIamPolicy", iam_policy_pb2.GetIamPolicyRequest, self._policy),
        ):
            google.serve(_BaseServicesRestTransport, name, request, handler)
        for name, request, handler in (
            ("GetRevision", run_v2.GetRevisionRequest, lambda request: self._revision(request.name)),
            ("ListRevisions", run_v2.ListRevisionsRequest, self._list),
            ("DeleteRevision", run_v2.DeleteRevisionRequest, self._delete_revision),
        ):
            google.serve(_BaseRevisionsRestTransport, name, request, handler)
        google.serve_operations()
        google.route("GET", "/v3/projects/{project}/timeSeries", "ListTimeSeries", None, self.front.time_series)

    @property
    def url(self) -> str:
        return self.google.url

    def remember(self) -> Callable[[], None]:
        """What puts everything back to how it is now, with no faults and nothing counted."""
        services = {name: run_v2.Service(each) for name, each in self.services.items()}
        revisions = {name: run_v2.Revision(each) for name, each in self.revisions.items()}
        images, front = set(self.images), self.front.remember()

        def restore() -> None:
            self.google.heal()
            self.google.calls.clear()
            with self.google.lock:
                self.services = {name: run_v2.Service(each) for name, each in services.items()}
                self.revisions = {name: run_v2.Revision(each) for name, each in revisions.items()}
                self.images = set(images)
                front()

        return restore

    def only(self) -> run_v2.Service:
        """The one service that there is."""
        (service,) = self.services.values()
        return service

    def traffic(self) -> dict[str, int]:
        """Percent of each revision that has traffic."""
        return {each.revision: each.percent for each in self.only().traffic_statuses if each.percent}

    # The API; these run under google.lock.

    def _policy(self, request: Any) -> policy_pb2.Policy:
        roles = self.policies.get(self._service(request.resource).name, {})
        return policy_pb2.Policy(
            version=1, bindings=[policy_pb2.Binding(role=role, members=sorted(who)) for role, who in roles.items()]
        )

    def _create(self, request: Any) -> operations_pb2.Operation:
        if not re.fullmatch(r"projects/[^/]+/locations/[a-z0-9-]+", request.parent):
            raise Refused("INVALID_ARGUMENT", f"invalid parent {request.parent!r}")
        if not _SERVICE_ID.fullmatch(request.service_id):
            raise Refused(
                "INVALID_ARGUMENT", f"service_id: {request.service_id!r} must be a DNS label below 50 characters"
            )
        name = f"{request.parent}/services/{request.service_id}"
        if name in self.services:
            raise Refused("ALREADY_EXISTS", f"Resource '{request.service_id}' already exists.")
        service = run_v2.Service(
            name=name, uid=f"uid-{request.service_id}", uri=self.front.open(name, ""), create_time=self._time()
        )
        service.urls = [service.uri]
        return self._apply(service, request.service, _FIELDS)

    def _update(self, request: Any) -> operations_pb2.Operation:
        present = self._service(request.service.name)
        etag = request.service.etag
        if etag and etag != present.etag:
            raise Refused(
                "ABORTED",
                f"Conflict for resource '{_short(present.name)}': version '{etag}' was specified "
                f"but current version is '{present.etag}'.",
            )
        paths = tuple(path.split(".")[0] for path in request.update_mask.paths) or _FIELDS
        for path in paths:
            if path not in _FIELDS:
                raise Refused("INVALID_ARGUMENT", f"invalid field mask path {path!r}")
        return self._apply(run_v2.Service(present), request.service, paths)

    def _apply(
        self, service: run_v2.Service, asked: run_v2.Service, paths: tuple[str, ...]
    ) -> operations_pb2.Operation:
        for path in paths:
            setattr(service, path, getattr(asked, path))
        _require_metadata(service.labels, service.annotations)
        revision = self._new_revision(service) if "template" in paths else None
        known = {_short(name) for name in self.revisions if name.startswith(f"{service.name}/")}
        _require_traffic(service, known | ({_short(revision.name)} if revision else set()))
        self._changes += 1
        service.generation += 1
        service.etag = f'"{self._changes}"'
        service.update_time = self._time()
        service.reconciling = True
        if revision is not None:
            self.revisions[revision.name] = revision
            service.latest_created_revision = revision.name
        self.services[service.name] = service
        parent = service.name.rsplit("/services/", 1)[0]
        return self.google.operation(parent, lambda: self._reconcile(service.name, service.generation, revision))

    def _new_revision(self, service: run_v2.Service) -> run_v2.Revision | None:
        """The revision that the template asks for; None where it is the newest one already."""
        template = service.template
        _require_template(_short(service.name), template)
        if not template.revision:
            raise Refused("INVALID_ARGUMENT", "this fake wants every revision named")
        name = f"{service.name}/revisions/{template.revision}"
        revision = run_v2.Revision(
            name=name,
            uid=f"uid-{template.revision}",
            service=service.name,
            create_time=self._time(),
            labels=template.labels,
            annotations=template.annotations,
            scaling=template.scaling,
            max_instance_request_concurrency=template.max_instance_request_concurrency,
            timeout=template.timeout,
            service_account=template.service_account,
            containers=template.containers,
            volumes=template.volumes,
        )
        present = self.revisions.get(name)
        if present is None:
            return revision
        same = all(
            getattr(present, field) == getattr(revision, field)
            for field in ("labels", "annotations", "scaling", "service_account", "containers", "volumes", "timeout")
        )
        if not same:
            raise Refused(
                "ALREADY_EXISTS", f"Revision named '{template.revision}' with different configuration already exists."
            )
        return None

    def _reconcile(self, name: str, generation: int, revision: run_v2.Revision | None) -> run_v2.Service:
        """What the service's operation does: start the new revision, then move the traffic."""
        failure = self._start(revision) if revision is not None else None
        with self.google.lock:
            service = self.services.get(name)
            if service is None:
                raise Refused("ABORTED", "the service was deleted")
            self._changes += 1
            service.etag = f'"{self._changes}"'  # of what Cloud Run itself has to say, too
            if revision is not None:
                revision.conditions = [_ready(failure)]
                if failure is None:
                    service.latest_ready_revision = revision.name
            if service.generation == generation:
                service.reconciling = False
                service.observed_generation = generation
                self._route(service)
            newest = self.revisions.get(service.latest_created_revision)
            service.terminal_condition = newest.conditions[0] if newest and newest.conditions else _ready(None)
            if failure is not None:
                raise Refused("FAILED_PRECONDITION", failure)
            return service

    def _start(self, revision: run_v2.Revision) -> str | None:
        """Start the container as a process; why it does not serve, if so."""
        (container,) = revision.containers
        if container.image not in self.images:
            return f"Image '{container.image}' not found."
        environment = {variable.name: variable.value for variable in container.env}
        mounted = self.secrets.mounted(revision)
        if isinstance(mounted, str):
            return mounted
        environment = {name: mounted.get(value, value) for name, value in environment.items()}
        environment |= self._environment | {"K_SERVICE": _short(revision.service)}
        probe = container.startup_probe
        started = self._fleet.start(environment, probe.http_get.path, probe.period_seconds * probe.failure_threshold)
        if isinstance(started, str):
            return (
                f"Revision '{_short(revision.name)}' is not ready and cannot serve traffic. The user-provided "
                f"container failed the configured startup probe checks: {started}"
            )
        self.front.serve(_short(revision.name), started)
        return None

    def _route(self, service: run_v2.Service) -> None:
        """Let the traffic flow as asked, unless a revision that it is to go to cannot serve."""
        latest = _short(service.latest_ready_revision)
        targets = [(to.revision or latest, to.percent, to.tag) for to in service.traffic] or [(latest, 100, "")]
        if not all(self.front.serves(revision) for revision, percent, _ in targets if percent):
            return
        service.traffic_statuses = [
            run_v2.TrafficTargetStatus(
                type_=to.type_,
                revision=to.revision,
                percent=to.percent,
                tag=to.tag,
                uri=self.front.open(service.name, to.tag) if to.tag else "",
            )
            for to in service.traffic
        ]
        self.front.route(service, targets)

    def _delete(self, request: Any) -> operations_pb2.Operation:
        service = self._service(request.name)
        if request.etag and request.etag != service.etag:
            raise Refused("ABORTED", f"Conflict for resource '{_short(service.name)}'.")
        del self.services[service.name]
        self.revisions = {name: each for name, each in self.revisions.items() if each.service != service.name}
        return self.google.operation(service.name.rsplit("/services/", 1)[0], lambda: service)

    def _list(self, request: Any) -> run_v2.ListRevisionsResponse:
        self._service(request.parent)
        found = [each for each in self.revisions.values() if each.service == request.parent]
        items, token = page(found, request.page_size, request.page_token, most=2)
        return run_v2.ListRevisionsResponse(revisions=items, next_page_token=token)

    def _delete_revision(self, request: Any) -> operations_pb2.Operation:
        revision = self._revision(request.name)
        service = self._service(revision.service)
        routed = {to.revision for to in service.traffic}
        if service.latest_created_revision == revision.name or _short(revision.name) in routed:
            raise Refused("FAILED_PRECONDITION", f"Revision '{_short(revision.name)}' cannot be deleted: it is in use.")
        del self.revisions[revision.name]
        return self.google.operation(service.name.rsplit("/services/", 1)[0], lambda: revision)

    def _service(self, name: str) -> run_v2.Service:
        if name not in self.services:
            raise Refused("NOT_FOUND", f"Resource '{_short(name)}' of kind 'SERVICE' does not exist.")
        return self.services[name]

    def _revision(self, name: str) -> run_v2.Revision:
        if name not in self.revisions:
            raise Refused("NOT_FOUND", f"Resource '{_short(name)}' of kind 'REVISION' does not exist.")
        return self.revisions[name]

    def _time(self) -> timestamp_pb2.Timestamp:
        """A time that grows with every change."""
        return timestamp_pb2.Timestamp(seconds=1_770_000_000 + self._changes)


def _require_metadata(labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    if (problem := label_problem(labels)) is not None:
        raise Refused("INVALID_ARGUMENT", problem)
    for key in (*labels, *annotations):
        if key.split("/")[0].endswith(_RESERVED_NAMESPACES):
            raise Refused("INVALID_ARGUMENT", f"metadata key {key!r} is in a reserved namespace")


def _require_template(service: str, template: run_v2.RevisionTemplate) -> None:
    def refuse(why: str) -> None:
        raise Refused("INVALID_ARGUMENT", f"template: {why}")

    _require_metadata(template.labels, template.annotations)
    if not template.revision.startswith(f"{service}-") or not _DNS_LABEL.fullmatch(template.revision):
        refuse(
            f"revision: {template.revision!r} must begin with '{service}-' and be a DNS label of at most 63 characters"
        )
    if len(template.containers) != 1 or not template.containers[0].image:
        refuse("containers: exactly one with an image")
    if not _ACCOUNT.fullmatch(template.service_account):
        refuse(f"service_account: {template.service_account!r} is no service account's e-mail")
    if not 0 <= template.scaling.min_instance_count <= template.scaling.max_instance_count <= 100:
        refuse("scaling: min_instance_count must not exceed max_instance_count")
    if not 0 <= template.max_instance_request_concurrency <= 1000:
        refuse("max_instance_request_concurrency must be at most 1000")
    (container,) = template.containers
    if container.resources.limits.get("cpu") not in ("1", "2", "4", "8"):
        refuse("resources.limits.cpu must be 1, 2, 4 or 8")
    if not re.fullmatch(r"\d+(Mi|Gi)", container.resources.limits.get("memory", "")):
        refuse("resources.limits.memory must be like 512Mi or 1Gi")
    if (problem := mount_problem(template)) is not None:
        refuse(problem)
    for variable in container.env:
        if variable.name in _RESERVED_VARIABLES or not variable.name:
            refuse(f"env: {variable.name!r} is reserved")
    for probe in (container.startup_probe, container.liveness_probe):
        if not probe.http_get.path.startswith("/") or not 1 <= probe.timeout_seconds <= probe.period_seconds <= 240:
            refuse("probe: a path, and a timeout that does not exceed the period")


def _require_traffic(service: run_v2.Service, known: set[str]) -> None:
    def refuse(why: str) -> None:
        raise Refused("INVALID_ARGUMENT", f"traffic: {why}")

    targets = list(service.traffic)
    if targets and sum(to.percent for to in targets) != 100:
        refuse(f"percentages add up to {sum(to.percent for to in targets)}, must be 100")
    if any(not 0 <= to.percent <= 100 for to in targets):
        refuse("a percentage is outside 0 to 100")
    tags = [to.tag for to in targets if to.tag]
    if len(set(tags)) != len(tags) or not all(_DNS_LABEL.fullmatch(tag) for tag in tags):
        refuse(f"tags {tags} must be different DNS labels")
    for to in targets:
        if (to.type_ == _BY_NAME) != bool(to.revision) or to.type_ not in (_BY_NAME, _LATEST):
            refuse("a target is the latest revision, or one by name")
        if to.revision and to.revision not in known:
            refuse(f"Revision '{to.revision}' not found")


def _ready(failure: str | None) -> run_v2.Condition:
    return run_v2.Condition(type_="Ready", state=_SUCCEEDED if failure is None else _FAILED, message=failure or "")


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]
