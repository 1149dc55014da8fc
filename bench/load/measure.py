"""What is measured of the running servers, each figure of all of them in turn, round after round."""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load import wrk
from bench.load.client import Outcome, open_loop
from bench.load.requests import bodies, request, states
from bench.load.servers import Contender, Running, running, seconds_to_ready
from layer3.agent.policy import Policy
from layer3.agent.policy_file import PARITY

__all__ = [
    "BATCH",
    "Arrivals",
    "Figures",
    "batches",
    "check",
    "check_everything_is_on",
    "loads",
    "look_at_pages",
    "random_arrivals",
    "starts",
]

#: States in one request for many.
BATCH = 1_024
_BODIES = bodies(256)


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds of one server under one load; requests and errors are sums."""

    rate: float
    p50_us: float
    p99_us: float
    requests: int
    errors: int


@dataclass(frozen=True)
class Arrivals:
    """Medians over the rounds of latency in microseconds from the moment a request was meant to leave."""

    p50_us: float
    p99_us: float
    p999_us: float
    requests: int
    errors: int


def check(server: Running, policy: Policy) -> None:
    """Raise a RuntimeError unless it answers as ``policy`` does."""
    known = server.contender.headers
    for state in states(16, seed=1):
        status, _, body = _ask(server, "POST", "/predict", json.dumps({"state": state.tolist()}), known)
        if status != 200:
            raise RuntimeError(f"{server.contender.name} answered {status}: {body[:200]!r}")
        if server.contender.module == "bench.load.bare":
            continue
        apart = abs(json.loads(body)["position_multiplier"] - float(policy.act(state)[0]))
        if apart > PARITY:
            raise RuntimeError(f"{server.contender.name} answers {apart:.1e} beside the policy that it was given")


def check_everything_is_on(server: Running) -> None:
    """Raise a RuntimeError unless callers are asked for their key, numbers checked, requests named and counted."""
    known, good = server.contender.headers, _BODIES[0].decode()
    stranger, _, _ = _ask(server, "POST", "/predict", good, {})
    wrong, _, _ = _ask(server, "POST", "/predict", good.replace("[", "[NaN, ", 1), known)
    _, headers, _ = _ask(server, "POST", "/predict", good, known)
    _, _, counted = _ask(server, "GET", "/metrics", None, known)
    found = (stranger, wrong, "x-request-id" in headers, b'requests_total{route="/predict",code="200"}' in counted)
    if found != (401, 422, True, True):
        raise RuntimeError(
            f"without a key: {stranger}, with NaN: {wrong}, request id: {found[2]}, counted: {found[3]}; what is "
            "measured is not what is served"
        )


def look_at_pages(server: Running) -> None:
    """Ask for the page of its API, for which our server loads what it does without otherwise."""
    for path in ("/docs", "/openapi.json"):
        status, _, _ = _ask(server, "GET", path, None, {})
        if status != 200:
            raise RuntimeError(f"{path} is answered with {status}")


def loads(
    servers: Sequence[Running], connections: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, int], Figures]:
    """Closed loop, one state a request, by server and connections."""
    return _loads(servers, "/predict", _BODIES, connections, rounds, seconds)


def batches(
    servers: Sequence[Running], connections: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, int], Figures]:
    """Closed loop, :data:`BATCH` states a request."""
    many = [json.dumps({"states": states(BATCH, seed).tolist()}).encode() for seed in range(4)]
    return _loads(servers, "/predict:batch", many, connections, rounds, seconds)


def random_arrivals(servers: Sequence[Running], rate: float, rounds: int, seconds: float) -> dict[str, Arrivals]:
    """Open loop at ``rate`` requests per second over 64 connections."""
    seen: dict[str, list[Outcome]] = {server.contender.name: [] for server in servers}
    for number in range(rounds):
        for server in servers:
            prepared = [request("/predict", body, dict(server.contender.headers)) for body in _BODIES]
            seen[server.contender.name].append(
                open_loop(server.port, prepared, connections=64, rate=rate, seconds=seconds, seed=number)
            )
    return {
        name: Arrivals(
            *(statistics.median(one.percentile(percent) for one in each) * 1e6 for percent in (50.0, 99.0, 99.9)),
            requests=sum(len(one.latencies) for one in each),
            errors=sum(one.failed for one in each),
        )
        for name, each in seen.items()
    }


def starts(contenders: Sequence[Contender], rounds: int, core: int) -> dict[tuple[str, bool], float]:
    """Median seconds from exec to the first 200 of ``/health``, by server and whether byte code lay ready."""
    seen: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "compiled")
        for contender in contenders:
            _start(contender, Path(folder), core, compiled)
        for _ in range(rounds):
            for contender in contenders:
                for cached in (True, False):
                    seconds = _start(contender, Path(folder), core, compiled if cached else None)
                    seen.setdefault((contender.name, cached), []).append(seconds)
    return {key: statistics.median(each) for key, each in seen.items()}


def _start(contender: Contender, folder: Path, core: int, compiled: Path | None) -> float:
    # Without: nothing lies in the folder, and nothing is written there, as on a root file system that is read-only.
    environment = {"PYTHONPYCACHEPREFIX": str(compiled or folder / "nothing")}
    if compiled is None:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    with running(contender, folder / "log", {core}, environment) as server:
        return seconds_to_ready(server)


def _loads(
    servers: Sequence[Running],
    path: str,
    prepared: Sequence[bytes],
    connections: Sequence[int],
    rounds: int,
    seconds: float,
) -> dict[tuple[str, int], Figures]:
    seen: dict[tuple[str, int], list[wrk.Load]] = {}
    for _ in range(rounds):
        for count in connections:
            for server in servers:
                found = wrk.load(
                    server.port, path, prepared, server.contender.headers, connections=count, seconds=seconds
                )
                seen.setdefault((server.contender.name, count), []).append(found)
    return {key: _figures(each) for key, each in seen.items()}


def _figures(each: Sequence[wrk.Load]) -> Figures:
    return Figures(
        rate=statistics.median(one.rate for one in each),
        p50_us=statistics.median(one.p50_us for one in each),
        p99_us=statistics.median(one.p99_us for one in each),
        requests=sum(one.requests for one in each),
        errors=sum(one.errors for one in each),
    )


def _ask(
    server: Running, method: str, path: str, body: str | None, headers: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10.0)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
