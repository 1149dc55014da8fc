from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from layer3 import contract
from layer3.errors import ConfigurationError, ContractError, SourceError
from layer3.remote import CONTRACT_HEADER, RemoteAnswer, fetch_multiplier

GOOD = {"position_multiplier": 1.25, "confidence": 0.6, "latency_ms": 0.4, "model_version": "20250101-abc"}
STATE = np.linspace(-1, 1, 16, dtype=np.float32)
Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """A real HTTP server on a free loopback port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with contextlib.suppress(OSError):  # the caller may have hung up
                reply(self, {"path": self.path, "body": seen, "contract": self.headers[CONTRACT_HEADER]})

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def test_asks_and_answers_as_the_api_says() -> None:
    seen: dict[str, Any] = {}

    def reply(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        seen.update(request)
        answer(json.dumps(GOOD).encode(), headers={CONTRACT_HEADER: contract.VERSION})(handler, request)

    with serving(reply) as url:
        assert fetch_multiplier(url + "/", STATE, timeout_s=5) == RemoteAnswer(1.25, 0.6, "20250101-abc")
    assert seen == {"path": "/predict", "body": {"state": STATE.tolist()}, "contract": contract.VERSION}


def test_another_contract_is_refused_with_both_names() -> None:
    with (
        serving(answer(json.dumps(GOOD).encode(), headers={CONTRACT_HEADER: "old/0"})) as url,
        pytest.raises(ContractError, match=r"'old/0'.*'himari-state-16/1'"),
    ):
        fetch_multiplier(url, STATE, timeout_s=5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position_multiplier": 2.5}, r"position_multiplier is 2.5, expected a number in \[0, 2\]"),
        ({"position_multiplier": -0.1}, "position_multiplier is -0.1"),
        ({"position_multiplier": float("nan")}, "position_multiplier is nan"),
        ({"position_multiplier": True}, "position_multiplier is True"),
        ({"position_multiplier": "1.0"}, "position_multiplier is '1.0'"),
        ({"position_multiplier": None}, "position_multiplier is missing"),
        ({"position_multiplier": 10**400}, "position_multiplier is 1000"),
        ({"confidence": 1.1}, r"confidence is 1.1, expected a number in \[0, 1\]"),
        ({"model_version": ""}, "model_version is ''"),
    ],
)
def test_an_answer_that_breaks_the_api_is_refused(change: dict[str, Any], says: str) -> None:
    with serving(answer(json.dumps(GOOD | change).encode())) as url, pytest.raises(SourceError, match=says):
        fetch_multiplier(url, STATE, timeout_s=5)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"no model yet", 503, "answered HTTP 503: no model yet"),
        (b"oops", 500, "answered HTTP 500"),
        (b"", 302, "answered HTTP 302"),
        (b"<html>", 200, "not JSON"),
        (b"\xff\xfe", 200, "not JSON"),
        (b"[1]", 200, r"answered \[1\], expected a JSON object"),
        (b"[" * 60_000, 200, "not JSON"),
        (b" " * 70_000, 200, "exceeds 65536 bytes"),
    ],
)
def test_statuses_and_bodies(body: bytes, status: int, says: str) -> None:
    with serving(answer(body, status)) as url, pytest.raises(SourceError, match=says):
        fetch_multiplier(url, STATE, timeout_s=5)


def timed_out(url: str, timeout_s: float) -> float:
    start = time.monotonic()
    with pytest.raises(SourceError, match=f"did not answer in full within {timeout_s * 1000:.0f} ms"):
        fetch_multiplier(url, STATE, timeout_s=timeout_s)
    return time.monotonic() - start


def test_a_dripping_server_cannot_stretch_the_deadline() -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        while not stop.wait(0.02):  # every read is answered well within the socket's own timeout
            handler.wfile.write(b" ")

    with serving(drip) as url:
        try:
            assert timed_out(url, 0.15) < 0.4
        finally:
            stop.set()


def test_dripping_headers_and_a_silent_server_neither() -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.02):
            handler.wfile.write(b"X")

    with serving(drip) as url:
        try:
            assert timed_out(url, 0.1) < 0.35
        finally:
            stop.set()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(SourceError, match="did not answer"):
            fetch_multiplier(f"http://127.0.0.1:{silent.getsockname()[1]}", STATE, timeout_s=0.1)
        assert time.monotonic() - start < 0.35


def test_the_worker_ends_after_a_timeout() -> None:
    stop = threading.Event()
    with serving(lambda handler, _: (stop.wait(5), None)[1]) as url:
        try:
            timed_out(url, 0.05)
            workers = [t for t in threading.enumerate() if t.name == "himari-remote"]
            for worker in workers:
                worker.join(1.0)
            assert not any(worker.is_alive() for worker in workers)
        finally:
            stop.set()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SourceError, match="Connection refused"):
        fetch_multiplier(f"http://127.0.0.1:{port}", STATE, timeout_s=2)


def test_a_server_that_hangs_up() -> None:
    def hang_up(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    with serving(hang_up) as url, pytest.raises(SourceError, match="did not answer"):
        fetch_multiplier(url, STATE, timeout_s=2)


@pytest.mark.parametrize(
    "endpoint", ["localhost:8080", "ftp://x", "http://", "http://h:port", "http://[::1", "http://h h"]
)
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="endpoint"):
        fetch_multiplier(endpoint, STATE)


@pytest.mark.parametrize("state", [np.zeros(15), np.full(16, np.nan), np.zeros((1, 16))])
def test_states_that_are_none(state: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="16 finite numbers"):
        fetch_multiplier("http://127.0.0.1:1", state)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_timeouts_that_are_none(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s"):
        fetch_multiplier("http://127.0.0.1:1", STATE, timeout_s=timeout)
