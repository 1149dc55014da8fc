"""What /metrics says: counted without a lock by the one thread that answers, rendered when somebody asks.

Written by hand in Prometheus' text format: the client library takes 25 ms and 4 MiB to import, and
0.9 microseconds for what costs a quarter of that here.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from layer3 import contract
from serving.access import AccessLog
from serving.service import Service

__all__ = ["BUCKETS", "OTHER", "ROUTES", "Metrics"]

#: Upper bounds of the latency histogram, in seconds.
BUCKETS: Final = (
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0
)  # fmt: skip
#: Routes that are told apart. Any other one is OTHER: a label that callers could fill would fill the memory.
ROUTES: Final = (
    "/", "/docs", "/health", "/healthz", "/metrics", "/openapi.json", "/predict", "/predict:batch", "/status", "vertex"
)  # fmt: skip
OTHER: Final = "other"
_PREFIX: Final = "himari_serving_"
_CODES: Final = frozenset(status.value for status in HTTPStatus)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

#: A sample: its name's ending, its labels, its value.
Sample = tuple[str, dict[str, str], float]


class Metrics:
    """Counters of one event loop. ``in_flight``, ``shed``, ``rate_limited`` and ``unauthorised`` are its to change."""

    def __init__(self, service: Service, access: AccessLog) -> None:
        self.in_flight = 0
        self.shed = 0
        self.rate_limited = 0
        self.unauthorised = 0
        self._service, self._access = service, access
        self._requests: dict[tuple[str, int], int] = {}
        self._latency = {route: [0] * (len(BUCKETS) + 1) for route in (*ROUTES, OTHER)}
        self._seconds = dict.fromkeys(self._latency, 0.0)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answer with HTTP ``status`` that took ``seconds``."""
        if route not in self._latency:
            route = OTHER
        self._latency[route][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds
        key = (route, status)
        if key in self._requests:
            self._requests[key] += 1
        else:
            # HTTP knows 62 of them; whatever else came would be a bug, and no reason to grow.
            key = (route, status if status in _CODES else 0)
            self._requests[key] = self._requests.get(key, 0) + 1

    def counts(self) -> dict[str, int]:
        """Answers so far by class of status ("2xx", ...)."""
        found: dict[str, int] = {}
        for (_, status), number in sorted(self._requests.items()):
            name = f"{status // 100}xx"
            found[name] = found.get(name, 0) + number
        return found

    def render(self) -> bytes:
        """The whole page, in Prometheus' text format 0.0.4."""
        return "".join(self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        requests = (
            ("", {"route": route, "code": str(status)}, count) for (route, status), count in self._requests.items()
        )
        yield from _family("requests_total", "counter", "Answers, by route and HTTP status.", requests)
        yield from _family(
            "request_duration_seconds", "histogram", "Seconds from request to answer, by route.", self._durations()
        )
        service, serving = self._service, self._service.current
        told = [
            ("in_flight_requests", "gauge", "Requests that are read, or wait for their turn.", self.in_flight),
            ("shed_total", "counter", "Requests turned away because too many were under way.", self.shed),
            ("rate_limited_total", "counter", "Requests beyond their caller's rate.", self.rate_limited),
            ("unauthorised_total", "counter", "Requests of nobody known, or not allowed.", self.unauthorised),
            ("access_log_written_total", "counter", "Lines of the access log.", self._access.written),
            ("access_log_suppressed_total", "counter", "Requests that were not logged.", self._access.suppressed),
            ("ready", "gauge", "Whether a model serves.", serving is not None),
            ("draining", "gauge", "Whether the server is being stopped.", service.draining),
            ("model_swaps_total", "counter", "Models taken up in place of another.", service.swaps),
            ("model_refusals_total", "counter", "Models offered and refused.", service.refusals),
            ("model_unreachable_total", "counter", "Looks that the store did not answer.", service.unreachable),
            ("uptime_seconds", "gauge", "Seconds since the start.", service.uptime),
            ("resident_memory_bytes", "gauge", "Memory the process holds.", _resident()),
            ("cpu_seconds_total", "counter", "Processor time used.", time.process_time()),
        ]
        for name, kind, text, value in told:
            yield from _family(name, kind, text, [("", {}, float(value))])
        if serving is not None:
            labels = {"version": serving.model_version, "sha256": serving.sha256, "contract": contract.VERSION}
            yield from _family("model_info", "gauge", "The model that serves.", [("", labels, 1)])
        refused = [("", {"kind": service.refused.kind}, 1.0)] if service.refused else []
        yield from _family("model_refused", "gauge", "Present while what is offered is refused.", refused)

    def _durations(self) -> Iterator[Sample]:
        for route, counts in self._latency.items():
            if not any(counts):
                continue
            total = 0
            for bound, count in zip((*BUCKETS, "+Inf"), counts, strict=True):
                total += count
                yield "_bucket", {"route": route, "le": str(bound)}, total
            yield "_sum", {"route": route}, self._seconds[route]
            yield "_count", {"route": route}, total


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    name = _PREFIX + name
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for ending, labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(said)}"' for label, said in labels.items())
        yield f"{name}{ending}{{{shown}}} {value}\n" if shown else f"{name}{ending} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _resident() -> int:
    """Bytes of memory that the process holds now; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except OSError:
        return 0
