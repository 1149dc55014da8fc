"""The front door: every path is answered here.

A plain ASGI application. Each route is a function from a body to a reply; around it the door checks method,
caller, contract and content type, counts, logs, and turns whatever goes wrong into a problem document.
:meth:`Door.answer` does all of it for a request that is here as a whole, without an event loop
(``serving.protocol`` calls it from the socket); :meth:`Door.__call__` waits for a body first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final

from layer3 import contract
from serving.access import AccessLog
from serving.cors import Cors
from serving.guard import Guard
from serving.metrics import Metrics
from serving.overload import Overloaded, Receive, Room, read_body, too_large
from serving.problems import Problem
from serving.refusals import not_yet
from serving.replies import Reply, refusal
from serving.routes import Route, route_table
from serving.service import Service
from serving.settings import Settings
from serving.state_input import check_content_type

__all__ = ["BROKEN", "Door", "bug"]

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[bytes, bytes]

#: Key of a request's state: the Problem of a body that ended before it was complete.
BROKEN: Final = "broken"
_CONTRACT: Final = contract.HEADER.lower().encode()
_VERSION: Final = contract.VERSION.encode()
#: A caller's own request id is used if it is this; it comes back in a header and goes into the log.
_SANE_ID: Final = re.compile(rb"[ -~]{1,128}")
_PATH_SHOWN: Final = 80
#: What the log says above a traceback; the caller learns nothing about our insides.
_BUG: Final = "request %s met a bug"
_clock: Final = time.perf_counter
logger = logging.getLogger("serving")


class Door:
    """The ASGI application; ``routes`` is its table of paths, ``room`` counts what is under way."""

    def __init__(self, settings: Settings, service: Service, guard: Guard, metrics: Metrics, access: AccessLog) -> None:
        self.service = service
        self.routes = route_table(settings, service, metrics)
        self.room = Room(settings.max_in_flight)
        self._turn = asyncio.Lock()
        self._guard, self._metrics, self._access = guard, metrics, access
        self._cors = Cors(settings.cors_origins)
        start = secrets.token_hex(6)
        self._ids = (f"{start}-{number:x}" for number in itertools.count(1))

    def answer(
        self, route: Route, method: str, path: str, pairs: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> tuple[Reply, str]:
        """The answer to a request of ``route`` that is here as a whole, and the request's id. Never raises."""
        began = _clock()
        headers = dict(pairs)
        request_id, caller = self._request_id(headers), None
        try:
            caller = self._admit(route, method, headers)
            if len(body) > route.max_body > 0:
                raise too_large(route.max_body, f"got {len(body)} bytes")
            reply = route.answer(body)
        except Problem as problem:
            reply = self._refusal(problem, request_id)
        except Exception:  # a request's outermost frame: the traceback is for the log, the caller gets a 500
            logger.exception(_BUG, request_id)
            reply = self._refusal(bug(), request_id)
        return self._finish(reply, route.name, method, path, headers, began, request_id, caller), request_id

    def refuse(self, problem: Problem, name: str, method: str, path: str, headers: Headers) -> tuple[Reply, str]:
        """The answer to a request that is not even looked at, and its id. ``name`` is its route's in the metrics."""
        request_id = self._request_id(headers)
        reply = self._refusal(problem, request_id)
        return self._finish(reply, name, method, path, headers, _clock(), request_id, None), request_id

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        began = _clock()
        method, path, headers = scope["method"], scope["path"], dict(scope["headers"])
        request_id, caller, name = self._request_id(headers), None, "other"
        try:
            route = self._route(method, path)
            name = route.name
            preflight = self._cors.preflight(headers, route.methods) if method == "OPTIONS" else None
            if preflight is None:
                caller = self._admit(route, method, headers)
            reply = preflight or await self._take(route, scope, headers, receive)
        except asyncio.CancelledError:
            # The server stops, and has waited long enough for the rest of the body.
            reply = self._refusal(not_yet("the server is stopping", 1), request_id)
        except Problem as problem:
            reply = self._refusal(problem, request_id)
        except Exception:  # likewise
            logger.exception(_BUG, request_id)
            reply = self._refusal(bug(), request_id)
        reply = self._finish(reply, name, method, path, headers, began, request_id, caller)
        await _send(send, reply, request_id)

    async def _take(self, route: Route, scope: Message, headers: Headers, receive: Receive) -> Reply:
        """The answer of ``route`` once its body is here."""
        with self.room.enter(route.weight):
            self._metrics.in_flight += 1
            try:
                body = b""
                if route.max_body:
                    body = await read_body(receive, headers.get(b"content-length"), route.max_body, self.room)
                    if BROKEN in scope["state"]:
                        raise scope["state"].pop(BROKEN)
                return route.answer(body) if route.weight == 1 else await self._in_turn(route, body)
            finally:
                self._metrics.in_flight -= 1

    async def _in_turn(self, route: Route, body: bytes) -> Reply:
        """The answer of a ``route`` that takes long: one for each turn of the loop, in which all others have theirs."""
        self.room.hold(len(body))  # as reading it did until now
        try:
            async with self._turn:
                await asyncio.sleep(0)
                return route.answer(body)
        finally:
            self.room.release(len(body))

    def _route(self, method: str, path: str) -> Route:
        route = self.routes.get(path)
        if route is None:
            known = ", ".join(f"{route.methods[0]} {path}" for path, route in self.routes.items())
            raise Problem(HTTPStatus.NOT_FOUND, f"{method[:10]} {path[:_PATH_SHOWN]}: Not Found; there are {known}")
        return route

    def _admit(self, route: Route, method: str, headers: Headers) -> str | None:
        """The caller's name, where the route asks for it; a Problem for whatever a body could not repair."""
        if method not in route.methods:
            allowed = ", ".join(route.methods)
            raise Problem(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{method[:10]}: Method Not Allowed; this path takes {allowed}",
                headers={"Allow": allowed},
            )
        caller = self._guard.admit(headers.get(b"x-api-key"), headers.get(b"authorization")) if route.guarded else None
        if route.max_body:
            if self.service.current is None:
                self.service.require()
            theirs = headers.get(_CONTRACT)
            if theirs is not None and theirs != _VERSION:
                raise Problem(
                    HTTPStatus.CONFLICT,
                    f"the caller speaks state contract {theirs[:80].decode('latin-1')!r}, "
                    f"this server {contract.VERSION!r}",
                )
            check_content_type(headers.get(b"content-type"), headers.get(b"content-encoding"))
        return caller

    def _refusal(self, problem: Problem, request_id: str) -> Reply:
        """The problem document, counted."""
        if isinstance(problem, Overloaded):
            self._metrics.shed += 1
        elif problem.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._metrics.unauthorised += 1
        elif problem.status == HTTPStatus.TOO_MANY_REQUESTS:
            self._metrics.rate_limited += 1
        return refusal(problem, request_id)

    def _finish(
        self,
        reply: Reply,
        name: str,
        method: str,
        path: str,
        headers: Headers,
        began: float,
        request_id: str,
        caller: str | None,
    ) -> Reply:
        """Count the answer, log it, and add what a browser wants to know."""
        seconds, status = _clock() - began, reply.head.status
        self._metrics.observe(name, status, seconds)
        trace = headers.get(b"x-cloud-trace-context") or headers.get(b"traceparent")
        self._access.write(method, path, status, seconds, request_id, caller, trace)
        more = self._cors.headers(headers)
        return reply._replace(more=reply.more + more) if more else reply

    def _request_id(self, headers: Headers) -> str:
        theirs = headers.get(b"x-request-id")
        if theirs is not None and _SANE_ID.fullmatch(theirs):
            return theirs.decode("ascii")
        return next(self._ids)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan protocol: the model and the guard's keys are followed while the server runs."""
        await receive()
        self._guard.start()
        self.service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.service.close()
        self._guard.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _send(send: Send, reply: Reply, request_id: str) -> None:
    headers = [*reply.head.pairs, *reply.more, (b"x-request-id", request_id.encode())]
    if reply.head.status != HTTPStatus.NO_CONTENT:
        headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.head.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def bug() -> Problem:
    """What a caller learns of a bug of ours."""
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug on our side; it was logged")
