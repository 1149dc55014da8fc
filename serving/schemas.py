"""The JSON schemas of the API's bodies, with an example of each: units and ranges stand beside the fields."""

from __future__ import annotations

from typing import Any, Final

from layer3 import contract
from serving.state_input import MAX_STATES, STATE_HIGH, STATE_LOW

__all__ = [
    "BATCH",
    "HEALTHY",
    "INSTANCES",
    "MEANINGS",
    "MODEL",
    "PREDICTED",
    "PREDICTED_BATCH",
    "PREDICTIONS",
    "SCHEMAS",
    "STATE",
    "STATUS",
    "UNHEALTHY",
]

Schema = dict[str, Any]

#: What each number of a state says, and in what unit; all are without one once they are scaled.
MEANINGS: Final = dict(
    zip(
        contract.FEATURES,
        (
            "the signal's confidence, 0 to 1",
            "1 if the signal is SELL or STRONG_SELL, else 0",
            "1 if it is HOLD, else 0",
            "1 if it is BUY or STRONG_BUY, else 0",
            "1 if the risk score is at most 0.2, else 0",
            "1 if it is above 0.2 and at most 0.4, else 0",
            "1 if it is above 0.4 and at most 0.6, else 0",
            "1 if it is above 0.6, else 0",
            f"|position| in units of {contract.MAX_EXPOSURE:g} of equity, 0 to 1",
            "-1 short, 0 flat, 1 long",
            "gain of the open position since its average entry, in units of 50 %, clipped",
            "return of the close over one hour, in units of 10 %, clipped",
            "return of the close over four hours, in units of 20 %, clipped",
            f"standard deviation of the daily return over {contract.VOLATILITY_WINDOW} h, in units of 10 %, 0 to 1",
            f"share of winners among the last {contract.WIN_RATE_TRADES} closed trades, 0 to 1; "
            f"{contract.NEUTRAL_WIN_RATE:g} before any",
            "risk of a liquidation cascade, 0 to 1",
        ),
        strict=True,
    )
)
_NUMBERS: Final = [0.85, 0, 0, 1, 0, 1, 0, 0, 0.2, 1, 0.04, 0.05, 0.1, 0.3, 0.6, 0.1]
MODEL: Final = "20260101-0123456789ab"
STATE: Final = {"state": _NUMBERS}
BATCH: Final = {"states": [_NUMBERS, _NUMBERS]}
INSTANCES: Final = {"instances": [_NUMBERS, STATE]}
PREDICTED: Final = {"position_multiplier": 1.42, "confidence": 0.61, "latency_ms": 0.02, "model_version": MODEL}
PREDICTED_BATCH: Final = {
    "position_multipliers": [1.42, 1.42],
    "confidences": [0.61, 0.61],
    "latency_ms": 0.05,
    "model_version": MODEL,
}
PREDICTIONS: Final = {"predictions": [PREDICTED, PREDICTED]}
HEALTHY: Final = {"status": "ready", "model_version": MODEL, "contract": contract.VERSION, "uptime_seconds": 12.3}
UNHEALTHY: Final = {**HEALTHY, "status": "unavailable", "model_version": None, "reason": "MODEL_URI is not set"}
STATUS: Final = {
    **HEALTHY,
    "model": {
        "id": MODEL,
        "sha256": "0123456789ab" + "0" * 52,
        "contract": contract.VERSION,
        "members": 1,
        "trained_on": {"end": "2026-01-01T00:00:00+00:00"},
        "released_at": "2026-01-02T00:00:00+00:00",
        "run_id": "run-1",
        "loaded_at": "2026-01-02T00:00:03+00:00",
    },
    "watching": "a channel",
    "swaps": 0,
    "refusals": 0,
    "unreachable": 0,
    "refused": None,
    "requests": {"2xx": 1024},
}


def _object(properties: dict[str, Schema], *optional: str, closed: bool = False) -> Schema:
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "required": required, "properties": properties}
    return {**schema, "additionalProperties": False} if closed else schema


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _count(description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "description": description}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_ROW: Final[Schema] = {
    "type": "array",
    "minItems": contract.STATE_DIM,
    "maxItems": contract.STATE_DIM,
    "items": {"type": "number", "minimum": STATE_LOW, "maximum": STATE_HIGH},
    "description": "in this order: " + "; ".join(f"{name}: {said}" for name, said in MEANINGS.items()),
}
_MULTIPLIER: Final[Schema] = {
    "type": "number",
    "minimum": contract.MULTIPLIER_LOW,
    "maximum": contract.MULTIPLIER_HIGH,
    "description": "what to multiply the base fraction of equity by, without unit",
}
_CONFIDENCE: Final[Schema] = {
    "type": "number",
    "minimum": 0,
    "maximum": 1,
    "description": "how sure the policy is of its multiplier: the higher, the smaller its error; without unit",
}
_LATENCY: Final[Schema] = {
    "type": "number",
    "minimum": 0,
    "description": "milliseconds from the body read to the answer known, on the server's clock",
}
_VERSION: Final = _text("the model: the day its training data end, and the head of its weights' sha256")
_NULLABLE: Final[Schema] = {"type": ["string", "null"]}
_PREDICTION: Final = _object(
    {
        "position_multiplier": _MULTIPLIER,
        "confidence": _CONFIDENCE,
        "latency_ms": _LATENCY,
        "model_version": _VERSION,
    }
)
_HEALTH: Final[dict[str, Schema]] = {
    "status": {"type": "string", "enum": ["ready", "loading", "unavailable", "draining"]},
    "model_version": {**_NULLABLE, "description": "the model that serves"},
    "contract": _text("the state contract that this server speaks"),
    "uptime_seconds": {"type": "number", "minimum": 0, "description": "seconds since the process began to serve"},
    "reason": _text("why no model serves; absent where one does"),
}
_FAULT: Final = _object(
    {
        "state": _count("which state or instance, where there are several"),
        "index": {"type": "integer", "minimum": 0, "maximum": contract.STATE_DIM - 1},
        "feature": {"type": "string", "enum": list(contract.FEATURES)},
        "expected": {"type": "string"},
        "got": {"type": "string"},
    },
    "state",
)
_MODEL: Final = _object(
    {
        "id": _VERSION,
        "sha256": _text("of the weights"),
        "contract": _text("the state contract that it was trained under"),
        "members": _count("networks that answer together"),
        "trained_on": {
            "type": "object",
            "description": "the training data: symbol, whether simulated, interval, first and last bar, sha256",
        },
        "released_at": {**_NULLABLE, "description": "when it began to serve, ISO 8601, UTC; of a channel's champion"},
        "run_id": {**_NULLABLE, "description": "the run that made it"},
        "loaded_at": _text("when this process loaded it, ISO 8601, UTC"),
    }
)

SCHEMAS: Final[dict[str, Schema]] = {
    "State": _object({"state": _ROW}, closed=True),
    "States": _object({"states": {"type": "array", "minItems": 1, "maxItems": MAX_STATES, "items": _ROW}}, closed=True),
    "Instances": _object(
        {
            "instances": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_STATES,
                "items": {"oneOf": [_ROW, _ref("State")]},
            },
            "parameters": {
                "type": ["object", "null"],
                "maxProperties": 0,
                "description": "empty: this model knows none",
            },
        },
        "parameters",
        closed=True,
    ),
    "Prediction": _PREDICTION,
    "PredictionBatch": _object(
        {
            "position_multipliers": {"type": "array", "items": _MULTIPLIER},
            "confidences": {"type": "array", "items": _CONFIDENCE},
            "latency_ms": _LATENCY,
            "model_version": _VERSION,
        }
    ),
    "Predictions": _object({"predictions": {"type": "array", "items": _ref("Prediction")}}),
    "Health": _object(_HEALTH, "reason"),
    "Alive": _object({"status": {"type": "string", "const": "alive"}}),
    "Status": _object(
        {
            **_HEALTH,
            "model": {"oneOf": [_MODEL, {"type": "null"}], "description": "the model that serves"},
            "watching": _text("whether a new champion would be taken up while the server runs"),
            "swaps": _count("models taken up in place of another since the start"),
            "refusals": _count("models that were offered and refused since the start"),
            "unreachable": _count("looks at the source that it did not answer"),
            "refused": {
                "type": ["object", "null"],
                "description": "why what is offered now is refused, and when it was last tried: reason, at",
            },
            "requests": {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "description": "answers since the start, by class of status",
            },
        },
        "reason",
    ),
    "Root": _object(
        {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "contract": {"type": "string"},
            "model_version": _NULLABLE,
            "endpoints": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ),
    "OpenApi": {"type": "object", "required": ["openapi", "paths"]},
    "Problem": _object(
        {
            "type": {"type": "string", "const": "about:blank"},
            "title": _text("the status in words"),
            "status": {"type": "integer", "description": "the HTTP status again"},
            "detail": _text("what was expected and what was got"),
            "request_id": _text("as in the header X-Request-Id and in the log"),
            "errors": {
                "type": "array",
                "maxItems": 100,
                "items": _FAULT,
                "description": "one entry for each number that is wrong, the first hundred of them",
            },
        },
        "errors",
    ),
}
