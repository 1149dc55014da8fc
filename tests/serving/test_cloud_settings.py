"""``config/cloud.yaml``: what is read, completed and refused."""

import json
from pathlib import Path

import pytest
import yaml
from google.auth.credentials import AnonymousCredentials

from layer3.errors import ConfigurationError
from serving.cloud import CLOUD, Cloud, Endpoints, Images, load_cloud

ROOT = Path(__file__).resolve().parents[2]
SAID = {"project": "some-project", "store": "gs://some-bucket/himari"}
PINNED = f"us-central1-docker.pkg.dev/p/r/components@sha256:{'a' * 64}"


def written(folder: Path, **said: object) -> Path:
    path = folder / "cloud.yaml"
    path.write_text(yaml.safe_dump(SAID | said))
    return path


def test_what_is_left_out_has_its_default_and_accounts_are_completed(tmp_path):
    cloud = load_cloud(written(tmp_path, serving_service_account="who@else.iam.gserviceaccount.com"), {})
    assert cloud.parent == "projects/some-project/locations/us-central1"
    assert cloud.bucket == "some-bucket"
    assert cloud.pipeline_service_account == "himari-dev-pipeline@some-project.iam.gserviceaccount.com"
    assert cloud.serving_service_account == "who@else.iam.gserviceaccount.com"
    assert cloud.endpoints == Endpoints()
    assert not cloud.emulated


def test_the_environment_wins_over_the_file(tmp_path):
    environment = {"HIMARI_PROJECT": "other-project", "HIMARI_REGION": "europe-west4", "HIMARI_STORE": "gs://other"}
    cloud = load_cloud(written(tmp_path), environment)
    assert (cloud.project, cloud.region, cloud.store) == ("other-project", "europe-west4", "gs://other")
    assert cloud.pipeline_service_account.endswith("@other-project.iam.gserviceaccount.com")


def test_the_file_of_the_repository_must_be_edited_first():
    with pytest.raises(ConfigurationError, match=r"cloud\.yaml: project is 'YOUR-PROJECT-ID'"):
        load_cloud(ROOT / CLOUD, {})
    with pytest.raises(ConfigurationError, match=r"cloud\.yaml: store is 'gs://YOUR-PROJECT-ID-himari-dev'"):
        load_cloud(ROOT / CLOUD, {"HIMARI_PROJECT": "some-project"})


def test_every_default_of_the_file_is_the_programs(tmp_path):
    said = yaml.safe_load((ROOT / CLOUD).read_text())
    defaults = Cloud()
    assert {name: getattr(defaults, name) for name in said if name not in SAID} == {
        name: value for name, value in said.items() if name not in SAID
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"project": ""}, "project is missing"),
        ({"store": ""}, "store is missing"),
        ({"project": 12345}, "project is 12345"),
        ({"project": "Some-Project"}, "a project id"),
        ({"region": "us central"}, "a region such as"),
        ({"store": "s3://bucket"}, "gs://bucket or gs://bucket/path"),
        ({"store": "gs://Bucket"}, "gs://bucket or gs://bucket/path"),
        ({"store": "gs://bucket/"}, "gs://bucket or gs://bucket/path"),
        ({"experiment": "Has Spaces"}, "experiment is"),
        ({"service": "UPPER"}, "service is"),
        ({"service": None}, "service is None"),
        ({"api_keys_secret": "projects/p/secrets/s"}, "api_keys_secret is 'projects/p/secrets/s'"),
        ({"id_token_emails": "desk"}, "id_token_emails is 'desk'; it must be accounts' e-mail addresses"),
        ({"id_token_emails": ["a@x.example"]}, "id_token_emails is ['a@x.example']"),
        ({"allow_unauthenticated": "yes"}, "allow_unauthenticated is 'yes'; it must be true or false"),
        ({"pipeline_service_account": "someone@gmail.com"}, "pipeline_service_account is"),
        ({"images_file": ""}, "images_file is"),
        ({"canary_window_seconds": 0}, "canary_window_seconds is 0"),
        ({"max_instances": 0}, "max_instances is 0"),
        ({"max_cost_usd": 0}, "max_cost_usd is 0"),
        ({"max_cost_usd": True}, "max_cost_usd is True"),
        ({"register_rejected": "yes"}, "register_rejected is 'yes'; it must be true or false"),
        ({"max_cost_usd": float("nan")}, "max_cost_usd is nan"),
        ({"max_cost_usd": "10"}, "max_cost_usd is the text '10'"),
        ({"projct": "x"}, "did you mean 'project'"),
        ({"endpoints": {"vertx": ""}}, "endpoints.vertx"),
        ({"endpoints": {"vertex": "http://vertex.example:80"}}, "endpoints: vertex is"),
        ({"endpoints": {"vertex": "https://127.0.0.1:80"}}, "endpoints: vertex is"),
        ({"endpoints": {"vertex": "http://127.0.0.1"}}, "endpoints: vertex is"),
        ({"endpoints": {"vertex": "http://127.0.0.1:80/v1"}}, "endpoints: vertex is"),
        ({"endpoints": {"vertex": 80}}, "endpoints: vertex is 80"),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_field(tmp_path, said, message):
    path = written(tmp_path, **said)
    with pytest.raises(ConfigurationError) as refused:
        load_cloud(path, {})
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


def test_nobodys_credentials_are_sent_to_an_emulator(tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    real = load_cloud(written(tmp_path), {})
    with pytest.raises(ConfigurationError, match="gcloud auth application-default login"):
        real.credentials()
    emulated = load_cloud(written(tmp_path, endpoints={"vertex": "http://127.0.0.1:8600"}), {})
    assert isinstance(emulated.credentials(), AnonymousCredentials)


def test_the_images_are_both_there_and_pinned(tmp_path):
    path = tmp_path / "images.json"
    cloud = load_cloud(written(tmp_path, images_file=str(path)), {})
    with pytest.raises(ConfigurationError, match="cannot read the images of the last build"):
        cloud.images()
    path.write_text(json.dumps({"components": PINNED, "serving": PINNED}))
    assert cloud.images() == Images(PINNED, PINNED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "components and serving"),
        (json.dumps({"components": PINNED}), "components and serving"),
        (json.dumps({"components": PINNED, "serving": PINNED, "extra": ""}), "components and serving"),
        (json.dumps({"components": PINNED, "serving": "image:latest"}), "serving is 'image:latest'"),
        (json.dumps({"components": 1, "serving": PINNED}), "components is 1"),
    ],
)
def test_images_that_are_not_pinned_are_refused(tmp_path, text, message):
    path = tmp_path / "images.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"images\.json") as refused:
        load_cloud(written(tmp_path, images_file=str(path)), {}).images()
    assert message in str(refused.value)
