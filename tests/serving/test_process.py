"""The real ``python -m serving`` in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from serving.settings import EXIT_WITH_STDIN
from tests.serving.support import NEUTRAL, Process, exchange, read_answers, request, serving_process, statuses

#: Whole packages that must not enter the serving process when the model is local.
FORBIDDEN = (
    "torch",
    "pandas",
    "kfp",
    "google",
    "gcsfs",
    "fsspec",
    "aiohttp",
    "ccxt",
    "matplotlib",
    "scipy",
    "pyarrow",
    "fastapi",
    "starlette",
    "pydantic",
    "click",
)
PREDICT = request("POST", "/predict", json.dumps({"state": NEUTRAL}).encode())
#: A server that gives requests under way more time than a busy machine takes for anything else.
PATIENT = (
    "-c",
    "import runpy, serving.server as s; s._DRAIN_SECONDS = 200.0; runpy.run_module('serving', run_name='__main__')",
)


def ready(server: Process) -> None:
    server.client.wait_for_health("ready", process=server.process)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(policy_folder: Path, how: signal.Signals) -> None:
    with serving_process(MODEL_URI=str(policy_folder), ACCESS_LOG_PER_SECOND="0") as server:
        ready(server)
        assert server.client.predict(NEUTRAL).status == 200
        status, output = server.end(how)
    assert status == 0
    assert "Traceback" not in output
    assert "/predict" not in output  # only errors are logged
    assert re.search(r"model 20260101-\w{12} is ready", output)


def test_the_access_log_is_json_with_the_requests_name(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder)) as server:
        ready(server)
        headers = {"Content-Type": "application/json", "X-Request-Id": "desk-7"}
        server.client.ask("POST", "/predict", json.dumps({"state": NEUTRAL}), headers)
        _, output = server.end()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("requestId") == "desk-7"]
    assert line["httpRequest"]["requestUrl"] == "/predict"
    assert line["httpRequest"]["status"] == 200


def imported_by(output: str) -> set[str]:
    return {match[1].strip() for match in re.finditer(r"^import time:.*\|([^|]+)$", output, re.MULTILINE)}


def test_nothing_heavy_is_imported_even_while_it_serves(policy_folder: Path) -> None:
    with serving_process("-X", "importtime", MODEL_URI=str(policy_folder)) as server:
        ready(server)
        assert server.client.predict(NEUTRAL).status == 200
        assert server.client.predict("nonsense").status == 422
        for path, status in (("/", 200), ("/docs", 200), ("/openapi.json", 200), ("/metrics", 200), ("/nothing", 404)):
            assert server.client.ask("GET", path).status == status
        _, output = server.end()
    imported = imported_by(output)
    assert {"numpy", "uvicorn.server", "httptools", "msgspec", "layer3.agent.policy"} <= imported
    assert {name for name in imported if name.split(".")[0] in FORBIDDEN} - {"google"} == set()
    # `google` alone is the empty namespace that *.pth files of other packages create at start.
    assert [name for name in imported if name.startswith("google.")] == []


def test_one_core_gets_one_thread(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with serving_process(MODEL_URI=str(policy_folder)) as server:
        ready(server)
        rows = json.dumps({"states": [NEUTRAL] * 4096})
        assert server.client.ask("POST", "/predict:batch", rows, {"Content-Type": "application/json"}).status == 200
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    threads = int(re.findall(r"Threads:\s+(\d+)", status)[0])
    assert threads <= 2  # the loop, and whoever loads the model


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
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 2
    assert output.decode() == "serving: PORT is 'eighty', expected a number from 1 to 65535\n"


def test_it_does_not_start_open_unless_it_is_told_to() -> None:
    with serving_process(AUTH="") as server:
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 2
    (line,) = output.decode().splitlines()
    for choice in ("API_KEYS_FILE", "ID_TOKEN_AUDIENCE", "AUTH=off"):
        assert choice in line


def test_a_file_of_keys_that_is_not_there_is_one_line_and_status_2(tmp_path: Path) -> None:
    with serving_process(API_KEYS_FILE=str(tmp_path / "none")) as server:
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 2
    (line,) = output.decode().splitlines()
    assert str(tmp_path / "none") in line


def test_an_open_server_warns(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder)) as server:
        ready(server)
        _, output = server.end()
    assert "WARNING: AUTH=off" in output


def test_a_taken_port_is_said() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as holder,
        serving_process(PORT=str(holder.getsockname()[1])) as server,
    ):
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 1
    assert "address already in use" in output.decode().lower()


def test_a_host_that_is_none_is_said() -> None:
    with serving_process(HOST=f"{'x' * 70}.invalid") as server:
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 1
    assert output.decode().startswith(f"ERROR: cannot listen on HOST '{'x' * 70}.invalid', PORT ")
    assert len(output.splitlines()) == 1


def test_it_ends_with_its_standard_input_if_it_is_told_to(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder), **{EXIT_WITH_STDIN: "1"}) as server:
        ready(server)
        output, _ = server.process.communicate(timeout=120)  # closes its standard input
    assert server.process.returncode == 0
    assert b"Traceback" not in output


# Draining


def test_what_is_under_way_is_answered_after_sigterm_while_health_says_draining(policy_folder: Path) -> None:
    with serving_process(*PATIENT, MODEL_URI=str(policy_folder)) as server:
        ready(server)
        port = server.client.port
        with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(PREDICT + PREDICT[:-5])
            assert statuses(read_answers(slow, 1)) == [200]  # so the second one is under way
            server.process.send_signal(signal.SIGTERM)
            health = server.client.wait_for_health("draining", process=server.process)
            assert health.status == 503
            assert b"connection: close" in exchange(port, PREDICT)  # whoever has not heard yet is answered, and told
            assert statuses(exchange(port, request("GET", "/docs"), answers=2)) == [200]  # uvicorn's own way, likewise
            slow.sendall(PREDICT[-5:])
            assert statuses(read_answers(slow, 1)) == [200]
        output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 0
    assert b"Traceback" not in output


def test_idle_connections_keep_nobody_from_stopping(policy_folder: Path) -> None:
    with serving_process(*PATIENT, MODEL_URI=str(policy_folder)) as server:
        ready(server)
        with socket.create_connection(("127.0.0.1", server.client.port), timeout=60) as idle:
            idle.sendall(PREDICT)
            assert statuses(read_answers(idle, 1)) == [200]
            began = time.monotonic()
            status, _ = server.end()
            assert idle.recv(1) == b""
    assert status == 0
    assert time.monotonic() - began < 100  # less than the time for requests under way


def test_a_sender_that_never_ends_is_cut_before_the_platform_kills(policy_folder: Path) -> None:
    with serving_process(MODEL_URI=str(policy_folder)) as server:
        ready(server)
        with socket.create_connection(("127.0.0.1", server.client.port), timeout=60) as slow:
            slow.sendall(PREDICT + PREDICT[:-5])
            assert statuses(read_answers(slow, 1)) == [200]
            server.process.send_signal(signal.SIGTERM)
            answer = read_answers(slow, 1)
            output, _ = server.process.communicate(timeout=120)
    assert statuses(answer) in ([408], [503])
    assert server.process.returncode == 0
    assert b"Traceback" not in output


def test_ctrl_c_twice_does_not_wait(policy_folder: Path) -> None:
    with serving_process(*PATIENT, MODEL_URI=str(policy_folder)) as server:
        ready(server)
        with socket.create_connection(("127.0.0.1", server.client.port), timeout=60) as slow:
            slow.sendall(PREDICT + PREDICT[:-5])
            assert statuses(read_answers(slow, 1)) == [200]
            server.process.send_signal(signal.SIGINT)
            server.client.wait_for_health("draining", process=server.process)
            began = time.monotonic()
            server.end(signal.SIGINT)
    assert time.monotonic() - began < 100
