"""A prediction server on loopback that answers callers with an accepted API key, and remembers what it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from tests.fakes.web import Handler, running

__all__ = ["ANSWER", "Strict", "strict_server"]

ANSWER = {"position_multiplier": 1.25, "confidence": 0.6, "model_version": "20250101-abc"}


class Strict(ThreadingHTTPServer):
    """``accepted`` are the keys, ``status`` and ``body`` what all get instead, ``seen`` the headers that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.accepted: set[str] = set()
        self.status: int | None = None
        self.body = b"who are you?"
        self.seen: list[dict[str, str]] = []


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    server: Strict

    def do_POST(self) -> None:
        self.content()
        self.server.seen.append(dict(self.headers))
        known = self.headers["X-API-Key"] in self.server.accepted
        status = self.server.status or (200 if known else 401)
        body = json.dumps(ANSWER).encode() if known and self.server.status is None else self.server.body
        self.reply(status, body)


@contextmanager
def strict_server() -> Iterator[Strict]:
    with running(Strict()) as server:
        yield server
