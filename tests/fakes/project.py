"""A loopback Google Cloud project: Resource Manager, Service Usage, IAM and Artifact Registry, one server for all.

Everything that a run needs is there until a test takes it away; the bucket is the fake Cloud Storage's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from google.cloud import resourcemanager_v3
from google.cloud.resourcemanager_v3.services.projects.transports.rest_base import _BaseProjectsRestTransport
from google.iam.v1 import iam_policy_pb2, policy_pb2

from pipelines.preflight import APIS
from tests.fakes.google import Call, FakeGoogle, Refused
from tests.fakes.vertex.server import Place

__all__ = ["FakeProject"]


class FakeProject(FakeGoogle):
    """``FakeProject(place, pipeline=…, serving=…, images=[…])``; all of its state may be changed by a test."""

    def __init__(self, place: Place, *, pipeline: str, serving: str, images: Iterable[str]) -> None:
        super().__init__()
        self.place = place
        self.exists = True
        self.enabled = set(APIS)
        self.images = set(images)
        self.accounts = {pipeline: False, serving: False}
        """Whether each is disabled."""
        self.roles = {
            "roles/aiplatform.user": {f"serviceAccount:{pipeline}"},
            "roles/logging.logWriter": {f"serviceAccount:{pipeline}"},
        }
        self.may_act_as = {pipeline}
        """Whom whoever asks may act as."""
        user = {"roles/iam.serviceAccountUser": {f"serviceAccount:{pipeline}"}}
        self.account_roles = {serving: user, pipeline: user}
        transport = _BaseProjectsRestTransport
        self.serve(transport, "GetProject", resourcemanager_v3.GetProjectRequest, self._project)
        self.serve(transport, "GetIamPolicy", iam_policy_pb2.GetIamPolicyRequest, self._policy)
        for verb, template, name, handler in (
            ("GET", "/v1/{parent=projects/*}/services:batchGet", "BatchGetServices", self._services),
            ("GET", "/v1/{name=projects/*/serviceAccounts/*}", "GetServiceAccount", self._account),
            ("POST", "/v1/{name=projects/*/serviceAccounts/*}:testIamPermissions", "TestAccount", self._test),
            ("POST", "/v1/{name=projects/*/serviceAccounts/*}:getIamPolicy", "GetAccountPolicy", self._account_policy),
            (
                "GET",
                "/v1/{name=projects/*/locations/*/repositories/*}/dockerImages/{image=**}",
                "GetDockerImage",
                self._image,
            ),
        ):
            self.route(verb, template, name, None, handler)

    def _project(self, request: Any) -> resourcemanager_v3.Project:
        if not self.exists or request.name not in (f"projects/{self.place.project}", f"projects/{self.place.number}"):
            raise Refused("PERMISSION_DENIED", f"Permission denied on resource '{request.name}' (or it may not exist).")
        return resourcemanager_v3.Project(
            name=f"projects/{self.place.number}", project_id=self.place.project, state="ACTIVE"
        )

    def _policy(self, request: Any) -> policy_pb2.Policy:
        bindings = [policy_pb2.Binding(role=role, members=sorted(who)) for role, who in self.roles.items()]
        return policy_pb2.Policy(version=1, bindings=bindings, etag=b"BwXhqDVoE3o=")

    def _services(self, call: Call) -> dict[str, Any]:
        names = call.query.get("names", [])
        if set(call.query) - {"names"} or not 1 <= len(names) <= 30:
            raise Refused("INVALID_ARGUMENT", "names: 1 to 30 services must be named, and nothing else.")
        found = []
        for name in names:
            matched = re.fullmatch(rf"projects/{self.place.project}/services/([a-z]+\.googleapis\.com)", name)
            if matched is None:
                raise Refused("INVALID_ARGUMENT", f"{name} is no service of {self.place.project}.")
            state = "ENABLED" if matched[1] in self.enabled else "DISABLED"
            found.append({"name": name, "parent": f"projects/{self.place.number}", "config": {"name": matched[1]}})
            found[-1]["state"] = state
        return {"services": found}

    def _email(self, call: Call) -> str:
        email = unquote(call.path.rpartition("/")[2].partition(":")[0])
        if email not in self.accounts:
            raise Refused("NOT_FOUND", f"Unknown service account: {email}")
        return email

    def _account(self, call: Call) -> dict[str, Any]:
        email = self._email(call)
        name = f"projects/{self.place.project}/serviceAccounts/{email}"
        return {"name": name, "projectId": self.place.project, "email": email} | (
            {"disabled": True} if self.accounts[email] else {}
        )

    def _test(self, call: Call) -> dict[str, Any]:
        if not isinstance(call.body, dict) or set(call.body) != {"permissions"}:
            raise Refused("INVALID_ARGUMENT", "permissions must be given, and nothing else.")
        return {"permissions": call.body["permissions"]} if self._email(call) in self.may_act_as else {}

    def _account_policy(self, call: Call) -> dict[str, Any]:
        roles = self.account_roles.get(self._email(call), {})
        return {"etag": "ACAB", "bindings": [{"role": role, "members": sorted(who)} for role, who in roles.items()]}

    def _image(self, call: Call) -> dict[str, Any]:
        matched = re.fullmatch(
            r"/v1/projects/([^/]+)/locations/([^/]+)/repositories/([^/]+)/dockerImages/(.+@sha256:[0-9a-f]{64})",
            call.path,
        )
        uri = f"{matched[2]}-docker.pkg.dev/{matched[1]}/{matched[3]}/{matched[4]}" if matched else ""
        if uri not in self.images:
            raise Refused("NOT_FOUND", f"Requested entity was not found: {call.path}")
        return {"name": call.path.removeprefix("/v1/"), "uri": uri, "imageSizeBytes": "1"}
