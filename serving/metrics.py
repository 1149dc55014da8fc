"""What /metrics says, in Prometheus' text format, counted without a lock by the one thread that answers."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from serving.access import AccessLog
from serving.service import Service

__all__ = ["BUCKETS", "ROUTES", "Metrics"]

#: Upper bounds of the latency histogram, in seconds.
BUCKETS: Final = (
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0
)  # fmt: skip
#: Routes that are told apart; any other path counts as "other".
ROUTES: Final = (
    "/", "/docs", "/health", "/healthz", "/metrics", "/openapi.json", "/predict", "/predict:batch", "/status", "vertex"
)  # fmt: skip


class Metrics:
    """Counters of one event loop. ``in_flight``, ``shed``, ``rate_limited`` and ``unauthorised`` are its to change."""

    def __init__(self, service: Service, access: AccessLog | None = None) -> None:
        self.in_flight = 0
        self.shed = 0
        self.rate_limited = 0
        self.unauthorised = 0
        self._service, self._access = service, access
        self._requests: dict[tuple[str, int], int] = {}
        self._latency = {route: [0] * (len(BUCKETS) + 1) for route in (*ROUTES, "other")}
        self._seconds = dict.fromkeys(self._latency, 0.0)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answer with HTTP ``status`` that took ``seconds``."""
        if route not in self._latency:
            route = "other"
        self._latency[route][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1

    def counts(self) -> dict[str, int]:
        """Answers so far by status class ("2xx", ...), for /status."""
        found: dict[str, int] = {}
        for (_, status), number in self._requests.items():
            name = f"{status // 100}xx"
            found[name] = found.get(name, 0) + number
        return found

    def render(self) -> bytes:
        """The whole page of /metrics."""
        return b""
