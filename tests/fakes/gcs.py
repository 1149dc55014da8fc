"""A loopback Cloud Storage: enough of the JSON API for the real gcsfs client, with state in memory.

Objects live in ``FakeGcs.objects``; ``fail(status, times)`` makes the next requests fail, ``instead`` holds
what the next ones get in place of an answer, and ``requests`` remembers what was asked. With ``tls`` it is
https, with ``tokens`` it answers only to those. HTTP/1.0 on purpose: every connection ends with its answer,
so that no thread or socket outlives :meth:`FakeGcs.close`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Objects in one answer of the real service.
_PAGE = 1_000
_UPDATED = "2026-01-01T00:00:00.000Z"
_OBJECT = re.compile(r"^(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)$")
_LIST = re.compile(r"^/storage/v1/b/(?P<bucket>[^/]+)/o$")
_BUCKET = re.compile(r"^/storage/v1/b/(?P<bucket>[^/]+)$")
_IAM = re.compile(r"^/storage/v1/b/(?P<bucket>[^/]+)/iam$")
_UPLOAD = re.compile(r"^/upload/storage/v1/b/(?P<bucket>[^/]+)/o$")
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')


class RefusalError(Exception):
    """An answer other than success, as the real service words it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class StoredObject:
    content: bytes
    content_type: str
    generation: int


@dataclass
class Upload:
    """A resumable upload under way."""

    bucket: str
    name: str
    content_type: str
    query: dict[str, str]
    received: bytearray = field(default_factory=bytearray)


class FakeGcs:
    """``with FakeGcs("bucket") as gcs: monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)``."""

    def __init__(self, *buckets: str, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self.buckets = set(buckets)
        self.project_number = 0
        self.roles: dict[str, set[str]] = {}
        """Who has which role on every bucket."""
        self.conditional: set[str] = set()
        """The roles that they have under a condition."""
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        self.tokens: Iterable[str] | None = None
        self.instead: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.lock = threading.Lock()
        self._failures: list[int] = []
        self._generation = 0
        self._uploads: dict[str, Upload] = {}
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # close() joins them
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-gcs")
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{self._scheme}://{host!s}:{port}"

    def put(self, bucket: str, name: str, content: bytes) -> None:
        with self.lock:
            self.store(bucket, name, content, "application/octet-stream", {})

    def content(self, bucket: str, name: str) -> bytes:
        with self.lock:
            return self.objects[bucket, name].content

    def fail(self, status: int, times: int = 1) -> None:
        """Answer the next ``times`` requests with ``status``."""
        with self.lock:
            self._failures = [status] * times

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> FakeGcs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # What follows runs in the handler's threads, with the lock held.

    def admit(self, authorization: str | None) -> None:
        if self._failures:
            raise RefusalError(self._failures.pop(0), "injected failure")
        if self.tokens is not None and authorization not in {f"Bearer {token}" for token in self.tokens}:
            raise RefusalError(401, "Invalid Credentials")

    def require(self, bucket: str) -> None:
        if bucket not in self.buckets:
            raise RefusalError(404, "The specified bucket does not exist.")

    def find(self, bucket: str, name: str) -> StoredObject:
        self.require(bucket)
        if (bucket, name) not in self.objects:
            raise RefusalError(404, f"No such object: {bucket}/{name}")
        return self.objects[bucket, name]

    def store(self, bucket: str, name: str, content: bytes, content_type: str, query: dict[str, str]) -> dict[str, Any]:
        self.require(bucket)
        present = self.objects.get((bucket, name))
        expected = query.get("ifGenerationMatch")
        if expected is not None and int(expected) != (present.generation if present else 0):
            raise RefusalError(412, "At least one of the pre-conditions you specified did not hold.")
        self._generation += 1
        self.objects[bucket, name] = StoredObject(content, content_type, self._generation)
        return self.resource(bucket, name)

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        stored = self.find(bucket, name)
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stored.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(stored.generation),
            "metageneration": "1",
            "contentType": stored.content_type,
            "size": str(len(stored.content)),
            "md5Hash": base64.b64encode(hashlib.md5(stored.content, usedforsecurity=False).digest()).decode(),
            "timeCreated": _UPDATED,
            "updated": _UPDATED,
        }

    def listing(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        self.require(bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = sorted(name for where, name in self.objects if where == bucket and name.startswith(prefix))
        names = [name for name in names if name > query.get("pageToken", "")]
        page, rest = names[:_PAGE], names[_PAGE:]
        items, prefixes = [], set()
        for name in page:
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if mark:
                prefixes.add(prefix + head + mark)
            else:
                items.append(self.resource(bucket, name))
        answer = {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}
        return answer | {"nextPageToken": page[-1]} if rest else answer

    def begin(self, upload: Upload) -> str:
        self.require(upload.bucket)
        key = f"session-{len(self._uploads) + 1}"
        self._uploads[key] = upload
        return f"{self.url}/upload/storage/v1/b/{upload.bucket}/o?uploadType=resumable&upload_id={key}"

    def abandon(self, key: str) -> bool:
        return self._uploads.pop(key, None) is not None

    def append(self, key: str, content: bytes, content_range: str) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        """Take one chunk of a resumable upload: 308 and how far it got, or 200 and the object."""
        if key not in self._uploads:
            raise RefusalError(404, "no such upload session")
        upload = self._uploads[key]
        matched = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
        if matched is None or int(matched[1]) != len(upload.received):
            raise RefusalError(400, f"invalid Content-Range {content_range!r}")
        upload.received += content
        if matched[3] == "*" or len(upload.received) < int(matched[3]):
            return 308, {"Range": f"bytes=0-{len(upload.received) - 1}"}, None
        del self._uploads[key]
        body = self.store(upload.bucket, upload.name, bytes(upload.received), upload.content_type, upload.query)
        return 200, {}, body


def answering(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer for :attr:`FakeGcs.instead`; underscores in the names of ``headers`` stand for dashes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class _Handler(BaseHTTPRequestHandler):
    gcs: FakeGcs

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass  # pytest's output is for failures; what was asked is in FakeGcs.requests

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_PUT(self) -> None:
        self._serve(self._post)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def _serve(self, method: Any) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.gcs.lock:
            self.gcs.requests.append(f"{self.command} {address.path}")
            self.gcs.authorizations.append(self.headers.get("Authorization"))
            instead = self.gcs.instead.pop(0) if self.gcs.instead else None
        if instead is not None:
            with contextlib.suppress(ConnectionError):
                instead(self)
            return
        with self.gcs.lock:
            try:
                self.gcs.admit(self.headers.get("Authorization"))
                status, headers, content = method(address.path)
            except RefusalError as refusal:
                status, headers = refusal.status, {}
                content = {"error": {"code": refusal.status, "message": str(refusal), "errors": []}}
        payload = (
            content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else b""
        )
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked may have ended meanwhile
            self.wfile.write(payload)

    def _get(self, path: str) -> tuple[int, dict[str, str], Any]:
        if matched := _OBJECT.match(path):
            bucket, name = unquote(matched["bucket"]), unquote(matched["name"])
            if self.query.get("alt") != "media":
                return 200, {}, self.gcs.resource(bucket, name)
            return self._media(self.gcs.find(bucket, name))
        if matched := _LIST.match(path):
            return 200, {}, self.gcs.listing(unquote(matched["bucket"]), self.query)
        if matched := _BUCKET.match(path):
            bucket = unquote(matched["bucket"])
            self.gcs.require(bucket)
            number = str(self.gcs.project_number)
            return (
                200,
                {},
                {"kind": "storage#bucket", "name": bucket, "locationType": "region", "projectNumber": number},
            )
        if matched := _IAM.match(path):
            self.gcs.require(unquote(matched["bucket"]))
            # Who asks for an older policy sees that a role has a condition by its name alone.
            bare: set[str] = set() if self.query.get("optionsRequestedPolicyVersion") == "3" else self.gcs.conditional
            bindings = [
                {"role": f"{role}_withcond_0123456789" if role in bare else role, "members": sorted(who)}
                for role, who in self.gcs.roles.items()
            ]
            return 200, {}, {"kind": "storage#policy", "etag": "CAE=", "bindings": bindings}
        raise RefusalError(404, f"unknown address {path}")

    def _media(self, stored: StoredObject) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Type": stored.content_type, "X-Goog-Generation": str(stored.generation)}
        if self.query.get("ifGenerationNotMatch") == str(stored.generation):
            return 304, headers, b""
        matched = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if matched is None:
            return 200, headers, stored.content
        start, size = int(matched[1]), len(stored.content)
        end = min(int(matched[2]), size - 1) if matched[2] else size - 1
        if start >= size:
            raise RefusalError(416, "The requested range cannot be satisfied.")
        return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}, stored.content[start : end + 1]

    def _post(self, path: str) -> tuple[int, dict[str, str], Any]:
        matched = _UPLOAD.match(path)
        if matched is None:
            raise RefusalError(404, f"unknown address {path}")
        bucket, kind = unquote(matched["bucket"]), self.query.get("uploadType")
        if "upload_id" in self.query:
            return self.gcs.append(self.query["upload_id"], self.body, self.headers.get("Content-Range", ""))
        if kind == "multipart":
            metadata, content_type, content = _multipart(self.headers.get("Content-Type", ""), self.body)
            return 200, {}, self.gcs.store(bucket, metadata["name"], content, content_type, self.query)
        if kind == "resumable":
            name = json.loads(self.body or b"{}").get("name") or self.query["name"]
            content_type = self.headers.get("X-Upload-Content-Type", "application/octet-stream")
            return 200, {"Location": self.gcs.begin(Upload(bucket, name, content_type, self.query))}, None
        if kind == "media":
            content_type = self.headers.get("Content-Type", "application/octet-stream")
            return 200, {}, self.gcs.store(bucket, self.query["name"], self.body, content_type, self.query)
        raise RefusalError(400, f"invalid uploadType {kind!r}")

    def _delete(self, path: str) -> tuple[int, dict[str, str], Any]:
        if _UPLOAD.match(path) and self.gcs.abandon(self.query.get("upload_id", "")):
            return 499, {}, None
        matched = _OBJECT.match(path)
        if matched is None:
            raise RefusalError(404, f"unknown address {path}")
        key = unquote(matched["bucket"]), unquote(matched["name"])
        self.gcs.find(*key)
        del self.gcs.objects[key]
        return 204, {}, None


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], str, bytes]:
    """Metadata, content type and content of a ``multipart/related`` upload."""
    matched = _BOUNDARY.search(content_type)
    if matched is None:
        raise RefusalError(400, "multipart upload without a boundary")
    # A boundary stands at the start of a line; its text inside a line is content.
    pieces = (b"\n" + body).split(b"\n--" + matched[1].encode())
    if len(pieces) != 4 or pieces[0] or not pieces[3].startswith(b"--"):
        raise RefusalError(400, f"expected two parts, got {len(pieces) - 2}")
    (_, metadata), (head, content) = (_part(piece) for piece in pieces[1:3])
    kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", head)
    return json.loads(metadata), kind[1].decode() if kind else "application/octet-stream", content


def _part(piece: bytes) -> tuple[bytes, bytes]:
    matched = re.fullmatch(rb"\r?\n(.*?)\r?\n\r?\n(.*)", piece, re.DOTALL)
    if matched is None:
        raise RefusalError(400, "malformed part")
    return matched[1], matched[2]
