"""The real ``python -m serving`` as on Cloud Run: model and channel on gs://, over TLS, with the machine's tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from layer3.agent.policy import Policy
from layer3.champion import CHANNEL
from serving.channels import promoted
from tests.fakes.machine import Machine, machine
from tests.fakes.servers import wait_for
from tests.serving.conftest import champion_of
from tests.serving.support import NEUTRAL, Process, make_policy, serving_process
from tests.serving.test_process import FORBIDDEN, imported_by

CHANNEL_NAME = "/".join(CHANNEL)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Machine]:
    folder = tmp_path / "machine"
    folder.mkdir()
    with machine(folder, "bucket") as found:
        yield found


def put(cloud: Machine, folder: Path, seed: int) -> Policy:
    """A random policy, in the bucket."""
    policy = make_policy(folder, seed)
    for path in folder.iterdir():
        cloud.gcs.put("bucket", f"models/{policy.model_id}/{path.name}", path.read_bytes())
    return policy


def name(cloud: Machine, policy: Policy) -> None:
    """Let the channel name it."""
    cloud.gcs.put("bucket", CHANNEL_NAME, promoted(None, champion_of(policy)).to_json().encode())


def ready(server: Process) -> str:
    return str(server.client.wait_for_health("ready", process=server.process).body["model_version"])


def following(cloud: Machine) -> dict[str, str]:
    return {**cloud.environment, "MODEL_URI": f"gs://bucket/{CHANNEL_NAME}", "WATCH_SECONDS": "0.05"}


def test_a_folder_is_read_once_with_one_token_and_nothing_heavy_is_imported(cloud: Machine, tmp_path: Path) -> None:
    policy = put(cloud, tmp_path / "a", 1)
    told = {**cloud.environment, "MODEL_URI": f"gs://bucket/models/{policy.model_id}"}
    with serving_process("-X", "importtime", **told) as server:
        assert ready(server) == policy.model_id
        assert server.client.predict(NEUTRAL).status == 200
        status, output = server.end()
    assert status == 0
    assert "Traceback" not in output
    assert len(cloud.gcs.requests) == 2
    assert set(cloud.gcs.authorizations) == {"Bearer token-1"}
    imported = imported_by(output)
    assert {"layer3.net.transport", "serving.source"} <= imported
    assert {each for each in imported if each.split(".")[0] in (*FORBIDDEN, "requests", "urllib3")} - {
        "google"
    } == set()
    assert [each for each in imported if each.startswith("google.")] == []
    assert not imported & {"http.client", "urllib.request", "email.message"}


def test_the_champion_is_changed_while_it_serves_and_an_unchanged_channel_is_not_sent(
    cloud: Machine, tmp_path: Path
) -> None:
    first, second = put(cloud, tmp_path / "a", 1), put(cloud, tmp_path / "b", 2)
    name(cloud, first)
    with serving_process(**following(cloud)) as server:
        assert ready(server) == first.model_id
        looks = len(cloud.gcs.requests)
        wait_for(lambda: len(cloud.gcs.requests) > looks + 3)
        assert {line.rpartition("%2F")[2] for line in cloud.gcs.requests[looks:]} == {CHANNEL[1]}
        name(cloud, second)
        wait_for(lambda: server.client.health().body["model_version"] == second.model_id)
        assert server.client.predict(NEUTRAL).body["model_version"] == second.model_id
        body = server.client.ask("GET", "/status").body
        assert (body["swaps"], body["unreachable"], body["refusals"]) == (1, 0, 0)
        assert server.end()[0] == 0
    assert cloud.metadata.given == ["token-1"]


def test_a_token_that_is_withdrawn_is_replaced_while_it_serves(cloud: Machine, tmp_path: Path) -> None:
    first, second = put(cloud, tmp_path / "a", 1), put(cloud, tmp_path / "b", 2)
    name(cloud, first)
    with serving_process(**following(cloud)) as server:
        ready(server)
        cloud.gcs.tokens = {"token-2"}
        name(cloud, second)
        wait_for(lambda: server.client.health().body["model_version"] == second.model_id)
        assert server.client.ask("GET", "/status").body["unreachable"] == 0
    assert cloud.metadata.given == ["token-1", "token-2"]


def test_tokens_that_live_a_moment_are_renewed_in_time(cloud: Machine, tmp_path: Path) -> None:
    cloud.metadata.expires_in = 1
    name(cloud, put(cloud, tmp_path / "a", 1))
    with serving_process(**following(cloud)) as server:
        ready(server)
        wait_for(lambda: len(cloud.metadata.given) > 8)
        assert server.client.ask("GET", "/status").body["unreachable"] == 0
    # None was ever refused and asked for again.
    assert len(cloud.gcs.authorizations) == len(set(cloud.gcs.authorizations))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (lambda cloud: cloud.gcs.fail(403, times=10**6), "roles/storage.objectViewer on gs://bucket"),
        (lambda cloud: setattr(cloud.gcs, "tokens", {"none"}), "the token of this machine's account is refused"),
        (lambda cloud: cloud.gcs.objects.clear(), "there is nothing at: 'gs://bucket/channels/production.json'"),
        (lambda cloud: setattr(cloud.metadata, "instead", [(404, b"no account")] * 10**6), "gave no access token"),
        (lambda cloud: cloud.gcs.fail(503, times=10**6), "answered HTTP 503 Service Unavailable"),
    ],
    ids=["403", "401", "404", "no token", "503"],
)
def test_what_is_wrong_at_the_start_is_said_and_waited_for(
    cloud: Machine, tmp_path: Path, trouble: Callable[[Machine], None], said: str
) -> None:
    policy = put(cloud, tmp_path / "a", 1)
    name(cloud, policy)
    kept = dict(cloud.gcs.objects)
    trouble(cloud)
    with serving_process(**following(cloud)) as server:
        health = server.client.wait_for_health("unavailable", process=server.process)
        assert health.status == 503
        assert "bucket" not in str(health.body)  # where our files lie is nobody's business
        cloud.gcs.objects.update(kept)
        cloud.gcs.fail(503, times=0)
        cloud.gcs.tokens = cloud.metadata.given
        cloud.metadata.instead = []
        assert ready(server) == policy.model_id
        status, output = server.end()
    assert status == 0
    assert said in output
    assert "Traceback" not in output
    assert "token-1" not in output


@pytest.mark.parametrize("status", [429, 503])
def test_a_passing_disturbance_at_the_start_is_no_failure(cloud: Machine, tmp_path: Path, status: int) -> None:
    policy = put(cloud, tmp_path / "a", 1)
    cloud.gcs.fail(status, times=2)
    told = {**cloud.environment, "MODEL_URI": f"gs://bucket/models/{policy.model_id}"}
    with serving_process(**told) as server:
        assert ready(server) == policy.model_id
        assert server.client.ask("GET", "/status").body["unreachable"] == 0
        assert "ERROR: " not in server.end()[1]


def test_a_slow_and_a_cut_body_keep_nobody_from_answering(cloud: Machine, tmp_path: Path) -> None:
    first, second = put(cloud, tmp_path / "a", 1), put(cloud, tmp_path / "b", 2)
    name(cloud, first)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        content = cloud.gcs.content("bucket", CHANNEL_NAME)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for start in range(0, len(content), 50):
            handler.wfile.write(content[start : start + 50])
            time.sleep(0.05)

    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b"{")

    with serving_process(**following(cloud)) as server:
        ready(server)
        cloud.gcs.instead = [cut, slow, cut, cut]
        name(cloud, second)
        answers: list[int] = []

        def has_changed() -> bool:
            answers.append(server.client.predict(NEUTRAL).status)
            return server.client.health().body["model_version"] == second.model_id

        wait_for(has_changed)
        assert set(answers) == {200}
        assert server.client.ask("GET", "/status").body["unreachable"] == 0
        assert server.end()[0] == 0


def test_credentials_of_ones_own_are_left_to_googles_client(cloud: Machine, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")  # none, so that its client asks nobody
    told = following(cloud) | {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
    with serving_process(**told) as server:
        server.client.wait_for_health("unavailable", process=server.process)
        wait_for(lambda: server.client.ask("GET", "/status").body["unreachable"] > 1)
        _, output = server.end()
    assert output.count(f"is read with Google's client and the credentials of {tmp_path / 'key.json'}") == 1
    assert "cannot read gs://bucket/channels/production.json" in output
    assert cloud.gcs.requests == cloud.metadata.given == []


def test_whoever_only_says_to_be_google_gets_no_token(cloud: Machine, tmp_path: Path) -> None:
    (tmp_path / "nobody.pem").touch()
    told = following(cloud) | {"SSL_CERT_FILE": str(tmp_path / "nobody.pem")}
    with serving_process(**told) as server:
        server.client.wait_for_health("unavailable", process=server.process)
        _, output = server.end()
    assert "CERTIFICATE_VERIFY_FAILED" in output
    assert cloud.gcs.requests == []
