"""What a revision is, and who gets which share of the traffic: pure functions over Cloud Run's own messages.

A revision never changes, its labels included: they are given to it as it is made, and say what it serves. Who is
champion is told by a tag and by the service's labels.

**Who may call.** Behind IAM's check, as here by default, the container gets no request that Google's front has not
admitted, and a token's signature is taken out on the way, so that the server could not check it if it wanted to:
it runs with AUTH=off. Where IAM's check is switched off, the server checks ID tokens itself, of accounts that are
named, and takes API keys, too, where a secret has them. A release asks with a token either way. A revision that checks
nobody is never reachable without IAM: the check is off only while every revision with traffic checks by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from google.cloud import run_v2

from layer3.errors import ConfigurationError
from serving.platforms.target import Target

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "MODEL",
    "TEMPLATE",
    "Shares",
    "accounts",
    "arrange",
    "checks_callers",
    "has_failed",
    "in_effect",
    "label",
    "model_of",
    "named",
    "revision_name",
    "revision_template",
    "share",
    "short",
    "split",
]

#: Tags, each the beginning of an address of its own.
CHAMPION: Final = "champion"
CANDIDATE: Final = "candidate"
#: Annotations of a revision: the model that it serves, and the sha256 of the template that it was made from.
MODEL: Final = "himari-model"
TEMPLATE: Final = "himari-template"
#: Revision, percent and tag, by name and never "the latest".
Shares: TypeAlias = list[tuple[str, int, str]]
_CPU: Final = "1"
_MEMORY: Final = "1Gi"
_PORT: Final = 8080
#: Where the keys of callers are mounted, and the file that they are there; Cloud Run reads it anew from the secret.
_KEYS_FOLDER: Final = "/secrets/api-keys"
_KEYS_FILE: Final = "keys.txt"
#: The server's own setting: whose ID tokens it takes.
_EMAILS: Final = "ID_TOKEN_EMAILS"
_REQUEST_SECONDS: Final = 30
_NAME_LENGTH: Final = 63
_BY_NAME: Final = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION


def label(value: str) -> str:
    """``value`` as far as a label can say it: a-z, 0-9, - and _, at most 63."""
    return re.sub(r"[^a-z0-9_-]", "-", value.lower())[:63]


def revision_template(
    target: Target, model_id: str, model_uri: str, audiences: Sequence[str]
) -> run_v2.RevisionTemplate:
    """A revision that serves the model from ``model_uri``; it has no name yet.

    ``audiences`` are the service's URLs, for one of which callers' tokens must be where the server checks them.
    """
    if not target.image:
        raise ConfigurationError(
            "a new revision needs the serving image, pinned by digest: build the images, so that the digest is known"
        )
    environment = {"MODEL_URI": model_uri, "AUTH": "off"}
    if target.allow_unauthenticated:
        environment |= {"AUTH": "id-token", "ID_TOKEN_AUDIENCE": ",".join(audiences), _EMAILS: target.id_token_emails}
    keys = _keys(target.api_keys_secret) if target.allow_unauthenticated and target.api_keys_secret else None
    if keys is not None:
        environment |= {"AUTH": "key,id-token", "API_KEYS_FILE": f"{_KEYS_FOLDER}/{_KEYS_FILE}"}
    container = run_v2.Container(
        image=target.image,
        env=[run_v2.EnvVar(name=name, value=value) for name, value in environment.items()],
        resources=run_v2.ResourceRequirements(
            limits={"cpu": _CPU, "memory": _MEMORY}, cpu_idle=True, startup_cpu_boost=True
        ),
        ports=[run_v2.ContainerPort(container_port=_PORT)],
        startup_probe=_probe("/health", period=2, failures=30),
        liveness_probe=_probe("/healthz", period=10, failures=3),
        volume_mounts=[run_v2.VolumeMount(name=keys.name, mount_path=_KEYS_FOLDER)] if keys else [],
    )
    template = run_v2.RevisionTemplate(
        labels={"managed-by": "himari", "himari-model": label(model_id)},
        annotations={MODEL: model_id},
        service_account=target.service_account,
        scaling=run_v2.RevisionScaling(
            min_instance_count=target.min_instances, max_instance_count=target.max_instances
        ),
        max_instance_request_concurrency=target.concurrency,
        timeout={"seconds": _REQUEST_SECONDS},
        containers=[container],
        volumes=[keys] if keys else [],
    )
    template.annotations[TEMPLATE] = hashlib.sha256(
        run_v2.RevisionTemplate.to_json(template, sort_keys=True).encode()
    ).hexdigest()
    return template


def revision_name(service: str, template: run_v2.RevisionTemplate, attempt: int) -> str:
    """The name of the ``attempt``-th revision of ``template``: the same each time that a release is run again.

    The next attempt is for a revision that failed, since a name is taken for ever.
    """
    digest = hashlib.sha256(f"{template.annotations[TEMPLATE]} {attempt}".encode()).hexdigest()[:10]
    room = _NAME_LENGTH - len(service) - len(digest) - 2
    model = re.sub(r"[^a-z0-9]+", "-", template.annotations[MODEL].lower())[: max(room, 0)].strip("-")
    return "-".join(part for part in (service, model, digest) if part)


def in_effect(service: run_v2.Service) -> bool:
    """Whether the traffic flows as the service says that it is to flow."""
    flows = [(to.revision, to.percent, to.tag) for to in service.traffic_statuses]
    return sorted(flows) == sorted((to.revision, to.percent, to.tag) for to in service.traffic)


def arrange(service: run_v2.Service, base: str, champion: bool, candidate: str, percent: int) -> Shares:
    """Who gets what: ``candidate`` its ``percent``, ``base`` the rest, other people's tags no traffic.

    ``champion``: the base is the recorded champion, and has its tag. Either name may be empty.
    """
    alone = base in ("", candidate)
    shares: Shares = [] if alone else [(base, 100 - percent, CHAMPION if champion else "")]
    if candidate:
        shares.append((candidate, 100 if alone else percent, CANDIDATE))
    return shares + [(name, 0, tag) for name, _, tag in named(service) if tag not in ("", CHAMPION, CANDIDATE)]


def split(shares: Shares) -> list[run_v2.TrafficTarget]:
    """The messages that say so."""
    return [
        run_v2.TrafficTarget(type_=_BY_NAME, revision=revision, percent=percent, tag=tag)
        for revision, percent, tag in shares
    ]


def named(service: run_v2.Service) -> Shares:
    """Who has which share and tag; "the latest" under the name that it has now."""
    latest = short(service.latest_ready_revision)
    return [(short(to.revision) or latest, to.percent, to.tag) for to in service.traffic] or [(latest, 100, "")]


def share(service: run_v2.Service) -> str:
    """The traffic as a sentence's part."""
    return ", ".join(f"{revision} {percent} %" for revision, percent, _ in named(service) if percent)


def short(name: str) -> str:
    """The last part of a full name."""
    return name.rsplit("/", 1)[-1]


def model_of(revision: run_v2.Revision) -> str:
    """The id of the model that a revision serves; "" where it is none of ours."""
    return str(revision.annotations.get(MODEL, ""))


def has_failed(revision: run_v2.Revision) -> str | None:
    """Why a revision will never serve, if so."""
    for condition in revision.conditions:
        if condition.type_ == "Ready" and condition.state == run_v2.Condition.State.CONDITION_FAILED:
            return condition.message or "no reason given"
    return None


def checks_callers(revision: run_v2.Revision | run_v2.RevisionTemplate) -> bool:
    """Whether its server checks by itself who calls."""
    return any(
        variable.name == "AUTH" and variable.value not in ("", "off")
        for container in revision.containers
        for variable in container.env
    )


def accounts(revision: run_v2.Revision) -> list[str]:
    """Whose ID tokens its server takes, in lower case, as it compares them; none where it does not ask."""
    values = [each.value for container in revision.containers for each in container.env if each.name == _EMAILS]
    return ",".join(values).lower().split(",") if any(values) else []


def _keys(secret: str) -> run_v2.Volume:
    """The newest version of ``secret`` as a file."""
    item = run_v2.VersionToPath(path=_KEYS_FILE, version="latest")
    return run_v2.Volume(name="api-keys", secret=run_v2.SecretVolumeSource(secret=secret, items=[item]))


def _probe(path: str, *, period: int, failures: int) -> run_v2.Probe:
    return run_v2.Probe(
        http_get=run_v2.HTTPGetAction(path=path, port=_PORT),
        period_seconds=period,
        timeout_seconds=period,
        failure_threshold=failures,
    )
