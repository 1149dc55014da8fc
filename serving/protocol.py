"""HTTP/1.1 on one connection: uvicorn's protocol with a short cut, limits on headers, and patience that ends.

A request of the door's own routes that is here as a whole is answered from the socket's callback: no task, no
events, no scope. Everything else (a body that is still coming, many states, HEAD, pages, pipelining behind these)
is handed to uvicorn, which calls the same door through ASGI. Half of what an empty uvicorn spends on a
request is thereby saved, and pays for what ours does.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.door import BROKEN, Door, bug
from serving.overload import Overloaded
from serving.problems import Problem
from serving.replies import Reply, lines
from serving.routes import Route

__all__ = ["HEADER_SECONDS", "IDLE_SECONDS", "MAX_HEADER", "Connection", "protocol_of"]

#: Largest request line and headers, in bytes.
MAX_HEADER: Final = 16 * 1024
#: Seconds a sender may take for them.
HEADER_SECONDS: Final = 10.0
#: Seconds a connection may stay open without a request; longer than Google's front ends leave theirs unused.
IDLE_SECONDS: Final = 620.0
#: Seconds that a refused sender may go on sending before it is cut off.
_LINGER_SECONDS: Final = 2.0
#: Seconds without a request after which a connection may be closed to make room for another.
_QUIET_SECONDS: Final = 1.0
#: Seconds between two looks for such connections where there were none.
_LOOK_SECONDS: Final = 0.1
#: Bytes of a request for many states that is answered from the socket's callback, in less than two milliseconds.
_AT_ONCE: Final = 16 * 1024
#: Requests that may wait on one connection behind one that is under way.
_PIPELINED: Final = 16
_METHODS: Final = {b"GET": "GET", b"POST": "POST"}
logger = logging.getLogger("serving")


class _Stop(Exception):  # noqa: N818 - ends the parser's work on what is no longer wanted
    """Raised in a parser's callback; ``Connection.data_received`` knows what was wrong."""


class Connection(HttpToolsProtocol):
    """One connection; ``door`` and ``limit`` (of connections) are set by :func:`protocol_of`."""

    door: Door
    limit: int
    #: Of all connections together: when it is worth while again to look for idle ones, in the loop's time.
    look_again = 0.0
    direct: Mapping[bytes, tuple[str, Route]]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.since = self.loop.time()
        self.crowded = False
        self.finished = False
        self.url, self.headers = b"", []
        # Of the request that is being read: whether its headers are, its bytes so far, and what the short cut takes.
        self.reading = False
        self.header_bytes = 0
        self.chunk_bytes = 0
        self.pending: tuple[str, Route] | None = None
        self.method = ""
        self.parts: list[bytes] = []
        self.fault: Problem | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is under way by uvicorn's own way."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def ending(self) -> bool:
        """Whether the next answer is the last: there is no room for this connection, or the server is being stopped."""
        return self.crowded or self.door.service.draining

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.limit:
            self._find_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Which uvicorn leaves running where the caller broke off: for as long it would hold all that came from it.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.finished:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if not self.reading:  # whoever sends its headers byte by byte does not gain time by it
            self.since = self.loop.time()
        while True:
            self.chunk_bytes = len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as wish:
                data = self._declined() + data[wish.args[0] :]
            except httptools.HttpParserError as error:
                if not self.transport.is_closing():
                    self._reject(self.fault or _fault(error))
                return
            else:
                break
        if self.reading:
            end = data.rfind(b"\r\n\r\n")
            self.header_bytes = self.header_bytes + len(data) if end < 0 else len(data) - end - 4
            if self.header_bytes > MAX_HEADER:
                self._reject(_headers_too_large())
        elif self.pending is not None:
            self._hand_over()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller has said all it will say, and listens: True keeps our half open until it is answered."""
        if self.busy:
            self._answer_and_close(Problem(HTTPStatus.BAD_REQUEST, "the caller ended before its body was complete"))
        else:
            # After the answers that were written in this turn of the loop, which closing now would drop.
            self.loop.call_soon(self.transport.close)
        return True

    def expire(self, now: float) -> None:
        """Lose patience; called once a second with the loop's time."""
        waited = now - self.since
        if self.transport.get_write_buffer_size() or (self.finished and not self.busy):
            if waited > (_LINGER_SECONDS if self.finished else HEADER_SECONDS):
                self.transport.abort()
        elif self.busy:
            return
        elif self.reading and waited > HEADER_SECONDS:
            self._reject(Problem(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not arrive within {HEADER_SECONDS:g} s"))
        elif waited > IDLE_SECONDS:
            self.transport.close()

    # What the parser calls

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.reading = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.reading:  # trailers behind a chunked body are nobody's
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.reading = False
        if self.chunk_bytes + self.header_bytes > MAX_HEADER and self._header_size() > MAX_HEADER:
            self._stop(_headers_too_large())
        self.header_bytes = 0
        if self.transport.is_closing():
            self._stop(None)
        if self.flow.write_paused or len(self.pipeline) >= _PIPELINED:
            # It sends and does not read: no answers but those to what came until now.
            if not self.busy:
                self.transport.close()
            self._stop(None)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._stop(None)
            return  # the parser stops behind these headers; data_received has it begin again without the wish
        found = self.direct.get(self.url)
        if self.crowded and found is not None and found[1].guarded:
            self._stop(Overloaded())
        method, version = _METHODS.get(self.parser.get_method()), self.parser.get_http_version()
        if version not in ("1.1", "1.0"):  # the parser knows 0.9 and 2.0 too
            self._stop(_not_http())
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._stop(_one_host(hosts))
        if found is not None and method is not None and version == "1.1" and not self.busy:
            self.pending, self.method = found, method
        else:
            self._hand_over()

    def on_body(self, body: bytes) -> None:
        if self.pending is not None:
            self.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.pending is not None and self.pending[1].weight > 1 and sum(map(len, self.parts)) > _AT_ONCE:
            self._hand_over()  # it must have room, and wait for its turn
        if self.pending is None:
            if not self.parser.should_upgrade():
                super().on_message_complete()
            return
        (path, route), parts = self.pending, self.parts
        self.pending = None
        body = b""
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            self.parts = []
        reply, request_id = self.door.answer(route, self.method, path, self.headers, body)
        last = self.ending or not self.parser.should_keep_alive()
        self._write(reply, request_id, last=last)
        if last:
            self.transport.close()

    # Our own

    def _declined(self) -> bytes:
        """The request's headers without its wish for another protocol, to be read by a parser that is new to it.

        Nobody here speaks anything else, but whoever would like HTTP/2 (Java's client and ``curl --http2`` do) must be
        answered as if it had not said so (RFC 9110, 7.8), and this parser reads no body behind such a wish.
        """
        self.parser, old = httptools.HttpRequestParser(self), self.parser
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        kept = lines(pair for pair in self.headers if pair[0] != b"upgrade")
        return b"%b %b HTTP/%b\r\n%b\r\n" % (old.get_method(), self.url, old.get_http_version().encode(), kept)

    def _hand_over(self) -> None:
        """Let uvicorn go on with the request, as if it had read it from the start."""
        url, headers, parts = self.url, self.headers, self.parts
        super().on_message_begin()
        self.url, self.headers, self.parts, self.pending = url, headers, [], None
        self.scope["headers"] = headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        if self.ending:
            self.cycle.keep_alive = False
        for part in parts:
            super().on_body(part)

    def _write(self, reply: Reply, request_id: str, *, last: bool) -> None:
        defaults, more = self.server_state.default_headers, reply.more
        self.transport.write(
            b"%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (
                reply.head.block,
                lines(defaults),
                lines(more) if more else b"",
                request_id.encode(),
                len(reply.body),
                b"connection: close\r\n" if last else b"",
                reply.body,
            )
        )

    def _reject(self, problem: Problem) -> None:
        """Answer what cannot be read any further, and read no more."""
        self.finished = True
        if self.busy:  # a second answer in the middle of the first would be taken for a part of it
            self._answer_and_close(problem)
            return
        method = "-" if self.reading or not self.url else self.parser.get_method().decode("ascii")
        path, route = self.direct.get(self.url, (self.url.decode("latin-1") or "-", None))
        name = route.name if route else "other"
        reply, request_id = self.door.refuse(problem, name, method, path, dict(self.headers))
        self._write(reply, request_id, last=True)
        # Not closed yet: a reset for what is still being sent would take the answer with it.
        self.since = self.loop.time()
        self.transport.write_eof()

    def _answer_and_close(self, problem: Problem) -> None:
        """Let the answer under way be the last; it is ``problem`` where the rest of its request's body never comes."""
        self.cycle.keep_alive = False
        if self.cycle.more_body:
            self.scope["state"][BROKEN] = problem
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _stop(self, problem: Problem | None) -> NoReturn:
        self.fault = problem
        raise _Stop

    def _header_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _find_room(self) -> None:
        """Close connections that were idle for longest; where none is, what comes on this one is refused.

        A twentieth of the limit at once, and no look right after one that found none: looking takes a millisecond,
        which every new connection would cost when many come.
        """
        now, shared = self.loop.time(), type(self)
        if now >= shared.look_again:
            others = (c for c in self.connections if isinstance(c, Connection) and c is not self)
            idle = (c for c in others if not (c.busy or c.reading or c.crowded or c.transport.is_closing()))
            quiet = [c for c in idle if now - c.since > _QUIET_SECONDS]
            for connection in heapq.nsmallest(max(1, self.limit // 20), quiet, key=lambda c: c.since):
                connection.transport.close()
            if quiet:
                return
            shared.look_again = now + _LOOK_SECONDS
        if len(self.connections) > 2 * self.limit:
            self.transport.abort()
        else:
            self.crowded = True


def protocol_of(door: Door, limit: int) -> type[Connection]:
    """The class of connections that ``door`` answers; when more than ``limit`` are open, new ones are refused."""
    direct = {path.encode(): (path, route) for path, route in door.routes.items() if not route.is_page}
    return type("DoorConnection", (Connection,), {"door": door, "limit": limit, "direct": direct})


def _fault(error: httptools.HttpParserError) -> Problem:
    """What made the parser stop: bytes that are no HTTP, an address that is none, or a bug in what it called."""
    raised = error.__context__
    if raised is None or isinstance(raised, _Stop | httptools.HttpParserError | UnicodeDecodeError):
        return _not_http()
    logger.error("a connection met a bug", exc_info=raised)
    return bug()


def _not_http() -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1 (RFC 9112)")


def _one_host(got: int) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, f"expected one header Host (RFC 9112, 3.2), got {got or 'none'}")


def _headers_too_large() -> Problem:
    return Problem(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"expected at most {MAX_HEADER} bytes of request line and headers"
    )
