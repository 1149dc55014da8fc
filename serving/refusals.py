"""The three ways in which a caller is turned away, as problems with the headers that go with them."""

from __future__ import annotations

import math
from http import HTTPStatus

from serving.problems import Problem

__all__ = ["not_yet", "too_many", "unauthorised"]


def unauthorised(detail: str, challenge: str) -> Problem:
    """The 401; ``challenge`` names what would be accepted (WWW-Authenticate)."""
    return Problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})


def too_many(detail: str, seconds: float) -> Problem:
    """The 429 that sends a caller away for ``seconds``, rounded up to whole ones."""
    return _later(HTTPStatus.TOO_MANY_REQUESTS, detail, seconds)


def not_yet(detail: str, seconds: float) -> Problem:
    """The 503 of what will be possible soon; ask again in ``seconds``, rounded up to whole ones."""
    return _later(HTTPStatus.SERVICE_UNAVAILABLE, detail, seconds)


def _later(status: HTTPStatus, detail: str, seconds: float) -> Problem:
    wait = max(1, math.ceil(seconds))
    return Problem(status, f"{detail}; try again in {wait} s", headers={"Retry-After": str(wait)})
