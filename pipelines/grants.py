"""Which account needs which role for a run and its release, and the commands that grant them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "ACT_AS",
    "BUCKET",
    "ME",
    "MODELS",
    "OPEN",
    "PROJECT",
    "RELEASE",
    "SERVICE",
    "in_project",
    "lacking",
    "let_act",
    "member",
]

#: What the account of the pipeline needs in the project, on the bucket and, where it releases to Cloud Run, in the
#: project and on the service; each with the roles that hold it too.
PROJECT: Final = {
    "roles/aiplatform.user": {"roles/aiplatform.admin", "roles/editor", "roles/owner"},
    "roles/logging.logWriter": {"roles/logging.admin", "roles/editor", "roles/owner"},
}
RELEASE: Final = {
    "roles/monitoring.viewer": {
        "roles/monitoring.editor",
        "roles/monitoring.admin",
        "roles/viewer",
        "roles/editor",
        "roles/owner",
    }
}
SERVICE: Final = {
    "roles/run.developer": {"roles/run.admin", "roles/editor", "roles/owner"},
    # The smoke test and the canary ask the new revision as anybody would.
    "roles/run.invoker": {"roles/run.admin"},
}
#: Beside them, to switch IAM's check of callers off.
OPEN: Final = {"roles/run.admin": {"roles/owner"}}
BUCKET: Final = {"roles/storage.objectUser": {"roles/storage.objectAdmin", "roles/storage.admin"}}
#: What the account of the service needs on the bucket: it may be granted for models/ and channels/ alone.
MODELS: Final = {
    "roles/storage.objectViewer": {"roles/storage.legacyObjectReader", *BUCKET, *BUCKET["roles/storage.objectUser"]}
}
ACT_AS: Final = "roles/iam.serviceAccountUser"
#: In a command: whoever runs it.
ME: Final = 'user:"$(gcloud config get account)"'


def in_project(project: str, member: str, role: str) -> str:
    """The command that grants ``role`` in the whole project, whatever conditions stand there already."""
    return f"gcloud projects add-iam-policy-binding {project} --member={member} --role={role} --condition=None"


def let_act(member: str, email: str) -> str:
    """The command that lets ``member`` start what acts as the account ``email``."""
    return f"gcloud iam service-accounts add-iam-policy-binding {email} --member={member} --role={ACT_AS}"


def member(email: str) -> str:
    """A service account, as IAM's policies name it."""
    return f"serviceAccount:{email}"


def lacking(policy: Mapping[str, Any], member: str, roles: Mapping[str, set[str]]) -> list[str]:
    """The ``roles`` that ``member`` has neither themselves nor through one that holds them."""
    has = {binding["role"] for binding in policy.get("bindings", []) if member in binding.get("members", [])}
    return [role for role, others in roles.items() if role not in has and not others & has]
