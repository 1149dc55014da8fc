"""The OpenAPI text of the API: schemas, examples and error bodies, written out as plain data."""

from __future__ import annotations

from typing import Any, Final

from layer3 import contract
from serving.state_input import MAX_BODY, STATE_HIGH, STATE_LOW

__all__ = ["DESCRIPTION", "HEALTH_RESPONSES", "PREDICT_REQUEST", "PREDICT_RESPONSES", "ROOT_RESPONSES"]

DESCRIPTION: Final = (
    f"One state of {contract.STATE_DIM} numbers in, one position multiplier in "
    f"[{contract.MULTIPLIER_LOW:g}, {contract.MULTIPLIER_HIGH:g}] out. State contract `{contract.VERSION}`; "
    "the numbers, in order: " + ", ".join(f"{i} `{name}`" for i, name in enumerate(contract.FEATURES)) + "."
)

_STATE: Final = [0.85, 0, 0, 1, 0, 1, 0, 0, 0.2, 1, 0.04, 0.05, 0.1, 0.3, 0.6, 0.1]
_MODEL: Final = "20260101-0123456789ab"
_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "the status in words"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what was expected and what was got"},
        "errors": {
            "type": "array",
            "description": "one entry for each number of the state that is wrong",
            "items": {
                "type": "object",
                "required": ["index", "feature", "expected", "got"],
                "properties": {
                    "index": {"type": "integer", "minimum": 0, "maximum": contract.STATE_DIM - 1},
                    "feature": {"type": "string", "enum": list(contract.FEATURES)},
                    "expected": {"type": "string"},
                    "got": {"type": "string"},
                },
            },
        },
    },
}


def _problem(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    example = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return {
        "description": title,
        "content": {"application/problem+json": {"schema": _PROBLEM_SCHEMA, "example": example}},
    }


def _answer(description: str, properties: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    # Required is what the example shows; FastAPI drops nulls from it, so a model_version that may be null is optional.
    schema = {"type": "object", "required": list(example), "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema, "example": example}}}


PREDICT_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": f"At most {MAX_BODY} bytes of JSON in UTF-8, with this one key.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["state"],
                    "additionalProperties": False,
                    "properties": {
                        "state": {
                            "type": "array",
                            "minItems": contract.STATE_DIM,
                            "maxItems": contract.STATE_DIM,
                            "items": {"type": "number", "minimum": STATE_LOW, "maximum": STATE_HIGH},
                            "description": ", ".join(contract.FEATURES),
                        }
                    },
                },
                "example": {"state": _STATE},
            }
        },
    }
}

_WRONG_NUMBER: Final = {"index": 13, "feature": "volatility", "expected": "a number in [-1, 1]", "got": "NaN"}

PREDICT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: _answer(
        "The policy's answer",
        {
            "position_multiplier": {
                "type": "number",
                "minimum": contract.MULTIPLIER_LOW,
                "maximum": contract.MULTIPLIER_HIGH,
                "description": "what to multiply the base fraction by: the mean of the answers of the policy's members",
            },
            "confidence": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "1 - the standard deviation of the members' answers; of a single member, "
                "1 - the distance between the quartiles of its own distribution, at least 0",
            },
            "latency_ms": {"type": "number", "minimum": 0, "description": "milliseconds, request read to answer"},
            "model_version": {"type": "string", "description": "the day the training data end, and the weights' hash"},
        },
        {"position_multiplier": 1.42, "confidence": 0.61, "latency_ms": 0.08, "model_version": _MODEL},
    ),
    400: _problem(400, "Bad Request", 'expected {"state": [16 numbers]}, got an empty body'),
    408: _problem(408, "Request Timeout", "the body did not arrive within 10 s; got 12 bytes of it"),
    409: _problem(
        409, "Conflict", f"the caller speaks state contract 'himari-state-9/1', this server '{contract.VERSION}'"
    ),
    413: _problem(413, "Content Too Large", f"expected a body of at most {MAX_BODY} bytes: announced 104857600 bytes"),
    415: _problem(415, "Unsupported Media Type", "expected Content-Type application/json in UTF-8, got none"),
    422: _problem(
        422,
        "Unprocessable Content",
        "state[13] (volatility): expected a number in [-1, 1], got NaN",
        errors=[_WRONG_NUMBER],
    ),
    503: _problem(503, "Service Unavailable", "no model serves: MODEL_URI is not set"),
}

_HEALTH: Final[dict[str, Any]] = {
    "status": {"type": "string", "enum": ["ready", "loading", "unavailable"]},
    "model_version": {"type": ["string", "null"]},
    "contract": {"type": "string", "description": "the state contract that this server speaks"},
    "uptime_seconds": {"type": "number", "minimum": 0},
}
_HEALTHY: Final = {"status": "ready", "model_version": _MODEL, "contract": contract.VERSION, "uptime_seconds": 12.3}

HEALTH_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: _answer("A model is loaded and has passed its self-test", _HEALTH, _HEALTHY),
    503: _answer(
        "No model serves, and why",
        {**_HEALTH, "reason": {"type": "string"}},
        {
            "status": "unavailable",
            "contract": contract.VERSION,
            "uptime_seconds": 12.3,
            "reason": "MODEL_URI is not set",
        },
    ),
}

ROOT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: _answer(
        "What this service is",
        {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "contract": {"type": "string"},
            "model_version": {"type": ["string", "null"]},
            "endpoints": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        {
            "name": "HIMARI position sizing",
            "description": "…",
            "contract": contract.VERSION,
            "model_version": _MODEL,
            "endpoints": {"POST /predict": "…"},
        },
    )
}
