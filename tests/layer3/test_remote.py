"""One caller and a server; what goes wrong in bulk is in ``test_remote_faults.py``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest

from layer3 import contract
from layer3.breaker import BreakerConfig, CircuitBreaker
from layer3.errors import (
    CircuitOpenError,
    ConfigurationError,
    ContractError,
    HimariError,
    RefusedError,
    SourceError,
)
from layer3.remote import PolicyClient, RemoteAnswer, fetch_multiplier
from tests.fakes.policy_server import BEHAVIOURS, PolicyServer
from tests.fakes.threads import at_once
from tests.fakes.timing import quickest
from tests.fakes.web import Handler, answering

GOOD = {"position_multiplier": 1.25, "confidence": 0.6, "latency_ms": 0.4, "model_version": "20250101-abc"}
STATE = np.linspace(-1, 1, 16, dtype=np.float32)
Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """A real HTTP server on a free loopback port; yields its URL."""

    class Replying(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            seen = json.loads(self.content())
            with contextlib.suppress(OSError):  # the caller may have hung up
                reply(
                    self, {"path": self.path, "body": seen, "headers": dict(self.headers), "from": self.client_address}
                )

    with answering(Replying) as url:
        yield url


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
        answer(json.dumps(GOOD).encode(), headers={contract.HEADER: contract.VERSION})(handler, request)

    with serving(reply) as url:
        assert fetch_multiplier(url + "/", STATE, timeout_s=60) == RemoteAnswer(1.25, 0.6, "20250101-abc")
    assert (seen["path"], seen["body"]) == ("/predict", {"state": STATE.tolist()})
    assert seen["headers"][contract.HEADER] == contract.VERSION
    assert seen["headers"]["Content-Type"] == "application/json"


def test_another_contract_is_refused_with_both_names() -> None:
    with (
        serving(answer(json.dumps(GOOD).encode(), headers={contract.HEADER: "old/0"})) as url,
        pytest.raises(ContractError, match=r"'old/0'.*'himari-state-16/1'"),
    ):
        fetch_multiplier(url, STATE, timeout_s=60)


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
        fetch_multiplier(url, STATE, timeout_s=60)


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
        fetch_multiplier(url, STATE, timeout_s=60)


def timed_out(url: str, timeout_s: float, below: float) -> bool:
    def call() -> None:
        with pytest.raises(SourceError, match=f"did not answer in full within {timeout_s * 1000:.0f} ms"):
            fetch_multiplier(url, STATE, timeout_s=timeout_s)

    return quickest(call, below) < below


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
            assert timed_out(url, 0.15, below=0.4)
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
            assert timed_out(url, 0.1, below=0.35)
        finally:
            stop.set()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert timed_out(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1, below=0.35)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SourceError, match="Connection refused"):
        fetch_multiplier(f"http://127.0.0.1:{port}", STATE, timeout_s=60)


def test_a_server_that_hangs_up() -> None:
    def hang_up(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    with serving(hang_up) as url, pytest.raises(SourceError, match="did not answer"):
        fetch_multiplier(url, STATE, timeout_s=60)


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


@pytest.mark.parametrize("request_id", ["", "a b", "x\r\nY: z", "ü", "x" * 129, 7])
def test_request_ids_that_are_none(request_id: Any) -> None:
    with (
        PolicyClient("http://127.0.0.1:1") as client,
        pytest.raises(ConfigurationError, match="request_id is"),
    ):
        client.ask(STATE, request_id)


@pytest.mark.parametrize("state", [["x"] * 16, [[1.0], [1.0, 2.0]], None, object()])
def test_states_that_are_no_numbers(state: Any) -> None:
    with pytest.raises(ConfigurationError, match="state must be 16 finite numbers"):
        fetch_multiplier("http://127.0.0.1:1", state)


# The pooled client


@contextlib.contextmanager
def asked() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A healthy server and what it was asked."""
    requests: list[dict[str, Any]] = []

    def reply(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        requests.append(request)
        echo = {"X-Request-Id": request["headers"]["X-Request-Id"]}
        answer(json.dumps(GOOD).encode(), headers=echo)(handler, request)

    with serving(reply) as url:
        yield url, requests


@pytest.mark.parametrize("ending", ["", "/", "/predict", "/predict/"])
def test_an_endpoint_may_end_in_predict_and_a_path_is_kept(ending: str) -> None:
    with asked() as (url, requests), PolicyClient(f"{url}/v1{ending}", timeout_s=60) as client:
        client.ask(STATE)
    assert requests[0]["path"] == "/v1/predict"


def test_one_connection_serves_many_calls_of_threads_and_loops() -> None:
    async def some(client: PolicyClient) -> None:
        for _ in range(5):
            await client.aask(STATE)

    with asked() as (url, requests), PolicyClient(url, timeout_s=60) as client:
        for _ in range(5):
            client.ask(STATE)
        asyncio.run(some(client))
        asyncio.run(some(client))  # another loop: the first one is closed
        client.ask(STATE)
    assert len(requests) == 16
    assert len({request["from"] for request in requests}) == 1


def test_request_ids_are_the_callers_or_random() -> None:
    with asked() as (url, requests), PolicyClient(url, timeout_s=60) as client:
        client.ask(STATE, "decision-7")
        client.ask(STATE)
        client.ask(STATE)
    first, *others = (request["headers"]["X-Request-Id"] for request in requests)
    assert first == "decision-7"
    assert len(set(others)) == 2


def test_an_answer_to_another_request_is_refused_and_no_connection_trusted_any_more() -> None:
    requests: list[dict[str, Any]] = []

    def reply(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        requests.append(request)
        answer(json.dumps(GOOD).encode(), headers={"X-Request-Id": "a"})(handler, request)

    with serving(reply) as url, PolicyClient(url, timeout_s=60) as client:
        client.ask(STATE, "a")
        with pytest.raises(SourceError, match="answered request 'a', asked was 'b'"):
            client.ask(STATE, "b")
        client.ask(STATE, "a")
    assert len({request["from"] for request in requests}) == 2


def test_64_tasks_at_once_on_one_loop() -> None:
    async def together(client: PolicyClient) -> list[RemoteAnswer]:
        return await asyncio.gather(*(client.aask(STATE) for _ in range(64)))

    with PolicyServer() as server, PolicyClient(server.url, timeout_s=60) as client:
        for _ in range(3):
            assert len(set(asyncio.run(together(client)))) == 1
        server.behave("silent")
        with PolicyClient(server.url, timeout_s=0.1) as hasty:

            def call() -> None:
                with pytest.raises(SourceError, match="within 100 ms"):
                    asyncio.run(together(hasty))

            # One after another they would take 6.4 s.
            assert quickest(call, 3.0) < 3.0


def test_a_loop_is_not_held_up_by_a_call() -> None:
    async def ticks(client: PolicyClient) -> None:
        task = asyncio.create_task(client.aask(STATE))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with PolicyServer() as server, PolicyClient(server.url, timeout_s=60) as client:
        server.behave("silent")
        asyncio.run(ticks(client))


def test_a_cancelled_call_hands_the_probe_back_and_leaves_no_connection() -> None:
    now = [0.0]
    breaker = CircuitBreaker(BreakerConfig(failures=1), clock=lambda: now[0])

    async def cancelled(client: PolicyClient) -> None:
        task = asyncio.create_task(client.aask(STATE))
        await asyncio.sleep(0.05)
        assert breaker.state == "half_open"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with PolicyServer() as server, PolicyClient(server.url, timeout_s=60, breaker=breaker) as client:
        server.behave("error_500")
        with pytest.raises(SourceError):
            client.ask(STATE)
        now[0] += 30
        server.behave("silent")
        asyncio.run(cancelled(client))
        assert breaker.state == "half_open"
        assert not client._pool._idle
        server.behave("healthy")
        client.ask(STATE)
        assert breaker.state == "closed"


def test_an_open_breaker_says_so_at_once_and_nothing_is_sent() -> None:
    breaker = CircuitBreaker(BreakerConfig(), clock=lambda: 0.0)
    with serving(answer(b"oops", 500)) as url, PolicyClient(url, timeout_s=60, breaker=breaker) as client:
        for _ in range(5):
            with pytest.raises(SourceError, match="HTTP 500"):
                client.ask(STATE)
        with pytest.raises(CircuitOpenError, match=r"was not asked: the breaker is open, the next try is in 30\.0 s"):
            client.ask(STATE)
    assert breaker.figures().failures == 5


def test_of_64_callers_at_the_half_open_moment_one_reaches_the_server() -> None:
    now = [0.0]
    breaker = CircuitBreaker(BreakerConfig(failures=1, longest_wait=30.0), clock=lambda: now[0])
    reached: list[str] = []
    start = threading.Barrier(64)

    def reply(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        reached.append(request["headers"]["X-Request-Id"])
        time.sleep(0.05)
        answer(b"oops", 500)(handler, request)

    def work(_: int) -> None:
        start.wait()
        with pytest.raises(SourceError):
            client.ask(STATE)

    with serving(reply) as url, PolicyClient(url, timeout_s=60, breaker=breaker) as client:
        for round_ in range(5):
            if round_ == 0:
                with pytest.raises(SourceError, match="HTTP 500"):
                    client.ask(STATE)
            now[0] += 30.0
            at_once(work, range(64))
            assert len(reached) == round_ + 2
    assert breaker.figures().refused == 5 * 63


def test_a_refused_request_is_the_callers_and_says_nothing_about_the_server() -> None:
    breaker = CircuitBreaker(BreakerConfig(), clock=lambda: 0.0)
    with serving(answer(b"state[3] is 7", 422)) as url, PolicyClient(url, timeout_s=60, breaker=breaker) as client:
        for _ in range(20):
            with pytest.raises(RefusedError, match=r"HTTP 422: state\[3\] is 7"):
                client.ask(STATE)
    assert breaker.state == "closed"
    assert breaker.figures().failures == 0


def test_bad_arguments_tell_the_breaker_nothing() -> None:
    breaker = CircuitBreaker(BreakerConfig(failures=1), clock=lambda: 0.0)
    with PolicyClient("http://127.0.0.1:1", breaker=breaker) as client:
        with pytest.raises(ConfigurationError):
            client.ask(np.full(16, np.nan))
        assert breaker.state == "closed"


def test_a_closed_client_answers_nobody() -> None:
    with asked() as (url, _):
        client = PolicyClient(url, timeout_s=60)
        client.ask(STATE)
        client.close()
        assert not client._pool._idle
        with pytest.raises(SourceError, match="is closed"):
            client.ask(STATE)


#: What each behaviour of the server is to the caller, and what the message says.
OUTCOMES: dict[str, tuple[type[HimariError] | None, str]] = {
    "healthy": (None, ""),
    "chunked": (None, ""),
    "interim": (None, ""),
    "closing": (None, ""),
    "leaving": (None, ""),
    "silent": (SourceError, "did not answer in full within"),
    "drip_head": (SourceError, "did not answer in full within"),
    "drip_body": (SourceError, "did not answer in full within"),
    "drip_end": (None, ""),
    "stops": (SourceError, "did not answer in full within"),
    "half": (SourceError, "ended before the 100 bytes"),
    "hangs_up": (SourceError, "closed without an answer"),
    "resets": (SourceError, "Connection reset by peer"),
    "resets_late": (SourceError, "Connection reset by peer"),
    "garbage": (SourceError, "not HTTP"),
    "another_protocol": (SourceError, "not HTTP: 'SSH"),
    "twice": (SourceError, "went on after the end"),
    "too_short": (SourceError, "went on after the end"),
    "too_long": (SourceError, "ended before the 2000 bytes"),
    "huge_head": (SourceError, "headers exceed 16384 bytes"),
    "huge_body": (SourceError, "exceeds 65536 bytes"),
    "not_json": (SourceError, "not JSON"),
    "utf16": (SourceError, "not JSON"),
    "nan": (SourceError, "position_multiplier is nan"),
    "infinite": (SourceError, "position_multiplier is inf"),
    "nan_elsewhere": (SourceError, "latency_ms is nan"),
    "out_of_range": (SourceError, "position_multiplier is 2.01"),
    "twice_a_key": (SourceError, "a key is given twice"),
    "another_contract": (ContractError, "himari-state-9/1"),
    "another_request": (SourceError, "answered request 'not-yours'"),
    "error_500": (SourceError, "HTTP 500: oops"),
    "error_503": (SourceError, "HTTP 503"),
    "redirect": (SourceError, "HTTP 302"),
    "error_404": (RefusedError, "HTTP 404"),
    "error_422": (RefusedError, "HTTP 422"),
}


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[PolicyServer]:
    with PolicyServer() as server:
        yield server


@pytest.mark.parametrize("how", BEHAVIOURS)
def test_each_behaviour_is_told_as_what_it_is(misbehaving: PolicyServer, how: str) -> None:
    kind, says = OUTCOMES[how]
    breaker = CircuitBreaker(BreakerConfig(), clock=lambda: 0.0)
    with PolicyClient(misbehaving.url, timeout_s=0.05 if "did not answer" in says else 60, breaker=breaker) as client:
        misbehaving.behave(how)
        for ask in (client.ask, lambda state: asyncio.run(client.aask(state))):
            for _ in range(2):
                if kind is None:
                    assert ask(STATE).multiplier == 1.25
                else:
                    with pytest.raises(kind, match=says) as raised:
                        ask(STATE)
                    assert type(raised.value) is kind
    figures = breaker.figures()
    expected = (4, 0) if kind is None else (0, 0) if kind is RefusedError else (0, 4)
    assert (figures.successes, figures.failures) == expected
