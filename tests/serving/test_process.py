"""The real ``python -m serving`` in a process of its own."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from layer3.errors import ConfigurationError
from serving.settings import EXIT_WITH_STDIN, Settings, settings
from tests.serving.support import NEUTRAL, serving_process

#: Whole packages that must not enter the serving process when the model is local.
FORBIDDEN = ("torch", "pandas", "kfp", "google", "gcsfs", "fsspec", "aiohttp", "ccxt", "matplotlib", "scipy", "pyarrow")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Settings("127.0.0.1", 8080, "", False, False)),
        (
            {"PORT": "9000", "MODEL_URI": "gs://b/models/x", "ACCESS_LOG": "1", EXIT_WITH_STDIN: "1"},
            Settings("127.0.0.1", 9000, "gs://b/models/x", True, True),
        ),
        ({"PORT": "8080", "K_SERVICE": "himari"}, Settings("0.0.0.0", 8080, "", False, False)),
        ({"K_SERVICE": "himari", "HOST": "127.0.0.1"}, Settings("127.0.0.1", 8080, "", False, False)),
        ({"HOST": "0.0.0.0", "ACCESS_LOG": "0"}, Settings("0.0.0.0", 8080, "", False, False)),
    ],
)
def test_settings(environment: dict[str, str], expected: Settings) -> None:
    assert settings(environment) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("PORT", ""),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("ACCESS_LOG", "x"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is {value!r}, expected"):
        settings({name: value})


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(policy_folder: Path, how: signal.Signals) -> None:
    with serving_process(MODEL_URI=str(policy_folder)) as server:
        server.client.wait_for_health("ready", process=server.process)
        assert server.client.predict(NEUTRAL).status == 200
        status, output = server.end(how)
    assert status == 0
    assert "Traceback" not in output
    assert "POST /predict" not in output  # the access log is off
    assert re.search(r"model 20260101-\w{12} is ready", output)


def test_the_access_log_can_be_switched_on(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder), ACCESS_LOG="1") as server:
        server.client.wait_for_health("ready", process=server.process)
        server.client.predict(NEUTRAL)
        _, output = server.end()
    assert '"POST /predict HTTP/1.1" 200' in output


def test_nothing_heavy_is_imported_even_while_it_serves(policy_folder: Path) -> None:
    with serving_process("-X", "importtime", MODEL_URI=str(policy_folder)) as server:
        server.client.wait_for_health("ready", process=server.process)
        assert server.client.predict(NEUTRAL).status == 200
        assert server.client.predict("nonsense").status == 422
        assert server.client.ask("GET", "/openapi.json").status == 200
        _, output = server.end()
    imported = {match[1].strip() for match in re.finditer(r"^import time:.*\|([^|]+)$", output, re.MULTILINE)}
    assert {"numpy", "uvicorn", "fastapi", "layer3.agent.policy"} <= imported
    assert {name for name in imported if name.split(".")[0] in FORBIDDEN} - {"google"} == set()
    # `google` alone is the empty namespace that *.pth files of other packages create at start.
    assert [name for name in imported if name.startswith("google.")] == []


def test_without_a_model_it_starts_and_says_so() -> None:
    with serving_process() as server:
        health = server.client.wait_for_health("unavailable", process=server.process)
        assert health.status == 503
        assert server.client.predict(NEUTRAL).status == 503
        status, output = server.end()
    assert status == 0
    assert "ERROR" in output
    assert "MODEL_URI is not set" in output


def test_a_wrong_port_is_one_line_and_status_2() -> None:
    with serving_process(PORT="eighty") as server:
        output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 2
    assert output.decode() == "serving: PORT is 'eighty', expected a number from 1 to 65535\n"


def test_a_taken_port_is_said() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as holder,
        serving_process(PORT=str(holder.getsockname()[1])) as server,
    ):
        output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert "address already in use" in output.decode()


def test_it_ends_with_its_standard_input_if_it_is_told_to(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder), **{EXIT_WITH_STDIN: "1"}) as server:
        server.client.wait_for_health("ready", process=server.process)
        output, _ = server.process.communicate(timeout=20)  # closes its standard input
    assert server.process.returncode == 0
    assert b"Traceback" not in output
