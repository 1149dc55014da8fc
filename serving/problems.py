"""What the API answers when it does not answer: RFC 9457 problem documents, and JSON that is always JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

__all__ = ["JsonResponse", "Problem", "problem_response"]

_MEDIA_TYPE: Final = "application/problem+json"


class JsonResponse(Response):
    """ASCII JSON without NaN: what a caller sent may come back in it, lone surrogates included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """A request that is answered with ``status`` and a sentence, instead of a prediction.

    ``errors`` lists single faults: each a mapping with ``index``, ``feature``, ``expected``, ``got``.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers


def problem_response(problem: Problem) -> Response:
    """The answer that carries ``problem``."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
    }
    if problem.errors:
        body["errors"] = [dict(error) for error in problem.errors]
    headers = dict(problem.headers) if problem.headers else None
    return JsonResponse(body, problem.status.value, headers, _MEDIA_TYPE)
