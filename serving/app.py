"""The prediction API: one state in, the champion's multiplier out, or a sentence that says why not.

The server starts whatever its model is like. Without one that loads, speaks this program's state
contract and passes its self-test it stays *unready*: ``/health`` and ``/predict`` answer 503 with
the reason, and no number is ever made up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from layer3 import contract
from layer3.agent.policy import Policy
from layer3.errors import HimariError
from serving import documentation
from serving.channels import load_model
from serving.problems import JsonResponse, Problem, problem_response
from serving.state_input import parse_state, read_body

__all__ = ["create_app"]

_NAME: Final = "HIMARI position sizing"
_ENDPOINTS: Final = {
    "GET /": "this page",
    "GET /health": "200 once a model serves, 503 with the reason until then",
    "POST /predict": '{"state": [16 numbers]} -> position_multiplier, confidence, latency_ms, model_version',
    "GET /docs": "the whole API, with examples",
}
logger = logging.getLogger("serving")


@dataclass
class _Service:
    """The one model of this process, or the reason why there is none."""

    model_uri: str
    clock: Callable[[], float]
    started: float = field(init=False)
    policy: Policy | None = None
    loading: bool = True
    reason: str = "the model is being loaded"

    def __post_init__(self) -> None:
        self.started = self.clock()

    def load(self) -> None:
        """Load the model and pass its self-test, or keep the reason; never raises."""
        if not self.model_uri:
            self._refuse("MODEL_URI is not set: name a policy folder or a channel file, local or gs://")
            return
        try:
            policy = load_model(self.model_uri)
        except (HimariError, OSError) as error:
            self._refuse(f"the model at {self.model_uri} cannot serve: {error}")
        except Exception as error:  # the thread's outermost frame: an unready server beats a silent one
            logger.exception("loading %s failed in a way nobody expected", self.model_uri)
            self._refuse(f"the model at {self.model_uri} cannot serve: {type(error).__name__}, see the log")
        else:
            self.policy = policy
            self.loading = False
            logger.info("model %s is ready, state contract %s", policy.model_id, contract.VERSION)

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        self.loading = False
        logger.error("not ready: %s", reason)

    def health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        policy = self.policy
        body: dict[str, Any] = {
            "status": "ready" if policy else "loading" if self.loading else "unavailable",
            "model_version": policy.model_id if policy else None,
            "contract": contract.VERSION,
            "uptime_seconds": round(self.clock() - self.started, 3),
        }
        if policy:
            return HTTPStatus.OK, body
        return HTTPStatus.SERVICE_UNAVAILABLE, {**body, "reason": self.reason}

    def require(self) -> Policy:
        if self.policy is None:
            headers = {"Retry-After": "1"} if self.loading else None
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"no model serves: {self.reason}", headers=headers)
        return self.policy


def create_app(model_uri: str, *, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The application that serves the model at ``model_uri``: a policy folder or a channel file.

    The model is loaded in the background when the application starts, so that ``/health`` can
    say so meanwhile. ``clock`` gives seconds for ``uptime_seconds`` and is monotonic.
    """
    service = _Service(model_uri, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A daemon, because a bucket that never answers must not keep SIGTERM from ending the server.
        threading.Thread(target=service.load, name="load-model", daemon=True).start()
        yield

    app = FastAPI(title=_NAME, version=contract.VERSION, description=documentation.DESCRIPTION, lifespan=lifespan)
    _answer_problems(app)

    @app.get("/", responses=documentation.ROOT_RESPONSES, summary="What this service is")
    async def root() -> Response:
        return JsonResponse(
            {
                "name": _NAME,
                "description": documentation.DESCRIPTION,
                "contract": contract.VERSION,
                "model_version": service.policy.model_id if service.policy else None,
                "endpoints": _ENDPOINTS,
            }
        )

    @app.get("/health", responses=documentation.HEALTH_RESPONSES, summary="Whether a model serves")
    async def health() -> Response:
        status, body = service.health()
        return JsonResponse(body, status.value)

    @app.post(
        "/predict",
        responses=documentation.PREDICT_RESPONSES,
        openapi_extra=documentation.PREDICT_REQUEST,
        summary="The position multiplier for one state",
    )
    async def predict(request: Request) -> Response:
        policy = service.require()
        _check_contract(request)
        body = await read_body(request)
        began = time.perf_counter()
        multiplier, confidence = _decide(policy, parse_state(body))
        return JsonResponse(
            {
                "position_multiplier": multiplier,
                "confidence": confidence,
                "latency_ms": round((time.perf_counter() - began) * 1e3, 4),
                "model_version": policy.model_id,
            },
            headers={contract.HEADER: contract.VERSION},
        )

    return app


def _check_contract(request: Request) -> None:
    theirs = request.headers.get(contract.HEADER)
    if theirs is not None and theirs != contract.VERSION:
        raise Problem(
            HTTPStatus.CONFLICT,
            f"the caller speaks state contract {theirs[:80]!r}, this server {contract.VERSION!r}",
        )


def _decide(policy: Policy, state: list[float]) -> tuple[float, float]:
    with np.errstate(all="ignore"):  # what overflows ends as NaN, which is refused below
        multiplier, confidence = (float(number) for number in policy.act(state))
    if not (contract.MULTIPLIER_LOW <= multiplier <= contract.MULTIPLIER_HIGH and 0.0 <= confidence <= 1.0):
        logger.error("model %s answered %r, %r to the state %r", policy.model_id, multiplier, confidence, state)
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"model {policy.model_id} has no usable answer to this state (multiplier {multiplier}): release another",
        )
    return multiplier, confidence


def _answer_problems(app: FastAPI) -> None:
    """Every answer that is not a prediction is a problem document, the framework's own included."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return problem_response(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}; there are {', '.join(_ENDPOINTS)}"
        return problem_response(Problem(HTTPStatus(error.status_code), detail, headers=error.headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return problem_response(Problem(HTTPStatus.BAD_REQUEST, "the caller went before its body was complete"))

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        # The server logs the traceback; the caller learns nothing about our insides.
        return problem_response(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug on our side; it was logged"))
