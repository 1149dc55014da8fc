"""What is missing before a run is submitted: each thing with its command, all of them at once."""

import dataclasses
from collections.abc import Iterator

import pytest
import yaml
from google.cloud import run_v2

from compile import compile_pipelines
from layer3.errors import SourceError
from pipelines.preflight import APIS, images_of, missing
from serving.cloud import Cloud
from tests.fakes.cloud import COMPONENTS, SERVING, World, world
from tests.fakes.cloud_run import FakeCloudRun
from tests.fakes.front import Fleet
from tests.fakes.google import FakeGoogle

PIPELINE = "himari-dev-pipeline@himari-test.iam.gserviceaccount.com"
SERVICE = "himari-dev-serving@himari-test.iam.gserviceaccount.com"
ME = 'user:"$(gcloud config get account)"'
BUILD = "make images REPOSITORY=us-central1-docker.pkg.dev/himari-test/himari STORE=gs://bucket"


@pytest.fixture(scope="module")
def cloud_here(tmp_path_factory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("cloud") / "world") as here:
        yield here


@pytest.fixture
def here(cloud_here: World) -> Iterator[World]:
    """The cloud in which nothing is missing, put right again after each test."""
    project, gcs = cloud_here.project, cloud_here.gcs
    kept = {
        name: value.copy() if isinstance(value, set | dict) else value
        for name, value in vars(project).items()
        if name in ("exists", "enabled", "images", "accounts", "roles", "may_act_as", "account_roles")
    }
    buckets, roles, number = gcs.buckets.copy(), gcs.roles.copy(), gcs.project_number
    project.calls.clear()
    yield cloud_here
    vars(project).update(kept)
    gcs.buckets, gcs.roles, gcs.project_number = buckets, roles, number
    project.heal()


def spec_of(here: World) -> dict:
    return yaml.safe_load(here.spec.read_text())


def asked_of(here: World, **changes: object) -> list[tuple[str, str]]:
    cloud = dataclasses.replace(here.cloud, **changes)
    found = missing(cloud, here.cloud.images(), spec_of(here), sleep=lambda seconds: None)
    return [(item.what, item.fix) for item in found]


def test_where_nothing_is_missing_nothing_is_said_and_nothing_is_changed(here):
    assert asked_of(here) == []
    asked = {call.name for call in here.project.calls}
    assert asked == {
        "GetProject",
        "GetIamPolicy",
        "BatchGetServices",
        "GetServiceAccount",
        "TestAccount",
        "GetAccountPolicy",
        "GetDockerImage",
    }
    assert all("Authorization" not in call.headers for call in here.project.calls)


def test_every_step_runs_on_the_image_of_the_last_build(here):
    assert set(images_of(spec_of(here))) == {COMPONENTS}


@pytest.mark.parametrize(
    ("take_away", "what", "fix"),
    [
        (
            lambda here: setattr(here.project, "exists", False),
            "there is no project himari-test, or this account may not see it (correct `project` if it is mistyped)",
            "gcloud projects create himari-test",
        ),
        (
            lambda here: here.project.enabled.difference_update({APIS[0], APIS[6]}),
            "not enabled in himari-test: aiplatform.googleapis.com, run.googleapis.com",
            "gcloud services enable aiplatform.googleapis.com run.googleapis.com --project=himari-test",
        ),
        (
            lambda here: here.gcs.buckets.clear(),
            "there is no bucket gs://bucket",
            "gcloud storage buckets create gs://bucket --project=himari-test --location=us-central1 "
            "--uniform-bucket-level-access --public-access-prevention",
        ),
        (
            lambda here: setattr(here.gcs, "project_number", 666),
            "the bucket gs://bucket belongs to another project than himari-test: name one of its own as `store` in the "
            "cloud's configuration",
            "gcloud storage buckets create gs://himari-test-himari --project=himari-test --location=us-central1 "
            "--uniform-bucket-level-access --public-access-prevention",
        ),
        (
            lambda here: here.gcs.roles.clear(),
            f"{PIPELINE} has not roles/storage.objectUser on gs://bucket",
            f"gcloud storage buckets add-iam-policy-binding gs://bucket --member=serviceAccount:{PIPELINE} "
            "--role=roles/storage.objectUser",
        ),
        (lambda here: here.project.images.discard(SERVING), f"there is no image {SERVING}", BUILD),
        (lambda here: here.project.images.discard(COMPONENTS), f"there is no image {COMPONENTS}", BUILD),
        (
            lambda here: here.project.accounts.pop(SERVICE),
            f"there is no service account {SERVICE}",
            "gcloud iam service-accounts create himari-dev-serving --project=himari-test",
        ),
        (
            lambda here: here.project.accounts.update({SERVICE: True}),
            f"the service account {SERVICE} is disabled",
            f"gcloud iam service-accounts enable {SERVICE}",
        ),
        (
            lambda here: here.project.roles.pop("roles/logging.logWriter"),
            f"{PIPELINE} has not roles/logging.logWriter",
            f"gcloud projects add-iam-policy-binding himari-test --member=serviceAccount:{PIPELINE} "
            "--role=roles/logging.logWriter --condition=None",
        ),
        (
            lambda here: here.project.may_act_as.clear(),
            f"this account may not start runs as {PIPELINE}",
            f"gcloud iam service-accounts add-iam-policy-binding {PIPELINE} --member={ME} "
            "--role=roles/iam.serviceAccountUser",
        ),
        (
            lambda here: here.project.account_roles.clear(),
            f"{PIPELINE} may not release services that run as {SERVICE}",
            f"gcloud iam service-accounts add-iam-policy-binding {SERVICE} --member=serviceAccount:{PIPELINE} "
            "--role=roles/iam.serviceAccountUser",
        ),
    ],
)
def test_each_missing_thing_has_its_one_command(here, take_away, what, fix):
    take_away(here)
    assert asked_of(here) == [(what, fix)]


def test_all_that_is_missing_is_said_at_once(here):
    here.gcs.buckets.clear()
    here.project.enabled.clear()
    here.project.images.clear()
    here.project.roles.clear()
    here.project.accounts.clear()
    fixes = [fix for _, fix in asked_of(here)]
    assert len(fixes) == 8
    words = "services enable", "buckets create", "make images", "service-accounts create", "roles/aiplatform.user"
    assert all(any(word in fix for fix in fixes) for word in words)


def test_a_role_that_holds_another_is_enough(here):
    member = {f"serviceAccount:{PIPELINE}"}
    here.gcs.roles = {"roles/storage.admin": member}
    here.project.roles = {"roles/aiplatform.admin": member, "roles/editor": member}
    assert asked_of(here) == []


def test_a_pipeline_compiled_for_another_image_is_compiled_again(here):
    spec = spec_of(here)
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = "himari-pipeline:unset"
    (found,) = missing(here.cloud, here.cloud.images(), spec)
    assert found.what == f"the pipeline was compiled for himari-pipeline:unset, the last build pushed {COMPONENTS}"
    assert found.fix == f"the same command with IMAGE={here.cloud.images_file}"


def test_without_a_build_there_is_an_image_to_build(here):
    (found,) = missing(here.cloud, None, spec_of(here))
    assert (found.what, found.fix) == (f"no image was built yet: there is no {here.cloud.images_file}", BUILD)


def test_an_image_elsewhere_is_not_taken(here):
    elsewhere = f"docker.io/himari/serving@sha256:{'0' * 64}"
    images = dataclasses.replace(here.cloud.images(), serving=elsewhere)
    (found,) = missing(here.cloud, images, spec_of(here))
    assert elsewhere in found.what
    assert found.fix == BUILD


@pytest.mark.parametrize("call", ["BatchGetServices", "GetServiceAccount", "GetIamPolicy", "TestAccount"])
def test_who_may_not_look_is_told_how_to_be_allowed(here, call):
    here.project.fail(call, status=403, message="Permission denied.")
    (found,) = asked_of(here)
    assert "may not look" in found[0]
    assert "Permission denied." in found[0]
    assert found[1] == (
        f"gcloud projects add-iam-policy-binding himari-test --member={ME} --role=roles/iam.securityReviewer "
        "--condition=None"
    )


def test_credentials_that_are_not_there_leave_nothing_else_to_ask(here, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    real = Cloud(project="himari-test", store="gs://bucket", images_file=str(tmp_path / "images.json"))
    found = missing(real, None, spec_of(here))
    assert [item.fix for item in found] == [
        "make images REPOSITORY=us-central1-docker.pkg.dev/himari-test/himari-dev STORE=gs://bucket",
        "gcloud auth application-default login",
    ]
    assert here.project.calls == []


def test_credentials_that_do_not_work_are_renewed(here):
    here.project.fail("GetProject", status=401, message="Request had invalid authentication credentials.")
    (found,) = asked_of(here)
    assert "credentials do not work" in found[0]
    assert found[1] == "gcloud auth application-default login"


CALLS = [
    "GetProject",
    "BatchGetServices",
    "GetDockerImage",
    "GetServiceAccount",
    "GetIamPolicy",
    "TestAccount",
    "GetAccountPolicy",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"status": 503, "retry_after": 7}, {"status": 429}])
def test_a_call_that_fails_once_is_made_again(here, call, fault):
    waits: list[float] = []
    here.project.fail(call, **fault)
    found = missing(here.cloud, here.cloud.images(), spec_of(here), sleep=waits.append)
    assert found == []
    assert waits == [fault.get("retry_after", 1.0)]


def test_a_service_that_never_answers_is_said(here):
    here.project.fail("GetDockerImage", "drop", times=100)
    with pytest.raises(
        SourceError, match=r"cannot see the image: 127\.0\.0\.1:\d+ did not answer.*then run the same again"
    ):
        asked_of(here)


def test_an_api_that_is_off_is_named_where_looking_needs_it(here):
    """What Google answers when the API that a check itself uses was never enabled."""
    disabled = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
        "metadata": {"service": "iam.googleapis.com", "consumer": "projects/424242424242"},
    }
    here.project.fail("GetServiceAccount", status=403, message="IAM API has not been used", details=[disabled])
    (found,) = asked_of(here)
    assert found == (
        "the API iam.googleapis.com is not enabled",
        "gcloud services enable iam.googleapis.com --project=himari-test",
    )


@pytest.mark.parametrize("status", [429, 503])
def test_a_bucket_that_is_busy_is_asked_again(here, status):
    waits: list[float] = []
    here.gcs.fail(status)
    assert missing(here.cloud, here.cloud.images(), spec_of(here), sleep=waits.append) == []
    assert waits == [1.0]


RELEASER = {f"serviceAccount:{PIPELINE}"}
SERVICE_NAME = "projects/himari-test/locations/us-central1/services/himari-dev"
ON_SERVICE = "--region=us-central1 --project=himari-test"


@pytest.fixture
def releasing(here: World) -> Iterator[World]:
    """A project with a Cloud Run service, as Terraform makes it: its roles are on the service."""
    with FakeGoogle() as google:
        run = FakeCloudRun(google, Fleet(), (), {})
        run.services[SERVICE_NAME] = run_v2.Service(name=SERVICE_NAME)
        run.policies[SERVICE_NAME] = dict.fromkeys(("roles/run.developer", "roles/run.invoker"), RELEASER)
        here.project.roles["roles/monitoring.viewer"] = RELEASER
        yield dataclasses.replace(here, run=run)
        run.front.close()


def released_by(here: World, **changes: object) -> list[tuple[str, str]]:
    assert here.run is not None
    endpoints = dataclasses.replace(here.cloud.endpoints, run=here.run.url)
    return asked_of(here, service="himari-dev", endpoints=endpoints, **changes)


def test_who_may_release_is_missing_nothing(releasing):
    assert released_by(releasing) == []


@pytest.mark.parametrize("role", ["roles/run.developer", "roles/run.invoker"])
def test_a_role_on_the_service_that_is_missing_has_its_command(releasing, role):
    del releasing.run.policies[SERVICE_NAME][role]
    command = f"gcloud run services add-iam-policy-binding himari-dev --member=serviceAccount:{PIPELINE} --role={role}"
    assert released_by(releasing) == [
        (f"{PIPELINE} has not {role} on the Cloud Run service himari-dev", f"{command} {ON_SERVICE}")
    ]
    releasing.project.roles["roles/run.admin"] = RELEASER
    assert released_by(releasing) == [], "what holds in the project holds on the service"


def test_a_service_that_iam_is_to_leave_to_its_server_needs_who_may_say_so(releasing):
    opened = {"allow_unauthenticated": True, "id_token_emails": "desk@x.example"}
    ((what, fix),) = released_by(releasing, **opened)
    assert what == f"{PIPELINE} has not roles/run.admin on the Cloud Run service himari-dev"
    assert f"--member=serviceAccount:{PIPELINE} --role=roles/run.admin" in fix
    for service, policy in (({"invoker_iam_disabled": True}, {}), ({}, {"roles/run.invoker": {*RELEASER, "allUsers"}})):
        releasing.run.services[SERVICE_NAME] = run_v2.Service(name=SERVICE_NAME, **service)
        with pytest.MonkeyPatch.context() as patch:
            for role, members in policy.items():
                patch.setitem(releasing.run.policies[SERVICE_NAME], role, members)
            assert released_by(releasing, **opened) == [], "it has been said"
    releasing.run.policies[SERVICE_NAME] = {"roles/run.admin": RELEASER}
    assert released_by(releasing, **opened) == []


def test_the_canary_needs_to_read_the_metrics(releasing):
    del releasing.project.roles["roles/monitoring.viewer"]
    ((what, fix),) = released_by(releasing)
    assert what == f"{PIPELINE} has not roles/monitoring.viewer"
    assert "--role=roles/monitoring.viewer" in fix


def test_the_service_needs_to_read_its_models(releasing):
    del releasing.gcs.roles["roles/storage.objectViewer"]
    command = "gcloud storage buckets add-iam-policy-binding gs://bucket"
    assert released_by(releasing) == [
        (
            f"{SERVICE} has not roles/storage.objectViewer on gs://bucket",
            f"{command} --member=serviceAccount:{SERVICE} --role=roles/storage.objectViewer",
        )
    ]
    assert asked_of(releasing) == [], "who releases to no service needs none of it"
    releasing.gcs.roles["roles/storage.objectAdmin"] = {f"serviceAccount:{SERVICE}"}
    assert released_by(releasing) == []


def test_a_service_that_nobody_may_make_is_made_first(releasing):
    releasing.run.services.clear()
    ((what, fix),) = released_by(releasing)
    assert what == f"there is no Cloud Run service himari-dev in us-central1, and {PIPELINE} may not make one"
    assert fix.startswith("gcloud run deploy himari-dev --image=")
    assert "--no-allow-unauthenticated" in fix
    assert fix.endswith(f"--service-account={SERVICE} {ON_SERVICE}")
    releasing.project.roles["roles/run.admin"] = RELEASER
    assert released_by(releasing) == [], "the first release makes it"


def test_a_custom_job_is_started_as_the_account_of_the_pipeline(here, tmp_path):
    compile_pipelines(tmp_path, COMPONENTS, custom_job=True)
    spec = yaml.safe_load((tmp_path / "training-custom-job.yaml").read_text())

    def found() -> list[tuple[str, str]]:
        return [(one.what, one.fix) for one in missing(here.cloud, here.cloud.images(), spec)]

    assert found() == []
    del here.project.account_roles[PIPELINE]
    assert found() == [
        (
            f"{PIPELINE} may not start machines as itself",
            f"gcloud iam service-accounts add-iam-policy-binding {PIPELINE} --member=serviceAccount:{PIPELINE} "
            "--role=roles/iam.serviceAccountUser",
        )
    ]
    assert asked_of(here) == [], "a step of the pipeline needs none of it"
