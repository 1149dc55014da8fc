"""From a request's body to the policy's answer: for one state, for many, and in Vertex AI's form."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Any, Final

import msgspec
import numpy as np

from layer3 import contract
from serving.problems import Problem
from serving.refusals import not_yet
from serving.replies import Reply, head
from serving.service import Service, Serving
from serving.state_input import parse_batch, parse_instances, parse_state

__all__ = ["Predictions"]

_LOW: Final = contract.MULTIPLIER_LOW
_HIGH: Final = contract.MULTIPLIER_HIGH
_OK: Final = head(HTTPStatus.OK)
_encode: Final = msgspec.json.Encoder().encode
_clock: Final = time.perf_counter
#: Seconds after which a model without an answer may have been replaced.
_UNTIL_ANOTHER: Final = 60.0
logger = logging.getLogger("serving")


class _One(msgspec.Struct, gc=False):
    position_multiplier: float
    confidence: float
    latency_ms: float
    model_version: str


class _Many(msgspec.Struct, gc=False):
    position_multipliers: list[float]
    confidences: list[float]
    latency_ms: float
    model_version: str


class _Vertex(msgspec.Struct, gc=False):
    predictions: list[_One]


class Predictions:
    """Answers of the model that ``service`` holds at the moment of asking. ``latency_ms`` is body read to answer."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def one(self, body: bytes) -> Reply:
        """``{"state": [...]}``: one multiplier."""
        began = _clock()
        serving = self._service.current or self._service.require()
        state = parse_state(body)
        found, certain = serving.policy.act(state)
        multiplier, confidence = float(found), float(certain)
        if not (_LOW <= multiplier <= _HIGH and 0.0 <= confidence <= 1.0):
            raise _unusable(serving, state, multiplier, confidence)
        latency = round((_clock() - began) * 1e3, 4)
        return Reply(_OK, _encode(_One(multiplier, confidence, latency, serving.model_version)))

    def batch(self, body: bytes) -> Reply:
        """``{"states": [[...], ...]}``: as many multipliers, or none."""
        began = _clock()
        serving = self._service.current or self._service.require()
        multipliers, confidences = _act(serving, parse_batch(body))
        latency = round((_clock() - began) * 1e3, 4)
        return Reply(_OK, _encode(_Many(multipliers, confidences, latency, serving.model_version)))

    def vertex(self, body: bytes) -> Reply:
        """``{"instances": [...]}``: ``{"predictions": [...]}``, which is all that Vertex AI hands on."""
        began = _clock()
        serving = self._service.current or self._service.require()
        answers = zip(*_act(serving, parse_instances(body)), strict=True)
        latency, version = round((_clock() - began) * 1e3, 4), serving.model_version
        return Reply(_OK, _encode(_Vertex([_One(m, c, latency, version) for m, c in answers])))

    def either(self, body: bytes) -> Reply:
        """One state or Vertex AI's form, where Vertex AI has been told to use our own path."""
        return self.vertex(body) if b'"instances"' in body else self.one(body)


def _act(serving: Serving, states: list[list[float]]) -> tuple[list[float], list[float]]:
    multipliers, confidences = serving.policy.act(np.array(states, dtype=np.float32))
    # NaN fails the comparisons.
    usable = (multipliers >= _LOW) & (multipliers <= _HIGH) & (confidences >= 0.0) & (confidences <= 1.0)
    if not usable.all():
        i = int(np.argmin(usable))
        raise _unusable(serving, states[i], multipliers[i], confidences[i])
    return multipliers.tolist(), confidences.tolist()


def _unusable(serving: Serving, state: list[float], multiplier: Any, confidence: Any) -> Problem:
    logger.error(
        "model %s answered %r, %r to the state %r", serving.model_version, float(multiplier), float(confidence), state
    )
    return not_yet(
        f"model {serving.model_version} has no usable answer to this state (multiplier {float(multiplier)}): "
        "release another",
        _UNTIL_ANOTHER,
    )
