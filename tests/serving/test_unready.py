"""A model that cannot serve: the server starts, says why, and makes no number up."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from layer3 import contract
from layer3.agent.policy import Policy
from tests.fakes.gcs import FakeGcs
from tests.serving.support import NEUTRAL, edit_manifest, make_policy, serve, tamper_weights


def assert_unready(model_uri: str, caplog: pytest.LogCaptureFixture, *said: str, logged: str | None = None) -> None:
    """503 with every phrase of ``said`` from /health and /predict alike; one error in the log, with ``logged``.

    Only the log says where the files lie.
    """
    with serve(model_uri) as client:
        health = client.wait_for_health("unavailable")
        prediction = client.predict(NEUTRAL)
        assert client.ask("GET", "/").status == 200
        assert client.ask("GET", "/docs").status == 200
        status = client.ask("GET", "/status")
    assert health.status == 503
    assert health.body["model_version"] is None
    assert prediction.status == 503
    assert "position_multiplier" not in prediction.body
    assert "confidence" not in prediction.body
    assert health.body["reason"] in prediction.body["detail"]
    errors = [
        record.getMessage() for record in caplog.records if record.name == "serving" and record.levelno == logging.ERROR
    ]
    assert len(errors) == 1
    for phrase in said:
        assert phrase in health.body["reason"]
    for phrase in said if logged is None else (logged,):
        assert phrase in errors[0]
    folder = model_uri.rstrip("/").rpartition("/")[0]
    for answer in (health, prediction, status):
        assert not folder or f"{folder}/".encode() not in answer.raw


def test_no_model_uri(caplog: pytest.LogCaptureFixture) -> None:
    assert_unready("", caplog, "MODEL_URI is not set")


@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_a_folder_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str) -> None:
    folder = str(tmp_path / "nothing")
    assert_unready(folder + ending, caplog, "no policy at nothing", logged=folder)


def test_an_address_nobody_understands(caplog: pytest.LogCaptureFixture) -> None:
    assert_unready("s3://bucket/model", caplog, "model: only local paths and gs://", logged="s3://bucket/model")


def test_another_contract_names_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_policy(tmp_path)
    edit_manifest(tmp_path, contract="himari-state-12/7")
    assert_unready(str(tmp_path), caplog, "himari-state-12/7", contract.VERSION)


def test_damaged_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_policy(tmp_path)
    tamper_weights(tmp_path)
    assert_unready(str(tmp_path), caplog, "policy.safetensors has sha256", "copy it again")


def test_golden_pairs_of_another_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_policy(tmp_path / "a", seed=1)
    make_policy(tmp_path / "b", seed=2)
    golden = json.loads((tmp_path / "b" / "manifest.json").read_text())["golden"]
    edit_manifest(tmp_path / "a", golden=golden)
    assert_unready(str(tmp_path / "a"), caplog, "does not hold the network that was trained")


@pytest.mark.parametrize("changes", [{"golden": 5}, {"golden": [{}]}, {"policy_sha256": 7}, {"golden": {"a": "b"}}])
def test_a_malformed_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]) -> None:
    make_policy(tmp_path)
    edit_manifest(tmp_path, **changes)
    assert_unready(str(tmp_path), caplog, f"{tmp_path.name}/", logged=str(tmp_path))


def test_a_channel_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_unready(str(tmp_path / "channels" / "production.json"), caplog, "there is nothing at", "production.json")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"model_id": 5}', "{" * 100_000, '{"a":' * 100_000])
def test_a_malformed_channel(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "channels" / "production.json"
    path.parent.mkdir()
    path.write_text(content)
    assert_unready(str(path), caplog, "production.json is not a channel file", "release a model again")


def test_a_channel_elsewhere_than_beside_models(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    (store / "elsewhere.json").write_bytes((store / "channels" / "production.json").read_bytes())
    assert_unready(str(store / "elsewhere.json"), caplog, "expected a policy folder or …/channels/production.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_id": "20200101-gone"}, "no policy at"),
        ({"model_id": "../../etc"}, "model id '../../etc'"),
        ({"policy_sha256": "0" * 64}, "is not the model that was released"),
    ],
)
def test_a_channel_that_names_another_model(
    store: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, str], said: str
) -> None:
    path = store / "channels" / "production.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert_unready(str(path), caplog, said)


def test_a_bucket_without_the_model(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with FakeGcs("store") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        missing = "x/policy.safetensors is missing"
        assert_unready("gs://store/models/x", caplog, missing, logged=f"gs://store/models/{missing}")


def test_a_bucket_that_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with FakeGcs("store") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        gcs.fail(403, times=9)
        assert_unready("gs://store/models/x", caplog, "the store of models cannot be read", logged="Forbidden")


def test_damage_in_a_bucket_is_reported_with_the_buckets_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_policy(tmp_path)
    tamper_weights(tmp_path)
    with FakeGcs("store") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        for path in tmp_path.iterdir():
            gcs.put("store", f"m/{path.name}", path.read_bytes())
        said = "m/policy.safetensors has sha256"
        assert_unready("gs://store/m", caplog, said, logged=f"gs://store/{said}")


def test_a_failure_nobody_foresaw_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object) -> Policy:
        raise ZeroDivisionError("what")

    monkeypatch.setattr("serving.service.load_folder", bug)
    with serve("somewhere") as client:
        assert "ZeroDivisionError" in client.wait_for_health("unavailable").body["reason"]
        assert client.predict(NEUTRAL).status == 503
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("kind", ["folder", "channel"])
@pytest.mark.parametrize("where", ["local", "gs"])
def test_and_it_is_ready_from_everywhere(store: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str) -> None:
    model_id = json.loads((store / "channels" / "production.json").read_text())["model_id"]
    below = f"models/{model_id}" if kind == "folder" else "channels/production.json"
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        for path in store.rglob("*"):
            if path.is_file():
                gcs.put("bucket", f"deep/{path.relative_to(store)}", path.read_bytes())
        uri = f"{store}/{below}" if where == "local" else f"gs://bucket/deep/{below}"
        with serve(uri) as client:
            assert client.wait_for_health("ready").body["model_version"] == model_id


@pytest.mark.parametrize("spelling", ["channels/production.json", "./channels/production.json"])
def test_a_channel_relative_to_the_working_directory(
    store: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(store)
    with serve(spelling) as client:
        client.wait_for_health("ready")
