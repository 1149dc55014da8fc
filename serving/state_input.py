"""From the bytes of a request to 16 checked numbers, or to a :class:`serving.problems.Problem`."""

from __future__ import annotations

import asyncio
import json
import math
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request

from layer3 import contract
from serving.problems import Problem

__all__ = ["BODY_SECONDS", "MAX_BODY", "STATE_HIGH", "STATE_LOW", "parse_state", "read_body"]

#: Largest request body in bytes; a state is about 300.
MAX_BODY: Final = 64 * 1024
#: Seconds a sender may take for its body.
BODY_SECONDS: Final = 10.0
#: Bounds of every number of the state contract.
STATE_LOW: Final = -1.0
STATE_HIGH: Final = 1.0

_EXPECTED: Final = f'{{"state": [{contract.STATE_DIM} numbers]}}'
_RANGE: Final = f"a number in [{STATE_LOW:g}, {STATE_HIGH:g}]"
_SHOWN: Final = 40


async def read_body(request: Request) -> bytes:
    """The body of a JSON request, read no further than :data:`MAX_BODY` whatever its headers promise.

    Raises
    ------
    Problem : 415 for another content type, 413 when too large, 408 when too slow
    starlette.requests.ClientDisconnect : the caller has gone
    """
    _check_content_type(request.headers.get("content-type", ""))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise _too_large(f"announced {announced} bytes")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY:
                    raise _too_large("the body goes on after that")
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_SECONDS:g} s; got {size} bytes of it"
        ) from None
    return b"".join(chunks)


def parse_state(body: bytes) -> list[float]:
    """The state that ``body`` holds: 16 finite numbers in [-1, 1], in the order of ``contract.FEATURES``.

    Raises
    ------
    Problem : 400 when it is not JSON in UTF-8, 422 when it is not such a state; each wrong number is named
    """
    document = _decode(body)
    if not isinstance(document, dict):
        raise _unfit(f"expected {_EXPECTED}, got {_show(document)}")
    if "state" not in document:
        raise _unfit(f'expected {_EXPECTED}, the key "state" is missing; got {_keys(document)}')
    if len(document) > 1:
        raise _unfit(f"expected {_EXPECTED} and no other key, got {_keys(document)}")
    state = document["state"]
    if not isinstance(state, list):
        raise _unfit(f"state: expected a list of {contract.STATE_DIM} numbers, got {_show(state)}")
    if len(state) != contract.STATE_DIM:
        raise _unfit(f"state: expected {contract.STATE_DIM} numbers, got {len(state)}")
    errors = [
        {"index": index, "feature": feature, "expected": _RANGE, "got": _show(value)}
        for index, (feature, value) in enumerate(zip(contract.FEATURES, state, strict=True))
        if not _is_in_range(value)
    ]
    if errors:
        first = errors[0]
        more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"state[{first['index']}] ({first['feature']}): expected {_RANGE}, got {first['got']}{more}",
            errors,
        )
    return [float(value) for value in state]


def _check_content_type(content_type: str) -> None:
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected Content-Type application/json in UTF-8, got {_show(content_type) if content_type else 'none'}",
        )


def _too_large(got: str) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MAX_BODY} bytes: {got}")


def _unfit(detail: str) -> Problem:
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _decode(body: bytes) -> Any:
    if not body.strip():
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {_EXPECTED}, got an empty body")
    try:
        # By hand: json.loads(bytes) would also take UTF-16 and UTF-32.
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        got = f"byte {error.start} is 0x{body[error.start]:02x}"
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected JSON in UTF-8, but {got}") from None
    except RecursionError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {_EXPECTED}, got JSON that is nested too deeply") from None
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {_EXPECTED}, got no JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key is given twice")
    return document


def _is_in_range(value: object) -> bool:
    # bool is an int in Python and not a number in JSON; NaN fails the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and STATE_LOW <= value <= STATE_HIGH


def _keys(document: dict[str, Any]) -> str:
    if not document:
        return "no key"
    shown = ", ".join(_show(key) for key in list(document)[:4])
    return f"the keys {shown}{', …' if len(document) > 4 else ''}"


def _show(value: object) -> str:
    """``value`` as a caller would write it, cut to a length that fits in a sentence."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
