"""Releases on a loopback Cloud Run whose revisions really serve: what gets traffic, and what is taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.cloud import run_v2

from layer3.errors import ConfigurationError, ReleaseError
from serving.canary import Limits
from serving.platforms.connect import connect
from serving.release import release
from tests.serving.cloud import CANARY, IMAGE, SERVICE, STEPS, STORE, Desk, refused


@pytest.fixture
def watched(served: Desk) -> Desk:
    """With the real watch over canaries."""
    served.watcher = None
    return served


def wrong(_revision: str, percent: int, path: str, status: int, body: bytes) -> tuple[int, bytes]:
    """Of whoever has between 1 and 60 % of the traffic: answers that are a little off."""
    if path != "/predict" or not 0 < percent <= 60:
        return status, body
    answer = json.loads(body)
    answer["position_multiplier"] = abs(answer["position_multiplier"] - 0.001)
    return status, json.dumps(answer).encode()


# What works


def test_the_first_release_makes_the_service_as_it_must_be(cloud: Desk) -> None:
    done = cloud.release(1)
    assert (done.outcome, done.previous) == ("released", None)
    assert [step.name for step in done.steps] == ["verify", *STEPS, CANARY[-1], "switch", "promote"]
    assert cloud.champion() == done.model_id
    assert cloud.serving() == {done.model_id: 100}
    service = cloud.run.only()
    assert service.name == SERVICE
    assert not service.invoker_iam_disabled
    assert service.ingress == run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL
    assert service.labels["himari-champion"] == done.model_id
    assert service.labels["himari-run"] == "run-1"
    assert "himari-release" not in service.annotations
    assert [(to.percent, to.tag) for to in service.traffic] == [(100, "champion")]
    (revision,) = cloud.run.revisions.values()
    (container,) = revision.containers
    assert container.image == IMAGE
    assert {each.name: each.value for each in container.env} == {
        "MODEL_URI": f"{STORE}/models/{done.model_id}",
        "AUTH": "off",
    }
    assert dict(container.resources.limits) == {"cpu": "1", "memory": "1Gi"}
    assert (container.startup_probe.http_get.path, container.liveness_probe.http_get.path) == ("/health", "/healthz")
    assert (revision.scaling.min_instance_count, revision.scaling.max_instance_count) == (0, 10)
    assert revision.max_instance_request_concurrency == 80
    assert revision.service_account == "himari-serving@himari-tests.iam.gserviceaccount.com"
    assert revision.labels["himari-model"] == done.model_id


def test_the_next_gets_its_share_step_by_step(watched: Desk) -> None:
    old, shares = watched.champion(), []

    def note(line: str) -> None:
        if line.endswith(" ok") or " ok, " in line:
            shares.append((line.split(" ok")[0], watched.serving()))

    done = watched.release(2, log=note)
    new = done.model_id
    assert dict(shares)["parity"] == {old: 100}
    assert dict(shares)["canary 10 %"] == {old: 90, new: 10}
    assert dict(shares)["canary 50 %"] == {old: 50, new: 50}
    assert dict(shares)["canary 100 %"] == {new: 100}
    assert [step.name for step in done.steps] == ["verify", *STEPS, *CANARY, "switch", "promote"]
    detail = next(step.detail for step in done.steps if step.name == "canary 50 %")
    assert "our questions: candidate 0 of " in detail
    assert "at Cloud Run's front: candidate 0 of " in detail
    assert (done.previous, watched.champion()) == (old, new)
    assert watched.serving() == {new: 100}


def test_only_what_changes_is_asked_for(served: Desk) -> None:
    """Who may call, above all: that takes a permission which a releaser need not have."""
    served.release(2)
    masks = [set(call.query["updateMask"][0].split(",")) for call in served.run.google.named("UpdateService")]
    assert masks == [
        {"traffic", "annotations", "template"},
        {"traffic"},
        {"traffic"},
        {"traffic"},
        {"traffic", "labels", "annotations"},
    ]


def test_what_already_serves_is_left_alone(served: Desk) -> None:
    before = served.run.only().etag
    assert served.release(1).outcome == "already serving"
    assert served.run.only().etag == before
    assert len(served.run.revisions) == 1


def test_the_same_model_in_another_image_is_another_revision(served: Desk) -> None:
    image = IMAGE[:-1] + "2"
    served.run.images.add(image)
    assert served.release(1, image=image).outcome == "released"
    assert len(served.run.revisions) == 2
    assert served.serving() == {served.champion(): 100}
    (name,) = served.run.traffic()
    assert served.run.revisions[f"{SERVICE}/revisions/{name}"].containers[0].image == image


def test_back_and_forth(served: Desk) -> None:
    old = served.champion()
    new = served.release(2).model_id
    assert served.rollback().champion.model_id == old
    assert (served.champion(), served.serving()) == (old, {old: 100})
    assert served.rollback().champion.model_id == new
    assert (served.champion(), served.serving()) == (new, {new: 100})
    assert len(served.run.revisions) == 2


def test_a_service_that_terraform_made_is_taken_over(cloud: Desk) -> None:
    cloud.release(1)
    shell = cloud.run.only()
    (hello,) = cloud.run.revisions.values()
    hello.annotations.clear()  # as if somebody else had made it
    del cloud.gcs.objects["himari-tests", "store/channels/production.json"]
    shell.traffic = [run_v2.TrafficTarget(type_=1, percent=100)]
    shell.labels.clear()
    done = cloud.release(2)
    assert (done.outcome, done.previous) == ("released", None)
    assert list(cloud.run.traffic().values()) == [100]
    assert cloud.run.only().labels["himari-champion"] == done.model_id


def test_other_peoples_tags_stay(served: Desk) -> None:
    (name,) = served.run.traffic()
    served.run.only().traffic = [
        *served.run.only().traffic,
        run_v2.TrafficTarget(type_=2, revision=name, tag="debug"),
    ]
    served.release(2)
    assert [(to.percent, to.tag) for to in served.run.only().traffic] == [(100, "champion"), (0, "debug")]


def test_status_says_what_serves(served: Desk) -> None:
    served.release(2)
    lines = served.platform().describe(None)
    assert lines[0] == f"service   {served.run.only().uri}, whose callers are checked by IAM"
    assert "100 %" in lines[1]
    assert lines[1].endswith(f"{served.champion()}  tag champion")


# What does not


def test_a_candidate_that_answers_wrongly_under_canary_is_taken_back(watched: Desk) -> None:
    watched.run.front.meddle = wrong
    said = refused(watched, 2, r"step 'canary 10 %': golden pair \d+: the served multiplier")
    assert "The traffic is back as it was" in said
    watched.run.front.meddle = None
    assert watched.release(2).outcome == "released"


def test_a_candidate_that_answers_wrongly_before_gets_no_request_at_all(served: Desk) -> None:
    (old,) = served.run.traffic()
    served.run.front.meddle = lambda revision, percent, path, status, body: (
        wrong(revision, 10, path, status, body) if revision != old else (status, body)
    )
    refused(served, 2, "step 'parity': golden pair 0")
    assert {each.revision for each in served.run.front.seen if each.percent} <= {old}


def test_errors_under_canary(watched: Desk) -> None:
    (old,) = watched.run.traffic()
    watched.run.front.meddle = lambda revision, percent, path, status, body: (
        (500, b"{}") if revision != old and percent and len(watched.run.front.seen) % 7 == 0 else (status, body)
    )
    refused(watched, 2, r"step 'canary 10 %': our questions: .* of the candidate's requests failed, at most 1.0%")


def test_errors_that_only_users_saw(watched: Desk) -> None:
    """Its own questions go well; Cloud Monitoring has counted two errors of others."""
    (old,) = watched.run.traffic()

    def users(revision: str, percent: int, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if revision != old and percent == 10 and not any(each.status == 500 for each in watched.run.front.seen):
            for _ in range(2):
                watched.run.front.count(revision, percent, 500, 0.01)
        return status, body

    watched.run.front.meddle = users
    refused(watched, 2, r"step 'canary 10 %': at Cloud Run's front: candidate 2 of")


def test_slow_answers_under_canary(watched: Desk) -> None:
    (old,) = watched.run.traffic()

    def slow(revision: str, percent: int, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if revision != old and percent == 10:  # as users saw it: slower than this machine may make the champion's
            watched.run.front.count(revision, percent, 200, 300.0)
        return status, body

    watched.run.front.meddle = slow
    watched.limits = Limits(p99_factor=1.0, p99_seconds=60.0, p99_requests=20)
    old_seconds = "99th percentile is [0-9]+ ms, at most [0-9]+ ms are allowed"
    refused(watched, 2, f"step 'canary 10 %': .*{old_seconds}")


def test_an_image_that_nobody_pushed(served: Desk) -> None:
    missing = IMAGE[:-1] + "3"
    refused(served, 2, rf"step 'revision': .*Image '{missing}' not found", image=missing)
    served.run.images.add(missing)
    assert served.release(2, image=missing).outcome == "released"
    assert len(served.run.revisions) == 2  # the one that failed has been removed, its name is not used again


def test_a_first_release_that_fails_leaves_nothing(cloud: Desk) -> None:
    with pytest.raises(ReleaseError, match=r"nothing serves, as before\. The service .* is gone again"):
        cloud.release(1, image=IMAGE[:-1] + "3")
    assert cloud.run.services == {}
    assert cloud.release(1).outcome == "released"


def test_a_rollback_to_a_model_that_answers_wrongly_is_refused(served: Desk) -> None:
    old = served.champion()
    new = served.release(2).model_id
    served.run.front.meddle = lambda revision, percent, path, status, body: wrong(revision, 10, path, status, body)
    with pytest.raises(ReleaseError, match=rf"(?s)cannot go back to {old}: .*golden pair 0.*{new} still serves"):
        served.rollback()
    assert (served.champion(), served.serving()) == (new, {new: 100})
    assert [to.tag for to in served.run.only().traffic] == ["champion"]


@pytest.mark.parametrize("at", ["canary 50 % …", "canary 50 % ok"])
def test_ctrl_c_puts_the_traffic_back_within_a_step_and_between_two(served: Desk, at: str) -> None:
    old = served.champion()

    def interrupt(line: str) -> None:
        if line.startswith(at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.release(2, log=interrupt)
    assert (served.champion(), served.serving()) == (old, {old: 100})
    assert [to.tag for to in served.run.only().traffic] == ["champion"]


def test_somebody_elses_change_is_left_alone(served: Desk) -> None:
    (old,) = served.run.traffic()

    def meddle(line: str) -> None:
        if line.startswith("canary 50 % …"):
            service = served.run.only()
            service.traffic = [
                run_v2.TrafficTarget(type_=2, revision=to.revision, percent=percent, tag=to.tag)
                for to, percent in zip(service.traffic, (70, 30), strict=True)
            ]
            service.generation += 1

    with pytest.raises(ReleaseError, match=r"(?s)changed by someone else.*it stays as it is: .* 70 %, .* 30 %"):
        served.release(2, log=meddle)
    assert {each.revision: each.percent for each in served.run.only().traffic}[old] == 70
    assert served.release(2).outcome == "released"  # who comes next settles it


def test_a_caller_that_may_not_invoke_is_told_the_role(served: Desk) -> None:
    served.run.front.invokers.clear()
    served.health_seconds = 0.2
    refused(served, 2, r"step 'health': .*HTTP 403.*roles/run.invoker on himari")


def test_a_machine_without_identity(served: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    refused(served, 2, r"no identity token.*gcloud auth application-default login --impersonate-service-account")


def test_a_store_on_this_machine_cannot_be_served_from(cloud: Desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is on this machine"):
        connect(cloud.target(), str(tmp_path), log=print)


def test_a_target_without_a_digest_is_refused(cloud: Desk) -> None:
    with pytest.raises(ConfigurationError, match="must be pinned by digest"):
        cloud.target(image="us-docker.pkg.dev/p/r/serving:latest")
    with pytest.raises(ReleaseError, match="needs the serving image, pinned by digest"):
        release(cloud.candidate(1), store=STORE, run_id="r", platform=cloud.platform(image=""))
