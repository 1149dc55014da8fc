"""What is wrong with a request, and the documented answer to it: a status and a sentence that says what was wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import jwt

from layer3 import contract
from tests.fakes.issuer import claims, token
from tests.serving.proof.server import HEADERS, Server
from tests.serving.support import Answer

JSON = {"Content-Type": "application/json"}
KNOWN = JSON | HEADERS
STATE = [0.0] * contract.STATE_DIM


def state(literal: str = "0", at: int = 13) -> bytes:
    """A body whose number ``at`` is written as ``literal``."""
    numbers = ["0"] * contract.STATE_DIM
    numbers[at] = literal
    return f'{{"state": [{", ".join(numbers)}]}}'.encode()


@dataclass(frozen=True)
class Refused:
    """A request to ``path`` that is answered with ``status`` and a sentence that holds ``said``."""

    name: str
    status: int
    said: str
    body: bytes = state()
    headers: Mapping[str, str] = field(default_factory=lambda: KNOWN)
    path: str = "/predict"
    method: str = "POST"


def callers(now: float) -> list[Refused]:
    """Callers that may not call, at ``now`` seconds since 1970."""

    def bearer(key: str = "first", **changes: object) -> dict[str, str]:
        return JSON | {"Authorization": token(claims(now, **changes), key).decode()}

    without = "known callers only"
    return [
        Refused("no key", 401, without, headers=JSON),
        Refused("no key for many states", 401, without, headers=JSON, path="/predict:batch"),
        Refused("no key for /status", 401, without, headers={}, path="/status", method="GET"),
        Refused("no key for /metrics", 401, without, headers={}, path="/metrics", method="GET"),
        Refused("a wrong key", 401, "API key", headers=JSON | {"X-API-Key": "wrong-" + "0" * 32}),
        Refused("an empty key", 401, "API key", headers=JSON | {"X-API-Key": ""}),
        Refused("a key of 10 kB", 401, "API key", headers=JSON | {"X-API-Key": "x" * 10_000}),
        Refused("a wrong key and a good token", 401, "API key", headers=bearer() | {"X-API-Key": "w" * 32}),
        Refused("an expired token", 401, "expired", headers=bearer(exp=int(now) - 3600, iat=int(now) - 7200)),
        Refused("a token for another audience", 401, "audience", headers=bearer(aud="https://other.example")),
        Refused("a token of another issuer", 401, "issued by Google", headers=bearer(iss="https://evil.example")),
        Refused("a token that another key signed", 401, "", headers=JSON | {"Authorization": forged(now)}),
        Refused("a token that nobody signed", 401, "RS256", headers=JSON | {"Authorization": unsigned(now)}),
        Refused("no token at all", 401, "Bearer", headers=JSON | {"Authorization": "Basic dXNlcjpwYXNz"}),
        Refused("half a token", 401, "three parts", headers=JSON | {"Authorization": "Bearer abc.def"}),
    ]


def forged(now: float) -> str:
    """A token that says it is signed by the issuer's key, and is by another."""
    return token(claims(now), "another", kid="first").decode()


def unsigned(now: float) -> str:
    """RFC 7519, section 6.1: alg none."""
    return "Bearer " + jwt.encode(claims(now), None, "none", {"kid": "first"})


BODIES = [
    Refused("an empty body", 400, "empty", b""),
    Refused("no JSON", 400, "no JSON", b"state=1"),
    Refused("half of it", 400, "no JSON", state()[:-1]),
    Refused("two documents", 400, "no JSON", state() + state()),
    Refused("UTF-16", 400, "UTF-8", state().decode().encode("utf-16")),
    Refused("UTF-16 without a mark", 400, "", state().decode().encode("utf-16-le")),
    Refused("UTF-32", 400, "UTF-8", state().decode().encode("utf-32")),
    Refused("a byte-order mark", 400, "byte-order mark", b"\xef\xbb\xbf" + state()),
    Refused("bytes that are no UTF-8", 400, "UTF-8", b'{"state": "\xff"}'),
    Refused("a key twice", 400, "twice", b'{"state": [], "state": [' + b"0," * 15 + b"0]}"),
    Refused("nested 30,000 deep", 400, "nested", b'{"state": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    Refused("NaN", 422, "state[13] (volatility)", state("NaN")),
    Refused("Infinity", 422, "Infinity", state("Infinity")),
    Refused("-Infinity", 422, "-Infinity", state("-Infinity")),
    Refused("1e400", 422, "state[13] (volatility)", state("1e400")),
    Refused("an integer of 4,000 digits", 422, "state[13] (volatility)", state("9" * 4_000)),
    Refused("an integer of 10,000 digits", 422, "state[13] (volatility)", state("9" * 10_000)),
    Refused("just above 1", 422, "state[13] (volatility)", state("1.0000000000000002")),
    Refused("a number as text", 422, 'got "0"', state('"0"')),
    Refused("true", 422, "got true", state("true")),
    Refused("null", 422, "got null", state("null")),
    Refused("a list among the numbers", 422, "state[13] (volatility)", state("[0]")),
    Refused("an object among the numbers", 422, "state[13] (volatility)", state("{}")),
    Refused("a list of lists", 422, "16 numbers", json.dumps({"state": [STATE]}).encode()),
    Refused("15 numbers", 422, "got 15", json.dumps({"state": STATE[1:]}).encode()),
    Refused("17 numbers", 422, "got 17", json.dumps({"state": [*STATE, 0.0]}).encode()),
    Refused("no number", 422, "got 0", b'{"state": []}'),
    Refused("no state", 422, '"state" is missing', b'{"states": []}'),
    Refused("another key beside it", 422, "no other key", state()[:-1] + b', "user": 1}'),
    Refused("an empty key beside it", 422, "no other key", state()[:-1] + b', "": 1}'),
    Refused("a list", 422, "a list of 16", json.dumps(STATE).encode()),
    Refused("a number", 422, "got 1", b"1"),
    Refused("a text", 422, "got", b'"state"'),
    Refused("a text instead of numbers", 422, "a list of 16 numbers", b'{"state": "0000000000000000"}'),
    Refused("too large", 413, "65536 bytes", b" " * 65_537 + state()),
    Refused("no content type", 415, "got none", headers=HEADERS),
    Refused("a compressed body", 415, '"gzip"', headers=KNOWN | {"Content-Encoding": "gzip"}),
    Refused("XML", 415, "application/xml", headers=HEADERS | {"Content-Type": "application/xml"}),
    Refused(
        "another encoding", 415, "latin-1", headers=HEADERS | {"Content-Type": "application/json; charset=latin-1"}
    ),
    Refused(
        "another contract", 409, "himari-state-9/1", headers=JSON | HEADERS | {contract.HEADER: "himari-state-9/1"}
    ),
    Refused("another method", 405, "POST", method="PUT"),
    Refused("nothing there", 404, "", path="/predictions"),
    Refused("a path that climbs", 404, "", path="/../../etc/passwd", method="GET"),
]


def many(rows: object) -> bytes:
    return json.dumps({"states": rows}).encode()


BATCHES = [
    Refused("no states", 422, "got 0", many([]), path="/predict:batch"),
    Refused("4,097 states", 422, "4097", many([STATE] * 4_097), path="/predict:batch"),
    Refused(
        "one wrong number in many states",
        422,
        "states[1][2]",
        many([STATE, [0, 0, 2, *STATE[3:]]]),
        path="/predict:batch",
    ),
    Refused("a short state among others", 422, "states[1]", many([STATE, STATE[1:]]), path="/predict:batch"),
    Refused("an empty key beside states", 422, "no other key", many([STATE])[:-1] + b', "": 1}', path="/predict:batch"),
    Refused("one state", 422, '"states" is missing', state(), path="/predict:batch"),
    Refused("states too large", 413, "bytes", b" " * 4_200_000 + many([STATE]), path="/predict:batch"),
]


def problem(answer: Answer, status: int, name: str) -> str:
    """The sentence of a problem document (RFC 9457) with that status; an AssertionError if it is none."""
    assert answer.status == status, f"{name}: expected {status}, got {answer.status}: {answer.raw[:300]!r}"
    assert answer.headers["content-type"] == "application/problem+json", f"{name}: {answer.headers}"
    assert answer.body["status"] == status, f"{name}: {answer.raw!r}"
    sentence = answer.body["detail"]
    assert len(sentence) > 15, f"{name}: no sentence: {sentence!r}"
    for inside in ("Traceback", "/work", "site-packages", ".py"):
        assert inside not in answer.raw.decode(), f"{name}: our insides show: {answer.raw!r}"
    return sentence


def refused(server: Server, now: float) -> str:
    """Every request of the tables gets its documented answer. The server takes keys and tokens alike."""
    table = [*callers(now), *BODIES, *BATCHES]
    for case in table:
        answer = server.ask(case.method, case.path, case.body if case.method != "GET" else None, case.headers)
        sentence = problem(answer, case.status, case.name)
        assert case.said in sentence, f"{case.name}: expected {case.said!r} in {sentence!r}"
        if case.status == 401:
            assert "www-authenticate" in answer.headers, f"{case.name}: a 401 must say how to be known"
        if case.status == 405:
            assert answer.headers["allow"] == "POST", f"{case.name}: {answer.headers}"
    good = JSON | {"Authorization": token(claims(now)).decode()}
    for headers in (KNOWN, good):
        answer = server.ask("POST", "/predict", state(), headers)
        assert answer.status == 200, f"a good request is answered {answer.status}: {answer.raw[:300]!r}"
    server.require_sound()
    return f"{len(table)} wrong requests, each with its documented 4xx and a sentence"
