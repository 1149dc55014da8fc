"""The engine and the runner against the real server, closed by an API key."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from layer3.errors import ConfigurationError
from layer3.live.configuration import Layer3Config, load_config
from layer3.live.metrics import Metrics
from layer3.live.phase1 import Layer3Phase1
from tests.fakes.servers import free_port, wait_for
from tests.fakes.strict import strict_server
from tests.live.desk import CALM, signal_of
from tests.live.test_runner import fresh, run, start
from tests.serving.support import JSON, NEUTRAL, Client, make_policy, serving_process

ONE, TWO, WRONG = "key-number-one-0123456789", "key-number-two-0123456789", "key-of-nobody-0123456789"
#: Longer than in production: the machine that runs the tests may be busy.
BUDGET_MS = 5_000.0


def put(path: Path, content: str) -> Path:
    spare = path.with_name(path.name + ".new")
    spare.write_text(content)
    return spare.replace(path)


def taken(client: Client, key: str) -> bool:
    body = json.dumps({"state": NEUTRAL})
    return client.ask("POST", "/predict", body, {**JSON, "X-API-Key": key}).status == 200


def settings(url: str, key: Path | None, **policy: object) -> Layer3Config:
    told = {"endpoint": url, "api_key_file": None if key is None else str(key), "timeout_ms": BUDGET_MS, **policy}
    return load_config(None, {"deployment_mode": "cloud", "policy": told})


@contextmanager
def desk(url: str, key: Path | None) -> Iterator[Layer3Phase1]:
    with Layer3Phase1(settings(url, key)) as engine:
        yield engine


def sized(engine: Layer3Phase1) -> Any:
    return engine.calculate_position(signal_of(timestamp_ns=time.time_ns()), CALM, 100.0)


def test_a_runner_keeps_its_server_while_keys_rotate_and_nobody_sees_them(tmp_path: Path) -> None:
    make_policy(tmp_path / "policy")
    theirs, ours = put(tmp_path / "keys.txt", f"desk:{ONE}"), put(tmp_path / "key", f"{ONE}\n")
    log, errors, state, port = tmp_path / "log.jsonl", tmp_path / "errors", tmp_path / "state", free_port()
    told: list[dict[str, Any]] = []
    with serving_process(MODEL_URI=str(tmp_path / "policy"), API_KEYS_FILE=str(theirs)) as server:
        server.client.wait_for_health("ready", process=server.process)
        url = f"http://127.0.0.1:{server.client.port}"
        cloud = {"DEPLOYMENT_MODE": "cloud", "POLICY__ENDPOINT": url, "POLICY__API_KEY_FILE": ours}
        more = {"POLICY__TIMEOUT_MS": BUDGET_MS, "METRICS__PORT": port, "STATE__PATH": state}
        with start("--log", log, errors=errors, **cloud, **more) as runner:
            assert runner.stdin is not None
            assert runner.stdout is not None

            def source() -> str:
                assert runner.stdin is not None
                assert runner.stdout is not None
                runner.stdin.write(fresh())
                runner.stdin.flush()
                told.append(json.loads(runner.stdout.readline()))
                assert told[-1]["refusal"] is None
                return str(told[-1]["multiplier_source"])

            assert source() == "gcp_api"
            # Add the new key, move the caller over, remove the old one.
            put(theirs, f"desk:{ONE}\ndesk:{TWO}")
            wait_for(lambda: taken(server.client, TWO))
            put(ours, f"{TWO}\n")
            wait_for(lambda: source() == "gcp_api" and "was read anew" in errors.read_text())
            put(theirs, f"desk:{TWO}")
            wait_for(lambda: not taken(server.client, ONE))
            assert source() == "gcp_api"
            assert {each["multiplier_source"] for each in told} == {"gcp_api"}
            # A file that somebody emptied changes nothing.
            put(ours, "")
            wait_for(lambda: "the one before is used" in errors.read_text())
            assert source() == "gcp_api"
            # A wrong key: every size is there in time, with the reason, until the right one is.
            put(ours, WRONG)
            wait_for(lambda: source() == "fallback_kelly")
            refused = told[-1]
            why = r"gcp_api: http://127\.0\.0\.1:\d+ refused the API key: HTTP 401: .*none of those that may call.*"
            assert re.fullmatch(why, refused["passed_over"][0])
            assert refused["multiplier"] == 1.0
            assert refused["position_size_usd"] != 0.0
            assert refused["latency_ms"] < BUDGET_MS
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                metrics = answer.read().decode()
            assert re.search(r"^himari_l3_policy_unauthorised_total 1\.0$", metrics, re.MULTILINE)
            assert "himari_l3_circuit_breaker_state 0.0" in metrics
            put(ours, TWO)
            wait_for(lambda: source() == "gcp_api")
            runner.stdin.close()
            rest = runner.stdout.read().decode()
            assert runner.wait(timeout=60) == 0
        _, served = server.end()
    said = errors.read_text()
    assert said.count("the one before is used") == 1
    assert "the policy's server refuses the key or token of this program" in said
    kept = [path.read_text() for path in tmp_path.glob("log*.jsonl")] + [state.read_text()]
    assert str(ours) in kept[0], "the log names the file"
    seen = "".join([json.dumps(told), rest, said, metrics, served, *kept])
    assert not [key for key in (ONE, TWO, WRONG) if key in seen]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read the API key in {}: No such file or directory"),
        ("", "{} is empty: write the API key there"),
        ("my secret key 0123", "{} holds no API key: expected 16 to 256 printable characters of ASCII, no space, and "
         "nothing else"),
        ("my-secret\tkey-0123", "{} holds no API key: expected 16 to 256 printable characters of ASCII, no space, and "
         "nothing else"),
    ],
)  # fmt: skip
def test_a_runner_without_a_usable_key_does_not_start(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    cloud = {"DEPLOYMENT_MODE": "cloud", "POLICY__ENDPOINT": "http://127.0.0.1:1", "POLICY__API_KEY_FILE": path}
    done = run(stdin=fresh(), **cloud)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"error: {why.format(path)}\n"


def test_a_key_is_not_sent_where_others_can_read_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sent over https only"):
        Layer3Phase1(settings("http://policy.example:8080", put(tmp_path / "key", ONE)))


def test_another_key_file_is_taken_up_while_running_and_a_bad_one_is_not(tmp_path: Path) -> None:
    with strict_server() as server, desk(server.url, None) as engine:
        server.accepted = {ONE}
        assert "asks for an API key or an ID token, and was sent none" in sized(engine).passed_over[0]
        before = engine.config
        with pytest.raises(ConfigurationError, match="cannot read the API key"):
            engine.reload(settings(server.url, tmp_path / "none"))
        assert engine.config is before
        engine.reload(settings(server.url, put(tmp_path / "key", ONE)))
        assert sized(engine).multiplier_source == "gcp_api"
        assert engine.counters["unauthorised"] == 1


def test_refused_keys_are_counted_and_told_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    with strict_server() as server, desk(server.url, put(tmp_path / "key", WRONG)) as engine:
        Metrics(registry, engine)
        for _ in range(5):
            assert sized(engine).multiplier_source == "fallback_kelly"
        server.status = 422
        assert "HTTP 422" in sized(engine).passed_over[0]
    assert registry.get_sample_value("himari_l3_policy_unauthorised_total") == 5.0
    refusals = [record for record in caplog.records if "refuses the key or token" in record.message]
    assert [record.levelno for record in refusals] == [logging.ERROR]
    assert WRONG not in caplog.text
