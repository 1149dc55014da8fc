"""The table of paths: which function answers, and what a request must bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from serving.app import pages
from serving.metrics import Metrics
from serving.predictions import Predictions
from serving.replies import METRICS, Reply, head, json_reply
from serving.service import Service
from serving.settings import Settings
from serving.state_input import MAX_BATCH_BODY, MAX_BODY

__all__ = ["Route", "route_table"]

_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)
#: A request of many states takes as much room as this many of one.
_BATCH_WEIGHT: Final = 64


@dataclass(frozen=True, slots=True)
class Route:
    """A path: its ``name`` in the metrics, its ``methods``, and ``answer`` from a body to a reply.

    ``max_body`` in bytes, 0 where none is read; ``weight`` is the room it takes (``serving.overload``);
    ``guarded`` where only known callers are answered; ``is_page`` where the answer is large, and its reader waited for.
    """

    name: str
    methods: tuple[str, ...]
    answer: Callable[[bytes], Reply]
    guarded: bool = False
    max_body: int = 0
    weight: int = 1
    is_page: bool = False


def route_table(settings: Settings, service: Service, metrics: Metrics) -> dict[str, Route]:
    """Every path that is answered. Health is open to all: platforms ask it without a key."""
    predictions = Predictions(service)

    def health(_: bytes) -> Reply:
        return json_reply(*service.health())

    def alive(_: bytes) -> Reply:
        return json_reply(HTTPStatus.OK, {"status": "alive"})

    def status(_: bytes) -> Reply:
        return json_reply(HTTPStatus.OK, {**service.status(), "requests": metrics.counts()})

    def page_of_metrics(_: bytes) -> Reply:
        return Reply(head(HTTPStatus.OK, METRICS), metrics.render())

    def many(name: str, answer: Callable[[bytes], Reply]) -> Route:
        return Route(name, _POST, answer, guarded=True, max_body=MAX_BATCH_BODY, weight=_BATCH_WEIGHT)

    table = {path: Route(path, _GET, answer, is_page=True) for path, answer in pages(service, settings).items()}
    table["/health"] = Route("/health", _GET, health)
    table["/healthz"] = Route("/healthz", _GET, alive)
    table["/status"] = Route("/status", _GET, status, guarded=True)
    table["/metrics"] = Route("/metrics", _GET, page_of_metrics, guarded=True)
    table["/predict"] = Route("/predict", _POST, predictions.one, guarded=True, max_body=MAX_BODY)
    table["/predict:batch"] = many("/predict:batch", predictions.batch)
    if settings.health_route:
        table[settings.health_route] = Route("/health", _GET, health)
    if settings.predict_route:
        own = settings.predict_route == "/predict"
        table[settings.predict_route] = many("vertex", predictions.either if own else predictions.vertex)
    return table
