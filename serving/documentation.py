"""The API's OpenAPI document: every route with its units, examples, headers and error bodies, as plain data."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from layer3 import contract
from serving.problems import MEDIA_TYPE
from serving.schemas import (
    BATCH,
    HEALTHY,
    INSTANCES,
    MEANINGS,
    MODEL,
    PREDICTED,
    PREDICTED_BATCH,
    PREDICTIONS,
    SCHEMAS,
    STATE,
    STATUS,
    UNHEALTHY,
)
from serving.settings import Settings
from serving.state_input import MAX_BATCH_BODY, MAX_BODY

__all__ = ["DESCRIPTION", "NAME", "document", "endpoints"]

NAME: Final = "HIMARI position sizing"
DESCRIPTION: Final = (
    f"One state of {contract.STATE_DIM} numbers in, one position multiplier in "
    f"[{contract.MULTIPLIER_LOW:g}, {contract.MULTIPLIER_HIGH:g}] out. State contract `{contract.VERSION}`."
)
_STATE: Final = "A state, in order:\n\n" + "\n".join(
    f"{i}. `{name}`: {said}" for i, (name, said) in enumerate(MEANINGS.items())
)

_SECURITY_SCHEMES: Final = {
    "ApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "one of the server's file of keys",
    },
    "IdToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "a Google ID token whose audience is this service",
    },
}
_REQUEST_ID: Final = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable ASCII characters that name the request in the answer and in the log; "
    "anything else is replaced by a new name",
    "schema": {"type": "string"},
}
_CONTRACT: Final = {
    "name": contract.HEADER,
    "in": "header",
    "required": False,
    "description": f"the state contract that the caller speaks; any but {contract.VERSION} is refused with 409",
    "schema": {"type": "string"},
    "example": contract.VERSION,
}


def _header(description: str, example: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, "schema": schema or {"type": "string"}, "example": example, "required": True}


_SECONDS: Final = {"type": "string", "pattern": "^[0-9]+$"}
_ALWAYS: Final = {
    "X-Request-Id": _header("the request's name, the caller's own if it sent one", "9f1c2d3e4a5b-1f"),
    contract.HEADER: _header("the state contract that this server speaks", contract.VERSION),
}
_CHALLENGE: Final = {"WWW-Authenticate": _header("how callers are known", 'ApiKey realm="himari"')}
_RETRY: Final = {"Retry-After": _header("whole seconds after which to ask again", "1", _SECONDS)}


def _answer(description: str, schema: str, example: object, media_type: str = "application/json") -> dict[str, Any]:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}}
    return {"description": description, "headers": _ALWAYS, "content": content}


def _problem(status: int, detail: str, headers: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    example = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": "9f1c2d3e4a5b-1f",
    }
    answer = _answer(title, "Problem", {**example, **more}, MEDIA_TYPE)
    return {**answer, "headers": {**_ALWAYS, **(headers or {})}}


_WRONG: Final = {"index": 13, "feature": "volatility", "expected": "a number in [-1, 1]", "got": "NaN"}
_BROKEN: Final = {
    "400": _problem(400, "this is not HTTP/1.1 (RFC 9112)"),
    "408": _problem(408, "the headers did not arrive within 10 s"),
    "431": _problem(431, "expected at most 16384 bytes of request line and headers"),
    "500": _problem(500, "a bug on our side; it was logged"),
}
_UNKNOWN: Final = {
    "401": _problem(401, "this service answers known callers only: send an API key in X-API-Key", _CHALLENGE),
    "403": _problem(403, "the account of this ID token may not call this service"),
    "429": _problem(
        429,
        "this caller sends requests faster than it may; try again in 1 s",
        _RETRY,
    ),
    "503": _problem(503, "Google's certificates are not here yet; try again in 1 s", _RETRY),
}


def _refusals(expected: str, limit: int, wrong: dict[str, Any], where: str) -> dict[str, Any]:
    """What a request with a body may meet."""
    contracts = f"the caller speaks state contract 'himari-state-9/1', this server '{contract.VERSION}'"
    return {
        **_BROKEN,
        **_UNKNOWN,
        "400": _problem(400, f"expected {expected}, got an empty body"),
        "408": _problem(408, "the body did not arrive within 10 s; got 12 bytes of it"),
        "409": _problem(409, contracts),
        "413": _problem(413, f"expected a body of at most {limit} bytes: announced 104857600 bytes"),
        "415": _problem(415, "expected Content-Type application/json in UTF-8, got none"),
        "422": _problem(
            422,
            f"{where}[13] (volatility): expected a number in [-1, 1], got NaN",
            errors=[wrong],
        ),
        "503": _problem(503, "no model serves: the model is being loaded", _RETRY),
    }


def _post(
    summary: str, request: str, example: object, answer: dict[str, Any], limit: int, refusals: dict[str, Any]
) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{request}"}
    return {
        "summary": summary,
        "parameters": [_CONTRACT, _REQUEST_ID],
        "requestBody": {
            "required": True,
            "description": f"At most {limit} bytes of JSON in UTF-8, with no other key.",
            "content": {"application/json": {"schema": schema, "example": example}},
        },
        "responses": {"200": answer, **refusals},
    }


def _get(summary: str, answer: dict[str, Any], **others: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": answer, **_BROKEN, **{name.removeprefix("_"): other for name, other in others.items()}}
    return {"summary": summary, "parameters": [_REQUEST_ID], "responses": responses}


def _text(description: str, media_type: str, example: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    return {"description": description, "headers": _ALWAYS, "content": content}


def _vertex() -> dict[str, Any]:
    return _post(
        "The position multipliers of Vertex AI's instances",
        "Instances",
        INSTANCES,
        _answer("A prediction for each instance, in their order", "Predictions", PREDICTIONS),
        MAX_BATCH_BODY,
        _refusals('{"instances": [[16 numbers], ...]}', MAX_BATCH_BODY, {"state": 0, **_WRONG}, "instances[0]"),
    )


def _predict() -> dict[str, Any]:
    return _post(
        "The position multiplier for one state",
        "State",
        STATE,
        _answer("The policy's answer", "Prediction", PREDICTED),
        MAX_BODY,
        _refusals('{"state": [16 numbers]}', MAX_BODY, _WRONG, "state"),
    )


def _batch() -> dict[str, Any]:
    return _post(
        "The position multipliers for up to 4096 states, all or nothing",
        "States",
        BATCH,
        _answer("The policy's answers, in the order of the states", "PredictionBatch", PREDICTED_BATCH),
        MAX_BATCH_BODY,
        _refusals('{"states": [[16 numbers], ...]}', MAX_BATCH_BODY, {"state": 0, **_WRONG}, "states[0]"),
    )


def _health() -> dict[str, Any]:
    return _get(
        "Whether a model serves: 200, or 503 with the reason",
        _answer("A model is loaded and has passed its self-test", "Health", HEALTHY),
        _503=_answer("No model serves, or the server is being stopped, and why", "Health", UNHEALTHY),
    )


def _own_paths() -> dict[str, Any]:
    root = {"name": NAME, "description": "…", "contract": contract.VERSION, "model_version": MODEL, "endpoints": {}}
    metrics = 'himari_serving_requests_total{route="/predict",code="200"} 1024\n'
    return {
        "/predict": {"post": _predict()},
        "/predict:batch": {"post": _batch()},
        "/": {"get": _get("What this service is", _answer("Its name, model and endpoints", "Root", root))},
        "/health": {"get": _health()},
        "/healthz": {
            "get": _get(
                "Whether the process answers, with a model or without",
                _answer("It does", "Alive", {"status": "alive"}),
            )
        },
        "/status": {
            "get": _get(
                "What serves, since when, and what was refused",
                _answer("The model and the counts", "Status", STATUS),
                **{f"_{status}": answer for status, answer in _UNKNOWN.items()},
            )
        },
        "/metrics": {
            "get": _get(
                "Counters for Prometheus, text format 0.0.4",
                _text("One line for each series", "text/plain", metrics),
                **{f"_{status}": answer for status, answer in _UNKNOWN.items()},
            )
        },
        "/docs": {"get": _get("This document as a page", _text("A page", "text/html", "<!doctype html>…"))},
        "/openapi.json": {
            "get": _get("This document", _answer("OpenAPI 3.1", "OpenApi", {"openapi": "3.1.0", "paths": {}}))
        },
    }


def document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server with ``settings``: its ways to be known, and Vertex AI's paths if it has any."""
    paths = _own_paths()
    if settings.health_route:
        paths[settings.health_route] = {"get": _health()}
    if settings.predict_route == "/predict":
        paths["/predict"]["post"] = _either(paths["/predict"]["post"], _vertex())
    elif settings.predict_route:
        paths[settings.predict_route] = {"post": _vertex()}
    ways = {"ApiKey": bool(settings.guard.keys_file), "IdToken": bool(settings.guard.audiences)}
    security: list[dict[str, list[str]]] = [{name: []} for name, on in ways.items() if on]
    for path, operations in paths.items():
        for method, operation in operations.items():
            operation["operationId"] = f"{method}_{path.strip('/').replace('/', '_') or 'root'}"
            operation["security"] = security if "401" in operation["responses"] else []
    return {
        "openapi": "3.1.0",
        "info": {"title": NAME, "version": contract.VERSION, "description": f"{DESCRIPTION}\n\n{_STATE}"},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SECURITY_SCHEMES},
    }


def _either(own: dict[str, Any], vertex: dict[str, Any]) -> dict[str, Any]:
    """One path that takes both forms, each answered in its own."""
    merged = {**own, "summary": f"{own['summary']}, or Vertex AI's instances"}
    for key in ("requestBody", "200"):
        ours = own[key] if key in own else own["responses"][key]
        theirs = vertex[key] if key in vertex else vertex["responses"][key]
        forms = [part["content"]["application/json"] for part in (ours, theirs)]
        content = {"schema": {"oneOf": [form["schema"] for form in forms]}, "example": forms[0]["example"]}
        both = {**ours, "content": {"application/json": content}}
        if key == "200":
            merged["responses"] = {**own["responses"], key: both}
        else:
            merged[key] = {**both, "description": f"At most {MAX_BATCH_BODY} bytes of JSON in UTF-8."}
    return merged


def endpoints(described: dict[str, Any]) -> dict[str, str]:
    """Each operation of an OpenAPI document with its summary."""
    return {
        f"{method.upper()} {path}": operation["summary"]
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
