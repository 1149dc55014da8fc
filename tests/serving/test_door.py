"""Around every route: names of requests, methods, contracts, origins, and what a socket may say."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer3 import contract
from serving import protocol
from serving.protocol import MAX_HEADER
from tests.serving.support import (
    JSON,
    NEUTRAL,
    Answer,
    Client,
    exchange,
    read_answers,
    request,
    serve,
    statuses,
)

BODY = json.dumps({"state": NEUTRAL}).encode()
GET_ROUTES = ["/", "/docs", "/openapi.json", "/health", "/healthz", "/status", "/metrics"]


def predict(client: Client, **headers: str) -> Answer:
    return client.ask("POST", "/predict", BODY, {**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}})


# Names of requests


@pytest.mark.parametrize("name", ["a", "desk-7/2026 x", "~" * 128, '"quoted\\"'])
def test_a_callers_name_of_a_request_comes_back(client: Client, name: str) -> None:
    for answer in (
        predict(client, X_Request_Id=name),
        client.ask("GET", "/docs", headers={"X-Request-Id": name}),
        client.ask("GET", "/nothing", headers={"X-Request-Id": name}),
    ):
        assert answer.headers["x-request-id"] == name
    assert answer.body["request_id"] == name


@pytest.mark.parametrize("name", ["", "~" * 129, "a\tb", "caf\xe9"])
def test_a_name_that_is_none_is_replaced(client: Client, name: str) -> None:
    given = predict(client, X_Request_Id=name).headers["x-request-id"]
    assert given != name
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", given)


def test_every_request_has_another_name(client: Client) -> None:
    names = {predict(client).headers["x-request-id"] for _ in range(20)}
    assert len(names) == 20


# Routes and methods


@pytest.mark.parametrize("path", GET_ROUTES)
def test_head_is_get_without_its_body(client: Client, path: str) -> None:
    answer = client.ask("HEAD", path)
    whole = client.ask("GET", path)
    assert (answer.status, answer.raw) == (whole.status, b"")
    assert answer.headers["content-type"] == whole.headers["content-type"]
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "POST"),
        ("HEAD", "/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
        ("TRACE", "/predict", "POST"),
        ("DELETE", "/predict:batch", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PATCH", "/docs", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_allowed(client: Client, method: str, path: str, allowed: str) -> None:
    answer = client.ask(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/predict/", "/predict:", "/PREDICT", "//predict", "/.env", "/..%2f..%2fetc/passwd"])
def test_an_unknown_path_is_a_404(client: Client, path: str) -> None:
    answer = client.ask("POST", path, BODY, JSON)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_query_is_ignored(client: Client) -> None:
    assert client.ask("GET", "/health?verbose=1").status == 200
    assert client.ask("POST", "/predict?x", BODY, JSON).status == 200


def test_what_it_says_of_itself(client: Client) -> None:
    assert client.ask("GET", "/healthz").body == {"status": "alive"}
    status = client.ask("GET", "/status").body
    assert status["model"]["id"] == client.health().body["model_version"]
    assert re.fullmatch(r"[0-9a-f]{64}", status["model"]["sha256"])
    assert status["requests"]["2xx"] > 0
    assert client.ask("GET", "/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_every_answer_is_safe_to_show(client: Client) -> None:
    for answer in (predict(client), client.health(), client.ask("GET", "/nothing"), client.ask("GET", "/docs")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers[contract.HEADER.lower()] == contract.VERSION
        assert "date" in answer.headers


def test_the_same_contract_is_fine(client: Client) -> None:
    assert predict(client, **{contract.HEADER: contract.VERSION}).status == 200


def test_the_same_state_gets_the_same_bytes(client: Client) -> None:
    def number(raw: bytes) -> bytes:
        return re.sub(rb'"latency_ms":[0-9.e-]+', b"", raw)

    answers = {number(client.predict([0.1 * (i % 7) for i in range(16)]).raw) for _ in range(30)}
    assert len(answers) == 1


# Browsers


@pytest.fixture(scope="module")
def cors(policy_folder: Path) -> Iterator[Client]:
    with serve(policy_folder, CORS_ORIGINS="https://desk.example,http://localhost:3000") as client:
        client.wait_for_health("ready")
        yield client


def preflight(client: Client, origin: str, path: str = "/predict") -> Answer:
    return client.ask("OPTIONS", path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})


def test_no_other_origin_may_call_unless_a_setting_names_it(client: Client, cors: Client) -> None:
    for answer in (
        predict(client, Origin="https://desk.example"),
        preflight(client, "https://desk.example"),
        predict(cors, Origin="https://evil.example"),
        preflight(cors, "https://evil.example"),
        predict(cors, Origin="null"),
    ):
        assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_an_origin_that_is_named_may_call(cors: Client) -> None:
    for answer in (
        predict(cors, Origin="https://desk.example"),
        cors.ask("POST", "/predict", b"{", {**JSON, "Origin": "https://desk.example"}),
        cors.ask("GET", "/docs", headers={"Origin": "https://desk.example"}),
    ):
        assert answer.headers["access-control-allow-origin"] == "https://desk.example"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in predict(cors).headers["vary"]


def test_a_preflight_is_answered(cors: Client) -> None:
    answer = preflight(cors, "http://localhost:3000")
    assert (answer.status, answer.raw) == (204, b"")
    assert "content-length" not in answer.headers  # RFC 9110, 8.6
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert "X-API-Key" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-max-age"] == "600"
    assert preflight(cors, "http://localhost:3000", "/nothing").status == 404


# Sockets


GOOD = request("POST", "/predict", BODY)


def test_one_connection_serves_many_requests(client: Client) -> None:
    answers = exchange(client.port, GOOD * 10 + request("GET", "/docs") + GOOD * 3, answers=14)
    assert statuses(answers) == [200] * 14
    assert answers.count(b"position_multiplier") == 13 + answers.count(b"&quot;position_multiplier")


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_may_come_in_pieces(client: Client, size: int) -> None:
    pieces = [GOOD[i : i + size] for i in range(0, len(GOOD), size)]
    assert statuses(exchange(client.port, *pieces)) == [200]


def test_chunks_and_trailers(client: Client) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[i : i + 9]), BODY[i : i + 9]) for i in range(0, len(BODY), 9))
    trailers = b"0\r\nX-Late: 1\r\nAuthorization: Bearer x\r\n\r\n"
    assert statuses(exchange(client.port, head + chunks + trailers + GOOD, answers=2)) == [200, 200]


@pytest.mark.parametrize("expected", ["100-continue", "100-Continue"])
def test_a_caller_that_waits_for_100_continue(client: Client, expected: str) -> None:
    head, _, body = request("POST", "/predict", BODY, Expect=expected).partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert read_answers(connection, 1) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert statuses(read_answers(connection, 1)) == [200]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_caller_that_wants_to_close(client: Client, version: str) -> None:
    asked = GOOD.replace(b"HTTP/1.1", f"HTTP/{version}".encode()).replace(b"Host: x", b"Host: x\r\nConnection: close")
    answer = exchange(client.port, asked + GOOD, answers=2)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


def test_nobody_here_speaks_websocket(client: Client) -> None:
    asked = request("GET", "/health", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="x")
    assert statuses(exchange(client.port, asked)) == [200]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_one_sentence(client: Client, garbage: bytes) -> None:
    answer = exchange(client.port, garbage, answers=2)
    assert statuses(answer)[0] in (400, 404, 405)
    assert b"application/problem+json" in answer
    assert client.predict(NEUTRAL).status == 200


@pytest.mark.parametrize("path", ["/health", "/docs"])
@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", 0, 400), ("1.1", 1, 200), ("1.1", 2, 400), ("1.0", 0, 200), ("1.0", 1, 200), ("1.0", 2, 400)],
)
def test_a_request_names_one_host(client: Client, path: str, version: str, hosts: int, status: int) -> None:
    lines = [f"GET {path} HTTP/{version}", *["Host: x"] * hosts, "Connection: close", "", ""]
    answer = exchange(client.port, "\r\n".join(lines).encode(), answers=2)
    assert statuses(answer) == [status]
    assert status == 200 or b"expected one header Host" in answer


def test_nonsense_after_a_request_does_not_hurt_its_answer(client: Client) -> None:
    assert statuses(exchange(client.port, GOOD + b"\x00nonsense\r\n\r\n", answers=3)) == [200, 400]


def test_headers_have_a_limit(client: Client) -> None:
    fits = request("GET", "/health", X_Long="x" * (MAX_HEADER - 100))
    assert statuses(exchange(client.port, fits)) == [200]
    for pieces in (
        [request("GET", "/health", X_Long="x" * MAX_HEADER)],
        [b"GET /health HTTP/1.1\r\n", *[b"A: b\r\n"] * 5000],
    ):
        answer = exchange(client.port, *pieces, answers=2)
        assert statuses(answer) == [431]
        assert b"16384 bytes of request line and headers" in answer


def test_a_long_body_is_no_long_header(client: Client) -> None:
    states = json.dumps({"states": [NEUTRAL] * 600}).encode()
    asked = request("POST", "/predict:batch", states)
    assert len(asked) > 3 * MAX_HEADER
    assert statuses(exchange(client.port, asked + GOOD + asked, answers=3)) == [200] * 3


def test_slow_headers_are_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.05)
    answer = exchange(client.port, b"GET /health HTTP/1.1\r\nHost:", answers=2)
    assert statuses(answer) == [408]
    assert b"the headers did not arrive within" in answer


def test_an_idle_connection_is_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "IDLE_SECONDS", 0.05)
    assert exchange(client.port) == b""
    assert statuses(exchange(client.port, GOOD, answers=2)) == [200]


def test_whoever_sends_and_never_reads_is_cut_off(client: Client) -> None:
    """A flood of requests, none of whose answers is read, ends with the connection and not with our memory."""
    flood = request("GET", "/health") * 2000
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        assert is_cut_off(connection, flood)
    assert client.predict(NEUTRAL).status == 200


def is_cut_off(connection: socket.socket, flood: bytes) -> bool:
    try:
        for _ in range(2000):
            connection.sendall(flood)
    except ConnectionError:
        return True
    return False
