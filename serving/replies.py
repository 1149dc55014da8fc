"""An answer before it is sent: what never varies is built once, in the form that the socket takes and in ASGI's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

from layer3 import contract
from serving.problems import MEDIA_TYPE, Problem, problem_body

__all__ = ["HTML", "JSON", "METRICS", "Head", "Pairs", "Reply", "head", "json_reply", "lines", "refusal"]

Pairs = tuple[tuple[bytes, bytes], ...]

JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_encode: Final = msgspec.json.Encoder().encode


class Head:
    """Status and headers that do not vary: ``pairs`` as ASGI takes them, ``block`` as the socket does."""

    __slots__ = ("block", "pairs", "status")

    def __init__(self, status: HTTPStatus, content_type: str) -> None:
        self.status = status.value
        self.pairs: Pairs = (
            (b"content-type", content_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (contract.HEADER.lower().encode(), contract.VERSION.encode()),
        )
        self.block = b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) + lines(self.pairs)


class Reply(NamedTuple):
    """An answer; ``more`` are headers of this one alone."""

    head: Head
    body: bytes
    more: Pairs = ()


@cache
def head(status: HTTPStatus, content_type: str = JSON) -> Head:
    """The one head of this status and content type."""
    return Head(status, content_type)


def lines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they are written to a socket."""
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)


def json_reply(status: HTTPStatus, body: object) -> Reply:
    """``body`` as JSON."""
    return Reply(head(status), _encode(body))


def refusal(problem: Problem, request_id: str) -> Reply:
    """The problem document of ``problem``, with its headers."""
    more = _encoded(problem.headers) if problem.headers else ()
    return Reply(head(problem.status, MEDIA_TYPE), problem_body(problem, request_id), more)


def _encoded(headers: Mapping[str, str]) -> Pairs:
    return tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
