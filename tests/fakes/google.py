"""The core of every loopback Google service: routes, messages, errors, operations, pages and faults.

Routes come from the client library's own REST transport, and requests are parsed strictly into its own message
types: an unknown field is refused as the real services refuse it. HTTP/1.0 on purpose: every connection ends with
its answer, so that no thread or socket outlives :meth:`FakeGoogle.close`.

    with FakeGoogle() as google:
        google.serve(_BasePipelineServiceRestTransport, "GetPipelineJob", pipeline_service.GetPipelineJobRequest, get)
        google.fail("GetPipelineJob", status=503, retry_after=0)

A handler gets the request's message and returns a message (proto-plus or protobuf) or plain JSON data, and raises
:class:`Refused` to say no. Handlers run one at a time, under ``google.lock``.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from google.longrunning import operations_pb2
from google.protobuf import descriptor, empty_pb2, json_format
from google.rpc import status_pb2

__all__ = ["CODES", "Call", "FakeGoogle", "Handler", "Refused", "label_problem", "page"]

#: Every code of google.rpc.Code that a fake uses: its HTTP status and its number.
CODES: Final = {
    "CANCELLED": (499, 1),
    "INVALID_ARGUMENT": (400, 3),
    "NOT_FOUND": (404, 5),
    "ALREADY_EXISTS": (409, 6),
    "PERMISSION_DENIED": (403, 7),
    "RESOURCE_EXHAUSTED": (429, 8),
    "FAILED_PRECONDITION": (400, 9),
    "ABORTED": (409, 10),
    "INTERNAL": (500, 13),
    "UNAVAILABLE": (503, 14),
    "UNAUTHENTICATED": (401, 16),
}
_STATUS_WORDS: Final = {status: word for word, (status, _) in reversed(CODES.items())}
_SYSTEM: Final = ("$alt", "alt", "$prettyPrint", "prettyPrint", "key", "quotaUser")
_VARIABLE: Final = re.compile(r"\{(\w+(?:\.\w+)*)(?:=([^}]+))?\}")
_LABEL: Final = re.compile(r"[a-z0-9_-]{0,63}")

Handler = Callable[[Any], Any]
_T = TypeVar("_T")


class Refused(Exception):  # noqa: N818 - the word for it
    """No, as the real service words it: one of :data:`CODES` and a sentence."""

    def __init__(self, code: str, message: str, details: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.details = list(details)


@dataclass(frozen=True)
class Call:
    """One request as it came: the name of its method (``CreatePipelineJob``; "" for none of ours), and its parts."""

    name: str
    verb: str
    path: str
    query: Mapping[str, list[str]]
    body: Any
    headers: Mapping[str, str]


@dataclass
class _Fault:
    kind: str
    status: int
    retry_after: float | None
    message: str
    details: Sequence[Mapping[str, Any]]
    times: int
    skip: int


@dataclass
class _Route:
    verb: str
    pattern: re.Pattern[str]
    name: str
    request: Any
    body: str
    handler: Handler


@dataclass
class _Running:
    """A long-running operation: its work runs in a thread of its own."""

    message: operations_pb2.Operation
    thread: threading.Thread
    polls: int
    outcome: list[Any] = field(default_factory=list)
    cancelled: bool = False


class FakeGoogle:
    """A loopback server that speaks Google's REST JSON; :attr:`calls` remembers every request."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lock = threading.RLock()
        self._routes: list[_Route] = []
        self._faults: dict[str, list[_Fault]] = {}
        self._operations: dict[str, _Running] = {}
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"google": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # close() joins them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-google")
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop, and wait for every thread."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for operation in self._operations.values():
            operation.thread.join()

    def __enter__(self) -> FakeGoogle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # What is served.

    def serve(self, transport: type, name: str, request: Any, handler: Handler) -> None:
        """Answer the method ``name`` of a service at the addresses that its client library's REST transport uses.

        ``transport`` is the library's ``_Base…RestTransport``, ``request`` the method's request type.
        """
        for option in getattr(transport, f"_Base{name}")._get_http_options():
            self.route(option["method"].upper(), option["uri"], name, request, handler, body=option.get("body", ""))

    def route(self, verb: str, template: str, name: str, request: Any, handler: Handler, *, body: str = "") -> None:
        """Answer ``verb`` at the address ``template``, such as ``/v1/{name=projects/*/operations/*}:cancel``.

        ``body`` names the field that the body fills, "*" for the whole request, "" for none. Without a
        ``request`` type the handler gets the :class:`Call` itself, and answers with JSON data.
        """
        self._routes.append(_Route(verb, _pattern(template), name, request, body, handler))

    def serve_operations(self) -> None:
        """Answer for operations below projects/*/locations/*: get, wait and cancel."""
        for version in ("v1", "v2", "ui"):  # Vertex's client asks at /ui
            for below in ("*/**", "*"):
                at = f"/{version}/{{name=projects/*/locations/{below}/operations/*}}"
                self.route("GET", at, "GetOperation", operations_pb2.GetOperationRequest, self._get_operation)
                for verb, request, handler in (
                    ("wait", operations_pb2.WaitOperationRequest, self._get_operation),
                    ("cancel", operations_pb2.CancelOperationRequest, self._cancel),
                ):
                    self.route("POST", f"{at}:{verb}", f"{verb.title()}Operation", request, handler, body="*")

    # Faults.

    def fail(
        self,
        name: str,
        kind: str = "status",
        *,
        status: int = 503,
        retry_after: float | None = None,
        message: str = "injected failure",
        details: Sequence[Mapping[str, Any]] = (),
        times: int = 1,
        skip: int = 0,
    ) -> None:
        """Make calls of the method ``name`` go wrong, ``times`` times after the first ``skip``.

        ``kind``: "status" answers ``status`` (with Retry-After in seconds, if any); "drop" hangs up before anything
        was done; "lose" does it and hangs up without an answer; "stall" never answers; "endless" (for a method that
        starts an operation) lets the operation never end.
        """
        with self.lock:
            self._faults.setdefault(name, []).append(_Fault(kind, status, retry_after, message, details, times, skip))

    def heal(self) -> None:
        """Take all faults back."""
        with self.lock:
            self._faults.clear()

    def named(self, name: str) -> list[Call]:
        """The calls of the method ``name`` so far."""
        with self.lock:
            return [call for call in self.calls if call.name == name]

    # Long-running operations.

    def operation(
        self, parent: str, work: Callable[[], Any], *, metadata: Any = None, polls: int = 1, endless: bool = False
    ) -> operations_pb2.Operation:
        """Start ``work`` in a thread; the operation below ``parent`` that ends with its message, or its refusal.

        It is reported done at the earliest at the ``polls``-th question. Takes the fault "endless" of the method
        that is being answered into account.
        """
        message = operations_pb2.Operation(name=f"{parent}/operations/{secrets.randbits(60)}")
        if metadata is not None:
            message.metadata.Pack(_protobuf(metadata))
        outcome: list[Any] = []
        endless = endless or getattr(_CURRENT, "endless", False)

        def run() -> None:
            try:
                outcome.append(work())
            except Refused as refusal:
                outcome.append(refusal)
            except Exception as error:  # noqa: BLE001 - a bug of the fake must reach the test
                outcome.append(Refused("INTERNAL", f"{type(error).__name__}: {error}"))

        running = _Running(message, threading.Thread(target=run, name=message.name), polls, outcome)
        if endless:
            running.polls = -1
        with self.lock:
            self._operations[message.name] = running
        running.thread.start()
        return message

    def _get_operation(self, request: Any) -> operations_pb2.Operation:
        running = self._operations.get(request.name)
        if running is None:
            raise Refused("NOT_FOUND", f"Operation {request.name} not found.")
        message = running.message
        if running.polls > 0:
            running.polls -= 1
        if message.done or running.polls != 0 or running.thread.is_alive():
            return message
        result = running.outcome[0]
        message.done = True
        if running.cancelled:
            message.error.CopyFrom(status_pb2.Status(code=1, message="The operation was cancelled."))
        elif isinstance(result, Refused):
            message.error.CopyFrom(status_pb2.Status(code=CODES[result.code][1], message=str(result)))
        else:
            message.response.Pack(_protobuf(result if result is not None else empty_pb2.Empty()))
        return message

    def _cancel(self, request: Any) -> empty_pb2.Empty:
        self._get_operation(request)
        self._operations[request.name].cancelled = True
        return empty_pb2.Empty()

    # What follows runs in the handler's threads.

    def answer(self, call_of: Callable[[str], Call], verb: str, path: str) -> tuple[int, dict[str, str], Any] | None:
        """Status, headers and JSON of the answer; None hangs up."""
        found = next(((r, m) for r in self._routes if r.verb == verb and (m := r.pattern.fullmatch(path))), None)
        call = call_of(found[0].name if found else "")
        with self.lock:
            self.calls.append(call)
            fault = self._fault(call.name)
        if fault is not None and fault.kind == "stall":
            self._closing.wait()
            return None
        if fault is not None and fault.kind == "drop":
            return None
        if fault is not None and fault.kind == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            return (
                fault.status,
                headers,
                _error(_STATUS_WORDS[fault.status], fault.status, fault.message, fault.details),
            )
        _CURRENT.endless = fault is not None and fault.kind == "endless"
        answer = self._handled(found, call)
        return None if fault is not None and fault.kind == "lose" else answer

    def _handled(
        self, found: tuple[_Route, re.Match[str]] | None, call: Call
    ) -> tuple[int, dict[str, str], Mapping[str, Any]]:
        try:
            if found is None:
                raise Refused("NOT_FOUND", f"The requested URL {call.path} was not found on this server.")
            route, matched = found
            with self.lock:
                answer = route.handler(call if route.request is None else _message(route, matched, call))
                return 200, {}, answer if isinstance(answer, Mapping) else _json(answer)
        except Refused as refusal:
            status = CODES[refusal.code][0]
            return status, {}, _error(refusal.code, status, str(refusal), refusal.details)
        except Exception as error:  # noqa: BLE001 - a bug of the fake must reach the test, not hang the client
            return 500, {}, _error("INTERNAL", 500, f"the fake itself failed: {type(error).__name__}: {error}")

    def _fault(self, name: str) -> _Fault | None:
        for fault in self._faults.get(name, []):
            if fault.times <= 0:
                continue
            if fault.skip:
                fault.skip -= 1
                return None
            fault.times -= 1
            return fault
        return None


_CURRENT = threading.local()


class _Handler(BaseHTTPRequestHandler):
    google: FakeGoogle

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass  # pytest's output is for failures; what was asked is in FakeGoogle.calls

    def _serve(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = content

        def call_of(name: str) -> Call:
            query = parse_qs(address.query, keep_blank_values=True)
            return Call(name, self.command, path, query, body, dict(self.headers.items()))

        answered = self.google.answer(call_of, self.command, path)
        if answered is None:
            self.close_connection = True
            return
        status, headers, said = answered
        payload = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json; charset=UTF-8",
            **headers,
            "Content-Length": str(len(payload)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked may have ended meanwhile
            self.wfile.write(payload)

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()


def page(items: Sequence[_T], size: int, token: str, *, most: int = 100) -> tuple[list[_T], str]:
    """The items of one page and the token of the next ("" for none)."""
    if token and not token.isdigit():
        raise Refused("INVALID_ARGUMENT", f"Invalid page token: {token}")
    start, count = int(token or 0), min(size or most, most)
    rest = start + count < len(items)
    return list(items[start : start + count]), str(start + count) if rest else ""


def label_problem(labels: Mapping[str, str]) -> str | None:
    """What Google's label rules refuse in ``labels``, if anything."""
    if len(labels) > 64:
        return f"{len(labels)} labels; at most 64 are allowed"
    for key, value in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key):
            return f"Invalid label key: {key!r}"
        if not _LABEL.fullmatch(value):
            return f"Invalid label value of {key}: {value!r}"
    return None


def _pattern(template: str) -> re.Pattern[str]:
    """The addresses that a template of google.api.http matches, its variables as groups (dots as two underscores)."""
    out, at = "", 0
    for found in _VARIABLE.finditer(template):
        inner = "".join(_GLOBS.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", found[2] or "*"))
        out += f"{re.escape(template[at : found.start()])}(?P<{found[1].replace('.', '__')}>{inner})"
        at = found.end()
    return re.compile(out + re.escape(template[at:]))


_GLOBS: Final = {"**": ".+", "*": "[^/:]+"}


def _message(route: _Route, matched: re.Match[str], call: Call) -> Any:
    """The call as its method's request message.

    Raises
    ------
    Refused : a field that the message does not have, or of another type
    """
    said: dict[str, Any] = {}
    kind = route.request.pb() if hasattr(route.request, "pb") else route.request
    kind = kind if isinstance(kind, type) else type(kind)
    if route.body:
        if call.body is not None and not isinstance(call.body, Mapping):
            raise Refused("INVALID_ARGUMENT", "Invalid JSON payload received.")
        said = dict(call.body or {}) if route.body == "*" else {route.body: call.body or {}}
    for name, values in call.query.items():
        if name not in _SYSTEM:
            _put(said, name.split("."), values, kind.DESCRIPTOR)
    for name, value in matched.groupdict().items():
        _put(said, name.split("__"), [value], kind.DESCRIPTOR)
    message = kind()
    try:
        json_format.ParseDict(said, message, ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise Refused("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
    return route.request.wrap(message) if hasattr(route.request, "wrap") else message


def _put(said: dict[str, Any], path: list[str], values: list[str], kind: Any) -> None:
    """Write a parameter of the address into the message's JSON, as the type that the field has."""
    name, *below = path
    known = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
    if known is None:
        raise Refused("INVALID_ARGUMENT", f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query.')
    key = next((present for present in (known.name, known.json_name) if present in said), known.name)
    if below:
        if known.message_type is None:
            raise Refused("INVALID_ARGUMENT", f'"{name}" has no fields')
        _put(said.setdefault(key, {}), below, values, known.message_type)
        return
    typed = [value == "true" if known.type == descriptor.FieldDescriptor.TYPE_BOOL else value for value in values]
    if known.type == descriptor.FieldDescriptor.TYPE_ENUM:
        typed = [int(value) if str(value).isdigit() else value for value in typed]
    said[key] = typed if known.is_repeated else typed[-1]


def _protobuf(message: Any) -> Any:
    """A proto-plus message as the protobuf message that it wraps; a protobuf message as it is."""
    return type(message).pb(message) if hasattr(type(message), "pb") else message


def _json(message: Any) -> Any:
    return json_format.MessageToDict(_protobuf(message))


def _error(code: str, status: int, message: str, details: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    error: dict[str, Any] = {"code": status, "message": message, "status": code}
    return {"error": error | ({"details": list(details)} if details else {})}
