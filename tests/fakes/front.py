"""What stands before Cloud Run's containers: addresses, tokens, the split of the traffic, counts; and the containers.

Each service, and each tag of one, has an address of its own on loopback (a port, where the real one has a host's
name). A caller needs an identity token for the *service's* address, of an account in ``invokers``, unless the service
says otherwise; its signature is taken out before the container sees it. Every request is counted per revision, as Cloud
Monitoring does. ``meddle`` may change what a revision answers.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import jwt
from google.cloud import run_v2

from tests.fakes import issuer
from tests.fakes.google import Call, Refused
from tests.fakes.servers import free_port

__all__ = ["Fleet", "Front", "Meddle"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_METADATA: Final = "/computeMetadata/v1/instance/service-accounts/default/identity"
_REVISION: Final = re.compile(r'resource\.labels\.revision_name="([^"]+)"')
_METRIC: Final = re.compile(r'metric\.type="run\.googleapis\.com/(request_count|request_latencies)"')
#: Revision, its percent of the traffic, path, status and body; returns status and body.
Meddle = Callable[[str, int, str, int, bytes], tuple[int, bytes]]


class Fleet:
    """Server processes, by their environment: what is asked for twice is started once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[tuple[str, str], ...], tuple[subprocess.Popen[bytes], int]] = {}
        self._logs = contextlib.ExitStack()

    def start(self, environment: Mapping[str, str], health: str, seconds: float) -> int | str:
        """The port of a server with this environment, once it is healthy; or why it is not."""
        key = tuple(sorted(environment.items()))
        with self._lock:
            if key in self._running and self._running[key][0].poll() is None:
                return self._running[key][1]
            port = free_port()
            log = self._logs.enter_context(tempfile.TemporaryFile(prefix="himari-revision-"))  # noqa: SIM115
            process = subprocess.Popen(
                [sys.executable, "-m", "serving"],
                cwd=_ROOT,
                env={
                    **{name: value for name, value in os.environ.items() if name != "MODEL_URI"},
                    **environment,
                    "PORT": str(port),
                    "HOST": "127.0.0.1",  # on Cloud Run it would be 0.0.0.0
                    "HIMARI_EXIT_WITH_STDIN": "1",
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            self._running[key] = process, port
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    log.seek(0)
                    return log.read().decode(errors="replace")[-500:]
                if _status(port, health) == 200:
                    return port
                time.sleep(0.02)
            return f"{health} was not healthy within {seconds:g} s"

    def close(self) -> None:
        for process, _ in self._running.values():
            process.kill()
            process.communicate()
        self._logs.close()


@dataclass
class _Route:
    """Where the requests of a service go: weights, and who may come."""

    service: run_v2.Service
    targets: list[tuple[str, int, str]]
    given: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    revision: str
    percent: int
    at: float
    status: int
    seconds: float


class Front:
    """All addresses of one fake Cloud Run, and the metadata server that gives tokens for them."""

    def __init__(self) -> None:
        self.account = "releaser@himari-tests.iam.gserviceaccount.com"
        self.invokers = {self.account}
        self.meddle: Meddle | None = None
        self.seen: list[_Seen] = []
        self._lock = threading.Lock()
        self._ports: dict[str, int] = {}
        self._routes: dict[str, _Route] = {}
        self._addresses: dict[tuple[str, str], ThreadingHTTPServer] = {}
        self._threads: list[threading.Thread] = []
        self.metadata = self._listen(_Metadata, "", "")

    def open(self, service: str, tag: str) -> str:
        """The address of a service, or of one of its tags; always the same one."""
        with self._lock:
            if (service, tag) not in self._addresses:
                self._listen(_Door, service, tag)
            port = self._addresses[service, tag].server_address[1]
        return f"http://127.0.0.1:{port}"

    def serve(self, revision: str, port: int) -> None:
        with self._lock:
            self._ports[revision] = port

    def serves(self, revision: str) -> bool:
        with self._lock:
            return revision in self._ports

    def route(self, service: run_v2.Service, targets: list[tuple[str, int, str]]) -> None:
        with self._lock:
            self._routes[service.name] = _Route(run_v2.Service(service), targets)

    def remember(self) -> Callable[[], None]:
        """What puts back who is served and who may come, with nothing counted."""
        routes = {name: (route.service, list(route.targets)) for name, route in self._routes.items()}

        def restore() -> None:
            with self._lock:
                self._routes = {name: _Route(service, list(targets)) for name, (service, targets) in routes.items()}
                self.invokers = {self.account}
                self.meddle = None
                self.seen.clear()

        return restore

    def close(self) -> None:
        for server in self._addresses.values():
            server.shutdown()
        for thread in self._threads:
            thread.join()
        for server in self._addresses.values():
            server.server_close()

    def time_series(self, call: Call) -> dict[str, Any]:
        """Cloud Monitoring's answer about one revision, of the two metrics that a release reads."""
        asked = {name: values[-1] for name, values in call.query.items()}
        revision, metric = _REVISION.search(asked.get("filter", "")), _METRIC.search(asked.get("filter", ""))
        if revision is None or metric is None or asked.get("aggregation.perSeriesAligner") != "ALIGN_DELTA":
            raise Refused("INVALID_ARGUMENT", "The filter or the aggregation is not understood.")
        if not re.fullmatch(r"\d+s", period := asked.get("aggregation.alignmentPeriod", "")) or int(period[:-1]) < 60:
            raise Refused("INVALID_ARGUMENT", "aggregation.alignmentPeriod must be at least 60s.")
        since, until = (
            datetime.fromisoformat(asked[f"interval.{name}"]).timestamp() for name in ("startTime", "endTime")
        )
        with self._lock:
            found = [each for each in self.seen if each.revision == revision[1] and since <= each.at <= until]
        if metric[1] == "request_count":
            classes = sorted({f"{each.status // 100}xx" for each in found})
            return {
                "timeSeries": [
                    _series(
                        {"response_code_class": kind},
                        int64Value=str(sum(f"{e.status // 100}xx" == kind for e in found)),
                    )
                    for kind in classes
                ]
            }
        slowest = sorted(each.seconds for each in found)
        return {
            "timeSeries": [_series({}, doubleValue=1e3 * slowest[int(0.99 * (len(slowest) - 1))])] if slowest else []
        }

    # What follows runs in the handlers' threads.

    def admit(self, service: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str]]:
        """200 and the headers that the container sees, or the status of the refusal."""
        route = self._routes.get(service)
        if route is None:
            return 404, {}
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
        if route.service.invoker_iam_disabled:
            return 200, kept
        checked = "X-Serverless-Authorization" if "X-Serverless-Authorization" in kept else "Authorization"
        claims = _claims(kept.get(checked, ""), [route.service.uri, *route.service.custom_audiences])
        if claims is None:
            return 401, {}
        if claims["email"] not in self.invokers:
            return 403, {}
        kept[checked] = kept[checked].rsplit(".", 1)[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
        return 200, kept

    def choose(self, service: str, tag: str) -> tuple[str, int, int | None]:
        """Revision, its percent and its container's port, for the next request."""
        with self._lock:
            route = self._routes[service]
            percents = {revision: 0 for revision, _, _ in route.targets}
            for revision, percent, _ in route.targets:
                percents[revision] += percent
            if tag:
                chosen = next((revision for revision, _, own in route.targets if own == tag), "")
            else:
                # The one that is furthest behind its share, so that a hundred requests are split exactly.
                total = 1 + sum(route.given.values())
                chosen = max(percents, key=lambda each: percents[each] * total / 100 - route.given.get(each, 0))
                route.given[chosen] = route.given.get(chosen, 0) + 1
            return chosen, percents.get(chosen, 0), self._ports.get(chosen)

    def count(self, revision: str, percent: int, status: int, seconds: float) -> None:
        with self._lock:
            self.seen.append(_Seen(revision, percent, time.time(), status, seconds))

    def _listen(self, handler: type, service: str, tag: str) -> str:
        kind = type("Handler", (handler,), {"front": self, "service": service, "tag": tag})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name=f"front-{service}-{tag}")
        self._addresses[service, tag] = server
        self._threads.append(thread)
        thread.start()
        return f"127.0.0.1:{server.server_address[1]}"


class _Quiet(BaseHTTPRequestHandler):
    front: Front
    service: str
    tag: str

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def reply(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Door(_Quiet):
    """One address: a request in, the chosen container's answer out."""

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers = self.front.admit(self.service, dict(self.headers.items()))
        if status != 200:
            self.reply(status, b"<html>Error</html>", "text/html")
            return
        revision, percent, port = self.front.choose(self.service, self.tag)
        if port is None:
            self.reply(404, b"<html>no such tag</html>", "text/html")
            return
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
            connection.close()
        except (OSError, http.client.HTTPException):
            status, answer = 503, b"the container does not answer"
        if self.front.meddle is not None:
            status, answer = self.front.meddle(revision, percent, self.path, status, answer)
        self.front.count(revision, percent, status, time.perf_counter() - began)
        self.reply(status, answer, "application/json")


class _Metadata(_Quiet):
    """Gives this machine's account an identity token for whatever audience it asks."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path != _METADATA or self.headers.get("Metadata-Flavor") != "Google":
            self.reply(404, b"", "text/plain")
            return
        audience = parse_qs(address.query)["audience"][0]
        said = issuer.claims(time.time(), aud=audience, email=self.front.account)
        bearer = issuer.token(said).removeprefix(b"Bearer ")
        self.reply(200, bearer, "text/plain", {"Metadata-Flavor": "Google"})


def _series(labels: Mapping[str, str], **value: Any) -> dict[str, Any]:
    return {"metric": {"labels": dict(labels)}, "points": [{"value": value}]}


def _claims(authorization: str, audiences: list[str]) -> dict[str, Any] | None:
    """What a token says that is signed, in time and for one of the audiences."""
    try:
        key = issuer.private_key("first").public_key()
        return dict(jwt.decode(authorization.removeprefix("Bearer "), key, ["RS256"], audience=audiences))
    except jwt.InvalidTokenError:
        return None


def _status(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        return None
    finally:
        connection.close()
