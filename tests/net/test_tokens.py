"""Identity tokens, from a metadata server on loopback and from sources that fail."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from layer3.errors import ConfigurationError, RefusedError, SourceError
from layer3.net import refreshed
from layer3.net.tokens import access_tokens, checked_token, metadata_tokens
from layer3.remote import PolicyClient
from tests.fakes.metadata import Metadata
from tests.fakes.servers import wait_for
from tests.fakes.timing import quickest
from tests.fakes.web import Handler, running

STATE = np.zeros(16)
GOOD = json.dumps({"position_multiplier": 1.0, "confidence": 0.5, "model_version": "m"}).encode()


def web_token(expiry: object) -> str:
    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part({'exp': expiry, 'aud': 'x'})}.c2lnbmF0dXJl"


class Service(ThreadingHTTPServer):
    """Both a service that wants a token and the metadata server that gives it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Both)
        self.authority = f"127.0.0.1:{self.server_address[1]}"
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.expiry = time.time() + 3_600
        self.token = web_token(self.expiry)
        self.flavor = "Google"
        self.accepted: str | None = None


class Both(Handler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.reply(200, self.server.token.encode(), {"Metadata-Flavor": self.server.flavor})

    def do_POST(self) -> None:
        self.content()
        self.server.seen.append((self.path, dict(self.headers)))
        known = self.server.accepted is None or self.headers["Authorization"] == f"Bearer {self.server.accepted}"
        self.reply(200 if known else 401, GOOD if known else b"who are you?")


@pytest.fixture
def service() -> Iterator[Service]:
    with running(Service()) as server:
        yield server


@pytest.fixture
def metadata(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("GCE_METADATA_HOST", service.authority)
    return service


def test_a_token_of_the_metadata_server(metadata: Service) -> None:
    token, expiry = metadata_tokens("https://himari-abc.a.run.app/predict")()
    assert token == metadata.token
    assert expiry == pytest.approx(metadata.expiry, abs=1)
    ((target, headers),) = metadata.seen
    assert urlsplit(target).path == "/computeMetadata/v1/instance/service-accounts/default/identity"
    assert parse_qs(urlsplit(target).query) == {"audience": ["https://himari-abc.a.run.app"], "format": ["full"]}
    assert headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize("token", ["", "a.b.c", "one", "a.bnVsbA.c", web_token(None), web_token("soon")])
def test_what_is_no_token_of_it(metadata: Service, token: str) -> None:
    metadata.token = token
    with pytest.raises(SourceError, match="no readable expiry"):
        metadata_tokens("https://h")()


def test_a_token_that_expired_and_a_server_that_is_another(metadata: Service) -> None:
    metadata.token = web_token(time.time() - 1)
    with pytest.raises(SourceError, match="has expired already"):
        metadata_tokens("https://h")()
    metadata.flavor, metadata.token = "vanilla", web_token(time.time() + 60)
    for source, what in ((metadata_tokens("https://h"), "identity"), (access_tokens(), "access")):
        with pytest.raises(SourceError, match=f"gave no {what} token: HTTP 200 without the header") as caught:
            source()
        assert metadata.token[:16] not in str(caught.value)


def test_a_service_has_a_url() -> None:
    with pytest.raises(ConfigurationError, match="endpoint 'himari' must look like"):
        metadata_tokens("himari")


def test_an_access_token_and_its_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata() as metadata:
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.address)
        source = access_tokens()
        before = time.time()
        token, expiry = checked_token(source)
        assert token == "token-1"
        assert before <= expiry - 3_599 <= time.time()
        metadata.instead = [(200, b'{"access_token": "x"}'), (403, b"no")]
        with pytest.raises(SourceError, match="its access token cannot be read: KeyError"):
            source()
        with pytest.raises(SourceError, match=f"http://{metadata.address} gave no access token: HTTP 403: no"):
            source()


def test_a_metadata_server_has_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "a b")
    with pytest.raises(ConfigurationError, match="a b"):
        access_tokens()


@pytest.mark.parametrize("token", ["", "a b", "x\r\nY: z", "ü", 7, None])
def test_what_no_header_can_carry_is_refused_and_not_shown(token: object) -> None:
    with pytest.raises(SourceError, match="no bearer token") as raised:
        checked_token(lambda: (token, time.time() + 60))  # type: ignore[arg-type, return-value]
    if token:
        assert str(token) not in str(raised.value)


def test_a_token_is_fetched_once_for_many_calls(metadata: Service) -> None:
    url = f"http://{metadata.authority}"
    with PolicyClient(url, timeout_s=60, token_source=metadata_tokens(url)) as client:
        for _ in range(10):
            client.ask(STATE)
    posts = [headers for path, headers in metadata.seen if path == "/predict"]
    assert len(metadata.seen) == 11
    assert {headers["Authorization"] for headers in posts} == {f"Bearer {metadata.token}"}


def test_a_token_that_is_refused_is_fetched_anew(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshed, "_RETRY", (0.0, 0.0))
    fetched: list[str] = []

    def source() -> tuple[str, float]:
        fetched.append(f"token-{len(fetched)}")
        return fetched[-1], time.time() + 3_600

    service.accepted = "token-1"
    with PolicyClient(f"http://{service.authority}", timeout_s=60, token_source=source) as client:
        with pytest.raises(RefusedError, match=r"HTTP 401: who are you\?"):
            client.ask(STATE)
        assert client._tokens is not None
        wait_for(lambda: client._tokens.peek() == "token-1")  # type: ignore[union-attr]
        assert client.ask(STATE).multiplier == 1.0
    assert fetched == ["token-0", "token-1"]


def test_a_source_that_hangs_or_fails_costs_the_budget_at_most(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def hanging() -> tuple[str, float]:
        over.wait(60)
        return "late", time.time() + 60

    def failing() -> tuple[str, float]:
        raise OSError("no such key file")

    url = f"http://{service.authority}"
    with PolicyClient(url, timeout_s=0.1, token_source=hanging) as client:

        def ask() -> None:
            with pytest.raises(SourceError, match="no token within 100 ms"):
                client.ask(STATE)

        assert 0.09 < quickest(ask, 0.2) < 0.2
        over.set()
    with (
        caplog.at_level(logging.CRITICAL),
        PolicyClient(url, timeout_s=60, token_source=failing) as client,
        pytest.raises(SourceError, match=r"a token for .*: OSError: no such key file"),
    ):
        client.ask(STATE)
    assert not service.seen


def test_a_token_goes_over_https_or_loopback_only() -> None:
    def source() -> tuple[str, float]:
        raise AssertionError("nobody asks")

    for url in ("http://example.com", "http://10.0.0.1:8080"):
        with pytest.raises(ConfigurationError, match="over https only"):
            PolicyClient(url, token_source=source)


def test_names_are_looked_up_ahead_and_a_slow_resolver_costs_the_budget_at_most(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    come = threading.Event()
    real = socket.getaddrinfo

    def slow(host: str, *rest: object, **options: object) -> object:
        come.wait(60)
        return real("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    port = service.server_address[1]
    with contextlib.closing(PolicyClient(f"http://policy.invalid:{port}", timeout_s=0.1)) as client:

        def ask() -> None:
            with pytest.raises(SourceError, match="did not answer in full within 100 ms"):
                client.ask(STATE)

        assert 0.09 < quickest(ask, 0.2) < 0.2
        come.set()
        wait_for(lambda: client._addresses is not None and client._addresses.peek() is not None)
        assert client.ask(STATE).multiplier == 1.0
    assert service.seen[0][1]["Host"] == f"policy.invalid:{port}"
