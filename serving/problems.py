"""What the API answers when it does not answer: RFC 9457 problem documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

__all__ = ["MEDIA_TYPE", "Problem", "problem_body"]

MEDIA_TYPE: Final = "application/problem+json"


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """A request that is answered with ``status`` and a sentence, instead of what it asked for.

    ``errors`` lists single faults: each a mapping with ``index``, ``feature``, ``expected``, ``got``,
    and ``state`` where there are several states. ``headers`` go into the answer beside the usual ones.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        errors: Sequence[Mapping[str, Any]] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers


def problem_body(problem: Problem, request_id: str) -> bytes:
    """The document that carries ``problem``: ASCII JSON without NaN.

    ASCII, because what a caller sent may come back in it, lone surrogates included.
    """
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = [dict(error) for error in problem.errors]
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
