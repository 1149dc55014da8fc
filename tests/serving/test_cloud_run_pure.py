"""Names, templates, shares and targets: what a release asks Cloud Run for, without asking."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from google.cloud import run_v2
from hypothesis import given
from hypothesis import strategies as st

from layer3.errors import ConfigurationError
from serving.cloud import Cloud, Endpoints
from serving.platforms.target import Target
from serving.platforms.template import (
    accounts,
    arrange,
    checks_callers,
    label,
    named,
    revision_name,
    revision_template,
    share,
    split,
)
from tests.fakes.google import label_problem

IMAGE = "us-central1-docker.pkg.dev/p/r/serving@sha256:" + "a" * 64
TARGET = Target(
    project="himari-tests",
    region="us-central1",
    service="himari",
    service_account="himari-serving@himari-tests.iam.gserviceaccount.com",
    image=IMAGE,
)
MODEL = "20260101-36b682987329"
names = st.from_regex(r"[a-z]([a-z0-9-]{0,47}[a-z0-9])?", fullmatch=True)
models = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


def template(target: Target = TARGET, model: str = MODEL, audience: str = "") -> run_v2.RevisionTemplate:
    return revision_template(target, model, f"gs://b/models/{model}", [audience])


def service(*shares: tuple[str, int, str]) -> run_v2.Service:
    return run_v2.Service(traffic=split(list(shares)), latest_ready_revision="projects/p/revisions/newest")


# Names


@given(names, models, st.integers(1, 20))
def test_a_name_is_one_that_cloud_run_takes(service_id: str, model: str, attempt: int) -> None:
    made = template(model=model)
    name = revision_name(service_id, made, attempt)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name)
    assert name.startswith(f"{service_id}-")
    assert name == revision_name(service_id, template(model=model), attempt)
    assert name != revision_name(service_id, made, attempt + 1)
    assert label_problem(dict(made.labels)) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(TARGET, image=IMAGE[:-1] + "b"),
        replace(TARGET, max_instances=5),
        replace(TARGET, concurrency=10),
        replace(TARGET, service_account="other@himari-tests.iam.gserviceaccount.com"),
        replace(TARGET, allow_unauthenticated=True, id_token_emails="a@x.example"),
        replace(TARGET, allow_unauthenticated=True, id_token_emails="b@x.example"),
        replace(TARGET, allow_unauthenticated=True, api_keys_secret="keys"),
    ],
)
def test_what_makes_another_revision_gives_it_another_name(other: Target) -> None:
    assert revision_name("himari", template(), 1) != revision_name("himari", template(other), 1)


def test_how_long_a_canary_is_watched_makes_none() -> None:
    assert template() == template(replace(TARGET, window_seconds=1.0))


@given(st.text(max_size=100))
def test_a_label_says_what_it_can(text: str) -> None:
    assert label_problem({"himari-run": label(text)}) is None


def test_who_asks_callers() -> None:
    def revision(target: Target) -> run_v2.Revision:
        return run_v2.Revision(containers=template(target, audience="https://x").containers)

    opened = revision(replace(TARGET, allow_unauthenticated=True, id_token_emails="A@x.example,b@x.example"))
    assert (checks_callers(revision(TARGET)), accounts(revision(TARGET))) == (False, [])
    assert (checks_callers(opened), accounts(opened)) == (True, ["a@x.example", "b@x.example"])
    assert not checks_callers(run_v2.Revision(containers=[run_v2.Container(image="hello")]))


def test_keys_are_mounted_where_the_server_checks_callers_and_nowhere_else() -> None:
    assert template(replace(TARGET, api_keys_secret="keys")) == template()
    opened = replace(TARGET, allow_unauthenticated=True, api_keys_secret="himari-dev-api-keys")
    made = template(opened, audience="https://x")
    asked = {each.name: each.value for each in made.containers[0].env}
    (volume,), (mount,) = made.volumes, made.containers[0].volume_mounts
    assert (volume.name, volume.secret.secret) == (mount.name, "himari-dev-api-keys")
    assert [(item.path, item.version) for item in volume.secret.items] == [("keys.txt", "latest")]
    assert asked["API_KEYS_FILE"] == f"{mount.mount_path}/keys.txt"
    assert (asked["AUTH"], asked["ID_TOKEN_AUDIENCE"]) == ("key,id-token", "https://x")
    without = template(replace(opened, api_keys_secret="", id_token_emails="a@x.example"), audience="https://x")
    assert (list(without.volumes), list(without.containers[0].volume_mounts)) == ([], [])


# Shares


@given(
    st.sampled_from(["base", "candidate", ""]),
    st.booleans(),
    st.sampled_from(["candidate", ""]),
    st.integers(0, 100),
    st.lists(st.tuples(st.sampled_from(["base", "x", "y"]), st.sampled_from(["", "champion", "candidate", "debug"]))),
)
def test_shares_always_add_up(
    base: str, champion: bool, candidate: str, percent: int, before: list[tuple[str, str]]
) -> None:
    if not base and not candidate:
        return
    shares = arrange(service(*((name, 0, tag) for name, tag in before)), base, champion, candidate, percent)
    assert sum(each for _, each, _ in shares) == (100 if candidate or percent == 0 else 100 - percent)
    assert all(name for name, _, _ in shares)
    assert dict.fromkeys(tag for _, _, tag in shares if tag == "candidate") == (
        {"candidate": None} if candidate else {}
    )
    assert sum(tag == "debug" for _, _, tag in shares) == sum(tag == "debug" for _, tag in before)
    assert {share for name, share, tag in shares if tag == "debug"} <= {0}


def test_the_latest_is_called_by_its_name() -> None:
    latest = run_v2.Service(
        traffic=[run_v2.TrafficTarget(type_=1, percent=100)], latest_ready_revision="projects/p/revisions/newest"
    )
    assert named(latest) == [("newest", 100, "")]
    assert named(run_v2.Service(latest_ready_revision="x/newest")) == [("newest", 100, "")]
    assert share(latest) == "newest 100 %"
    assert all(to.revision for to in split(named(latest)))


# Targets


def test_a_target_goes_through_a_pipelines_parameter() -> None:
    cloud = Cloud(
        project="himari-tests",
        store="gs://himari-tests/store",
        service="himari",
        max_instances=2,
        allow_unauthenticated=True,
        api_keys_secret="himari-dev-api-keys",
        id_token_emails="a@x.example",
        serving_service_account="himari-serving@himari-tests.iam.gserviceaccount.com",
        endpoints=Endpoints(run="http://127.0.0.1:8600"),
    )
    target = Target.of(cloud)
    assert Target.from_json(target.to_json()) == target
    assert "\n" not in target.to_json()
    assert (target.min_instances, target.max_instances, target.endpoints.run) == (0, 2, "http://127.0.0.1:8600")
    assert (TARGET.min_instances, TARGET.max_instances) == (0, 10)
    assert target.allow_unauthenticated
    assert (target.api_keys_secret, target.id_token_emails) == ("himari-dev-api-keys", "a@x.example")
    assert target.window_seconds == cloud.canary_window_seconds
    assert target.name == "projects/himari-tests/locations/us-central1/services/himari"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "r/serving:latest"}, "pinned by digest"),
        ({"image": "r/serving@sha256:abc"}, "pinned by digest"),
        ({"max_instances": 0}, "max_instances"),
        ({"min_instances": 11}, "max_instances"),
        ({"concurrency": 0}, "concurrency"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"allow_unauthenticated": "yes"}, "allow_unauthenticated"),
        ({"allow_unauthenticated": True}, r"set id_token_emails .* or api_keys_secret"),
        ({"allow-unauthenticated": True}, "allow-unauthenticated"),
        ({"project": ""}, "target.project is missing"),
        ({"service_account": ""}, "target.service_account is missing"),
        ({"endpoints": {"run": "https://elsewhere.example"}}, "emulator"),
    ],
)
def test_a_wrong_target_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Target.from_json(json.dumps({**json.loads(TARGET.to_json()), **change}))
    with pytest.raises(ConfigurationError, match="not JSON"):
        Target.from_json("{")


def test_a_revision_without_a_digest_is_not_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="pinned by digest"):
        template(replace(TARGET, image=""))
