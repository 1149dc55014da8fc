"""What a browser asks before a page of another origin may call: nothing is allowed that a setting does not name."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from layer3 import contract
from serving.replies import Pairs, Reply, head

__all__ = ["Cors"]

_REQUEST_HEADERS: Final = f"Authorization, Content-Type, X-API-Key, X-Request-Id, {contract.HEADER}"
_ANSWER_HEADERS: Final = f"Retry-After, X-Request-Id, {contract.HEADER}"
#: Seconds for which a browser need not ask again.
_REMEMBERED: Final = 600


class Cors:
    """Answers for the origins of ``allowed``. Cookies are never asked for: no answer allows credentials."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def headers(self, headers: Mapping[bytes, bytes]) -> Pairs:
        """What an answer to a request with ``headers`` says to its browser; nothing to an origin nobody named."""
        if not self._allowed:
            return ()
        vary = (b"vary", b"Origin")
        origin = headers.get(b"origin", b"")
        if origin not in self._allowed:
            return (vary,)
        return (
            vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _ANSWER_HEADERS.encode()),
        )

    def preflight(self, headers: Mapping[bytes, bytes], methods: tuple[str, ...]) -> Reply | None:
        """The answer to the browser's question whether it may call a route of ``methods``; None if it is none."""
        if headers.get(b"origin") not in self._allowed or b"access-control-request-method" not in headers:
            return None
        more = (
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", _REQUEST_HEADERS.encode()),
            (b"access-control-max-age", str(_REMEMBERED).encode()),
        )
        return Reply(head(HTTPStatus.NO_CONTENT), b"", more)
