"""The server's own reader of buckets: names, an emulator, what did not change, tokens, and a laptop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3 import storage
from layer3.errors import ConfigurationError, RefusedError, SourceError
from serving import source
from serving.source import Bucket, Source
from tests.fakes.gcs import FakeGcs, answering
from tests.fakes.metadata import Metadata

URI = "gs://bucket/models/x"


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with Metadata() as fake:
        monkeypatch.setenv("GCE_METADATA_HOST", fake.address)
        yield fake


@pytest.fixture
def no_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows nothing of Google Cloud; the folder where credentials of one's own would lie."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    return tmp_path


# Addresses


@pytest.mark.parametrize("name", ["a b/ü.bin", "models/%2F?alt=json#x", "a+b&c=d", "x//y", "\N{GRINNING FACE}"])
def test_every_name_arrives_as_it_is(gcs: FakeGcs, name: str) -> None:
    gcs.put("bucket", name, name.encode())
    assert Bucket(gcs.url, None).read(f"gs://bucket/{name}")[0] == name.encode()


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_no_name_changes_the_request(bucket: str, name: str) -> None:
    asked: list[str] = []
    reader = Bucket("http://127.0.0.1:1", None)
    reader._get = lambda target: asked.append(target) or source.Answer(404, {}, b"", False)  # type: ignore[method-assign, func-returns-value]
    try:
        uri = f"gs://{bucket}/{name}"
        bucket, name = storage.object_of(uri)
        bucket.encode()
        name.encode()
    except (ConfigurationError, UnicodeEncodeError):  # no address of an object
        return
    with pytest.raises(FileNotFoundError):
        reader.read(uri)
    (target,) = asked
    assert target.isascii()
    assert not set(target) & set(" \r\n#")
    assert target.count("/") == 6
    assert target.count("?") == 1


def test_local_files_and_unknown_schemes_are_as_everywhere(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    its = Source()
    for way in (its.read, its.follow):
        assert way(str(tmp_path / "x")) == b"1"
        with pytest.raises(FileNotFoundError):
            way(str(tmp_path / "y"))
        with pytest.raises(ConfigurationError, match="only local paths"):
            way("s3://bucket/x")


@pytest.mark.parametrize("uri", ["gs://", "gs://bucket", "gs://bucket/"])
def test_an_address_without_an_object_is_refused(gcs: FakeGcs, uri: str) -> None:
    with pytest.raises(ConfigurationError, match="expected gs://bucket/path"):
        Bucket(gcs.url, None).read(uri)


# An emulator


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_an_emulator_is_asked_without_credentials(
    gcs: FakeGcs, metadata: Metadata, no_cloud: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    (no_cloud / "application_default_credentials.json").write_text("{}")  # an emulator comes first
    monkeypatch.setenv("GCE_METADATA_HOST", metadata.address)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", scheme + gcs.url.removeprefix("http://"))
    assert Source().read(URI) == b"there"
    assert gcs.authorizations == [None]
    assert metadata.given == []


def test_a_wrong_emulator_is_a_setting_that_is_wrong(no_cloud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "ftp://x")
    with pytest.raises(ConfigurationError, match="ftp://x"):
        Source().read(URI)


# Following


def test_what_is_followed_is_sent_again_only_when_it_changed(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    its = Source()
    first = its.follow(URI)
    assert its.follow(URI) is first  # nothing came but "not modified"
    gcs.put("bucket", "models/x", b"another")
    second = its.follow(URI)
    assert (second, its.follow(URI) is second) == (b"another", True)
    gcs.put("bucket", "models/x", b"another")  # the same content again, of another generation
    third = its.follow(URI)
    assert (third, third is second, its.follow(URI) is third) == (b"another", False, True)
    gcs.put("bucket", "models/y", b"beside it")
    assert its.follow("gs://bucket/models/y") == b"beside it"
    del gcs.objects["bucket", "models/y"]
    with pytest.raises(FileNotFoundError):
        its.follow("gs://bucket/models/y")


def test_one_connection_carries_all_and_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    callers: list[tuple[str, int]] = []

    class Kept(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            callers.append(self.client_address)
            answering(
                *((304, b"") if "ifGen" in self.path else (200, b"1")), Content_Length="1", X_Goog_Generation="7"
            )(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Kept) as server:
        server.daemon_threads = False  # the end of the block waits for the connection's end
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{server.server_address[1]}")
        its = Source()
        assert [its.follow(URI), its.follow(URI), its.read(URI)] == [b"1"] * 3
        assert len(callers) == 3
        assert len(set(callers)) == 1
        its.close()
        assert its.read(URI) == b"1"  # over another one
        assert len(set(callers)) == 2
        its.close()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("generation", ["", "12 34", "1&x=y", "²"])
def test_a_generation_that_is_none_is_not_asked_for(gcs: FakeGcs, generation: str) -> None:
    known = answering(200, b"1", Content_Length="1", X_Goog_Generation=generation)
    gcs.instead = [known]
    content, found = Bucket(gcs.url, None).read(URI)
    assert (content, found) == (b"1", "")
    assert Bucket(gcs.url, None).read(URI, (content, found))[0] == b"there"


def test_not_modified_though_nobody_had_it_is_refused(gcs: FakeGcs) -> None:
    gcs.instead = [answering(304, b"")]
    with pytest.raises(RefusedError, match="HTTP 304 Not Modified"):
        Bucket(gcs.url, None).read(URI)


# Tokens


def test_one_token_serves_until_it_is_about_to_expire(gcs: FakeGcs, metadata: Metadata) -> None:
    reader = Bucket(gcs.url, source.access_tokens())
    for _ in range(3):
        assert reader.read(URI)[0] == b"there"
    assert metadata.given == ["token-1"]
    assert gcs.authorizations == ["Bearer token-1"] * 3
    metadata.expires_in = source._AHEAD - 1.0  # nearly over when it comes: each call gets another one
    reader._token = ("", 0.0)
    for _ in range(2):
        reader.read(URI)
    assert gcs.authorizations[3:] == ["Bearer token-2", "Bearer token-3"]


def test_a_token_that_is_refused_is_replaced_once(gcs: FakeGcs, metadata: Metadata) -> None:
    gcs.tokens = {"token-2"}
    reader = Bucket(gcs.url, source.access_tokens())
    assert reader.read(URI)[0] == b"there"
    assert gcs.authorizations == ["Bearer token-1", "Bearer token-2"]
    gcs.tokens = {"none of ours"}
    with pytest.raises(RefusedError, match="HTTP 401 Unauthorized: Invalid Credentials: the token of this machine's"):
        reader.read(URI)
    assert metadata.given == ["token-1", "token-2", "token-3"]
    assert len(gcs.authorizations) == 4


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"no service account", "gave no access token: HTTP 404: no service account"),
        (503, b"", "gave no access token: HTTP 503"),
        (200, b"[]", "its access token cannot be read: TypeError"),
        (200, b"{", "its access token cannot be read: JSONDecodeError"),
        (200, b"[" * 60_000, "its access token cannot be read: RecursionError"),
        (200, b'{"access_token": "a"}', "its access token cannot be read: KeyError"),
        (200, b'{"access_token": "a", "expires_in": 1' + b"0" * 400 + b"}", "cannot be read: OverflowError"),
        (200, b'{"access_token": "se cret", "expires_in": 9}', "returned a str that is no bearer token"),
        (200, b'{"access_token": 3, "expires_in": 9}', "returned a int that is no bearer token"),
    ],
)
def test_a_metadata_server_without_a_token(
    gcs: FakeGcs, metadata: Metadata, status: int, body: bytes, said: str
) -> None:
    metadata.instead = [(status, body)] * 4
    with pytest.raises(SourceError, match=said) as caught:
        Bucket(gcs.url, source.access_tokens()).read(URI)
    assert str(caught.value).startswith(f"cannot read {URI}: ")
    assert "application-default login" in str(caught.value)
    assert "se cret" not in str(caught.value)
    assert gcs.requests == []
    assert metadata.instead == []  # each attempt asked for one


def test_a_metadata_server_that_is_late_is_asked_again(
    gcs: FakeGcs, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_PAUSES", (0.01, 0.01))
    metadata.instead = [(503, b""), (500, b"")]
    assert Bucket(gcs.url, source.access_tokens()).read(URI)[0] == b"there"


# Outside Google Cloud


@pytest.mark.parametrize("how", ["named", "logged in"])
def test_credentials_of_ones_own_go_through_googles_client(
    no_cloud: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    file = no_cloud / "application_default_credentials.json"
    if how == "named":
        file = no_cloud / "key.json"
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    file.write_text("{}")
    monkeypatch.setattr(storage, "read_bytes", lambda uri: f"{uri} by Google's client".encode())
    its = Source()
    with caplog.at_level(logging.INFO, "serving"):
        for way in (its.read, its.follow, its.read):
            assert way(URI) == f"{URI} by Google's client".encode()
    (line,) = (record.getMessage() for record in caplog.records if record.name == "serving")
    assert "Google's client" in line
    assert str(file) in line


def test_a_folder_where_nobody_may_look_holds_no_credentials(
    gcs: FakeGcs, metadata: Metadata, no_cloud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that is too long fails in the same way, for an administrator too.
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(no_cloud / ("x" * 300)))
    monkeypatch.setenv("GCE_METADATA_HOST", metadata.address)
    monkeypatch.setattr(source, "_GOOGLE", gcs.url)
    assert Source().read(URI) == b"there"
    assert gcs.authorizations == ["Bearer token-1"]


@pytest.mark.usefixtures("no_waiting")
def test_without_credentials_and_metadata_server_it_is_said_what_to_do(
    no_cloud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1 did not answer.*or copy the folder to this machine"):
        Source().read(URI)
