"""The server's own reader of buckets: refusals, passing disturbances, and answers that are none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from layer3.errors import RefusedError, SourceError
from serving import source
from serving.source import Bucket
from tests.fakes.gcs import FakeGcs, answering

URI = "gs://bucket/models/x"
Instead = Callable[[BaseHTTPRequestHandler], None]


def dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body that no header measures and that ends only when the reader leaves; 64 MiB at most, so that a test ends."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1024):
        handler.wfile.write(bytes(65_536))


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


# Refusals


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            403,
            r"HTTP 403 Forbidden: injected failure: release a model first, .* roles/storage.objectViewer on gs://buc",
        ),
        (401, "HTTP 401 Unauthorized: injected failure: the token of this machine's account is refused"),
        (400, "HTTP 400 Bad Request: injected failure: is the address right"),
        (412, "HTTP 412 Precondition Failed: injected failure"),
    ],
)
def test_a_refusal_is_said_at_once_and_not_asked_again(gcs: FakeGcs, status: int, said: str) -> None:
    gcs.fail(status, times=9)
    with pytest.raises(RefusedError, match=f"cannot read {URI}: {said}"):
        Bucket(gcs.url, None).read(URI)
    assert len(gcs.requests) == 1


@pytest.mark.parametrize("uri", ["gs://bucket/models/none", "gs://no-such-bucket/x"])
def test_what_is_missing_is_named(gcs: FakeGcs, uri: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Bucket(gcs.url, None).read(uri)
    assert caught.value.filename == uri
    assert len(gcs.requests) == 1


def test_a_redirect_is_not_followed(gcs: FakeGcs) -> None:
    gcs.instead = [answering(302, b"", Location=f"{gcs.url}/storage/v1/b/bucket/o/models%2Fx?alt=media")]
    with pytest.raises(RefusedError, match="HTTP 302 Found"):
        Bucket(gcs.url, None).read(URI)
    assert len(gcs.requests) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"No such  thing\n here", "HTTP 418 I'm a Teapot: No such thing here: is"),
        (b"", "HTTP 418 I'm a Teapot: is"),
        (b"\xff" * 9_000, "HTTP 418 I'm a Teapot: \N{REPLACEMENT CHARACTER}{400}: is"),
        (b'{"error": "text"}', '{"error": "text"}: is'),
        (b"[" * 9_000, r"HTTP 418 I'm a Teapot: \[{400}: is"),
        (json.dumps({"error": {"message": "who\nare you"}}).encode(), "Teapot: who are you: is"),
    ],
)
def test_what_is_said_with_a_refusal_is_passed_on_in_short(gcs: FakeGcs, body: bytes, said: str) -> None:
    gcs.instead = [answering(418, body, Content_Length=str(len(body)))]
    with pytest.raises(RefusedError, match=said):
        Bucket(gcs.url, None).read(URI)


def test_a_status_without_a_name_is_a_number(gcs: FakeGcs) -> None:
    gcs.instead = [answering(299, b"", Content_Length="0")]
    with pytest.raises(RefusedError, match="HTTP 299: is the"):
        Bucket(gcs.url, None).read(URI)


# Disturbances


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_disturbance_is_waited_out_and_a_lasting_one_is_said(gcs: FakeGcs, status: int) -> None:
    gcs.fail(status, times=3)
    reader = Bucket(gcs.url, None)
    assert reader.read(URI)[0] == b"there"
    assert len(gcs.requests) == 4
    gcs.fail(status, times=4)
    with pytest.raises(SourceError, match=f"cannot read {URI}: {gcs.url} answered HTTP {status} .*injected failure"):
        reader.read(URI)
    assert len(gcs.requests) == 8
    assert reader.read(URI)[0] == b"there"


def test_the_attempts_grow_apart(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(source.time, "sleep", waited.append)
    gcs.fail(503, times=4)
    with pytest.raises(SourceError):
        Bucket(gcs.url, None).read(URI)
    assert len(waited) == 3
    assert all(0.5 * pause <= each <= 1.5 * pause for each, pause in zip(waited, source._PAUSES, strict=True))


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("instead", "said"),
    [
        (answering(200, b"short", Content_Length="100"), "ended before the 100 bytes that it announced"),
        (answering(200, b"too long", Content_Length="3"), "went on after the end of its answer"),
        (answering(200, b"3\r\nabc\r\n", Transfer_Encoding="chunked"), "ended before its last chunk"),
        (answering(200, b"", Content_Length="17000000"), "exceeds 16777216 bytes"),
        (answering(200, b"FFFFFFF\r\n", Transfer_Encoding="chunked"), "exceeds 16777216 bytes"),
        (endless, "exceeds 16777216 bytes"),
        (answering(200, b"x", Content_Length="many"), "expected a number of bytes"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n"), "something that is not HTTP"),
        (hanging_up, "closed without an answer"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_then_said(gcs: FakeGcs, instead: Instead, said: str) -> None:
    reader = Bucket(gcs.url, None)
    gcs.instead = [instead]
    assert reader.read(URI)[0] == b"there"
    gcs.instead = [instead] * 4
    with pytest.raises(SourceError, match=said) as caught:
        reader.read(URI)
    assert str(caught.value).startswith(f"cannot read {URI}: {gcs.url}")
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.usefixtures("no_waiting")
def test_a_body_that_drips_is_not_waited_for_nor_asked_for_again(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_SECONDS", 0.2)
    gcs.instead = [dripping] * 4
    reader = Bucket(gcs.url, None)
    asked, ask = [], reader._ask
    monkeypatch.setattr(reader, "_ask", lambda target: asked.append(target) or ask(target))
    with pytest.raises(SourceError, match=f"{gcs.url} did not answer in full within 200 ms"):
        reader.read(URI)
    assert len(asked) == 1  # what took all the time that there was is not asked again


@pytest.mark.usefixtures("no_waiting")
def test_a_bucket_that_is_away_is_a_source_error() -> None:
    with FakeGcs("bucket") as gone:
        url = gone.url
    with pytest.raises(SourceError, match=f"cannot read {URI}: {url} did not answer: Connection refused"):
        Bucket(url, None).read(URI)


def test_a_large_policy_arrives_whole_and_in_chunks_too(gcs: FakeGcs) -> None:
    content = bytes(range(256)) * 32_768  # 8 MiB
    gcs.put("bucket", "large", content)
    assert Bucket(gcs.url, None).read("gs://bucket/large")[0] == content
    chunks = b"".join(b"%x\r\n%b\r\n" % (65_536, content[i : i + 65_536]) for i in range(0, len(content), 65_536))
    gcs.instead = [answering(200, chunks + b"0\r\n\r\n", Transfer_Encoding="chunked")]
    assert Bucket(gcs.url, None).read("gs://bucket/large")[0] == content
